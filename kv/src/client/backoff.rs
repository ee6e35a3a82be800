//! Pauses between attempts: doubling, bounded, with jitter from a seed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The client's source of jitter: splitmix64 from a seed, so that a simulation repeats.
pub(crate) struct Jitter(AtomicU64);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Jitter(AtomicU64::new(seed))
    }
    fn next(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Between half of `pause` and all of it: callers that failed together don't come back together.
    fn spread(&self, pause: Duration) -> Duration {
        let half = pause / 2;
        half + Duration::from_nanos(self.next() % (half.as_nanos() as u64 + 1))
    }
}

/// The pauses of one operation, and its patience.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
    lost: u32,
}

/// How long the first attempt waits for its answer. A store that hangs is given up for its successor well within the
/// service level for fail-over; one that is only slow is waited for longer the next time.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// How long an attempt waits after `lost` ones whose answers did not come.
pub(crate) fn patience(lost: u32) -> Duration {
    FIRST_PATIENCE * (1 << lost.min(5))
}

impl Backoff {
    /// While a leader is sought: an election takes on the order of a second, so up to a tenth of that.
    pub(crate) const ROUTING: Backoff =
        Backoff { next: Duration::from_millis(2), max: Duration::from_millis(100), lost: 0 };
    /// While another transaction's lock is waited for: most are gone within one commit.
    pub(crate) const LOCK: Backoff =
        Backoff { next: Duration::from_millis(1), max: Duration::from_millis(40), lost: 0 };

    /// How long the next attempt waits.
    pub(crate) fn patience(&self) -> Duration {
        patience(self.lost)
    }

    /// An answer did not come.
    pub(crate) fn lost(&mut self) {
        self.lost += 1;
    }

    /// The next pause.
    pub(crate) fn next(&mut self, jitter: &Jitter) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        jitter.spread(pause)
    }

    /// The pause before the `count`th repetition (from 1).
    pub(crate) fn nth(self, count: u32, jitter: &Jitter) -> Duration {
        jitter.spread(self.next.saturating_mul(1 << count.saturating_sub(1).min(16)).min(self.max))
    }
}
