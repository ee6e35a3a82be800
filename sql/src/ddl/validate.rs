//! Whether the rows that are there keep a constraint that comes.

use bytes::Bytes;
use kv::{ScanOptions, Txn};

use super::index::not_created;
use crate::{
    catalog::{ForeignKeyDescriptor, Table, descriptor::IndexDescriptor},
    codec::TableCodec,
    ddl::check::Check,
    dml::{
        foreign::{Parents, child_values, orphan, parent_values},
        unique::all_distinct,
    },
    error::{SqlError, SqlResult, SqlState},
    gateway::Gateway,
    types::Datum,
};

/// Rows whose parents are looked up at a time.
const ROWS_AT_ONCE: usize = 1000;

/// 23503 for a row without its parent. Both tables are read at one snapshot.
pub async fn foreign_key(
    gateway: &Gateway,
    child: &Table,
    parent: &Table,
    key: &ForeignKeyDescriptor,
) -> SqlResult<()> {
    let (codec, parents) = (TableCodec::new(child), Parents::new(parent, key)?);
    let txn = gateway.client().begin().await?;
    let mut scan = txn.scan(ScanOptions { range: child.rows(), ..Default::default() });
    let mut asked: Vec<(Bytes, Vec<Datum>)> = Vec::new();
    while let Some(page) = scan.next_page().await? {
        for (row_key, value) in page.rows {
            let row = codec.decode(&row_key, &value)?;
            let Some(values) = child_values(key, &row) else { continue };
            let wanted = match parent_values(parent, key, &values)? {
                Some(wanted) => parents.key_of(&wanted)?,
                None => None,
            };
            let Some(wanted) = wanted else { return Err(orphan(child, parent, key, &values)) };
            asked.push((wanted, values));
        }
        if asked.len() >= ROWS_AT_ONCE {
            all_there(&txn, child, parent, key, &mut asked).await?;
        }
    }
    all_there(&txn, child, parent, key, &mut asked).await
}

async fn all_there(
    txn: &Txn,
    child: &Table,
    parent: &Table,
    key: &ForeignKeyDescriptor,
    asked: &mut Vec<(Bytes, Vec<Datum>)>,
) -> SqlResult<()> {
    let (keys, values): (Vec<Bytes>, Vec<Vec<Datum>>) = std::mem::take(asked).into_iter().unzip();
    let found = txn.get_many(&keys).await?;
    match found.iter().position(Option::is_none) {
        Some(at) => Err(orphan(child, parent, key, &values[at])),
        None => Ok(()),
    }
}

/// 23505 for a value that several rows have, when entries do not say so by themselves; 23502 for a NULL in a primary key. The index is
/// complete, and nobody writes.
pub async fn unique(gateway: &Gateway, table: &Table, index: &IndexDescriptor) -> SqlResult<()> {
    if !index.is_deferrable() {
        return Ok(());
    }
    let txn = gateway.client().begin().await?;
    all_distinct(&txn, table, index).await.map_err(not_created)
}

/// 23514 for a row of which a CHECK is false.
pub async fn check(gateway: &Gateway, table: &Table, check: &Check) -> SqlResult<()> {
    let codec = TableCodec::new(table);
    let txn = gateway.client().begin().await?;
    let mut scan = txn.scan(ScanOptions { range: table.rows(), ..Default::default() });
    while let Some(page) = scan.next_page().await? {
        for (key, value) in page.rows {
            if !check.holds(&codec.decode(&key, &value)?)? {
                let (name, relation) = (&check.name, &table.name);
                let message = format!("check constraint \"{name}\" of relation \"{relation}\" is violated by some row");
                return Err(SqlError::new(SqlState::CHECK_VIOLATION, message)
                    .with_table(&table.schema, relation)
                    .with_constraint(name));
            }
        }
    }
    Ok(())
}
