//! SAVEPOINT, ROLLBACK TO, RELEASE: places in a transaction's writes.
//!
//! A statement that fails behind a savepoint leaves the transaction standing as it was, so that ROLLBACK TO can go on with
//! it. Changes of the schema are not undone this way: they and savepoints refuse each other.

use super::{
    Session, TransactionStatus,
    portal::Running,
    transaction::{ChangedSettings, Open, Savepoint, State},
};
use crate::error::{SqlError, SqlResult, SqlState};

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
        let open = self.open(false)?;
        if open.pending.is_some() {
            return Err(SqlError::unsupported("a savepoint behind a change of the schema in one transaction"));
        }
        if open.savepoints.len() == MAX_SAVEPOINTS {
            let message = format!("a transaction has at most {MAX_SAVEPOINTS} savepoints");
            return Err(SqlError::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, message));
        }
        let settings = (values, open.settings.clone());
        let deferred = open.deferred.lock().place();
        open.savepoints.push(Savepoint { name, place: txn.savepoint(), advisory, said, settings, deferred });
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
        let open = match &mut self.transaction.state {
            State::Open(open) | State::Failed { kept: Some(open), .. } => open,
            _ => return Err(unknown(name)),
        };
        let at = position(open, name)?;
        open.savepoints.truncate(at + 1);
        if let Some(txn) = &open.txn
            && let Err(error) = txn.roll_back_to(&open.savepoints[at].place).await
        {
            // What stands of it is not known: nothing is left to go back to.
            open.savepoints.clear();
            self.fail(false);
            return Err(error.into());
        }
        self.backend.advisory.end_since(open.savepoints[at].advisory);
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
        // Those that were opened since then would go on reading what is undone.
        self.portals.clear();
        Ok(Running::done("ROLLBACK"))
    }

    /// 0A000 for a change of the schema behind a savepoint.
    pub(super) fn no_savepoint(&self) -> SqlResult<()> {
        match &self.transaction.state {
            State::Open(open) if !open.savepoints.is_empty() => {
                Err(SqlError::unsupported("a change of the schema behind a savepoint"))
            }
            _ => Ok(()),
        }
    }
}
