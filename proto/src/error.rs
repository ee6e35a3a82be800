//! Short constructors for the wire errors, and how people read them.

use std::fmt;

use crate::{
    PeerId, Region, RegionId, Term,
    region::Peer,
    wire::{self, RegionError, region_error::Kind},
};

impl RegionError {
    fn of(kind: Kind, message: String) -> Self {
        RegionError { kind: Some(kind), message }
    }
    /// Somebody else leads, or nobody yet.
    pub fn not_leader(region: RegionId, leader: Option<Peer>, term: Term) -> Self {
        let who = leader.map_or("nobody yet".to_string(), |p| format!("{} on {}", p.id, p.store));
        Self::of(
            Kind::NotLeader(wire::NotLeader { region_id: region.0, leader: leader.map(Into::into), term: term.0 }),
            format!("not the leader of region {}: leader is {who} in term {}", region.0, term.0),
        )
    }
    /// The caller's picture of borders or peers is another one.
    pub fn epoch_mismatch(regions: &[&Region]) -> Self {
        let now: Vec<_> = regions.iter().map(|r| format!("{}@{}", r.id, r.epoch)).collect();
        Self::of(
            Kind::EpochMismatch(wire::EpochMismatch { regions: regions.iter().map(|&r| r.into()).collect() }),
            format!("region epoch changed; now {}", now.join(", ")),
        )
    }
    /// This store has no such replica.
    pub fn region_not_found(region: RegionId) -> Self {
        Self::of(
            Kind::RegionNotFound(wire::RegionNotFound { region_id: region.0 }),
            format!("no replica of region {} on this store", region.0),
        )
    }
    /// A key outside the region's borders.
    pub fn key_not_in_region(key: &[u8], region: &Region) -> Self {
        Self::of(
            Kind::KeyNotInRegion(wire::KeyNotInRegion {
                key: bytes::Bytes::copy_from_slice(key),
                region: Some(region.into()),
            }),
            format!("key is outside region {}", region.id.0),
        )
    }
    /// A bounded queue is full: `what` names it.
    pub fn server_busy(what: &str, backoff_ms: u64) -> Self {
        Self::of(Kind::ServerBusy(wire::ServerBusy { backoff_ms }), format!("{what} is full"))
    }
    /// Another region is about to take this one over: it will be found there, or serve again.
    pub fn merging(region: RegionId) -> Self {
        // Where it is asked for again that is waited for.
        Self::of(
            Kind::ServerBusy(wire::ServerBusy { backoff_ms: 1 }),
            format!("region {} is being merged into its neighbour", region.0),
        )
    }
    /// Proposed in a term that has ended; certainly not applied.
    pub fn stale_command() -> Self {
        Self::of(Kind::StaleCommand(wire::StaleCommand {}), "the term of the proposal has ended".into())
    }
    /// The caller stopped waiting.
    pub fn deadline_exceeded(what: &str) -> Self {
        Self::of(Kind::DeadlineExceeded(wire::DeadlineExceeded {}), format!("deadline passed while {what}"))
    }
    /// A write that may have been carried out, or may still be.
    pub fn outcome_unknown(message: String) -> Self {
        Self::of(Kind::OutcomeUnknown(wire::OutcomeUnknown {}), message)
    }
    /// Below the disk reserve writes are refused.
    pub fn disk_full(message: String) -> Self {
        Self::of(Kind::DiskFull(wire::DiskFull {}), message)
    }
    /// From another cluster.
    pub fn cluster_mismatch(expected: crate::ClusterId, actual: crate::ClusterId) -> Self {
        Self::of(
            Kind::ClusterMismatch(wire::ClusterMismatch { expected: expected.0, actual: actual.0 }),
            format!("message of cluster {:x}, this node belongs to {:x}", actual.0, expected.0),
        )
    }
    /// Whether it may be over in a moment: nobody is known to lead yet, a merge is under way, or a queue was full.
    pub fn is_passing(&self) -> bool {
        match &self.kind {
            Some(Kind::NotLeader(_)) => self.leader_hint().is_none(),
            Some(Kind::ServerBusy(_)) => true,
            _ => false,
        }
    }
    /// The leader a `NotLeader` names.
    pub fn leader_hint(&self) -> Option<Peer> {
        match &self.kind {
            Some(Kind::NotLeader(n)) => n.leader.and_then(|p| Peer::try_from(p).ok()).filter(|p| p.id != PeerId(0)),
            _ => None,
        }
    }
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.kind, self.message.is_empty()) {
            (_, false) => f.write_str(&self.message),
            (Some(kind), true) => write!(f, "{kind:?}"),
            (None, true) => f.write_str("unknown region error"),
        }
    }
}
impl std::error::Error for RegionError {}
