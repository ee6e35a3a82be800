//! UNIQUE and PRIMARY KEY constraints that may be deferred: checked when a statement ends or the transaction does, by looking.
//!
//! ```text
//!   index       value 7, row a          entries as those of an index that is not unique: while a statement or a transaction
//!               value 7, row b          runs, several rows may have one value
//!   guard       value 7                 its lock is held by who looks whether 7 is the value of one row only
//! ```
//!
//! Whoever gives a row a value looks at it later, but before its commit. First it locks the value's guard, so that of two that do the second
//! waits for the end of the first; then it counts the value's rows at a snapshot that is taken under the lock. Rows of others that
//! stand in the way are waited for, too: their writers may be about to remove them. The lock is written as well, without a
//! change: if it goes with its leader, and another one has looked meanwhile, then one of the two commits cannot.
//!
//! Who has a value and removes it need not look. A serializable transaction has one snapshot only: what comes after it is 40001.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::future::try_join_all;
use kv::{LockedRow, OnLocked, RowLock, RowLockMode, ScanOptions, Txn};
use proto::KeyRange;

use super::{
    Integrity, Isolation, Pair, Target,
    foreign::{Check, Subject},
    locking::{MAX_ROUNDS, restless},
};
use crate::{
    catalog::{Table, descriptor::IndexDescriptor},
    codec::{IndexCodec, KeyForm},
    error::{SqlError, SqlResult},
    planted::Planted,
    query::scan::bounds::prefix_end,
    types::Datum,
};

/// Values that are looked at in parallel.
const LOOKS_AT_ONCE: usize = 32;

/// An entry: its key and its value.
type Found = (Bytes, Bytes);

/// Notes which values rows have got that no other row may have.
pub(super) fn new_values(table: &Table, pairs: &[Pair], checks: &mut Vec<Check>) -> SqlResult<()> {
    for index in table.indexes.iter().filter(|index| index.is_deferrable()) {
        let form = KeyForm::secondary(table, index);
        for pair in pairs {
            let Some(values) = pair.new.as_ref().map(|row| values_of(index, row)) else { continue };
            if index.nulls_distinct && values.iter().any(Datum::is_null) {
                continue;
            }
            if let Some(old) = &pair.old
                && form.key_of(&values_of(index, old))? == form.key_of(&values)?
            {
                continue;
            }
            checks.push(Check { child: table.id, key: index.id, subject: Subject::Value { values } });
        }
    }
    Ok(())
}

/// Notes that all values of a table are to be looked at.
pub(super) fn all_values(table: &Table, checks: &mut Vec<Check>) {
    let check = |index: &IndexDescriptor| Check { child: table.id, key: index.id, subject: Subject::AllValues };
    checks.extend(table.indexes.iter().filter(|index| index.is_deferrable()).map(check));
}

fn values_of(index: &IndexDescriptor, row: &[Datum]) -> Vec<Datum> {
    index.columns.iter().map(|column| row[column.at].clone()).collect()
}

/// 23505 for a value that several rows have in a complete index, 23502 for a NULL in a primary key's. All of it is read.
pub async fn all_distinct(txn: &Txn, table: &Table, index: &IndexDescriptor) -> SqlResult<()> {
    let codec = IndexCodec::new(table, index);
    let mut scan = txn.scan(ScanOptions { range: codec.form().range(), ..Default::default() });
    let mut before = None;
    while let Some(page) = scan.next_page().await? {
        for (key, _) in page.rows {
            let values = codec.values(&key)?;
            let null = values.iter().position(Datum::is_null);
            if let Some(place) = null.filter(|_| index.primary) {
                return Err(super::target::contains_null(table, codec.form().position(place)));
            }
            if null.is_some() && index.nulls_distinct {
                continue;
            }
            let value = codec.form().key_of(&values)?;
            if before.as_ref() == Some(&value) {
                return Err(Target::new(Table::clone(table)).duplicate_key(&key));
            }
            before = Some(value);
        }
    }
    Ok(())
}

/// The first two entries of the first of these values that has more than one.
async fn several(txn: &Txn, values: &[Bytes]) -> SqlResult<Option<[Found; 2]>> {
    for some in values.chunks(LOOKS_AT_ONCE) {
        let found = try_join_all(some.iter().map(|value| first_two(txn, value))).await?;
        if let Some(two) = found.into_iter().find_map(|found| <[Found; 2]>::try_from(found).ok()) {
            return Ok(Some(two));
        }
    }
    Ok(None)
}

async fn first_two(txn: &Txn, value: &Bytes) -> SqlResult<Vec<Found>> {
    let range = KeyRange::new(value.clone(), prefix_end(value));
    let mut scan = txn.scan(ScanOptions { range, limit: 2, ..Default::default() });
    let mut found = Vec::new();
    while let Some(page) = scan.next_page().await? {
        found.extend(page.rows);
    }
    found.truncate(2);
    Ok(found)
}

impl Integrity<'_> {
    /// 23505 for a value of an index that several rows have.
    pub(super) async fn check_unique(
        &self,
        table: &Table,
        index: &IndexDescriptor,
        values: &[Vec<Datum>],
    ) -> SqlResult<()> {
        let codec = IndexCodec::new(table, index);
        let keys = values.iter().map(|values| codec.form().key_of(values)).collect::<SqlResult<BTreeSet<Bytes>>>()?;
        let keys: Vec<Bytes> = keys.into_iter().collect();
        let txn = self.reader.txn(table.storage_id);
        let duplicate = |key: &Bytes| Target::new(Table::clone(table)).duplicate_key(key);
        if self.reader.is_unpublished(table.storage_id) {
            return several(txn, &keys).await?.map_or(Ok(()), |[(key, _), _]| Err(duplicate(&key)));
        }
        let guards = keys.iter().map(|key| codec.guard(key)).collect::<SqlResult<Vec<Bytes>>>()?;
        self.meet(txn, &guards).await?;
        let mut waited = BTreeSet::new();
        for _ in 0..MAX_ROUNDS {
            let reader = self.reader.at_fresh_snapshot();
            let Some(two) = several(reader.txn(table.storage_id), &keys).await? else { return Ok(()) };
            let others = two.iter().filter(|(key, _)| txn.own(key).is_none());
            let others = others.map(|(key, value)| codec.row_key(key, value)).collect::<SqlResult<Vec<Bytes>>>()?;
            if others.iter().all(|row| waited.contains(row)) {
                return Err(duplicate(&two[0].0));
            }
            let locked = txn.lock_rows(&others, &self.looking(RowLockMode::KeyShare)).await?;
            self.unseen(txn, &locked)?;
            waited.extend(others);
        }
        Err(restless())
    }

    /// From now on until this transaction ends nobody else looks at these values.
    async fn meet(&self, txn: &Txn, guards: &[Bytes]) -> SqlResult<()> {
        if self.plant.has(Planted::LookAlone) {
            return Ok(());
        }
        let lock = RowLock { absent: true, ..self.looking(RowLockMode::Update) };
        let locked = txn.lock_rows(guards, &lock).await?;
        self.unseen(txn, &locked)?;
        guards.iter().try_for_each(|guard| txn.lock(guard.clone()))?;
        Ok(())
    }

    fn looking(&self, mode: RowLockMode) -> RowLock {
        let on_locked = self.links.locking.timeout.map_or(OnLocked::Wait, OnLocked::WaitFor);
        RowLock { mode, on_locked, absent: false, label: self.links.locking.label.clone() }
    }

    /// 40001 for what a serializable transaction's snapshot does not show.
    fn unseen(&self, txn: &Txn, locked: &[LockedRow]) -> SqlResult<()> {
        let newer = locked.iter().any(|row| row.commit_ts > txn.start_ts());
        match self.links.locking.isolation == Isolation::Serializable && newer {
            true => Err(SqlError::serialization("Another transaction wrote a unique value since this one began.")),
            false => Ok(()),
        }
    }
}
