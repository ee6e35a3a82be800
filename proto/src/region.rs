//! Regions: a range of keys, an epoch, and the peers that replicate it.

use std::fmt;

use bytes::Bytes;

use crate::{PeerId, RegionId, StoreId, wire};

/// Keys from `start` (inclusive) to `end` (exclusive); an empty `end` is "no upper border".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// First key inside.
    pub start: Bytes,
    /// First key outside; empty: none.
    pub end: Bytes,
}

impl KeyRange {
    /// A range from its borders.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        KeyRange { start: start.into(), end: end.into() }
    }
    /// Whether no key lies inside.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }
    /// Whether `key` lies inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_ref() <= key && (self.end.is_empty() || key < self.end.as_ref())
    }
    /// Whether all of `other` lies inside.
    pub fn covers(&self, other: &KeyRange) -> bool {
        self.start <= other.start && (self.end.is_empty() || (!other.end.is_empty() && other.end <= self.end))
    }
    /// The common part, if it is not empty.
    pub fn intersect(&self, other: &KeyRange) -> Option<KeyRange> {
        let start = self.start.clone().max(other.start.clone());
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            _ => self.end.clone().min(other.end.clone()),
        };
        (end.is_empty() || start < end).then_some(KeyRange { start, end })
    }
}

/// Versions of a region's membership and borders. A request made under another epoch is answered with
/// `EpochMismatch`, at propose and again at apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Counts membership changes.
    pub conf_ver: u64,
    /// Counts border changes: split, merge.
    pub version: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.conf_ver, self.version)
    }
}

/// What a peer may do in its region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PeerRole {
    /// Votes and counts for quorum.
    #[default]
    Voter,
    /// Receives the log only.
    Learner,
    /// Becomes a voter when the joint state ends.
    IncomingVoter,
    /// Becomes a learner when the joint state ends.
    DemotingVoter,
}

/// A membership record: which store holds a replica, under which peer id, in which role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Unique in the cluster, never used again.
    pub id: PeerId,
    /// Where the replica lives.
    pub store: StoreId,
    /// What it may do.
    pub role: PeerRole,
}

/// Range + epoch + peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Unique in the cluster, never used again.
    pub id: RegionId,
    /// User keys (no timestamps).
    pub range: KeyRange,
    /// Version of range and peers.
    pub epoch: Epoch,
    /// At most one per store.
    pub peers: Vec<Peer>,
}

impl Region {
    /// The peer on `store`, if there is one.
    pub fn peer_on(&self, store: StoreId) -> Option<Peer> {
        self.peers.iter().copied().find(|p| p.store == store)
    }
    /// The peer with this id, if there is one.
    pub fn peer(&self, id: PeerId) -> Option<Peer> {
        self.peers.iter().copied().find(|p| p.id == id)
    }
}

/// A message from the wire lacks something it must have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(pub &'static str);

impl From<&KeyRange> for wire::KeyRange {
    fn from(r: &KeyRange) -> Self {
        wire::KeyRange { start_key: r.start.clone(), end_key: r.end.clone() }
    }
}
impl From<wire::KeyRange> for KeyRange {
    fn from(r: wire::KeyRange) -> Self {
        KeyRange { start: r.start_key, end: r.end_key }
    }
}
impl From<Epoch> for wire::RegionEpoch {
    fn from(e: Epoch) -> Self {
        wire::RegionEpoch { conf_ver: e.conf_ver, version: e.version }
    }
}
impl From<wire::RegionEpoch> for Epoch {
    fn from(e: wire::RegionEpoch) -> Self {
        Epoch { conf_ver: e.conf_ver, version: e.version }
    }
}
impl From<Peer> for wire::Peer {
    fn from(p: Peer) -> Self {
        let role = match p.role {
            PeerRole::Voter => wire::PeerRole::Voter,
            PeerRole::Learner => wire::PeerRole::Learner,
            PeerRole::IncomingVoter => wire::PeerRole::IncomingVoter,
            PeerRole::DemotingVoter => wire::PeerRole::DemotingVoter,
        };
        wire::Peer { id: p.id.0, store_id: p.store.0, role: role as i32 }
    }
}
impl TryFrom<wire::Peer> for Peer {
    type Error = Malformed;
    fn try_from(p: wire::Peer) -> Result<Self, Malformed> {
        let role = match wire::PeerRole::try_from(p.role).map_err(|_| Malformed("unknown peer role"))? {
            wire::PeerRole::Voter => PeerRole::Voter,
            wire::PeerRole::Learner => PeerRole::Learner,
            wire::PeerRole::IncomingVoter => PeerRole::IncomingVoter,
            wire::PeerRole::DemotingVoter => PeerRole::DemotingVoter,
        };
        if p.id == 0 || p.store_id == 0 {
            return Err(Malformed("peer without id or store"));
        }
        Ok(Peer { id: PeerId(p.id), store: StoreId(p.store_id), role })
    }
}
impl From<&Region> for wire::Region {
    fn from(r: &Region) -> Self {
        wire::Region {
            id: r.id.0,
            range: Some((&r.range).into()),
            epoch: Some(r.epoch.into()),
            peers: r.peers.iter().map(|&p| p.into()).collect(),
        }
    }
}
impl TryFrom<wire::Region> for Region {
    type Error = Malformed;
    fn try_from(r: wire::Region) -> Result<Self, Malformed> {
        if r.id == 0 {
            return Err(Malformed("region without id"));
        }
        let range: KeyRange = r.range.ok_or(Malformed("region without range"))?.into();
        if !range.end.is_empty() && range.start >= range.end {
            return Err(Malformed("region with an empty range"));
        }
        Ok(Region {
            id: RegionId(r.id),
            range,
            epoch: r.epoch.ok_or(Malformed("region without epoch"))?.into(),
            peers: r.peers.into_iter().map(Peer::try_from).collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(start, end)
    }

    #[test]
    fn ranges_treat_an_empty_end_as_unbounded() {
        assert!(range("b", "").contains(b"zzz"));
        assert!(!range("b", "d").contains(b"d"));
        assert_eq!(range("a", "c").intersect(&range("b", "")), Some(range("b", "c")));
        assert_eq!(range("a", "b").intersect(&range("b", "c")), None);
        assert!(range("a", "").covers(&range("b", "c")));
        assert!(!range("a", "c").covers(&range("b", "")));
    }

    #[test]
    fn a_region_survives_the_wire_and_bad_ones_are_refused() {
        let region = Region {
            id: RegionId(7),
            range: range("a", "b"),
            epoch: Epoch { conf_ver: 1, version: 2 },
            peers: vec![Peer { id: PeerId(3), store: StoreId(4), role: PeerRole::Learner }],
        };
        let wire = wire::Region::from(&region);
        assert_eq!(Region::try_from(wire.clone()), Ok(region));
        let mut bad = wire.clone();
        bad.peers[0].role = 99;
        assert!(Region::try_from(bad).is_err());
        let empty = wire::Region { range: Some((&range("b", "b")).into()), ..wire };
        assert!(Region::try_from(empty).is_err());
    }
}
