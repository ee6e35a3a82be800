//! The timestamp oracle: strictly growing 64-bit timestamps that survive the loss of whoever hands them out.
//!
//! ```text
//!            handed out                    window, persisted ahead
//!  ──────────────────────────●─────────────────────────┤bound
//!                            last                       no timestamp at or above it leaves
//! ```
//!
//! A timestamp is physical milliseconds << 18 | logical. Before any at or above `bound` leaves, a larger
//! bound is durable in region 1; a new PD starts at the durable bound, so above whatever the old one may
//! have handed out. The wall clock only pulls the physical part forward: when it steps back, or when the
//! bound of 2^18 a millisecond is reached, the count simply goes on.
//!
//! A broken wall clock must not pull the whole cluster into the future, for there is no way back. So the
//! physical part follows it at most [`MAX_AHEAD_MS`] beyond the median of the stores' clocks; and before a
//! majority of the stores has reported its clock, at most that far beyond the last median, or the durable bound.

use proto::{Timestamp, timestamp::LOGICAL_BITS};

/// How much is persisted ahead. Short, so that after a fail-over (which takes an election) the wall clock has
/// already passed the old bound and physical time does not stand still; long against a slow write.
pub const WINDOW_MS: u64 = 1_500;
/// With less than this left of the window a busy PD extends it in the background.
pub const REFRESH_BELOW_MS: u64 = 1_000;
/// How far physical time may run ahead of the stores' median clock: far above honest drift (NTP keeps
/// machines within tens of milliseconds), far below what would do lasting harm.
pub const MAX_AHEAD_MS: u64 = 10_000;
/// Timestamps of one request: a quarter of what a millisecond holds.
pub const MAX_COUNT: u32 = 1 << 16;

/// What bounds the wall clock's pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockWitness {
    /// The lower median of the clocks that a majority of the stores reported, brought forward to now.
    Median(u64),
    /// Too few stores have reported to this PD.
    Unknown,
}

/// Why there is no timestamp yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Persist this window bound (milliseconds), call [`Tso::extended`], then ask again.
    Extend(u64),
    /// A new cluster has no past to hold on to: first a majority of the stores must tell their clocks.
    ClocksUnknown,
}

/// The core. Hands out nothing before its first [`Tso::extended`].
#[derive(Clone, Debug)]
pub struct Tso {
    /// Physical time does not follow the wall clock beyond it. `None`: a new cluster, and no clock reported.
    ceiling_ms: Option<u64>,
    /// Durable: timestamps stay below `bound_ms << 18`.
    bound_ms: u64,
    /// The last one handed out, or the last the old PD may have.
    last: u64,
    /// Whether any was handed out since the last look of [`Tso::refresh`].
    used: bool,
    /// Requests answered, and timestamps they took.
    served: (u64, u64),
}

impl Tso {
    /// A new PD's oracle over the durable bound (0 when there is none yet).
    pub fn restore(durable_bound_ms: u64) -> Self {
        Tso {
            ceiling_ms: (durable_bound_ms > 0).then_some(durable_bound_ms + MAX_AHEAD_MS),
            bound_ms: durable_bound_ms,
            last: (durable_bound_ms << LOGICAL_BITS).saturating_sub(1),
            used: false,
            served: (0, 0),
        }
    }

    /// Physical time that may be used now: the wall clock, held back by its witness.
    fn physical_ms(&mut self, wall_ms: u64, witness: ClockWitness) -> Option<u64> {
        if let ClockWitness::Median(median) = witness {
            self.ceiling_ms = Some(median.saturating_add(MAX_AHEAD_MS));
        }
        self.ceiling_ms.map(|ceiling| wall_ms.min(ceiling))
    }

    /// Takes `count` (1 ..= [`MAX_COUNT`]) consecutive timestamps and returns the last of them.
    pub fn allocate(&mut self, wall_ms: u64, witness: ClockWitness, count: u32) -> Result<Timestamp, Shortage> {
        assert!((1..=MAX_COUNT).contains(&count), "count {count} of timestamps is out of bounds");
        let physical = self.physical_ms(wall_ms, witness).ok_or(Shortage::ClocksUnknown)?;
        let first = (self.last + 1).max(physical << LOGICAL_BITS);
        let last = first + u64::from(count) - 1;
        if last >> LOGICAL_BITS >= self.bound_ms {
            return Err(Shortage::Extend((last >> LOGICAL_BITS) + WINDOW_MS));
        }
        assert!(first > self.last, "timestamps only grow");
        self.last = last;
        self.used = true;
        self.served = (self.served.0 + 1, self.served.1 + u64::from(count));
        Ok(Timestamp(last))
    }

    /// The bound to persist now so that busy callers never meet the end of the window; `None` when nobody
    /// asked since the last look, or enough is left.
    pub fn refresh(&mut self, wall_ms: u64, witness: ClockWitness) -> Option<u64> {
        let physical = self.physical_ms(wall_ms, witness)?.max(self.last >> LOGICAL_BITS);
        let used = std::mem::take(&mut self.used);
        (used && physical + REFRESH_BELOW_MS > self.bound_ms).then_some(physical + WINDOW_MS)
    }

    /// A bound is durable. Bounds only grow; an older one changes nothing.
    pub fn extended(&mut self, bound_ms: u64) {
        self.bound_ms = self.bound_ms.max(bound_ms);
    }

    /// The last timestamp that may have been handed out.
    pub fn last(&self) -> Timestamp {
        Timestamp(self.last)
    }
    /// Requests answered since this PD took office, and the timestamps they took.
    pub fn served(&self) -> (u64, u64) {
        self.served
    }
    /// The durable bound, milliseconds.
    pub fn bound_ms(&self) -> u64 {
        self.bound_ms
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What may happen to PD, one after the other.
    #[derive(Clone, Debug)]
    enum Step {
        /// A request at this wall clock (milliseconds), with this many timestamps; the stores' clocks are known or not.
        Ask(u64, u32, bool),
        /// The window is extended in the background.
        Refresh(u64),
        /// PD is lost; whether a write on its way becomes durable all the same.
        Crash { lands: bool },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..60_000u64, 1..=MAX_COUNT, any::<bool>()).prop_map(|(w, c, k)| Step::Ask(w, c, k)),
            2 => (0..60_000u64).prop_map(Step::Refresh),
            1 => any::<bool>().prop_map(|lands| Step::Crash { lands }),
        ]
    }

    proptest! {
        /// Whatever clocks say and whenever PD is lost, timestamps grow and stay below the durable bound.
        #[test]
        fn timestamps_only_grow(steps in prop::collection::vec(step(), 1..200)) {
            let (mut durable, mut on_its_way, mut newest) = (0, None, Timestamp::ZERO);
            let mut tso = Tso::restore(0);
            for step in steps {
                match step {
                    Step::Ask(wall, count, known) => {
                        let witness = if known { ClockWitness::Median(30_000) } else { ClockWitness::Unknown };
                        match tso.allocate(wall, witness, count) {
                            Ok(last) => {
                                let first = Timestamp(last.0 - u64::from(count) + 1);
                                prop_assert!(first > newest);
                                prop_assert!(last.physical_ms() < durable);
                                newest = last;
                            }
                            Err(Shortage::Extend(bound)) => {
                                prop_assert!(bound > durable);
                                // Either the write completes before anything else, or PD may be lost under it.
                                on_its_way = Some(bound);
                                if wall % 3 > 0 {
                                    durable = bound;
                                    tso.extended(bound);
                                }
                            }
                            Err(Shortage::ClocksUnknown) => prop_assert!(!known && newest == Timestamp::ZERO),
                        }
                    }
                    Step::Refresh(wall) => {
                        if let Some(bound) = tso.refresh(wall, ClockWitness::Median(30_000)) {
                            durable = durable.max(bound);
                            tso.extended(bound);
                        }
                    }
                    Step::Crash { lands } => {
                        durable = durable.max(on_its_way.take().filter(|_| lands).unwrap_or(0));
                        tso = Tso::restore(durable);
                    }
                }
            }
        }
    }
}
