//! What keeps a session's transaction and changes of the schema by others apart.
//!
//! ```text
//!   session     enter(tables, modes) ─ reads, writes ─ begin_commit ─ end
//!                   │                                     │
//!   gateway     a table lock of another session: barrier up; acknowledged when no fence is left that uses the table against it
//!               the catalog lease ran out, or a table changed all the same: every fence that has entered is doomed, commits
//!               under way are waited for
//! ```
//!
//! Whoever changes a table has locked it ([`crate::table_locks`]), so transactions that use it have ended. One that is doomed has been
//! taken for dead, or writes while an index is begun CONCURRENTLY: it ends with 40001, at its next statement, its next page of rows, or
//! its commit. Barriers and catalogs are in place before fences are looked at: a session either enters behind them or is seen here.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use parking_lot::Mutex;
use proto::wire::TableUse;
use tokio::sync::Notify;

use super::snapshot::Change;
use crate::{
    error::{SqlError, SqlResult},
    table_locks::{Barriers, Mode, Modes, SessionId},
};

/// One for each session; entered by its transactions.
#[derive(Debug)]
pub struct Fence {
    session: SessionId,
    barriers: Arc<Barriers>,
    state: Mutex<State>,
    doomed: AtomicBool,
    /// The transaction's start timestamp; 0 before it has one.
    transaction: AtomicU64,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Tables that the running transaction uses and how, in the order in which it came to them; what is covered by an earlier use is not
    /// said again.
    uses: Vec<(u32, Mode)>,
    /// What it waits for.
    wanted: Option<(u32, Mode)>,
    committing: bool,
}

/// Whether a transaction may use tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It may.
    Yes,
    /// The catalog has changed: plan again.
    Stale,
    /// Another session's lock of this table is in the way. Of the tables asked for none is used now that was not before.
    Blocked(u32, Mode),
}

impl State {
    fn held(&self, table: u32) -> Modes {
        Modes::of(self.uses.iter().filter(|(id, _)| *id == table).map(|(_, mode)| *mode))
    }
}

impl Fence {
    /// Of a new session of the gateway that has these barriers.
    pub(crate) fn new(session: SessionId, barriers: Arc<Barriers>) -> Self {
        let (state, doomed, transaction) = (Mutex::default(), AtomicBool::default(), AtomicU64::default());
        Fence { session, barriers, state, doomed, transaction, ended: Notify::new() }
    }
    /// The running transaction uses `tables`, as the catalog of version `planned` knows them; `current` is asked for the
    /// version under the fence's lock. `past`: as they were once; no lock of today is in the way.
    pub(crate) fn enter(
        &self,
        tables: &[(u32, Mode)],
        past: bool,
        planned: u64,
        current: impl FnOnce() -> u64,
    ) -> Entered {
        let mut state = self.state.lock();
        let before = state.uses.len();
        for (table, mode) in tables {
            if !state.held(*table).cover(*mode) {
                state.uses.push((*table, *mode));
            }
        }
        if !past && !self.barriers.are_none() {
            let new = state.uses.split_off(before);
            let stopped =
                new.iter().find(|(table, mode)| self.barriers.stop(*table, *mode, state.held(*table), self.session));
            if let Some((table, mode)) = stopped {
                // Whoever looked in between waits for the end of a use.
                self.barriers.use_less();
                return Entered::Blocked(*table, *mode);
            }
            state.uses.extend(new);
        }
        if current() == planned { Entered::Yes } else { Entered::Stale }
    }
    /// The transaction has been given a strong lock.
    pub(crate) fn hold(&self, table: u32, mode: Mode) {
        self.state.lock().uses.push((table, mode));
    }
    /// What the transaction has of a table.
    pub(crate) fn held(&self, table: u32) -> Modes {
        self.state.lock().held(table)
    }
    /// The transaction waits for a use of a table, or does no more.
    pub(crate) fn wants(&self, wanted: Option<(u32, Mode)>) {
        self.state.lock().wanted = wanted;
    }
    /// The transaction has this name.
    pub(crate) fn begins(&self, transaction: u64) {
        self.transaction.store(transaction, Ordering::Relaxed);
    }
    /// A place for [`Fence::end_since`].
    pub(crate) fn place(&self) -> usize {
        self.state.lock().uses.len()
    }
    /// The transaction goes back: it uses no more than it did at `place`.
    pub(crate) fn end_since(&self, place: usize) {
        self.state.lock().uses.truncate(place);
        self.barriers.use_less();
    }
    /// 40001 when a table that the transaction uses has changed, or may have.
    pub(crate) fn check(&self) -> SqlResult<()> {
        if self.doomed.load(Ordering::Acquire) {
            return Err(SqlError::serialization(
                "A table that the transaction uses was changed by another session, or may have been: this node's catalog lease ran out.",
            ));
        }
        Ok(())
    }
    /// From here to [`Fence::end`] a schema change waits.
    pub(crate) fn begin_commit(&self) -> SqlResult<()> {
        let mut state = self.state.lock();
        self.check()?;
        state.committing = true;
        Ok(())
    }
    /// The transaction has ended.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.uses.clear();
        state.wanted = None;
        self.transaction.store(0, Ordering::Relaxed);
        self.doomed.store(false, Ordering::Release);
        if std::mem::take(&mut state.committing) {
            self.ended.notify_waiters();
        }
        drop(state);
        self.barriers.use_less();
    }
    /// Tables have other descriptors. Dooms the transaction if it uses one in a way that the change breaks, and has not locked it;
    /// `true` when it is committing instead.
    pub(crate) fn doom(&self, changed: &[(u32, Change)]) -> bool {
        let state = self.state.lock();
        let is_broken = |(id, change): &(u32, Change)| {
            let held = state.held(*id);
            !held.is_empty() && !held.iter().any(Mode::is_strong) && change.breaks(held)
        };
        if !changed.iter().any(is_broken) {
            return false;
        }
        if !state.committing {
            self.doomed.store(true, Ordering::Release);
        }
        state.committing
    }
    /// The lease under which the transaction used tables has run out, and others may have gone over it. Commits under way are bounded by it.
    pub(crate) fn doom_all(&self) {
        let state = self.state.lock();
        if !state.uses.is_empty() && !state.committing {
            self.doomed.store(true, Ordering::Release);
        }
    }
    /// What the session's transaction uses of `table` that stands against `modes` of another session.
    pub(crate) fn against(&self, table: u32, modes: Modes, session: SessionId) -> Option<TableUse> {
        if session == self.session {
            return None;
        }
        let held = self.state.lock().held(table);
        modes.exclude_any(held).then(|| self.shown(table, held, false))
    }
    /// All that the session's transaction uses, and what it waits for.
    pub(crate) fn uses(&self) -> Vec<TableUse> {
        let state = self.state.lock();
        let mut tables: Vec<u32> = state.uses.iter().map(|(table, _)| *table).collect();
        tables.sort_unstable();
        tables.dedup();
        let held = tables.into_iter().map(|table| self.shown(table, state.held(table), false));
        let wanted = state.wanted.map(|(table, mode)| self.shown(table, Modes::of([mode]), true));
        held.chain(wanted).collect()
    }
    fn shown(&self, table: u32, modes: Modes, waits: bool) -> TableUse {
        let transaction = self.transaction.load(Ordering::Relaxed);
        TableUse { table, modes: modes.bits().into(), pid: self.session.pid, transaction, waits }
    }
    /// Completes when no commit is in flight.
    pub(crate) async fn committed(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Registered before the look, so that an end in between is not missed.
            ended.as_mut().enable();
            if !self.state.lock().committing {
                return;
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table_locks::record::Holder;

    const ME: SessionId = SessionId { gateway: 1, pid: 1 };
    const OTHER: SessionId = SessionId { gateway: 2, pid: 1 };

    fn fence() -> Fence {
        Fence::new(ME, Arc::default())
    }

    #[test]
    fn only_users_whom_the_change_concerns_are_doomed() {
        let fence = fence();
        assert_eq!(fence.enter(&[(100, Mode::AccessShare)], false, 5, || 5), Entered::Yes);
        assert!(!fence.doom(&[(101, Change::Rows)]) && fence.check().is_ok());
        assert!(!fence.doom(&[(100, Change::Writes)]) && fence.check().is_ok());
        assert!(!fence.doom(&[(100, Change::Rows)]));
        assert!(fence.check().is_err() && fence.begin_commit().is_err());
        fence.end();
        assert!(fence.check().is_ok());
        assert_eq!(fence.enter(&[(100, Mode::RowExclusive)], false, 5, || 6), Entered::Stale);
        assert!(!fence.doom(&[(100, Change::Writes)]) && fence.check().is_err());
    }

    #[test]
    fn a_commit_in_flight_is_waited_for() {
        let fence = fence();
        fence.enter(&[(100, Mode::RowExclusive)], false, 5, || 5);
        fence.begin_commit().unwrap();
        fence.doom_all();
        assert!(fence.doom(&[(100, Change::Rows)]) && fence.check().is_ok());
        let mut waiting = std::pin::pin!(fence.committed());
        assert!(futures::FutureExt::now_or_never(waiting.as_mut()).is_none());
        fence.end();
        assert!(futures::FutureExt::now_or_never(waiting).is_some());
    }

    #[test]
    fn a_lease_that_ran_out_dooms_who_used_tables_under_it() {
        let fence = fence();
        fence.doom_all();
        assert!(fence.check().is_ok());
        fence.enter(&[(100, Mode::AccessShare)], false, 5, || 5);
        fence.hold(101, Mode::AccessExclusive);
        fence.doom_all();
        assert!(fence.check().is_err() && fence.begin_commit().is_err());
    }

    #[test]
    fn who_meets_a_barrier_uses_nothing_new() {
        let fence = fence();
        fence.enter(&[(99, Mode::AccessShare)], false, 5, || 5);
        let strong = Modes::of([Mode::AccessExclusive]);
        fence.barriers.set(100, Holder { session: OTHER, turn: 1, modes: strong });
        let both = [(101, Mode::AccessShare), (100, Mode::AccessShare)];
        assert_eq!(fence.enter(&both, false, 5, || 5), Entered::Blocked(100, Mode::AccessShare));
        assert_eq!(fence.place(), 1);
        assert_eq!(fence.enter(&both, true, 5, || 5), Entered::Yes);
        assert_eq!(fence.against(100, strong, OTHER).map(|used| used.pid), Some(1));
        assert!(
            fence.against(100, strong, ME).is_none() && fence.against(100, Modes::of([Mode::Share]), OTHER).is_none()
        );
        fence.end_since(1);
        assert!(fence.against(100, strong, OTHER).is_none());
    }
}
