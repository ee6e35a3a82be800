//! From the envelope on the wire to a Raft message that raft-rs can't choke on.
//!
//! raft-rs trusts its input: a commit index beyond the log, entries with holes or a term at the end of the
//! number range end in a panic there. And rust-protobuf 2.28 follows nested unknown groups by recursion
//! (RUSTSEC-2024-0437). So bytes are looked through before they are parsed, and messages before they are stepped.

use bytes::Buf;
use proto::wire;
use protobuf::{CodedInputStream, Message as _};
use raft::eraftpb::{ConfChangeV2, Message, MessageType};
use tracing::debug;

use crate::{log::Position, snapshot::Content};

/// Terms and indexes from here on are nonsense; arithmetic on them would overflow.
const COUNTER_LIMIT: u64 = 1 << 62;

/// `eraftpb.Message.entries`, the only sub-message whose fields arrive in numbers.
const ENTRIES_FIELD: u64 = 7;
/// `eraftpb.Message.snapshot`.
const SNAPSHOT_FIELD: u64 = 9;
/// `eraftpb.ConfChangeV2.changes`.
const CHANGES_FIELD: u64 = 2;
/// `eraftpb.Snapshot.metadata` and, inside, `SnapshotMetadata.conf_state`.
const SNAPSHOT_PATH: [u64; 2] = [2, 1];

/// A message that is dropped, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) &'static str);

/// Reads eraftpb.Message from the wire.
pub(crate) fn decode(envelope: &wire::RaftMessage) -> Result<Message, Refused> {
    refuse_groups(&envelope.message, &|field| match field {
        ENTRIES_FIELD => Some(&[]),
        SNAPSHOT_FIELD => Some(&SNAPSHOT_PATH),
        _ => None,
    })?;
    let mut message = Message::default();
    let mut input = CodedInputStream::from_carllerche_bytes(&envelope.message);
    message.merge_from(&mut input).map_err(|_| Refused("it does not decode"))?;
    check(&message)?;
    Ok(message)
}

/// Reads what an entry that changes the membership says to Raft.
pub(crate) fn conf_change(bytes: &bytes::Bytes) -> Result<ConfChangeV2, Refused> {
    refuse_groups(bytes, &|field| (field == CHANGES_FIELD).then_some(&[] as &[u64]))?;
    let mut change = ConfChangeV2::default();
    let mut input = CodedInputStream::from_carllerche_bytes(bytes);
    change.merge_from(&mut input).map_err(|_| Refused("it does not decode"))?;
    Ok(change)
}

/// Reads the message that stands in front of a snapshot's files.
pub(crate) fn decode_snapshot(envelope: &wire::RaftMessage) -> Result<(Message, Content), Refused> {
    let message = decode(envelope)?;
    if message.get_msg_type() != MessageType::MsgSnapshot {
        return Err(Refused("it carries no snapshot"));
    }
    let content = Content::from_raft(message.get_snapshot()).map_err(|reason| {
        debug!(region = envelope.region_id, reason, "a snapshot that is none");
        Refused("its snapshot contradicts itself")
    })?;
    if content.region.id.0 != envelope.region_id {
        return Err(Refused("its snapshot is another region's"));
    }
    Ok((message, content))
}

/// Walks the fields; `nested` names sub-messages to look into, with the path of sub-messages inside those.
fn refuse_groups(mut bytes: &[u8], nested: &dyn Fn(u64) -> Option<&'static [u64]>) -> Result<(), Refused> {
    while bytes.has_remaining() {
        let tag = varint(&mut bytes)?;
        let length = match tag & 7 {
            0 => {
                varint(&mut bytes)?;
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes)?,
            5 => 4,
            _ => return Err(Refused("it holds a protobuf group")),
        };
        let length = usize::try_from(length).map_err(|_| Refused("a field is longer than the message"))?;
        let (field, rest) = bytes.split_at_checked(length).ok_or(Refused("a field is longer than the message"))?;
        if let (2, Some(path)) = (tag & 7, nested(tag >> 3)) {
            refuse_groups(field, &|inner| path.split_first().filter(|(first, _)| **first == inner).map(|(_, p)| p))?;
        }
        bytes = rest;
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Refused> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        if !bytes.has_remaining() {
            break;
        }
        let byte = bytes.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Refused("it ends within a number"))
}

/// What must hold of a message by itself.
fn check(message: &Message) -> Result<(), Refused> {
    let counters = [message.term, message.log_term, message.index, message.commit, message.commit_term];
    if counters.iter().chain([&message.reject_hint]).any(|&c| c >= COUNTER_LIMIT) {
        return Err(Refused("a term or index is out of range"));
    }
    match message.get_msg_type() {
        MessageType::MsgAppend
        | MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTimeoutNow
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => {}
        MessageType::MsgPropose | MessageType::MsgReadIndex | MessageType::MsgTransferLeader => {
            return Err(Refused("requests are not forwarded between stores"));
        }
        MessageType::MsgSnapshot => {
            let position = message.get_snapshot().get_metadata();
            if [position.index, position.term].iter().any(|&c| c >= COUNTER_LIMIT) || position.term > message.term {
                return Err(Refused("a term or index of its snapshot is out of range"));
            }
        }
        _ => return Err(Refused("its type is not for the wire")),
    }
    if message.term == 0 {
        return Err(Refused("it has no term"));
    }
    if message.request_snapshot != 0 {
        return Err(Refused("nobody asks for a snapshot: whoever leads finds out"));
    }
    let mut last = (message.index, message.log_term);
    for entry in &message.entries {
        if entry.index != last.0 + 1 || entry.term < last.1 || entry.term > message.term {
            return Err(Refused("its entries do not follow each other"));
        }
        last = (entry.index, entry.term);
    }
    Ok(())
}

/// What must hold of a message for a log that was cut at `truncated` and ends at `last`: a peer that says otherwise
/// has lost what it acknowledged, or this store has.
pub(crate) fn check_against_log(message: &Message, truncated: Position, last: u64) -> Result<(), Refused> {
    match message.get_msg_type() {
        MessageType::MsgAppend if message.index >= truncated.index.0 && message.log_term < truncated.term.0 => {
            Err(Refused("it continues a log that contradicts what is committed"))
        }
        MessageType::MsgHeartbeat if message.commit > last => {
            Err(Refused("the leader says that more is committed than this replica ever acknowledged: its log was lost"))
        }
        MessageType::MsgAppendResponse if !message.reject && message.index > last => {
            Err(Refused("it acknowledges entries that were never sent"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raft::eraftpb::Entry;

    use super::*;

    fn envelope(bytes: Vec<u8>) -> wire::RaftMessage {
        wire::RaftMessage { message: bytes.into(), ..Default::default() }
    }

    fn append() -> Message {
        let entries = vec![
            Entry { index: 7, term: 6, data: vec![1; 20].into(), ..Entry::default() },
            Entry { index: 8, term: 7, ..Entry::default() },
        ];
        let mut message = Message { term: 7, index: 6, log_term: 6, entries: entries.into(), ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message
    }

    #[test]
    fn a_message_survives() {
        let message = append();
        assert_eq!(decode(&envelope(message.write_to_bytes().unwrap())).unwrap(), message);
    }

    #[test]
    fn groups_are_refused_at_every_depth_that_is_parsed() {
        let group = vec![0xfb, 0x01]; // field 31, start of group
        assert_eq!(decode(&envelope(group.repeat(100_000))), Err(Refused("it holds a protobuf group")));
        let inside = |field: u8, body: &[u8]| [&[field << 3 | 2, body.len() as u8], body].concat();
        for bytes in [inside(7, &group), inside(9, &inside(2, &group)), inside(9, &inside(2, &inside(1, &group)))] {
            assert_eq!(decode(&envelope(bytes)), Err(Refused("it holds a protobuf group")));
        }
    }

    #[test]
    fn holes_and_forwarded_requests_are_refused() {
        let mut message = append();
        message.entries[1].index = 9;
        assert!(decode(&envelope(message.write_to_bytes().unwrap())).is_err());
        let mut message = append();
        message.set_msg_type(MessageType::MsgPropose);
        assert!(decode(&envelope(message.write_to_bytes().unwrap())).is_err());
        let mut message = append();
        message.term = u64::MAX;
        assert!(decode(&envelope(message.write_to_bytes().unwrap())).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode(&envelope(bytes));
        }

        #[test]
        fn bent_messages_never_panic(at in 0..200usize, byte: u8) {
            let mut bytes = append().write_to_bytes().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = decode(&envelope(bytes));
        }
    }
}
