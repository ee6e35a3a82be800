//! Whole nodes: founding, PD, kv service and client, everything but sockets and SQL.

use std::{
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use futures::future::{Either, select};
use node::{CallError, DiskSpace, Drivers, FrameSender, Node, NodeConfig, NodeRpc, StoreRunner};
use parking_lot::Mutex;
use proto::{
    StoreId,
    wire::{
        AcceptRequest, AcceptResponse, HeartbeatRequest, HeartbeatResponse, KvRequest, KvResponse, PdRequest,
        PdResponse, ProbeRequest, ProbeResponse, RaftFrame, RequestHeader, kv_request::Body as Asked,
        kv_response::Body as Answered,
    },
};
use raftstore::{StoreConfig, StoreCore, StoreHandle, Transport};
use rand::Rng;
use tokio::sync::oneshot;

use super::{BootHook, Cluster, Settings};
use crate::{
    check::referee::Referee,
    disk::Disk,
    faults::Victim,
    machines::{Machine, Machines},
    network::{CallFailure, Network},
    runtime::{NodeIndex, NodeSpawn, Owner, World},
    store_host::{StoreDrivers, StoreHost, leads},
    trace::Trace,
};

/// User regions of the cluster: the tables of the workloads lie in regions of their own.
const USER_REGIONS: u32 = 3;
/// A call without a deadline of its own ends after this.
const CALL_LIMIT: Duration = Duration::from_secs(3);
/// What the disks say of themselves.
const DISK_BYTES: u64 = 1 << 40;

/// One life of a node.
struct Life {
    node: Arc<Node>,
    /// It is in its cluster and serves.
    started: bool,
}

/// The cluster.
pub struct Nodes {
    world: World,
    machines: Machines,
    settings: Settings,
    referee: Arc<Referee>,
    /// The present life of each node.
    lives: Mutex<Vec<Option<Life>>>,
    hook: Mutex<Option<BootHook<kv::Client>>>,
}

fn address(node: NodeIndex) -> String {
    format!("node{}:1", node + 1)
}

impl Nodes {
    /// A cluster of `nodes` nodes, all down, with empty disks.
    pub fn new(world: World, nodes: usize, settings: Settings) -> Arc<Nodes> {
        Arc::new(Nodes {
            machines: Machines::new(world.clone(), nodes),
            world,
            settings,
            referee: Arc::default(),
            lives: Mutex::new((0..nodes).map(|_| None).collect()),
            hook: Mutex::default(),
        })
    }

    fn node(&self, node: NodeIndex) -> Option<Arc<Node>> {
        self.lives.lock()[node].as_ref().map(|life| life.node.clone())
    }

    fn open(self: &Arc<Self>, machine: Machine) -> (Arc<Node>, Owner) {
        let (index, owner) = (machine.node, machine.owner);
        let mut rng = self.world.rng(&format!("node {owner:?}"));
        let config = self.config(index, &mut rng);
        let weak = Arc::downgrade(self);
        let engine = Arc::new(machine.engine.clone());
        let runner = Runner { world: self.world.clone(), referee: self.referee.clone(), seed: rng.random(), machine };
        let drivers = Drivers {
            engine,
            log: runner.machine.log.clone(),
            rpc: Arc::new(Calls { from: index, owner, world: self.world.clone(), cluster: weak.clone() }),
            frames: Arc::new(Frames { from: index, cluster: weak }),
            clock: Arc::new(runner.machine.clock.clone()),
            spawn: Arc::new(NodeSpawn { world: self.world.clone(), owner }),
            runner: Arc::new(runner),
            scan: None,
            disk: Arc::new(|| DiskSpace { capacity_bytes: DISK_BYTES, available_bytes: DISK_BYTES }),
        };
        (Node::open(config, drivers).expect("a node opens what it left"), owner)
    }

    fn config(&self, index: NodeIndex, rng: &mut impl Rng) -> NodeConfig {
        let bug = self.settings.bug;
        NodeConfig {
            address: address(index),
            sql_address: String::new(),
            http_address: String::new(),
            labels: Default::default(),
            join: (0..self.machines.len()).map(address).collect(),
            user_regions: USER_REGIONS,
            fresh_uuid: rng.random(),
            fresh_cluster_id: rng.random_range(1..=u64::MAX),
            store: StoreConfig { planted: bug.of_store(), ..StoreConfig::new(StoreId(0), rng.random()) },
            client: kv::ClientConfig { seed: rng.random(), plant: bug.of_kv(), ..kv::ClientConfig::default() },
            rules: Default::default(),
            #[cfg(feature = "planted-bugs")]
            planted: bug.of_pd(),
        }
    }

    /// The node found its cluster and runs.
    fn ready(&self, index: NodeIndex, owner: Owner, node: &Arc<Node>) {
        if let Some(life) = &mut self.lives.lock()[index]
            && Arc::ptr_eq(&life.node, node)
        {
            life.started = true;
        }
        self.world.count("nodes started", 1);
        if let Some(hook) = &*self.hook.lock() {
            hook(index, owner, node.client());
        }
    }
}

impl Victim for Arc<Nodes> {
    fn nodes(&self) -> usize {
        self.machines.len()
    }

    fn crash(&self, node: NodeIndex) {
        let life = self.lives.lock()[node].take();
        if let Some(store) = life.and_then(|life| life.node.store()) {
            self.referee.died(store);
        }
        self.machines.crash(node);
    }

    fn boot(&self, node: NodeIndex) {
        let (life, owner) = self.open(self.machines.boot(node));
        self.lives.lock()[node] = Some(Life { node: life.clone(), started: false });
        let cluster = self.clone();
        self.world.spawn(owner, async move {
            match life.start().await {
                Ok(()) => cluster.ready(node, owner, &life),
                Err(error) => cluster.world.fail(format!("node {node} does not start: {error}")),
            }
        });
    }

    fn disk(&self, node: NodeIndex) -> &Disk {
        self.machines.disk(node)
    }

    fn leads(&self, node: NodeIndex) -> bool {
        let lives = self.lives.lock();
        lives[node].as_ref().is_some_and(|life| life.started && leads(&life.node.store_handle()))
    }

    fn next_election(&self) -> oneshot::Receiver<StoreId> {
        self.referee.next_election()
    }

    fn jump_clock(&self, node: NodeIndex, by_ms: i64) {
        self.machines.jump_clock(node, by_ms);
    }
}

impl Cluster for Arc<Nodes> {
    type Client = kv::Client;

    fn client(&self, node: NodeIndex) -> Option<kv::Client> {
        self.lives.lock()[node].as_ref().filter(|life| life.started).map(|life| life.node.client())
    }

    fn on_ready(&self, hook: BootHook<kv::Client>) {
        for node in 0..self.nodes() {
            if let (Some(client), Some(owner)) = (self.client(node), self.world.owner(node)) {
                hook(node, owner, client);
            }
        }
        *self.hook.lock() = Some(hook);
    }

    fn network(&self) -> &Network {
        self.machines.network()
    }

    fn shut_down(&self) {
        *self.hook.lock() = None;
        self.lives.lock().iter_mut().for_each(|life| *life = None);
    }
}

/// Runs a node's store by events.
struct Runner {
    world: World,
    referee: Arc<Referee>,
    seed: u64,
    machine: Machine,
}

impl StoreRunner for Runner {
    fn run(&self, core: StoreCore, handle: StoreHandle, transport: Arc<dyn Transport>) -> Result<(), String> {
        let drivers = StoreDrivers {
            world: self.world.clone(),
            owner: self.machine.owner,
            clock: self.machine.clock.clone(),
            disk: self.machine.disk.clone(),
            engine: Arc::new(self.machine.engine.clone()),
            log: self.machine.log.clone(),
            transport,
            referee: self.referee.clone(),
            rng: rand::SeedableRng::seed_from_u64(self.seed),
        };
        // It lives in its own tick task.
        StoreHost::start(core, handle, drivers);
        Ok(())
    }
}

/// Raft frames to other nodes.
struct Frames {
    from: NodeIndex,
    cluster: Weak<Nodes>,
}

fn index_of(address: &str) -> Option<NodeIndex> {
    address.strip_prefix("node")?.strip_suffix(":1")?.parse::<usize>().ok()?.checked_sub(1)
}

impl FrameSender for Frames {
    fn send(&self, address: &str, frame: RaftFrame) {
        let (Some(cluster), Some(to)) = (self.cluster.upgrade(), index_of(address)) else { return };
        let mut trace = Trace::default();
        frame.messages.iter().for_each(|message| trace.add_bytes(&message.message));
        let receiver = self.cluster.clone();
        cluster.machines.network().send(self.from, to, "raft", trace.hash(), move || {
            if let Some(node) = receiver.upgrade().and_then(|cluster| cluster.node(to)) {
                // A refused frame is logged there.
                let _ = node.raft(frame.clone());
            }
        });
    }
}

/// Calls to other nodes.
struct Calls {
    from: NodeIndex,
    owner: Owner,
    world: World,
    cluster: Weak<Nodes>,
}

impl Calls {
    async fn call<Answer, Serving>(
        &self,
        address: &str,
        label: &'static str,
        limit: Duration,
        serve: impl FnOnce(Arc<Node>) -> Serving + Send + 'static,
    ) -> Result<Answer, CallError>
    where
        Answer: Send + 'static,
        Serving: Future<Output = Answer> + Send + 'static,
    {
        let unreachable = || CallError::Unreachable(format!("{address} refuses connections"));
        let cluster = self.cluster.upgrade().ok_or_else(unreachable)?;
        let to = index_of(address).ok_or_else(unreachable)?;
        let (network, callee) = (cluster.machines.network().clone(), self.cluster.clone());
        drop(cluster);
        let answer = network.call(self.from, to, label, move || async move {
            let node = callee.upgrade().and_then(|cluster| cluster.node(to))?;
            Some(serve(node).await)
        });
        match select(pin!(answer), pin!(self.world.sleep(self.owner, limit))).await {
            Either::Left((Ok(Some(answer)), _)) => Ok(answer),
            Either::Left((Err(CallFailure::Unreachable), _)) => Err(unreachable()),
            Either::Left((Err(CallFailure::Lost) | Ok(None), _)) => {
                Err(CallError::Lost(format!("the connection to {address} broke")))
            }
            Either::Right(_) => Err(CallError::Lost(format!("{address} did not answer within {limit:?}"))),
        }
    }
}

fn limit(header: Option<&RequestHeader>) -> Duration {
    match header.map_or(0, |header| header.deadline_ms) {
        0 => CALL_LIMIT,
        deadline => Duration::from_millis(deadline),
    }
}

#[async_trait]
impl NodeRpc for Calls {
    async fn probe(&self, address: &str, request: ProbeRequest) -> Result<ProbeResponse, CallError> {
        self.call(address, "probe", CALL_LIMIT, move |node| async move { node.probe(&request) }).await
    }
    async fn accept(&self, address: &str, request: AcceptRequest) -> Result<AcceptResponse, CallError> {
        self.call(address, "accept", CALL_LIMIT, move |node| async move { node.accept(request) }).await
    }
    async fn pd(&self, address: &str, request: PdRequest) -> Result<PdResponse, CallError> {
        let limit = limit(request.header.as_ref());
        self.call(address, "pd", limit, move |node| async move { node.pd(request).await }).await
    }
    async fn heartbeat(&self, address: &str, request: HeartbeatRequest) -> Result<HeartbeatResponse, CallError> {
        self.call(address, "heartbeat", CALL_LIMIT, move |node| async move { node.heartbeat(request).await }).await
    }
    async fn kv(&self, address: &str, request: KvRequest) -> Result<KvResponse, CallError> {
        let limit = limit(request.header.as_ref());
        let asked = request.body.clone();
        let response = self.call(address, "kv", limit, move |node| async move { node.kv(request).await }).await?;
        if let (Some(asked), Some(answered)) = (&asked, &response.body) {
            count(&self.world, asked, answered);
        }
        Ok(response)
    }
}

/// What transactions did, as far as it crossed the network.
fn count(world: &World, asked: &Asked, answered: &Answered) {
    match (asked, answered) {
        (Asked::Prewrite(_), Answered::Prewrite(p)) if p.one_pc_commit_ts != 0 => {
            world.count("commits in one phase", 1)
        }
        (Asked::Commit(_), Answered::Commit(c)) if c.error.is_none() => world.count("commits in two phases", 1),
        (Asked::CheckTxn(_), _) => world.count("primaries asked", 1),
        (Asked::Resolve(r), _) => world.count("locks resolved", r.keys.len() as u64),
        _ => {}
    }
}
