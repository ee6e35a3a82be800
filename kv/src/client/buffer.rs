//! What a transaction has written and not yet committed. PURE.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;
use proto::{
    KeyRange,
    wire::{Mutation, MutationKind},
};

use crate::Error;

/// Bytes of keys and values of one transaction at most: they are held in memory here and in the leaders' locks.
const MAX_BYTES: usize = 64 << 20;
/// Bytes of one key with its value at most: both travel in one message and one proposal, with room to spare.
const MAX_ROW_BYTES: usize = 8 << 20;
/// Writes of one transaction at most, for the same reason.
const MAX_WRITES: usize = 1_000_000;

/// One key's pending change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// A new value.
    Put(Bytes),
    /// A new value for a key that must not have one.
    Insert(Bytes),
    /// Gone.
    Delete,
    /// Inserted and deleted again here: no change, but the key still conflicts.
    Undone,
    /// No change, but conflicts as a write does.
    Lock,
}

/// What the buffer says about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// This value.
    Value(Bytes),
    /// No value.
    Gone,
    /// Nothing: ask the store.
    Unknown,
}

impl Write {
    /// What this transaction reads under the key.
    pub(crate) fn own(&self) -> Own {
        match self {
            Write::Put(value) | Write::Insert(value) => Own::Value(value.clone()),
            Write::Delete | Write::Undone => Own::Gone,
            Write::Lock => Own::Unknown,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Write::Put(value) | Write::Insert(value) => value.len(),
            Write::Delete | Write::Undone | Write::Lock => 0,
        }
    }
}

/// A place in a transaction's writes to which it can go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(usize);

/// Pending changes by key.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    writes: BTreeMap<Bytes, Write>,
    bytes: usize,
    /// What each write since the first savepoint replaced, oldest first.
    undo: Vec<(Bytes, Option<Write>)>,
    undo_bytes: usize,
    has_savepoint: bool,
}

impl Buffer {
    /// From now on every write can be taken back. Costs the memory of what is overwritten, until the buffer is empty again.
    pub(crate) fn savepoint(&mut self) -> Place {
        self.has_savepoint = true;
        Place(self.undo.len())
    }

    /// Takes back the writes since `savepoint`, and with them the savepoints since then.
    pub(crate) fn roll_back_to(&mut self, savepoint: Place) {
        while self.undo.len() > savepoint.0 {
            let Some((key, old)) = self.undo.pop() else { return };
            self.undo_bytes -= undo_bytes(&key, old.as_ref());
            let key_bytes = key.len();
            let new = match old {
                Some(old) => {
                    self.bytes += key_bytes + old.bytes();
                    self.writes.insert(key, old)
                }
                None => self.writes.remove(&key),
            };
            self.bytes -= new.map_or(0, |new| key_bytes + new.bytes());
        }
    }

    pub(crate) fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Error> {
        let write = match self.writes.get(&key) {
            Some(Write::Insert(_) | Write::Undone) => Write::Insert(value),
            _ => Write::Put(value),
        };
        self.set(key, write)
    }

    pub(crate) fn insert(&mut self, key: Bytes, value: Bytes) -> Result<(), Error> {
        let write = match self.writes.get(&key) {
            Some(Write::Put(_) | Write::Insert(_)) => return Err(Error::AlreadyExists { key }),
            Some(Write::Delete) => Write::Put(value),
            Some(Write::Undone | Write::Lock) | None => Write::Insert(value),
        };
        self.set(key, write)
    }

    pub(crate) fn delete(&mut self, key: Bytes) -> Result<(), Error> {
        let write = match self.writes.get(&key) {
            Some(Write::Insert(_) | Write::Undone) => Write::Undone,
            _ => Write::Delete,
        };
        self.set(key, write)
    }

    pub(crate) fn lock(&mut self, key: Bytes) -> Result<(), Error> {
        if self.writes.contains_key(&key) {
            return Ok(());
        }
        self.set(key, Write::Lock)
    }

    fn set(&mut self, key: Bytes, write: Write) -> Result<(), Error> {
        let added = key.len() + write.bytes();
        if added > MAX_ROW_BYTES {
            return Err(Error::TooLarge(format!("a key with its value has at most {MAX_ROW_BYTES} bytes")));
        }
        if self.bytes + self.undo_bytes + added > MAX_BYTES {
            return Err(Error::TooLarge(format!("a transaction writes at most {MAX_BYTES} bytes")));
        }
        let known = self.writes.contains_key(&key);
        if (self.writes.len() >= MAX_WRITES && !known) || self.undo.len() >= MAX_WRITES {
            return Err(Error::TooLarge(format!("a transaction writes at most {MAX_WRITES} keys")));
        }
        let key_bytes = key.len();
        self.bytes += added;
        let undone = self.has_savepoint.then(|| key.clone());
        let old = self.writes.insert(key, write);
        self.bytes -= old.as_ref().map_or(0, |old| key_bytes + old.bytes());
        if let Some(key) = undone {
            self.undo_bytes += undo_bytes(&key, old.as_ref());
            self.undo.push((key, old));
        }
        Ok(())
    }

    pub(crate) fn own(&self, key: &[u8]) -> Own {
        self.writes.get(key).map_or(Own::Unknown, Write::own)
    }

    pub(crate) fn len(&self) -> usize {
        self.writes.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The writes whose keys lie in `range`, in order.
    pub(crate) fn range<'a>(&'a self, range: &'a KeyRange) -> impl DoubleEndedIterator<Item = (&'a Bytes, &'a Write)> {
        let upper = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.end.as_ref()) };
        let bounds = (Bound::Included(range.start.as_ref()), upper);
        (!range.is_empty()).then(|| self.writes.range::<[u8], _>(bounds)).into_iter().flatten()
    }

    /// The changes as they are prewritten, in key order; the buffer is empty afterwards.
    pub(crate) fn take(&mut self) -> Vec<Mutation> {
        let Buffer { writes, .. } = std::mem::take(self);
        let mutation = |(key, write)| {
            let (kind, value) = match write {
                Write::Put(value) => (MutationKind::Put, value),
                Write::Insert(value) => (MutationKind::Insert, value),
                Write::Delete => (MutationKind::Delete, Bytes::new()),
                Write::Undone | Write::Lock => (MutationKind::Lock, Bytes::new()),
            };
            Mutation { kind: kind as i32, key, value, seen_ts: 0 }
        };
        writes.into_iter().map(mutation).collect()
    }
}

fn undo_bytes(key: &Bytes, old: Option<&Write>) -> usize {
    key.len() + old.map_or(0, Write::bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn b(s: &'static str) -> Bytes {
        Bytes::from_static(s.as_bytes())
    }

    #[test]
    fn an_insert_stays_an_insert_and_one_undone_changes_nothing() {
        let mut buffer = Buffer::default();
        buffer.insert(b("a"), b("1")).unwrap();
        assert_eq!(buffer.insert(b("a"), b("2")), Err(Error::AlreadyExists { key: b("a") }));
        buffer.put(b("a"), b("22")).unwrap();
        assert_eq!((buffer.own(b"a"), buffer.bytes()), (Own::Value(b("22")), 3));
        buffer.insert(b("b"), b("1")).unwrap();
        buffer.delete(b("b")).unwrap();
        assert_eq!((buffer.own(b"b"), buffer.own(b"c")), (Own::Gone, Own::Unknown));
        let kinds: Vec<_> = buffer.take().iter().map(|m| m.kind()).collect();
        assert_eq!(kinds, [MutationKind::Insert, MutationKind::Lock]);
        assert_eq!((buffer.len(), buffer.bytes()), (0, 0));
    }

    #[test]
    fn going_back_to_a_savepoint_leaves_the_buffer_as_it_was() {
        let mut buffer = Buffer::default();
        buffer.put(b("a"), b("1")).unwrap();
        let before = (buffer.writes.clone(), buffer.bytes());
        let first = buffer.savepoint();
        buffer.put(b("a"), b("22")).unwrap();
        buffer.insert(b("b"), b("1")).unwrap();
        let middle = (buffer.writes.clone(), buffer.bytes());
        let second = buffer.savepoint();
        buffer.delete(b("b")).unwrap();
        buffer.delete(b("a")).unwrap();
        buffer.lock(b("c")).unwrap();
        buffer.put(b("a"), b("333")).unwrap();
        buffer.roll_back_to(second);
        assert_eq!((buffer.writes.clone(), buffer.bytes()), middle);
        // A savepoint stays when it is gone back to.
        buffer.put(b("d"), b("4")).unwrap();
        buffer.roll_back_to(second);
        assert_eq!((buffer.writes.clone(), buffer.bytes()), middle);
        buffer.roll_back_to(first);
        assert_eq!((buffer.writes.clone(), buffer.bytes()), before);
        assert_eq!((buffer.undo.len(), buffer.undo_bytes), (0, 0));
    }

    #[test]
    fn a_row_deleted_here_may_be_inserted_again() {
        let mut buffer = Buffer::default();
        buffer.delete(b("a")).unwrap();
        buffer.insert(b("a"), b("1")).unwrap();
        assert_eq!(buffer.take()[0].kind(), MutationKind::Put);
    }
}
