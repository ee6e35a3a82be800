//! Three stores with a few regions each, and sessions that propose to them and read them directly.

use std::{pin::pin, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{Either, select};
use parking_lot::Mutex;
use proto::{
    Batch, Cf, Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId,
    wire::{RaftFrame, RaftMessage},
};
use raftstore::{ProposeError, StoreConfig, StoreCore, StoreHandle, Target, Transport, bootstrap};
use tokio::sync::oneshot;

use super::{BootHook, Bug, Cluster, Settings};
use crate::{
    check::referee::Referee,
    disk::Disk,
    faults::Victim,
    machines::{Machines, node_of, store_of},
    network::Network,
    runtime::{NodeIndex, Owner, World},
    store_host::{StoreDrivers, StoreHost, leads},
    trace::Trace,
    workload::register::{ReadWay, Registers, WriteOutcome},
};

/// Regions 1 to this, each with a register of the workload.
const REGIONS: u64 = 4;

/// The cluster.
pub struct Stores {
    world: World,
    machines: Machines,
    settings: Settings,
    regions: Vec<Region>,
    referee: Arc<Referee>,
    hosts: Mutex<Vec<Option<Arc<StoreHost>>>>,
    hook: Mutex<Option<BootHook<StoresClient>>>,
}

impl Stores {
    /// A cluster of `nodes` stores, all down.
    pub fn new(world: World, nodes: usize, settings: Settings) -> Arc<Stores> {
        let hosts = (0..nodes).map(|_| None).collect();
        Arc::new(Stores {
            machines: Machines::new(world.clone(), nodes),
            regions: regions(nodes),
            world,
            settings,
            referee: Arc::default(),
            hosts: Mutex::new(hosts),
            hook: Mutex::default(),
        })
    }

    fn handle(&self, node: NodeIndex) -> Option<StoreHandle> {
        self.hosts.lock()[node].as_ref().map(|host| host.handle().clone())
    }
}

/// Three times as fast as the defaults: more elections in the same time, and the same proportions.
fn config(node: NodeIndex, bug: Bug, seed: u64) -> StoreConfig {
    let defaults = StoreConfig::new(store_of(node), seed);
    StoreConfig { planted: bug.of_store(), tick: defaults.tick / 3, clock_drift: defaults.clock_drift / 3, ..defaults }
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

impl Victim for Arc<Stores> {
    fn nodes(&self) -> usize {
        self.machines.len()
    }

    fn crash(&self, node: NodeIndex) {
        self.hosts.lock()[node] = None;
        self.machines.crash(node);
        self.referee.died(store_of(node));
    }

    fn boot(&self, node: NodeIndex) {
        let machine = self.machines.boot(node);
        let mut rng = self.world.rng(&format!("store {:?}", machine.owner));
        let config = config(node, self.settings.bug, rand::Rng::random(&mut rng));
        let engine = Arc::new(machine.engine);
        bootstrap(&*engine, &*machine.log, store_of(node), &self.regions).expect("the first regions are written");
        let clock = Arc::new(machine.clock.clone());
        let (core, handle) =
            StoreCore::open(config, engine.clone(), machine.log.clone(), clock).expect("a store opens what it left");
        let transport = Arc::new(Wire { from: node, cluster: Arc::downgrade(self) });
        let drivers = StoreDrivers {
            world: self.world.clone(),
            owner: machine.owner,
            clock: machine.clock,
            disk: machine.disk,
            engine,
            log: machine.log,
            transport,
            referee: self.referee.clone(),
            rng,
        };
        self.hosts.lock()[node] = Some(StoreHost::start(core, handle, drivers));
        if let (Some(hook), Some(client)) = (&*self.hook.lock(), self.client(node)) {
            hook(node, machine.owner, client);
        }
    }

    fn disk(&self, node: NodeIndex) -> &Disk {
        self.machines.disk(node)
    }

    fn leads(&self, node: NodeIndex) -> bool {
        self.handle(node).is_some_and(|handle| leads(&handle))
    }

    fn next_election(&self) -> oneshot::Receiver<StoreId> {
        self.referee.next_election()
    }

    fn jump_clock(&self, node: NodeIndex, by_ms: i64) {
        self.machines.jump_clock(node, by_ms);
    }
}

impl Cluster for Arc<Stores> {
    type Client = StoresClient;

    fn client(&self, node: NodeIndex) -> Option<StoresClient> {
        let owner = self.world.owner(node)?;
        Some(StoresClient { node, owner, cluster: self.clone() })
    }

    fn on_ready(&self, hook: BootHook<StoresClient>) {
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
        self.hosts.lock().iter_mut().for_each(|host| *host = None);
    }
}

/// One store's way to the others.
struct Wire {
    from: NodeIndex,
    cluster: std::sync::Weak<Stores>,
}

impl Transport for Wire {
    fn send(&self, to: StoreId, messages: Vec<RaftMessage>) {
        let Some(cluster) = self.cluster.upgrade() else { return };
        let mut trace = Trace::default();
        messages.iter().for_each(|message| trace.add_bytes(&message.message));
        let frame = RaftFrame { from_store: store_of(self.from).0, to_store: to.0, messages, ..Default::default() };
        let (to, receiver) = (node_of(to), self.cluster.clone());
        cluster.machines.network().send(self.from, to, "raft", trace.hash(), move || {
            if let Some(handle) = receiver.upgrade().and_then(|cluster| cluster.handle(to)) {
                handle.deliver(frame.clone());
            }
        });
    }
}

/// A session's way to the regions: asks one store after the other for the leader.
#[derive(Clone)]
pub struct StoresClient {
    node: NodeIndex,
    owner: Owner,
    cluster: Arc<Stores>,
}

/// How often a session looks for a leader before it gives up.
const ATTEMPTS: usize = 12;
/// How long an answer is waited for.
const CALL_PATIENCE: std::time::Duration = std::time::Duration::from_millis(300);
/// Between two looks.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_millis(60);

fn target(region: u64) -> Target {
    Target { region: RegionId(region), epoch: Epoch { conf_ver: 1, version: 1 }, term: None }
}

fn register_key(region: u64) -> Bytes {
    Bytes::from(vec![region as u8, b'r'])
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
        if node == self.node {
            return Some(serve(self.cluster.handle(node)?).await);
        }
        let cluster = self.cluster.clone();
        // The handle is taken on arrival: the callee may have another life by then.
        let answer = self
            .cluster
            .machines
            .network()
            .call(self.node, node, "call", move || async move { Some(serve(cluster.handle(node)?).await) });
        // A node that stands still breaks no connection: somebody else is asked after a while.
        let patience = self.cluster.world.sleep(self.owner, CALL_PATIENCE);
        match select(pin!(answer), pin!(patience)).await {
            Either::Left((answer, _)) => answer.ok().flatten(),
            Either::Right(_) => None,
        }
    }

    async fn pause(&self) {
        self.cluster.world.sleep(self.owner, RETRY_PAUSE).await;
    }
}

#[async_trait]
impl Registers for StoresClient {
    async fn write(&self, register: usize, value: u64) -> WriteOutcome {
        let region = register as u64 % REGIONS + 1;
        for attempt in 0..ATTEMPTS {
            let mut batch = Batch::default();
            batch.put(Cf::Data, register_key(region), Bytes::copy_from_slice(&value.to_be_bytes()));
            let node = (self.node + attempt) % self.cluster.machines.len();
            let proposed =
                self.on(node, move |handle| async move { handle.propose(&target(region), batch).await }).await;
            match proposed {
                Some(Ok(())) => return WriteOutcome::Done,
                Some(Err(ProposeError::Region(_))) => self.pause().await,
                Some(Err(ProposeError::Unknown(_))) | None => return WriteOutcome::Unknown,
            }
        }
        WriteOutcome::Refused
    }

    async fn read(&self, register: usize, _: ReadWay) -> Option<u64> {
        let region = register as u64 % REGIONS + 1;
        for attempt in 0..ATTEMPTS {
            let node = (self.node + attempt) % self.cluster.machines.len();
            let world = self.cluster.world.clone();
            let read = self.on(node, move |handle| async move {
                match handle.try_snapshot(&target(region)) {
                    Some(answer) => {
                        world.count("lease reads", u64::from(answer.is_ok()));
                        answer
                    }
                    None => {
                        world.count("reads by quorum", 1);
                        handle.snapshot(&target(region)).await
                    }
                }
            });
            match read.await {
                Some(Ok(snapshot)) => {
                    let value = snapshot.engine.get(Cf::Data, &register_key(region)).expect("memory does not fail");
                    return Some(value.map_or(0, |v| u64::from_be_bytes(v.as_ref().try_into().expect("eight bytes"))));
                }
                Some(Err(_)) | None => self.pause().await,
            }
        }
        None
    }

    async fn ready(&self) -> bool {
        for register in 0..REGIONS as usize {
            if self.read(register, ReadWay::Latest).await.is_none() {
                return false;
            }
        }
        true
    }
}
