//! What a transaction has written and not yet committed. PURE.
//!
//! Writes have generations: each place that something may go back to, or that a statement reads at, begins a new one. What is held
//! here is taken out when it is committed, or, with its generations, when it becomes too much for this memory ([`super::spill`]).

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use bytes::Bytes;
use proto::{
    KeyRange,
    wire::{EarlierWrite, Mutation, MutationKind},
};

use crate::Error;

use super::marks::{Mark, Marks};

/// Bytes of keys and values at most: a transaction that makes room stays far below.
const MAX_BYTES: usize = 64 << 20;
/// Bytes of one key with its value at most: both travel in one message and one proposal, with room to spare.
const MAX_ROW_BYTES: usize = 8 << 20;
/// Writes at most, for the same reason.
const MAX_WRITES: usize = 1_000_000;

/// What a write costs besides its bytes, roughly.
const WRITE_OVERHEAD: usize = 128;

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

    /// As a spill leaves it. What was inserted and deleted again is seen as gone there.
    fn spilled(&self) -> (MutationKind, Bytes) {
        match self {
            Write::Put(value) => (MutationKind::Put, value.clone()),
            Write::Insert(value) => (MutationKind::Insert, value.clone()),
            Write::Delete | Write::Undone => (MutationKind::Delete, Bytes::new()),
            Write::Lock => (MutationKind::Lock, Bytes::new()),
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
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Writes that could be taken back, counted from the transaction's beginning.
    undo: usize,
    /// Of the writes before it.
    pub(crate) mark: Mark,
}

/// A write, and how many places came before it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dated {
    generation: u64,
    write: Write,
}

/// Pending changes by key.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    writes: BTreeMap<Bytes, Dated>,
    bytes: usize,
    /// What each write since the first savepoint replaced, oldest first.
    undo: VecDeque<(Bytes, Option<Dated>)>,
    /// Those that can't be undone here any more: nobody wants to, or they were spilled.
    undone: usize,
    undo_bytes: usize,
    /// Places to go back to, and those that something reads at.
    marks: Marks,
    savepoints: Marks,
}

impl Buffer {
    /// From now on every write can be taken back. Costs the memory of what is overwritten, while the place is held.
    pub(crate) fn savepoint(&mut self) -> Place {
        self.forget_undo();
        Place { undo: self.undone + self.undo.len(), mark: self.savepoints.hold_with(&self.marks) }
    }

    /// A place that something reads at: later writes are of another generation.
    pub(crate) fn mark(&self) -> Mark {
        self.marks.hold()
    }

    /// Generations that are still wanted, sorted.
    pub(crate) fn marks(&self) -> Vec<u64> {
        self.marks.held()
    }

    /// The number of the generation of the next write; from here on a place that is gone back to lies before it.
    pub(crate) fn next_generation(&self) -> u64 {
        self.marks.next()
    }

    /// Takes back the writes since `savepoint`, and with them the savepoints since then. What was spilled meanwhile is not its affair.
    pub(crate) fn roll_back_to(&mut self, savepoint: &Place) {
        while self.undone + self.undo.len() > savepoint.undo {
            let Some((key, old)) = self.undo.pop_back() else { break };
            self.undo_bytes -= undo_bytes(&key, old.as_ref());
            let key_bytes = key.len();
            let new = match old {
                Some(old) => {
                    self.bytes += key_bytes + old.write.bytes();
                    self.writes.insert(key, old)
                }
                None => self.writes.remove(&key),
            };
            self.bytes -= new.map_or(0, |new| key_bytes + new.write.bytes());
        }
        self.marks.hold();
    }

    /// Nobody can go back any more.
    fn forget_undo(&mut self) {
        if !self.undo.is_empty() && self.savepoints.is_empty() {
            self.undone += self.undo.len();
            self.undo.clear();
            self.undo_bytes = 0;
        }
    }

    /// Memory it takes, roughly.
    pub(crate) fn weight(&self) -> usize {
        self.bytes + self.undo_bytes + WRITE_OVERHEAD * (self.writes.len() + self.undo.len())
    }

    /// Takes everything out to be spilled. Generations go on.
    pub(crate) fn split(&mut self) -> Buffer {
        self.forget_undo();
        let rest = Buffer {
            undone: self.undone + self.undo.len(),
            marks: self.marks.clone(),
            savepoints: self.savepoints.clone(),
            ..Buffer::default()
        };
        std::mem::replace(self, rest)
    }

    /// The changes as they are spilled, in key order, each with what it replaced and somebody may want again.
    pub(crate) fn spilled(&self) -> Vec<Mutation> {
        let mut earlier: BTreeMap<&Bytes, Vec<EarlierWrite>> = BTreeMap::new();
        for (key, old) in &self.undo {
            let Some(old) = old else { continue };
            let (kind, value) = old.write.spilled();
            let write = EarlierWrite { generation: old.generation, kind: kind as i32, value };
            let known = earlier.entry(key).or_default();
            // Of one generation the last is it.
            known.pop_if(|last| last.generation == write.generation);
            known.push(write);
        }
        let mutation = |(key, dated): (&Bytes, &Dated)| {
            let (kind, value) = dated.write.spilled();
            let mut earlier = earlier.remove(key).unwrap_or_default();
            earlier.retain(|earlier| earlier.generation < dated.generation);
            let (kind, key, generation) = (kind as i32, key.clone(), dated.generation);
            Mutation { kind, key, value, seen_ts: 0, generation, earlier }
        };
        self.writes.iter().map(mutation).collect()
    }

    pub(crate) fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Error> {
        let write = match self.write(&key) {
            Some(Write::Insert(_) | Write::Undone) => Write::Insert(value),
            _ => Write::Put(value),
        };
        self.set(key, write)
    }

    pub(crate) fn insert(&mut self, key: Bytes, value: Bytes) -> Result<(), Error> {
        let write = match self.write(&key) {
            Some(Write::Put(_) | Write::Insert(_)) => return Err(Error::AlreadyExists { key }),
            Some(Write::Delete) => Write::Put(value),
            Some(Write::Undone | Write::Lock) | None => Write::Insert(value),
        };
        self.set(key, write)
    }

    pub(crate) fn delete(&mut self, key: Bytes) -> Result<(), Error> {
        let write = match self.write(&key) {
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

    fn write(&self, key: &[u8]) -> Option<&Write> {
        self.writes.get(key).map(|dated| &dated.write)
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
        let undone = (!self.savepoints.is_empty()).then(|| key.clone());
        let old = self.writes.insert(key, Dated { generation: self.marks.next(), write });
        self.bytes -= old.as_ref().map_or(0, |old| key_bytes + old.write.bytes());
        match undone {
            Some(key) => {
                self.undo_bytes += undo_bytes(&key, old.as_ref());
                self.undo.push_back((key, old));
            }
            None => self.forget_undo(),
        }
        Ok(())
    }

    pub(crate) fn own(&self, key: &[u8]) -> Own {
        self.write(key).map_or(Own::Unknown, Write::own)
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
        let inside = (!range.is_empty()).then(|| self.writes.range::<[u8], _>(bounds)).into_iter().flatten();
        inside.map(|(key, dated)| (key, &dated.write))
    }

    /// The changes as they are prewritten, in key order; the buffer is empty afterwards.
    pub(crate) fn take(&mut self) -> Vec<Mutation> {
        let Buffer { writes, .. } = std::mem::take(self);
        let mutation = |(key, dated): (Bytes, Dated)| {
            let (kind, value) = match dated.write {
                Write::Put(value) => (MutationKind::Put, value),
                Write::Insert(value) => (MutationKind::Insert, value),
                Write::Delete => (MutationKind::Delete, Bytes::new()),
                Write::Undone | Write::Lock => (MutationKind::Lock, Bytes::new()),
            };
            Mutation { kind: kind as i32, key, value, ..Mutation::default() }
        };
        writes.into_iter().map(mutation).collect()
    }
}

fn undo_bytes(key: &Bytes, old: Option<&Dated>) -> usize {
    key.len() + old.map_or(0, |old| old.write.bytes())
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
        buffer.roll_back_to(&second);
        assert_eq!((buffer.writes.clone(), buffer.bytes()), middle);
        // A savepoint stays when it is gone back to.
        buffer.put(b("d"), b("4")).unwrap();
        buffer.roll_back_to(&second);
        assert_eq!((buffer.writes.clone(), buffer.bytes()), middle);
        buffer.roll_back_to(&first);
        assert_eq!((buffer.writes.clone(), buffer.bytes()), before);
        assert_eq!((buffer.undo.len(), buffer.undo_bytes), (0, 0));
    }

    #[test]
    fn what_is_spilled_brings_what_it_may_go_back_to() {
        let mut buffer = Buffer::default();
        buffer.insert(b("a"), b("1")).unwrap();
        let place = buffer.savepoint();
        buffer.put(b("a"), b("2")).unwrap();
        buffer.put(b("a"), b("3")).unwrap();
        buffer.delete(b("b")).unwrap();
        let mut spilled = buffer.split();
        assert_eq!((buffer.len(), spilled.marks()), (0, vec![place.mark.generation()]));
        let mutations = spilled.spilled();
        let [a, _] = &mutations[..] else { panic!("{mutations:?}") };
        let earlier: Vec<_> = a.earlier.iter().map(|earlier| (earlier.generation, earlier.kind())).collect();
        assert_eq!((a.kind(), a.value.clone()), (MutationKind::Insert, b("3")));
        assert_eq!(earlier, [(place.mark.generation(), MutationKind::Insert)]);
        assert!(a.generation > place.mark.generation());
        // What was spilled is not undone here, what came afterwards is.
        buffer.put(b("c"), b("1")).unwrap();
        buffer.roll_back_to(&place);
        assert_eq!(buffer.len(), 0);
        assert!(buffer.next_generation() > a.generation);
        drop((place, spilled.take()));
        buffer.put(b("c"), b("1")).unwrap();
        assert!(buffer.undo.is_empty() && buffer.marks().is_empty());
    }

    #[test]
    fn a_row_deleted_here_may_be_inserted_again() {
        let mut buffer = Buffer::default();
        buffer.delete(b("a")).unwrap();
        buffer.insert(b("a"), b("1")).unwrap();
        assert_eq!(buffer.take()[0].kind(), MutationKind::Put);
    }
}
