//! A table that rows are written to.

use bytes::Bytes;
use kv::{RowLockMode, Txn};

use super::Certainty;
use crate::{
    catalog::{Table, TableDescriptor, descriptor::PRIMARY_INDEX},
    codec::{IndexCodec, TableCodec},
    ddl::check::Check,
    error::{SqlError, SqlResult, SqlState},
    name::quoted,
    planted::Plant,
    types::{Datum, FormatSettings, text},
};

/// Writes after which room is made for more.
const ROOM_EVERY: usize = 256;
/// Longest values a message shows, in characters.
const SHOWN_ROW: usize = 64;

/// A table and how its rows are stored.
#[derive(Clone, Debug)]
pub struct Target {
    /// The table.
    pub table: Table,
    /// Its rows' form.
    pub codec: TableCodec,
    /// Its secondary indexes, those that are not public yet too.
    pub indexes: Vec<IndexCodec>,
    /// Its CHECK constraints.
    pub checks: Vec<Check>,
}

/// A row that UPDATE changes.
#[derive(Clone, Debug)]
pub struct Change {
    /// The key it had.
    pub old_key: Bytes,
    /// What it was; empty where the table has no secondary index and no part in a foreign key.
    pub old: Vec<Datum>,
    /// What it becomes.
    pub row: Vec<Datum>,
}

impl Target {
    /// For a table.
    pub fn new(table: Table) -> Self {
        let indexes = table.indexes.iter().map(|index| IndexCodec::new(&table, index)).collect();
        let checks = table.checks.iter().map(|check| Check::new(&table, check)).collect();
        Target { codec: TableCodec::new(&table), indexes, checks, table }
    }

    /// Makes room in the transaction's memory, if that is needed; 23505 for a new key that turns out to exist.
    pub async fn make_room(&self, txn: &Txn) -> SqlResult<()> {
        match txn.make_room().await {
            Err(kv::Error::AlreadyExists { key }) => Err(self.duplicate_key(&key)),
            other => Ok(other?),
        }
    }

    /// The same after the `at`-th of many writes, now and then.
    pub(super) async fn make_room_at(&self, txn: &Txn, at: usize) -> SqlResult<()> {
        match at % ROOM_EVERY == ROOM_EVERY - 1 {
            true => self.make_room(txn).await,
            false => Ok(()),
        }
    }

    /// Puts new rows into the transaction. A key that exists is 23505, found at once or, if `certainty` leaves it to that, by the
    /// commit that follows.
    pub async fn insert(&self, txn: &Txn, rows: &[Vec<Datum>], certainty: Certainty<'_>) -> SqlResult<()> {
        let mut keys = Vec::with_capacity(rows.len());
        for row in rows {
            self.check_row(row)?;
            keys.push(self.codec.key(row)?);
        }
        self.check_new(txn, &keys, rows, certainty).await?;
        if !self.indexes.is_empty() {
            self.insert_entries(txn, keys.iter().zip(rows), certainty, &[]).await?;
        }
        for (at, (key, row)) in keys.into_iter().zip(rows).enumerate() {
            let value = self.codec.value(row)?;
            self.put_new(txn, key, value, row)?;
            self.make_room_at(txn, at).await?;
        }
        self.make_room(txn).await
    }

    /// The row as it was, for [`Change::old`].
    pub fn kept(&self, row: &[Datum]) -> Vec<Datum> {
        if self.indexes.is_empty() && !self.table.is_linked() { Vec::new() } else { row.to_vec() }
    }

    /// Changes rows. Moves to another key are deletes first, then inserts, so that rows may trade places.
    pub async fn update(&self, txn: &Txn, changes: &[Change], certainty: Certainty<'_>, plant: Plant) -> SqlResult<()> {
        let mut moved = Vec::new();
        for (at, change) in changes.iter().enumerate() {
            self.make_room_at(txn, at).await?;
            self.check_row(&change.row)?;
            let key = self.codec.key(&change.row)?;
            if key == change.old_key {
                txn.put(key, self.codec.value(&change.row)?)?;
            } else {
                txn.delete(change.old_key.clone())?;
                moved.push((key, &change.row));
            }
        }
        if !moved.is_empty() {
            let keys: Vec<Bytes> = moved.iter().map(|(key, _)| key.clone()).collect();
            if let Some(at) = existing(txn, &keys, certainty).await? {
                return Err(self.duplicate(moved[at].1));
            }
        }
        for (at, (key, row)) in moved.into_iter().enumerate() {
            let value = self.codec.value(row)?;
            self.put_new(txn, key, value, row)?;
            self.make_room_at(txn, at).await?;
        }
        if !self.indexes.is_empty() {
            self.move_entries(txn, changes, certainty, plant).await?;
        }
        self.make_room(txn).await
    }

    /// Removes rows; each change's row is the one that goes.
    pub async fn delete(&self, txn: &Txn, gone: &[Change], certainty: Certainty<'_>) -> SqlResult<()> {
        for (at, change) in gone.iter().enumerate() {
            txn.delete(change.old_key.clone())?;
            self.make_room_at(txn, at).await?;
        }
        self.delete_entries(txn, gone, certainty).await?;
        self.make_room(txn).await
    }

    pub(super) async fn check_new(
        &self,
        txn: &Txn,
        keys: &[Bytes],
        rows: &[Vec<Datum>],
        certainty: Certainty<'_>,
    ) -> SqlResult<()> {
        // A row id is nobody else's.
        if self.table.primary_key.is_none() {
            return Ok(());
        }
        match existing(txn, keys, certainty).await? {
            Some(at) => Err(self.duplicate(&rows[at])),
            None => Ok(()),
        }
    }

    /// The lock that an UPDATE of these columns takes: as in PostgreSQL a weaker one when no key changes.
    pub fn update_lock(&self, mut assigned: impl Iterator<Item = usize>) -> RowLockMode {
        let unique = self.table.indexes.iter().filter(|index| index.unique);
        let in_unique = |at: &usize| unique.clone().any(|index| index.columns.iter().any(|column| column.at == *at));
        match assigned.any(|at| self.table.key.contains(&at) || in_unique(&at)) {
            true => RowLockMode::Update,
            false => RowLockMode::NoKeyUpdate,
        }
    }

    pub(super) fn put_new(&self, txn: &Txn, key: Bytes, value: Bytes, row: &[Datum]) -> SqlResult<()> {
        match txn.insert(key, value) {
            Err(kv::Error::AlreadyExists { .. }) => Err(self.duplicate(row)),
            other => Ok(other?),
        }
    }

    /// 23502 for a NULL where none may be, 23514 for a CHECK that is false.
    pub fn check_row(&self, row: &[Datum]) -> SqlResult<()> {
        let null = |(column, datum): &(&crate::catalog::ColumnDescriptor, &Datum)| !column.nullable && datum.is_null();
        match self.table.columns.iter().zip(row).find(null) {
            Some((column, _)) => Err(not_null(&self.table, &column.name).with_detail(failing_row(&self.table, row))),
            None => self.checks.iter().try_for_each(|check| self.check_one(check, row)),
        }
    }

    fn check_one(&self, check: &Check, row: &[Datum]) -> SqlResult<()> {
        if check.holds(row)? {
            return Ok(());
        }
        let (table, name) = (&self.table, &check.name);
        let message = format!("new row for relation \"{}\" violates check constraint \"{name}\"", table.name);
        Err(SqlError::new(SqlState::CHECK_VIOLATION, message)
            .with_detail(failing_row(table, row))
            .with_table(&table.schema, &table.name)
            .with_constraint(name))
    }

    /// 23505 for a row whose key exists.
    pub fn duplicate(&self, row: &[Datum]) -> SqlError {
        duplicate(&self.table, row)
    }

    /// 23505 for a row whose values an index has.
    pub fn duplicate_in(&self, index: &IndexCodec, row: &[Datum]) -> SqlError {
        let positions = index.form().columns().iter().map(|(at, _)| *at);
        let values: Vec<(usize, &Datum)> = positions.map(|at| (at, &row[at])).collect();
        violated(&self.table, &index.descriptor.name, &values)
    }

    /// What a commit says about a key of this table that exists.
    pub fn duplicate_key(&self, key: &Bytes) -> SqlError {
        let id = proto::keyspace::split_prefix(key).map_or(PRIMARY_INDEX, |(_, _, index, _)| index);
        if let Some(index) = self.indexes.iter().find(|index| index.descriptor.id == id) {
            return match index.values(key) {
                Ok(values) => {
                    let positions = index.form().columns().iter().map(|(at, _)| *at);
                    violated(&self.table, &index.descriptor.name, &positions.zip(&values).collect::<Vec<_>>())
                }
                Err(error) => error,
            };
        }
        let row = match self.codec.decode_key(key) {
            Ok(row) => row,
            Err(error) => return error,
        };
        self.duplicate(&row)
    }
}

/// The first of `keys` that has a row, as far as that is to be known now.
async fn existing(txn: &Txn, keys: &[Bytes], certainty: Certainty<'_>) -> SqlResult<Option<usize>> {
    Ok(match (certainty, keys) {
        (Certainty::AtCommit, _) => None,
        (Certainty::Read, [one]) => txn.get(one).await?.map(|_| 0),
        (Certainty::Read, many) => txn.get_many(many).await?.iter().position(Option::is_some),
        (Certainty::Locked(locking), keys) => {
            let rows = locking.lock_new(txn, keys, keys.len()).await?;
            rows.iter().position(|row| row.value.is_some())
        }
    })
}

/// 23502.
pub fn not_null(table: &TableDescriptor, column: &str) -> SqlError {
    SqlError::new(
        SqlState::NOT_NULL_VIOLATION,
        format!("null value in column \"{column}\" of relation \"{}\" violates not-null constraint", table.name),
    )
    .with_table(&table.schema, &table.name)
    .with_column(column)
}

/// 23502 for rows that have a NULL in a column that is to have none.
pub fn contains_null(table: &TableDescriptor, at: usize) -> SqlError {
    let column = &table.columns[at].name;
    let message = format!("column \"{column}\" of relation \"{}\" contains null values", table.name);
    SqlError::new(SqlState::NOT_NULL_VIOLATION, message).with_table(&table.schema, &table.name).with_column(column)
}

/// A value as messages show it.
pub(super) fn shown(datum: &Datum, column: &crate::catalog::ColumnDescriptor) -> String {
    if datum.is_null() {
        return "null".into();
    }
    let mut out = String::new();
    text::format(datum, column.column_type, &FormatSettings::default(), &mut out);
    if out.chars().count() > SHOWN_ROW {
        out = out.chars().take(SHOWN_ROW).collect::<String>() + "...";
    }
    out
}

fn failing_row(table: &TableDescriptor, row: &[Datum]) -> String {
    let values: Vec<String> = table.visible().map(|(at, column)| shown(&row[at], column)).collect();
    format!("Failing row contains ({}).", values.join(", "))
}

/// 23505 for a row of `table` whose key exists.
pub fn duplicate(table: &TableDescriptor, row: &[Datum]) -> SqlError {
    let values: Vec<(usize, &Datum)> = table.key.iter().map(|at| (*at, &row[*at])).collect();
    violated(table, table.primary_key.as_deref().unwrap_or_default(), &values)
}

fn violated(table: &TableDescriptor, constraint: &str, values: &[(usize, &Datum)]) -> SqlError {
    let names: Vec<_> = values.iter().map(|(at, _)| quoted(&table.columns[*at].name)).collect();
    let values: Vec<String> = values.iter().map(|(at, value)| shown(value, &table.columns[*at])).collect();
    SqlError::new(
        SqlState::UNIQUE_VIOLATION,
        format!("duplicate key value violates unique constraint \"{constraint}\""),
    )
    .with_detail(format!("Key ({})=({}) already exists.", names.join(", "), values.join(", ")))
    .with_table(&table.schema, &table.name)
    .with_constraint(constraint)
}
