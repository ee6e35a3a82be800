//! What users of a store say and get.

use std::sync::Arc;

use proto::{Epoch, LogIndex, Region, RegionId, Term, wire::RegionError};

use crate::engine::Snapshot;

/// Which region a request means, as the caller knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The region.
    pub region: RegionId,
    /// Its epoch; another one is refused with `EpochMismatch`.
    pub epoch: Epoch,
    /// When set: only if this store leads the region in exactly this term.
    pub term: Option<Term>,
}

/// A consistent view of a region that was current (linearizable) at some instant between call and answer.
#[derive(Clone)]
pub struct RegionSnapshot {
    /// The engine's view; not restricted to the region's range, the reader keeps inside it.
    pub engine: Arc<dyn Snapshot>,
    /// The region as of the view.
    pub region: Arc<Region>,
    /// The term in which this store leads it.
    pub term: Term,
    /// What had been applied at least.
    pub applied: LogIndex,
}

/// Why a proposal was not acknowledged.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not applied, now or later: safe to try again elsewhere.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// It may have been applied or may still be: leadership was lost or the deadline passed on the way.
    #[error("the outcome of the proposal is unknown: {0}")]
    Unknown(String),
}
