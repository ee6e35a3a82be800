//! Waiting for row locks: the driver of `row_locks.rs`, and the messenger of `deadlock.rs`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, channel::oneshot};
use parking_lot::Mutex;
use proto::{Timestamp, wire, wire::RowLockMode};
use raftstore::Instant;

use crate::{
    Clock, Pd, Spawn,
    deadlock::REPORT_EVERY,
    row_locks::{Claim, Claimed, Grant, Place, RowLocks, Wait, Waiter},
};

/// The row locks of a store, and who waits for them.
pub(super) struct Rows {
    state: Mutex<State>,
    /// How many rows there are: usually none, and then a write need not take the mutex.
    count: AtomicUsize,
    /// Somebody reports waits to PD.
    reporting: AtomicBool,
    pd: Arc<dyn Pd>,
    clock: Arc<dyn Clock>,
    spawn: Arc<dyn Spawn>,
}

#[derive(Default)]
struct State {
    locks: RowLocks,
    waiting: BTreeMap<(Timestamp, Bytes), Call>,
    next: u64,
}

/// How one that waits is called.
struct Call {
    id: u64,
    sender: oneshot::Sender<Woken>,
}

/// Why a wait ended.
pub(super) enum Woken {
    /// The row is the waiter's.
    Granted,
    /// It has to give way.
    Deadlock(wire::Deadlock),
}

/// What became of a claim.
pub(super) enum Taken {
    Held,
    Waits(Waiting),
    Full,
}

/// A place in a row's queue. Dropping it keeps the place: whoever asks again before it runs out stands where it stood.
pub(super) struct Waiting {
    rows: Arc<Rows>,
    name: (Timestamp, Bytes),
    id: u64,
    woken: oneshot::Receiver<Woken>,
}

/// Rows that a transaction gives up when what it has proposed is applied.
pub(super) struct Freed {
    rows: Arc<Rows>,
    owner: Timestamp,
    keys: Vec<Bytes>,
}

impl Rows {
    pub(super) fn new(pd: Arc<dyn Pd>, clock: Arc<dyn Clock>, spawn: Arc<dyn Spawn>) -> Arc<Self> {
        let (state, count, reporting) = (Mutex::default(), AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Rows { state, count, reporting, pd, clock, spawn })
    }

    /// Changes the locks, and calls those whose turn it is.
    fn change<T>(&self, change: impl FnOnce(&mut State, &mut Vec<Grant>) -> T) -> T {
        let mut state = self.state.lock();
        let mut grants = Vec::new();
        let result = change(&mut state, &mut grants);
        for Grant { owner, key } in grants {
            if let Some(call) = state.waiting.remove(&(owner, key)) {
                // Whoever stopped listening finds its lock when it asks again.
                let _ = call.sender.send(Woken::Granted);
            }
        }
        self.count.store(state.locks.len(), Ordering::SeqCst);
        result
    }

    /// Claims a row.
    pub(super) fn claim(self: &Arc<Self>, key: &Bytes, place: Place, claim: Claim) -> Taken {
        let now = self.clock.now();
        let name = (claim.owner, key.clone());
        let taken = self.change(|state, grants| match state.locks.claim(key, place, claim, now, grants) {
            Claimed::Held => Taken::Held,
            Claimed::Full => Taken::Full,
            Claimed::Waits => {
                let (sender, woken) = oneshot::channel();
                state.next += 1;
                let id = state.next;
                // An earlier request for the same that still waits is answered "ask again".
                state.waiting.insert(name.clone(), Call { id, sender });
                Taken::Waits(Waiting { rows: self.clone(), name, id, woken })
            }
        });
        if let Taken::Waits(_) = taken {
            self.report_waits();
        }
        taken
    }

    /// A written lock stands on a row that was granted: its owner goes first, for so long.
    pub(super) fn yield_to(&self, holder: Timestamp, key: &Bytes, claimant: Timestamp, patience: Duration) {
        let until = self.clock.now() + patience;
        self.change(|state, _| state.locks.yield_to(holder, key, claimant, until));
    }

    /// Who holds a row waits for others all the same. `None`: it does not hold it.
    pub(super) fn wait_behind(
        self: &Arc<Self>,
        owner: Timestamp,
        key: &Bytes,
        (others, who): (Vec<Timestamp>, Waiter),
    ) -> Option<Behind> {
        let (sender, woken) = oneshot::channel();
        let name = (owner, key.clone());
        let id = self.change(|state, _| {
            if !state.locks.wait_behind(owner, key, others, who) {
                return None;
            }
            state.next += 1;
            let id = state.next;
            state.waiting.insert(name.clone(), Call { id, sender });
            Some(id)
        })?;
        self.report_waits();
        Some(Behind(Waiting { rows: self.clone(), name, id, woken }))
    }

    /// Gives rows up, held or waited for.
    pub(super) fn release(&self, owner: Timestamp, keys: &[Bytes]) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        self.change(|state, grants| {
            *grants = state.locks.release(owner, keys);
            keys.iter().for_each(|key| drop(state.waiting.remove(&(owner, key.clone()))));
        });
    }

    /// These rows of a transaction.
    pub(super) fn freed(self: &Arc<Self>, owner: Timestamp, keys: &[Bytes]) -> Option<Freed> {
        let any = self.count.load(Ordering::SeqCst) > 0;
        any.then(|| Freed { rows: self.clone(), owner, keys: keys.to_vec() })
    }

    pub(super) fn keep(&self, owners: &[u64], until: Instant) {
        let now = self.clock.now();
        self.change(|state, grants| {
            owners.iter().for_each(|owner| grants.extend(state.locks.keep(Timestamp(*owner), until, now)));
        });
    }

    /// Who has a lock that excludes a write of `key`.
    pub(super) fn blocker(&self, key: &[u8], owner: Timestamp, mode: RowLockMode, place: Place) -> Option<Timestamp> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        self.state.lock().locks.blocker(key, owner, mode, place, self.clock.now())
    }

    /// These locks, wherever they were granted, keep others off now.
    pub(super) fn exclude(&self, keys: &[Bytes], owner: Timestamp, place: Place) -> bool {
        let (state, now) = (self.state.lock(), self.clock.now());
        keys.iter().all(|key| state.locks.excludes(key, owner, place, now))
    }

    /// These locks have stood since they were granted, in this very term.
    pub(super) fn holds(&self, keys: &[Bytes], owner: Timestamp, place: Place) -> bool {
        let (state, now) = (self.state.lock(), self.clock.now());
        keys.iter().all(|key| state.locks.holds(key, owner, place, now))
    }

    pub(super) fn list(&self, limit: usize) -> Vec<wire::RowLockStatus> {
        let now = self.clock.now();
        self.change(|state, _| {
            state.locks.sweep(now);
            state.locks.list(limit)
        })
    }

    pub(super) fn waits(&self) -> Vec<Wait> {
        let now = self.clock.now();
        self.change(|state, _| {
            state.locks.sweep(now);
            state.locks.waits()
        })
    }

    fn reported(&self) -> Vec<Wait> {
        let now = self.clock.now();
        self.change(|state, _| {
            state.locks.sweep(now);
            state.locks.reported(|waiter, key| state.waiting.contains_key(&(waiter, key.clone())))
        })
    }

    /// While somebody waits, PD is told who for whom.
    fn report_waits(self: &Arc<Self>) {
        if self.reporting.swap(true, Ordering::SeqCst) {
            return;
        }
        let rows = self.clone();
        let report = async move {
            loop {
                rows.clock.sleep(REPORT_EVERY).await;
                let waits = rows.reported();
                if waits.is_empty() {
                    rows.reporting.store(false, Ordering::SeqCst);
                    // Somebody may have come in between and left it to this task.
                    if rows.reported().is_empty() || rows.reporting.swap(true, Ordering::SeqCst) {
                        return;
                    }
                    continue;
                }
                match rows.pd.report_waits(waits).await {
                    Ok(deadlocks) => deadlocks.into_iter().for_each(|deadlock| rows.break_up(deadlock)),
                    // Nobody finds deadlocks while there is no PD; those who wait go on waiting.
                    Err(error) => tracing::debug!(%error, "who waits for whom was not reported"),
                }
            }
        };
        self.spawn.spawn(report.boxed());
    }

    /// The victim of a deadlock stops waiting.
    fn break_up(&self, deadlock: crate::deadlock::Deadlock) {
        let Some(wait) = deadlock.cycle.first() else { return };
        let name = (deadlock.victim, wait.key.clone());
        self.change(|state, grants| {
            let Some(call) = state.waiting.remove(&name) else { return };
            let _ = call.sender.send(Woken::Deadlock(deadlock.into()));
            *grants = state.locks.give_up(name.0, &name.1);
        });
    }
}

impl Waiting {
    /// Completes when the wait is over; `None`: another request waits in this one's place, or the claim was released.
    pub(super) async fn woken(&mut self) -> Option<Woken> {
        (&mut self.woken).await.ok()
    }

    /// Leaves the queue.
    pub(super) fn give_up(&self) {
        let (owner, key) = &self.name;
        self.rows.change(|state, grants| *grants = state.locks.give_up(*owner, key));
    }
}

/// A wait behind a row that is held; it ends when this is dropped.
pub(super) struct Behind(Waiting);

impl Behind {
    /// Completes with a deadlock.
    pub(super) async fn deadlock(&mut self) -> Option<wire::Deadlock> {
        match self.0.woken().await {
            Some(Woken::Deadlock(deadlock)) => Some(deadlock),
            Some(Woken::Granted) | None => None,
        }
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        let mut state = self.0.rows.state.lock();
        // One that came later waits in this one's place.
        if state.waiting.get(&self.0.name).is_none_or(|call| call.id == self.0.id) {
            state.locks.go_on(self.0.name.0);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.rows.state.lock();
        if state.waiting.get(&self.name).is_some_and(|call| call.id == self.id) {
            state.waiting.remove(&self.name);
        }
    }
}

impl Freed {
    /// It is applied.
    pub(super) fn release(self) {
        self.rows.release(self.owner, &self.keys);
    }
}
