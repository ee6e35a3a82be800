//! Check: what became of a transaction? Asked at its primary by whoever met one of its locks. PURE.
//!
//! One that has spilled may live for long: it is made to commit above the reader that asks, which then need not wait for it.

use proto::{
    Batch, Cf, Timestamp,
    wire::{AsyncLock, CheckTxnRequest, CheckTxnResponse, TxnNotFound, check_txn_response::Outcome, key_error::Kind},
};

use crate::mvcc::{Fault, Lock, Reader};

use super::{keep_out, key_error};

/// Evaluates a check. A transaction whose TTL has run out at `current_ts` is rolled back, unless it is an async commit:
/// that may be committed, and its other keys have to be asked.
pub fn check_txn(reader: &Reader<'_>, request: &CheckTxnRequest) -> Result<(Batch, CheckTxnResponse), Fault> {
    let (start_ts, now) = (Timestamp(request.start_ts), Timestamp(request.current_ts));
    let primary = &request.primary;
    let (mut batch, mut passed) = (Batch::default(), false);
    let outcome = if let Some(lock) = reader.lock(primary)?.filter(|lock| lock.start_ts == start_ts) {
        if let Some(secondaries) = lock.secondaries.as_ref().filter(|_| lock.is_expired(now)) {
            Outcome::AsyncLock(AsyncLock { min_commit_ts: lock.min_commit_ts.0, secondaries: secondaries.clone() })
        } else if lock.is_expired(now) {
            // The record goes here even if the lock names another primary: this key was asked, and the answer must stay true.
            batch.delete(Cf::Lock, primary.clone());
            keep_out(&mut batch, primary, start_ts);
            Outcome::RolledBack(true)
        } else {
            let ends_ms = start_ts.physical_ms().saturating_add(lock.ttl_ms);
            passed = lock.spilled.is_some() && request.pass_ts != 0;
            let above = Timestamp(request.pass_ts).next();
            if passed && lock.min_commit_ts < above {
                batch.put(Cf::Lock, primary.clone(), Lock { min_commit_ts: above, ..lock }.encode());
            }
            Outcome::TtlMs(ends_ms - now.physical_ms())
        }
    } else if let Some(commit_ts) = reader.commit_of(primary, start_ts)? {
        Outcome::CommitTs(commit_ts.0)
    } else if reader.is_rolled_back(primary, start_ts)? {
        Outcome::RolledBack(true)
    } else if request.rollback_if_absent {
        keep_out(&mut batch, primary, start_ts);
        Outcome::RolledBack(true)
    } else {
        let absent = TxnNotFound { primary: primary.clone(), start_ts: start_ts.0 };
        let response = CheckTxnResponse { outcome: None, passed, error: Some(key_error(Kind::TxnNotFound(absent))) };
        return Ok((batch, response));
    };
    Ok((batch, CheckTxnResponse { outcome: Some(outcome), passed, error: None }))
}
