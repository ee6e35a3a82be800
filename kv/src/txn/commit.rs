//! Commit: turns a transaction's locks into versions. All keys of a request, or none. PURE.

use proto::{
    Batch, Timestamp,
    wire::{Aborted, CommitFenced, CommitRequest, CommitResponse, CommitTsTooLow, TxnNotFound, key_error::Kind},
};

use crate::mvcc::{Fault, Reader};

use super::{commit_lock, key_error};

/// Evaluates a commit. Keys that are committed already are fine, whoever did it.
pub fn commit(reader: &Reader<'_>, request: &CommitRequest) -> Result<(Batch, CommitResponse), Fault> {
    let (start_ts, commit_ts) = (Timestamp(request.start_ts), Timestamp(request.commit_ts));
    let mut batch = Batch::default();
    let mut committed_at = commit_ts;
    let refuse = |kind| Ok((Batch::default(), CommitResponse { error: Some(key_error(kind)), commit_ts: 0 }));
    for key in &request.keys {
        let Some(lock) = reader.lock(key)?.filter(|lock| lock.start_ts == start_ts) else {
            if let Some(before) = reader.commit_of(key, start_ts)? {
                committed_at = before;
                continue;
            }
            return refuse(match reader.is_rolled_back(key, start_ts)? {
                true => Kind::Aborted(Aborted { start_ts: start_ts.0 }),
                false => Kind::TxnNotFound(TxnNotFound { primary: request.primary.clone(), start_ts: start_ts.0 }),
            });
        };
        if request.max_commit_ts != 0 && request.commit_ts >= request.max_commit_ts {
            return refuse(Kind::CommitFenced(CommitFenced {
                max_commit_ts: request.max_commit_ts,
                needed_commit_ts: request.commit_ts,
            }));
        }
        if commit_ts < lock.min_commit_ts {
            let (key, min_commit_ts) = (key.clone(), lock.min_commit_ts.0);
            return refuse(Kind::CommitTsTooLow(CommitTsTooLow { key, min_commit_ts }));
        }
        commit_lock(&mut batch, key, &lock, commit_ts);
    }
    Ok((batch, CommitResponse { error: None, commit_ts: committed_at.0 }))
}
