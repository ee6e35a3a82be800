//! The store's own records, byte by byte. All integers are big-endian; every record starts with its version.
//!
//! ```text
//! RocksDB, column family `meta`
//!   key                                   value
//!   'R' region u64                        1u8 ‖ wire::Region (protobuf)      region state: range, epoch, peers
//!   'A' region u64                        1u8 ‖ index u64 ‖ term u64 ‖ commit u64    apply state
//!   'T' region u64                        1u8 ‖ peer u64 ‖ conf_ver u64 ‖ version u64   tombstone of a destroyed replica
//!                                         [‖ target u64 ‖ version u64]        of a region that was merged into another
//!   'M' region u64                        1u8 ‖ wire::MergeRecord (protobuf)  where a region is in its merges, if in any
//!   'S' region u64                        1u8 ‖ wire::SnapshotMarker (protobuf)      a snapshot is being taken
//!
//! RocksDB, column families `data`, `lock`
//!   the users' keys as they are: a region's records are those inside its range
//!
//! raft-engine, per region
//!   entries                               eraftpb.Entry (protobuf), by index
//!   'h'                                   eraftpb.HardState (protobuf)
//!   't'                                   1u8 ‖ index u64 ‖ term u64         the entry before the first
//!
//! folders beside RocksDB's files
//!   made-R-N, received-R-N                the parts of a snapshot (SST), `0000.sst` and on; N counts within a process
//!
//! a normal entry's data                   wire::Command (protobuf); its `format` is COMMAND_FORMAT; empty: no-op
//! context of a heartbeat and its response  sent_ns u64 ‖ raft's own context   see region::lease
//! ```
//!
//! The apply state goes into the very batch that changes the data. Its commit index is that of the last applied
//! entry: raft-rs panics when it starts with applied > commit, and the hard state's commit is not synced.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use proto::{Epoch, LogIndex, PeerId, Region, RegionId, Term, wire};

use crate::{log::Position, region::merge::Merges};

/// Format of the commands this version writes; an entry of another format stops the store.
pub const COMMAND_FORMAT: u32 = 1;

pub(crate) const VERSION: u8 = 1;
const REGION: u8 = b'R';
const APPLY: u8 = b'A';
const TOMBSTONE: u8 = b'T';
const SNAPSHOT: u8 = b'S';
const MERGES: u8 = b'M';

/// Where every bootstrapped region's log starts: as if entries up to here had been applied and cut. It is not 0, so
/// that an empty replica can't be brought up by appends alone and needs a snapshot.
pub const INITIAL: Position = Position { index: LogIndex(5), term: Term(5) };

/// How far a replica has applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyState {
    /// The last applied entry.
    pub applied: Position,
    /// Known committed when this was written; at least `applied`.
    pub commit: LogIndex,
}

/// What stays of a replica that was destroyed: who it was, so that no late message brings it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The peer; a replica here later has another id.
    pub peer: PeerId,
    /// The epoch of the region in which it was a peer no more.
    pub epoch: Epoch,
    /// Of a region that is no more: which one took it over, and that one's version since.
    pub merged: Option<(RegionId, u64)>,
}

/// A record does not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct BadRecord {
    /// Which kind of record.
    pub what: &'static str,
    /// What is wrong with it.
    pub why: String,
}

fn bad(what: &'static str, why: impl Into<String>) -> BadRecord {
    BadRecord { what, why: why.into() }
}

fn key(kind: u8, region: RegionId) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u8(kind);
    key.put_u64(region.0);
    key.freeze()
}

/// Key of a region's state in `meta`.
pub fn region_key(region: RegionId) -> Bytes {
    key(REGION, region)
}

/// First key of all region states in `meta`, and the first key after them.
pub fn region_keys() -> (Bytes, Bytes) {
    (Bytes::from_static(&[REGION]), Bytes::from_static(&[REGION + 1]))
}

/// Key of a region's apply state in `meta`.
pub fn apply_key(region: RegionId) -> Bytes {
    key(APPLY, region)
}

/// Key of a region's tombstone in `meta`.
pub fn tombstone_key(region: RegionId) -> Bytes {
    key(TOMBSTONE, region)
}

/// First key of all tombstones in `meta`, and the first key after them.
pub fn tombstone_keys() -> (Bytes, Bytes) {
    (Bytes::from_static(&[TOMBSTONE]), Bytes::from_static(&[TOMBSTONE + 1]))
}

/// The region whose record in `meta` has this key.
pub fn region_of_key(key: &[u8]) -> Result<RegionId, BadRecord> {
    let id = key.get(1..).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes);
    id.map(RegionId).ok_or_else(|| bad("key of a region's record", format!("{} bytes long", key.len())))
}

/// Key of the marker of a snapshot that a region is taking, in `meta`.
pub fn snapshot_key(region: RegionId) -> Bytes {
    key(SNAPSHOT, region)
}

/// Key of what is known of a region's merges, in `meta`.
pub fn merges_key(region: RegionId) -> Bytes {
    key(MERGES, region)
}

/// First key of all such markers in `meta`, and the first key after them.
pub fn snapshot_keys() -> (Bytes, Bytes) {
    (Bytes::from_static(&[SNAPSHOT]), Bytes::from_static(&[SNAPSHOT + 1]))
}

fn versioned<'a>(what: &'static str, bytes: &'a [u8], body: Option<usize>) -> Result<&'a [u8], BadRecord> {
    match bytes.split_first() {
        Some((&VERSION, rest)) if body.is_none_or(|length| rest.len() == length) => Ok(rest),
        Some((&VERSION, rest)) => Err(bad(what, format!("{} bytes after the version", rest.len()))),
        Some((other, _)) => Err(bad(what, format!("version {other}, this program knows {VERSION}"))),
        None => Err(bad(what, "empty")),
    }
}

/// A region state's value.
pub fn encode_region(region: &Region) -> Bytes {
    let region = wire::Region::from(region);
    let mut value = BytesMut::with_capacity(1 + region.encoded_len());
    value.put_u8(VERSION);
    region.encode(&mut value).expect("a buffer grows");
    value.freeze()
}

/// Reads [`encode_region`]'s bytes.
pub fn decode_region(bytes: &[u8]) -> Result<Region, BadRecord> {
    let what = "region state";
    let region = wire::Region::decode(versioned(what, bytes, None)?).map_err(|e| bad(what, e.to_string()))?;
    Region::try_from(region).map_err(|e| bad(what, e.to_string()))
}

/// An apply state's value.
pub fn encode_apply(state: ApplyState) -> Bytes {
    let mut value = BytesMut::with_capacity(25);
    value.put_u8(VERSION);
    value.put_u64(state.applied.index.0);
    value.put_u64(state.applied.term.0);
    value.put_u64(state.commit.0);
    value.freeze()
}

/// Reads [`encode_apply`]'s bytes.
pub fn decode_apply(bytes: &[u8]) -> Result<ApplyState, BadRecord> {
    let mut rest = versioned("apply state", bytes, Some(24))?;
    let applied = Position { index: LogIndex(rest.get_u64()), term: Term(rest.get_u64()) };
    let commit = LogIndex(rest.get_u64());
    if commit < applied.index {
        return Err(bad("apply state", format!("applied {} is behind commit {commit}", applied.index)));
    }
    Ok(ApplyState { applied, commit })
}

/// A tombstone's value.
pub fn encode_tombstone(tombstone: Tombstone) -> Bytes {
    let mut value = BytesMut::with_capacity(41);
    value.put_u8(VERSION);
    value.put_u64(tombstone.peer.0);
    value.put_u64(tombstone.epoch.conf_ver);
    value.put_u64(tombstone.epoch.version);
    if let Some((into, version)) = tombstone.merged {
        value.put_u64(into.0);
        value.put_u64(version);
    }
    value.freeze()
}

/// Reads [`encode_tombstone`]'s bytes.
pub fn decode_tombstone(bytes: &[u8]) -> Result<Tombstone, BadRecord> {
    let what = "tombstone";
    let mut rest = versioned(what, bytes, None)?;
    if ![24, 40].contains(&rest.len()) {
        return Err(bad(what, format!("{} bytes after the version", rest.len())));
    }
    let peer = PeerId(rest.get_u64());
    let epoch = Epoch { conf_ver: rest.get_u64(), version: rest.get_u64() };
    let merged = rest.has_remaining().then(|| (RegionId(rest.get_u64()), rest.get_u64()));
    Ok(Tombstone { peer, epoch, merged })
}

/// The value of what is known of a region's merges.
pub fn encode_merges(merges: &Merges) -> Bytes {
    let record = merges.to_wire();
    let mut value = BytesMut::with_capacity(1 + record.encoded_len());
    value.put_u8(VERSION);
    record.encode(&mut value).expect("a buffer grows");
    value.freeze()
}

/// Reads [`encode_merges`]'s bytes.
pub fn decode_merges(bytes: &[u8]) -> Result<Merges, BadRecord> {
    let what = "record of merges";
    let record = wire::MergeRecord::decode(versioned(what, bytes, None)?).map_err(|e| bad(what, e.to_string()))?;
    Merges::from_wire(record).map_err(|e| bad(what, e))
}

/// A log position's value.
pub fn encode_position(position: Position) -> Bytes {
    let mut value = BytesMut::with_capacity(17);
    value.put_u8(VERSION);
    value.put_u64(position.index.0);
    value.put_u64(position.term.0);
    value.freeze()
}

/// Reads [`encode_position`]'s bytes.
pub fn decode_position(bytes: &[u8]) -> Result<Position, BadRecord> {
    let mut rest = versioned("log position", bytes, Some(16))?;
    Ok(Position { index: LogIndex(rest.get_u64()), term: Term(rest.get_u64()) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::{Epoch, KeyRange, Peer, PeerId, PeerRole, StoreId};

    use super::*;

    proptest! {
        #[test]
        fn apply_states_survive(index: u64, term: u64, ahead in 0..1000u64) {
            let index = index.min(u64::MAX - ahead);
            let applied = Position { index: LogIndex(index), term: Term(term) };
            let state = ApplyState { applied, commit: LogIndex(index + ahead) };
            prop_assert_eq!(decode_apply(&encode_apply(state)), Ok(state));
            prop_assert_eq!(decode_position(&encode_position(applied)), Ok(applied));
            let epoch = Epoch { conf_ver: term, version: ahead };
            for merged in [None, Some((RegionId(term), index))] {
                let tombstone = Tombstone { peer: PeerId(index), epoch, merged };
                prop_assert_eq!(decode_tombstone(&encode_tombstone(tombstone)), Ok(tombstone));
            }
        }

        #[test]
        fn regions_survive(id in 1..u64::MAX, start: Vec<u8>, conf_ver: u64, version: u64, stores in 1..5u64) {
            let peers = (1..=stores)
                .map(|s| Peer { id: PeerId(s), store: StoreId(s), role: PeerRole::Voter })
                .collect();
            let range = KeyRange::new(start, Bytes::new());
            let region = Region { id: RegionId(id), range, epoch: Epoch { conf_ver, version }, peers };
            prop_assert_eq!(decode_region(&encode_region(&region)), Ok(region));
        }

        #[test]
        fn random_bytes_are_refused_or_read(bytes: Vec<u8>) {
            let _ = (decode_region(&bytes), decode_apply(&bytes), decode_position(&bytes), decode_tombstone(&bytes));
            let _ = decode_merges(&bytes);
        }

        #[test]
        fn keys_order_by_region(a: u64, b: u64) {
            prop_assert_eq!(a.cmp(&b), region_key(RegionId(a)).cmp(&region_key(RegionId(b))));
            let (first, end) = region_keys();
            prop_assert!(first <= region_key(RegionId(a)) && region_key(RegionId(a)) < end);
            prop_assert!(!(first <= apply_key(RegionId(a)) && apply_key(RegionId(a)) < end));
            prop_assert!(!(first <= tombstone_key(RegionId(a)) && tombstone_key(RegionId(a)) < end));
            prop_assert_eq!(region_of_key(&tombstone_key(RegionId(a))), Ok(RegionId(a)));
        }
    }

    #[test]
    fn another_version_is_named() {
        let error = decode_apply(&[9; 25]).unwrap_err();
        assert_eq!(error.to_string(), "apply state: version 9, this program knows 1");
    }
}
