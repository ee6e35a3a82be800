//! Children: the rows that reference a key.

use std::collections::BTreeSet;

use bytes::Bytes;
use kv::{OnLocked, RowLock, RowLockMode, ScanOptions, Txn};
use proto::KeyRange;

use super::{Integrity, at, converted, name_of, types_of};
use crate::{
    catalog::{ForeignKeyDescriptor, Table, TableDescriptor},
    codec::{IndexCodec, KeyForm},
    dml::{
        Target,
        locking::{MAX_ROUNDS, changed_since, restless},
    },
    error::SqlResult,
    query::scan::{bounds::prefix_end, by_index::may_be_gone},
    types::{Datum, PgType},
};

/// A child.
pub(super) struct Found {
    /// Its key.
    pub key: Bytes,
    /// The row.
    pub row: Vec<Datum>,
}

/// How children are found.
enum Path {
    /// By the first so many columns of the primary key.
    Primary(usize),
    /// By the first so many columns of the index at this place.
    Index(usize, usize),
    /// By reading all rows.
    Scan,
}

fn path(child: &TableDescriptor, columns: &[usize]) -> Path {
    let led = |key: &mut dyn Iterator<Item = usize>| key.take_while(|at| columns.contains(at)).count();
    let primary = if child.primary_key.is_some() { led(&mut child.key.iter().copied()) } else { 0 };
    let width = |at: usize| led(&mut child.indexes[at].columns.iter().map(|column| column.at));
    let indexes = (0..child.indexes.len()).filter(|at| child.indexes[*at].public).map(|at| (width(at), at));
    match indexes.max() {
        Some((width, at)) if width > primary => Path::Index(at, width),
        _ if primary > 0 => Path::Primary(primary),
        _ => Path::Scan,
    }
}

/// The children of some keys, as one snapshot has them.
struct Search<'a> {
    child: &'a Target,
    key: &'a ForeignKeyDescriptor,
    types: Vec<PgType>,
    wanted: Vec<Vec<Datum>>,
    names: BTreeSet<Bytes>,
    /// One is enough.
    any: bool,
    found: Vec<Found>,
}

impl Search<'_> {
    async fn run(mut self, txn: &Txn) -> SqlResult<Vec<Found>> {
        let table = &self.child.table;
        match path(table, &self.key.columns) {
            _ if self.wanted.is_empty() => {}
            Path::Primary(width) => {
                let form = KeyForm::primary(table);
                for range in self.ranges(&form, width)? {
                    self.rows_in(txn, range).await?;
                }
            }
            Path::Index(place, width) => {
                let index = self.child.indexes[place].clone();
                for range in self.ranges(index.form(), width)? {
                    self.entries_in(txn, &index, range).await?;
                }
            }
            Path::Scan => self.rows_in(txn, table.rows()).await?,
        }
        Ok(self.found)
    }

    fn is_done(&self) -> bool {
        self.any && !self.found.is_empty()
    }

    /// Where the wanted rows lie under a key of which the first columns are given.
    fn ranges(&self, form: &KeyForm, width: usize) -> SqlResult<Vec<KeyRange>> {
        let places: Vec<usize> = form.columns()[..width]
            .iter()
            .filter_map(|(at, _)| self.key.columns.iter().position(|column| column == at))
            .collect();
        let mut ranges = Vec::with_capacity(self.wanted.len());
        for values in &self.wanted {
            let prefix: Vec<Datum> = places.iter().map(|place| values[*place].clone()).collect();
            let start = form.key_of(&prefix)?;
            let end = prefix_end(&start);
            ranges.push(KeyRange::new(start, end));
        }
        Ok(ranges)
    }

    fn take(&mut self, key: Bytes, value: &Bytes) -> SqlResult<()> {
        let row = self.child.codec.decode(&key, value)?;
        let values = at(&row, &self.key.columns);
        if self.names.contains(&name_of(&values, &self.types)) {
            self.found.push(Found { key, row });
        }
        Ok(())
    }

    async fn rows_in(&mut self, txn: &Txn, range: KeyRange) -> SqlResult<()> {
        let mut scan = txn.scan(ScanOptions { range, ..Default::default() });
        while !self.is_done()
            && let Some(page) = scan.next_page().await?
        {
            for (key, value) in page.rows {
                self.take(key, &value)?;
            }
        }
        Ok(())
    }

    async fn entries_in(&mut self, txn: &Txn, index: &IndexCodec, range: KeyRange) -> SqlResult<()> {
        let mut scan = txn.scan(ScanOptions { range, ..Default::default() });
        while !self.is_done()
            && let Some(page) = scan.next_page().await?
        {
            let keys = page.rows.iter().map(|(key, value)| index.row_key(key, value));
            let keys = keys.collect::<SqlResult<Vec<Bytes>>>()?;
            for (key, value) in keys.iter().zip(txn.get_many(&keys).await?) {
                match value {
                    Some(value) => self.take(key.clone(), &value)?,
                    None => may_be_gone(txn)?,
                }
            }
        }
        Ok(())
    }
}

impl Integrity<'_> {
    /// Rows of `child` that have one of these keys, given as values of the referenced columns.
    async fn search(
        &self,
        txn: &Txn,
        child: &Target,
        key: &ForeignKeyDescriptor,
        gone: &[Vec<Datum>],
        any: bool,
    ) -> SqlResult<Vec<Found>> {
        let types = types_of(&child.table, &key.columns);
        let (mut wanted, mut names) = (Vec::new(), BTreeSet::new());
        for values in gone {
            if let Some(values) = converted(values, &types, self.settings)?
                && names.insert(name_of(&values, &types))
            {
                wanted.push(values);
            }
        }
        Search { child, key, types, wanted, names, any, found: Vec::new() }.run(txn).await
    }

    /// The children, locked, as they are.
    pub(super) async fn locked_children(
        &self,
        child: &Target,
        key: &ForeignKeyDescriptor,
        gone: &[Vec<Datum>],
        mode: RowLockMode,
    ) -> SqlResult<Vec<Found>> {
        let storage_id = child.table.storage_id;
        for _ in 0..MAX_ROUNDS {
            let reader = self.reader.at_fresh_snapshot();
            let txn = reader.txn(storage_id);
            let found = self.search(txn, child, key, gone, false).await?;
            if found.is_empty() || reader.is_unpublished(storage_id) {
                return Ok(found);
            }
            let keys: Vec<Bytes> = found.iter().map(|found| found.key.clone()).collect();
            let locked = self.links.locking.lock(txn, &keys, mode, false).await?;
            if !changed_since(txn, &locked).await? {
                return Ok(found);
            }
        }
        Err(restless())
    }

    /// A child, if there is one. One that somebody is about to remove is waited for.
    pub(super) async fn a_child(
        &self,
        child: &Table,
        key: &ForeignKeyDescriptor,
        gone: &[Vec<Datum>],
    ) -> SqlResult<Option<Vec<Datum>>> {
        let target = Target::new(Table::clone(child));
        let on_locked = self.links.locking.timeout.map_or(OnLocked::Wait, OnLocked::WaitFor);
        let label = self.links.locking.label.clone();
        let lock = RowLock { mode: RowLockMode::KeyShare, on_locked, absent: false, label };
        for _ in 0..MAX_ROUNDS {
            let reader = self.reader.at_fresh_snapshot();
            let txn = reader.txn(child.storage_id);
            let found = self.search(txn, &target, key, gone, true).await?;
            let Some(Found { key: row_key, row }) = found.into_iter().next() else { return Ok(None) };
            if reader.is_unpublished(child.storage_id) {
                return Ok(Some(row));
            }
            let locked = txn.lock_rows(std::slice::from_ref(&row_key), &lock).await?;
            let Some(value) = locked.into_iter().next().and_then(|locked| locked.value) else { continue };
            if at(&target.codec.decode(&row_key, &value)?, &key.columns) == at(&row, &key.columns) {
                return Ok(Some(row));
            }
        }
        Err(restless())
    }
}
