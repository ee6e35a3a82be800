//! Regions that do not stand still: splits, merges, memberships and hand-overs at random, beside faults and load.
//!
//! Whoever asks is the harness: it goes to the store that leads, as an operator's step would, and takes what comes:
//! refused, lost, or done. What must hold is judged by the workload, by the referee, and at the end by [`Changes::settled`]:
//! every store has the replicas it should have and no other, ranges join without gap, and replicas hold the same.

mod verify;

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{BoxFuture, Either, select};
use proto::{Cf, LogIndex, PD_REGION, Peer, PeerId, PeerRole, Region, RegionId, StoreId};
use raftstore::{
    AdminError, NewRegion, PeerChange, ReplicaStatus, StoreHandle, Target,
    engine::{Engine, memory::MemoryEngine},
    keys,
    verify::{Tree, differences, tree_of},
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
pub use verify::Comparison;

use crate::{
    cluster::{Cluster, Software},
    machines::{node_of, store_of},
    network::Network,
    runtime::{Owner, World},
};

/// Between two changes.
const PAUSE_MAX: Duration = Duration::from_millis(800);
/// How long one is waited for; it may still happen later.
const PATIENCE: Duration = Duration::from_secs(3);
/// A leader that hands over is deaf from within this long on: about when Raft asks for votes.
const DEAF_WITHIN_MAX: Duration = Duration::from_millis(4);
/// And for so long: about a lease.
const DEAF_FOR: Duration = Duration::from_millis(300);
/// Regions beyond which none is split any more: enough for borders everywhere, few enough to elect in.
const REGIONS_AT_MOST: usize = 16;
/// The first id that the harness gives away.
const FIRST_ID: u64 = 10_000;

/// Where a region may be cut, drawn by the workload.
pub type Border = Arc<dyn Fn(&mut ChaCha8Rng) -> Option<Bytes> + Send + Sync>;

/// The stores of a cluster, as an operator reaches them.
pub trait Stores: Send + Sync + 'static {
    /// How many nodes.
    fn nodes(&self) -> usize;
    /// The store of a node that is up.
    fn store(&self, node: usize) -> Option<StoreHandle>;
    /// What it holds.
    fn engine(&self, node: usize) -> MemoryEngine;
    /// The links.
    fn network(&self) -> &Network;
}

impl<S: Software> Stores for Arc<Cluster<S>> {
    fn nodes(&self) -> usize {
        Cluster::nodes(self)
    }
    fn store(&self, node: usize) -> Option<StoreHandle> {
        Cluster::store(self, node)
    }
    fn engine(&self, node: usize) -> MemoryEngine {
        Cluster::engine(self, node)
    }
    fn network(&self) -> &Network {
        Cluster::network(self)
    }
}

/// Who changes regions.
#[derive(Clone)]
pub struct Changes {
    world: World,
    stores: Arc<dyn Stores>,
}

/// A region and the store that leads it, as the store sees it.
struct Led {
    store: StoreHandle,
    region: Arc<Region>,
    peer: PeerId,
}

impl Led {
    fn target(&self) -> Target {
        Target { region: self.region.id, epoch: self.region.epoch, term: None }
    }
}

impl Changes {
    /// Of this cluster.
    pub fn new(world: World, stores: Arc<dyn Stores>) -> Self {
        Changes { world, stores }
    }

    /// Changes regions until `until`; in some seeds none, so that those that stand still are seen too.
    pub async fn torment(self, border: Border, until: Duration) {
        let mut rng = self.world.rng("changes");
        if rng.random_bool(0.3) {
            return;
        }
        let mut next_id = FIRST_ID;
        while self.world.now() < until {
            let pause = rng.random_range(Duration::ZERO..PAUSE_MAX);
            self.world.sleep(Owner::Harness, pause).await;
            let led = self.led();
            if led.is_empty() {
                continue;
            }
            match rng.random_range(0..10) {
                0..4 => self.reshape(&led, &border, &mut next_id, &mut rng).await,
                4..7 => self.change_peers(&led, &mut next_id, &mut rng).await,
                _ => self.transfer(&led, &mut rng).await,
            }
        }
    }

    /// All regions but PD's, with a store that says it leads them.
    fn led(&self) -> Vec<Led> {
        let up = (0..self.stores.nodes()).filter_map(|node| self.stores.store(node));
        let led = up.flat_map(|store| {
            let serving = store.statuses().into_iter().filter(|s| s.view.serves && s.view.region.id != PD_REGION);
            let view = |s: ReplicaStatus| (s.view.region.clone(), s.view.peer.id);
            serving.map(view).map(|(region, peer)| Led { store: store.clone(), region, peer }).collect::<Vec<_>>()
        });
        led.collect()
    }

    /// A split or a merge; where the workload draws no borders, those that are there stay.
    async fn reshape(&self, led: &[Led], border: &Border, next_id: &mut u64, rng: &mut ChaCha8Rng) {
        let wanted = rng.random_range(1..=3);
        let mut keys: Vec<_> = (0..wanted).filter_map(|_| border(rng)).collect();
        keys.sort_unstable();
        keys.dedup();
        match keys.is_empty() {
            true => {}
            false if rng.random_bool(0.45) => self.merge(led, next_id, rng).await,
            false => self.split(led, keys, next_id).await,
        }
    }

    async fn split(&self, led: &[Led], keys: Vec<Bytes>, next_id: &mut u64) {
        let inside = |led: &&Led, key: &Bytes| led.region.range.contains(key) && led.region.range.start != *key;
        let Some(led) = keys.first().and_then(|key| led.iter().find(|l| inside(l, key))) else { return };
        if self.led().len() >= REGIONS_AT_MOST {
            return;
        }
        let mut id = || {
            *next_id += 1;
            *next_id
        };
        let at = keys.into_iter().filter(|key| inside(&led, key)).map(|start| NewRegion {
            start,
            id: RegionId(id()),
            peers: led.region.peers.iter().map(|_| PeerId(id())).collect(),
        });
        let (store, target, at) = (led.store.clone(), led.target(), at.collect());
        self.note("splits", async move { store.split(&target, at).await.map(drop) }).await;
    }

    /// Merges neighbours that are on the same stores; others are brought together first.
    async fn merge(&self, led: &[Led], next_id: &mut u64, rng: &mut ChaCha8Rng) {
        let source = &led[rng.random_range(0..led.len())];
        let (range, merges_right) = (&source.region.range, rng.random_bool(0.5));
        let touches = |other: &&Led| match merges_right {
            true => other.region.range.start == range.end && !range.end.is_empty(),
            false => other.region.range.end == range.start && !range.start.is_empty(),
        };
        let Some(into) = led.iter().find(touches).map(|l| &l.region) else { return };
        let (store, target) = (source.store.clone(), source.target());
        let changes = come_together(source, into, next_id);
        if changes.is_empty() {
            let into = Region::clone(into);
            return self.note("merges", async move { store.merge(&target, &into).await.map(drop) }).await;
        }
        self.note("memberships", async move { store.change_peers(&target, changes).await.map(drop) }).await;
    }

    async fn change_peers(&self, led: &[Led], next_id: &mut u64, rng: &mut ChaCha8Rng) {
        let led = &led[rng.random_range(0..led.len())];
        if let Some(change) = self.spite(led) {
            let (store, target) = (led.store.clone(), led.target());
            return self
                .note("memberships", async move { store.change_peers(&target, vec![change]).await.map(drop) })
                .await;
        }
        let mut changes = Vec::new();
        for node in 0..self.stores.nodes() {
            let store = store_of(node);
            match (led.region.peer_on(store), rng.random_range(0..6)) {
                (Some(peer), _) if peer.id == led.peer => {}
                (Some(Peer { role: PeerRole::Learner, id, .. }), 0..4) => changes.push(PeerChange::Promote(id)),
                (Some(Peer { role: PeerRole::Voter, id, .. }), 0) => changes.push(PeerChange::Demote(id)),
                (Some(peer), 4) => changes.push(PeerChange::Remove(peer.id)),
                (None, 0..4) => {
                    *next_id += 1;
                    let peer = Peer { id: PeerId(*next_id), store, role: PeerRole::Learner };
                    changes.push(PeerChange::AddLearner(peer));
                }
                _ => {}
            }
        }
        let (store, target) = (led.store.clone(), led.target());
        self.note("memberships", async move { store.change_peers(&target, changes).await.map(drop) }).await;
    }

    /// While a voter's node is down: what would leave its region without a quorum.
    fn spite(&self, led: &Led) -> Option<PeerChange> {
        let voters: Vec<_> = led.region.peers.iter().filter(|p| p.role == PeerRole::Voter).collect();
        let down = |p: &&&Peer| self.stores.store(node_of(p.store)).is_none();
        let lives = voters.iter().find(|p| p.id != led.peer && !down(p))?;
        (voters.len() == 3 && voters.iter().any(|p| down(&p))).then_some(PeerChange::Demote(lives.id))
    }

    async fn transfer(&self, led: &[Led], rng: &mut ChaCha8Rng) {
        let led = &led[rng.random_range(0..led.len())];
        let to = led.region.peers[rng.random_range(0..led.region.peers.len())].store;
        let (store, target) = (led.store.clone(), led.target());
        let old = node_of(store.store());
        let deafness = rng.random_bool(0.5).then(|| rng.random_range(Duration::ZERO..DEAF_WITHIN_MAX));
        if let Some(within) = deafness {
            self.world.spawn(Owner::Harness, self.clone().deafen(old, within));
        }
        self.note("hand-overs", async move { store.transfer_leader(&target, to).await }).await;
    }

    /// After a moment a node hears nobody for a while: a leader that has handed over does not know when it is over.
    async fn deafen(self, node: usize, within: Duration) {
        self.world.sleep(Owner::Harness, within).await;
        let others: Vec<_> = (0..self.stores.nodes()).filter(|other| *other != node).collect();
        others.iter().for_each(|&other| self.stores.network().cut(other, node));
        self.world.sleep(Owner::Harness, DEAF_FOR).await;
        others.iter().for_each(|&other| self.stores.network().mend(other, node));
    }

    async fn note(&self, what: &'static str, change: impl Future<Output = Result<(), AdminError>> + Send + 'static) {
        let change: BoxFuture<'static, _> = Box::pin(change);
        let outcome = match select(change, pin!(self.world.sleep(Owner::Harness, PATIENCE))).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => Err(AdminError::Unknown("nobody waits any more".into())),
        };
        tracing::debug!(now = ?self.world.now(), what, ?outcome, "a change of a region");
        match outcome {
            Ok(()) => self.world.count(what, 1),
            Err(AdminError::Unknown(_)) => self.world.count("changes of unknown outcome", 1),
            Err(_) => self.world.count("changes refused", 1),
        }
    }

    /// When all is quiet: whether every store has what it should have. `Err`: not yet, and what is missing. The inner
    /// error: it never will be right.
    pub fn settled(&self) -> Result<Result<(), String>, String> {
        let mut replicas = BTreeMap::<RegionId, BTreeMap<StoreId, ReplicaStatus>>::new();
        for node in 0..self.stores.nodes() {
            let store = self.stores.store(node).ok_or(format!("node {node} has no store yet"))?;
            for status in store.statuses() {
                replicas.entry(status.view.region.id).or_default().insert(store.store(), status);
            }
        }
        let mut regions = Vec::new();
        for (id, here) in &replicas {
            let newest = here.values().map(|s| &s.view.region).max_by_key(|r| r.epoch).expect("one is here");
            self.check_region(*id, newest, here)?;
            if let Err(reason) = self.compare(newest, here)? {
                return Ok(Err(reason));
            }
            regions.push(newest.clone());
        }
        regions.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        let gap = regions.windows(2).find(|w| w[0].range.end != w[1].range.start);
        match gap {
            Some(w) => Err(format!("{} ends at {:?}, {} begins at {:?}", w[0].id, w[0].range.end, w[1].id, w[1].range)),
            None => Ok(Ok(())),
        }
    }

    fn check_region(
        &self,
        id: RegionId,
        newest: &Region,
        here: &BTreeMap<StoreId, ReplicaStatus>,
    ) -> Result<(), String> {
        for (store, status) in here {
            let region = &status.view.region;
            if region.peer_on(*store).is_none() || region.epoch != newest.epoch {
                return Err(format!("{id} on {store} is of epoch {}, others of {}", region.epoch, newest.epoch));
            }
        }
        let joint = |role| matches!(role, PeerRole::IncomingVoter | PeerRole::DemotingVoter);
        if newest.peers.iter().any(|p| joint(p.role)) {
            return Err(format!("{id} is in a joint state: {:?}", newest.peers));
        }
        match newest.peers.iter().find(|p| !here.contains_key(&p.store)) {
            Some(peer) => Err(format!("{id} has no replica on {}", peer.store)),
            None => Ok(()),
        }?;
        Ok(())
    }

    /// Replicas that have applied the same hold the same. `Err`: they have not applied the same yet.
    fn compare(&self, region: &Region, here: &BTreeMap<StoreId, ReplicaStatus>) -> Result<Result<(), String>, String> {
        let look = |store: &StoreId| {
            let engine = self.stores.engine(node_of(*store));
            (*store, (applied(&engine, region.id), tree_of(&*engine.snapshot(), region).expect("memory does not fail")))
        };
        let seen: BTreeMap<_, _> = here.keys().map(look).collect();
        let indexes: BTreeMap<_, _> = seen.iter().map(|(store, (applied, _))| (store, applied)).collect();
        let Some((first, (index, tree))) = seen.first_key_value() else { return Ok(Ok(())) };
        if indexes.values().any(|other| *other != index) {
            return Err(format!("replicas of {} have not applied the same yet: {indexes:?}", region.id));
        }
        let differ = |(store, (_, other)): (&StoreId, &(_, Tree))| {
            let ranges = differences(tree, other);
            let reason = || format!("{} differs on {first} and {store} at {index:?} in {ranges:?}", region.id);
            (!ranges.is_empty()).then(reason)
        };
        Ok(seen.iter().find_map(differ).map_or(Ok(()), Err))
    }
}

/// What brings a region to the stores of another one, as voters there.
fn come_together(source: &Led, into: &Region, next_id: &mut u64) -> Vec<PeerChange> {
    let mut changes = Vec::new();
    for there in &into.peers {
        match source.region.peer_on(there.store) {
            None => {
                *next_id += 1;
                let peer = Peer { id: PeerId(*next_id), store: there.store, role: PeerRole::Learner };
                changes.push(PeerChange::AddLearner(peer));
            }
            Some(peer) if peer.role == PeerRole::Learner => changes.push(PeerChange::Promote(peer.id)),
            Some(_) => {}
        }
    }
    let elsewhere = source.region.peers.iter().filter(|p| p.id != source.peer && into.peer_on(p.store).is_none());
    changes.extend(elsewhere.map(|p| PeerChange::Remove(p.id)));
    changes
}

/// How far the state is, which may be further than its store has noticed.
fn applied(engine: &MemoryEngine, region: RegionId) -> Option<LogIndex> {
    let value = engine.snapshot().get(Cf::Meta, &keys::apply_key(region)).expect("memory does not fail")?;
    Some(keys::decode_apply(&value).expect("a store writes what it can read").applied.index)
}
