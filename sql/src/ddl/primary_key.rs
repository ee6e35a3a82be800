//! ALTER TABLE … ADD PRIMARY KEY on a filled table.
//!
//! ```text
//!   1. a descriptor that refuses writes is published: from now on the rows stand still
//!   2. they are copied to a new storage id under their new keys, in batches; duplicates and NULLs end it here
//!   3. the commit swaps the descriptor; it must come before the refusal of step 1 runs out
//! ```
//!
//! If the gateway dies on the way, writes are refused until the time of step 1 is over, and the new storage id is garbage.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::PrimaryKeyConstraint;
use kv::ScanOptions;

use super::{
    Pending, create_table, foreign_key,
    index::not_created,
    still::{self, Patience, Still},
};
use crate::{
    catalog::{Table, TableDescriptor, garbage, store},
    codec::TableCodec,
    dml::{BulkWriter, Target},
    error::{SqlError, SqlResult, SqlState},
    gateway::Gateway,
    name::folded,
    types::Datum,
};

/// Adds the key in `pending`. `alone` says that the transaction consists of this statement.
pub async fn add(
    gateway: &Arc<Gateway>,
    pending: &mut Pending,
    table: &Table,
    primary: &PrimaryKeyConstraint,
    alone: bool,
) -> SqlResult<()> {
    if table.primary_key.is_some() {
        return Err(create_table::multiple_keys(&table.name));
    }
    let key = create_table::key_positions(primary, &table.columns)?;
    let constraint = primary.name.as_ref().map_or_else(|| format!("{}_pkey", table.name), folded);
    let own = pending.unpublished.contains(&table.storage_id);
    if !own && !alone {
        return Err(SqlError::unsupported("ALTER TABLE ADD PRIMARY KEY in a transaction with other statements"));
    }
    foreign_key::must_be_immediate(primary.characteristics.as_ref(), "PRIMARY KEY")?;
    let still = if own { Still::default() } else { still::hold(gateway, pending, &[table.id], Patience::Long).await? };
    let source = Arc::clone(still.table(table.id).unwrap_or(table));
    let storage_id = store::allocate_ids(gateway.client(), 1).await?;
    let new = keyed(&source, key, constraint, storage_id);
    match copy(gateway, &source, &new).await {
        Ok(()) => {
            pending.replace_storage(source.storage_id, Arc::new(new));
            Ok(())
        }
        Err(error) => {
            gateway.collect(vec![storage_id]);
            Err(error)
        }
    }
}

/// The table with the key, without the hidden row id.
fn keyed(table: &TableDescriptor, key: Vec<usize>, constraint: String, storage_id: u32) -> TableDescriptor {
    let mut new = table.clone();
    new.columns.retain(|column| !column.hidden);
    key.iter().for_each(|at| new.columns[*at].nullable = false);
    new.key = key;
    new.primary_key = Some(constraint);
    new.storage_id = storage_id;
    new.version += 1;
    new.writes_fenced_until = 0;
    new
}

/// Copies all rows of `old` to where `new` keeps them.
async fn copy(gateway: &Gateway, old: &TableDescriptor, new: &TableDescriptor) -> SqlResult<()> {
    let client = gateway.client();
    garbage::note(client, gateway.id(), new.storage_id).await?;
    let from = TableCodec::new(old);
    let kept: Vec<usize> = old.visible().map(|(at, _)| at).collect();
    let target = Target::new(Arc::new(new.clone()));
    let mut writer = BulkWriter::new(client.clone(), target.clone());
    let txn = client.begin().await?;
    let mut scan = txn.scan(ScanOptions { range: old.rows(), ..Default::default() });
    while let Some(page) = scan.next_page().await? {
        for (key, value) in page.rows {
            let row = from.decode(&key, &value)?;
            let row: Vec<Datum> = kept.iter().map(|at| row[*at].clone()).collect();
            check_keys(new, &row)?;
            let (key, value) = (target.codec.key(&row)?, target.codec.value(&row)?);
            writer.push(key, value, &row).await.map_err(not_created)?;
        }
    }
    writer.finish().await.map_err(not_created)
}

fn check_keys(table: &TableDescriptor, row: &[Datum]) -> SqlResult<()> {
    match table.key.iter().find(|at| row[**at].is_null()) {
        None => Ok(()),
        Some(at) => {
            let column = &table.columns[*at].name;
            Err(SqlError::new(
                SqlState::NOT_NULL_VIOLATION,
                format!("column \"{column}\" of relation \"{}\" contains null values", table.name),
            )
            .with_table(&table.schema, &table.name)
            .with_column(column))
        }
    }
}
