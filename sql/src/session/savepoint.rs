//! SAVEPOINT, ROLLBACK TO, RELEASE: places in a transaction's writes, locks, and changes of the schema.
//!
//! A statement that fails behind a savepoint leaves the transaction standing as it was, so that ROLLBACK TO can go on with
//! it. How the schema goes back is told in [`crate::ddl::restore`].

use std::sync::Arc;

use super::{
    Session, TransactionStatus,
    portal::Running,
    run::guarded,
    transaction::{ChangedSettings, Open, Savepoint, State},
};
use crate::{
    ddl::{
        Pending,
        restore::{Kept, Move},
    },
    error::{SqlError, SqlResult, SqlState},
};

/// Savepoints that one transaction holds at a time at most; each keeps the settings it may bring back, some kilobytes.
const MAX_SAVEPOINTS: usize = 100_000;

/// 3B001.
fn unknown(name: &str) -> SqlError {
    SqlError::new(SqlState("3B001"), format!("savepoint \"{name}\" does not exist"))
}

fn position(open: &Open, name: &str) -> SqlResult<usize> {
    open.savepoints.iter().rposition(|savepoint| savepoint.name == name).ok_or_else(|| unknown(name))
}

impl Session {
    /// 25P01 outside of a block.
    fn in_block_for(&self, command: &str) -> SqlResult<()> {
        if self.in_block() {
            return Ok(());
        }
        let message = format!("{command} can only be used in transaction blocks");
        Err(SqlError::new(SqlState::NO_ACTIVE_SQL_TRANSACTION, message))
    }

    /// SAVEPOINT.
    pub(super) async fn savepoint(&mut self, name: String) -> SqlResult<Running> {
        self.in_block_for("SAVEPOINT")?;
        let txn = self.txn().await?;
        let (values, advisory) = (self.settings.values(), self.backend.advisory.place());
        let said = self.backend.pending.lock().place();
        let tables = (self.transaction.fence.place(), self.transaction.tables.place());
        let gateway = Arc::clone(&self.gateway);
        let open = self.open(false)?;
        if open.savepoints.len() == MAX_SAVEPOINTS {
            let message = format!("a transaction has at most {MAX_SAVEPOINTS} savepoints");
            return Err(SqlError::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, message));
        }
        let last = open.savepoints.last().map(|savepoint| &savepoint.schema);
        let schema = Kept::now(&gateway, open.pending.as_ref(), open.moves.len(), last).await?;
        let settings = (values, open.settings.clone());
        let deferred = open.deferred.lock().place();
        let place = txn.savepoint();
        open.savepoints.push(Savepoint { name, place, advisory, tables, schema, said, settings, deferred });
        Ok(Running::done("SAVEPOINT"))
    }

    /// RELEASE: the savepoint and those behind it are forgotten.
    pub(super) fn release(&mut self, name: &str) -> SqlResult<Running> {
        self.in_block_for("RELEASE SAVEPOINT")?;
        let open = self.open(false)?;
        let at = position(open, name)?;
        open.savepoints.truncate(at);
        Ok(Running::done("RELEASE"))
    }

    /// ROLLBACK TO: also out of a failed transaction.
    pub(super) async fn roll_back_to(&mut self, name: &str) -> SqlResult<Running> {
        self.in_block_for("ROLLBACK TO SAVEPOINT")?;
        let (at, schema, pending) = match &self.transaction.state {
            State::Open(open) | State::Failed { kept: Some(open), .. } => {
                let at = position(open, name)?;
                (at, open.savepoints[at].schema.clone(), open.pending.clone())
            }
            _ => return Err(unknown(name)),
        };
        let gateway = Arc::clone(&self.gateway);
        let restored = guarded(self, async { schema.restore(&gateway, pending.as_deref()).await }).await?;
        let (State::Open(open) | State::Failed { kept: Some(open), .. }) = &mut self.transaction.state else {
            return Err(unknown(name));
        };
        open.savepoints.truncate(at + 1);
        if let Some(txn) = &open.txn
            && let Err(error) = txn.roll_back_to(&open.savepoints[at].place).await
        {
            // What stands of it is not known: nothing is left to go back to.
            open.savepoints.clear();
            gateway.collect(restored.1.into_iter().map(|(_, to)| to).collect());
            self.fail(false);
            return Err(error.into());
        }
        self.backend.advisory.end_since(open.savepoints[at].advisory);
        let (used, locked) = open.savepoints[at].tables;
        self.transaction.fence.end_since(used);
        self.transaction.tables.end_since(locked);
        self.backend.pending.lock().roll_back_to(open.savepoints[at].said);
        open.deferred.lock().roll_back_to(&open.savepoints[at].deferred);
        let (values, ended) = open.savepoints[at].settings.clone();
        // Without a change before the savepoint the end of the transaction finds what it is now.
        let unchanged = || ChangedSettings { rolled_back: values.clone(), committed: values.clone() };
        open.settings = open.settings.is_some().then(|| ended.unwrap_or_else(unchanged));
        let changes = self.settings.restore(&values);
        self.changes.extend(changes);
        if self.transaction.status() == TransactionStatus::Failed
            && let State::Failed { kept: Some(open), .. } = std::mem::replace(&mut self.transaction.state, State::Idle)
        {
            self.transaction.state = State::Open(open);
        }
        self.restore_schema(at, restored).await?;
        // Those that were opened since then would go on reading what is undone.
        self.portals.clear();
        Ok(Running::done("ROLLBACK"))
    }

    /// The schema is again what it was at a savepoint; what was made since is garbage.
    async fn restore_schema(&mut self, at: usize, (restored, moves): (Option<Pending>, Vec<Move>)) -> SqlResult<()> {
        let gateway = Arc::clone(&self.gateway);
        let open = self.open(false)?;
        if let Some(now) = &open.pending {
            let (storage, indexes) = now.made_since(restored.as_ref());
            gateway.collect(storage);
            gateway.collect_indexes(indexes);
        }
        open.pending = restored.map(Arc::new);
        let undone = open.moves.split_off(open.savepoints[at].schema.moves);
        open.deferred.lock().follow(undone.into_iter().rev().map(|(from, to)| (to, from)).chain(moves.iter().copied()));
        open.moves.extend(&moves);
        if !moves.is_empty() {
            // Tables have moved: it is by this one that they are found when the transaction comes back once more.
            let schema = Kept::now(&gateway, open.pending.as_ref(), open.moves.len(), None).await;
            open.savepoints[at].schema = schema?;
        }
        self.rebase();
        Ok(())
    }
}
