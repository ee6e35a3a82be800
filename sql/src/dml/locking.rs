//! The rows a statement changes are locked before it changes them.
//!
//! ```text
//!   READ COMMITTED    find rows at the statement's snapshot ─► lock them ─► changed since the snapshot? find again, at a
//!                     newer snapshot, with the locks kept ─► … ─► change them
//!   REPEATABLE READ   find rows at the transaction's snapshot ─► lock them ─► changed since? 40001
//!   SERIALIZABLE      the same, and what was read must still be so at the commit (`kv` sees to that)
//!   on its own        find and change; the commit that follows sees whether one has changed, and then the statement is
//!                     run again, with locks
//! ```

use std::time::Duration;

use bytes::Bytes;
use kv::{LockedRow, OnLocked, RowLock, RowLockMode, Txn};

use crate::{
    catalog::TableDescriptor,
    error::{SqlError, SqlResult, SqlState},
};

/// How often a statement looks for its rows again because locked ones had changed. Each time it has more of them locked,
/// and those change no more.
pub const MAX_ROUNDS: usize = 100;
/// Bytes of the statement that others see who wait for it.
const LABEL_BYTES: usize = 200;

/// What a transaction sees of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Each statement what was committed before it.
    ReadCommitted,
    /// What was committed before the transaction's first statement.
    RepeatableRead,
    /// The same; and it commits only if nothing of what it has read has changed until then.
    Serializable,
}

impl Isolation {
    /// As settings say it.
    pub fn name(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "read committed",
            Isolation::RepeatableRead => "repeatable read",
            Isolation::Serializable => "serializable",
        }
    }

    /// All its statements see the same.
    pub fn keeps_snapshot(self) -> bool {
        self != Isolation::ReadCommitted
    }

    /// What settings say. READ UNCOMMITTED is READ COMMITTED, as in PostgreSQL; 22023 for what is no level.
    pub fn named(name: &str) -> SqlResult<Self> {
        match name {
            "read committed" | "read uncommitted" => Ok(Isolation::ReadCommitted),
            "repeatable read" => Ok(Isolation::RepeatableRead),
            "serializable" => Ok(Isolation::Serializable),
            _ => Err(SqlError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("invalid value for parameter \"transaction_isolation\": \"{name}\""),
            )),
        }
    }
}

/// How a statement locks rows.
#[derive(Clone, Debug)]
pub struct RowLocking {
    /// Of the transaction.
    pub isolation: Isolation,
    /// `lock_timeout`.
    pub timeout: Option<Duration>,
    /// For those who wait: the statement.
    pub label: Bytes,
}

/// How a statement makes sure of the rows it writes.
#[derive(Clone, Copy, Debug)]
pub enum Certainty<'a> {
    /// The commit that follows says whether they exist, or have changed.
    AtCommit,
    /// They are looked up: nobody else writes there.
    Read,
    /// They are locked.
    Locked(&'a RowLocking),
}

/// The statement, as those see it who wait for its rows.
pub fn label(sql: &str) -> Bytes {
    let mut end = sql.len().min(LABEL_BYTES);
    while !sql.is_char_boundary(end) {
        end -= 1;
    }
    Bytes::copy_from_slice(&sql.as_bytes()[..end])
}

impl RowLocking {
    /// Locks rows of a table and reads them as they are now. `absent`: keys without a row, too. 40001 when the transaction keeps to one
    /// snapshot and a row has changed since; 55P03 after `lock_timeout`.
    pub async fn lock(&self, txn: &Txn, keys: &[Bytes], mode: RowLockMode, absent: bool) -> SqlResult<Vec<LockedRow>> {
        let on_locked = self.timeout.map_or(OnLocked::Wait, OnLocked::WaitFor);
        let lock = RowLock { mode, on_locked, absent, label: self.label.clone() };
        let rows = txn.lock_rows(keys, &lock).await?;
        self.check(txn, &rows)?;
        Ok(rows)
    }

    /// Locks rows as a locking clause says, and reads them as they are now.
    pub async fn lock_as(
        &self,
        txn: &Txn,
        table: &TableDescriptor,
        keys: &[Bytes],
        mode: RowLockMode,
        on_locked: OnLocked,
    ) -> SqlResult<Vec<LockedRow>> {
        let on_locked = match (on_locked, self.timeout) {
            (OnLocked::Wait, Some(timeout)) => OnLocked::WaitFor(timeout),
            (other, _) => other,
        };
        let lock = RowLock { mode, on_locked, absent: false, label: self.label.clone() };
        let rows = txn.lock_rows(keys, &lock).await.map_err(|error| match error {
            kv::Error::RowLocked { .. } => {
                let message = format!("could not obtain lock on row in relation \"{}\"", table.name);
                SqlError::new(SqlState::LOCK_NOT_AVAILABLE, message)
            }
            other => other.into(),
        })?;
        self.check(txn, &rows)?;
        Ok(rows)
    }

    fn check(&self, txn: &Txn, rows: &[LockedRow]) -> SqlResult<()> {
        let changed = |row: &LockedRow| !row.skipped && row.commit_ts > txn.start_ts();
        match self.isolation.keeps_snapshot() && rows.iter().any(changed) {
            true => Err(SqlError::serialization("Another transaction changed a row since this one began.")),
            false => Ok(()),
        }
    }
}

/// One of them has changed since the snapshot that `txn` reads: what was read of it is out of date.
pub async fn changed_since(txn: &Txn, rows: &[LockedRow]) -> SqlResult<bool> {
    let read_ts = txn.read_ts().await?;
    Ok(rows.iter().any(|row| !row.skipped && row.commit_ts > read_ts))
}

/// 40001 when [`MAX_ROUNDS`] were not enough.
pub fn restless() -> SqlError {
    SqlError::serialization("The rows that the statement changes went on changing.")
}
