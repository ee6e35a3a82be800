//! Time as leases see it.

use std::{ops::Add, time::Duration};

/// A reading of a clock that never steps back and does not stop while the machine is suspended
/// (CLOCK_BOOTTIME). Only comparable within one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub Duration);

impl Instant {
    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        Instant(self.0 + d)
    }
}

/// The driver that reads the clock; the simulator's is virtual.
pub trait MonotonicClock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Instant;
}
