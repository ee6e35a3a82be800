//! Reads of single keys. PURE over a snapshot.

use bytes::Bytes;
use proto::{Cf, KeyRange, Timestamp, wire::LockRecord};
use raftstore::engine::Snapshot;

use crate::codec;

use super::{
    Fault,
    lock::{self, Lock, LockCfRecord, WriteKind},
    spilled::OwnWrite,
    version::Version,
};

/// Which locks are no obstacle for a read.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The reader's own, of a transaction that has spilled: their writes up to this generation are what it reads.
    pub own: Option<(Timestamp, u64)>,
    /// Transactions that commit above the snapshot, if they do.
    pub passed: Vec<u64>,
}

/// What a lock means to a read.
pub enum Met {
    /// It has to be met first.
    Blocked(LockRecord),
    /// It is the reader's own.
    Own(OwnWrite),
    /// Nothing.
    Nothing,
}

impl Seen {
    /// What a lock under `key` means to a read at `ts`.
    pub fn meet(&self, key: &[u8], lock: &Lock, ts: Timestamp) -> Met {
        match self.own {
            Some((own, generation)) if own == lock.start_ts => Met::Own(lock.own(generation)),
            _ if lock.blocks_read_at(ts) && !self.passed.contains(&lock.start_ts.0) => Met::Blocked(lock.to_wire(key)),
            _ => Met::Nothing,
        }
    }
}

/// What the newest write of a key did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// When it committed.
    pub commit_ts: Timestamp,
    /// Its transaction.
    pub start_ts: Timestamp,
    /// What it did.
    pub kind: WriteKind,
}

/// Reads keys of one snapshot.
pub struct Reader<'a> {
    pub(super) snapshot: &'a dyn Snapshot,
}

impl<'a> Reader<'a> {
    /// Over a view of the engine.
    pub fn new(snapshot: &'a dyn Snapshot) -> Self {
        Reader { snapshot }
    }

    /// The lock on a key.
    pub fn lock(&self, key: &[u8]) -> Result<Option<Lock>, Fault> {
        let Some(record) = self.snapshot.get(Cf::Lock, key)? else { return Ok(None) };
        match lock::decode(key, &record)? {
            LockCfRecord::Lock(lock) => Ok(Some(lock)),
            LockCfRecord::Rollback => Err(Fault::corrupt(key, "a rollback record stands where a lock should")),
        }
    }

    /// Whether transaction `start_ts` was rolled back on this key, with a record to keep it out.
    pub fn is_rolled_back(&self, key: &[u8], start_ts: Timestamp) -> Result<bool, Fault> {
        Ok(self.snapshot.get(Cf::Lock, &codec::versioned(key, start_ts))?.is_some())
    }

    /// The value visible at `ts`, whatever locks there are.
    pub fn get(&self, key: &[u8], ts: Timestamp) -> Result<Option<Bytes>, Fault> {
        let mut value = None;
        self.versions(key, ts, Timestamp::ZERO, |_, version| {
            if version.kind == WriteKind::Put {
                value = Some(Bytes::copy_from_slice(version.value));
            }
            version.kind == WriteKind::Lock
        })?;
        Ok(value)
    }

    /// The value that a read at `ts` sees, or the lock that it has to meet first.
    pub fn read(&self, key: &[u8], ts: Timestamp, seen: &Seen) -> Result<Result<Option<Bytes>, LockRecord>, Fault> {
        let met = self.lock(key)?.map_or(Met::Nothing, |lock| seen.meet(key, &lock, ts));
        Ok(match met {
            Met::Blocked(lock) => Err(lock),
            Met::Own(OwnWrite::Value(value)) => Ok(Some(value)),
            Met::Own(OwnWrite::Gone) => Ok(None),
            Met::Own(OwnWrite::Unchanged) | Met::Nothing => Ok(self.get(key, ts)?),
        })
    }

    /// The newest write of a key, of any kind.
    pub fn newest(&self, key: &[u8]) -> Result<Option<Newest>, Fault> {
        let mut newest = None;
        self.versions(key, Timestamp::MAX, Timestamp::ZERO, |commit_ts, version| {
            newest = Some(Newest { commit_ts, start_ts: version.start_ts, kind: version.kind });
            false
        })?;
        Ok(newest)
    }

    /// When the key was written last (zero: never), and the value it has now.
    pub fn newest_value(&self, key: &[u8]) -> Result<(Timestamp, Option<Bytes>), Fault> {
        let (mut newest, mut value) = (Timestamp::ZERO, None);
        self.versions(key, Timestamp::MAX, Timestamp::ZERO, |commit_ts, version| {
            newest = newest.max(commit_ts);
            if version.kind == WriteKind::Put {
                value = Some(Bytes::copy_from_slice(version.value));
            }
            version.kind == WriteKind::Lock
        })?;
        Ok((newest, value))
    }

    /// Whether the key has a value now.
    pub fn exists(&self, key: &[u8]) -> Result<bool, Fault> {
        let mut exists = false;
        self.versions(key, Timestamp::MAX, Timestamp::ZERO, |_, version| {
            exists = version.kind == WriteKind::Put;
            version.kind == WriteKind::Lock
        })?;
        Ok(exists)
    }

    /// When transaction `start_ts` committed its write of this key, if it did.
    pub fn commit_of(&self, key: &[u8], start_ts: Timestamp) -> Result<Option<Timestamp>, Fault> {
        let mut found = None;
        self.versions(key, Timestamp::MAX, start_ts.next(), |commit_ts, version| {
            if version.start_ts == start_ts {
                found = Some(commit_ts);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// Keys of `range` on which transaction `start_ts` has a lock: at most `limit`, and no more than are found among
    /// the first `MAX_VISITED` records.
    pub fn locks_of(&self, start_ts: Timestamp, range: &KeyRange, limit: usize) -> Result<Vec<Bytes>, Fault> {
        /// It bounds the look at a range where others have many locks.
        const MAX_VISITED: usize = 4096;
        let mut keys = Vec::new();
        let mut cursor = self.snapshot.cursor(Cf::Lock, &range.start, &range.end);
        let mut stands = cursor.seek_to_first()?;
        for _ in 0..MAX_VISITED {
            if !stands || keys.len() >= limit {
                break;
            }
            if lock::start_ts_of(cursor.value()) == Some(start_ts) {
                keys.push(Bytes::copy_from_slice(cursor.key()));
            }
            stands = cursor.next()?;
        }
        Ok(keys)
    }

    /// Locks of transaction `start_ts` in `range`, at most `limit`, among the first `visit` records; and where to go on when
    /// there are more.
    pub fn own_locks(
        &self,
        start_ts: Timestamp,
        range: &KeyRange,
        limit: usize,
        visit: usize,
    ) -> Result<(Vec<Bytes>, Option<Bytes>), Fault> {
        let mut keys = Vec::new();
        let mut cursor = self.snapshot.cursor(Cf::Lock, &range.start, &range.end);
        let mut stands = cursor.seek_to_first()?;
        let mut visited = 0;
        while stands && visited < visit && keys.len() < limit {
            if lock::start_ts_of(cursor.value()) == Some(start_ts) {
                keys.push(Bytes::copy_from_slice(cursor.key()));
            }
            visited += 1;
            stands = cursor.next()?;
        }
        Ok((keys, stands.then(|| Bytes::copy_from_slice(cursor.key()))))
    }

    /// The `wanted` locks in `range` among the first `visit` records; and where to go on when there are more.
    pub fn locks_where(
        &self,
        range: &KeyRange,
        visit: usize,
        wanted: impl Fn(&Lock) -> bool,
    ) -> Result<(Vec<LockRecord>, Option<Bytes>), Fault> {
        let mut locks = Vec::new();
        let mut cursor = self.snapshot.cursor(Cf::Lock, &range.start, &range.end);
        let mut stands = cursor.seek_to_first()?;
        for _ in 0..visit {
            if !stands {
                return Ok((locks, None));
            }
            if let LockCfRecord::Lock(lock) = lock::decode(cursor.key(), cursor.value())?
                && wanted(&lock)
            {
                locks.push(lock.to_wire(cursor.key()));
            }
            stands = cursor.next()?;
        }
        Ok((locks, stands.then(|| Bytes::copy_from_slice(cursor.key()))))
    }

    /// Visits the versions of a key from the newest at or below `from` down to `to`, while `visit` says to go on.
    fn versions(
        &self,
        key: &[u8],
        from: Timestamp,
        to: Timestamp,
        mut visit: impl FnMut(Timestamp, Version<'_>) -> bool,
    ) -> Result<(), Fault> {
        let lower = codec::versioned(key, from);
        // One byte behind the key of `to`: the first key that is no version at or above it.
        let mut upper = Vec::with_capacity(key.len() + codec::TS_LEN + 1);
        codec::versioned_into(&mut upper, key, to);
        upper.push(0);
        let mut cursor = self.snapshot.cursor(Cf::Data, &lower, &upper);
        let mut stands = cursor.seek(&lower)?;
        while stands {
            let (_, commit_ts) = codec::split_versioned(cursor.key())
                .filter(|(user, _)| *user == key)
                .ok_or_else(|| Fault::corrupt(cursor.key(), "not a versioned key"))?;
            if !visit(commit_ts, Version::decode(key, cursor.value())?) {
                return Ok(());
            }
            stands = cursor.next()?;
        }
        Ok(())
    }
}
