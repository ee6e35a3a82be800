//! What a gateway has been told of the strong locks of tables: uses that they exclude wait.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    mode::{Mode, Modes},
    record::{Holder, SessionId},
};

/// The barriers of one gateway. A copy of the records, behind which statements wait; a stale one costs time, a missing one a
/// lock that is none.
#[derive(Debug, Default)]
pub struct Barriers {
    /// How many tables have one: usually none, and then no statement takes the mutex.
    count: AtomicUsize,
    tables: Mutex<BTreeMap<u32, Vec<Holder>>>,
    lowered: Notify,
    used_less: Notify,
}

impl Barriers {
    /// A session locks a table so, from its `turn` on. With no modes it does not any more. What is older than what is known is
    /// ignored.
    pub fn set(&self, table: u32, holder: Holder) {
        let mut tables = self.tables.lock();
        let holders = tables.entry(table).or_default();
        let known = holders.iter().position(|known| known.session == holder.session);
        let is_late = known.is_some_and(|at| holders[at].turn > holder.turn);
        if !is_late {
            if let Some(at) = known {
                holders.swap_remove(at);
            }
            if !holder.modes.is_empty() {
                holders.push(holder);
            }
        }
        if holders.is_empty() {
            tables.remove(&table);
        }
        self.count.store(tables.len(), Ordering::SeqCst);
        drop(tables);
        self.lowered.notify_waiters();
    }

    /// The same as [`Barriers::on`] said is not in the record any more.
    pub fn lower(&self, table: u32, gone: &[Holder]) {
        for holder in gone {
            self.set(table, Holder { modes: Modes::default(), ..*holder });
        }
    }

    /// As the records say, of which nothing was heard for a while. Barriers that they do not know stay: one may have come since they
    /// were read.
    pub fn merge(&self, records: BTreeMap<u32, Vec<Holder>>) {
        for (table, holders) in records {
            holders.into_iter().for_each(|holder| self.set(table, holder));
        }
    }

    /// Those of a table.
    pub fn on(&self, table: u32) -> Vec<Holder> {
        self.tables.lock().get(&table).cloned().unwrap_or_default()
    }

    /// There is none at all.
    pub fn are_none(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Whether a session that has `held` of a table has to wait with a use of it in `mode`. Whoever has something already that a lock
    /// waits for goes before it.
    pub fn stop(&self, table: u32, mode: Mode, held: Modes, session: SessionId) -> bool {
        if self.are_none() {
            return false;
        }
        let tables = self.tables.lock();
        let others = tables.get(&table).into_iter().flatten().filter(|holder| holder.session != session);
        others.into_iter().any(|holder| holder.modes.exclude(mode) && !holder.modes.exclude_any(held))
    }

    /// Completes after one was lowered.
    pub async fn lowered(&self) {
        self.lowered.notified().await;
    }

    /// A transaction has ended, or does not use a table any more.
    pub fn use_less(&self) {
        if !self.are_none() {
            self.used_less.notify_waiters();
        }
    }

    /// Completes when `unused` is true; it is asked after each end of a use.
    pub async fn unused(&self, unused: impl Fn() -> bool) {
        loop {
            let ended = self.used_less.notified();
            tokio::pin!(ended);
            // Registered before the look, so that an end in between is not missed.
            ended.as_mut().enable();
            if unused() {
                return;
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(pid: u32, turn: u64, modes: &[Mode]) -> Holder {
        Holder { session: SessionId { gateway: 1, pid }, turn, modes: Modes::of(modes.iter().copied()) }
    }

    #[test]
    fn a_barrier_stops_others_who_have_nothing_against_it() {
        let barriers = Barriers::default();
        let me = SessionId { gateway: 1, pid: 9 };
        let stop = |mode, held: &[Mode]| barriers.stop(100, mode, Modes::of(held.iter().copied()), me);
        assert!(!stop(Mode::RowExclusive, &[]));
        barriers.set(100, holder(1, 5, &[Mode::Share]));
        assert!(stop(Mode::RowExclusive, &[]) && stop(Mode::RowExclusive, &[Mode::AccessShare]));
        assert!(!stop(Mode::AccessShare, &[]));
        barriers.set(100, holder(1, 6, &[Mode::AccessExclusive]));
        // The lock waits for the reader: it goes on and writes.
        assert!(!stop(Mode::RowExclusive, &[Mode::AccessShare]));
        assert!(!barriers.stop(100, Mode::AccessShare, Modes::default(), SessionId { gateway: 1, pid: 1 }));
    }

    #[test]
    fn what_comes_too_late_is_ignored() {
        let barriers = Barriers::default();
        barriers.set(100, holder(1, 5, &[Mode::Share]));
        barriers.set(100, holder(1, 4, &[]));
        assert_eq!(barriers.on(100).len(), 1);
        let seen = barriers.on(100);
        barriers.set(100, holder(1, 6, &[Mode::AccessExclusive]));
        barriers.lower(100, &seen);
        assert_eq!(barriers.on(100), vec![holder(1, 6, &[Mode::AccessExclusive])]);
        barriers.set(100, holder(1, 7, &[]));
        assert!(barriers.are_none());
    }
}
