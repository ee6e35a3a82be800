//! Whole nodes: founding, PD, kv service and client, everything but sockets; and what is built on a node's client.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use node::{CallError, DiskSpace, Drivers, FrameSender, Node, NodeConfig, NodeRpc, StoreRunner};
use proto::{
    StoreId,
    wire::{
        AcceptRequest, AcceptResponse, HeartbeatRequest, HeartbeatResponse, KvRequest, KvResponse, PdRequest,
        PdResponse, ProbeRequest, ProbeResponse, RaftFrame, RequestHeader, SnapshotHead, VerifyRequest, VerifyResponse,
        kv_request::Body as Asked, kv_response::Body as Answered,
    },
};
use raftstore::{StoreConfig, StoreCore, StoreHandle, Transport, snapshot::Outgoing};
use rand::Rng;

use super::{
    Bug, Cluster, Settings, Software,
    stores::{SHORT_LOG, SYNC_EVERY},
};
use crate::{
    check::{referee::Referee, supervisor::Supervisor},
    machines::Machine,
    network::CallFailure,
    runtime::{NodeClock, NodeIndex, NodeSpawn, Owner, World},
    store_host::{StoreDrivers, StoreHost},
};

/// User regions of the cluster: the tables of the workloads lie in regions of their own.
const USER_REGIONS: u32 = 3;
/// Old versions go within a second or two, so that readers meet it.
pub const HASTY_GC: node::GcRules = node::GcRules {
    retention_ms: 200,
    every_ms: 500,
    silent_ms: pd::rules::COMMIT_MEMORY_MS,
    lease_ms: 1_500,
    hold_max_ms: 60_000,
};
/// A call without a deadline of its own ends after this.
const CALL_LIMIT: Duration = Duration::from_secs(3);
/// What the disks say of themselves.
const DISK_BYTES: u64 = 1 << 40;

/// What is built on a node's client; the node comes and goes with it.
pub trait Tenant: Send + Sync + 'static {
    /// How sessions talk to it.
    type Client: Clone + Send + 'static;
    /// How the kv client of a life behaves; seed and bug are filled in.
    fn client_config(&self, _: &mut dyn rand::RngCore) -> kv::ClientConfig {
        kv::ClientConfig::default()
    }
    /// Ends when it serves on a node that has started.
    fn move_in(&self, floor: Floor) -> BoxFuture<'static, Result<Self::Client, String>>;
}

/// A node that has started, as its tenant sees it.
pub struct Floor {
    /// The node.
    pub node: Arc<Node>,
    /// The run.
    pub world: World,
    /// The node's life.
    pub owner: Owner,
    /// The node's clock.
    pub clock: NodeClock,
    /// The bug of the run.
    pub bug: Bug,
}

/// Nothing is built on the client: sessions run transactions of `kv`.
pub struct Bare;

impl Tenant for Bare {
    type Client = kv::Client;

    fn move_in(&self, floor: Floor) -> BoxFuture<'static, Result<kv::Client, String>> {
        Box::pin(async move { Ok(floor.node.client()) })
    }
}

/// Nodes, each with a tenant.
pub struct Nodes<T: Tenant> {
    tenant: T,
    /// What their PD strives for.
    rules: node::Rules,
    /// Sees what PD tells stores to do.
    supervisor: Supervisor,
}

/// One life of a node.
#[derive(Clone)]
pub struct NodeLife {
    node: Arc<Node>,
    clock: NodeClock,
}

fn address(node: NodeIndex) -> String {
    format!("node{}:1", node + 1)
}

impl<T: Tenant> Nodes<T> {
    /// A cluster of `nodes` nodes, all down. Its PD plans nothing by itself: the harness changes regions, with ids of its
    /// own, and a store takes no peer with a lower id than one it has buried.
    pub fn cluster(world: World, nodes: usize, settings: Settings, tenant: T) -> Arc<Cluster<Self>> {
        let mut rules = node::Rules { gc: HASTY_GC, ..node::Rules::default() };
        rules.limits.operators = 0;
        Self::cluster_with(world, nodes, settings, tenant, rules)
    }

    /// The same, whose PD strives for something else.
    pub fn cluster_with(
        world: World,
        nodes: usize,
        settings: Settings,
        tenant: T,
        rules: node::Rules,
    ) -> Arc<Cluster<Self>> {
        Cluster::new(world, nodes, settings, Nodes { tenant, rules, supervisor: Supervisor::default() })
    }

    fn config(cluster: &Cluster<Self>, index: NodeIndex, rng: &mut impl Rng) -> NodeConfig {
        let bug = cluster.settings.bug;
        let client = cluster.software.tenant.client_config(rng);
        NodeConfig {
            address: address(index),
            sql_address: String::new(),
            http_address: String::new(),
            labels: Default::default(),
            join: (0..cluster.machines.len()).map(address).collect(),
            user_regions: USER_REGIONS,
            fresh_uuid: rng.random(),
            fresh_cluster_id: rng.random_range(1..=u64::MAX),
            store: StoreConfig {
                planted: bug.of_store(),
                log: SHORT_LOG,
                sync_every: SYNC_EVERY,
                ..StoreConfig::new(StoreId(0), rng.random())
            },
            client: kv::ClientConfig { seed: rng.random(), plant: bug.of_kv(), ..client },
            verify_every: Duration::ZERO,
            rules: bug.rules(cluster.software.rules.clone()),
            #[cfg(feature = "planted-bugs")]
            planted: bug.of_pd(),
        }
    }
}

impl<T: Tenant> Software for Nodes<T> {
    type Life = NodeLife;
    type Client = T::Client;

    fn boot(cluster: &Arc<Cluster<Self>>, machine: Machine) -> NodeLife {
        let (from, owner, clock) = (machine.node, machine.owner, machine.clock.clone());
        let mut rng = cluster.world.rng(&format!("node {owner:?}"));
        let config = Self::config(cluster, from, &mut rng);
        let (world, weak) = (cluster.world.clone(), Arc::downgrade(cluster));
        let runner = Runner { world: world.clone(), referee: cluster.referee.clone(), seed: rng.random(), machine };
        let drivers = Drivers {
            engine: Arc::new(runner.machine.engine.clone()),
            log: runner.machine.log.clone(),
            rpc: Arc::new(Calls { from, owner, cluster: weak.clone() }),
            frames: Arc::new(Frames { from, cluster: weak }),
            clock: Arc::new(clock.clone()),
            spawn: Arc::new(NodeSpawn { world, owner }),
            runner: Arc::new(runner),
            scan: None,
            disk: Arc::new(|| DiskSpace { capacity_bytes: DISK_BYTES, available_bytes: DISK_BYTES }),
        };
        NodeLife { node: Node::open(config, drivers).expect("a node opens what it left"), clock }
    }

    fn serve(
        cluster: Arc<Cluster<Self>>,
        life: NodeLife,
        _: NodeIndex,
        owner: Owner,
    ) -> BoxFuture<'static, Result<T::Client, String>> {
        Box::pin(async move {
            let NodeLife { node, clock } = life;
            node.start().await.map_err(|error| error.to_string())?;
            let (world, bug) = (cluster.world.clone(), cluster.settings.bug);
            count_collected(&world, &node, owner);
            cluster.software.tenant.move_in(Floor { node, world, owner, clock, bug }).await
        })
    }

    fn store(life: &NodeLife) -> Option<StoreHandle> {
        life.node.store().map(|_| life.node.store_handle())
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
            machine: self.machine.clone(),
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
struct Frames<T: Tenant> {
    from: NodeIndex,
    cluster: Weak<Cluster<Nodes<T>>>,
}

fn index_of(address: &str) -> Option<NodeIndex> {
    address.strip_prefix("node")?.strip_suffix(":1")?.parse::<usize>().ok()?.checked_sub(1)
}

impl<T: Tenant> FrameSender for Frames<T> {
    fn send(&self, address: &str, frame: RaftFrame) {
        let (Some(cluster), Some(to)) = (self.cluster.upgrade(), index_of(address)) else { return };
        let messages = frame.messages.clone();
        cluster.send_raft((self.from, to), &messages, move |life| {
            // A refused frame is logged there.
            let _ = life.node.raft(frame.clone());
        });
    }

    fn send_snapshot(&self, address: &str, head: SnapshotHead, snapshot: Outgoing) {
        let (Some(cluster), Some(to)) = (self.cluster.upgrade(), index_of(address)) else { return };
        cluster.send_snapshot((self.from, to), snapshot, move |life| life.node.receive_snapshot(head));
    }
}

/// Calls to other nodes.
struct Calls<T: Tenant> {
    from: NodeIndex,
    owner: Owner,
    cluster: Weak<Cluster<Nodes<T>>>,
}

impl<T: Tenant> Calls<T> {
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
        let answer = cluster.call((self.from, self.owner), to, label, limit, |life| serve(life.node)).await;
        answer.map_err(|failure| match failure {
            CallFailure::Unreachable => unreachable(),
            CallFailure::Lost => CallError::Lost(format!("no answer from {address} within {limit:?}")),
        })
    }
}

fn limit(header: Option<&RequestHeader>) -> Duration {
    match header.map_or(0, |header| header.deadline_ms) {
        0 => CALL_LIMIT,
        deadline => Duration::from_millis(deadline),
    }
}

#[async_trait]
impl<T: Tenant> NodeRpc for Calls<T> {
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
        let cluster = self.cluster.clone();
        let serve = move |node: Arc<Node>| async move {
            let answer = node.heartbeat(request.clone()).await;
            if let (Some(cluster), Some(pd)) = (cluster.upgrade(), node.store()) {
                let (world, supervisor) = (&cluster.world, &cluster.software.supervisor);
                if let Err(reason) = supervisor.exchange(world, pd, &request, &answer) {
                    world.fail(reason);
                }
            }
            answer
        };
        self.call(address, "heartbeat", CALL_LIMIT, serve).await
    }
    async fn kv(&self, address: &str, request: KvRequest) -> Result<KvResponse, CallError> {
        let limit = limit(request.header.as_ref());
        let asked = request.body.clone();
        let response = self.call(address, "kv", limit, move |node| async move { node.kv(request).await }).await?;
        if let (Some(asked), Some(answered), Some(cluster)) = (&asked, &response.body, self.cluster.upgrade()) {
            count(&cluster.world, asked, answered);
        }
        Ok(response)
    }
    async fn verify(&self, address: &str, request: VerifyRequest) -> Result<VerifyResponse, CallError> {
        self.call(address, "verify", CALL_LIMIT, move |node| async move { node.verify(request).await }).await
    }
}

/// How often what a life has collected is looked at.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// Counts what this life of a node collects of old versions, and what is read from replicas that need not lead.
fn count_collected(world: &World, node: &Arc<Node>, owner: Owner) {
    let Some(counts) = node.gc_counts() else { return };
    let (world, counted, node) = (world.clone(), world.clone(), Arc::downgrade(node));
    counted.spawn(owner, async move {
        let mut before = [0; 4];
        loop {
            world.sleep(owner, COUNT_EVERY).await;
            let Some(node) = node.upgrade() else { return };
            let Some(past) = node.past_reads() else { return };
            let now = [&counts.records, &past.served, &past.behind, &past.locked].map(|n| n.load(Ordering::Relaxed));
            let what = ["versions collected", "past reads served", "past reads too early", "past reads at locks"];
            (0..4).for_each(|i| world.count(what[i], now[i] - before[i]));
            before = now;
        }
    });
}

/// What transactions did, as far as it crossed the network.
fn count(world: &World, asked: &Asked, answered: &Answered) {
    match (asked, answered) {
        (Asked::Prewrite(_), Answered::Prewrite(p)) if p.one_pc_commit_ts != 0 => {
            world.count("commits in one phase", 1)
        }
        (Asked::Prewrite(r), Answered::Prewrite(p)) if r.validated_ts != 0 && p.undecided => {
            world.count("locks that decide nothing", r.mutations.len() as u64)
        }
        (Asked::Prewrite(r), Answered::Prewrite(p)) if r.async_commit && p.errors.is_empty() => {
            world.count("locks of async commits", r.mutations.len() as u64)
        }
        (Asked::Validate(_), Answered::Validate(v)) if v.error.is_none() => world.count("reads as they were", 1),
        (Asked::CheckSecondaries(_), _) => world.count("secondaries asked", 1),
        (Asked::Commit(_), Answered::Commit(c)) if c.error.is_none() => {
            world.count("keys committed behind their locks", 1)
        }
        (Asked::CheckTxn(_), _) => world.count("primaries asked", 1),
        (Asked::UnsafeDeleteRange(_), _) => world.count("ranges deleted", 1),
        (Asked::Resolve(r), _) => world.count("locks resolved", r.keys.len() as u64),
        _ => {}
    }
}
