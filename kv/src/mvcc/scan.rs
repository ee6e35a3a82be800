//! A page of a range as of a timestamp, forwards or backwards. PURE over a snapshot.
//!
//! Two cursors run side by side, one over locks and one over versions. Stepping is cheap and seeking is not, so
//! past versions that don't matter the cursor steps a few times first and seeks when that was not enough:
//!
//! ```text
//!   a@9 a@7 a@5 a@3 a@1 b@8      read at 5: step step, a@5 is it; step step, b@8 …
//!   a@99 a@98 … a@6 a@5 b@8      read at 5: step × STEPS_BEFORE_SEEK, then seek a@5
//! ```

use bytes::Bytes;
use proto::{Cf, KeyRange, Timestamp, wire::LockRecord};
use raftstore::engine::{Cursor, Snapshot};

use crate::codec;

use super::{
    Fault, Seen,
    lock::{self, LockCfRecord, WriteKind},
    reader::Met,
    spilled::OwnWrite,
    version::{self, Version},
};

/// Steps over versions of one key before the cursor seeks: a seek costs about as much as this many steps.
const STEPS_BEFORE_SEEK: usize = 8;
/// Records one page looks at, whatever it returns: it bounds how long a scan over deleted rows takes to answer.
const MAX_VISITED: usize = 200_000;

/// How to scan.
#[derive(Clone, Copy, Debug)]
pub struct ScanSpec {
    /// The snapshot.
    pub read_ts: Timestamp,
    /// Rows at most.
    pub limit: u64,
    /// Bytes of keys and values after which the page ends.
    pub max_bytes: u64,
    /// From the end to the start.
    pub reverse: bool,
}

/// How a page ended.
#[derive(Clone, Debug, PartialEq)]
pub enum PageEnd {
    /// The range is done.
    Done,
    /// A bound was reached: go on from here (inclusive forwards, exclusive backwards).
    More(Bytes),
    /// A lock is in the way of the very first row. (Of a later one: `More`, and the next page meets it.)
    Locked(LockRecord),
}

/// Scans `range`, handing each visible row to `row`; of `seen` the own writes are among them. Returns how the page ended, and how
/// many rows there were.
pub fn scan_page(
    snapshot: &dyn Snapshot,
    range: &KeyRange,
    spec: ScanSpec,
    seen: &Seen,
    mut row: impl FnMut(&[u8], &[u8]) -> Result<(), Fault>,
) -> Result<(PageEnd, u64), Fault> {
    let mut locks = Locks::new(snapshot, range, spec, seen)?;
    let mut versions = Versions::new(snapshot, range, spec)?;
    let (mut rows, mut bytes) = (0u64, 0u64);
    // The key that was dealt with last.
    let mut last = Vec::new();
    let mut found = versions.advance()?;
    loop {
        let key = found.then_some(versions.key.as_slice());
        let own = match locks.up_to(key)? {
            Some(Ahead::Blocked(lock)) => {
                return Ok(match rows {
                    0 => (PageEnd::Locked(lock), 0),
                    _ if spec.reverse => (PageEnd::More(last.into()), rows),
                    _ => (PageEnd::More(lock.key), rows),
                });
            }
            Some(Ahead::Own(own)) => Some(own),
            None => None,
        };
        let Some(next) = own.as_ref().map(|(key, _)| key.as_ref()).or(key) else { return Ok((PageEnd::Done, rows)) };
        let visited = versions.visited + locks.visited;
        let full = rows >= spec.limit || bytes >= spec.max_bytes || visited >= MAX_VISITED;
        if full && !last.is_empty() {
            let resume = if spec.reverse { last.into() } else { Bytes::copy_from_slice(next) };
            return Ok((PageEnd::More(resume), rows));
        }
        let value = match &own {
            Some((_, OwnWrite::Value(value))) => Some(value.as_ref()),
            Some(_) => None,
            None => versions.value(),
        };
        if let Some(value) = value {
            row(next, value)?;
            rows += 1;
            bytes += (next.len() + value.len()) as u64;
        }
        last.clear();
        last.extend_from_slice(next);
        // A version under an own write is hidden by it.
        if key.is_some_and(|key| key == last) {
            found = versions.advance()?;
        }
    }
}

/// Walks the user keys of a range and finds what is visible of each.
struct Versions<'a> {
    cursor: Box<dyn Cursor + 'a>,
    spec: ScanSpec,
    /// The cursor stands on a record.
    stands: bool,
    /// The user key found last; empty before the first.
    key: Vec<u8>,
    visible: bool,
    /// Backwards the visible value is met before it is known to be the one.
    copy: Vec<u8>,
    seek_to: Vec<u8>,
    visited: usize,
}

impl<'a> Versions<'a> {
    fn new(snapshot: &'a dyn Snapshot, range: &KeyRange, spec: ScanSpec) -> Result<Self, Fault> {
        let mut cursor = snapshot.cursor(Cf::Data, &range.start, &range.end);
        let stands = if spec.reverse { cursor.seek_to_last()? } else { cursor.seek_to_first()? };
        let (key, copy, seek_to) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Versions { cursor, spec, stands, key, visible: false, copy, seek_to, visited: 0 })
    }

    /// The visible value of the key found last.
    fn value(&self) -> Option<&[u8]> {
        match (self.visible, self.spec.reverse) {
            (false, _) => None,
            (true, true) => Some(&self.copy),
            // The record was decoded when it was found.
            (true, false) => Some(&self.cursor.value()[version::HEADER_LEN..]),
        }
    }

    /// To the next user key in the scan's direction; `false` at the end.
    fn advance(&mut self) -> Result<bool, Fault> {
        self.visible = false;
        if self.spec.reverse { self.advance_back() } else { self.advance_forward() }
    }

    fn advance_forward(&mut self) -> Result<bool, Fault> {
        if !self.key.is_empty() {
            self.leave_forward()?;
        }
        if !self.enter()? {
            return Ok(false);
        }
        let mut steps = 0;
        loop {
            if self.timestamp()? > self.spec.read_ts {
                steps += 1;
                if steps > STEPS_BEFORE_SEEK { self.seek_visible()? } else { self.step()? }
            } else {
                match self.kind()? {
                    WriteKind::Put => {
                        self.visible = true;
                        return Ok(true);
                    }
                    WriteKind::Delete => return Ok(true),
                    WriteKind::Lock => self.step()?,
                }
            }
            if !self.on_key() {
                return Ok(true);
            }
        }
    }

    /// Past the versions of the current key that are left.
    fn leave_forward(&mut self) -> Result<(), Fault> {
        for _ in 0..STEPS_BEFORE_SEEK {
            if !self.on_key() {
                return Ok(());
            }
            self.step()?;
        }
        if self.on_key() {
            codec::versioned_into(&mut self.seek_to, &self.key, Timestamp::ZERO);
            self.seek_to.push(0);
            self.visited += 1;
            self.stands = self.cursor.seek(&self.seek_to)?;
        }
        Ok(())
    }

    /// The cursor stands on the oldest version of a key, and leaves on the oldest of the key before it.
    fn advance_back(&mut self) -> Result<bool, Fault> {
        if !self.enter()? {
            return Ok(false);
        }
        let mut steps = 0;
        while self.on_key() && self.timestamp()? <= self.spec.read_ts {
            steps += 1;
            if steps > STEPS_BEFORE_SEEK {
                self.find_visible_back()?;
                self.visited += 1;
                self.stands = self.cursor.seek_for_prev(&self.key)?;
                return Ok(true);
            }
            match self.kind()? {
                WriteKind::Put => self.take_value()?,
                WriteKind::Delete => self.visible = false,
                WriteKind::Lock => {}
            }
            self.step_back()?;
        }
        // Versions newer than the snapshot are left.
        while self.on_key() {
            steps += 1;
            if steps > STEPS_BEFORE_SEEK {
                self.visited += 1;
                self.stands = self.cursor.seek_for_prev(&self.key)?;
            } else {
                self.step_back()?;
            }
        }
        Ok(true)
    }

    /// Among many old versions: seeks the newest visible one and looks from there on.
    fn find_visible_back(&mut self) -> Result<(), Fault> {
        self.visible = false;
        self.seek_visible()?;
        while self.on_key() {
            match self.kind()? {
                WriteKind::Put => return self.take_value(),
                WriteKind::Delete => return Ok(()),
                WriteKind::Lock => self.step()?,
            }
        }
        Ok(())
    }

    fn take_value(&mut self) -> Result<(), Fault> {
        self.visible = true;
        self.copy.clear();
        self.copy.extend_from_slice(&self.cursor.value()[version::HEADER_LEN..]);
        Ok(())
    }

    /// Makes the user key under the cursor the current one.
    fn enter(&mut self) -> Result<bool, Fault> {
        if !self.stands {
            return Ok(false);
        }
        let Some((user, _)) = codec::split_versioned(self.cursor.key()) else {
            return Err(Fault::corrupt(self.cursor.key(), "too short for a versioned key"));
        };
        self.key.clear();
        self.key.extend_from_slice(user);
        Ok(true)
    }

    fn on_key(&self) -> bool {
        self.stands && codec::split_versioned(self.cursor.key()).is_some_and(|(user, _)| user == self.key)
    }

    fn timestamp(&self) -> Result<Timestamp, Fault> {
        match codec::split_versioned(self.cursor.key()) {
            Some((_, ts)) => Ok(ts),
            None => Err(Fault::corrupt(self.cursor.key(), "too short for a versioned key")),
        }
    }

    fn kind(&self) -> Result<WriteKind, Fault> {
        Ok(Version::decode(&self.key, self.cursor.value())?.kind)
    }

    fn seek_visible(&mut self) -> Result<(), Fault> {
        codec::versioned_into(&mut self.seek_to, &self.key, self.spec.read_ts);
        self.visited += 1;
        self.stands = self.cursor.seek(&self.seek_to)?;
        Ok(())
    }

    fn step(&mut self) -> Result<(), Fault> {
        self.visited += 1;
        self.stands = self.cursor.next()?;
        Ok(())
    }

    fn step_back(&mut self) -> Result<(), Fault> {
        self.visited += 1;
        self.stands = self.cursor.prev()?;
        Ok(())
    }
}

/// Walks the locks of a range beside the versions.
struct Locks<'a> {
    cursor: Box<dyn Cursor + 'a>,
    spec: ScanSpec,
    seen: &'a Seen,
    stands: bool,
    visited: usize,
}

/// A lock that a scan comes to.
enum Ahead {
    Blocked(LockRecord),
    Own((Bytes, OwnWrite)),
}

impl<'a> Locks<'a> {
    fn new(snapshot: &'a dyn Snapshot, range: &KeyRange, spec: ScanSpec, seen: &'a Seen) -> Result<Self, Fault> {
        let mut cursor = snapshot.cursor(Cf::Lock, &range.start, &range.end);
        let stands = if spec.reverse { cursor.seek_to_last()? } else { cursor.seek_to_first()? };
        Ok(Locks { cursor, spec, seen, stands, visited: 0 })
    }

    /// The first lock, from where the walk stands up to `key` (none: to the end), that a read can't pass, or that is its own; behind
    /// that one the walk goes on.
    fn up_to(&mut self, key: Option<&[u8]>) -> Result<Option<Ahead>, Fault> {
        let mut rollbacks = 0;
        while self.stands {
            let record = self.cursor.value();
            if lock::is_rollback(record) {
                rollbacks += 1;
                self.pass_rollback(rollbacks)?;
                continue;
            }
            let at = self.cursor.key();
            let beyond = |key: &[u8]| if self.spec.reverse { at < key } else { at > key };
            if key.is_some_and(beyond) {
                return Ok(None);
            }
            let ahead = match lock::decode(at, record)? {
                LockCfRecord::Lock(lock) => match self.seen.meet(at, &lock, self.spec.read_ts) {
                    Met::Blocked(lock) => return Ok(Some(Ahead::Blocked(lock))),
                    Met::Own(OwnWrite::Unchanged) | Met::Nothing => None,
                    Met::Own(own) => Some(Ahead::Own((Bytes::copy_from_slice(at), own))),
                },
                LockCfRecord::Rollback => None,
            };
            rollbacks = 0;
            self.visited += usize::from(self.seen.own.is_some());
            self.stands = if self.spec.reverse { self.cursor.prev()? } else { self.cursor.next()? };
            if ahead.is_some() {
                return Ok(ahead);
            }
        }
        Ok(None)
    }

    /// A key that is fought over collects rollback records: step over a few, seek past many.
    fn pass_rollback(&mut self, met: usize) -> Result<(), Fault> {
        if met <= STEPS_BEFORE_SEEK {
            self.stands = if self.spec.reverse { self.cursor.prev()? } else { self.cursor.next()? };
            return Ok(());
        }
        let Some((user, _)) = codec::split_versioned(self.cursor.key()) else {
            return Err(Fault::corrupt(self.cursor.key(), "too short for a rollback record"));
        };
        self.stands = if self.spec.reverse {
            let user = user.to_vec();
            self.cursor.seek_for_prev(&user)?
        } else {
            let mut past = Vec::with_capacity(user.len() + codec::TS_LEN + 1);
            codec::versioned_into(&mut past, user, Timestamp::ZERO);
            past.push(0);
            self.cursor.seek(&past)?
        };
        Ok(())
    }
}
