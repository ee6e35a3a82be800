//! The SQL side of a node: what its sessions share.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use proto::{
    KeyRange, keyspace,
    wire::{GatewayRequest, GatewayResponse, SignalRequest, gateway_request::Body},
};

use crate::{
    advisory::Advisory,
    catalog::{CatalogSnapshot, LeasedCatalog, store},
    ddl::still::Still,
    error::{SqlError, SqlResult, SqlState},
    garbage,
    notify::Channels,
    planted::Plant,
    sequence::Pools,
    sequence::Sequences,
    session::{Backend, Session, Startup, backend::Backends, plan::StatementPlanner},
    work::RowIds,
};

/// How long a DDL tries to have its catalog version published before it tells the client so.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between attempts to publish.
const PUBLISH_PAUSE: Duration = Duration::from_millis(100);
/// The one database, until there are several.
pub const DATABASE: &str = "postgres";

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
    catalog: OnceLock<Arc<LeasedCatalog>>,
    planner: StatementPlanner,
    row_ids: RowIds,
    pools: Arc<Pools>,
    backends: Arc<Backends>,
    channels: Arc<Channels>,
    id: OnceLock<u64>,
    plant: Plant,
}

impl Gateway {
    /// A gateway that has not started yet.
    pub fn new(config: GatewayConfig) -> Arc<Self> {
        Self::with_plant(config, Plant::default())
    }

    /// A gateway with a bug, for tests of the tests.
    pub fn with_plant(config: GatewayConfig, plant: Plant) -> Arc<Self> {
        let row_ids = RowIds::new(Arc::clone(&config.pd));
        let pools = Arc::new(Pools::new(config.client.clone()));
        let channels = Channels::new(config.clone());
        Arc::new(Gateway {
            config,
            catalog: OnceLock::new(),
            planner: StatementPlanner::default(),
            row_ids,
            pools,
            backends: Arc::default(),
            channels,
            id: OnceLock::new(),
            plant,
        })
    }

    /// Makes or loads the system catalog and starts to keep its lease. Call before [`Gateway::connect`]; after an error it may be
    /// called again.
    pub async fn start(self: &Arc<Self>) -> SqlResult<()> {
        let id = self.config.pd.alloc_ids(1).await?;
        store::bootstrap(&self.config.client).await?;
        let GatewayConfig { client, pd, clock, .. } = self.config.clone();
        let catalog = Arc::new(LeasedCatalog::open(client, pd, clock, id, self.plant).await?);
        if self.id.set(id).is_err() || self.catalog.set(Arc::clone(&catalog)).is_err() {
            return Err(SqlError::internal("the gateway was started twice"));
        }
        let (watched, backends) = (Arc::clone(&catalog), Arc::clone(&self.backends));
        self.config.spawn.spawn(async move { catalog.keep().await }.boxed());
        self.config.spawn.spawn(async move { watched.watch(|| backends.end_holders()).await }.boxed());
        let gateway = Arc::downgrade(self);
        self.config.spawn.spawn(async move { garbage::sweep(gateway).await }.boxed());
        Ok(())
    }

    /// The id under which the gateway holds its catalog lease; 0 before the start.
    pub fn id(&self) -> u64 {
        self.id.get().copied().unwrap_or(0)
    }

    /// A session for an authenticated client. 3D000 for a database that does not exist, 57P03 before the start.
    pub fn connect(self: &Arc<Self>, startup: Startup) -> SqlResult<Session> {
        if startup.database != DATABASE {
            let message = format!("database \"{}\" does not exist", startup.database);
            return Err(SqlError::new(SqlState::INVALID_CATALOG_NAME, message).fatal());
        }
        let Some(catalog) = self.catalog.get() else {
            return Err(SqlError::new(SqlState::CANNOT_CONNECT_NOW, "the database system is starting up").fatal());
        };
        Session::new(Arc::clone(self), Arc::clone(catalog), startup)
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.backends.len()
    }

    /// Cancels what every session is doing.
    pub fn cancel_all(&self) {
        self.backends.cancel_all();
    }

    /// A CancelRequest, for a session of this node or of another one. A wrong secret is not told apart from a wrong process id.
    pub async fn cancel(&self, pid: u32, secret: Bytes) {
        let signal = SignalRequest { pid, terminate: false, secret };
        // Without a secret it would be taken for a session's.
        if signal.secret.is_empty() || self.backends.signal(&signal) {
            return;
        }
        if let Err(error) = self.config.client.signal(signal).await {
            tracing::warn!(pid, %error, "a cancel request was not passed on");
        }
    }

    pub(crate) fn enter(&self, startup: &Startup, catalog: &Arc<LeasedCatalog>) -> Arc<Backend> {
        let store = self.config.client.local_store().map_or(0, |store| store.0);
        let sequences = Arc::new(Sequences::new(Arc::clone(&self.pools)));
        let advisory = |pid| Advisory::new(self.config.clone(), Arc::clone(catalog), self.id(), pid, self.plant);
        self.backends.enter(store, startup, sequences, self.now_us(), advisory)
    }

    pub(crate) fn leave(&self, backend: &Backend) {
        self.backends.leave(backend.pid);
        self.channels.unlisten(backend.pid, None);
    }

    /// The sessions that listen.
    pub(crate) fn channels(&self) -> &Arc<Channels> {
        &self.channels
    }

    /// Microseconds since 1970 UTC, for people.
    pub(crate) fn now_us(&self) -> u64 {
        self.config.clock.wall_ms() * 1000
    }

    /// How often a statement was planned; stays flat while known statements run.
    pub fn planner_runs(&self) -> u64 {
        self.planner.runs()
    }

    /// How often a statement went to DataFusion instead of a key plan.
    pub fn general_plans(&self) -> u64 {
        self.planner.general()
    }

    /// All keys of a table, `name` or `schema.name`; 42P01 when there is none, 57P03 before the start.
    pub fn table_range(&self, name: &str) -> SqlResult<KeyRange> {
        let catalog = self.catalog.get().ok_or_else(|| SqlError::unavailable("the catalog is not loaded yet"))?;
        let (schema, table) = name.split_once('.').map_or((None, name), |(schema, table)| (Some(schema), table));
        let snapshot = catalog.current();
        let table = snapshot.resolve(schema, table)?;
        Ok(keyspace::table_range(keyspace::SQL_KEYSPACE, table.storage_id))
    }

    pub(crate) fn plant(&self) -> Plant {
        self.plant
    }
    pub(crate) fn config(&self) -> &GatewayConfig {
        &self.config
    }
    pub(crate) fn client(&self) -> &kv::Client {
        &self.config.client
    }
    pub(crate) fn planner(&self) -> &StatementPlanner {
        &self.planner
    }
    /// The newest catalog; 57P03 before the start.
    pub(crate) fn current_catalog(&self) -> SqlResult<Arc<CatalogSnapshot>> {
        let catalog = self.catalog.get().ok_or_else(|| SqlError::unavailable("the catalog is not loaded yet"))?;
        Ok(catalog.current())
    }
    pub(crate) fn row_ids(&self) -> &RowIds {
        &self.row_ids
    }

    /// Has PD publish a committed catalog version and waits until every live gateway works with it, this one included. An error
    /// says that it was not confirmed in time.
    pub(crate) async fn publish(&self, version: u64) -> SqlResult<()> {
        let clock = &self.config.clock;
        let deadline = clock.now() + PUBLISH_PATIENCE;
        loop {
            match self.config.pd.publish_catalog(version).await {
                Ok(()) => break,
                Err(error) if clock.now() >= deadline => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(version, %error, "a catalog version was not published yet");
                    clock.sleep(PUBLISH_PAUSE).await;
                }
            }
        }
        if let Some(catalog) = self.catalog.get() {
            catalog.reached(version).await;
        }
        Ok(())
    }

    /// Lets writers of tables go on, in the background, that a schema change has held and does not commit.
    pub(crate) fn release(self: &Arc<Self>, held: Still) {
        if held.is_empty() {
            return;
        }
        let gateway = Arc::clone(self);
        self.config.spawn.spawn(async move { held.release(&gateway).await }.boxed());
    }
}

#[async_trait]
impl kv::GatewayDoor for Gateway {
    async fn call(&self, request: GatewayRequest) -> GatewayResponse {
        match request.body {
            Some(Body::ListSessions(_)) => {
                GatewayResponse { gateway_id: self.id(), sessions: self.backends.list(), signalled: false }
            }
            Some(Body::Signal(signal)) => {
                GatewayResponse { signalled: self.backends.signal(&signal), ..GatewayResponse::default() }
            }
            Some(Body::Poke(_)) => {
                self.channels.poke();
                GatewayResponse::default()
            }
            None => GatewayResponse::default(),
        }
    }
}
