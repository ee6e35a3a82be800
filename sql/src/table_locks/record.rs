//! The record of who locks a table in a strong mode, and the keys of a table's lock. PURE.
//!
//! ```text
//!   record := version u8 (1) ‖ { gateway u64 BE ‖ process id u32 BE ‖ turn u64 BE ‖ modes u8 } …    none: nobody, and no record
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use proto::{
    KeyRange,
    keyspace::{PREFIX_LEN, SQL_KEYSPACE, index_prefix, index_range},
};

use super::mode::Modes;

/// The system table of table locks.
pub const TABLE: u32 = 10;
/// Its index of who locks what.
const HOLDERS: u32 = 0;
/// Its index of keys that are locked and never written.
const QUEUES: u32 = 1;

const VERSION: u8 = 1;
const HOLDER_LEN: usize = 21;

/// A session, as table locks name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// Its gateway; a process has another one after each start.
    pub gateway: u64,
    /// Its process id.
    pub pid: u32,
}

/// A session that locks a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub session: SessionId,
    /// Grows with each change of what the session locks: an older message comes too late.
    pub turn: u64,
    /// How.
    pub modes: Modes,
}

fn key(index: u32, table: u32) -> Bytes {
    let mut key = BytesMut::from(&index_prefix(SQL_KEYSPACE, TABLE, index)[..]);
    key.put_u32(table);
    key.freeze()
}

fn table_in(index: u32, key: &[u8]) -> Option<u32> {
    let table: &[u8; 4] = key.strip_prefix(&index_prefix(SQL_KEYSPACE, TABLE, index)[..])?.try_into().ok()?;
    debug_assert_eq!(key.len(), PREFIX_LEN + 4);
    Some(u32::from_be_bytes(*table))
}

/// Where the holders of a table's lock are recorded.
pub fn holders_key(table: u32) -> Bytes {
    key(HOLDERS, table)
}

/// The reverse of [`holders_key`].
pub fn table_of_holders(key: &[u8]) -> Option<u32> {
    table_in(HOLDERS, key)
}

/// All records.
pub fn all_holders() -> KeyRange {
    index_range(SQL_KEYSPACE, TABLE, HOLDERS)
}

/// The row whose lock is the place in a table's queue.
pub fn queue_key(table: u32) -> Bytes {
    key(QUEUES, table)
}

/// The reverse of [`queue_key`].
pub fn table_of_queue(key: &[u8]) -> Option<u32> {
    table_in(QUEUES, key)
}

/// For a record.
pub fn encode(holders: &[Holder]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + holders.len() * HOLDER_LEN);
    out.put_u8(VERSION);
    for holder in holders {
        out.put_u64(holder.session.gateway);
        out.put_u32(holder.session.pid);
        out.put_u64(holder.turn);
        out.put_u8(holder.modes.bits());
    }
    out.freeze()
}

/// From a record; `None` when it is damaged.
pub fn decode(mut record: Bytes) -> Option<Vec<Holder>> {
    if record.is_empty() || record.get_u8() != VERSION || !record.len().is_multiple_of(HOLDER_LEN) {
        return None;
    }
    let mut holders = Vec::with_capacity(record.len() / HOLDER_LEN);
    while record.has_remaining() {
        holders.push(Holder {
            session: SessionId { gateway: record.get_u64(), pid: record.get_u32() },
            turn: record.get_u64(),
            modes: Modes::from_bits(record.get_u8()),
        });
    }
    Some(holders)
}

#[cfg(test)]
mod tests {
    use super::{super::mode::Mode, *};

    #[test]
    fn records_and_keys_come_back() {
        let holder = |pid, mode| Holder {
            session: SessionId { gateway: 7, pid },
            turn: 3,
            modes: Modes::of([mode, Mode::Share]),
        };
        let holders = vec![holder(1, Mode::AccessExclusive), holder(2, Mode::Share)];
        assert_eq!(decode(encode(&holders)), Some(holders));
        assert!(decode(Bytes::new()).is_none() && decode(Bytes::from_static(b"\x01abc")).is_none());
        assert_eq!(table_of_queue(&queue_key(100)), Some(100));
        assert_eq!(table_of_queue(&holders_key(100)), None);
        assert_eq!(table_of_holders(&holders_key(100)), Some(100));
        assert_eq!(table_of_queue(b""), None);
    }
}
