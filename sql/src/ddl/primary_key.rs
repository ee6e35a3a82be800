//! ALTER TABLE … ADD PRIMARY KEY on a filled table.
//!
//! The table is locked. Its rows are copied to a new storage id under their new keys, in batches; duplicates and NULLs end it here. The
//! commit swaps the descriptor; without one the new storage id is garbage.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::PrimaryKeyConstraint;
use kv::ScanOptions;

use super::{
    Pending,
    constraint::Alone,
    create_table,
    index::{self, not_created},
};
use crate::{
    catalog::{Table, TableDescriptor, garbage, store},
    codec::TableCodec,
    dml::{BulkWriter, Target, target::contains_null},
    error::SqlResult,
    gateway::Gateway,
    types::Datum,
};

/// Adds the key in `pending`.
pub async fn add(
    gateway: &Arc<Gateway>,
    pending: &mut Pending,
    table: &Table,
    primary: &PrimaryKeyConstraint,
    alone: &Alone,
) -> SqlResult<()> {
    if table.has_primary_key() {
        return Err(create_table::multiple_keys(&table.name));
    }
    let key = match create_table::read_key(primary, &table.columns)?.beside_rows() {
        Ok(unique) => return index::add_primary(gateway, pending, table, unique, alone).await,
        Err(key) => key,
    };
    let constraint = key.name.unwrap_or_else(|| format!("{}_pkey", table.name));
    alone.unwritten(&[table], "ALTER TABLE ADD PRIMARY KEY")?;
    let storage_id = store::allocate_ids(gateway.client(), 1).await?;
    let new = keyed(table, key.columns, constraint, storage_id);
    match copy(gateway, table, &new).await {
        Ok(()) => {
            pending.replace_storage(table.storage_id, Arc::new(new));
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
    new
}

/// Copies all rows of `old` to where `new` keeps them.
async fn copy(gateway: &Gateway, old: &TableDescriptor, new: &TableDescriptor) -> SqlResult<()> {
    let client = gateway.client();
    garbage::note(client, gateway.id(), garbage::Garbage::Storage(new.storage_id)).await?;
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
        Some(at) => Err(contains_null(table, *at)),
    }
}
