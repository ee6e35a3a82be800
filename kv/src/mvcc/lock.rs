//! Records of the `lock` column family. PURE.
//!
//! ```text
//! lock      01 ‖ kind u8 ‖ start_ts u64 ‖ ttl_ms u64 ‖ min_commit_ts u64 ‖ primary length u32 ‖ primary ‖ value
//!           kind 00 put, 01 delete, 02 no change (only the put has a value); integers are big-endian
//! async     the same with 80 added to the kind, and before the value: number of secondaries u32 ‖ (length u32 ‖ key) each
//! spilled   the same with 40 added, and before the value: spill u64 ‖ generation u64 ‖ number of earlier writes u32 ‖
//!           (generation u64 ‖ kind u8 ‖ length u32 ‖ value) each, oldest first
//! rollback  01 ‖ 03
//! ```
//!
//! The value stands last, so that commit can move it: the version record is a header of its own ‖ this suffix.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use proto::{Timestamp, wire::LockRecord};

use super::{Fault, spilled::Spilled};

/// The format's version, first byte of every record.
const FORMAT: u8 = 1;
const ROLLBACK: u8 = 3;
/// Added to the kind of a lock of an async commit.
const ASYNC: u8 = 0x80;
/// Added to the kind of a lock of a transaction that has spilled.
const SPILLED: u8 = 0x40;
/// Everything before the primary.
const HEADER_LEN: usize = 2 + 8 + 8 + 8 + 4;

/// What a write does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// Sets the value.
    Put = 0,
    /// Removes the value.
    Delete = 1,
    /// Nothing, but it conflicts as a write does.
    Lock = 2,
}

impl WriteKind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(WriteKind::Put),
            1 => Some(WriteKind::Delete),
            2 => Some(WriteKind::Lock),
            _ => None,
        }
    }
}

/// A write that is not committed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// What it will do.
    pub kind: WriteKind,
    /// Its transaction.
    pub start_ts: Timestamp,
    /// How long after `start_ts`, by PD's time, it may be rolled back by others.
    pub ttl_ms: u64,
    /// Its commit timestamp is at least this.
    pub min_commit_ts: Timestamp,
    /// The key where the transaction's fate is decided.
    pub primary: Bytes,
    /// Of a put.
    pub value: Bytes,
    /// Of an async commit, which is decided by all its locks: at the primary the transaction's other keys, elsewhere none.
    pub secondaries: Option<Vec<Bytes>>,
    /// Of a transaction that has spilled.
    pub spilled: Option<Spilled>,
}

/// What stands under a key of the `lock` column family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockCfRecord {
    /// A lock.
    Lock(Lock),
    /// A rollback.
    Rollback,
}

impl Lock {
    /// As stored.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.value_offset() as usize + self.value.len());
        let how = if self.secondaries.is_some() { ASYNC } else { 0 };
        let spilled = if self.spilled.is_some() { SPILLED } else { 0 };
        out.put_slice(&[FORMAT, self.kind as u8 | how | spilled]);
        out.put_u64(self.start_ts.0);
        out.put_u64(self.ttl_ms);
        out.put_u64(self.min_commit_ts.0);
        out.put_u32(self.primary.len() as u32);
        out.put_slice(&self.primary);
        if let Some(secondaries) = &self.secondaries {
            out.put_u32(secondaries.len() as u32);
            for key in secondaries {
                out.put_u32(key.len() as u32);
                out.put_slice(key);
            }
        }
        if let Some(spilled) = &self.spilled {
            spilled.encode(&mut out);
        }
        out.put_slice(&self.value);
        out.freeze()
    }

    /// Where the value starts in the stored form.
    pub fn value_offset(&self) -> u64 {
        let listed = |keys: &Vec<Bytes>| 4 + keys.iter().map(|key| 4 + key.len()).sum::<usize>();
        let spilled = self.spilled.as_ref().map_or(0, Spilled::encoded_len);
        (HEADER_LEN + self.primary.len() + self.secondaries.as_ref().map_or(0, listed) + spilled) as u64
    }

    /// As others are told of it.
    pub fn to_wire(&self, key: &[u8]) -> LockRecord {
        LockRecord {
            key: Bytes::copy_from_slice(key),
            primary: self.primary.clone(),
            start_ts: self.start_ts.0,
            ttl_ms: self.ttl_ms,
            min_commit_ts: self.min_commit_ts.0,
            spilled: self.spilled.is_some(),
        }
    }

    /// Whether a read at `ts` can't pass: the write may commit at or below `ts`, and would change what is read.
    pub fn blocks_read_at(&self, ts: Timestamp) -> bool {
        self.kind != WriteKind::Lock && self.start_ts <= ts && self.min_commit_ts <= ts
    }

    /// Whether it may be rolled back by others at PD's time `now`.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now.physical_ms() >= self.start_ts.physical_ms().saturating_add(self.ttl_ms)
    }
}

/// A rollback record, as stored.
pub fn rollback_record() -> Bytes {
    Bytes::from_static(&[FORMAT, ROLLBACK])
}

/// Whether a stored record is a rollback: cheaper than decoding it.
pub fn is_rollback(record: &[u8]) -> bool {
    record == [FORMAT, ROLLBACK]
}

/// The transaction of a lock, without decoding the rest; `None` for a rollback.
pub fn start_ts_of(record: &[u8]) -> Option<Timestamp> {
    let start_ts = record.get(2..10).filter(|_| record[0] == FORMAT)?;
    Some(Timestamp(u64::from_be_bytes(start_ts.try_into().ok()?)))
}

/// Reads a record of the `lock` column family that stands under `key`.
pub fn decode(key: &[u8], record: &[u8]) -> Result<LockCfRecord, Fault> {
    if is_rollback(record) {
        return Ok(LockCfRecord::Rollback);
    }
    decode_lock(record).map(LockCfRecord::Lock).ok_or_else(|| Fault::corrupt(key, "lock record does not decode"))
}

fn decode_lock(mut record: &[u8]) -> Option<Lock> {
    if record.len() < HEADER_LEN || record.get_u8() != FORMAT {
        return None;
    }
    let kind = record.get_u8();
    let (is_async, is_spilled) = (kind & ASYNC != 0, kind & SPILLED != 0);
    let kind = WriteKind::from_byte(kind & !(ASYNC | SPILLED))?;
    let (start_ts, ttl_ms, min_commit_ts) =
        (Timestamp(record.get_u64()), record.get_u64(), Timestamp(record.get_u64()));
    let primary = take_key(&mut record)?;
    let secondaries = match is_async {
        true => {
            let count = record.try_get_u32().ok()?;
            Some((0..count).map(|_| take_key(&mut record)).collect::<Option<Vec<Bytes>>>()?)
        }
        false => None,
    };
    let spilled = if is_spilled { Some(Spilled::decode(&mut record)?) } else { None };
    let value = Bytes::copy_from_slice(record);
    Some(Lock { kind, start_ts, ttl_ms, min_commit_ts, primary, value, secondaries, spilled })
}

fn take_key(record: &mut &[u8]) -> Option<Bytes> {
    let len = record.try_get_u32().ok()? as usize;
    let (key, rest) = record.split_at_checked(len)?;
    *record = rest;
    Some(Bytes::copy_from_slice(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mvcc::spilled::Earlier;

    proptest! {
        #[test]
        fn a_lock_survives_storage_and_its_value_is_a_suffix(
            kind in 0u8..3,
            numbers in any::<[u64; 3]>(),
            primary in proptest::collection::vec(any::<u8>(), 0..20),
            value in proptest::collection::vec(any::<u8>(), 0..20),
            secondaries in proptest::option::of(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5).prop_map(Bytes::from), 0..3)
            ),
            spilled in proptest::option::of((any::<u64>(), any::<u64>(), proptest::collection::vec(any::<u64>(), 0..3))),
        ) {
            let earlier = |generation| Earlier { generation, kind: WriteKind::Put, value: Bytes::from_static(b"old") };
            let spilled = spilled.map(|(spill, generation, earlier_ones): (u64, u64, Vec<u64>)| Spilled {
                spill,
                generation,
                earlier: earlier_ones.into_iter().map(earlier).collect(),
            });
            let [start_ts, ttl_ms, min_commit_ts] = numbers;
            let lock = Lock {
                kind: WriteKind::from_byte(kind).unwrap(),
                start_ts: Timestamp(start_ts),
                ttl_ms,
                min_commit_ts: Timestamp(min_commit_ts),
                primary: primary.into(),
                value: value.into(),
                secondaries,
                spilled,
            };
            let record = lock.encode();
            prop_assert_eq!(&record[lock.value_offset() as usize..], &lock.value[..]);
            prop_assert_eq!(decode(b"k", &record), Ok(LockCfRecord::Lock(lock)));
        }

        #[test]
        fn garbage_does_not_panic(record in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(b"k", &record);
        }
    }
}
