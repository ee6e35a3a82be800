//! Locks of other transactions: whose are they, and are they still meant?
//!
//! The truth about a transaction stands at its primary. A lock whose transaction is finished is replaced by its
//! outcome at once, by whoever meets it; one whose transaction lives is waited for, and after its TTL (by PD's
//! time) the transaction is rolled back for everybody. Of an async commit all keys are asked then, and what they say is
//! done at the primary before it counts.

use std::time::Duration;

use bytes::Bytes;
use proto::{
    Timestamp,
    wire::{
        AsyncLock, CheckSecondariesRequest, CheckTxnRequest, CommitRequest, LockRecord, ResolveRequest,
        RollbackRequest, check_secondaries_response::Outcome as Found, check_txn_response::Outcome, kv_request::Body,
        kv_response,
    },
};

use crate::{Error, error::Refusal, planted::Planted};

use super::{
    Client,
    backoff::Backoff,
    read::{unexpected, wrong_answer},
    route::Deadline,
};

/// How many locks of a transaction are resolved together when one of them was met among many keys.
const SWEEP: u32 = 1024;

/// The waiting of one operation for the locks it meets.
pub(crate) struct LockWait {
    backoff: Backoff,
    neighbours: u32,
    /// Of a reader: its snapshot.
    read_ts: Option<Timestamp>,
    /// Transactions that commit above that snapshot, if they do.
    passed: Vec<u64>,
    /// Who has spilled is not waited for.
    yields: bool,
}

impl LockWait {
    /// For a transaction that waits as long as its caller does.
    pub(crate) fn on_keys() -> Self {
        LockWait { backoff: Backoff::LOCK, neighbours: 0, read_ts: None, passed: Vec::new(), yields: false }
    }

    /// For a transaction that writes single keys, and has not locked their rows: a lock that may stand for long is a conflict.
    pub(crate) fn writing_keys() -> Self {
        LockWait { yields: true, ..Self::on_keys() }
    }

    /// The same for many keys: the next lock is probably of the same owner.
    pub(crate) fn writing_range() -> Self {
        LockWait { neighbours: SWEEP, ..Self::writing_keys() }
    }

    /// For a read of single keys at `read_ts`.
    pub(crate) fn reading_keys(read_ts: Timestamp) -> Self {
        LockWait { read_ts: Some(read_ts), ..Self::on_keys() }
    }

    /// For a scan at `read_ts`.
    pub(crate) fn reading_range(read_ts: Timestamp) -> Self {
        LockWait { neighbours: SWEEP, ..Self::reading_keys(read_ts) }
    }

    /// Transactions (start_ts) whose locks the read need not meet.
    pub(crate) fn passed(&self) -> Vec<u64> {
        self.passed.clone()
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Committed at.
    Committed(Timestamp),
    /// Rolled back, for good.
    RolledBack,
    /// Not finished; its locks stand this long without a heartbeat.
    Alive(Duration),
    /// Not finished; it commits above the snapshot of the reader that asked, if it does.
    Above,
    /// Its primary has no trace of it, and was not asked to keep it out.
    Absent,
}

impl Client {
    /// Gets a lock out of the way, or waits a while for its owner: afterwards the read or write is tried again.
    pub(crate) async fn clear_lock(
        &self,
        lock: &LockRecord,
        wait: &mut LockWait,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let why = || format!("key {} is locked by transaction {}", crate::error::hex(&lock.key), lock.start_ts);
        let start_ts = Timestamp(lock.start_ts);
        let now = self.timestamp().await?;
        let expired = now.physical_ms() >= start_ts.physical_ms().saturating_add(lock.ttl_ms);
        match self.ask_primary(&lock.primary, start_ts, now, wait.read_ts, expired, deadline).await? {
            Fate::Committed(commit_ts) => self.resolve(lock, commit_ts, wait.neighbours, deadline).await,
            Fate::RolledBack => self.resolve(lock, Timestamp::ZERO, wait.neighbours, deadline).await,
            Fate::Above => {
                wait.passed.push(lock.start_ts);
                Ok(())
            }
            Fate::Alive(_) if wait.yields && lock.spilled => Err(Error::Conflict { key: lock.key.clone() }),
            Fate::Alive(_) | Fate::Absent => self.pause(&mut wait.backoff, Duration::ZERO, deadline, &why()).await,
        }
    }

    /// Asks the primary what became of a transaction. One whose TTL has run out at `now` is ended, if it is not
    /// committed by then; so is one without a trace when `rollback_if_absent`.
    pub(crate) async fn ask_primary(
        &self,
        primary: &Bytes,
        start_ts: Timestamp,
        now: Timestamp,
        read_ts: Option<Timestamp>,
        rollback_if_absent: bool,
        deadline: Deadline,
    ) -> Result<Fate, Error> {
        let request = || {
            Body::CheckTxn(CheckTxnRequest {
                primary: primary.clone(),
                start_ts: start_ts.0,
                current_ts: now.0,
                pass_ts: read_ts.map_or(0, |ts| ts.0),
                rollback_if_absent,
            })
        };
        let (_, reply) = self.call(primary, deadline, request).await?;
        let Some(kv_response::Body::CheckTxn(check)) = reply.response.body else {
            return Err(wrong_answer("transaction check"));
        };
        if let Some(error) = check.error {
            return match Refusal::from(error) {
                Refusal::TxnNotFound => Ok(Fate::Absent),
                other => Err(unexpected(other)),
            };
        }
        match check.outcome {
            Some(Outcome::CommitTs(ts)) => Ok(Fate::Committed(Timestamp(ts))),
            Some(Outcome::RolledBack(_)) => Ok(Fate::RolledBack),
            Some(Outcome::TtlMs(_)) if check.passed => Ok(Fate::Above),
            Some(Outcome::TtlMs(ms)) => Ok(Fate::Alive(Duration::from_millis(ms))),
            Some(Outcome::AsyncLock(lock)) => self.end_async(primary, start_ts, lock, deadline).await,
            None => Err(wrong_answer("transaction check")),
        }
    }

    /// Finds out whether an async commit is committed, and has it said at its primary.
    async fn end_async(
        &self,
        primary: &Bytes,
        start_ts: Timestamp,
        lock: AsyncLock,
        deadline: Deadline,
    ) -> Result<Fate, Error> {
        let alone = self.inner.config.plant.has(Planted::PrimaryAlone);
        let others = if alone { Vec::new() } else { lock.secondaries };
        let committed_at = self.ask_secondaries(others, start_ts, deadline).await?;
        let Some(commit_ts) = committed_at.map(|ts| ts.max(Timestamp(lock.min_commit_ts))) else {
            return self.roll_back_primary(primary, start_ts, deadline).await;
        };
        let request = || {
            let (keys, primary) = (vec![primary.clone()], primary.clone());
            Body::Commit(CommitRequest {
                keys,
                start_ts: start_ts.0,
                commit_ts: commit_ts.0,
                max_commit_ts: 0,
                primary,
            })
        };
        let (_, reply) = self.call(primary, deadline, request).await?;
        let Some(kv_response::Body::Commit(response)) = reply.response.body else { return Err(wrong_answer("commit")) };
        match response.error.map(Refusal::from) {
            None => Ok(Fate::Committed(Timestamp(response.commit_ts))),
            Some(Refusal::Error(Error::Aborted)) => Ok(Fate::RolledBack),
            Some(refusal) => Err(unexpected(refusal)),
        }
    }

    /// Whether all these keys are locked or committed, and at what timestamp the transaction then commits at least;
    /// where one is not, it never will be.
    async fn ask_secondaries(
        &self,
        mut keys: Vec<Bytes>,
        start_ts: Timestamp,
        deadline: Deadline,
    ) -> Result<Option<Timestamp>, Error> {
        let mut commit_ts = Timestamp::ZERO;
        let mut backoff = Backoff::ROUTING;
        keys.sort_unstable();
        while let Some(first) = keys.first() {
            let route = self.locate(first, deadline).await?;
            let here = keys.partition_point(|key| route.region.range.contains(key));
            let request = CheckSecondariesRequest { start_ts: start_ts.0, keys: keys[..here].to_vec() };
            let attempt = self.attempt(&route, Body::CheckSecondaries(request), backoff.patience(), deadline).await;
            let Some(reply) = self.settle(attempt, &mut backoff, deadline).await? else { continue };
            let Some(kv_response::Body::CheckSecondaries(check)) = reply.response.body else {
                return Err(wrong_answer("check of secondaries"));
            };
            if let Some(error) = check.error {
                return Err(unexpected(Refusal::from(error)));
            }
            match check.outcome {
                Some(Found::MinCommitTs(ts)) => commit_ts = commit_ts.max(Timestamp(ts)),
                Some(Found::CommitTs(ts)) => return Ok(Some(Timestamp(ts))),
                Some(Found::RolledBack(_)) => return Ok(None),
                None => return Err(wrong_answer("check of secondaries")),
            }
            keys.drain(..here);
        }
        Ok(Some(commit_ts))
    }

    async fn roll_back_primary(&self, primary: &Bytes, start_ts: Timestamp, deadline: Deadline) -> Result<Fate, Error> {
        let request = || Body::Rollback(RollbackRequest { keys: vec![primary.clone()], start_ts: start_ts.0 });
        let (_, reply) = self.call(primary, deadline, request).await?;
        let Some(kv_response::Body::Rollback(response)) = reply.response.body else {
            return Err(wrong_answer("rollback"));
        };
        match response.error {
            Some(error) => Err(unexpected(Refusal::from(error))),
            None if response.committed_ts != 0 => Ok(Fate::Committed(Timestamp(response.committed_ts))),
            None => Ok(Fate::RolledBack),
        }
    }

    /// Replaces the lock of a finished transaction by its outcome (`commit_ts` zero: rolled back).
    async fn resolve(
        &self,
        lock: &LockRecord,
        commit_ts: Timestamp,
        neighbours: u32,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let dropped = self.inner.config.plant.has(Planted::DropSecondaryCommit);
        let commit_ts = if dropped { Timestamp::ZERO } else { commit_ts };
        let request = || {
            let keys = vec![lock.key.clone()];
            Body::Resolve(ResolveRequest {
                start_ts: lock.start_ts,
                commit_ts: commit_ts.0,
                keys,
                neighbours,
                range: None,
            })
        };
        let (_, reply) = self.call(&lock.key, deadline, request).await?;
        match reply.response.body {
            Some(kv_response::Body::Resolve(resolve)) => {
                resolve.error.map_or(Ok(()), |e| Err(unexpected(Refusal::from(e))))
            }
            _ => Err(wrong_answer("resolve")),
        }
    }
}
