//! Reads and one-round commits that pass each other on one store.
//!
//! A 1PC chooses its commit timestamp by itself, on the leader. It must lie above every snapshot that has been read
//! there already, or that reader would have missed it. Both sides announce themselves before they look:
//!
//! ```text
//!   read at R                          1PC
//!   1  max_ts := max(max_ts, R)        1  publish an in-memory lock on the keys
//!   2  a lock in memory on the key     2  commit_ts := max(max_ts, start_ts, floor) + 1
//!      that may commit at or below R?  3  write it into the lock, replicate, apply
//!      wait until it is gone           4  remove the lock
//!   3  take the snapshot, read
//! ```
//!
//! Whichever comes second sees the other: if the read's 1 comes before the write's 2, commit_ts is above R; otherwise
//! the write's 1 came before the read's 2, and the read waits.
//!
//! A new leader does not know what its predecessor has served, nor what was served of keys that have just come to its region
//! by a merge. Before the first 1PC of a term, and after every change of the borders, it takes a timestamp from PD: every
//! read of the past had an older one.
//!
//! A 1PC that has read what others may be writing (SERIALIZABLE) is both: it publishes, chooses and raises `max_ts` to what it
//! has chosen in one step, and then waits for the writes in flight at or below that. They chose before it did, and wait for
//! nobody who chose later: no circle.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::{KeyRange, RegionId, Term, Timestamp};
use tokio::sync::watch;

/// What reads and one-round commits of a store know of each other.
#[derive(Default)]
pub struct Concurrency {
    /// At or above every snapshot that was read here.
    max_ts: AtomicU64,
    /// How many keys are locked in memory: usually none, and then a read need not take the mutex.
    locked: AtomicU64,
    locks: Mutex<Locks>,
    /// For each region the reign for which `max_ts` is known to cover all earlier ones.
    synced: Mutex<BTreeMap<RegionId, Reign>>,
}

type Locks = BTreeMap<Bytes, MemoryLock>;

/// A time during which one leader alone has served the same keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reign {
    /// Of the leader.
    pub term: Term,
    /// Of the region's borders.
    pub version: u64,
}

struct MemoryLock {
    start_ts: Timestamp,
    /// Zero until the commit timestamp is chosen.
    commit_ts: Timestamp,
    /// Its sender is dropped when the write is done.
    done: watch::Receiver<()>,
}

/// A write under way that a read has to wait for.
pub struct InFlight {
    done: watch::Receiver<()>,
}

impl InFlight {
    /// Completes when the write is done, one way or the other.
    pub async fn done(mut self) {
        while self.done.changed().await.is_ok() {}
    }
}

impl Concurrency {
    /// A snapshot at `ts` is about to be read.
    pub fn raise(&self, ts: Timestamp) {
        self.max_ts.fetch_max(ts.0, Ordering::SeqCst);
    }

    /// At or above every snapshot that was read here.
    pub fn max_ts(&self) -> Timestamp {
        Timestamp(self.max_ts.load(Ordering::SeqCst))
    }

    /// A write in flight on one of `keys` that may commit at or below `read_ts`. Call after [`Concurrency::raise`].
    pub fn in_flight_on<'a>(&self, keys: impl IntoIterator<Item = &'a Bytes>, read_ts: Timestamp) -> Option<InFlight> {
        if self.locked.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let locks = self.locks.lock();
        keys.into_iter().find_map(|key| locks.get(key).filter(|l| l.blocks(read_ts)).map(MemoryLock::in_flight))
    }

    /// The same for a range.
    pub fn in_flight_in(&self, range: &KeyRange, read_ts: Timestamp) -> Option<InFlight> {
        self.in_flight_beside(Timestamp::MAX, range, read_ts)
    }

    /// The same, but for what transaction `own` writes itself.
    pub fn in_flight_beside(&self, own: Timestamp, range: &KeyRange, read_ts: Timestamp) -> Option<InFlight> {
        if range.is_empty() || self.locked.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let upper = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(&range.end) };
        let locks = self.locks.lock();
        let mut inside = locks.range::<Bytes, _>((Bound::Included(&range.start), upper));
        inside.find(|(_, lock)| lock.start_ts != own && lock.blocks(read_ts)).map(|(_, lock)| lock.in_flight())
    }

    /// Announces a write of `keys` (whose latches the caller holds). Dropping the result takes it back.
    pub fn publish(self: &Arc<Self>, keys: Vec<Bytes>, start_ts: Timestamp) -> Published {
        let mut locks = self.locks.lock();
        self.insert(&mut locks, keys, start_ts)
    }

    /// Announces a write of `keys`, chooses its commit timestamp, above `floor` and every read that has been announced, and
    /// announces a read at that: others choose higher ones from now on.
    pub fn publish_as_read(
        self: &Arc<Self>,
        keys: Vec<Bytes>,
        start_ts: Timestamp,
        floor: Timestamp,
    ) -> (Timestamp, Published) {
        let mut locks = self.locks.lock();
        let published = self.insert(&mut locks, keys, start_ts);
        let commit_ts = self.max_ts().max(floor).next();
        self.raise(commit_ts);
        published.promise(&mut locks, commit_ts);
        (commit_ts, published)
    }

    fn insert(self: &Arc<Self>, locks: &mut Locks, keys: Vec<Bytes>, start_ts: Timestamp) -> Published {
        let (sender, done) = watch::channel(());
        for key in &keys {
            let lock = MemoryLock { start_ts, commit_ts: Timestamp::ZERO, done: done.clone() };
            let before = locks.insert(key.clone(), lock);
            assert!(before.is_none(), "two writes in flight on one key: latches do not hold");
        }
        self.locked.fetch_add(keys.len() as u64, Ordering::SeqCst);
        Published { concurrency: self.clone(), keys, _done: sender }
    }

    /// Whether `max_ts` covers all reads before `reign`.
    pub fn is_synced(&self, region: RegionId, reign: Reign) -> bool {
        self.synced.lock().get(&region) == Some(&reign)
    }

    /// A timestamp that PD has issued after `reign` began: it covers all reads before.
    pub fn sync(&self, region: RegionId, reign: Reign, fresh: Timestamp) {
        self.raise(fresh);
        let mut synced = self.synced.lock();
        let known = synced.entry(region).or_default();
        *known = (*known).max(reign);
    }
}

impl MemoryLock {
    fn blocks(&self, read_ts: Timestamp) -> bool {
        self.commit_ts <= read_ts && self.start_ts <= read_ts
    }

    fn in_flight(&self) -> InFlight {
        InFlight { done: self.done.clone() }
    }
}

/// A write in flight; while this lives, reads above its commit timestamp wait for it.
pub struct Published {
    concurrency: Arc<Concurrency>,
    keys: Vec<Bytes>,
    _done: watch::Sender<()>,
}

impl Published {
    /// Chooses a commit timestamp above `floor` and every read that has been announced; reads below it pass from now on.
    pub fn choose_commit_ts(&self, floor: Timestamp) -> Timestamp {
        let mut locks = self.concurrency.locks.lock();
        let commit_ts = self.concurrency.max_ts().max(floor).next();
        self.promise(&mut locks, commit_ts);
        commit_ts
    }

    /// Takes `commit_ts`, whose owner alone has announced a read at it, unless a later read has been announced.
    pub fn take_commit_ts(&self, commit_ts: Timestamp) -> bool {
        let mut locks = self.concurrency.locks.lock();
        if self.concurrency.max_ts() > commit_ts {
            return false;
        }
        self.promise(&mut locks, commit_ts);
        true
    }

    fn promise(&self, locks: &mut Locks, commit_ts: Timestamp) {
        for key in &self.keys {
            locks.get_mut(key).expect("published keys stay until dropped").commit_ts = commit_ts;
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let mut locks = self.concurrency.locks.lock();
        for key in &self.keys {
            locks.remove(key);
        }
        self.concurrency.locked.fetch_sub(self.keys.len() as u64, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn key(k: &'static str) -> Bytes {
        Bytes::from_static(k.as_bytes())
    }

    #[test]
    fn a_write_lands_above_every_read_announced_before_it_chose() {
        let shared = Arc::new(Concurrency::default());
        shared.raise(Timestamp(50));
        let write = shared.publish(vec![key("a")], Timestamp(10));
        // Not chosen yet: it could still land at 11, so a read at 60 waits, and raises max_ts before it looks.
        shared.raise(Timestamp(60));
        assert!(shared.in_flight_on([&key("a")], Timestamp(60)).is_some());
        assert!(shared.in_flight_on([&key("b")], Timestamp(60)).is_none());
        assert_eq!(write.choose_commit_ts(Timestamp(10)), Timestamp(61));
        assert!(shared.in_flight_on([&key("a")], Timestamp(60)).is_none());
        assert!(shared.in_flight_in(&KeyRange::new("a", "b"), Timestamp(61)).is_some());
    }

    #[test]
    fn of_two_that_write_what_the_other_reads_one_waits() {
        let shared = Arc::new(Concurrency::default());
        shared.raise(Timestamp(50));
        let (first_ts, _first) = shared.publish_as_read(vec![key("a")], Timestamp(10), Timestamp(20));
        let (second_ts, _second) = shared.publish_as_read(vec![key("b")], Timestamp(11), Timestamp(20));
        assert_eq!((first_ts, second_ts), (Timestamp(51), Timestamp(52)));
        let all = KeyRange::default();
        assert!(shared.in_flight_beside(Timestamp(10), &all, first_ts).is_none());
        assert!(shared.in_flight_beside(Timestamp(11), &all, second_ts).is_some());
    }

    #[test]
    fn a_given_timestamp_is_taken_unless_somebody_has_read_later() {
        let shared = Arc::new(Concurrency::default());
        shared.raise(Timestamp(50));
        let write = shared.publish(vec![key("a")], Timestamp(10));
        assert!(!write.take_commit_ts(Timestamp(49)));
        // Its own announcement was the last.
        assert!(write.take_commit_ts(Timestamp(50)));
        assert!(shared.in_flight_on([&key("a")], Timestamp(49)).is_none());
        assert!(shared.in_flight_on([&key("a")], Timestamp(50)).is_some());
    }

    #[test]
    fn a_reader_that_waits_is_woken_when_the_write_is_done() {
        let shared = Arc::new(Concurrency::default());
        let write = shared.publish(vec![key("a")], Timestamp(10));
        let waiting = shared.in_flight_on([&key("a")], Timestamp(10)).unwrap();
        let mut done = Box::pin(waiting.done());
        assert!(done.as_mut().now_or_never().is_none());
        drop(write);
        assert!(done.now_or_never().is_some());
        assert!(shared.in_flight_in(&KeyRange::default(), Timestamp::MAX).is_none());
    }

    #[test]
    fn a_reign_is_synced_once_and_older_ones_do_not_undo_it() {
        let shared = Concurrency::default();
        let reign = |term, version| Reign { term: Term(term), version };
        assert!(!shared.is_synced(RegionId(2), reign(5, 1)));
        shared.sync(RegionId(2), reign(5, 1), Timestamp(100));
        shared.sync(RegionId(2), reign(4, 1), Timestamp(90));
        assert!(shared.is_synced(RegionId(2), reign(5, 1)) && shared.max_ts() == Timestamp(100));
        assert!(!shared.is_synced(RegionId(2), reign(5, 2)), "it has other keys");
    }
}
