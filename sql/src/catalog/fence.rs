//! What keeps a transaction and a schema change apart.
//!
//! ```text
//!   session     enter(tables) ─ reads, writes ─ begin_commit ─ end
//!                   │                               │
//!   gateway     a new catalog version: mark every fence that has entered a changed table as doomed;
//!               wait for those that are committing; then acknowledge the version to PD
//! ```
//!
//! A doomed transaction ends with 40001: at its next statement, its next page of rows, or its commit. Since the catalog is
//! replaced before the fences are looked at, a session either enters with the new catalog or is seen here.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::{SqlError, SqlResult};

/// One for each session; entered by its transactions.
#[derive(Debug, Default)]
pub struct Fence {
    state: Mutex<State>,
    doomed: AtomicBool,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Ids of the tables the running transaction has used.
    tables: Vec<u32>,
    committing: bool,
}

impl Fence {
    /// The running transaction uses `tables`, as the catalog of version `planned` knows them; `current` is asked for the
    /// version under the fence's lock. `false`: the catalog has changed, plan again.
    pub(crate) fn enter(&self, tables: &[u32], planned: u64, current: impl FnOnce() -> u64) -> bool {
        let mut state = self.state.lock();
        for table in tables {
            if !state.tables.contains(table) {
                state.tables.push(*table);
            }
        }
        current() == planned
    }
    /// 40001 when a table that the transaction uses has changed.
    pub(crate) fn check(&self) -> SqlResult<()> {
        if self.doomed.load(Ordering::Acquire) {
            return Err(SqlError::serialization("A table that the transaction uses was changed by another session."));
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
        state.tables.clear();
        self.doomed.store(false, Ordering::Release);
        if std::mem::take(&mut state.committing) {
            self.ended.notify_waiters();
        }
    }
    /// `changed` tables have a new descriptor. Dooms the transaction if it uses one; `true` when it is committing instead.
    pub(crate) fn doom(&self, changed: &[u32]) -> bool {
        let state = self.state.lock();
        if !state.tables.iter().any(|table| changed.contains(table)) {
            return false;
        }
        if !state.committing {
            self.doomed.store(true, Ordering::Release);
        }
        state.committing
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

    #[test]
    fn only_users_of_the_table_are_doomed() {
        let fence = Fence::default();
        assert!(fence.enter(&[100], 5, || 5));
        assert!(!fence.doom(&[101]) && fence.check().is_ok());
        assert!(!fence.doom(&[100]));
        assert!(fence.check().is_err() && fence.begin_commit().is_err());
        fence.end();
        assert!(fence.check().is_ok());
        assert!(!fence.enter(&[100], 5, || 6));
    }

    #[test]
    fn a_commit_in_flight_is_waited_for() {
        let fence = Fence::default();
        fence.enter(&[100], 5, || 5);
        fence.begin_commit().unwrap();
        assert!(fence.doom(&[100]) && fence.check().is_ok());
        let mut waiting = std::pin::pin!(fence.committed());
        assert!(futures::FutureExt::now_or_never(waiting.as_mut()).is_none());
        fence.end();
        assert!(futures::FutureExt::now_or_never(waiting).is_some());
    }
}
