//! Which region holds a key and who leads it, as far as this node knows. PURE.
//!
//! The map is a cache that is never trusted: every request carries the epoch it was routed by, and a wrong one
//! comes back with what is true now. PD is asked only for keys no entry covers.
//!
//! ```text
//!   borders      a          g                 p
//!   by_start     ├─ r2 @1/3 ┼─ r5 @1/3 ───────┼─ (unknown: ask PD)
//!   leader         s1 (t7)    s3, s1 and s2 not tried
//! ```

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use proto::{
    Region, StoreId, Term,
    region::PeerRole,
    wire::{RegionError, region_error::Kind},
};

/// Where to send a request for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The region as known.
    pub region: Arc<Region>,
    /// The store to ask.
    pub store: StoreId,
    /// Whether `store` is known to lead, or only a guess among the peers.
    pub known_leader: bool,
}

/// What to do after a region error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The map has learnt; route again now.
    Retry,
    /// Route again after a pause of at least this many milliseconds (0: the usual back-off).
    Pause(u64),
    /// The caller's time is up.
    Deadline,
    /// It may have been carried out.
    Unknown,
    /// The store refuses writes for lack of disk.
    DiskFull,
    /// Repeating can't help.
    Fatal,
}

struct Entry {
    region: Arc<Region>,
    leader: Option<StoreId>,
    /// The term in which `leader` was learnt; older news is ignored.
    term: Term,
    /// Which voter to guess next while no leader is known.
    guess: usize,
    /// Answers in a row that brought no leader. Past a full round the entry is dropped and PD asked.
    misses: usize,
    /// A store that did not answer: neither guessed nor followed for a while, since asking it costs a time-out.
    silent: Option<Silent>,
}

struct Silent {
    store: StoreId,
    /// Hints to it that are still declined.
    declines: usize,
}

impl Entry {
    fn route(&self) -> Option<Route> {
        let (store, known_leader) = match self.leader {
            Some(store) => (store, true),
            None => (self.candidates().nth(self.guess % self.candidates().count().max(1))?, false),
        };
        Some(Route { region: self.region.clone(), store, known_leader })
    }

    /// Stores that may lead, in order, without the silent one unless it is the only one.
    fn candidates(&self) -> impl Iterator<Item = StoreId> {
        let voters = || self.region.peers.iter().filter(|p| p.role != PeerRole::Learner).map(|p| p.store);
        let silent = self.silent.as_ref().map(|s| s.store).filter(|_| voters().count() > 1);
        voters().filter(move |&store| Some(store) != silent)
    }
}

/// How often a hint to a store that did not answer is declined. With the pauses in between that is about a third of
/// a second: enough for a lost message to be harmless, and for a stopped leader to be asked at most twice before
/// its successor is elected.
const DECLINES: usize = 8;
/// Rounds over all voters without finding a leader before PD is asked again.
const ROUNDS_BEFORE_LOOKUP: usize = 2;

/// The cached picture.
#[derive(Default)]
pub struct RegionMap {
    by_start: BTreeMap<Bytes, Entry>,
}

impl RegionMap {
    /// The region that holds `key`.
    pub fn locate(&self, key: &[u8]) -> Option<Route> {
        let (_, entry) =
            self.by_start.range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key))).next_back()?;
        if entry.region.range.contains(key) { entry.route() } else { None }
    }

    /// The region that holds the keys just below `end` (empty: the last region), for scans that run backwards.
    pub fn locate_before(&self, end: &[u8]) -> Option<Route> {
        let (_, entry) = if end.is_empty() {
            self.by_start.iter().next_back()?
        } else {
            self.by_start.range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Excluded(end))).next_back()?
        };
        let upper = &entry.region.range.end;
        let holds = upper.is_empty() || (!end.is_empty() && upper.as_ref() >= end);
        if holds { entry.route() } else { None }
    }

    /// News of a region. Entries it overlaps go, unless one of them has a newer epoch. `leader`, when known, was
    /// so in `term`.
    pub fn learn(&mut self, region: Region, leader: Option<StoreId>, term: Term) {
        let overlapping: Vec<Bytes> = self
            .by_start
            .iter()
            .filter(|(_, e)| e.region.range.intersect(&region.range).is_some())
            .map(|(start, _)| start.clone())
            .collect();
        let mut kept = (leader, term, 0);
        let mut silent = None;
        for start in &overlapping {
            let old = &self.by_start[start];
            if old.region.epoch.version > region.epoch.version
                || (old.region.id == region.id && old.region.epoch.conf_ver > region.epoch.conf_ver)
            {
                return;
            }
            if old.region.id == region.id && (leader.is_none() || old.term > term) {
                kept = (old.leader.filter(|&s| region.peer_on(s).is_some()), old.term, old.guess);
            }
        }
        for start in overlapping {
            silent = self.by_start.remove(&start).filter(|old| old.region.id == region.id).and_then(|old| old.silent);
        }
        let (leader, term, guess) = kept;
        let region = Arc::new(region);
        let entry = Entry { region, leader, term, guess, misses: 0, silent };
        self.by_start.insert(entry.region.range.start.clone(), entry);
    }

    /// An answer came: whoever gave it leads.
    pub fn on_answer(&mut self, route: &Route) {
        if let Some(entry) = self.entry_of(route) {
            entry.leader = Some(route.store);
            entry.misses = 0;
            if entry.silent.as_ref().is_some_and(|s| s.store == route.store) {
                entry.silent = None;
            }
        }
    }

    /// The store did not answer: guess another peer.
    pub fn on_silence(&mut self, route: &Route) {
        if let Some(entry) = self.entry_of(route) {
            entry.silent = Some(Silent { store: route.store, declines: DECLINES });
        }
        self.miss(route);
    }

    /// A region error came: learn from it.
    pub fn on_error(&mut self, route: &Route, error: &RegionError) -> Verdict {
        match &error.kind {
            Some(Kind::NotLeader(not)) => {
                let Some(leader) = error.leader_hint() else {
                    self.miss(route);
                    return Verdict::Pause(0);
                };
                self.set_leader(route, leader.store, Term(not.term))
            }
            Some(Kind::EpochMismatch(mismatch)) => {
                self.forget(route);
                for region in mismatch.regions.iter().cloned().filter_map(|r| Region::try_from(r).ok()) {
                    let leader = region.peer_on(route.store).map(|p| p.store);
                    self.learn(region, leader, Term(0));
                }
                // Only with something else to try: PD may know the old picture still, and would give the same route again.
                let now = self.locate(&route.region.range.start);
                let is_news = |r: &Route| (r.region.id, r.region.epoch) != (route.region.id, route.region.epoch);
                if now.as_ref().is_some_and(is_news) { Verdict::Retry } else { Verdict::Pause(0) }
            }
            Some(Kind::KeyNotInRegion(_)) => {
                self.forget(route);
                Verdict::Pause(0)
            }
            Some(Kind::RegionNotFound(_)) => {
                self.miss(route);
                Verdict::Pause(0)
            }
            Some(Kind::ServerBusy(busy)) => Verdict::Pause(busy.backoff_ms.max(1)),
            Some(Kind::StaleCommand(_)) => Verdict::Pause(0),
            Some(Kind::DeadlineExceeded(_)) => Verdict::Deadline,
            Some(Kind::OutcomeUnknown(_)) => Verdict::Unknown,
            Some(Kind::DiskFull(_)) => Verdict::DiskFull,
            Some(Kind::ClusterMismatch(_)) | None => Verdict::Fatal,
        }
    }

    /// Everything known, in key order: region, leader, term.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<Region>, Option<StoreId>, Term)> {
        self.by_start.values().map(|e| (&e.region, e.leader, e.term))
    }

    fn entry_of(&mut self, route: &Route) -> Option<&mut Entry> {
        self.by_start.get_mut(&route.region.range.start).filter(|e| e.region.id == route.region.id)
    }

    fn set_leader(&mut self, route: &Route, leader: StoreId, term: Term) -> Verdict {
        let asked = route.store;
        let Some(entry) = self.entry_of(route) else { return Verdict::Retry };
        // A follower that lags may name a leader of the past: the same hint twice, or an older term, is no news.
        if term < entry.term || leader == asked || entry.region.peer_on(leader).is_none() {
            self.miss(route);
            return Verdict::Pause(0);
        }
        let no_newer = entry.term == Term(0) || term == entry.term;
        if let Some(silent) = entry.silent.as_mut().filter(|s| s.store == leader && no_newer) {
            entry.term = term;
            silent.declines = silent.declines.saturating_sub(1);
            if silent.declines > 0 {
                self.miss(route);
                return Verdict::Pause(0);
            }
            entry.silent = None;
        }
        let news = entry.leader != Some(leader) || entry.leader == Some(asked);
        entry.leader = Some(leader);
        entry.term = term;
        if news { Verdict::Retry } else { Verdict::Pause(0) }
    }

    fn miss(&mut self, route: &Route) {
        let Some(entry) = self.entry_of(route) else { return };
        // Another request may have found the leader meanwhile: keep that.
        if entry.leader.is_some_and(|l| l != route.store) {
            return;
        }
        entry.leader = None;
        entry.misses += 1;
        let candidates: Vec<StoreId> = entry.candidates().collect();
        let next = candidates.iter().position(|&s| s == route.store).map_or(entry.guess, |asked| asked + 1);
        entry.guess = next % candidates.len().max(1);
        if entry.misses >= ROUNDS_BEFORE_LOOKUP * entry.region.peers.len().max(1) {
            self.forget(route);
        }
    }

    fn forget(&mut self, route: &Route) {
        if self.entry_of(route).is_some() {
            self.by_start.remove(&route.region.range.start);
        }
    }
}
