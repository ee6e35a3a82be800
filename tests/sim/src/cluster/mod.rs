//! Machines with software on them, and the lives of it.
//!
//! ```text
//!   Cluster       boots, crashes, clients, calls and Raft traffic from machine to machine: the same for all
//!      │ Software
//!      ├─ stores  stores only, without PD or transactions: fewest events, for what `raftstore` promises
//!      └─ nodes   whole nodes, for what `kv`, `pd` and `node` promise
//! ```

mod bug;
pub mod nodes;
pub mod stores;

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use futures::future::{BoxFuture, Either, select};
use parking_lot::Mutex;
use proto::{PeerRole, StoreId, wire::RaftMessage};
use raftstore::{
    Role, StoreHandle,
    engine::memory::MemoryEngine,
    snapshot::{Outgoing, Receiving},
};
use tokio::sync::oneshot;

pub use bug::{BUGS, Bug, Settings};

use crate::{
    check::referee::Referee,
    disk::Disk,
    faults::Victim,
    machines::{Machine, Machines, store_of},
    network::{CallFailure, Network},
    runtime::{NodeIndex, Owner, World},
    store_host::{leads, leads_pd},
    trace::Trace,
    transfer::Transfer,
};

/// What a life of a node is called with when it begins to serve: (node, life, a client that lives on it).
pub type BootHook<C> = Box<dyn Fn(NodeIndex, Owner, C) + Send + Sync>;

/// What runs on the machines of a cluster.
pub trait Software: Send + Sync + Sized + 'static {
    /// One life of it.
    type Life: Clone + Send + Sync + 'static;
    /// How sessions talk to it.
    type Client: Clone + Send + 'static;
    /// Begins a life on what the machine's disk holds.
    fn boot(cluster: &Arc<Cluster<Self>>, machine: Machine) -> Self::Life;
    /// Ends when the life serves, with a client on it; the reason when it never will.
    fn serve(
        cluster: Arc<Cluster<Self>>,
        life: Self::Life,
        node: NodeIndex,
        owner: Owner,
    ) -> BoxFuture<'static, Result<Self::Client, String>>;
    /// Its store, once it has one.
    fn store(life: &Self::Life) -> Option<StoreHandle>;
}

struct Life<S: Software> {
    life: S::Life,
    /// Once it serves.
    client: Option<S::Client>,
}

/// A cluster that workloads can talk to and faults can hit.
pub struct Cluster<S: Software> {
    world: World,
    machines: Machines,
    settings: Settings,
    referee: Arc<Referee>,
    software: S,
    /// The present life of each node.
    lives: Mutex<Vec<Option<Life<S>>>>,
    hook: Mutex<Option<BootHook<S::Client>>>,
}

impl<S: Software> Cluster<S> {
    /// A cluster of `nodes` nodes, all down, with empty disks.
    pub fn new(world: World, nodes: usize, settings: Settings, software: S) -> Arc<Self> {
        Arc::new(Cluster {
            machines: Machines::new(world.clone(), nodes),
            world,
            settings,
            referee: Arc::default(),
            software,
            lives: Mutex::new((0..nodes).map(|_| None).collect()),
            hook: Mutex::default(),
        })
    }

    /// Whether every region that somebody leads keeps a majority of its voters without this node.
    pub fn can_spare(&self, node: NodeIndex) -> bool {
        let stores = (0..self.machines.len()).filter_map(|node| self.life(node)).filter_map(|life| S::store(&life));
        let led = stores.flat_map(|store| store.statuses()).filter(|status| status.view.role == Role::Leader);
        let mut regions = led.map(|status| status.view.region.clone());
        regions.all(|region| {
            let voters = region.peers.iter().filter(|peer| peer.role == PeerRole::Voter);
            let left = voters.clone().filter(|peer| peer.store != store_of(node)).count();
            left * 2 > voters.count() && region.peers.iter().all(|peer| peer.role == PeerRole::Voter)
        })
    }

    /// The life that a node has now.
    fn life(&self, node: NodeIndex) -> Option<S::Life> {
        self.lives.lock()[node].as_ref().map(|life| life.life.clone())
    }

    /// A client on a node; `None` while the node is down or does not serve yet.
    pub fn client(&self, node: NodeIndex) -> Option<S::Client> {
        self.lives.lock()[node].as_ref().and_then(|life| life.client.clone())
    }

    /// Calls `hook` for every node that serves now, and whenever one begins to later.
    pub fn on_ready(&self, hook: BootHook<S::Client>) {
        for node in 0..self.machines.len() {
            if let (Some(client), Some(owner)) = (self.client(node), self.world.owner(node)) {
                hook(node, owner, client);
            }
        }
        *self.hook.lock() = Some(hook);
    }

    /// How many nodes.
    pub fn nodes(&self) -> usize {
        self.machines.len()
    }

    /// The store of a node that is up.
    pub fn store(&self, node: NodeIndex) -> Option<StoreHandle> {
        self.life(node).and_then(|life| S::store(&life))
    }

    /// What a node's state engine holds.
    pub fn engine(&self, node: NodeIndex) -> MemoryEngine {
        self.machines.engine(node)
    }

    /// The links.
    pub fn network(&self) -> &Network {
        self.machines.network()
    }

    /// Breaks reference cycles at the end of a run.
    pub fn shut_down(&self) {
        *self.hook.lock() = None;
        let lives: Vec<_> = self.lives.lock().iter_mut().map(Option::take).collect();
        drop(lives);
    }

    /// This life of `node` serves.
    fn ready(&self, node: NodeIndex, owner: Owner, client: S::Client) {
        if let Some(life) = &mut self.lives.lock()[node] {
            life.client = Some(client.clone());
        }
        self.world.count("nodes started", 1);
        if let Some(hook) = &*self.hook.lock() {
            hook(node, owner, client);
        }
    }

    /// Sends Raft messages; `deliver` gets whichever life is there when they arrive.
    fn send_raft(
        self: &Arc<Self>,
        (from, to): (NodeIndex, NodeIndex),
        messages: &[RaftMessage],
        deliver: impl Fn(S::Life) + Send + Sync + 'static,
    ) {
        let mut trace = Trace::default();
        messages.iter().for_each(|message| trace.add_bytes(&message.message));
        let receiver = Arc::downgrade(self);
        self.network().send(from, to, "raft", trace.hash(), move || {
            if let Some(life) = receiver.upgrade().and_then(|cluster| cluster.life(to)) {
                deliver(life);
            }
        });
    }

    /// Carries a snapshot; `begin` gets whichever life is there when it begins.
    fn send_snapshot(
        self: &Arc<Self>,
        (from, to): (NodeIndex, NodeIndex),
        snapshot: Outgoing,
        begin: impl FnOnce(S::Life) -> Result<Receiving, String> + Send + 'static,
    ) {
        let receiver = Arc::downgrade(self);
        let transfer = Transfer { world: self.world.clone(), network: self.network().clone(), from, to };
        transfer.start(snapshot, move || {
            begin(receiver.upgrade().and_then(|cluster| cluster.life(to)).ok_or("it is down")?)
        });
    }

    /// Calls whichever life is there when the call arrives, for the life `owner` of `from`. A node that stands still
    /// breaks no connection: after `limit` the answer counts as lost.
    async fn call<Answer, Serving>(
        self: &Arc<Self>,
        (from, owner): (NodeIndex, Owner),
        to: NodeIndex,
        label: &'static str,
        limit: Duration,
        serve: impl FnOnce(S::Life) -> Serving + Send + 'static,
    ) -> Result<Answer, CallFailure>
    where
        Answer: Send + 'static,
        Serving: Future<Output = Answer> + Send + 'static,
    {
        let callee = Arc::downgrade(self);
        let answer = self.network().call(from, to, label, move || async move {
            let life = callee.upgrade().and_then(|cluster| cluster.life(to))?;
            Some(serve(life).await)
        });
        match select(pin!(answer), pin!(self.world.sleep(owner, limit))).await {
            Either::Left((Ok(Some(answer)), _)) => Ok(answer),
            Either::Left((Err(CallFailure::Unreachable), _)) => Err(CallFailure::Unreachable),
            Either::Left((Err(CallFailure::Lost) | Ok(None), _)) | Either::Right(_) => Err(CallFailure::Lost),
        }
    }
}

impl<S: Software> Victim for Arc<Cluster<S>> {
    fn nodes(&self) -> usize {
        self.machines.len()
    }

    fn crash(&self, node: NodeIndex) {
        let ended = self.lives.lock()[node].take();
        if let Some(store) = ended.as_ref().and_then(|ended| S::store(&ended.life)) {
            self.referee.died(store.store());
        }
        self.machines.crash(node);
        // Behind the crash: what its destructors would still start is not started.
        drop(ended);
    }

    fn boot(&self, node: NodeIndex) {
        let machine = self.machines.boot(node);
        let owner = machine.owner;
        let life = S::boot(self, machine);
        self.lives.lock()[node] = Some(Life { life: life.clone(), client: None });
        let cluster = self.clone();
        self.world.spawn(owner, async move {
            match S::serve(cluster.clone(), life, node, owner).await {
                Ok(client) => cluster.ready(node, owner, client),
                Err(reason) => cluster.world.fail(format!("node {node} does not start: {reason}")),
            }
        });
    }

    fn disk(&self, node: NodeIndex) -> &Disk {
        self.machines.disk(node)
    }

    fn leads(&self, node: NodeIndex) -> bool {
        self.life(node).and_then(|life| S::store(&life)).is_some_and(|store| leads(&store))
    }

    fn leads_pd(&self, node: NodeIndex) -> bool {
        self.life(node).and_then(|life| S::store(&life)).is_some_and(|store| leads_pd(&store))
    }

    fn next_election(&self) -> oneshot::Receiver<StoreId> {
        self.referee.next_election()
    }

    fn next_merge(&self) -> oneshot::Receiver<StoreId> {
        self.referee.next_merge()
    }

    fn next_snapshot(&self) -> oneshot::Receiver<StoreId> {
        self.referee.next_snapshot()
    }

    fn jump_clock(&self, node: NodeIndex, by_ms: i64) {
        self.machines.jump_clock(node, by_ms);
    }
}
