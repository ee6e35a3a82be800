//! CREATE INDEX, UNIQUE constraints, DROP INDEX.
//!
//! The table is locked: against writers while an index is built, against everybody when one is dropped. Entries of the rows that are there are
//! written in batches, in transactions of their own: nobody reads them before the descriptor is committed, and without it they are
//! garbage. CREATE INDEX CONCURRENTLY lets writers go on:
//!
//! ```text
//!   1. the index is published, not public: from when every gateway knows it, every writer keeps it up
//!   2. entries of the rows that are there are written in batches. Who changes a row meanwhile writes under the same entry's key:
//!      it and the batch meet as writers do, and one of the two runs again
//!   3. it becomes public: now it is read
//! ```
//!
//! If the gateway dies on the way, an index stays that is not public; DROP INDEX takes it away, as PostgreSQL's. Entries of a table that only
//! this transaction knows are written in bulk.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use datafusion::sql::sqlparser::ast::{
    CreateIndex, Expr, IndexColumn as IndexColumnAst, IndexType, KeyOrIndexDisplay, NullsDistinctOption, ObjectName,
    UniqueConstraint,
};
use kv::{CommitOptions, Floor, ScanOptions, Txn};
use proto::KeyRange;

use super::{
    Pending,
    constraint::{self, Alone},
    foreign_key, validate,
};
use crate::{
    catalog::{
        CatalogSnapshot, ColumnDescriptor, Table, TableDescriptor,
        descriptor::{IndexColumn, IndexDescriptor, MAX_KEY_COLUMNS},
        foreign_key::Deferral,
        garbage, store,
    },
    codec::{Entry, IndexCodec},
    dml::{BulkWriter, Target},
    error::{Severity, SqlError, SqlResult, SqlState},
    gateway::Gateway,
    name::{RelationName, folded},
    query::scan::bounds::prefix_end,
    types::Datum,
};

/// Rows whose entries are written in one transaction at most: its locks are short. A batch that met a writer is halved.
const BATCH_ROWS: u64 = 500;
/// How long a batch waits for those who have locked entries of its rows, or write them: as long as writers wait for ADD PRIMARY KEY.
const PATIENCE: Duration = Duration::from_secs(600);
/// Pause between two attempts, of a batch or of a change of the catalog.
const PAUSE: Duration = Duration::from_millis(10);
/// How often a change of a table's descriptor is tried against other changes of the schema.
const CHANGE_ATTEMPTS: u32 = 200;

/// A UNIQUE constraint as it was said.
pub struct Unique {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Positions of its columns.
    pub columns: Vec<usize>,
    /// NULLS DISTINCT.
    pub nulls_distinct: bool,
    /// When it is checked.
    pub deferral: Deferral,
    /// It is a PRIMARY KEY that may be deferred.
    pub primary: bool,
}

/// Reads a table's UNIQUE constraint.
pub fn read_unique(unique: &UniqueConstraint, columns: &[ColumnDescriptor]) -> SqlResult<Unique> {
    if unique.index_name.is_some() || unique.index_type.is_some() || !unique.index_options.is_empty() {
        return Err(SqlError::syntax("syntax error in UNIQUE"));
    }
    if !matches!(unique.index_type_display, KeyOrIndexDisplay::None) {
        return Err(SqlError::syntax("syntax error in UNIQUE"));
    }
    let deferral = foreign_key::deferral(unique.characteristics.as_ref())?;
    let named = unique.columns.iter().map(|column| plain(column).map(|(name, _)| name));
    let names = named.collect::<SqlResult<Vec<String>>>()?;
    let positions = positions(&names, columns, "named in key")?;
    Ok(Unique {
        name: unique.name.as_ref().map(folded),
        columns: positions,
        nulls_distinct: unique.nulls_distinct != NullsDistinctOption::NotDistinct,
        deferral,
        primary: false,
    })
}

/// A column's name and its options; 0A000 for an expression.
fn plain(column: &IndexColumnAst) -> SqlResult<(String, &IndexColumnAst)> {
    if column.operator_class.is_some() {
        return Err(SqlError::unsupported("an operator class in an index"));
    }
    match &column.column.expr {
        Expr::Identifier(name) => Ok((folded(name), column)),
        _ => Err(SqlError::unsupported("an index on an expression")),
    }
}

/// Positions of the columns of these names. `why` is the end of what 42703 says.
fn positions(names: &[String], columns: &[ColumnDescriptor], why: &str) -> SqlResult<Vec<usize>> {
    if names.len() > MAX_KEY_COLUMNS {
        let message = format!("cannot use more than {MAX_KEY_COLUMNS} columns in an index");
        return Err(SqlError::new(SqlState::TOO_MANY_COLUMNS, message));
    }
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        let at = columns.iter().position(|column| column.name == *name && !column.hidden);
        let at = at.ok_or_else(|| {
            let message = format!("column \"{name}\" {why} does not exist").replace("  ", " ");
            SqlError::new(SqlState::UNDEFINED_COLUMN, message)
        })?;
        found.push(at);
    }
    if let Some(twice) = (1..found.len()).find(|at| found[..*at].contains(&found[*at])) {
        let message = format!("column \"{}\" appears twice in unique constraint", names[twice]);
        if why.contains("key") {
            return Err(SqlError::new(SqlState::DUPLICATE_COLUMN, message));
        }
    }
    Ok(found)
}

/// The columns' names in one, for the name of an index.
pub fn joined(table: &TableDescriptor, columns: &[usize]) -> String {
    let names: Vec<&str> = columns.iter().map(|at| table.columns[*at].name.as_str()).collect();
    names.join("_")
}

/// The index of a UNIQUE constraint, public; `taken` are names that are about to be taken.
pub fn unique_index(
    catalog: &CatalogSnapshot,
    table: &TableDescriptor,
    unique: Unique,
    id: u32,
    taken: &[String],
) -> SqlResult<IndexDescriptor> {
    let named = unique.name.or_else(|| unique.primary.then(|| format!("{}_pkey", table.name)));
    let name = match named {
        Some(name) if catalog.has_relation(&table.schema, &name) || taken.contains(&name) => {
            return Err(store::duplicate_relation(&name));
        }
        Some(name) => name,
        None => catalog.free_name(&table.schema, [&table.name, &joined(table, &unique.columns)], "key", taken),
    };
    let column = |at| IndexColumn { at, descending: false, nulls_first: false };
    Ok(IndexDescriptor {
        id,
        name,
        columns: unique.columns.into_iter().map(column).collect(),
        unique: true,
        nulls_distinct: unique.nulls_distinct,
        constraint: true,
        primary: unique.primary,
        deferral: unique.deferral,
        public: true,
    })
}

/// ALTER TABLE … ADD UNIQUE.
pub async fn add_unique(
    gateway: &Arc<Gateway>,
    pending: &mut Pending,
    table: &Table,
    constraint: &UniqueConstraint,
    alone: &Alone,
) -> SqlResult<()> {
    let unique = read_unique(constraint, &table.columns)?;
    let id = store::allocate_ids(gateway.client(), 1).await?;
    let index = unique_index(&pending.catalog, table, unique, id, &[])?;
    build(gateway, pending, table, index, alone).await
}

/// ALTER TABLE … ADD PRIMARY KEY of one that may be deferred.
pub async fn add_primary(
    gateway: &Arc<Gateway>,
    pending: &mut Pending,
    table: &Table,
    key: Unique,
    alone: &Alone,
) -> SqlResult<()> {
    let id = store::allocate_ids(gateway.client(), 1).await?;
    let index = unique_index(&pending.catalog, table, key, id, &[])?;
    build(gateway, pending, table, index, alone).await
}

/// CREATE INDEX; a notice when there is one.
pub async fn create(
    gateway: &Arc<Gateway>,
    pending: &mut Pending,
    create: &CreateIndex,
    alone: &Alone,
) -> SqlResult<Option<SqlError>> {
    check_clauses(create)?;
    if create.concurrently && !alone.single {
        let message = "CREATE INDEX CONCURRENTLY cannot run inside a transaction block";
        return Err(SqlError::new(SqlState::ACTIVE_SQL_TRANSACTION, message));
    }
    let name = RelationName::new(&create.table_name)?;
    let table = pending.catalog.resolve(name.schema.as_deref(), &name.name)?.clone();
    let mut index = described(&pending.catalog, &table, create)?;
    if pending.catalog.has_relation(&table.schema, &index.name) {
        let duplicate = store::duplicate_relation(&index.name);
        if !create.if_not_exists {
            return Err(duplicate);
        }
        let message = format!("{}, skipping", duplicate.message);
        return Ok(Some(SqlError::notice(Severity::Notice, SqlState::DUPLICATE_TABLE, message)));
    }
    index.id = store::allocate_ids(gateway.client(), 1).await?;
    match create.concurrently {
        true => build_concurrently(gateway, &table, index).await?,
        false => build(gateway, pending, &table, index, alone).await?,
    }
    Ok(None)
}

fn check_clauses(create: &CreateIndex) -> SqlResult<()> {
    let waits = [
        (!create.include.is_empty(), "INCLUDE in an index"),
        (create.predicate.is_some(), "a partial index"),
        (!create.with.is_empty(), "WITH in an index"),
        (!create.index_options.is_empty() || !create.alter_options.is_empty(), "this option of an index"),
    ];
    if let Some((_, feature)) = waits.into_iter().find(|(said, _)| *said) {
        return Err(SqlError::unsupported(feature));
    }
    match &create.using {
        None | Some(IndexType::BTree) => Ok(()),
        Some(other) => Err(SqlError::unsupported(format!("an index of type {}", other.to_string().to_lowercase()))),
    }
}

/// The index that a CREATE INDEX describes, without its id.
fn described(catalog: &CatalogSnapshot, table: &TableDescriptor, create: &CreateIndex) -> SqlResult<IndexDescriptor> {
    let said = create.columns.iter().map(plain).collect::<SqlResult<Vec<_>>>()?;
    let names: Vec<String> = said.iter().map(|(name, _)| name.clone()).collect();
    let positions = positions(&names, &table.columns, "")?;
    let column = |(at, (_, column)): (&usize, &(String, &IndexColumnAst))| {
        let options = &column.column.options;
        let descending = options.asc == Some(false);
        IndexColumn { at: *at, descending, nulls_first: options.nulls_first.unwrap_or(descending) }
    };
    let name = match &create.name {
        Some(name) => RelationName::new(name)?.name,
        None => catalog.free_name(&table.schema, [&table.name, &joined(table, &positions)], "idx", &[]),
    };
    Ok(IndexDescriptor {
        id: 0,
        name,
        columns: positions.iter().zip(&said).map(column).collect(),
        unique: create.unique,
        nulls_distinct: create.nulls_distinct.unwrap_or(true),
        constraint: false,
        primary: false,
        deferral: Deferral::Never,
        public: true,
    })
}

/// Makes the index, complete, in `pending`.
async fn build(
    gateway: &Arc<Gateway>,
    pending: &mut Pending,
    table: &Table,
    index: IndexDescriptor,
    alone: &Alone,
) -> SqlResult<()> {
    let mut new = (**table).clone();
    if index.primary {
        index.columns.iter().for_each(|column| new.columns[column.at].nullable = false);
    }
    new.indexes.push(index.clone());
    new.version += 1;
    let new = Arc::new(new);
    if pending.unpublished.contains(&table.storage_id) {
        pending.fill(table.storage_id);
        let filled = async {
            fill_unpublished(gateway, table, &index).await?;
            validate::unique(gateway, &new, &index).await
        };
        if let Err(error) = filled.await {
            // Behind a savepoint the table may stay.
            let entries = garbage::Garbage::Index(table.storage_id, index.id);
            garbage::note(gateway.client(), gateway.id(), entries).await?;
            gateway.collect_indexes(vec![(table.storage_id, index.id)]);
            return Err(error);
        }
    } else {
        alone.unwritten(&[table], "an index")?;
        garbage::note(gateway.client(), gateway.id(), garbage::Garbage::Index(table.storage_id, index.id)).await?;
        let filled = match fill(gateway, &new, &index).await {
            Ok(()) => validate::unique(gateway, &new, &index).await,
            Err(error) => Err(error),
        };
        if let Err(error) = filled {
            gateway.collect_indexes(vec![(table.storage_id, index.id)]);
            return Err(error);
        }
        pending.unpublished_indexes.push((table.storage_id, index.id));
    }
    pending.put(new);
    Ok(())
}

/// Makes the index, complete, while others write.
async fn build_concurrently(gateway: &Arc<Gateway>, table: &Table, index: IndexDescriptor) -> SqlResult<()> {
    let written = IndexDescriptor { public: false, ..index.clone() };
    let add = |table: &mut TableDescriptor| {
        if !table.has_index(&written.name) {
            table.indexes.push(written.clone());
        }
    };
    let (written_table, version) = change(gateway, table.id, Some(table.version), add).await?;
    let filled = match gateway.publish(version).await {
        Ok(()) => fill(gateway, &written_table, &index).await,
        Err(error) => Err(error),
    };
    if let Err(error) = filled {
        give_up(gateway, &written_table, index.id).await;
        return Err(error);
    }
    let open = |table: &mut TableDescriptor| {
        table.indexes.iter_mut().filter(|known| known.id == index.id).for_each(|known| known.public = true);
    };
    let (table, version) = change(gateway, table.id, None, open).await?;
    gateway.publish(version).await?;
    match table.indexes.iter().any(|known| known.id == index.id) {
        true => Ok(()),
        false => Err(SqlError::serialization("Another session dropped the index while it was built.")),
    }
}

/// Changes a table's descriptor in a transaction of its own; the table, and the catalog version to publish. 40001 when it is not of
/// version `expected` any more.
async fn change(
    gateway: &Gateway,
    id: u32,
    expected: Option<u64>,
    change: impl Fn(&mut TableDescriptor),
) -> SqlResult<(Table, u64)> {
    for _ in 0..CHANGE_ATTEMPTS {
        let txn = gateway.client().begin().await?;
        let catalog = store::load(&txn).await?;
        let table = catalog.by_id(id).filter(|table| expected.is_none_or(|version| version == table.version));
        let table =
            table.ok_or_else(|| SqlError::serialization("Another session changed the table at the same time."))?;
        let mut new = (**table).clone();
        change(&mut new);
        new.version += 1;
        let new = Arc::new(new);
        let expected = BTreeMap::from([(id, table.version)]);
        let changes = store::Changes { put: vec![Arc::clone(&new)], expected, ..Default::default() };
        let changed = match store::write(&txn, gateway.id(), catalog.version, &changes).await {
            Ok(version) => {
                let options = CommitOptions { floor: Floor::StartTs, max_commit_ts: None };
                txn.commit(options).await.map(|_| version).map_err(SqlError::from)
            }
            Err(error) => Err(error),
        };
        match changed {
            Ok(version) => return Ok((new, version)),
            Err(error) if error.is_retryable() => {
                txn.rollback();
                gateway.config().clock.sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
    Err(SqlError::serialization("The schema is being changed by too many statements at once."))
}

/// Takes an index back that could not be filled. If that fails, it stays as one that is not public.
async fn give_up(gateway: &Arc<Gateway>, table: &TableDescriptor, index: u32) {
    let remove = |table: &mut TableDescriptor| table.indexes.retain(|known| known.id != index);
    let removed = match change(gateway, table.id, None, remove).await {
        Ok((_, version)) => gateway.publish(version).await,
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => gateway.collect_indexes(vec![(table.storage_id, index)]),
        Err(error) => tracing::warn!(table = %table.name, index, %error, "an index that could not be built stays"),
    }
}

/// Entries of a table that nobody else reads or writes.
async fn fill_unpublished(gateway: &Gateway, table: &Table, index: &IndexDescriptor) -> SqlResult<()> {
    let client = gateway.client();
    garbage::note(client, gateway.id(), garbage::Garbage::Storage(table.storage_id)).await?;
    let mut alone = (**table).clone();
    alone.indexes = vec![index.clone()];
    let target = Target::new(Arc::new(alone));
    let mut writer = BulkWriter::new(client.clone(), target.clone());
    let txn = client.begin().await?;
    let mut scan = txn.scan(ScanOptions { range: table.rows(), ..Default::default() });
    while let Some(page) = scan.next_page().await? {
        for (key, value) in page.rows {
            let row = target.codec.decode(&key, &value)?;
            writer.push_index(&key, &row).await.map_err(not_created)?;
        }
    }
    writer.finish().await.map_err(not_created)
}

/// Entries of the rows that are there, while others write.
async fn fill(gateway: &Gateway, table: &Table, index: &IndexDescriptor) -> SqlResult<()> {
    let target = Target::new(Arc::clone(table));
    let codec = IndexCodec::new(table, index);
    let mut rest = table.rows();
    let clock = &gateway.config().clock;
    let (mut rows, mut since) = (BATCH_ROWS, clock.now());
    loop {
        match fill_batch(gateway, &target, &codec, &rest, rows).await {
            Ok(None) => return Ok(()),
            Ok(Some(last)) => {
                // No key begins with another one.
                rest = KeyRange::new(prefix_end(&last), rest.end);
                (rows, since) = ((rows * 2).min(BATCH_ROWS), clock.now());
            }
            Err(error) if error.is_retryable() && clock.now().since(since) < PATIENCE => {
                rows = (rows / 2).max(1);
                clock.sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Writes the entries of the first rows of a range; the key of the last one, `None` when there is none.
async fn fill_batch(
    gateway: &Gateway,
    target: &Target,
    index: &IndexCodec,
    range: &KeyRange,
    rows: u64,
) -> SqlResult<Option<Bytes>> {
    let txn = gateway.client().begin().await?;
    let mut scan = txn.scan(ScanOptions { range: range.clone(), limit: rows, ..Default::default() });
    let mut entries: Vec<(Entry, Vec<Datum>)> = Vec::new();
    let mut last = None;
    while let Some(page) = scan.next_page().await? {
        for (key, value) in page.rows {
            let row = target.codec.decode(&key, &value)?;
            entries.push((index.entry(&row, &key)?, row));
            last = Some(key);
        }
    }
    for (entry, row) in missing(&txn, target, index, entries).await? {
        match if entry.unique { txn.insert(entry.key.clone(), entry.value) } else { txn.put(entry.key, entry.value) } {
            Err(kv::Error::AlreadyExists { .. }) => return Err(not_created(target.duplicate_in(index, &row))),
            other => other?,
        }
    }
    match txn.commit(CommitOptions { floor: Floor::StartTs, max_commit_ts: None }).await {
        Ok(_) => Ok(last),
        // Written a moment ago or locked, maybe by the row's own writer: the next attempt looks.
        Err(kv::Error::AlreadyExists { .. } | kv::Error::CommitUnknown(_) | kv::Error::RowLocked { .. }) => {
            Err(SqlError::serialization("An index entry was written at the same time."))
        }
        Err(error) => Err(error.into()),
    }
}

/// The entries that are still to be written; what the rows' writers have written since the index was published is there. 23505 when a
/// value is another row's.
async fn missing(
    txn: &Txn,
    target: &Target,
    index: &IndexCodec,
    entries: Vec<(Entry, Vec<Datum>)>,
) -> SqlResult<Vec<(Entry, Vec<Datum>)>> {
    if !index.descriptor.unique {
        return Ok(entries);
    }
    let keys: Vec<Bytes> = entries.iter().map(|(entry, _)| entry.key.clone()).collect();
    let mut missing = Vec::with_capacity(entries.len());
    for ((entry, row), found) in entries.into_iter().zip(txn.get_many(&keys).await?) {
        match found {
            None => missing.push((entry, row)),
            Some(value) if value == entry.value => {}
            Some(_) => return Err(not_created(target.duplicate_in(index, &row))),
        }
    }
    Ok(missing)
}

/// PostgreSQL's words for a duplicate found while an index is built.
pub fn not_created(error: SqlError) -> SqlError {
    if error.sqlstate != SqlState::UNIQUE_VIOLATION {
        return error;
    }
    let name = error.object.constraint.clone().unwrap_or_default();
    let detail = error.detail.clone().unwrap_or_default().replace(" already exists.", " is duplicated.");
    let (schema, table) = (error.object.schema.clone(), error.object.table.clone());
    SqlError::new(SqlState::UNIQUE_VIOLATION, format!("could not create unique index \"{name}\""))
        .with_detail(detail)
        .with_table(&schema.unwrap_or_default(), &table.unwrap_or_default())
        .with_constraint(&name)
}

/// The table and place of an index; `None` when there is none of that name.
fn find(catalog: &CatalogSnapshot, name: &RelationName) -> Option<(Table, Option<u32>)> {
    let here = |table: &&Table| {
        name.schema.as_ref().is_none_or(|schema| *schema == table.schema) && table.has_index(&name.name)
    };
    let table = catalog.tables().find(here)?;
    let index = table.indexes.iter().find(|index| index.name == name.name);
    Some((Arc::clone(table), index.map(|index| index.id)))
}

/// DROP INDEX; notices for those that are missing under IF EXISTS.
pub fn drop_indexes(pending: &mut Pending, names: &[ObjectName], if_exists: bool) -> SqlResult<Vec<SqlError>> {
    let mut notices = Vec::new();
    for name in names {
        let name = RelationName::new(name)?;
        let Some((table, index)) = find(&pending.catalog, &name) else {
            if if_exists {
                let message = format!("index \"{}\" does not exist, skipping", name.name);
                notices.push(SqlError::notice(Severity::Notice, SqlState::SUCCESS, message));
                continue;
            }
            let message = format!("index \"{}\" does not exist", name.shown());
            return Err(SqlError::new(SqlState::UNDEFINED_OBJECT, message));
        };
        let constraint = index.is_none_or(|id| table.indexes.iter().any(|known| known.id == id && known.constraint));
        let Some(index) = index.filter(|_| !constraint) else {
            let (index, table) = (&name.name, &table.name);
            let message = format!("cannot drop index {index} because constraint {index} on table {table} requires it");
            return Err(SqlError::new(SqlState::DEPENDENT_OBJECTS_STILL_EXIST, message)
                .with_hint(format!("You can drop constraint {index} on table {table} instead.")));
        };
        let keys = foreign_key::on_table(&pending.catalog, &table, Some(index));
        if !keys.is_empty() {
            let what = format!("index {}", name.name);
            return Err(constraint::depended_on(&what, &keys, &what));
        }
        remove(pending, &table, index);
    }
    Ok(notices)
}

/// Takes an index away.
pub fn remove(pending: &mut Pending, table: &Table, index: u32) {
    let mut new = (**table).clone();
    new.indexes.retain(|known| known.id != index);
    new.version += 1;
    pending.changes.dropped_indexes.push((table.storage_id, index));
    pending.put(Arc::new(new));
}
