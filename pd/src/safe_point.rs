//! The GC safe point: from when on are old versions kept? PURE.
//!
//! Nobody may read what is gone. So a safe point goes through three steps, one after the other for the whole cluster:
//!
//! ```text
//!   chosen      now − retention, or just below the oldest snapshot in use; durable before anybody hears of it
//!   refused     every store refuses reads and prewrites below it, or has no lease on an older one any more
//!               ─► then no transaction can begin to commit below it: locks below it are looked for everywhere, and ended
//!   collected   versions that nobody at or above it sees go
//! ```
//!
//! What keeps a reader safe is the refusal alone. What nodes report of their snapshots keeps it from being refused: a node
//! that is silent, or a transaction that is open for too long, holds nothing back, and then its reads fail.
//!
//! A store's word "I refuse below S" lives in its memory. So a store serves old snapshots only under a lease: what
//! PD told it last holds for [`GcRules::lease_ms`] from when it asked. A new PD does not know its predecessor's leases and waits one out.
//! All times are of PD's monotonic clock, and of PD's timestamps.

use std::collections::BTreeMap;

use proto::{StoreId, Timestamp};

use crate::GcRules;

/// What a node tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The oldest timestamp in use there; zero: none.
    pub oldest: Timestamp,
    /// It refuses what is below.
    pub known: Timestamp,
    /// There is something to collect, or may be.
    pub garbage: bool,
}

/// What a store is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Refuse what is below.
    pub refuse_below: Timestamp,
    /// Collect what nobody at or above sees.
    pub collect_below: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    at_ms: u64,
    /// PD's time then: what began at the node later is younger.
    at: Timestamp,
    report: Report,
}

/// The core.
#[derive(Clone, Debug)]
pub struct SafePoint {
    rules: GcRules,
    grant: Grant,
    /// When this PD took office.
    since_ms: u64,
    /// When the last one was chosen.
    chosen_ms: Option<u64>,
    heard: BTreeMap<StoreId, Heard>,
    /// When each store was granted something last.
    granted_ms: BTreeMap<StoreId, u64>,
}

impl SafePoint {
    /// A new PD's, from what is durable.
    pub fn restore(rules: GcRules, durable: Timestamp, now_ms: u64) -> Self {
        let grant = Grant { refuse_below: durable, collect_below: Timestamp::ZERO };
        let (heard, granted_ms) = (BTreeMap::new(), BTreeMap::new());
        SafePoint { rules, grant, since_ms: now_ms, chosen_ms: None, heard, granted_ms }
    }

    /// As it is.
    pub fn now(&self) -> Grant {
        self.grant
    }

    /// A node reports, at PD's time `at`.
    pub fn report(&mut self, store: StoreId, now_ms: u64, at: Timestamp, report: Report) {
        self.heard.insert(store, Heard { at_ms: now_ms, at, report });
    }

    /// What a store is told; it may trust it for [`GcRules::lease_ms`].
    pub fn grant(&mut self, store: StoreId, now_ms: u64) -> Grant {
        self.granted_ms.insert(store, now_ms);
        self.grant
    }

    /// The safe point to make durable and to refuse from next, at PD's time `at`, in a cluster of `stores`. `None`: none yet.
    pub fn next(&self, now_ms: u64, at: Timestamp, stores: &[StoreId]) -> Option<Timestamp> {
        let under_way = self.grant.collect_below < self.grant.refuse_below;
        let early = self.chosen_ms.is_some_and(|ms| now_ms < ms.saturating_add(self.rules.every_ms));
        if under_way || early || !self.is_wanted() {
            return None;
        }
        let silent = |since: u64| now_ms > since.saturating_add(self.rules.silent_ms);
        let mut next = before(at, self.rules.retention_ms);
        for store in stores {
            match self.heard.get(store) {
                Some(heard) if silent(heard.at_ms) => {}
                Some(Heard { at, report, .. }) => {
                    let oldest = Some(report.oldest).filter(|ts| *ts != Timestamp::ZERO);
                    next = next.min(oldest.unwrap_or(*at)).min(*at);
                }
                None if silent(self.since_ms) => {}
                None => return None,
            }
        }
        // Nobody holds it back for ever.
        let next = next.max(before(at, self.rules.hold_max_ms));
        (next > self.grant.refuse_below).then_some(next)
    }

    /// It is durable: stores are told.
    pub fn chosen(&mut self, next: Timestamp, now_ms: u64) {
        self.grant.refuse_below = self.grant.refuse_below.max(next);
        self.chosen_ms = Some(now_ms);
    }

    /// Nobody serves what is below it any more, but locks may stand there: they are to be ended now.
    pub fn refused(&self, now_ms: u64) -> Option<Timestamp> {
        let Grant { refuse_below, collect_below } = self.grant;
        let over = |since_ms: u64| now_ms > since_ms.saturating_add(self.rules.lease_ms);
        let knows = |store| self.heard.get(store).is_some_and(|heard| heard.report.known >= refuse_below);
        let all = over(self.since_ms) && self.granted_ms.iter().all(|(store, ms)| knows(store) || over(*ms));
        (collect_below < refuse_below && all && self.is_wanted()).then_some(refuse_below)
    }

    /// No lock of a transaction that began below `safe_point` stands anywhere, nor ever will.
    pub fn cleared(&mut self, safe_point: Timestamp) {
        if safe_point <= self.grant.refuse_below {
            self.grant.collect_below = self.grant.collect_below.max(safe_point);
        }
    }

    fn is_wanted(&self) -> bool {
        self.heard.values().any(|heard| heard.report.garbage)
    }
}

fn before(at: Timestamp, ms: u64) -> Timestamp {
    Timestamp::new(at.physical_ms().saturating_sub(ms), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: GcRules =
        GcRules { retention_ms: 1_000, every_ms: 500, silent_ms: 30_000, lease_ms: 8_000, hold_max_ms: 100_000 };
    const A: StoreId = StoreId(1);
    const B: StoreId = StoreId(2);

    fn ts(ms: u64) -> Timestamp {
        Timestamp::new(ms, 0)
    }
    fn report(oldest: u64, known: u64) -> Report {
        Report { oldest: ts(oldest), known: ts(known), garbage: true }
    }

    /// PD's time is its clock and a million.
    fn of(now_ms: u64) -> Timestamp {
        ts(1_000_000 + now_ms)
    }

    #[test]
    fn a_safe_point_goes_through_its_steps() {
        let mut pd = SafePoint::restore(RULES, Timestamp::ZERO, 0);
        pd.report(A, 10, of(10), report(0, 0));
        assert_eq!(pd.next(20, of(20), &[A, B]), None, "B has not reported");
        pd.report(B, 4_990, of(4_990), report(1_002_000, 0));
        pd.report(A, 4_990, of(4_990), report(0, 0));
        let next = pd.next(5_000, of(5_000), &[A, B]).unwrap();
        assert_eq!(next, ts(1_002_000), "the oldest snapshot holds it back");
        pd.chosen(next, 5_000);
        assert_eq!(pd.grant(A, 5_100).refuse_below, next);
        pd.grant(B, 5_100);
        assert_eq!(pd.next(6_000, of(6_000), &[A, B]), None, "one at a time");
        pd.report(A, 6_100, of(6_100), report(0, 1_002_000));
        assert_eq!(pd.refused(6_200), None, "B may serve older snapshots, and so may who leased from an older PD");
        pd.report(B, 8_500, of(8_500), report(1_002_000, 1_002_000));
        assert_eq!(pd.refused(8_600), Some(next));
        pd.cleared(next);
        assert_eq!(pd.now(), Grant { refuse_below: next, collect_below: next });
        assert_eq!(pd.next(9_000, of(9_000), &[A, B]), None, "the snapshot still stands");
    }

    #[test]
    fn a_store_that_has_gone_is_waited_for_as_long_as_its_lease_and_its_snapshots_as_long_as_a_commit() {
        let mut pd = SafePoint::restore(RULES, Timestamp::ZERO, 0);
        pd.report(A, 100, of(100), report(0, 0));
        pd.report(B, 100, of(100), report(1_000_050, 0));
        pd.report(A, 30_000, of(30_000), report(0, 0));
        assert_eq!(pd.next(30_000, of(30_000), &[A, B]), Some(ts(1_000_050)));
        assert_eq!(pd.next(30_200, of(30_200), &[A, B]), Some(ts(1_029_200)), "B is silent for too long");
        pd.chosen(ts(1_029_200), 30_200);
        pd.grant(A, 30_300);
        pd.grant(B, 29_000);
        pd.report(A, 30_400, of(30_400), report(0, 1_029_200));
        assert_eq!(pd.refused(37_000), None);
        assert_eq!(pd.refused(37_001), Some(ts(1_029_200)));
    }

    #[test]
    fn a_new_pd_waits_out_its_predecessors_leases_and_nothing_is_chosen_without_garbage() {
        let mut pd = SafePoint::restore(RULES, ts(1_000_000), 50_000);
        pd.report(A, 50_001, of(50_001), report(0, 1_000_000));
        assert_eq!(pd.refused(58_000), None);
        assert_eq!(pd.refused(58_001), Some(ts(1_000_000)));
        pd.cleared(ts(1_000_000));
        pd.report(A, 58_002, of(58_002), Report { garbage: false, ..report(0, 1_000_000) });
        assert_eq!(pd.next(60_000, of(60_000), &[A]), None);
        pd.cleared(ts(9_000_000));
        assert_eq!(pd.now().collect_below, ts(1_000_000), "never above what is refused");
    }

    #[test]
    fn nobody_holds_it_back_for_ever() {
        let mut pd = SafePoint::restore(RULES, Timestamp::ZERO, 0);
        pd.report(A, 200_000, of(200_000), report(1_000_000, 0));
        assert_eq!(pd.next(200_000, of(200_000), &[A]), Some(ts(1_100_000)));
    }
}
