//! Rollback: removes a transaction's locks and keeps it from coming back. PURE.

use proto::{
    Batch, Timestamp,
    wire::{RollbackRequest, RollbackResponse},
};

use crate::mvcc::{Fault, Reader};

use super::{keep_out, roll_back_lock};

/// Evaluates a rollback. When one of the keys is committed nothing is done and the answer says when.
pub fn rollback(reader: &Reader<'_>, request: &RollbackRequest) -> Result<(Batch, RollbackResponse), Fault> {
    let start_ts = Timestamp(request.start_ts);
    let mut batch = Batch::default();
    for key in &request.keys {
        if let Some(lock) = reader.lock(key)?.filter(|lock| lock.start_ts == start_ts) {
            roll_back_lock(&mut batch, key, &lock);
        } else if let Some(commit_ts) = reader.commit_of(key, start_ts)? {
            return Ok((Batch::default(), RollbackResponse { error: None, committed_ts: commit_ts.0 }));
        } else if !reader.is_rolled_back(key, start_ts)? {
            // The prewrite may still be on its way.
            keep_out(&mut batch, key, start_ts);
        }
    }
    Ok((batch, RollbackResponse::default()))
}
