//! Check of an async commit's other keys, by whoever met one of its locks after its TTL. PURE.

use proto::{
    Batch, Timestamp,
    wire::{CheckSecondariesRequest, CheckSecondariesResponse, check_secondaries_response::Outcome},
};

use crate::mvcc::{Fault, Reader};

use super::keep_out;

/// Evaluates a check. Where neither lock nor version is, the transaction is kept out for good: it never commits. Where a lock
/// stands that decides nothing, the transaction has gone over to two phases: all is up to its primary.
pub fn check_secondaries(
    reader: &Reader<'_>,
    request: &CheckSecondariesRequest,
) -> Result<(Batch, CheckSecondariesResponse), Fault> {
    let start_ts = Timestamp(request.start_ts);
    let answer = |outcome| CheckSecondariesResponse { outcome: Some(outcome), error: None };
    let mut batch = Batch::default();
    let (mut min_commit_ts, mut rolled_back) = (0, false);
    for key in &request.keys {
        if let Some(lock) = reader.lock(key)?.filter(|lock| lock.start_ts == start_ts) {
            min_commit_ts = min_commit_ts.max(lock.min_commit_ts.0);
            rolled_back |= lock.secondaries.is_none();
        } else if let Some(commit_ts) = reader.commit_of(key, start_ts)? {
            return Ok((Batch::default(), answer(Outcome::CommitTs(commit_ts.0))));
        } else {
            rolled_back = true;
            if !reader.is_rolled_back(key, start_ts)? {
                keep_out(&mut batch, key, start_ts);
            }
        }
    }
    let outcome = if rolled_back { Outcome::RolledBack(true) } else { Outcome::MinCommitTs(min_commit_ts) };
    Ok((batch, answer(outcome)))
}
