//! ALTER TABLE … ADD PRIMARY KEY on a filled table.
//!
//! ```text
//!   1. a descriptor that refuses writes is published: from now on the rows stand still
//!   2. they are copied to a new storage id under their new keys, in batches; duplicates and NULLs end it here
//!   3. the commit swaps the descriptor; it must come before the refusal of step 1 runs out
//! ```
//!
//! If the gateway dies on the way, writes are refused until the time of step 1 is over, and the new storage id is garbage.

use std::{sync::Arc, time::Duration};

use datafusion::sql::sqlparser::ast::PrimaryKeyConstraint;
use kv::{CommitOptions, Floor, ScanOptions};
use proto::Timestamp;

use super::{Pending, create_table, index::not_created};
use crate::{
    catalog::{LeasedCatalog, Table, TableDescriptor, store},
    codec::TableCodec,
    dml::{BulkWriter, Target},
    error::{SqlError, SqlResult, SqlState},
    gateway::Gateway,
    name::folded,
    types::Datum,
};

/// How long writes to the table are refused at most: enough to copy some ten million rows.
const FENCE: Duration = Duration::from_secs(600);

/// Adds the key in `pending`. `alone` says that the transaction consists of this statement.
pub async fn add(
    gateway: &Arc<Gateway>,
    catalog: &LeasedCatalog,
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
    let mut source = Arc::clone(table);
    if !own {
        source = refuse_writes(gateway, table).await?;
        *pending = Pending::new(&catalog.current());
        pending.commit_before = Some(Timestamp(source.writes_fenced_until));
    }
    let storage_id = store::allocate_ids(gateway.client(), 1).await?;
    let new = keyed(&source, key, constraint, storage_id);
    match copy(gateway, &source, &new).await {
        Ok(()) => {
            pending.replace_storage(source.storage_id, Arc::new(new));
            Ok(())
        }
        Err(error) => {
            if !own {
                allow_writes(gateway, &source).await;
            }
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

/// Publishes a descriptor that refuses writes for a while; it.
async fn refuse_writes(gateway: &Gateway, table: &TableDescriptor) -> SqlResult<Table> {
    let now = gateway.config().pd.timestamp().await?;
    let until = Timestamp::new(now.physical_ms() + FENCE.as_millis() as u64, 0);
    let mut fenced = table.clone();
    fenced.writes_fenced_until = until.0;
    fenced.version += 1;
    let fenced = Arc::new(fenced);
    let version = replace(gateway, table.version, Arc::clone(&fenced)).await?;
    gateway.publish(version).await?;
    Ok(fenced)
}

/// Takes the refusal back. If that fails, it ends by itself.
async fn allow_writes(gateway: &Gateway, table: &TableDescriptor) {
    let mut open = table.clone();
    open.writes_fenced_until = 0;
    open.version += 1;
    let published = match replace(gateway, table.version, Arc::new(open)).await {
        Ok(version) => gateway.publish(version).await,
        Err(error) => Err(error),
    };
    if let Err(error) = published {
        tracing::warn!(table = %table.name, %error, "writes stay refused until the copy's time is over");
    }
}

/// Replaces a descriptor of version `expected` in a transaction of its own; the catalog version. 40001 when it is another one.
async fn replace(gateway: &Gateway, expected: u64, table: Table) -> SqlResult<u64> {
    let txn = gateway.client().begin().await?;
    let catalog = store::load(&txn).await?;
    if catalog.by_id(table.id).is_none_or(|known| known.version != expected) {
        return Err(SqlError::serialization("Another session changed the table at the same time."));
    }
    let changes = store::Changes { put: vec![table], ..Default::default() };
    let version = store::write(&txn, catalog.version, &changes).await?;
    txn.commit(CommitOptions { floor: Floor::StartTs, max_commit_ts: None }).await?;
    Ok(version)
}

/// Copies all rows of `old` to where `new` keeps them.
async fn copy(gateway: &Gateway, old: &TableDescriptor, new: &TableDescriptor) -> SqlResult<()> {
    let client = gateway.client();
    store::note_garbage(client, new.storage_id).await?;
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
