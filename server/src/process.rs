//! One node with its sockets, threads and files, from start to drained end.
//!
//! ```text
//!   data directory ── lock ── engines ─┐
//!   ports ── gRPC, SQL, HTTP ──────────┼─ node opened ─ node started ─ gateway started ─ SQL served
//!   clock, tasks ──────────────────────┘      │               │              │
//!                                        answers probes   in a cluster   catalog loaded
//! ```
//!
//! The ports are open from the beginning: a founder has to be asked before it is in a cluster, and a SQL client is
//! told that the node is starting.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use kv::Clock;
use node::{DiskSpace, Drivers, Node, NodeConfig, StoreThreads};
use proto::{StoreId, wire::ClusterStatusResponse};
use raftstore::{
    StoreConfig,
    engine::rocks::{RocksEngine, RocksOptions},
    log::files::FileLog,
};
use sql::{Gateway, GatewayConfig, query::scan::store::RowScan};
use tokio::{net::TcpListener, sync::watch};
use uuid::Uuid;

use crate::{
    bounded::BoundedListener,
    clock::{SystemClock, Tasks},
    config::NodeSettings,
    data_dir::DataDir,
    http,
    pgwire::{DoorConfig, SqlDoor},
    rpc::{channels::Channels, client::GrpcRpc, server, services::Services, streams::RaftStreams},
};

/// With less than this free on the disk, writes are refused (53100) while reads go on: RocksDB needs room to compact, and
/// the log to be cut.
const DISK_RESERVE_BYTES: u64 = 512 << 20;

/// A client that has not said who it is by then is sent away.
const STARTUP_DEADLINE: Duration = Duration::from_secs(15);

/// Sessions in a transaction get this long to end by themselves when the node drains.
const SESSION_GRACE: Duration = Duration::from_secs(5);

/// Leaderships move within an election timeout or two; a region without another live replica never does.
const LEADER_GRACE: Duration = Duration::from_secs(5);

/// Between attempts to load the catalog while no PD answers.
const GATEWAY_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The exit code when the disk failed: something was promised that may not be there. EX_IOERR of sysexits.
const DISK_FAILED: i32 = 74;

/// A node and everything around it.
pub struct Server {
    /// The node itself.
    pub node: Arc<Node>,
    /// The SQL port.
    pub door: Arc<SqlDoor>,
    /// Raft traffic on its way out.
    pub streams: Arc<RaftStreams>,
    /// Background work of the node.
    pub tasks: Tasks,
    threads: Arc<StoreThreads>,
    stopping: watch::Sender<bool>,
    settings: NodeSettings,
    _data_dir: DataDir,
}

/// Connections of other nodes and tools: a node needs one to each.
const GRPC_CONNECTIONS: usize = 4096;

/// Connections of browsers and scrapers.
const HTTP_CONNECTIONS: usize = 256;

struct Ports {
    grpc: BoundedListener,
    sql: TcpListener,
    http: BoundedListener,
}

impl Server {
    /// Opens data and ports and serves; the node is in no cluster yet. Must be called on a tokio runtime.
    pub async fn open(settings: NodeSettings) -> anyhow::Result<Arc<Server>> {
        let data_dir = DataDir::open(&settings.data_dir)?;
        let ports = Ports {
            grpc: BoundedListener::new(bind("--listen", settings.listen).await?, GRPC_CONNECTIONS),
            sql: bind("--sql-listen", settings.sql_listen).await?,
            http: BoundedListener::new(bind("--http-listen", settings.http_listen).await?, HTTP_CONNECTIONS),
        };
        let (tasks, channels) = (Tasks::default(), Arc::new(Channels::default()));
        let streams = Arc::new(RaftStreams::new(channels.clone(), tasks.clone()));
        let engine = Arc::new(RocksEngine::open(&data_dir.state(), RocksOptions::default())?);
        let log = Arc::new(FileLog::open(&data_dir.log())?);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let reserve = Some((settings.data_dir.clone(), DISK_RESERVE_BYTES));
        let threads = StoreThreads::new(engine.clone(), log.clone(), clock.clone(), reserve, Arc::new(disk_failed));
        let threads = Arc::new(threads);
        let path = settings.data_dir.clone();
        let drivers = Drivers {
            engine,
            log,
            runner: threads.clone(),
            rpc: Arc::new(GrpcRpc(channels)),
            frames: streams.clone(),
            clock,
            spawn: Arc::new(tasks.clone()),
            scan: Some(Arc::new(RowScan::default())),
            disk: Arc::new(move || disk_space(&path)),
        };
        let node = Node::open(node_config(&settings), drivers)?;
        let door_config = DoorConfig { max_connections: settings.max_connections, startup_deadline: STARTUP_DEADLINE };
        let server = Arc::new(Server {
            node,
            door: SqlDoor::new(door_config),
            streams,
            tasks,
            threads,
            stopping: watch::Sender::new(false),
            settings,
            _data_dir: data_dir,
        });
        server.clone().serve(ports);
        Ok(server)
    }

    fn serve(self: Arc<Self>, ports: Ports) {
        let Ports { grpc, sql, http } = ports;
        let (services, stopping) =
            (Services { node: self.node.clone(), gateway: self.door.gateway.clone() }, self.stopping.subscribe());
        self.tasks.run("gRPC port", async move {
            if let Err(error) = server::serve(services, grpc, stopping).await {
                tracing::error!(%error, "the gRPC port is closed");
            }
        });
        self.tasks.run("SQL port", self.door.clone().serve(sql));
        let (router, mut stopping) = (http::router(self.clone()), self.stopping.subscribe());
        self.tasks.run("HTTP port", async move {
            let until = async move { drop(stopping.wait_for(|stop| *stop).await) };
            if let Err(error) = axum::serve(http, router).with_graceful_shutdown(until).await {
                tracing::error!(%error, "the HTTP port is closed");
            }
        });
    }

    /// Finds or founds the cluster, loads the catalog, serves SQL. Returns when that is done.
    pub async fn start(&self) -> anyhow::Result<()> {
        self.node.start().await?;
        let gateway = Gateway::new(GatewayConfig {
            client: self.node.client(),
            pd: Arc::new(self.node.pd_client()),
            clock: Arc::new(SystemClock),
            spawn: Arc::new(self.tasks.clone()),
        });
        while let Err(error) = gateway.start().await {
            tracing::warn!(%error, "the catalog cannot be loaded yet");
            SystemClock.sleep(GATEWAY_AGAIN_AFTER).await;
        }
        self.node.serve_gateway(gateway.clone());
        // Started once: nobody else sets it.
        let _ = self.door.gateway.set(gateway);
        tracing::info!(sql = %self.settings.sql_listen, "SQL is served");
        Ok(())
    }

    /// Whether SQL clients are served.
    pub fn serves_sql(&self) -> bool {
        self.door.gateway.get().is_some() && !*self.stopping.borrow()
    }

    /// What PD knows of the cluster.
    pub async fn cluster_status(&self) -> Result<ClusterStatusResponse, String> {
        match self.node.store() {
            Some(_) => self.node.pd_client().cluster_status().await.map_err(|e| e.to_string()),
            None => Err("this node has not found its cluster yet".into()),
        }
    }

    /// Ends in good order: sessions, leaderships, calls, threads.
    pub async fn drain(&self) {
        tracing::info!("draining: sessions end, leaderships move");
        self.door.drain(SESSION_GRACE).await;
        self.node.drain(LEADER_GRACE).await;
        self.stopping.send_replace(true);
        self.threads.stop();
        tracing::info!("stopped");
    }
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{flag} {address} cannot be opened"))
}

fn node_config(settings: &NodeSettings) -> NodeConfig {
    let (seed, _) = Uuid::new_v4().as_u64_pair();
    NodeConfig {
        address: settings.advertise.clone(),
        sql_address: settings.sql_listen.to_string(),
        http_address: settings.http_listen.to_string(),
        labels: settings.placement.labels.clone(),
        join: settings.join.clone(),
        user_regions: settings.user_regions,
        fresh_uuid: Uuid::new_v4().into_bytes(),
        // Version bits are set in every UUID, so it is never 0.
        fresh_cluster_id: Uuid::new_v4().as_u64_pair().0,
        store: StoreConfig::new(StoreId(0), seed),
        client: kv::ClientConfig { seed, ..Default::default() },
        verify_every: settings.verify_every,
        rules: settings.placement.rules(),
    }
}

fn disk_space(path: &std::path::Path) -> DiskSpace {
    // A disk that can't be asked is shown as full: PD and people look there first.
    rustix::fs::statvfs(path).map_or(DiskSpace { capacity_bytes: 0, available_bytes: 0 }, |s| DiskSpace {
        capacity_bytes: s.f_blocks * s.f_frsize,
        available_bytes: s.f_bavail * s.f_frsize,
    })
}

fn disk_failed(reason: String) {
    tracing::error!(reason, "the store can't go on, the process ends");
    eprintln!("flaredb: the store can't go on: {reason}");
    std::process::exit(DISK_FAILED);
}
