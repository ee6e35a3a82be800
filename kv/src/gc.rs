//! Which versions and rollback records nobody needs any more. PURE over snapshots of the engine.
//!
//! Below a safe point nobody reads or begins to write any more, and no lock of a transaction that began below it is left.
//! So what stands at or below it is as it will ever be, and of each key one version is enough:
//!
//! ```text
//!   safe point 50      versions of a key, newest first          stays            goes, in this order
//!   a                  60: put   40: put   30: delete  20: put  60, 40           30, 20
//!   b                  60: put   40: delete  30: put   20: put  60               30, 20, then 40
//!   c                  40: lock  30: put                        30               40
//! ```
//!
//! A delete marker goes after the versions it hides: were it gone first, they would be seen again until they follow. What is
//! decided stays true whatever is written meanwhile, so a walk may pause, and go on over a later snapshot.

use bytes::Bytes;
use proto::{Cf, Timestamp};
use raftstore::engine::Snapshot;

use crate::{
    codec,
    mvcc::{
        Fault, Version, WriteKind,
        lock::{LockCfRecord, decode, is_rollback},
    },
};

/// Bounds of a page.
#[derive(Clone, Copy, Debug)]
pub struct PageLimit {
    /// Records looked at.
    pub records: usize,
    /// Records named; a page has one more when it ends a key.
    pub goes: usize,
}

/// Some records that go, in the order in which they must.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Engine keys.
    pub goes: Vec<(Cf, Bytes)>,
    /// The engine key to go on at; `None`: the range is done.
    pub resume: Option<Bytes>,
}

/// A walk over the versions of a range.
#[derive(Debug)]
pub struct Sweep {
    safe_point: Timestamp,
    /// Delete markers go where they are met: a bug, for tests of the tests.
    marker_first: bool,
    /// The user key the walk is at; empty before the first.
    key: Vec<u8>,
    /// Its newest version that reads at the safe point see or that hides the older ones was met.
    decided: bool,
    /// That version, when it is a delete marker.
    marker: Option<Bytes>,
    /// The key's version met last, if it is above the safe point.
    above: Option<Timestamp>,
    next_garbage: Option<Timestamp>,
}

impl Sweep {
    /// A walk that names what goes at a safe point.
    pub fn new(safe_point: Timestamp) -> Self {
        Sweep {
            safe_point,
            marker_first: false,
            key: Vec::new(),
            decided: false,
            marker: None,
            above: None,
            next_garbage: None,
        }
    }

    /// The same walk with the bug.
    #[must_use]
    pub fn markers_first(mut self, marker_first: bool) -> Self {
        self.marker_first = marker_first;
        self
    }

    /// Of what stays, the lowest safe point at which something goes; `None`: nothing ever does unless more is written. To be
    /// asked when the walk is done.
    pub fn next_garbage(&self) -> Option<Timestamp> {
        self.next_garbage
    }

    /// Goes on over the versions of `from..end` (engine keys; empty `end`: no border).
    pub fn page(&mut self, snapshot: &dyn Snapshot, from: &[u8], end: &[u8], limit: PageLimit) -> Result<Page, Fault> {
        let mut page = Page::default();
        let mut cursor = snapshot.cursor(Cf::Data, from, end);
        let mut stands = cursor.seek_to_first()?;
        let mut seen = 0;
        while stands {
            if seen >= limit.records || page.goes.len() >= limit.goes {
                page.resume = Some(Bytes::copy_from_slice(cursor.key()));
                return Ok(page);
            }
            seen += 1;
            self.version(cursor.key(), cursor.value(), &mut page.goes)?;
            stands = cursor.next()?;
        }
        self.end_key(&mut page.goes);
        Ok(page)
    }

    fn version(&mut self, at: &[u8], record: &[u8], goes: &mut Vec<(Cf, Bytes)>) -> Result<(), Fault> {
        let Some((user, commit_ts)) = codec::split_versioned(at) else {
            return Err(Fault::corrupt(at, "too short for a versioned key"));
        };
        if self.key != user {
            self.end_key(goes);
            self.key.clear();
            self.key.extend_from_slice(user);
        }
        let kind = Version::decode(user, record)?.kind;
        let stays = commit_ts > self.safe_point || (kind == WriteKind::Put && !self.decided);
        // When the version above reaches a safe point, this one is hidden.
        if let Some(above) = self.above.take_if(|_| stays) {
            self.pending(above);
        }
        if commit_ts > self.safe_point {
            self.above = Some(commit_ts);
            if kind != WriteKind::Put {
                self.pending(commit_ts);
            }
            return Ok(());
        }
        let key = Bytes::copy_from_slice(at);
        match kind {
            WriteKind::Put if !self.decided => self.decided = true,
            WriteKind::Delete if !self.decided && !self.marker_first => {
                self.decided = true;
                self.marker = Some(key);
            }
            WriteKind::Delete => {
                self.decided = true;
                goes.push((Cf::Data, key));
            }
            WriteKind::Put | WriteKind::Lock => goes.push((Cf::Data, key)),
        }
        Ok(())
    }

    fn end_key(&mut self, goes: &mut Vec<(Cf, Bytes)>) {
        goes.extend(self.marker.take().map(|key| (Cf::Data, key)));
        (self.decided, self.above) = (false, None);
    }

    fn pending(&mut self, at: Timestamp) {
        self.next_garbage = Some(self.next_garbage.map_or(at, |known| known.min(at)));
    }
}

/// Rollback records of transactions that began below `safe_point`, in `from..end`: their prewrites are refused for their age.
/// With the lowest `start_ts` of those that stay, if there are any.
pub fn rollbacks(
    snapshot: &dyn Snapshot,
    from: &[u8],
    end: &[u8],
    safe_point: Timestamp,
    limit: PageLimit,
) -> Result<(Page, Option<Timestamp>), Fault> {
    let (mut page, mut stay) = (Page::default(), None::<Timestamp>);
    let mut cursor = snapshot.cursor(Cf::Lock, from, end);
    let mut stands = cursor.seek_to_first()?;
    let mut seen = 0;
    while stands {
        if seen >= limit.records || page.goes.len() >= limit.goes {
            page.resume = Some(Bytes::copy_from_slice(cursor.key()));
            break;
        }
        seen += 1;
        if is_rollback(cursor.value()) {
            let Some((_, start_ts)) = codec::split_versioned(cursor.key()) else {
                return Err(Fault::corrupt(cursor.key(), "too short for a rollback record"));
            };
            match start_ts < safe_point {
                true => page.goes.push((Cf::Lock, Bytes::copy_from_slice(cursor.key()))),
                false => stay = Some(stay.map_or(start_ts, |known| known.min(start_ts))),
            }
        } else if let LockCfRecord::Rollback = decode(cursor.key(), cursor.value())? {
            return Err(Fault::corrupt(cursor.key(), "a rollback record of two forms"));
        }
        stands = cursor.next()?;
    }
    Ok((page, stay))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::KeyRange;
    use raftstore::engine::{Engine, WriteBatch, WriteOp, memory::MemoryEngine};

    use crate::mvcc::{
        Reader, Seen, lock,
        scan::{PageEnd, ScanSpec, scan_page},
        version::record,
    };

    use super::*;

    const KEYS: [&[u8]; 3] = [b"a", b"b", b"c"];
    const HORIZON: u64 = 12;

    fn kind(byte: u8) -> WriteKind {
        [WriteKind::Put, WriteKind::Delete, WriteKind::Lock][usize::from(byte)]
    }

    fn filled(writes: &[(usize, u64, u8)]) -> MemoryEngine {
        let engine = MemoryEngine::new();
        for &(key, ts, byte) in writes {
            let value = format!("{key}@{ts}");
            let value = if kind(byte) == WriteKind::Put { value.as_bytes() } else { b"" };
            let stored = record(kind(byte), Timestamp(ts).prev(), value);
            let op = WriteOp::Put(Cf::Data, codec::versioned(KEYS[key], Timestamp(ts)), stored);
            engine.write(WriteBatch { ops: vec![op] }).unwrap();
        }
        engine
    }

    /// What reads see at every timestamp from `from` on, by get and by both scans.
    fn seen(engine: &MemoryEngine, from: u64) -> Vec<Vec<(Bytes, Bytes)>> {
        let snapshot = engine.snapshot();
        let at = |ts: u64| {
            let read_ts = Timestamp(ts);
            let scanned = |reverse| {
                let spec = ScanSpec { read_ts, limit: u64::MAX, max_bytes: u64::MAX, reverse };
                let mut rows = Vec::new();
                let row = |key: &[u8], value: &[u8]| {
                    rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                    Ok(())
                };
                let (end, _) = scan_page(&*snapshot, &KeyRange::default(), spec, &Seen::default(), row).unwrap();
                assert_eq!(end, PageEnd::Done);
                rows.sort();
                rows
            };
            let reader = Reader::new(&*snapshot);
            let got = |key: &&'static [u8]| Some((Bytes::from_static(key), reader.get(key, read_ts).unwrap()?));
            let rows: Vec<_> = KEYS.iter().filter_map(got).collect();
            assert!(rows == scanned(false) && rows == scanned(true));
            rows
        };
        (from..=HORIZON).map(at).collect()
    }

    fn remove(engine: &MemoryEngine, goes: &[(Cf, Bytes)]) {
        let ops = goes.iter().map(|(cf, key)| WriteOp::Delete(*cf, key.clone())).collect();
        engine.write(WriteBatch { ops }).unwrap();
    }

    fn count(engine: &MemoryEngine) -> usize {
        let snapshot = engine.snapshot();
        let mut cursor = snapshot.cursor(Cf::Data, b"", b"");
        let mut stands = cursor.seek_to_first().unwrap();
        let mut count = 0;
        while stands {
            count += 1;
            stands = cursor.next().unwrap();
        }
        count
    }

    /// Collects in pages of `size`, each removed one record after the other; `check` after each.
    fn collect(engine: &MemoryEngine, mut sweep: Sweep, size: usize, check: impl Fn()) -> Option<Timestamp> {
        let mut from = Bytes::new();
        loop {
            let limit = PageLimit { records: size, goes: size };
            let page = sweep.page(&*engine.snapshot(), &from, b"", limit).unwrap();
            for one in &page.goes {
                remove(engine, std::slice::from_ref(one));
                check();
            }
            match page.resume {
                Some(key) => from = key,
                None => return sweep.next_garbage(),
            }
        }
    }

    fn writes() -> impl Strategy<Value = Vec<(usize, u64, u8)>> {
        proptest::collection::vec((0..KEYS.len(), 1..HORIZON, 0u8..3), 0..20)
    }

    proptest! {
        #[test]
        fn nobody_at_or_above_the_safe_point_sees_a_difference(writes in writes(), safe_point in 1..HORIZON, size in 1usize..5) {
            let engine = filled(&writes);
            let before = seen(&engine, safe_point);
            let sweep = Sweep::new(Timestamp(safe_point));
            let next = collect(&engine, sweep, size, || assert_eq!(before, seen(&engine, safe_point)));
            // Nothing is left to collect there, and what is promised for later is so.
            let left = count(&engine);
            collect(&engine, Sweep::new(Timestamp(safe_point)), size, || panic!("something was left"));
            let until = next.map_or(HORIZON, |ts| ts.0 - 1).max(safe_point);
            collect(&engine, Sweep::new(Timestamp(until)), size, || panic!("something goes before it was promised"));
            if let Some(ts) = next {
                collect(&engine, Sweep::new(ts), size, || ());
                prop_assert!(count(&engine) < left);
            }
        }

        #[test]
        fn in_the_end_the_values_are_left(writes in writes(), size in 1usize..5) {
            let engine = filled(&writes);
            let values = seen(&engine, HORIZON)[0].len();
            collect(&engine, Sweep::new(Timestamp(HORIZON)), size, || ());
            prop_assert_eq!(count(&engine), values);
        }
    }

    #[test]
    fn a_marker_that_goes_first_is_noticed() {
        let engine = filled(&[(0, 3, 0), (0, 5, 1)]);
        let before = seen(&engine, 5);
        let differs = std::cell::Cell::new(false);
        let sweep = Sweep::new(Timestamp(5)).markers_first(true);
        collect(&engine, sweep, 9, || differs.set(differs.get() || before != seen(&engine, 5)));
        assert!(differs.get());
    }

    #[test]
    fn rollbacks_below_go_and_locks_stay() {
        let engine = MemoryEngine::new();
        let lock = lock::Lock {
            kind: WriteKind::Put,
            start_ts: Timestamp(3),
            ttl_ms: 1,
            min_commit_ts: Timestamp(4),
            primary: Bytes::from_static(b"a"),
            value: Bytes::new(),
            secondaries: None,
            spilled: None,
        };
        let rollback = |ts| WriteOp::Put(Cf::Lock, codec::versioned(b"a", Timestamp(ts)), lock::rollback_record());
        let ops = vec![
            WriteOp::Put(Cf::Lock, Bytes::from_static(b"a"), lock.encode()),
            rollback(4),
            rollback(5),
            rollback(7),
        ];
        engine.write(WriteBatch { ops }).unwrap();
        let limit = PageLimit { records: 9, goes: 9 };
        let (page, stay) = rollbacks(&*engine.snapshot(), b"", b"", Timestamp(5), limit).unwrap();
        assert_eq!(page.goes, [(Cf::Lock, codec::versioned(b"a", Timestamp(4)))]);
        assert_eq!(stay, Some(Timestamp(5)));
    }
}
