//! What travels in a snapshot besides its files, and whether a replica may take it.

use std::collections::BTreeSet;

use prost::Message as _;
use proto::{Cf, LogIndex, PeerId, Region, Term, wire};
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType, Snapshot};

use crate::{
    engine::{PART_FAMILIES, Part},
    log::Position,
    region::{
        membership::{conf_state, same},
        merge::Merges,
    },
};

/// Format of the contents this version writes and reads.
const FORMAT: u32 = 1;
/// Parts of one snapshot at most: with their size some thousand times a region.
const PARTS_AT_MOST: usize = 4096;

/// The region as of a snapshot, where in its log that is, and the files that hold its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The last applied entry.
    pub position: Position,
    /// Range, epoch, peers at that entry.
    pub region: Region,
    /// Where the region is in its merges at that entry.
    pub merges: Merges,
    /// In the order of their names.
    pub parts: Vec<Part>,
}

/// A content without its position.
pub(super) fn to_wire(region: &Region, merges: &Merges, parts: &[Part]) -> wire::SnapshotContent {
    let part = |p: &Part| wire::SnapshotPart { cf: p.cf.into(), bytes: p.bytes, checksum: p.checksum };
    let merges = (!merges.is_empty()).then(|| merges.to_wire());
    wire::SnapshotContent {
        format: FORMAT,
        region: Some(region.into()),
        parts: parts.iter().map(part).collect(),
        merges,
    }
}

pub(super) fn from_wire(content: wire::SnapshotContent) -> Result<(Region, Merges, Vec<Part>), String> {
    if content.format != FORMAT {
        return Err(format!("it has format {}, this version knows {FORMAT}", content.format));
    }
    if content.parts.len() > PARTS_AT_MOST {
        return Err(format!("{} parts are more than {PARTS_AT_MOST}", content.parts.len()));
    }
    let region = content.region.ok_or("it names no region")?;
    let region = Region::try_from(region).map_err(|e| e.to_string())?;
    let part = |p: wire::SnapshotPart| match Cf::try_from(p.cf) {
        Ok(cf) if PART_FAMILIES.contains(&cf) => Ok(Part { cf, bytes: p.bytes, checksum: p.checksum }),
        _ => Err(format!("column family {} does not travel", p.cf)),
    };
    let merges = Merges::from_wire(content.merges.unwrap_or_default())?;
    Ok((region, merges, content.parts.into_iter().map(part).collect::<Result<_, _>>()?))
}

impl Content {
    /// As raft-rs carries it.
    pub(crate) fn to_raft(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.set_data(to_wire(&self.region, &self.merges, &self.parts).encode_to_vec().into());
        let metadata = snapshot.mut_metadata();
        metadata.index = self.position.index.0;
        metadata.term = self.position.term.0;
        metadata.set_conf_state(conf_state(&self.region));
        snapshot
    }

    /// Reads what another store sent. What it says of itself must fit together: raft-rs panics on memberships that can't be.
    pub(crate) fn from_raft(snapshot: &Snapshot) -> Result<Content, String> {
        let content = wire::SnapshotContent::decode(snapshot.data.clone()).map_err(|e| e.to_string())?;
        let (region, merges, parts) = from_wire(content)?;
        let metadata = snapshot.get_metadata();
        let (ids, stores): (BTreeSet<_>, BTreeSet<_>) = region.peers.iter().map(|p| (p.id, p.store)).unzip();
        let told = conf_state(&region);
        let clean = ids.len() == region.peers.len() && stores.len() == region.peers.len();
        if !clean || told.voters.is_empty() || !same(&told, metadata.get_conf_state()) || region.range.is_empty() {
            return Err("its region and its membership do not fit".into());
        }
        if metadata.index == 0 || metadata.term == 0 {
            return Err("it has no place in a log".into());
        }
        let position = Position { index: LogIndex(metadata.index), term: Term(metadata.term) };
        Ok(Content { position, region, merges, parts })
    }

    /// What goes in front of its files, as a leader of `term` says it: for whoever carries files without a leader.
    pub fn message(&self, from: PeerId, to: PeerId, term: Term) -> wire::RaftMessage {
        let mut message = Message { from: from.0, to: to.0, term: term.0, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_snapshot(self.to_raft());
        let bytes = message.write_to_bytes().expect("raft-rs's messages are complete");
        wire::RaftMessage { region_id: self.region.id.0, message: bytes.into(), ..wire::RaftMessage::default() }
    }

    /// All bytes of its parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::{Epoch, KeyRange, Peer, PeerId, PeerRole, RegionId, StoreId};

    use super::*;

    fn content() -> Content {
        let peer = |n, role| Peer { id: PeerId(n), store: StoreId(n), role };
        Content {
            merges: Merges { prepared: None, absorbed: Position { index: LogIndex(8), term: Term(7) } },
            position: Position { index: LogIndex(9), term: Term(7) },
            region: Region {
                id: RegionId(3),
                range: KeyRange::new("a", "m"),
                epoch: Epoch { conf_ver: 2, version: 5 },
                peers: vec![
                    peer(1, PeerRole::Voter),
                    peer(2, PeerRole::DemotingVoter),
                    peer(3, PeerRole::IncomingVoter),
                ],
            },
            parts: vec![Part { cf: Cf::Data, bytes: 10, checksum: 7 }, Part { cf: Cf::Lock, bytes: 20, checksum: 8 }],
        }
    }

    #[test]
    fn it_survives_the_way() {
        let raft = content().to_raft();
        assert_eq!(Content::from_raft(&raft), Ok(content()));
        assert_eq!(raft.get_metadata().get_conf_state().voters_outgoing, [1, 2]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |change: &dyn Fn(&mut Snapshot)| {
            let mut raft = content().to_raft();
            change(&mut raft);
            Content::from_raft(&raft).unwrap_err()
        };
        refused(&|s| s.mut_metadata().mut_conf_state().voters.push(77));
        refused(&|s| s.mut_metadata().index = 0);
        refused(&|s| s.set_data("garbage".into()));
        let with = |change: &dyn Fn(&mut Content)| {
            let mut bad = content();
            change(&mut bad);
            Content::from_raft(&bad.to_raft()).unwrap_err()
        };
        with(&|c| c.region.peers[1].store = StoreId(1));
        with(&|c| c.region.peers.clear());
        with(&|c| c.region.range = KeyRange::new("m", "a"));
        with(&|c| c.parts[0].cf = Cf::Meta);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let mut raft = content().to_raft();
            raft.set_data(bytes.into());
            let _ = Content::from_raft(&raft);
        }
    }
}
