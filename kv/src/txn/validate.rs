//! Validation: is what a serializable transaction has read still as it was, up to the timestamp at which it commits? PURE.
//!
//! ```text
//!   start_ts ───────────── at
//!      │  a version of       │   a version above `at` is none of its business: that transaction comes later;
//!      │  another one here:  │   a lock that may commit at or below `at` has to be met first
//!      │  a conflict         │
//! ```
//!
//! A version that changes nothing (a row lock that was written down) is no conflict, and neither is the transaction's own.

use bytes::Bytes;
use proto::{
    KeyRange, Timestamp,
    wire::{KeyError, ReadConflict, ValidateRequest, ValidateResponse, key_error::Kind},
};

use crate::mvcc::{Fault, Reader, changes::Changes, reader::Newest};

use super::key_error;

/// Records that one request looks at, over all its spans: it bounds how long it takes to answer.
pub const MAX_VISITED: usize = 200_000;

/// What became of reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Validity {
    /// They stand.
    Holds,
    /// As far as this key, which comes next.
    HoldsUpTo(Bytes),
    /// This is in the way, or has happened.
    Refused(KeyError),
}

/// Evaluates a request.
pub fn validate(reader: &Reader<'_>, request: &ValidateRequest) -> Result<ValidateResponse, Fault> {
    let spans: Vec<KeyRange> = request.spans.iter().cloned().map(KeyRange::from).collect();
    Ok(match reads_hold(reader, &spans, Timestamp(request.start_ts), Timestamp(request.at_ts))? {
        Validity::Holds => ValidateResponse::default(),
        Validity::HoldsUpTo(resume_key) => ValidateResponse { resume_key, error: None },
        Validity::Refused(error) => ValidateResponse { error: Some(error), ..Default::default() },
    })
}

/// Whether the reads that transaction `start_ts` made of `spans` (sorted, apart) are the same at `at`.
pub fn reads_hold(
    reader: &Reader<'_>,
    spans: &[KeyRange],
    start_ts: Timestamp,
    at: Timestamp,
) -> Result<Validity, Fault> {
    let mut left = MAX_VISITED;
    for span in spans {
        if let Some(lock) = reader.blocking_lock(span, at, start_ts)? {
            return Ok(Validity::Refused(key_error(Kind::Locked(lock))));
        }
        match reader.changes(span, start_ts, at, &mut left)? {
            Changes::None => {}
            Changes::NoneUpTo(key) => return Ok(Validity::HoldsUpTo(key)),
            Changes::One(key, newest) => return Ok(Validity::Refused(key_error(conflict(key, start_ts, newest)))),
        }
    }
    Ok(Validity::Holds)
}

fn conflict(key: Bytes, start_ts: Timestamp, newest: Newest) -> Kind {
    Kind::ReadConflict(ReadConflict {
        key,
        start_ts: start_ts.0,
        conflict_start_ts: newest.start_ts.0,
        conflict_commit_ts: newest.commit_ts.0,
    })
}
