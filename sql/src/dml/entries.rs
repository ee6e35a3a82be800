//! Secondary indexes under INSERT, UPDATE and DELETE: every row has its entry in every index of its table, in the same transaction.
//!
//! An index that is not public yet is written as one that is: when it is read for the first time it agrees with the table.

use bytes::Bytes;
use kv::Txn;

use super::{Target, target::Change};
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

/// How new entries of a unique index are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// What is there is 23505, found by the commit.
    AtCommit,
    /// What is there is 23505, found now (and by the commit, if it comes later).
    Now,
    /// It was looked for; what comes later is a conflict of writers.
    Done,
}

impl Check {
    /// `eager` says that the transaction goes on after this statement.
    pub fn of(eager: bool) -> Self {
        if eager { Check::Now } else { Check::AtCommit }
    }
}

impl Target {
    /// Writes the entries of new rows, which stand behind their keys.
    pub async fn insert_entries<'a>(
        &self,
        txn: &Txn,
        rows: impl Iterator<Item = (&'a Bytes, &'a Vec<Datum>)> + Clone,
        check: impl Fn(&IndexCodec) -> Check,
    ) -> SqlResult<()> {
        for index in &self.indexes {
            let new = |(key, row): (&Bytes, &'a Vec<Datum>)| Ok(New { entry: index.entry(row, key)?, row });
            let new = rows.clone().map(new).collect::<SqlResult<Vec<New<'_>>>>()?;
            self.put_entries(txn, index, new, check(index)).await?;
        }
        Ok(())
    }

    /// Takes the entries of old rows away and writes those of the rows they become. All go before any comes, so that rows may
    /// trade places.
    pub async fn move_entries(&self, txn: &Txn, changes: &[Change], eager: bool, plant: Plant) -> SqlResult<()> {
        for index in &self.indexes {
            let mut new = Vec::new();
            for change in changes {
                let old = index.entry(&change.old, &change.old_key)?;
                let entry = index.entry(&change.row, &self.codec.key(&change.row)?)?;
                if old.key == entry.key {
                    // The row has moved, and a unique index says where to.
                    if old.value != entry.value {
                        txn.put(entry.key, entry.value)?;
                    }
                    continue;
                }
                txn.delete(old.key)?;
                if plant.has(Planted::ForgetEntry) {
                    continue;
                }
                new.push(New { entry, row: &change.row });
            }
            self.put_entries(txn, index, new, Check::of(eager)).await?;
        }
        Ok(())
    }

    /// Takes the entries of rows away, which stand behind their keys.
    pub fn delete_entries<'a>(
        &self,
        txn: &Txn,
        rows: impl Iterator<Item = (&'a Bytes, &'a Vec<Datum>)> + Clone,
    ) -> SqlResult<()> {
        for index in &self.indexes {
            for (key, row) in rows.clone() {
                txn.delete(index.entry(row, key)?.key)?;
            }
        }
        Ok(())
    }

    async fn put_entries(&self, txn: &Txn, index: &IndexCodec, new: Vec<New<'_>>, check: Check) -> SqlResult<()> {
        if check == Check::Now {
            let unique: Vec<&New<'_>> = new.iter().filter(|new| new.entry.unique).collect();
            let keys: Vec<Bytes> = unique.iter().map(|new| new.entry.key.clone()).collect();
            let found = if keys.is_empty() { Vec::new() } else { txn.get_many(&keys).await? };
            if let Some(at) = found.iter().position(Option::is_some) {
                return Err(self.duplicate_in(index, unique[at].row));
            }
        }
        for New { entry: Entry { key, value, unique }, row } in new {
            if !unique || check == Check::Done {
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
