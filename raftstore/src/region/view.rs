//! What others see of a replica: readers that want to know whether the lease holds, PD, people.

use std::{fmt, sync::Arc};

use proto::{Peer, Region, Term, wire::RegionError};
use raft::StateRole;

use crate::clock::Instant;

/// What a replica is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes entries from the leader, or waits for one.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks to be elected.
    Candidate,
    /// Leads.
    Leader,
}

impl From<StateRole> for Role {
    fn from(role: StateRole) -> Self {
        match role {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Follower => "follower",
            Role::PreCandidate => "pre-candidate",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
        })
    }
}

/// A replica at the end of a turn.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaView {
    /// Range, epoch, peers.
    pub region: Arc<Region>,
    /// What its last split took off it, as it was then: whoever still has the old borders in mind is told.
    pub split_off: Arc<[Arc<Region>]>,
    /// This store's membership.
    pub peer: Peer,
    /// What it is.
    pub role: Role,
    /// Since when.
    pub term: Term,
    /// Who leads, as far as it knows.
    pub leader: Option<Peer>,
    /// It leads and has applied an entry of its own term: it knows everything that was committed before.
    pub serves: bool,
    /// Its neighbour is about to take it over: nobody reads or writes it until it has, or will not.
    pub merging: bool,
    /// The region was merged into another one, whose replica here does not know it yet: this one waits for its end.
    pub merged_away: bool,
    /// Until then this store alone serves reads of the region.
    pub lease_until: Option<Instant>,
    /// Nobody uses the region: the replica neither ticks nor speaks.
    pub asleep: bool,
    /// Grows when a snapshot begins to replace the replica's state, and again when it has; odd in between.
    pub restorations: u64,
}

impl ReplicaView {
    /// "Your picture of the region is another one", with what takes its place.
    pub fn epoch_mismatch(&self) -> RegionError {
        epoch_mismatch(&self.region, &self.split_off)
    }
}

pub(crate) fn epoch_mismatch(region: &Region, split_off: &[Arc<Region>]) -> RegionError {
    let all: Vec<&Region> = std::iter::once(region).chain(split_off.iter().map(|r| &**r)).collect();
    RegionError::epoch_mismatch(&all)
}
