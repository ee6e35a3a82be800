//! What an advisory lock is called, and under which keys it lives. PURE.

use bytes::{BufMut, Bytes, BytesMut};
use proto::keyspace::{PREFIX_LEN, SQL_KEYSPACE, index_prefix};

/// The system table of advisory locks.
pub const TABLE: u32 = 8;
/// Its index of who holds what.
const HOLDERS: u32 = 0;
/// Its index of keys that are locked and never written.
const QUEUES: u32 = 1;
/// Bytes of a name in a key.
const NAME_LEN: usize = 9;

/// One bigint, or two integers: they never mean the same lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// `pg_advisory_lock(bigint)`
    One(i64),
    /// `pg_advisory_lock(int, int)`
    Two(i32, i32),
}

impl Name {
    /// PostgreSQL's classid, objid and objsubid in `pg_locks`.
    pub fn ids(self) -> (u32, u32, i16) {
        match self {
            Name::One(key) => ((key as u64 >> 32) as u32, key as u32, 1),
            Name::Two(first, second) => (first as u32, second as u32, 2),
        }
    }

    fn key(self, index: u32) -> Bytes {
        let (class, object, kind) = self.ids();
        let mut key = BytesMut::from(&index_prefix(SQL_KEYSPACE, TABLE, index)[..]);
        key.put_u8(kind as u8);
        key.put_u32(class);
        key.put_u32(object);
        key.freeze()
    }

    /// Where its holders are recorded.
    pub fn holders(self) -> Bytes {
        self.key(HOLDERS)
    }

    /// The row whose lock is the place in its queue.
    pub fn queue(self) -> Bytes {
        self.key(QUEUES)
    }

    /// The reverse of [`Name::queue`].
    pub fn of_queue(key: &[u8]) -> Option<Name> {
        let name: &[u8; NAME_LEN] =
            key.strip_prefix(&index_prefix(SQL_KEYSPACE, TABLE, QUEUES)[..])?.try_into().ok()?;
        debug_assert_eq!(key.len(), PREFIX_LEN + NAME_LEN);
        let word = |at: usize| u32::from_be_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        match name[0] {
            1 => Some(Name::One((u64::from(word(1)) << 32 | u64::from(word(5))) as i64)),
            2 => Some(Name::Two(word(1) as i32, word(5) as i32)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_their_keys() {
        for name in [Name::One(-1), Name::One(i64::MIN), Name::One(7), Name::Two(0, 7), Name::Two(-1, i32::MAX)] {
            assert_eq!(Name::of_queue(&name.queue()), Some(name));
            assert_eq!(Name::of_queue(&name.holders()), None);
        }
        assert_ne!(Name::One(7).queue(), Name::Two(0, 7).queue());
        assert_eq!(Name::One(-1).ids(), (u32::MAX, u32::MAX, 1));
        assert_eq!(Name::of_queue(b""), None);
    }
}
