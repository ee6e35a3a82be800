//! A replicated, range-partitioned, ordered byte map: one Raft group per region over one engine per store.

pub mod api;
pub mod clock;
pub mod engine;

pub use api::{ProposeError, RegionSnapshot, Target};
pub use clock::{Instant, MonotonicClock};
