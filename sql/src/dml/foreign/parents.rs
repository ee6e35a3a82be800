//! Parents: whether they are there, and that they stay.

use bytes::Bytes;
use kv::{LockedRow, OnLocked, RowLock, RowLockMode, Txn};

use super::{Integrity, at, name_of, types_of};
use crate::{
    catalog::{ForeignKeyDescriptor, Table, TableDescriptor, descriptor::PRIMARY_INDEX},
    codec::{IndexCodec, KeyForm, TableCodec},
    dml::{
        Isolation,
        locking::{MAX_ROUNDS, restless},
    },
    error::{SqlError, SqlResult, SqlState},
    planted::Planted,
    types::Datum,
};

/// How a constraint finds parents.
pub struct Parents {
    form: KeyForm,
    /// The secondary index it goes by; `None` for the primary key.
    index: Option<IndexCodec>,
    /// For each column of the form its place among the constraint's.
    order: Vec<usize>,
}

impl Parents {
    /// XX000 when the index is gone, which the catalog does not allow.
    pub fn new(parent: &TableDescriptor, key: &ForeignKeyDescriptor) -> SqlResult<Self> {
        let gone = || SqlError::internal(format!("constraint {} has lost its index", key.name));
        let (form, index) = match key.index {
            PRIMARY_INDEX => (KeyForm::primary(parent), None),
            id => {
                let index = parent.indexes.iter().find(|index| index.id == id).ok_or_else(gone)?;
                let codec = IndexCodec::new(parent, index);
                (codec.form().clone(), Some(codec))
            }
        };
        let place = |(at, _): &(usize, _)| key.referenced.iter().position(|known| known == at).ok_or_else(gone);
        let order = form.columns().iter().map(place).collect::<SqlResult<Vec<usize>>>()?;
        Ok(Parents { form, index, order })
    }

    /// The key with these values of the referenced columns; `None` for one that is too long to exist.
    pub fn key_of(&self, values: &[Datum]) -> SqlResult<Option<Bytes>> {
        let ordered: Vec<Datum> = self.order.iter().map(|place| values[*place].clone()).collect();
        match self.form.key_of(&ordered) {
            Ok(key) => Ok(Some(key)),
            Err(error) if error.sqlstate == SqlState::PROGRAM_LIMIT_EXCEEDED => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Integrity<'_> {
    /// Which of these keys no row of the parent has. The rows of the others are locked: they keep their keys until this
    /// transaction ends.
    pub(super) async fn missing(
        &self,
        parent: &Table,
        key: &ForeignKeyDescriptor,
        keys: &[Vec<Datum>],
    ) -> SqlResult<Vec<bool>> {
        let parents = Parents::new(parent, key)?;
        let mut missing = vec![true; keys.len()];
        let (mut places, mut asked) = (Vec::new(), Vec::new());
        for (place, values) in keys.iter().enumerate() {
            if let Some(key) = parents.key_of(values)? {
                places.push(place);
                asked.push(key);
            }
        }
        if asked.is_empty() {
            return Ok(missing);
        }
        let txn = self.reader.txn(parent.storage_id);
        let found = if self.reader.is_unpublished(parent.storage_id) {
            txn.get_many(&asked).await?.iter().map(Option::is_none).collect()
        } else if self.plant.has(Planted::SkipParentLock) {
            let seen = txn.at_fresh_snapshot().get_many(&asked).await?;
            seen.iter().map(Option::is_none).collect()
        } else {
            match &parents.index {
                None => self.lock_rows(txn, &asked).await?,
                Some(index) => {
                    let wanted: Vec<&[Datum]> = places.iter().map(|place| keys[*place].as_slice()).collect();
                    self.lock_by_index(txn, parent, key, index, &asked, &wanted).await?
                }
            }
        };
        for (place, is_missing) in places.into_iter().zip(found) {
            missing[place] = is_missing;
        }
        Ok(missing)
    }

    /// Which of these keys the parent has now, as far as this transaction sees.
    pub(super) async fn present(
        &self,
        parent: &Table,
        key: &ForeignKeyDescriptor,
        keys: &[Vec<Datum>],
    ) -> SqlResult<Vec<bool>> {
        let parents = Parents::new(parent, key)?;
        let keys = keys.iter().map(|values| Ok(parents.key_of(values)?.unwrap_or_default()));
        let keys = keys.collect::<SqlResult<Vec<Bytes>>>()?;
        let reader = self.reader.at_fresh_snapshot();
        let found = reader.txn(parent.storage_id).get_many(&keys).await?;
        Ok(found.iter().map(Option::is_some).collect())
    }

    fn key_share(&self, on_locked: OnLocked) -> RowLock {
        let label = self.links.locking.label.clone();
        RowLock { mode: RowLockMode::KeyShare, on_locked, absent: false, label }
    }

    fn patiently(&self) -> RowLock {
        self.key_share(self.links.locking.timeout.map_or(OnLocked::Wait, OnLocked::WaitFor))
    }

    fn one_snapshot(&self) -> bool {
        self.links.locking.isolation != Isolation::ReadCommitted
    }

    /// Locks rows by their keys; which of them are missing. Of rows that others have locked only those that are there are waited for.
    async fn lock_rows(&self, txn: &Txn, keys: &[Bytes]) -> SqlResult<Vec<bool>> {
        let mut rows = txn.lock_rows(keys, &self.key_share(OnLocked::Skip)).await?;
        let busy: Vec<usize> = (0..keys.len()).filter(|place| rows[*place].skipped).collect();
        if !busy.is_empty() {
            let reading = if self.one_snapshot() { txn.clone() } else { txn.at_fresh_snapshot() };
            let asked: Vec<Bytes> = busy.iter().map(|place| keys[*place].clone()).collect();
            let seen = reading.get_many(&asked).await?;
            let (mut there, mut wanted) = (Vec::new(), Vec::new());
            for (place, value) in busy.into_iter().zip(seen) {
                rows[place] = LockedRow::default();
                if value.is_some() {
                    there.push(place);
                    wanted.push(keys[place].clone());
                }
            }
            for (place, row) in there.into_iter().zip(txn.lock_rows(&wanted, &self.patiently()).await?) {
                rows[place] = row;
            }
        }
        let mut missing = Vec::with_capacity(keys.len());
        for (key, row) in keys.iter().zip(&rows) {
            missing.push(self.is_missing(txn, key, row).await?);
        }
        Ok(missing)
    }

    /// In a transaction with one snapshot a parent that came later is missing, and one that went is 40001.
    async fn is_missing(&self, txn: &Txn, key: &Bytes, row: &LockedRow) -> SqlResult<bool> {
        if let Some(own) = txn.own(key) {
            return Ok(own.is_none());
        }
        if !self.one_snapshot() || row.commit_ts <= txn.start_ts() {
            return Ok(row.value.is_none());
        }
        match (txn.get(key).await?, &row.value) {
            (None, _) => Ok(true),
            (Some(_), Some(_)) => Ok(false),
            (Some(_), None) => Err(changed()),
        }
    }

    /// The same by entries of a unique index: they say which rows to lock, and those whether they still have the values.
    async fn lock_by_index(
        &self,
        txn: &Txn,
        parent: &Table,
        key: &ForeignKeyDescriptor,
        index: &IndexCodec,
        entries: &[Bytes],
        wanted: &[&[Datum]],
    ) -> SqlResult<Vec<bool>> {
        let (codec, types) = (TableCodec::new(parent), types_of(parent, &key.referenced));
        let mut missing = vec![false; entries.len()];
        let mut open: Vec<usize> = (0..entries.len()).collect();
        for _ in 0..MAX_ROUNDS {
            let reading = if self.one_snapshot() { txn.clone() } else { txn.at_fresh_snapshot() };
            let asked: Vec<Bytes> = open.iter().map(|place| entries[*place].clone()).collect();
            let (mut there, mut rows) = (Vec::new(), Vec::new());
            for (place, value) in open.drain(..).zip(reading.get_many(&asked).await?) {
                match value {
                    None => missing[place] = true,
                    Some(value) => {
                        there.push(place);
                        rows.push(index.row_key(&entries[place], &value)?);
                    }
                }
            }
            let locked = txn.lock_rows(&rows, &self.patiently()).await?;
            for ((place, row_key), row) in there.into_iter().zip(&rows).zip(locked) {
                let values = match &row.value {
                    Some(value) => Some(at(&codec.decode(row_key, value)?, &key.referenced)),
                    None => None,
                };
                if values.is_none_or(|values| name_of(&values, &types) != name_of(wanted[place], &types)) {
                    open.push(place);
                }
            }
            if open.is_empty() {
                return Ok(missing);
            }
            if self.one_snapshot() {
                return Err(changed());
            }
        }
        Err(restless())
    }
}

fn changed() -> SqlError {
    SqlError::serialization("Another transaction changed a referenced row since this one began.")
}
