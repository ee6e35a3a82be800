//! What a lock of a transaction that has spilled knows besides: what the key was at places that the transaction may go back to. PURE.
//!
//! A transaction that is too large for its gateway's memory leaves its writes here while it goes on. Each write has a generation: how
//! many places to go back to (savepoints), and statements that read, came before it. A lock holds the newest write, and of
//! the earlier ones those that are still wanted:
//!
//! ```text
//!   generation     1        2    savepoint (mark 2)    3        4    savepoint (mark 4)    5
//!   writes         a1       a2                         a3       a4                         a5
//!   the lock holds a5, and a2, a4 as earlier ones. ROLLBACK TO the first makes a2 of it.
//! ```
//!
//! Nothing is ever removed before the transaction ends. A key that was first written behind a place that is gone back to stays
//! locked, without a change; and a lock knows the spill that touched it last. So a request that comes late, of a part that was
//! dropped since, finds that it is late.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::lock::{Lock, WriteKind};

/// Bytes of the earlier writes of one key at most: they stand in one record.
pub const MAX_EARLIER_BYTES: usize = 16 << 20;

/// A write that a later one has replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// Its generation.
    pub generation: u64,
    /// What it did.
    pub kind: WriteKind,
    /// Of a put.
    pub value: Bytes,
}

/// The part of a lock that only a spilled transaction's has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spilled {
    /// What touched the key last: parts of the transaction are numbered.
    pub spill: u64,
    /// Of the write that stands.
    pub generation: u64,
    /// Oldest first.
    pub earlier: Vec<Earlier>,
}

/// What a transaction reads of one of its own locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnWrite {
    /// This value.
    Value(Bytes),
    /// No value.
    Gone,
    /// What is stored under it.
    Unchanged,
}

impl Spilled {
    /// Bytes of [`Spilled::encode`].
    pub fn encoded_len(&self) -> usize {
        8 + 8 + 4 + self.earlier.iter().map(|earlier| 8 + 1 + 4 + earlier.value.len()).sum::<usize>()
    }

    /// As stored.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.spill);
        out.put_u64(self.generation);
        out.put_u32(self.earlier.len() as u32);
        for Earlier { generation, kind, value } in &self.earlier {
            out.put_u64(*generation);
            out.put_u8(*kind as u8);
            out.put_u32(value.len() as u32);
            out.put_slice(value);
        }
    }

    /// Reads it from the front of a record.
    pub fn decode(record: &mut &[u8]) -> Option<Self> {
        let (spill, generation) = (record.try_get_u64().ok()?, record.try_get_u64().ok()?);
        let count = record.try_get_u32().ok()?;
        let one = |_| {
            let generation = record.try_get_u64().ok()?;
            let kind = WriteKind::from_byte(record.try_get_u8().ok()?)?;
            let len = record.try_get_u32().ok()? as usize;
            let (value, rest) = record.split_at_checked(len)?;
            *record = rest;
            Some(Earlier { generation, kind, value: Bytes::copy_from_slice(value) })
        };
        let earlier = (0..count).map(one).collect::<Option<Vec<Earlier>>>()?;
        Some(Spilled { spill, generation, earlier })
    }

    /// Drops the earlier writes that nobody can go back to, or reads: of those between two neighbours of `marks` (sorted) the newest is
    /// wanted. Returns the bytes of what is left.
    pub fn prune(&mut self, marks: &[u64]) -> usize {
        let mut above = self.generation;
        let mut bytes = 0;
        let mut kept = Vec::with_capacity(self.earlier.len());
        while let Some(earlier) = self.earlier.pop() {
            let from = marks.partition_point(|mark| *mark < earlier.generation);
            if marks.get(from).is_some_and(|mark| *mark < above) {
                above = earlier.generation;
                bytes += earlier.value.len();
                kept.push(earlier);
            }
        }
        kept.reverse();
        self.earlier = kept;
        bytes
    }
}

impl Lock {
    /// What its transaction reads under the key, of its writes up to a generation.
    pub fn own(&self, generation: u64) -> OwnWrite {
        let Some(spilled) = &self.spilled else { return own(self.kind, &self.value) };
        if spilled.generation <= generation {
            return own(self.kind, &self.value);
        }
        let seen = spilled.earlier.iter().rev().find(|earlier| earlier.generation <= generation);
        seen.map_or(OwnWrite::Unchanged, |earlier| own(earlier.kind, &earlier.value))
    }

    /// The lock as it was at generation `keep`, touched by `spill`. `None`: it is so already, or was touched later.
    pub fn back_to(&self, keep: u64, spill: u64) -> Option<Lock> {
        let spilled = self.spilled.as_ref().filter(|spilled| spilled.generation > keep && spilled.spill < spill)?;
        let mut earlier = spilled.earlier.clone();
        earlier.retain(|earlier| earlier.generation <= keep);
        let top = earlier.pop().unwrap_or(Earlier { generation: 0, kind: WriteKind::Lock, value: Bytes::new() });
        let spilled = Spilled { spill, generation: top.generation, earlier };
        Some(Lock { kind: top.kind, value: top.value, spilled: Some(spilled), ..self.clone() })
    }
}

fn own(kind: WriteKind, value: &Bytes) -> OwnWrite {
    match kind {
        WriteKind::Put => OwnWrite::Value(value.clone()),
        WriteKind::Delete => OwnWrite::Gone,
        WriteKind::Lock => OwnWrite::Unchanged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn earlier(generation: u64) -> Earlier {
        Earlier { generation, kind: WriteKind::Put, value: Bytes::from(generation.to_string()) }
    }

    fn generations(spilled: &Spilled) -> Vec<u64> {
        spilled.earlier.iter().map(|earlier| earlier.generation).collect()
    }

    #[test]
    fn of_what_lies_between_two_marks_the_newest_is_kept() {
        let all = Spilled { spill: 1, generation: 5, earlier: (1..5).map(earlier).collect() };
        for (marks, kept) in [(&[][..], &[][..]), (&[2, 4], &[2, 4]), (&[0], &[]), (&[4], &[4]), (&[1, 5, 9], &[1])] {
            let mut spilled = all.clone();
            spilled.prune(marks);
            assert_eq!(generations(&spilled), kept, "{marks:?}");
        }
    }

    #[test]
    fn a_lock_goes_back_and_is_touched() {
        let spilled = Spilled { spill: 7, generation: 5, earlier: vec![earlier(2), earlier(4)] };
        let lock = Lock {
            kind: WriteKind::Delete,
            start_ts: proto::Timestamp(9),
            ttl_ms: 1,
            min_commit_ts: proto::Timestamp(10),
            primary: Bytes::from_static(b"a"),
            value: Bytes::new(),
            secondaries: None,
            spilled: Some(spilled),
        };
        let seen = [1, 2, 3, 4, 5].map(|generation| lock.own(generation));
        let value = |text: &'static str| OwnWrite::Value(Bytes::from_static(text.as_bytes()));
        assert_eq!(seen, [OwnWrite::Unchanged, value("2"), value("2"), value("4"), OwnWrite::Gone]);
        assert_eq!((lock.back_to(5, 8), lock.back_to(3, 7)), (None, None));
        let back = lock.back_to(3, 8).unwrap();
        assert_eq!((back.own(u64::MAX), back.spilled.as_ref().map(|s| s.spill)), (value("2"), Some(8)));
        let first = lock.back_to(0, 8).unwrap();
        assert_eq!((first.kind, first.spilled.as_ref().map(|s| s.generation)), (WriteKind::Lock, Some(0)));
        assert_eq!(first.back_to(0, 9), None);
    }
}
