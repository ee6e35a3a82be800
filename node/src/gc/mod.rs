//! Collects old versions: on every node what the regions led there hold, and where PD is the safe point's steps.
//!
//! ```text
//!   report    the oldest snapshot in use here, and whether anything is to collect ──► PD, with the heartbeat
//!   rounds    where PD is: a safe point is chosen ─► refused by all stores ─► locks below it ended ─► collected
//!   sweeps    on each leader's store: region by region, a page at a time, through the log
//! ```
//!
//! What goes is deleted by entries of the region's log, so replicas stay equal and `verify` needs to know nothing. A sweep reads
//! this store's state as it is, without asking who leads: it wakes no sleeping region that has nothing to collect, and what it finds
//! to go may go whoever wrote meanwhile ([`kv::gc`]); the entry is refused if this store does not lead any more.

pub mod rounds;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kv::{
    Clock, Service,
    gc::{Page, PageLimit, Sweep, rollbacks},
    planted::{Plant, Planted},
};
use parking_lot::Mutex;
use proto::{Batch, Cf, LogIndex, PD_REGION, Region, RegionId, Timestamp, wire};
use raftstore::{
    Instant, ReplicaStatus, Role, StoreHandle, Target,
    engine::{Engine, Snapshot},
};

/// Between two looks for regions with something to do.
const PAUSE: Duration = Duration::from_secs(1);
/// A page takes some milliseconds to read, and its deletions are one entry of the log.
const PAGE: PageLimit = PageLimit { records: 4_096, goes: 1_024 };
/// Behind each page: sweeps take no more than a fifth of a core, whatever there is to do.
const PAGE_PAUSE: Duration = Duration::from_millis(20);

/// What is known of a region led here since its last sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Swept {
    version: u64,
    /// What had been applied; if more has been since, there may be more to collect.
    applied: LogIndex,
    safe_point: Timestamp,
    /// Something goes at this safe point even if nothing more is written.
    next_garbage: Option<Timestamp>,
}

impl Swept {
    fn may_hold_garbage(&self, replica: &ReplicaStatus) -> bool {
        self.next_garbage.is_some() || self.applied != replica.applied || self.is_other(replica)
    }

    fn is_other(&self, replica: &ReplicaStatus) -> bool {
        self.version != replica.view.region.epoch.version
    }
}

/// How much was collected here since the node's start.
#[derive(Debug, Default)]
pub struct GcCounts {
    /// Versions and rollback records.
    pub records: AtomicU64,
    /// Regions swept.
    pub sweeps: AtomicU64,
}

/// Old versions of the regions that a store leads.
pub struct OldVersions {
    store: StoreHandle,
    engine: Arc<dyn Engine>,
    service: Service,
    client: kv::Client,
    clock: Arc<dyn Clock>,
    plant: Plant,
    garbage: AtomicBool,
    swept: Mutex<BTreeMap<RegionId, Swept>>,
    counts: Arc<GcCounts>,
}

impl OldVersions {
    /// Of the regions of `store`, whose requests `service` answers; `client` is this node's.
    pub fn new(
        (store, engine): (StoreHandle, Arc<dyn Engine>),
        (service, client): (Service, kv::Client),
        clock: Arc<dyn Clock>,
        plant: Plant,
    ) -> Self {
        let (garbage, swept, counts) = (AtomicBool::new(true), Mutex::default(), Arc::default());
        OldVersions { store, engine, service, client, clock, plant, garbage, swept, counts }
    }

    /// How much was collected.
    pub fn counts(&self) -> Arc<GcCounts> {
        self.counts.clone()
    }

    /// For PD.
    pub fn report(&self) -> wire::SafePointReport {
        wire::SafePointReport {
            oldest_snapshot: self.client.oldest_snapshot().map_or(0, |ts| ts.0),
            known: self.service.refuse_below().0,
            garbage: self.garbage.load(Ordering::Relaxed),
        }
    }

    /// PD's answer to what was asked at `asked`.
    pub fn granted(&self, asked: Instant, grant: &wire::SafePointGrant) {
        self.service.safe_point_granted(asked, grant);
    }

    /// Sweeps until the node stops.
    pub async fn run(self: Arc<Self>) {
        // The look after which nothing was left to do: changes of replicas, and the safe point.
        let mut done = None;
        loop {
            self.clock.sleep(PAUSE).await;
            let look = (self.store.changes(), self.service.collect_below());
            if done == Some(look) {
                continue;
            }
            let led = self.led();
            let ids: BTreeSet<_> = led.iter().map(|replica| replica.view.region.id).collect();
            self.swept.lock().retain(|id, _| ids.contains(id));
            let mut all = true;
            for replica in led.iter().filter(|replica| self.is_due(replica)) {
                all &= self.sweep(replica).await;
            }
            let garbage = {
                let swept = self.swept.lock();
                let known = |replica: &ReplicaStatus| swept.get(&replica.view.region.id).copied();
                led.iter().any(|replica| known(replica).is_none_or(|swept| swept.may_hold_garbage(replica)))
            };
            self.garbage.store(garbage, Ordering::Relaxed);
            done = all.then_some(look);
        }
    }

    fn led(&self) -> Vec<ReplicaStatus> {
        let leads = |r: &ReplicaStatus| r.view.role == Role::Leader && r.view.serves && r.view.region.id != PD_REGION;
        self.store.statuses().into_iter().filter(leads).collect()
    }

    fn is_due(&self, replica: &ReplicaStatus) -> bool {
        let Some(swept) = self.swept.lock().get(&replica.view.region.id).copied() else { return true };
        let safe_point = self.service.collect_below();
        let ripe = swept.next_garbage.is_some_and(|ts| ts <= safe_point);
        swept.is_other(replica) || (safe_point > swept.safe_point && (ripe || swept.applied != replica.applied))
    }

    /// Whether it was swept to its end.
    async fn sweep(&self, replica: &ReplicaStatus) -> bool {
        let region = &replica.view.region;
        let safe_point = self.service.collect_below();
        let target = Target { region: region.id, epoch: region.epoch, term: Some(replica.view.term) };
        match self.walk(region, &target, safe_point).await {
            Ok((next_garbage, proposals)) => {
                self.counts.sweeps.fetch_add(1, Ordering::Relaxed);
                // What this sweep itself has changed is known.
                let now = self.store.status(region.id).map_or(replica.applied, |now| now.applied);
                let own = now.0.checked_sub(replica.applied.0) == Some(proposals);
                let applied = if own { now } else { replica.applied };
                let swept = Swept { version: region.epoch.version, applied, safe_point, next_garbage };
                self.swept.lock().insert(region.id, swept);
                true
            }
            Err(reason) => {
                // Its turn comes again, here or where it is led then.
                tracing::debug!(region = region.id.0, reason, "a region was not swept to its end");
                false
            }
        }
    }

    /// The next safe point at which something goes, and how many entries were proposed.
    async fn walk(
        &self,
        region: &Region,
        target: &Target,
        safe_point: Timestamp,
    ) -> Result<(Option<Timestamp>, u64), String> {
        let mut sweep = Sweep::new(safe_point).markers_first(self.plant.has(Planted::GcMarkerFirst));
        let mut next = None;
        let end = &region.range.end;
        let mut proposals = self
            .pages(&region.range.start, target, |view, from| {
                sweep.page(view, from, end, PAGE).map_err(|e| e.to_string())
            })
            .await?;
        let lowest = |a: Option<Timestamp>, b: Option<Timestamp>| a.into_iter().chain(b).min();
        let page = |view: &dyn Snapshot, from: &[u8]| {
            let (page, stay) = rollbacks(view, from, end, safe_point, PAGE).map_err(|e| e.to_string())?;
            // It goes at the next safe point above.
            next = lowest(next, stay.map(Timestamp::next));
            Ok(page)
        };
        proposals += self.pages(&region.range.start, target, page).await?;
        Ok((lowest(next, sweep.next_garbage()), proposals))
    }

    async fn pages(
        &self,
        start: &Bytes,
        target: &Target,
        mut page: impl FnMut(&dyn Snapshot, &[u8]) -> Result<Page, String> + Send,
    ) -> Result<u64, String> {
        let (mut from, mut proposals) = (start.clone(), 0);
        loop {
            let Page { goes, resume } = page(&*self.engine.snapshot(), &from)?;
            // All of a page at once; one by one only where the bug is that this shows.
            let part = if self.plant.has(Planted::GcMarkerFirst) { 1 } else { goes.len().max(1) };
            for part in goes.chunks(part) {
                self.propose(target, part).await?;
                proposals += 1;
                self.clock.sleep(PAGE_PAUSE).await;
            }
            match resume {
                Some(key) => from = key,
                None => return Ok(proposals),
            }
            self.clock.sleep(PAGE_PAUSE).await;
        }
    }

    async fn propose(&self, target: &Target, goes: &[(Cf, Bytes)]) -> Result<(), String> {
        let mut batch = Batch::default();
        goes.iter().for_each(|(cf, key)| batch.delete(*cf, key.clone()));
        self.store.propose(target, batch).await.map_err(|e| e.to_string())?;
        self.counts.records.fetch_add(goes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
