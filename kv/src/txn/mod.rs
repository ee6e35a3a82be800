//! The commands of the commit protocol, one a file. PURE: `(snapshot, request) -> (batch, response)`.
//!
//! The caller holds the latches of all keys of the request from before the snapshot until the batch is applied, so
//! what a command reads stays true until what it writes is visible.
//!
//! ```text
//!   prewrite ──► lock on every key, with the value ── commit ──► version, lock gone
//!      │               │   ▲ heartbeat prolongs            (value moved, not written again)
//!      │ 1PC           │
//!      └──► version    └── rollback, or check_txn after the TTL ──► lock gone, at the primary a rollback record
//! ```
//!
//! A transaction's fate is its primary's: a version there means committed, a rollback record means rolled back, for
//! ever. Every command may be repeated, and finds its own traces when it is.
//!
//! **Async commit** spares the client the second round: the transaction is committed as soon as locks stand on all its
//! keys, at the highest `min_commit_ts` of them. Each leader chooses its own above all reads it has served (as 1PC does), and
//! never changes it. The primary's lock lists the other keys, so that after the TTL anybody can find out: all locks stand,
//! then the primary is committed at that timestamp; one is missing, then a rollback record takes its place, and the
//! primary is rolled back. Either is decided at the primary first, and what stands there binds everybody who comes later.
//!
//! **A serializable transaction** commits at a timestamp at which its reads are still what they were (`validate.rs`). Where
//! that is looked at first, 1PC and async commit have to take exactly that timestamp; a leader that has served a later read
//! can't, and leaves locks that decide nothing: then the transaction goes on in two phases, and its reads are looked at once
//! more, at the timestamp that its primary commits at.

mod check_secondaries;
mod check_txn;
mod commit;
mod heartbeat;
mod prewrite;
mod resolve;
mod rollback;
mod spill;
mod validate;

pub use check_secondaries::check_secondaries;
pub use check_txn::check_txn;
pub use commit::commit;
pub use heartbeat::heartbeat;
pub use prewrite::{PrewriteMode, RowBlocker, prewrite, prewrite_failed, prewrite_too_old};
pub use resolve::resolve;
pub use rollback::rollback;
pub use spill::{drop_generations, spill};
pub use validate::{Validity, reads_hold, validate};

use bytes::Bytes;
use proto::{Batch, Cf, Timestamp, wire};
use wire::key_error::Kind;

use crate::{
    codec,
    mvcc::{
        Lock, WriteKind,
        lock::rollback_record,
        version::{header, record},
    },
};

fn key_error(kind: Kind) -> wire::KeyError {
    wire::KeyError { kind: Some(kind) }
}

/// Turns a lock into a version.
fn commit_lock(batch: &mut Batch, key: &Bytes, lock: &Lock, commit_ts: Timestamp) {
    let version_key = codec::versioned(key, commit_ts);
    match lock.kind {
        WriteKind::Put => {
            let prefix = header(WriteKind::Put, lock.start_ts);
            batch.move_value((Cf::Lock, key.clone()), lock.value_offset(), (Cf::Data, version_key), prefix);
        }
        WriteKind::Delete | WriteKind::Lock => {
            batch.put(Cf::Data, version_key, record(lock.kind, lock.start_ts, &[]));
            batch.delete(Cf::Lock, key.clone());
        }
    }
}

/// Removes a lock; at the primary, leaves the record that keeps the transaction from coming back.
fn roll_back_lock(batch: &mut Batch, key: &Bytes, lock: &Lock) {
    batch.delete(Cf::Lock, key.clone());
    if lock.primary == key {
        keep_out(batch, key, lock.start_ts);
    }
}

/// From now on transaction `start_ts` can't prewrite its primary, if this is it.
fn keep_out(batch: &mut Batch, key: &[u8], start_ts: Timestamp) {
    batch.put(Cf::Lock, codec::versioned(key, start_ts), rollback_record());
}
