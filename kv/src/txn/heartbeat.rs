//! Heartbeat: a transaction that takes long prolongs the TTL of its primary's lock. PURE.

use proto::{
    Batch, Cf, Timestamp,
    wire::{HeartbeatTxnRequest, HeartbeatTxnResponse, TxnNotFound, key_error::Kind},
};

use crate::mvcc::{Fault, Lock, Reader};

use super::key_error;

/// Evaluates a heartbeat. A TTL never gets shorter.
pub fn heartbeat(reader: &Reader<'_>, request: &HeartbeatTxnRequest) -> Result<(Batch, HeartbeatTxnResponse), Fault> {
    let (primary, start_ts) = (&request.primary, Timestamp(request.start_ts));
    let mut batch = Batch::default();
    let Some(lock) = reader.lock(primary)?.filter(|lock| lock.start_ts == start_ts) else {
        let absent = TxnNotFound { primary: primary.clone(), start_ts: start_ts.0 };
        let response = HeartbeatTxnResponse { error: Some(key_error(Kind::TxnNotFound(absent))), ttl_ms: 0 };
        return Ok((batch, response));
    };
    let ttl_ms = lock.ttl_ms.max(request.ttl_ms);
    if ttl_ms > lock.ttl_ms {
        batch.put(Cf::Lock, primary.clone(), Lock { ttl_ms, ..lock }.encode());
    }
    Ok((batch, HeartbeatTxnResponse { error: None, ttl_ms }))
}
