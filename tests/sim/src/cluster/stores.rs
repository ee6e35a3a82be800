//! Three stores with a few regions each, and sessions that propose to them and read them directly.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use proto::{
    Batch, Cf, Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId,
    wire::{RaftFrame, RaftMessage},
};
use raftstore::{
    LogBounds, ProposeError, StoreConfig, StoreCore, StoreHandle, Target, Transport, bootstrap, snapshot::Outgoing,
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Bug, Cluster, Settings, Software};
use crate::{
    machines::{Machine, node_of, store_of},
    runtime::{NodeIndex, Owner, World},
    store_host::{StoreDrivers, StoreHost},
    workload::register::{ReadWay, Registers, WriteOutcome},
};

/// So little that a store that misses some seconds needs a snapshot.
pub(super) const SHORT_LOG: LogBounds = LogBounds { entries: 6, bytes: 1 << 20, cut_entries: 2 };
/// So often that logs get cut within a run.
pub(super) const SYNC_EVERY: Duration = Duration::from_millis(300);

/// Regions 1 to this, each with a register of the workload.
const REGIONS: u64 = 4;

/// Three stores and their first regions.
pub struct Stores {
    regions: Vec<Region>,
}

impl Stores {
    /// A cluster of `nodes` stores, all down.
    pub fn cluster(world: World, nodes: usize, settings: Settings) -> Arc<Cluster<Stores>> {
        Cluster::new(world, nodes, settings, Stores { regions: regions(nodes) })
    }
}

/// Three times as fast as the defaults: more elections in the same time, and the same proportions.
fn config(node: NodeIndex, bug: Bug, seed: u64) -> StoreConfig {
    let defaults = StoreConfig::new(store_of(node), seed);
    StoreConfig {
        planted: bug.of_store(),
        tick: defaults.tick / 3,
        clock_drift: defaults.clock_drift / 3,
        log: SHORT_LOG,
        sync_every: SYNC_EVERY,
        ..defaults
    }
}

/// Region n holds the keys that start with byte n.
fn regions(nodes: usize) -> Vec<Region> {
    let peer = |region: u64, node: usize| Peer {
        id: PeerId(region * 100 + node as u64 + 1),
        store: store_of(node),
        role: PeerRole::Voter,
    };
    (1..=REGIONS)
        .map(|n| Region {
            id: RegionId(n),
            range: KeyRange::new(vec![n as u8], vec![n as u8 + 1]),
            epoch: Epoch { conf_ver: 1, version: 1 },
            // Each region prefers another store at first.
            peers: (0..nodes).map(|i| peer(n, (i + n as usize) % nodes)).collect(),
        })
        .collect()
}

impl Software for Stores {
    type Life = Arc<StoreHost>;
    type Client = StoresClient;

    fn boot(cluster: &Arc<Cluster<Self>>, machine: Machine) -> Arc<StoreHost> {
        let node = machine.node;
        let mut rng = cluster.world.rng(&format!("store {:?}", machine.owner));
        let config = config(node, cluster.settings.bug, rand::Rng::random(&mut rng));
        let engine = Arc::new(machine.engine.clone());
        bootstrap(&*engine, &*machine.log, store_of(node), &cluster.software.regions)
            .expect("the first regions are written");
        let clock = Arc::new(machine.clock.clone());
        let (core, handle) =
            StoreCore::open(config, engine, machine.log.clone(), clock).expect("a store opens what it left");
        let transport = Arc::new(Wire { from: node, cluster: Arc::downgrade(cluster) });
        let (world, referee) = (cluster.world.clone(), cluster.referee.clone());
        StoreHost::start(core, handle, StoreDrivers { world, machine, transport, referee, rng })
    }

    fn serve(
        cluster: Arc<Cluster<Self>>,
        _: Arc<StoreHost>,
        node: NodeIndex,
        owner: Owner,
    ) -> BoxFuture<'static, Result<StoresClient, String>> {
        Box::pin(async move { Ok(StoresClient { node, owner, cluster, known: BTreeMap::new() }) })
    }

    fn store(life: &Arc<StoreHost>) -> Option<StoreHandle> {
        Some(life.handle().clone())
    }
}

/// One store's way to the others.
struct Wire {
    from: NodeIndex,
    cluster: Weak<Cluster<Stores>>,
}

impl Transport for Wire {
    fn send(&self, to: StoreId, messages: Vec<RaftMessage>) {
        let Some(cluster) = self.cluster.upgrade() else { return };
        let frame = RaftFrame { from_store: store_of(self.from).0, to_store: to.0, messages, ..Default::default() };
        let messages = frame.messages.clone();
        cluster.send_raft((self.from, node_of(to)), &messages, move |host| {
            host.handle().deliver(frame.clone());
        });
    }

    fn send_snapshot(&self, snapshot: Outgoing) {
        let Some(cluster) = self.cluster.upgrade() else { return };
        let (to, message) = (node_of(snapshot.to()), snapshot.message().clone());
        cluster.send_snapshot((self.from, to), snapshot, move |host| host.handle().receive_snapshot(message));
    }
}

/// A session's way to the regions: asks one store after the other for the leader.
#[derive(Clone)]
pub struct StoresClient {
    node: NodeIndex,
    owner: Owner,
    cluster: Arc<Cluster<Stores>>,
    /// Where each register was found last; what has changed since is found out by asking there.
    known: BTreeMap<usize, Target>,
}

/// How often a session looks for a leader before it gives up.
const ATTEMPTS: usize = 12;
/// How long an answer is waited for.
const CALL_PATIENCE: std::time::Duration = std::time::Duration::from_millis(300);
/// Between two looks.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_millis(60);

/// Register `n` lies in what was region n + 1 at first.
fn register_key(register: usize) -> Bytes {
    Bytes::from(vec![(register as u64 % REGIONS) as u8 + 1, b'r'])
}

/// The region of a key as a store knows it.
fn target_here(handle: &StoreHandle, key: &[u8]) -> Option<Target> {
    let views = handle.statuses().into_iter().map(|s| s.view).filter(|v| v.region.range.contains(key));
    let view = views.max_by_key(|v| v.region.epoch.version)?;
    Some(Target { region: view.region.id, epoch: view.region.epoch, term: None })
}

impl StoresClient {
    /// Runs `serve` with the handle of `node`, which may be another one. `None`: no answer, though it may have run.
    async fn on<Answer, Serving>(
        &self,
        node: NodeIndex,
        serve: impl FnOnce(StoreHandle) -> Serving + Send + 'static,
    ) -> Option<Answer>
    where
        Answer: Send + 'static,
        Serving: Future<Output = Answer> + Send + 'static,
    {
        let serve = move |host: Arc<StoreHost>| serve(host.handle().clone());
        if node == self.node {
            return Some(serve(self.cluster.life(node)?).await);
        }
        self.cluster.call((self.node, self.owner), node, "call", CALL_PATIENCE, serve).await.ok()
    }

    /// Where a register is, as this session remembers or `node` says.
    async fn target(&mut self, node: NodeIndex, register: usize) -> Option<Target> {
        if let Some(known) = self.known.get(&register) {
            return Some(*known);
        }
        let key = register_key(register);
        let found = self.on(node, move |handle| async move { target_here(&handle, &key) }).await.flatten();
        match found {
            Some(target) => drop(self.known.insert(register, target)),
            None => self.cluster.world.sleep(self.owner, RETRY_PAUSE).await,
        }
        found
    }

    /// It was not there: somebody else is asked after a while.
    async fn look_again(&mut self, register: usize) {
        self.known.remove(&register);
        self.cluster.world.sleep(self.owner, RETRY_PAUSE).await;
    }
}

#[async_trait]
impl Registers for StoresClient {
    async fn write(&mut self, register: usize, value: u64) -> WriteOutcome {
        for attempt in 0..ATTEMPTS {
            let mut batch = Batch::default();
            batch.put(Cf::Data, register_key(register), Bytes::copy_from_slice(&value.to_be_bytes()));
            let node = (self.node + attempt) % self.cluster.machines.len();
            let Some(target) = self.target(node, register).await else { continue };
            let proposed = self.on(node, move |handle| async move { handle.propose(&target, batch).await }).await;
            match proposed {
                Some(Ok(())) => return WriteOutcome::Done,
                Some(Err(ProposeError::Region(_))) => self.look_again(register).await,
                Some(Err(ProposeError::Unknown(_))) | None => return WriteOutcome::Unknown,
            }
        }
        WriteOutcome::Refused
    }

    async fn read(&mut self, register: usize, _: ReadWay) -> Option<u64> {
        for attempt in 0..ATTEMPTS {
            let node = (self.node + attempt) % self.cluster.machines.len();
            let world = self.cluster.world.clone();
            let Some(target) = self.target(node, register).await else { continue };
            let read = self.on(node, move |handle| async move {
                match handle.try_snapshot(&target) {
                    Some(answer) => {
                        world.count("lease reads", u64::from(answer.is_ok()));
                        answer
                    }
                    None => {
                        world.count("reads by quorum", 1);
                        handle.snapshot(&target).await
                    }
                }
            });
            match read.await {
                Some(Ok(snapshot)) => {
                    let value = snapshot.engine.get(Cf::Data, &register_key(register)).expect("memory does not fail");
                    return Some(value.map_or(0, |v| u64::from_be_bytes(v.as_ref().try_into().expect("eight bytes"))));
                }
                Some(Err(_)) | None => self.look_again(register).await,
            }
        }
        None
    }

    fn border(register: usize, rng: &mut ChaCha8Rng) -> Option<Bytes> {
        Some(Bytes::from(vec![register_key(register)[0], rng.random_range(b'a'..=b'z')]))
    }

    async fn ready(&mut self) -> bool {
        for register in 0..REGIONS as usize {
            if self.read(register, ReadWay::Latest).await.is_none() {
                return false;
            }
        }
        true
    }
}
