//! The only clock that orders transactions.

use std::fmt;

/// How many low bits count events within a millisecond.
pub const LOGICAL_BITS: u32 = 18;

/// A timestamp from PD: physical milliseconds since the Unix epoch << 18 | logical. Total order. 0 is "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Before every timestamp PD hands out.
    pub const ZERO: Timestamp = Timestamp(0);
    /// After every timestamp PD hands out.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// From its two parts; `logical` must be below 2^18.
    pub fn new(physical_ms: u64, logical: u64) -> Self {
        debug_assert!(logical < 1 << LOGICAL_BITS);
        Timestamp(physical_ms << LOGICAL_BITS | logical)
    }
    /// Milliseconds since the Unix epoch, by PD's clock.
    pub fn physical_ms(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }
    /// The count within the millisecond.
    pub fn logical(self) -> u64 {
        self.0 & ((1 << LOGICAL_BITS) - 1)
    }
    /// The next one in the order; `MAX` stays.
    pub fn next(self) -> Self {
        Timestamp(self.0.saturating_add(1))
    }
    /// The one before; `ZERO` stays.
    pub fn prev(self) -> Self {
        Timestamp(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.physical_ms(), self.logical())
    }
}
