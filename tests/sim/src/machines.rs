//! What outlives a node's lives: its disk with both engines, its clock's faults, the network.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use parking_lot::Mutex;
use proto::StoreId;
use raftstore::{engine::memory::MemoryEngine, log::MemoryLog};
use rand::Rng;

use crate::{
    disk::Disk,
    network::Network,
    runtime::{NodeClock, NodeIndex, Owner, World},
};

/// Clocks run at most this much fast or slow: half a percent, far worse than quartz, a tenth of what leases allow for.
const DRIFT_PPM_MAX: i64 = 5_000;

struct Platter {
    engine: MemoryEngine,
    log: Arc<MemoryLog>,
}

/// All machines of a cluster.
pub struct Machines {
    world: World,
    network: Network,
    disks: Vec<Disk>,
    drift_ppm: Vec<i64>,
    wall_offset_ms: Vec<Arc<AtomicI64>>,
    platters: Mutex<Vec<Platter>>,
}

/// What one life of a node runs on. Clones are the same machine.
#[derive(Clone)]
pub struct Machine {
    /// Which node.
    pub node: NodeIndex,
    /// Its life.
    pub owner: Owner,
    /// Its clock.
    pub clock: NodeClock,
    /// Its disk's timing.
    pub disk: Disk,
    /// Its state.
    pub engine: MemoryEngine,
    /// Its Raft log.
    pub log: Arc<MemoryLog>,
}

impl Machines {
    /// Machines with empty disks.
    pub fn new(world: World, nodes: usize) -> Machines {
        let mut rng = world.rng("machines");
        let platter = |_| Platter { engine: MemoryEngine::crashable(), log: Arc::new(MemoryLog::crashable()) };
        Machines {
            network: Network::new(world.clone()),
            disks: (0..nodes).map(|node| Disk::new(world.clone(), &format!("disk {node}"))).collect(),
            drift_ppm: (0..nodes).map(|_| rng.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX)).collect(),
            wall_offset_ms: (0..nodes).map(|_| Arc::default()).collect(),
            platters: Mutex::new((0..nodes).map(platter).collect()),
            world,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.disks.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// The links between them.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What a node's state engine holds now.
    pub fn engine(&self, node: NodeIndex) -> MemoryEngine {
        self.platters.lock()[node].engine.clone()
    }

    /// A node's disk.
    pub fn disk(&self, node: NodeIndex) -> &Disk {
        &self.disks[node]
    }

    /// Moves a node's wall clock.
    pub fn jump_clock(&self, node: NodeIndex, by_ms: i64) {
        self.wall_offset_ms[node].fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Power on.
    pub fn boot(&self, node: NodeIndex) -> Machine {
        let owner = self.world.boot(node);
        let offset = self.wall_offset_ms[node].clone();
        let platters = self.platters.lock();
        Machine {
            node,
            owner,
            clock: NodeClock::new(self.world.clone(), owner, self.drift_ppm[node], offset),
            disk: self.disks[node].clone(),
            engine: platters[node].engine.clone(),
            log: platters[node].log.clone(),
        }
    }

    /// Power off: the life ends, and what was not synced is lost from some point on, in both engines.
    pub fn crash(&self, node: NodeIndex) {
        self.world.crash(node);
        let mut platters = self.platters.lock();
        let Platter { engine, log } = &platters[node];
        let (state_kept, log_kept) =
            (self.disks[node].survivors(engine.unsynced()), self.disks[node].survivors(log.unsynced()));
        platters[node] = Platter { engine: engine.after_crash(state_kept), log: Arc::new(log.after_crash(log_kept)) };
    }
}

/// Store ids are nodes' numbers from 1.
pub fn store_of(node: NodeIndex) -> StoreId {
    StoreId(node as u64 + 1)
}

/// The node of a store id.
pub fn node_of(store: StoreId) -> NodeIndex {
    store.0 as usize - 1
}
