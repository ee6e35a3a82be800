//! The picture of the cluster: which stores there are, which regions, who leads them.
//!
//! Stores are durable; regions are only what leaders reported (and, until they do, what the founding record
//! says), kept as a map without overlaps:
//!
//! ```text
//!   by start key   ""──r1──│──r2 (leader s1, t7)──│──r5──│ …
//!   a report of r5@1/4 pushes out every older region that overlaps it,
//!   and is itself ignored when one that overlaps it is as new or newer
//! ```
//!
//! Stale is: an older epoch; the same epoch in an older term. So reports may come late, twice and in any
//! order, and from a leader that does not know yet that it was deposed.

mod region_view;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::{
    KeyRange, Region, RegionId, StoreId,
    wire::{self, RegionStatus, StoreState, StoreStatus},
};

pub use region_view::{CAUGHT_UP_ENTRIES, Load, Progress, RegionView};

use crate::{Now, rules::DOWN_AFTER_MS, tso::ClockWitness};

/// Silent for longer than this: disconnected. Several heartbeats (1 s) may get lost before.
pub const DISCONNECTED_AFTER_MS: u64 = 5_000;
/// A new PD that has heard of a majority of the stores waits so long for the others before it plans anything.
pub const SETTLE_MS: u64 = 2 * DISCONNECTED_AFTER_MS;
/// A store whose disk is as slow as this is not trusted with leaderships.
pub const SLOW_FROM: u32 = 50;
/// Regions of one answer.
pub const MAX_SCAN: usize = 10_000;

/// What a store's last heartbeat told.
#[derive(Clone, Debug, PartialEq)]
struct Report {
    /// When it came, PD's monotonic clock.
    at_ms: u64,
    /// The store's wall clock then.
    wall_ms: u64,
    regions: u64,
    capacity_bytes: u64,
    available_bytes: u64,
    boot_id: u64,
    slow_score: u32,
    stopping: bool,
    snapshots: Option<wire::SnapshotCounts>,
}

#[derive(Clone, Debug)]
struct StoreView {
    record: wire::Store,
    report: Option<Report>,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// The picture follows it.
    Taken,
    /// Something newer is known already.
    Stale,
    /// The message can't be read.
    Malformed,
}

/// A store as planners look at it.
#[derive(Clone, Copy, Debug)]
pub struct StoreLook<'a> {
    /// Id, labels.
    pub record: &'a wire::Store,
    /// As judged.
    pub state: StoreState,
    /// This PD has heard of it lately.
    pub live: bool,
    /// Capacity and what is available of it, bytes; zeros when it has not reported.
    pub disk: (u64, u64),
    /// Its log's disk is too slow to lead.
    pub slow: bool,
    /// Its process is about to end.
    pub stopping: bool,
}

/// The core.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// PD took office then, by its monotonic clock: silence counts from here at the earliest.
    since_ms: u64,
    /// A store that is silent for longer is down.
    down_after_ms: u64,
    stores: BTreeMap<StoreId, StoreView>,
    /// The founders of the cluster, all of which must report before it is ready.
    founders: Vec<StoreId>,
    regions: BTreeMap<RegionId, RegionView>,
    /// When a region's borders were last seen to change, if this PD saw it.
    reshaped_ms: BTreeMap<RegionId, u64>,
    by_start: BTreeMap<Bytes, RegionId>,
    /// The lower median of the stores' wall clocks, less PD's monotonic clock; once a majority has reported. All clocks
    /// run on alike, so it holds until the next report. Asked for with every timestamp, hence kept.
    median_offset_ms: Option<i64>,
    /// Grows whenever a region looks different to planners.
    revision: u64,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            since_ms: 0,
            down_after_ms: DOWN_AFTER_MS,
            stores: BTreeMap::new(),
            founders: Vec::new(),
            regions: BTreeMap::new(),
            reshaped_ms: BTreeMap::new(),
            by_start: BTreeMap::new(),
            median_offset_ms: None,
            revision: 0,
        }
    }
}

impl Cluster {
    /// The picture of a new PD: durable stores, the founders, and the regions as they were founded.
    pub fn new(now: Now, stores: Vec<wire::Store>, founders: Vec<StoreId>, founded: Vec<Region>) -> Self {
        let mut cluster = Cluster { since_ms: now.monotonic_ms, founders, ..Cluster::default() };
        for record in stores {
            cluster.put_store(record);
        }
        for region in founded {
            cluster.insert(RegionView::founded(region));
        }
        cluster
    }

    /// Stores are called down after so long a silence.
    pub fn with_patience(mut self, down_after_ms: u64) -> Self {
        self.down_after_ms = down_after_ms.max(DISCONNECTED_AFTER_MS);
        self
    }

    /// Adds or replaces a store's durable record.
    pub fn put_store(&mut self, record: wire::Store) {
        let id = StoreId(record.id);
        let report = self.stores.remove(&id).and_then(|s| s.report);
        self.stores.insert(id, StoreView { record, report });
        self.median_offset_ms = self.median_offset();
    }

    /// A store's durable record.
    pub fn store(&self, id: StoreId) -> Option<&wire::Store> {
        self.stores.get(&id).map(|s| &s.record)
    }
    /// The store of a data directory.
    pub fn store_with_uuid(&self, uuid: &[u8]) -> Option<&wire::Store> {
        self.stores.values().map(|s| &s.record).find(|s| s.uuid == uuid)
    }
    /// Stores said to be at `address`, and for how long (ms) each has been silent.
    pub fn stores_at<'a>(&'a self, now: Now, address: &'a str) -> impl Iterator<Item = (&'a wire::Store, u64)> {
        let here = self.stores.values().filter(move |s| s.record.address == address);
        here.map(move |s| (&s.record, self.silent_ms(now, s)))
    }

    /// A store reported itself.
    pub fn observe_store(&mut self, now: Now, status: &StoreStatus, wall_ms: u64) -> Observed {
        let id = status.store.as_ref().map_or(StoreId(0), |s| StoreId(s.id));
        let Some(view) = self.stores.get_mut(&id) else { return Observed::Malformed };
        view.report = Some(Report {
            at_ms: now.monotonic_ms,
            wall_ms,
            regions: status.regions,
            capacity_bytes: status.capacity_bytes,
            available_bytes: status.available_bytes,
            boot_id: status.boot_id,
            slow_score: status.slow_score,
            stopping: status.stopping,
            snapshots: status.snapshots,
        });
        self.median_offset_ms = self.median_offset();
        Observed::Taken
    }

    /// A store reported a region that it leads, or has just ceased to lead.
    pub fn observe_region(&mut self, now: Now, status: RegionStatus) -> Observed {
        let Ok(mut view) = RegionView::try_from(status) else { return Observed::Malformed };
        if self.is_stale(&view) {
            return Observed::Stale;
        }
        let old = self.regions.get(&view.region.id);
        if let Some(old) = old {
            view.follows(now, old);
        }
        if !old.is_some_and(|old| old.looks_like(&view)) {
            self.revision += 1;
        }
        let known = old.map(|old| old.region.epoch.version);
        if known != Some(view.region.epoch.version) {
            self.reshaped_ms.insert(view.region.id, now.monotonic_ms);
        }
        for id in self.overlapping(&view.region.range) {
            if id != view.region.id {
                self.reshaped_ms.remove(&id);
            }
            self.remove(id);
        }
        self.remove(view.region.id);
        self.insert(view);
        Observed::Taken
    }

    /// A full report of `store`: whatever else it was thought to lead, it does not.
    pub fn retain_led(&mut self, store: StoreId, led: &BTreeSet<RegionId>) {
        for (id, view) in &mut self.regions {
            if view.leader.is_some_and(|l| l.store == store) && !led.contains(id) {
                view.leader = None;
                self.revision += 1;
            }
        }
    }

    /// Another number than before: some region looks different to planners, for whom only time and the stores may have
    /// changed otherwise.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    fn is_stale(&self, new: &RegionView) -> bool {
        if let Some(old) = self.regions.get(&new.region.id) {
            let (known, said) = (old.region.epoch, new.region.epoch);
            if said.version < known.version || said.conf_ver < known.conf_ver {
                return true;
            }
            // Within a term "nobody leads" says less than a leader; a leader that lost its office says so by
            // leaving the region out of its next full report.
            let age = |v: &RegionView| (v.term, v.leader.is_some());
            if known == said && age(new) < age(old) {
                return true;
            }
        }
        let as_new =
            |id: &RegionId| *id != new.region.id && self.regions[id].region.epoch.version >= new.region.epoch.version;
        self.overlapping(&new.region.range).iter().any(as_new)
    }

    fn overlapping(&self, range: &KeyRange) -> Vec<RegionId> {
        self.from(&range.start)
            .take_while(|v| range.end.is_empty() || v.region.range.start < range.end)
            .map(|v| v.region.id)
            .collect()
    }

    /// Regions from the one that holds `key` (or the first behind it) on, in key order.
    fn from<'a>(&'a self, key: &[u8]) -> impl Iterator<Item = &'a RegionView> {
        let key = Bytes::copy_from_slice(key);
        let holder = self
            .by_start
            .range(..=key.clone())
            .next_back()
            .map(|(_, id)| &self.regions[id])
            .filter(|v| v.region.range.contains(&key));
        let first_behind = (std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded);
        holder.into_iter().chain(self.by_start.range(first_behind).map(|(_, id)| &self.regions[id]))
    }

    fn insert(&mut self, view: RegionView) {
        self.by_start.insert(view.region.range.start.clone(), view.region.id);
        self.regions.insert(view.region.id, view);
    }
    fn remove(&mut self, id: RegionId) {
        if let Some(view) = self.regions.remove(&id) {
            self.by_start.remove(&view.region.range.start);
        }
    }

    /// The region that holds `key`.
    pub fn region_of(&self, key: &[u8]) -> Option<&RegionView> {
        self.from(key).next().filter(|v| v.region.range.contains(key))
    }
    /// Up to `limit` (at most [`MAX_SCAN`]; 0: that) regions that touch `range`, in key order.
    pub fn regions(&self, range: &KeyRange, limit: usize) -> Vec<&RegionView> {
        let limit = if limit == 0 { MAX_SCAN } else { limit.min(MAX_SCAN) };
        self.from(&range.start)
            .take_while(|v| range.end.is_empty() || v.region.range.start < range.end)
            .take(limit)
            .collect()
    }
    /// A region by its id.
    pub fn region(&self, id: RegionId) -> Option<&RegionView> {
        self.regions.get(&id)
    }
    /// How many stores there are, removed ones included.
    pub fn store_count(&self) -> usize {
        self.stores.len()
    }
    /// All stores but those that were removed.
    pub fn member_ids(&self) -> Vec<StoreId> {
        let members = self.stores.iter().filter(|(_, view)| view.record.state() != StoreState::Removed);
        members.map(|(id, _)| *id).collect()
    }
    /// How many regions are known.
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    fn silent_ms(&self, now: Now, view: &StoreView) -> u64 {
        now.monotonic_ms.saturating_sub(view.report.as_ref().map_or(self.since_ms, |r| r.at_ms))
    }

    fn state(&self, now: Now, view: &StoreView) -> StoreState {
        match view.record.state() {
            StoreState::Draining => StoreState::Draining,
            StoreState::Removed => StoreState::Removed,
            _ => match self.silent_ms(now, view) {
                silent if silent > self.down_after_ms => StoreState::Down,
                silent if silent > DISCONNECTED_AFTER_MS => StoreState::Disconnected,
                // A new PD has heard nothing yet: not a reason to call a store disconnected.
                _ => StoreState::Up,
            },
        }
    }

    /// All stores as `ctl store list` and routing see them.
    pub fn store_statuses(&self, now: Now) -> Vec<StoreStatus> {
        let (mut led, mut load) = (BTreeMap::<StoreId, u64>::new(), BTreeMap::<StoreId, Load>::new());
        for view in self.regions.values() {
            let Some(leader) = view.leader else { continue };
            *led.entry(leader.store).or_default() += 1;
            let sum = load.entry(leader.store).or_default();
            *sum = sum.plus(&view.load);
        }
        let status = |(&id, view): (&StoreId, &StoreView)| {
            let mut store = view.record.clone();
            store.state = self.state(now, view) as i32;
            let report = view.report.as_ref();
            StoreStatus {
                store: Some(store),
                regions: report.map_or(0, |r| r.regions),
                leaders: led.get(&id).copied().unwrap_or(0),
                capacity_bytes: report.map_or(0, |r| r.capacity_bytes),
                available_bytes: report.map_or(0, |r| r.available_bytes),
                silent_ms: self.silent_ms(now, view),
                boot_id: report.map_or(0, |r| r.boot_id),
                slow_score: report.map_or(0, |r| r.slow_score),
                stopping: report.is_some_and(|r| r.stopping),
                snapshots: report.and_then(|r| r.snapshots),
                load: load.get(&id).map(Into::into),
            }
        };
        self.stores.iter().map(status).collect()
    }

    /// What planners look at: every store with its state, whether it was heard of lately, and its last report's disk
    /// (capacity, available; bytes) and slowness.
    pub fn store_looks(&self, now: Now) -> impl Iterator<Item = StoreLook<'_>> {
        self.stores.values().map(move |view| StoreLook {
            record: &view.record,
            state: self.state(now, view),
            live: self.is_heard(now, view),
            disk: view.report.as_ref().map_or((0, 0), |r| (r.capacity_bytes, r.available_bytes)),
            slow: view.report.as_ref().is_some_and(|r| r.slow_score >= SLOW_FROM),
            stopping: view.report.as_ref().is_some_and(|r| r.stopping),
        })
    }

    fn is_heard(&self, now: Now, view: &StoreView) -> bool {
        view.report.is_some() && self.silent_ms(now, view) <= DISCONNECTED_AFTER_MS
    }

    /// Whether the store was heard of lately by this very PD.
    pub fn is_live(&self, now: Now, store: StoreId) -> bool {
        self.stores.get(&store).is_some_and(|view| self.is_heard(now, view))
    }

    /// How a store is judged.
    pub fn store_state(&self, now: Now, store: StoreId) -> Option<StoreState> {
        self.stores.get(&store).map(|view| self.state(now, view))
    }

    /// Regions with a peer on the store.
    pub fn replicas_on(&self, store: StoreId) -> usize {
        self.regions.values().filter(|v| v.is_on(store)).count()
    }

    /// Whether every key belongs to a region that a leader has reported to this PD: nothing can be hidden from it.
    pub fn is_complete(&self) -> bool {
        self.covers_all_keys() && self.regions.values().all(|v| v.term.0 > 0)
    }

    /// All regions, by id.
    pub fn views(&self) -> impl Iterator<Item = &RegionView> {
        self.regions.values()
    }

    /// The region that begins where this one ends.
    pub fn right_of(&self, view: &RegionView) -> Option<&RegionView> {
        let id = self.by_start.get(&view.region.range.end).filter(|_| !view.region.range.end.is_empty())?;
        self.regions.get(id)
    }

    /// For how long this PD has seen the region's borders as they are, ms.
    pub fn shaped_for_ms(&self, now: Now, region: RegionId) -> u64 {
        now.monotonic_ms.saturating_sub(self.reshaped_ms.get(&region).copied().unwrap_or(self.since_ms))
    }

    /// Enough is known to plan by: all stores have reported to this PD, or a majority of them and the others had time
    /// to, or those that have not have been silent for so long that they count as down (more may be lost than live: after an
    /// unsafe recovery). Of regions only those that were reported are planned for.
    pub fn has_settled(&self, now: Now) -> bool {
        let members: Vec<_> = self.stores.values().filter(|s| s.record.state() != StoreState::Removed).collect();
        let heard = members.iter().filter(|s| s.report.is_some()).count();
        let patience = if heard * 2 > members.len() { SETTLE_MS } else { self.down_after_ms };
        heard == members.len() || now.monotonic_ms.saturating_sub(self.since_ms) >= patience
    }

    /// Regions nobody is known to lead, or whose leader's store has fallen silent.
    pub fn without_leader(&self, now: Now) -> usize {
        let led = |v: &RegionView| {
            v.leader
                .and_then(|l| self.stores.get(&l.store))
                .is_some_and(|s| matches!(self.state(now, s), StoreState::Up | StoreState::Draining))
        };
        self.regions.values().filter(|v| !led(v)).count()
    }

    /// Every founder has reported to this PD and is connected (or given up), the known regions cover all keys, and each has
    /// a connected leader.
    pub fn is_ready(&self, now: Now) -> bool {
        let here = |id: &StoreId| {
            let view = self.stores.get(id);
            view.is_some_and(|s| {
                matches!(self.state(now, s), StoreState::Removed | StoreState::Down)
                    || (s.report.is_some() && self.silent_ms(now, s) <= DISCONNECTED_AFTER_MS)
            })
        };
        self.founders.iter().all(here) && self.covers_all_keys() && self.without_leader(now) == 0
    }

    fn covers_all_keys(&self) -> bool {
        let mut next = Some(Bytes::new());
        for (start, id) in &self.by_start {
            if next.as_ref() != Some(start) {
                return false;
            }
            let end = self.regions[id].region.range.end.clone();
            next = (!end.is_empty()).then_some(end);
        }
        !self.by_start.is_empty() && next.is_none()
    }

    /// What the stores' clocks say: the lower median of all that reported, if they are a majority.
    pub fn clock_witness(&self, now: Now) -> ClockWitness {
        let median = self.median_offset_ms.map(|offset| now.monotonic_ms.saturating_add_signed(offset));
        median.map_or(ClockWitness::Unknown, ClockWitness::Median)
    }

    fn median_offset(&self) -> Option<i64> {
        let voting: Vec<_> = self.stores.values().filter(|s| s.record.state() != StoreState::Removed).collect();
        let reports = voting.iter().filter_map(|s| s.report.as_ref());
        // Both are milliseconds of the same order as now: far from the ends of i64, unless a store talks nonsense.
        let mut offsets: Vec<_> = reports.map(|r| (r.wall_ms as i64).saturating_sub(r.at_ms as i64)).collect();
        if offsets.len() * 2 <= voting.len() {
            return None;
        }
        offsets.sort_unstable();
        Some(offsets[(offsets.len() - 1) / 2])
    }
}

#[cfg(test)]
mod tests;
