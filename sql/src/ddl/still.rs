//! Tables whose rows stand still for a while.
//!
//! ```text
//!   hold     descriptors that refuse writes are published: no transaction that knows an older form can write any more
//!   …        what needs that: rows are copied, checked, or a constraint comes between two tables
//!   commit   the descriptors that come next accept writes again; it must come before the refusal runs out
//! ```
//!
//! If the gateway dies on the way, writes are refused until the time is over.

use std::{sync::Arc, time::Duration};

use kv::{CommitOptions, Floor};
use proto::Timestamp;

use super::Pending;
use crate::{
    catalog::{Table, store},
    error::{SqlError, SqlResult},
    gateway::Gateway,
};

/// How long writes are refused at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Until a new descriptor is published: some elections long.
    Brief,
    /// Until some ten million rows are copied or checked, or a transaction block ends.
    Long,
}

impl Patience {
    fn limit(self) -> Duration {
        match self {
            Patience::Brief => Duration::from_secs(20),
            Patience::Long => Duration::from_secs(600),
        }
    }
}

/// Tables that are held.
#[derive(Clone, Debug, Default)]
pub struct Still {
    tables: Vec<Table>,
}

/// Holds tables, as `pending` knows them; `pending`, which has changed nothing yet, begins anew with them, and whoever gives it up
/// releases them. 40001 when another session has changed one.
pub async fn hold(gateway: &Arc<Gateway>, pending: &mut Pending, ids: &[u32], patience: Patience) -> SqlResult<Still> {
    if ids.is_empty() {
        return Ok(Still::default());
    }
    let now = gateway.config().pd.timestamp().await?;
    let until = Timestamp::new(now.physical_ms() + patience.limit().as_millis() as u64, 0);
    let mut changes = Vec::with_capacity(ids.len());
    for id in ids {
        let table = pending.catalog.by_id(*id).ok_or_else(|| SqlError::undefined_table(&id.to_string()))?;
        let mut fenced = (**table).clone();
        fenced.writes_fenced_until = until.0;
        fenced.version += 1;
        changes.push((table.version, Arc::new(fenced)));
    }
    let version = replace(gateway, &changes).await?;
    let still = Still { tables: changes.into_iter().map(|(_, table)| table).collect() };
    pending.held = still.clone();
    gateway.publish(version).await?;
    *pending = Pending::new(&*gateway.current_catalog()?);
    pending.commit_before = Some(until);
    pending.held = still.clone();
    Ok(still)
}

impl Still {
    /// A table as it is held.
    pub fn table(&self, id: u32) -> Option<&Table> {
        self.tables.iter().find(|table| table.id == id)
    }

    /// It holds nothing.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Takes the refusal back. If that fails, it ends by itself.
    pub async fn release(&self, gateway: &Gateway) {
        if self.tables.is_empty() {
            return;
        }
        let open = |table: &Table| {
            let mut open = (**table).clone();
            open.writes_fenced_until = 0;
            open.version += 1;
            (table.version, Arc::new(open))
        };
        let changes: Vec<(u64, Table)> = self.tables.iter().map(open).collect();
        let published = match replace(gateway, &changes).await {
            Ok(version) => gateway.publish(version).await,
            Err(error) => Err(error),
        };
        if let Err(error) = published {
            tracing::warn!(%error, "writes stay refused until the time that a change of the schema took is over");
        }
    }
}

/// Replaces descriptors of the versions expected in a transaction of its own; the catalog version. 40001 when one is another.
async fn replace(gateway: &Gateway, changes: &[(u64, Table)]) -> SqlResult<u64> {
    let txn = gateway.client().begin().await?;
    let catalog = store::load(&txn).await?;
    let same =
        |(expected, table): &(u64, Table)| catalog.by_id(table.id).is_some_and(|known| known.version == *expected);
    if !changes.iter().all(same) {
        return Err(SqlError::serialization("Another session changed the table at the same time."));
    }
    let put = changes.iter().map(|(_, table)| Arc::clone(table)).collect();
    let version =
        store::write(&txn, gateway.id(), catalog.version, &store::Changes { put, ..Default::default() }).await?;
    txn.commit(CommitOptions { floor: Floor::StartTs, max_commit_ts: None }).await?;
    Ok(version)
}
