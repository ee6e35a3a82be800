//! A whole kv layer in one process without Raft, disks or sockets: what `sql` is developed and tested against.
//!
//! ```text
//!   Client ── LocalRpc ──► Service ──► LocalStore (regions cut at given borders, one map)
//!      └───────── LocalPd: timestamps, ids, regions, catalog leases ─┘
//! ```
//!
//! Everything above the store is the real code: transactions over several regions are two-phase, locks are met,
//! scans cross borders. Proposals apply at once and nothing is ever lost, so it proves nothing about faults: that is
//! the simulator's part. Time is tokio's, which a test may pause.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use proto::{
    Batch, Epoch, KeyRange, LogIndex, Peer, PeerId, PeerRole, Region, RegionId, StoreId, Term, Timestamp,
    wire::{KvRequest, OperatorStatus, RegionError, RegionStatus, SafePointGrant, StoreStatus, op::Kind},
};
use raftstore::{
    Instant, MonotonicClock, ProposeError, RegionSnapshot, ReplicaStatus, Target,
    engine::{Cf, Engine, EngineError, Snapshot, WriteBatch, WriteOp, memory::MemoryEngine},
};

use crate::{
    Client, ClientConfig, Clock, Pd, PdError, RegionStore, Reply, Rpc, RpcError, Service, Spawn, StoreScan,
    deadlock::{Deadlock, Detector},
    row_locks::Wait,
};

/// The one store.
const STORE: StoreId = StoreId(1);
/// Its term at the start.
const TERM: Term = Term(1);
/// How long a gateway's catalog lease lasts.
const LEASE: Duration = Duration::from_secs(10);

/// A kv layer of its own.
#[derive(Clone)]
pub struct Local {
    /// Runs transactions.
    pub client: Client,
    /// Timestamps, ids, regions.
    pub pd: Arc<LocalPd>,
    /// Tokio's time.
    pub clock: Arc<dyn Clock>,
    /// Tokio's tasks.
    pub spawn: Arc<dyn Spawn>,
    /// What answers the client.
    pub service: Service,
    store: Arc<LocalStore>,
}

impl Local {
    /// With a region border at each of `borders` (sorted). Pushed-down scans go to `scan`.
    pub fn start(borders: &[Bytes], scan: Option<Arc<dyn StoreScan>>) -> Self {
        Self::start_with(borders, scan, ClientConfig::default())
    }

    /// The same with a client that behaves as `config` says, and a service with the bug that it names.
    pub fn start_with(borders: &[Bytes], scan: Option<Arc<dyn StoreScan>>, config: ClientConfig) -> Self {
        let regions: Arc<Vec<Arc<Region>>> = Arc::new(cut(borders));
        let clock = Arc::new(LocalClock::default());
        let spawn: Arc<dyn Spawn> = Arc::new(LocalSpawn);
        let pd = Arc::new(LocalPd::new(regions.clone(), clock.clone()));
        let store = Arc::new(LocalStore {
            regions,
            engine: MemoryEngine::new(),
            writing: Mutex::new(()),
            term: AtomicU64::new(TERM.0),
            refusing: AtomicU64::new(0),
            proposed: AtomicU64::new(0),
        });
        let service = Service::new(store.clone(), pd.clone(), clock.clone(), spawn.clone(), scan).plant(config.plant);
        let rpc = Arc::new(LocalRpc { service: service.clone() });
        let client = Client::with_config(rpc, pd.clone(), clock.clone(), spawn.clone(), config);
        Local { client, pd, clock, spawn, service, store }
    }

    /// Of so many proposals one is refused from now on, as if its region had been cut in between.
    pub fn refuse_one_of(&self, proposals: u64) {
        self.store.refusing.store(proposals, Ordering::SeqCst);
    }

    /// The store leads all regions in a new term from now on, as if another had led them in between.
    pub fn elect_again(&self) {
        self.store.term.fetch_add(2, Ordering::SeqCst);
    }
}

fn cut(borders: &[Bytes]) -> Vec<Arc<Region>> {
    let starts = std::iter::once(Bytes::new()).chain(borders.iter().cloned());
    let ends = borders.iter().cloned().chain(std::iter::once(Bytes::new()));
    let region = |(at, (start, end))| {
        // Region 1 is PD's everywhere else.
        let id = RegionId(at as u64 + 2);
        let peer = Peer { id: PeerId(id.0), store: STORE, role: PeerRole::Voter };
        let epoch = Epoch { conf_ver: 1, version: 1 };
        Arc::new(Region { id, range: KeyRange { start, end }, epoch, peers: vec![peer] })
    };
    starts.zip(ends).enumerate().map(region).collect()
}

/// Regions over one map; a proposal applies at once.
struct LocalStore {
    regions: Arc<Vec<Arc<Region>>>,
    engine: MemoryEngine,
    writing: Mutex<()>,
    term: AtomicU64,
    /// One of so many proposals is refused; zero: none.
    refusing: AtomicU64,
    proposed: AtomicU64,
}

impl LocalStore {
    fn find(&self, target: &Target) -> Result<Arc<Region>, RegionError> {
        let region = self.regions.iter().find(|r| r.id == target.region);
        let region = region.ok_or_else(|| RegionError::region_not_found(target.region))?;
        if region.epoch != target.epoch {
            return Err(RegionError::epoch_mismatch(&[region]));
        }
        Ok(region.clone())
    }
}

/// Applies a proposal's batch to an engine. Not safe against another call at the same time.
pub(crate) fn apply(engine: &MemoryEngine, batch: Batch) -> Result<(), EngineError> {
    let view = engine.snapshot();
    let mut ops = Vec::with_capacity(batch.ops.len());
    for op in batch.ops {
        match op.kind {
            Some(Kind::Put(put)) => ops.push(WriteOp::Put(put.cf(), put.key, put.value)),
            Some(Kind::Delete(delete)) => ops.push(WriteOp::Delete(delete.cf(), delete.key)),
            Some(Kind::DeleteRange(r)) => ops.push(WriteOp::DeleteRange(r.cf(), r.start_key, r.end_key)),
            Some(Kind::Move(m)) => {
                let from: Cf = m.from_cf();
                let moved = view.get(from, &m.from_key)?.filter(|v| v.len() as u64 >= m.offset);
                let moved = moved.ok_or_else(|| EngineError::Corrupt("a move without its source".into()))?;
                let value = [&m.prefix[..], &moved[m.offset as usize..]].concat();
                ops.push(WriteOp::Put(m.to_cf(), m.to_key, value.into()));
                ops.push(WriteOp::Delete(from, m.from_key));
            }
            // Nobody else holds the state: there is nothing to compare.
            Some(Kind::Mark(_)) => {}
            None => return Err(EngineError::Corrupt("an operation of no kind".into())),
        }
    }
    engine.write(WriteBatch { ops })
}

#[async_trait]
impl RegionStore for LocalStore {
    fn try_snapshot(&self, target: &Target) -> Option<Result<RegionSnapshot, RegionError>> {
        Some(self.find(target).map(|region| RegionSnapshot {
            engine: self.engine.snapshot(),
            region,
            term: Term(self.term.load(Ordering::SeqCst)),
            applied: LogIndex(0),
        }))
    }

    async fn snapshot(&self, target: &Target) -> Result<RegionSnapshot, RegionError> {
        self.try_snapshot(target).expect("a snapshot needs no waiting here")
    }

    async fn settled(&self, _region: RegionId) {}

    // There are no others.
    fn past_snapshot(&self, _target: &Target, _at: Timestamp) -> Option<RegionSnapshot> {
        None
    }

    fn led_awake(&self) -> Vec<Arc<Region>> {
        Vec::new()
    }

    fn resolve(&self, _ts: Timestamp, _regions: Vec<(RegionId, Epoch)>) {}

    async fn propose(&self, target: &Target, batch: Batch) -> Result<(), ProposeError> {
        let region = self.find(target)?;
        let (refusing, nth) = (self.refusing.load(Ordering::SeqCst), self.proposed.fetch_add(1, Ordering::SeqCst));
        if refusing > 0 && nth.is_multiple_of(refusing) {
            return Err(RegionError::epoch_mismatch(&[&region]).into());
        }
        let _writing = self.writing.lock();
        apply(&self.engine, batch).map_err(|e| ProposeError::Unknown(e.to_string()))
    }

    /// No region sleeps here.
    async fn look(&self) -> (Vec<ReplicaStatus>, Arc<dyn Snapshot>) {
        (Vec::new(), self.engine.snapshot())
    }
}

struct LocalRpc {
    service: Service,
}

#[async_trait]
impl Rpc for LocalRpc {
    async fn call(&self, store: StoreId, request: KvRequest) -> Result<Reply, RpcError> {
        if store != STORE {
            return Err(RpcError::Unreachable(store, "there is one store only".into()));
        }
        Ok(self.service.call(request).await)
    }

    fn local_store(&self) -> Option<StoreId> {
        Some(STORE)
    }
}

/// Tokio's clock.
#[derive(Default)]
pub struct LocalClock {
    started: Mutex<Option<tokio::time::Instant>>,
}

impl MonotonicClock for LocalClock {
    fn now(&self) -> Instant {
        let now = tokio::time::Instant::now();
        let started = *self.started.lock().get_or_insert(now);
        Instant(now.duration_since(started))
    }
}

impl Clock for LocalClock {
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep_until(tokio::time::Instant::now() + duration).boxed()
    }

    fn wall_ms(&self) -> u64 {
        /// 2026-01-01: tests see the same time in every run.
        const EPOCH_MS: u64 = 1_767_225_600_000;
        EPOCH_MS + self.now().0.as_millis() as u64
    }
}

struct LocalSpawn;

impl Spawn for LocalSpawn {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        // What ends with the runtime has nothing more to do.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(task);
        }
    }
}

/// A placement driver of one process: it never fails.
pub struct LocalPd {
    regions: Arc<Vec<Arc<Region>>>,
    clock: Arc<LocalClock>,
    last: AtomicU64,
    next_id: AtomicU64,
    catalog: Mutex<Catalog>,
    published: tokio::sync::watch::Sender<u64>,
    acknowledged: tokio::sync::Notify,
    deadlocks: Mutex<Detector>,
    safe_point: AtomicU64,
}

#[derive(Default)]
struct Catalog {
    published: u64,
    /// Gateway → (version it works with, end of its lease).
    gateways: BTreeMap<u64, (u64, Timestamp)>,
}

impl LocalPd {
    fn new(regions: Arc<Vec<Arc<Region>>>, clock: Arc<LocalClock>) -> Self {
        LocalPd {
            regions,
            clock,
            last: AtomicU64::new(0),
            next_id: AtomicU64::new(1000),
            catalog: Mutex::default(),
            published: tokio::sync::watch::Sender::new(0),
            acknowledged: tokio::sync::Notify::new(),
            deadlocks: Mutex::default(),
            safe_point: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Timestamp {
        let wall = Timestamp::new(self.clock.wall_ms(), 0).0;
        let next = |last: u64| Some(wall.max(last + 1));
        let last = self.last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).expect("always a successor");
        Timestamp(wall.max(last + 1))
    }

    /// From now on older snapshots are refused. Nothing is collected.
    pub fn set_safe_point(&self, to: Timestamp) {
        self.safe_point.fetch_max(to.0, Ordering::SeqCst);
    }

    fn status(region: &Region) -> RegionStatus {
        RegionStatus {
            region: Some(region.into()),
            leader: region.peers.first().map(|&p| p.into()),
            term: TERM.0,
            ..RegionStatus::default()
        }
    }
}

#[async_trait]
impl Pd for LocalPd {
    async fn timestamp(&self) -> Result<Timestamp, PdError> {
        Ok(self.now())
    }

    async fn alloc_ids(&self, count: u32) -> Result<u64, PdError> {
        Ok(self.next_id.fetch_add(u64::from(count), Ordering::SeqCst))
    }

    async fn region_of(&self, key: &[u8]) -> Result<RegionStatus, PdError> {
        let region = self.regions.iter().find(|r| r.range.contains(key)).expect("the regions cover all keys");
        Ok(Self::status(region))
    }

    async fn regions(&self, range: &KeyRange, limit: u32) -> Result<Vec<RegionStatus>, PdError> {
        let inside = self.regions.iter().filter(|r| r.range.intersect(range).is_some());
        Ok(inside.take(limit as usize).map(|r| Self::status(r)).collect())
    }

    async fn stores(&self) -> Result<Vec<StoreStatus>, PdError> {
        let store = proto::wire::Store { id: STORE.0, address: "local".into(), ..Default::default() };
        let count = self.regions.len() as u64;
        Ok(vec![StoreStatus { store: Some(store), regions: count, leaders: count, ..Default::default() }])
    }

    async fn operators(&self, _finished: bool) -> Result<Vec<OperatorStatus>, PdError> {
        Ok(vec![])
    }

    async fn split_at(&self, keys: Vec<Bytes>) -> Result<Vec<u64>, PdError> {
        let is_border = |key: &Bytes| self.regions.iter().any(|r| r.range.start == *key);
        match keys.iter().all(is_border) {
            true => Ok(vec![]),
            false => Err(PdError::Refused("regions of a local store stay as they are".into())),
        }
    }

    async fn operator(&self, _id: u64) -> Result<Option<OperatorStatus>, PdError> {
        Ok(None)
    }

    async fn report_waits(&self, waits: Vec<Wait>) -> Result<Vec<Deadlock>, PdError> {
        Ok(self.deadlocks.lock().report(STORE.0, waits, self.clock.now()))
    }

    async fn catalog_lease(
        &self,
        gateway: u64,
        acknowledged: u64,
        wait: Duration,
    ) -> Result<(u64, Timestamp), PdError> {
        let mut published = self.published.subscribe();
        let expires = || Timestamp::new(self.now().physical_ms() + LEASE.as_millis() as u64, 0);
        self.catalog.lock().gateways.insert(gateway, (acknowledged, expires()));
        self.acknowledged.notify_waiters();
        let newer = published.wait_for(|&version| version > acknowledged).map(|_| ());
        futures::future::select(Box::pin(newer), self.clock.sleep(wait)).await;
        let expires = expires();
        let mut catalog = self.catalog.lock();
        catalog.gateways.insert(gateway, (acknowledged, expires));
        Ok((catalog.published, expires))
    }

    async fn safe_point(&self) -> Result<SafePointGrant, PdError> {
        /// Short, so that a new safe point is soon known.
        const LEASE_MS: u64 = 1;
        let refuse_below = self.safe_point.load(Ordering::SeqCst);
        Ok(SafePointGrant { refuse_below, collect_below: 0, lease_ms: LEASE_MS })
    }

    async fn gateway_alive(&self, gateway: u64) -> Result<bool, PdError> {
        let now = self.now();
        Ok(self.catalog.lock().gateways.get(&gateway).is_some_and(|(_, expires)| *expires > now))
    }

    async fn live_gateways(&self) -> Result<Vec<u64>, PdError> {
        let now = self.now();
        let catalog = self.catalog.lock();
        let alive = catalog.gateways.iter().filter(|(_, (_, expires))| *expires > now);
        Ok(alive.map(|(gateway, _)| *gateway).collect())
    }

    async fn publish_catalog(&self, version: u64) -> Result<(), PdError> {
        self.catalog.lock().published = version;
        self.published.send_replace(version);
        loop {
            let acknowledged = self.acknowledged.notified();
            let now = self.now();
            let behind = |&(has, expires): &(u64, Timestamp)| (has < version && expires > now).then_some(expires);
            let Some(last) = self.catalog.lock().gateways.values().filter_map(behind).max() else { return Ok(()) };
            let left = Duration::from_millis(last.physical_ms().saturating_sub(now.physical_ms()) + 1);
            futures::future::select(Box::pin(acknowledged), self.clock.sleep(left)).await;
        }
    }
}

#[cfg(test)]
mod chaos;
#[cfg(test)]
mod row_locks;
#[cfg(test)]
mod serializable;
#[cfg(test)]
mod spill;
#[cfg(test)]
mod tests;
