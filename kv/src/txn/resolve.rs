//! Resolve: ends locks of a transaction whose outcome is known from its primary. PURE.

use proto::{
    Batch, Timestamp,
    wire::{ResolveRequest, ResolveResponse},
};

use crate::mvcc::{Fault, Reader};

use super::{commit_lock, roll_back_lock};

/// Evaluates a resolve. Keys without a lock of the transaction are fine: somebody else was faster.
pub fn resolve(reader: &Reader<'_>, request: &ResolveRequest) -> Result<(Batch, ResolveResponse), Fault> {
    let (start_ts, commit_ts) = (Timestamp(request.start_ts), Timestamp(request.commit_ts));
    let mut batch = Batch::default();
    for key in &request.keys {
        let Some(lock) = reader.lock(key)?.filter(|lock| lock.start_ts == start_ts) else { continue };
        if commit_ts == Timestamp::ZERO {
            roll_back_lock(&mut batch, key, &lock);
        } else {
            commit_lock(&mut batch, key, &lock, commit_ts);
        }
    }
    Ok((batch, ResolveResponse::default()))
}
