//! Notes about rows and index entries that nobody reads any more.
//!
//! A schema change notes in its own transaction what it leaves behind; whoever fills rows outside of a transaction notes before
//! that they are garbage should nobody publish them, and takes the note back when they are published. A note names the gateway
//! that made it, which deletes: `crate::garbage` has the order of things, also for notes of gateways that are gone.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use kv::{Client, OnLocked, RowLock, RowLockMode, ScanOptions, Txn};
use proto::{
    KeyRange,
    keyspace::{PREFIX_LEN, SQL_KEYSPACE, index_range, keyspace_range, table_range},
};

use super::{
    CatalogSnapshot,
    store::{Changes, DROPPED_INDEXES, GARBAGE, commit, corrupt, id_key, load, number},
};
use crate::error::SqlResult;

/// What nobody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Garbage {
    /// All rows and entries under a storage id.
    Storage(u32),
    /// The entries of an index of a table that stays: storage id, index id.
    Index(u32, u32),
}

impl Garbage {
    fn keys(self) -> KeyRange {
        match self {
            Garbage::Storage(storage_id) => table_range(SQL_KEYSPACE, storage_id),
            Garbage::Index(storage_id, index) => index_range(SQL_KEYSPACE, storage_id, index),
        }
    }

    fn note(self) -> Bytes {
        match self {
            Garbage::Storage(storage_id) => id_key(GARBAGE, storage_id),
            Garbage::Index(storage_id, index) => {
                let mut key = BytesMut::from(&id_key(DROPPED_INDEXES, storage_id)[..]);
                key.put_u32(index);
                key.freeze()
            }
        }
    }

    /// Whether a table of the catalog has it all the same: then a note about it means nothing.
    fn is_published(self, catalog: &CatalogSnapshot) -> bool {
        catalog.tables().any(|table| match self {
            Garbage::Storage(storage_id) => table.storage_id == storage_id,
            Garbage::Index(storage_id, index) => {
                table.storage_id == storage_id && table.indexes.iter().any(|known| known.id == index)
            }
        })
    }
}

/// A note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// About what.
    pub garbage: Garbage,
    /// The gateway that made it.
    pub owner: u64,
}

fn put_note(txn: &Txn, owner: u64, garbage: Garbage) -> SqlResult<()> {
    Ok(txn.put(garbage.note(), owner.to_be_bytes().to_vec())?)
}

/// Notes in `txn` what `changes` leave behind.
pub fn put(txn: &Txn, owner: u64, changes: &Changes) -> SqlResult<()> {
    let storage = changes.garbage.iter().map(|storage_id| Garbage::Storage(*storage_id));
    let indexes = changes.dropped_indexes.iter().map(|(storage_id, index)| Garbage::Index(*storage_id, *index));
    storage.chain(indexes).try_for_each(|garbage| put_note(txn, owner, garbage))
}

/// Notes that `storage_id` is about to be filled outside of a transaction: should nobody publish it, its rows are garbage. Who
/// publishes it takes the note back with [`forget`].
pub async fn note(client: &Client, owner: u64, storage_id: u32) -> SqlResult<()> {
    let txn = client.begin().await?;
    put_note(&txn, owner, Garbage::Storage(storage_id))?;
    commit(&txn).await?;
    Ok(())
}

/// The storage ids are published: they are no garbage.
pub async fn forget(client: &Client, storage_ids: &[u32]) -> SqlResult<()> {
    let txn = client.begin().await?;
    for storage_id in storage_ids {
        let note = Garbage::Storage(*storage_id).note();
        if txn.get(&note).await?.is_some() {
            txn.delete(note)?;
        }
    }
    commit(&txn).await?;
    Ok(())
}

/// All notes that `txn` sees.
pub async fn notes(txn: &Txn) -> SqlResult<Vec<Note>> {
    let mut found = Vec::new();
    for table in [GARBAGE, DROPPED_INDEXES] {
        let mut scan = txn.scan(ScanOptions { range: index_range(SQL_KEYSPACE, table, 0), ..Default::default() });
        while let Some(page) = scan.next_page().await? {
            for (key, value) in page.rows {
                found.push(decode(table, key.get(PREFIX_LEN..).unwrap_or_default(), &value)?);
            }
        }
    }
    Ok(found)
}

fn decode(table: u32, ids: &[u8], value: &[u8]) -> SqlResult<Note> {
    const WHAT: &str = "a garbage record";
    let id = |bytes: &[u8]| Ok::<_, crate::error::SqlError>(u32::from_be_bytes(number(bytes, WHAT)?));
    let garbage = match (table, ids.split_at_checked(4)) {
        (GARBAGE, Some((storage_id, []))) => Garbage::Storage(id(storage_id)?),
        (DROPPED_INDEXES, Some((storage_id, index))) => Garbage::Index(id(storage_id)?, id(index)?),
        _ => return Err(corrupt(WHAT)),
    };
    Ok(Note { garbage, owner: u64::from_be_bytes(number(value, WHAT)?) })
}

/// Deletes what no gateway reads or writes any more, and its note. With the rows go the records that say which transactions were
/// committed: not before `kv::COMMIT_MEMORY` has passed since the last commit there, and locks elsewhere whose primary is
/// here are replaced by their outcome first. May be repeated.
pub async fn delete(client: &Client, garbage: Garbage) -> SqlResult<()> {
    let txn = client.begin().await?;
    delete_in(client, &txn, garbage).await
}

/// The keys go at once, the note with `txn`.
async fn delete_in(client: &Client, txn: &Txn, garbage: Garbage) -> SqlResult<()> {
    client.finish_transactions(&garbage.keys(), &keyspace_range(SQL_KEYSPACE)).await?;
    client.delete_range_unsafe(&garbage.keys()).await?;
    txn.delete(garbage.note())?;
    commit(txn).await?;
    Ok(())
}

/// Deletes what gateways that are gone have left, and their notes; notes that mean nothing are taken back.
pub async fn take_over(client: &Client, gone: &BTreeSet<u64>) -> SqlResult<()> {
    let seen = client.begin().await?;
    let catalog = load(&seen).await?;
    for note in notes(&seen).await?.into_iter().filter(|note| gone.contains(&note.owner)) {
        let txn = client.begin().await?;
        let key = note.garbage.note();
        // Locked: whoever else is at it is left alone.
        let lock = RowLock {
            mode: RowLockMode::Update,
            on_locked: OnLocked::Skip,
            absent: false,
            label: Bytes::from_static(b"garbage is collected"),
        };
        let stands = txn.lock_rows(std::slice::from_ref(&key), &lock).await?.iter().any(|row| row.value.is_some());
        if stands && note.garbage.is_published(&catalog) {
            txn.delete(key)?;
            commit(&txn).await?;
        } else if stands {
            tracing::info!(garbage = ?note.garbage, owner = note.owner, "garbage of a gateway that is gone is deleted");
            delete_in(client, &txn, note.garbage).await?;
        } else {
            txn.rollback();
        }
    }
    Ok(())
}
