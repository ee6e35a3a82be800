//! Values of eventual namespaces: of two writes of a key the one with the later stamp wins, wherever they meet. PURE.
//!
//! ```text
//! 1u8 ‖ wall ms u64 ‖ count u32 ‖ store u64 ‖ kind u8 (0: deleted, 1: value) ‖ value
//! ```
//!
//! A deletion stays as a record: a write that was made before it may arrive after it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use proto::StoreId;

use super::keys::VERSION;

const HEAD: usize = 22;

/// When and where a write was accepted. No two are equal: a store counts within its millisecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// By the accepting node's wall clock, Unix milliseconds; never backward on one node.
    pub wall_ms: u64,
    /// Counts the writes of one millisecond.
    pub count: u32,
    /// The store that accepted it.
    pub store: StoreId,
}

impl Stamp {
    /// The next stamp of a store after `self`, at `wall_ms` if that is later.
    pub fn next(self, wall_ms: u64, store: StoreId) -> Stamp {
        if wall_ms > self.wall_ms {
            return Stamp { wall_ms, count: 0, store };
        }
        match self.count.checked_add(1) {
            Some(count) => Stamp { wall_ms: self.wall_ms, count, store },
            None => Stamp { wall_ms: self.wall_ms + 1, count: 0, store },
        }
    }
}

/// A stamped write; `None`: the key is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// Its stamp.
    pub stamp: Stamp,
    /// What it sets.
    pub value: Option<Bytes>,
}

impl Stamped {
    /// As it is stored.
    pub fn encode(&self) -> Bytes {
        let value = self.value.as_deref().unwrap_or_default();
        let mut out = BytesMut::with_capacity(HEAD + value.len());
        out.put_u8(VERSION);
        out.put_u64(self.stamp.wall_ms);
        out.put_u32(self.stamp.count);
        out.put_u64(self.stamp.store.0);
        out.put_u8(u8::from(self.value.is_some()));
        out.put_slice(value);
        out.freeze()
    }

    /// Reads [`Stamped::encode`]'s bytes; `None` when they are not of this version.
    pub fn decode(mut record: Bytes) -> Option<Stamped> {
        if record.len() < HEAD || record.get_u8() != VERSION {
            return None;
        }
        let stamp = Stamp { wall_ms: record.get_u64(), count: record.get_u32(), store: StoreId(record.get_u64()) };
        match record.get_u8() {
            0 if record.is_empty() => Some(Stamped { stamp, value: None }),
            1 => Some(Stamped { stamp, value: Some(record) }),
            _ => None,
        }
    }

    /// Whether this write is to replace what is there.
    pub fn beats(&self, there: Option<&Stamped>) -> bool {
        there.is_none_or(|there| self.stamp > there.stamp)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamped() -> impl Strategy<Value = Stamped> {
        (0..3u64, 0..3u32, 1..4u64, proptest::option::of(any::<Vec<u8>>())).prop_map(
            |(wall_ms, count, store, value)| Stamped {
                stamp: Stamp { wall_ms, count, store: StoreId(store) },
                value: value.map(Into::into),
            },
        )
    }

    proptest! {
        /// In whatever order and how often writes arrive, the same one stays.
        #[test]
        fn the_latest_wins_in_any_order(mut writes in proptest::collection::vec(stamped(), 1..8), seed: u64) {
            writes.sort_by_key(|w| w.stamp);
            writes.dedup_by_key(|w| w.stamp);
            let winner = writes.last().cloned();
            let rotate = seed as usize % writes.len();
            writes.rotate_left(rotate);
            writes.extend(writes.clone());
            let mut there: Option<Stamped> = None;
            for write in writes {
                if write.beats(there.as_ref()) {
                    there = Some(write);
                }
            }
            prop_assert_eq!(there, winner);
        }

        #[test]
        fn records_survive_and_random_bytes_are_refused_or_read(write in stamped(), junk: Vec<u8>) {
            prop_assert_eq!(Stamped::decode(write.encode()), Some(write));
            let _ = Stamped::decode(junk.into());
        }

        #[test]
        fn a_stores_stamps_grow_whatever_its_clock_does(clock in proptest::collection::vec(0..5u64, 1..20)) {
            let mut last = Stamp { wall_ms: 2, count: u32::MAX - 2, store: StoreId(1) };
            for wall_ms in clock {
                let next = last.next(wall_ms, StoreId(1));
                prop_assert!(next > last);
                last = next;
            }
        }
    }
}
