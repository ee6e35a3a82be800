//! The SQL side of a node: what its sessions share.

use std::sync::Arc;

use crate::{
    error::SqlResult,
    session::{Session, Startup},
};

/// What a gateway is made of.
#[derive(Clone)]
pub struct GatewayConfig {
    /// Transactions.
    pub client: kv::Client,
    /// Timestamps, ids, catalog leases.
    pub pd: Arc<dyn kv::Pd>,
    /// Time.
    pub clock: Arc<dyn kv::Clock>,
    /// Background work.
    pub spawn: Arc<dyn kv::Spawn>,
}

/// The SQL side of a node.
pub struct Gateway {
    config: GatewayConfig,
    id: std::sync::atomic::AtomicU64,
}

impl Gateway {
    /// A gateway that has not started yet.
    pub fn new(config: GatewayConfig) -> Arc<Self> {
        Arc::new(Gateway { config, id: std::sync::atomic::AtomicU64::new(0) })
    }
    /// Makes or loads the system catalog and starts to keep its lease. Call once, before [`Gateway::connect`].
    pub async fn start(self: &Arc<Self>) -> SqlResult<()> {
        let id = self.config.pd.alloc_ids(1).await.map_err(|e| crate::error::SqlError::internal(e.to_string()))?;
        self.id.store(id, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
    /// The id under which the gateway holds its catalog lease; 0 before the start.
    pub fn id(&self) -> u64 {
        self.id.load(std::sync::atomic::Ordering::Relaxed)
    }
    /// A session for an authenticated client. 3D000 for a database that does not exist.
    pub fn connect(self: &Arc<Self>, startup: Startup) -> SqlResult<Session> {
        Session::new(Arc::clone(self), startup)
    }
}
