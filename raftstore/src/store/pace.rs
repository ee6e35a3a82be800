//! How slow the log's disk is, as PD is told, so that others lead what can be led elsewhere. PURE.
//!
//! ```text
//!   log writes   ▁▁▁▁▁▁▁▁▁▁▁▁████▁███████████▁▁▁▁▁▁▁▁▁▁▁▁▁▁      █ takes a tenth of an election timeout or more
//!   score        0 ────────────╱╱──╱╱╱╱╱╱╱╱──────────╲           up by 15 a second of them, down by 1 a second without
//! ```
//!
//! Time counts, not writes: a disk that is asked little is judged as one that is asked much. Up is quick, because every
//! commit of every region waits; down is slow, because a disk that was ill may be so again, and each change moves
//! leaderships.

use std::time::Duration;

use crate::clock::Instant;

/// Of a second of slow writes: a disk that does nothing else is out of office (50) within four.
const UP_PER_SECOND: f64 = 15.0;
/// Of a second without.
const DOWN_PER_SECOND: f64 = 1.0;
/// The worst.
const WORST: f64 = 100.0;
/// A write is slow that takes so large a part of an election timeout: with the default one 100 ms, ten times what a busy
/// spinning disk needs.
const SLOW_PART: u32 = 10;
/// Between two looks slow writes count at most this long: a machine that stood still (a debugger, a suspend) has no slow
/// disk for that.
const STALL_MAX: Duration = Duration::from_secs(3);

/// The pace of one disk.
#[derive(Debug)]
pub(super) struct Pace {
    slow_from: Duration,
    score: f64,
    /// When a write ended last: those that wait for it have not begun.
    ended: Instant,
    looked: Instant,
    /// Spent in slow writes since then.
    slow: Duration,
}

impl Pace {
    pub(super) fn new(now: Instant, election: Duration) -> Self {
        Pace { slow_from: election / SLOW_PART, score: 0.0, ended: now, looked: now, slow: Duration::ZERO }
    }

    /// A write that was handed out at `begun` is durable. Writes end in order.
    pub(super) fn wrote(&mut self, now: Instant, begun: Instant) {
        let took = now.since(begun.max(self.ended));
        self.ended = now;
        if took >= self.slow_from {
            self.slow += took;
        }
    }

    /// A tick passed; the score, 0 (as it should be) to 100.
    pub(super) fn look(&mut self, now: Instant) -> u32 {
        let elapsed = now.since(std::mem::replace(&mut self.looked, now));
        let slow = std::mem::take(&mut self.slow).min(STALL_MAX);
        let well = elapsed.saturating_sub(slow);
        let change = slow.as_secs_f64() * UP_PER_SECOND - well.as_secs_f64() * DOWN_PER_SECOND;
        self.score = (self.score + change).clamp(0.0, WORST);
        self.score.round() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(Duration::from_millis(ms))
    }

    /// Writes of `took` ms, one after the other, for `seconds`; the score then.
    fn write(pace: &mut Pace, from: u64, seconds: u64, took: u64) -> u32 {
        let (end, mut now, mut score) = (from + seconds * 1000, from, 0);
        while now < end {
            pace.wrote(at(now + took), at(now));
            now += took;
            score = pace.look(at(now));
        }
        score
    }

    #[test]
    fn a_slow_disk_is_out_of_office_in_seconds_and_back_in_a_minute() {
        let mut pace = Pace::new(at(0), Duration::from_secs(1));
        assert_eq!(write(&mut pace, 0, 60, 20), 0, "a spinning disk is no slow one");
        assert!(write(&mut pace, 60_000, 3, 150) < 50);
        assert!(write(&mut pace, 63_150, 2, 150) > 50);
        assert_eq!(write(&mut pace, 65_400, 60, 150), 100);
        assert!(write(&mut pace, 126_000, 45, 5) > 50);
        assert_eq!(write(&mut pace, 171_000, 60, 5), 0);
    }

    #[test]
    fn one_long_write_is_a_hiccup_and_those_that_wait_for_it_are_not_counted_twice() {
        let mut pace = Pace::new(at(0), Duration::from_secs(1));
        for n in 0..10 {
            pace.wrote(at(2_000), at(n * 100));
        }
        assert_eq!(pace.look(at(2_000)), 30);
        pace.wrote(at(3_602_000), at(2_000));
        assert!(pace.look(at(3_602_000)) < 50, "the machine was asleep for an hour");
    }
}
