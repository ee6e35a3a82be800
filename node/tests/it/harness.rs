//! Drivers for a handful of nodes: clock, tasks, and a network of direct calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant as StdInstant, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use node::{CallError, DiskSpace, Drivers, FrameSender, Node, NodeConfig, NodeRpc, StartError, StoreThreads};
use parking_lot::{Mutex, RwLock};
use proto::{
    Cf, StoreId,
    wire::{
        AcceptRequest, AcceptResponse, HeartbeatRequest, HeartbeatResponse, KvRequest, KvResponse, PdRequest,
        PdResponse, ProbeRequest, ProbeResponse, RaftFrame, SnapshotHead, VerifyRequest, VerifyResponse,
    },
};
use raftstore::{
    Instant, MonotonicClock, StoreConfig,
    engine::{Engine, WriteBatch, WriteOp, memory::MemoryEngine},
    log::MemoryLog,
    snapshot::Outgoing,
};
use tokio::task::AbortHandle;

/// A wait in these tests ends after this long: something is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Clock {
    start: StdInstant,
    /// Added to the wall clock: this node's is wrong by so much.
    wall_skew_ms: i64,
}

impl MonotonicClock for Clock {
    fn now(&self) -> Instant {
        Instant(self.start.elapsed() + Duration::from_secs(1))
    }
}

impl kv::Clock for Clock {
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(duration).boxed()
    }
    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        since.as_millis().checked_add_signed(self.wall_skew_ms.into()).expect("a small skew") as u64
    }
}

/// Tasks of one life of a node.
#[derive(Default)]
pub struct Tasks(Mutex<Vec<AbortHandle>>);

impl kv::Spawn for Tasks {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.lock().push(tokio::spawn(task).abort_handle());
    }
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<String, Arc<Node>>,
    cut: BTreeSet<String>,
    /// Stopped processes: their connections stand, and nobody answers.
    hung: BTreeSet<String>,
}

/// Nodes by address.
#[derive(Clone, Default)]
pub struct Net(Arc<RwLock<State>>);

/// One node's way into it.
struct Door {
    net: Net,
    from: String,
}

impl Door {
    /// The node at an address, for a call; a stopped one never answers.
    async fn call(&self, to: &str) -> Result<Arc<Node>, CallError> {
        if self.net.0.read().hung.contains(to) {
            std::future::pending::<()>().await;
        }
        self.reach(to)
    }

    fn reach(&self, to: &str) -> Result<Arc<Node>, CallError> {
        let net = self.net.0.read();
        if [to, &self.from].iter().any(|a| net.hung.contains(*a)) {
            return Err(CallError::Lost("it hangs".into()));
        }
        let cut = |a: &str| net.cut.contains(a);
        let node = net.nodes.get(to).filter(|_| !cut(to) && !cut(&self.from));
        node.cloned().ok_or(CallError::Unreachable("nobody is there".into()))
    }
}

#[async_trait]
impl NodeRpc for Door {
    async fn probe(&self, address: &str, request: ProbeRequest) -> Result<ProbeResponse, CallError> {
        Ok(self.call(address).await?.probe(&request))
    }
    async fn accept(&self, address: &str, request: AcceptRequest) -> Result<AcceptResponse, CallError> {
        Ok(self.call(address).await?.accept(request))
    }
    async fn pd(&self, address: &str, request: PdRequest) -> Result<PdResponse, CallError> {
        let node = self.call(address).await?;
        let response = node.pd(request).await;
        self.reach(address).map_err(|_| CallError::Lost("cut".into()))?;
        Ok(response)
    }
    async fn heartbeat(&self, address: &str, request: HeartbeatRequest) -> Result<HeartbeatResponse, CallError> {
        Ok(self.call(address).await?.heartbeat(request).await)
    }
    async fn kv(&self, address: &str, request: KvRequest) -> Result<KvResponse, CallError> {
        let node = self.call(address).await?;
        let response = node.kv(request).await;
        self.reach(address).map_err(|_| CallError::Lost("cut".into()))?;
        Ok(response)
    }
    async fn verify(&self, address: &str, request: VerifyRequest) -> Result<VerifyResponse, CallError> {
        Ok(self.call(address).await?.verify(request).await)
    }
}

impl FrameSender for Door {
    fn send(&self, address: &str, frame: RaftFrame) {
        if let Ok(node) = self.reach(address) {
            // A refused frame is lost; the node says so itself.
            let _ = node.raft(frame);
        }
    }

    fn send_snapshot(&self, address: &str, head: SnapshotHead, snapshot: Outgoing) {
        let node = self.reach(address);
        snapshot.carry(|_| node.map_err(|e| e.to_string())?.receive_snapshot(head));
    }
}

/// A data directory.
#[derive(Clone, Default)]
pub struct Disk {
    engine: Arc<MemoryEngine>,
    log: Arc<MemoryLog>,
}

/// A node that runs; stops when dropped, as a killed process does.
pub struct Host {
    pub node: Arc<Node>,
    pub address: String,
    pub disk: Disk,
    net: Net,
    tasks: Arc<Tasks>,
    threads: Arc<StoreThreads>,
}

impl Host {
    /// Opens a node on a disk; not started yet, but it answers.
    pub fn open(net: &Net, address: &str, join: &str, disk: Disk, wall_skew_ms: i64) -> Host {
        let clock = Arc::new(Clock { start: StdInstant::now(), wall_skew_ms });
        let tasks = Arc::new(Tasks::default());
        let failed = Arc::new(|reason: String| panic!("the store failed: {reason}"));
        let threads = Arc::new(StoreThreads::new(disk.engine.clone(), disk.log.clone(), clock.clone(), None, failed));
        let door = Arc::new(Door { net: net.clone(), from: address.into() });
        let uuid = *uuid(address, Arc::as_ptr(&disk.engine) as u64);
        let mut store = StoreConfig::new(StoreId(0), u64::from(uuid[1]));
        // Fail-over five times faster than in production, so that tests are.
        store.tick = Duration::from_millis(20);
        store.clock_drift = Duration::from_millis(10);
        let config = NodeConfig {
            address: address.into(),
            sql_address: String::new(),
            http_address: String::new(),
            labels: Default::default(),
            join: join.split(',').map(Into::into).collect(),
            user_regions: 3,
            fresh_uuid: uuid,
            fresh_cluster_id: u64::from_be_bytes(*uuid.first_chunk().expect("sixteen bytes")) | 1,
            store,
            client: kv::ClientConfig::default(),
            verify_every: Duration::from_millis(200),
            rules: Default::default(),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        };
        let drivers = Drivers {
            engine: disk.engine.clone(),
            log: disk.log.clone(),
            runner: threads.clone(),
            rpc: door.clone(),
            frames: door,
            clock,
            spawn: tasks.clone(),
            scan: None,
            disk: Arc::new(|| DiskSpace { capacity_bytes: 2, available_bytes: 1 }),
        };
        let node = Node::open(config, drivers).expect("the disk opens");
        net.0.write().nodes.insert(address.into(), node.clone());
        Host { node, address: address.into(), disk, net: net.clone(), tasks, threads }
    }

    /// Opens and starts a node.
    pub async fn start(net: &Net, address: &str, join: &str, disk: Disk) -> Result<Host, StartError> {
        let host = Host::open(net, address, join, disk, 0);
        host.node.start().await?;
        Ok(host)
    }

    /// Ends it at once; the disk stays.
    pub fn kill(self) -> Disk {
        self.disk.clone()
    }

    /// Changes a record behind the log's back, as a failing disk does.
    pub fn rot(&self, cf: Cf, key: Bytes) {
        let rot = WriteOp::Put(cf, key, "rotten".into());
        self.disk.engine.write(WriteBatch { ops: vec![rot] }).expect("memory does not fail");
    }

    /// Cuts it off, or connects it again.
    pub fn cut(&self, off: bool) {
        let cut = &mut self.net.0.write().cut;
        if off {
            cut.insert(self.address.clone())
        } else {
            cut.remove(&self.address)
        };
    }

    /// Stops it as SIGSTOP does, as far as others can tell.
    pub fn hang(&self) {
        self.net.0.write().hung.insert(self.address.clone());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.net.0.write().nodes.remove(&self.address);
        for task in self.tasks.0.lock().drain(..) {
            task.abort();
        }
        self.threads.stop();
    }
}

/// Unlike for every directory.
fn uuid(address: &str, salt: u64) -> Box<[u8; 16]> {
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&salt.to_be_bytes());
    for (at, byte) in address.bytes().take(8).enumerate() {
        uuid[8 + at] = byte;
    }
    Box::new(uuid)
}

/// Three nodes `a`, `b`, `c` that found a cluster.
pub async fn three(net: &Net) -> Vec<Host> {
    let start = |address: &'static str| Host::start(net, address, "a,b,c", Disk::default());
    let (a, b, c) = tokio::join!(start("a"), start("b"), start("c"));
    vec![a.expect("starts"), b.expect("starts"), c.expect("starts")]
}

/// Waits until `condition` holds.
pub async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = StdInstant::now() + PATIENCE;
    while !condition().await {
        assert!(StdInstant::now() < deadline, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until PD has heard of everybody.
pub async fn ready(host: &Host) {
    let pd = host.node.pd_client();
    wait_for("a ready cluster", async || pd.cluster_status().await.is_ok_and(|s| s.ready)).await;
}
