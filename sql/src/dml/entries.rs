//! Secondary indexes under INSERT, UPDATE and DELETE: every row has its entry in every index of its table, in the same transaction.
//!
//! An index that is not public yet is written as one that is: when it is read for the first time it agrees with the table.
//!
//! Where rows are locked before they are changed, so are their entries, those that go and those that come: the commit must not find
//! that an entry is younger than the transaction's first snapshot, which at READ COMMITTED is no conflict.

use bytes::Bytes;
use kv::Txn;

use super::{Certainty, Target, target::Change};
use crate::{
    codec::{Entry, IndexCodec},
    error::SqlResult,
    planted::{Plant, Planted},
    types::Datum,
};

/// An entry to be written, and the row it is of.
struct New<'a> {
    entry: Entry,
    row: &'a [Datum],
}

impl Target {
    /// Writes the entries of new rows, which stand behind their keys. In the `looked_up` indexes nothing is there: what comes meanwhile
    /// is a conflict of writers and no duplicate.
    pub async fn insert_entries<'a>(
        &self,
        txn: &Txn,
        rows: impl Iterator<Item = (&'a Bytes, &'a Vec<Datum>)> + Clone,
        certainty: Certainty<'_>,
        looked_up: &[u32],
    ) -> SqlResult<()> {
        for index in &self.indexes {
            let new = |(key, row): (&Bytes, &'a Vec<Datum>)| Ok(New { entry: index.entry(row, key)?, row });
            let new = rows.clone().map(new).collect::<SqlResult<Vec<New<'_>>>>()?;
            let is_known = looked_up.contains(&index.descriptor.id);
            if !is_known {
                self.make_sure(txn, index, Vec::new(), &new, certainty).await?;
            }
            self.put_entries(txn, index, new, !is_known).await?;
        }
        Ok(())
    }

    /// Takes the entries of old rows away and writes those of the rows they become. All go before any comes, so that rows may
    /// trade places.
    pub async fn move_entries(
        &self,
        txn: &Txn,
        changes: &[Change],
        certainty: Certainty<'_>,
        plant: Plant,
    ) -> SqlResult<()> {
        for index in &self.indexes {
            let (mut new, mut touched) = (Vec::new(), Vec::new());
            for (at, change) in changes.iter().enumerate() {
                self.make_room_at(txn, at).await?;
                let old = index.entry(&change.old, &change.old_key)?;
                let entry = index.entry(&change.row, &self.codec.key(&change.row)?)?;
                if old == entry {
                    continue;
                }
                touched.push(old.key.clone());
                if old.key == entry.key {
                    // The row has moved, and a unique index says where to.
                    txn.put(entry.key, entry.value)?;
                    continue;
                }
                txn.delete(old.key)?;
                if !plant.has(Planted::ForgetEntry) {
                    new.push(New { entry, row: &change.row });
                }
            }
            self.make_sure(txn, index, touched, &new, certainty).await?;
            self.put_entries(txn, index, new, true).await?;
        }
        Ok(())
    }

    /// Takes the entries of rows away.
    pub async fn delete_entries(&self, txn: &Txn, gone: &[Change], certainty: Certainty<'_>) -> SqlResult<()> {
        for index in &self.indexes {
            let mut touched = Vec::with_capacity(gone.len());
            for change in gone {
                touched.push(index.entry(&change.row, &change.old_key)?.key);
            }
            for (at, key) in touched.iter().enumerate() {
                txn.delete(key.clone())?;
                self.make_room_at(txn, at).await?;
            }
            self.make_sure(txn, index, touched, &[], certainty).await?;
        }
        Ok(())
    }

    /// Locks entries if rows are locked; 23505 for a new one of a unique index that is there, as far as that is to be known now.
    async fn make_sure(
        &self,
        txn: &Txn,
        index: &IndexCodec,
        touched: Vec<Bytes>,
        new: &[New<'_>],
        certainty: Certainty<'_>,
    ) -> SqlResult<()> {
        let unique: Vec<&New<'_>> = new.iter().filter(|new| new.entry.unique).collect();
        let keys = || unique.iter().map(|new| new.entry.key.clone());
        let found: Vec<bool> = match certainty {
            Certainty::AtCommit => return Ok(()),
            Certainty::Read if unique.is_empty() => return Ok(()),
            Certainty::Read => txn.get_many(&keys().collect::<Vec<_>>()).await?.iter().map(Option::is_some).collect(),
            Certainty::Locked(locking) => {
                let others = new.iter().filter(|new| !new.entry.unique).map(|new| new.entry.key.clone());
                let all: Vec<Bytes> = keys().chain(others).chain(touched).collect();
                if all.is_empty() {
                    return Ok(());
                }
                let rows = locking.lock_new(txn, &all, unique.len()).await?;
                rows.iter().take(unique.len()).map(|row| row.value.is_some()).collect()
            }
        };
        match found.iter().position(|found| *found) {
            Some(at) => Err(self.duplicate_in(index, unique[at].row)),
            None => Ok(()),
        }
    }

    /// `check`: an entry of a unique index that is there, when the transaction commits, is 23505.
    async fn put_entries(&self, txn: &Txn, index: &IndexCodec, new: Vec<New<'_>>, check: bool) -> SqlResult<()> {
        for (at, New { entry: Entry { key, value, unique }, row }) in new.into_iter().enumerate() {
            self.make_room_at(txn, at).await?;
            if !unique || !check {
                txn.put(key, value)?;
                continue;
            }
            match txn.insert(key, value) {
                Err(kv::Error::AlreadyExists { .. }) => return Err(self.duplicate_in(index, row)),
                other => other?,
            }
        }
        Ok(())
    }
}
