//! The record of who holds an advisory lock, and what a session counts of its own. PURE.
//!
//! ```text
//!   record := version u8 (1) ‖ { gateway u64 BE ‖ process id u32 BE ‖ shared u8 } …     none: nobody, and no record
//! ```

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Name;

const VERSION: u8 = 1;
/// Sessions that share one lock at most: the record is read and written whole.
pub const MAX_HOLDERS: usize = 10_000;

/// A session that holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its gateway; a process has another one after each start.
    pub gateway: u64,
    /// Its process id.
    pub pid: u32,
    /// Beside others.
    pub shared: bool,
}

impl Holder {
    /// The same session.
    pub fn is(&self, other: &Holder) -> bool {
        (self.gateway, self.pid) == (other.gateway, other.pid)
    }
    /// Two sessions that cannot hold a lock like this at once.
    pub fn excludes(&self, other: &Holder) -> bool {
        !self.is(other) && !(self.shared && other.shared)
    }
}

/// For a record.
pub fn encode(holders: &[Holder]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + holders.len() * 13);
    out.put_u8(VERSION);
    for holder in holders {
        out.put_u64(holder.gateway);
        out.put_u32(holder.pid);
        out.put_u8(holder.shared.into());
    }
    out.freeze()
}

/// From a record; `None` when it is damaged.
pub fn decode(mut record: Bytes) -> Option<Vec<Holder>> {
    if record.is_empty() || record.get_u8() != VERSION || !record.len().is_multiple_of(13) {
        return None;
    }
    let mut holders = Vec::with_capacity(record.len() / 13);
    while record.has_remaining() {
        holders.push(Holder { gateway: record.get_u64(), pid: record.get_u32(), shared: record.get_u8() != 0 });
    }
    Some(holders)
}

/// How often a session holds a lock, by mode and by whose end ends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    session: [u32; 2],
    transaction: [u32; 2],
    /// The mode it has for all others: the strongest it was ever asked for since it was last free.
    exclusive: bool,
}

/// Until when a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Until it is unlocked or the session ends.
    Session,
    /// Until the transaction ends.
    Transaction,
}

/// What a session holds.
#[derive(Debug, Default)]
pub struct Held {
    locks: BTreeMap<Name, Counts>,
    /// Of the transaction, in the order taken: ROLLBACK TO gives back the last ones.
    order: Vec<(Name, bool)>,
}

impl Held {
    /// Nothing.
    pub fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }
    /// Locks.
    pub fn len(&self) -> usize {
        self.locks.len()
    }
    /// It is held in this mode or a stronger one: nobody has to be asked.
    pub fn covers(&self, name: Name, shared: bool) -> bool {
        self.locks.get(&name).is_some_and(|counts| counts.exclusive || shared)
    }
    /// It is held.
    pub fn holds(&self, name: Name) -> bool {
        self.locks.contains_key(&name)
    }
    /// Once more.
    pub fn add(&mut self, name: Name, shared: bool, scope: Scope) {
        let counts = self.locks.entry(name).or_default();
        counts.exclusive |= !shared;
        match scope {
            Scope::Session => counts.session[usize::from(shared)] += 1,
            Scope::Transaction => {
                counts.transaction[usize::from(shared)] += 1;
                self.order.push((name, shared));
            }
        }
    }
    /// The session unlocks. `None`: it did not hold it so; otherwise whether nothing of it is left.
    pub fn remove(&mut self, name: Name, shared: bool) -> Option<bool> {
        let counts = self.locks.get_mut(&name)?;
        let count = &mut counts.session[usize::from(shared)];
        *count = count.checked_sub(1)?;
        Some(self.settle(name))
    }
    /// How many the transaction has taken: a place for [`Held::end_since`].
    pub fn place(&self) -> usize {
        self.order.len()
    }
    /// The transaction gives back what it took since `place`: the locks of which nothing is left.
    pub fn end_since(&mut self, place: usize) -> Vec<Name> {
        let mut gone = Vec::new();
        for (name, shared) in self.order.split_off(place.min(self.order.len())) {
            if let Some(counts) = self.locks.get_mut(&name) {
                counts.transaction[usize::from(shared)] -= 1;
                if self.settle(name) {
                    gone.push(name);
                }
            }
        }
        gone
    }
    /// All that the session has taken for itself is unlocked: the locks of which nothing is left.
    pub fn end_session(&mut self) -> Vec<Name> {
        let names: Vec<Name> = self.locks.keys().copied().collect();
        let unlock = |name: &Name| {
            if let Some(counts) = self.locks.get_mut(name) {
                counts.session = [0, 0];
            }
            self.settle(*name)
        };
        names.into_iter().filter(unlock).collect()
    }

    fn settle(&mut self, name: Name) -> bool {
        let free = |counts: &Counts| counts.session == [0, 0] && counts.transaction == [0, 0];
        self.locks.get(&name).is_some_and(free) && self.locks.remove(&name).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Name = Name::One(1);
    const B: Name = Name::Two(1, 2);

    #[test]
    fn a_lock_is_free_when_each_taking_of_it_was_given_back() {
        let mut held = Held::default();
        held.add(A, false, Scope::Session);
        held.add(A, false, Scope::Session);
        held.add(A, true, Scope::Transaction);
        assert!(held.covers(A, false) && held.covers(A, true) && !held.covers(B, true));
        assert_eq!(held.remove(A, true), None, "it is the transaction's");
        assert_eq!((held.remove(A, false), held.remove(A, false)), (Some(false), Some(false)));
        assert_eq!(held.remove(A, false), None);
        assert_eq!(held.end_since(0), [A]);
        assert!(held.is_empty());
    }

    #[test]
    fn a_savepoint_gives_back_what_came_after_it() {
        let mut held = Held::default();
        held.add(A, true, Scope::Transaction);
        let place = held.place();
        held.add(A, true, Scope::Transaction);
        held.add(B, false, Scope::Transaction);
        assert_eq!(held.end_since(place), [B]);
        assert!(held.holds(A) && !held.covers(A, false));
        held.add(B, false, Scope::Session);
        assert_eq!(held.end_session(), [B]);
        assert_eq!(held.end_since(0), [A]);
    }

    #[test]
    fn records_come_back() {
        let holders =
            [Holder { gateway: 1, pid: 2, shared: true }, Holder { gateway: u64::MAX, pid: 3, shared: false }];
        assert_eq!(decode(encode(&holders)).as_deref(), Some(&holders[..]));
        assert_eq!(decode(encode(&[])), Some(Vec::new()));
        for damaged in [&b""[..], b"\x02", b"\x01x"] {
            assert_eq!(decode(Bytes::copy_from_slice(damaged)), None);
        }
        assert!(holders[0].excludes(&holders[1]) && !holders[0].excludes(&holders[0]));
    }
}
