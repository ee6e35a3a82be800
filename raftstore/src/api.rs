//! What users of a store say and get.

use std::sync::Arc;

use bytes::Bytes;
use proto::{Epoch, LogIndex, Peer, PeerId, Region, RegionId, Term, wire::RegionError};

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

/// One change of a region's membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// A new peer (an id that was never used, a store that has no peer of the region) begins to receive the log. Its
    /// role must be [`proto::PeerRole::Learner`].
    AddLearner(Peer),
    /// A learner that has caught up becomes a voter.
    Promote(PeerId),
    /// A voter becomes a learner.
    Demote(PeerId),
    /// A peer is no member any more; its replica destroys itself.
    Remove(PeerId),
}

/// A region that a split makes, out of the part of its parent from `start` to the next new region's or the parent's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRegion {
    /// Its first key.
    pub start: Bytes,
    /// An id that was never used.
    pub id: RegionId,
    /// Ids that were never used, in the order of the parent's peers: on the same stores, in the same roles.
    pub peers: Vec<PeerId>,
}

/// Why a change of a region was not acknowledged.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdminError {
    /// Not carried out: another store leads, or the caller's picture of the region is old.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Not carried out, and why not; the same request can succeed later only if the reason goes away.
    #[error("{0}")]
    Refused(String),
    /// It may have been carried out, wholly or in part: look at the region.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// How far a peer is, as the leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// Which peer.
    pub peer: PeerId,
    /// Its log agrees with the leader's up to here.
    pub matched: LogIndex,
    /// It was heard of within the last election timeout. The leader itself is.
    pub active: bool,
    /// It waits for, or receives, a snapshot.
    pub needs_snapshot: bool,
}
