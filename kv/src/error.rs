//! What a transaction can meet, sorted by what the caller does about it.

use bytes::Bytes;
use proto::{
    Timestamp,
    wire::{KeyError, LockRecord, key_error::Kind},
};

/// Why a read, a write or a commit did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another transaction committed a change of this key after this one's snapshot. Run the transaction again.
    #[error("write conflict on key {}", hex(key))]
    Conflict {
        /// The key both wrote.
        key: Bytes,
    },
    /// What this transaction has read was changed by another one before it could commit (only if it is serializable). Run it again.
    #[error("key {} was read, and changed by another transaction", hex(key))]
    ReadConflict {
        /// What was read.
        key: Bytes,
    },
    /// A row lock of another transaction was not waited for.
    #[error("the row {} is locked by another transaction", hex(key))]
    RowLocked {
        /// The row.
        key: Bytes,
    },
    /// A row lock was waited for as long as the caller wanted.
    #[error("gave up waiting for a row lock")]
    LockTimeout,
    /// Transactions waited for each other, and this one has to give way.
    #[error("transactions wait for each other in a circle")]
    Deadlock(Box<crate::deadlock::Deadlock>),
    /// An insert found a live row under its key.
    #[error("key {} already exists", hex(key))]
    AlreadyExists {
        /// The key.
        key: Bytes,
    },
    /// The transaction was rolled back: by its owner, or by another one that found its locks expired. Run it again.
    #[error("the transaction was rolled back")]
    Aborted,
    /// The commit would land at or above `CommitOptions::max_commit_ts`: the gateway's catalog lease has run out.
    /// Nothing was written. Renew the lease, then run it again.
    #[error("the commit timestamp reached the fence of the gateway's catalog lease")]
    Fenced,
    /// The answer to a commit was lost and nobody could tell the outcome in time: it is neither known to have
    /// happened nor known not to.
    #[error("the outcome of the commit is unknown: {0}")]
    CommitUnknown(String),
    /// Not done: a region's leader or PD could not be reached before the deadline. Nothing was committed.
    #[error("{0}")]
    Unavailable(String),
    /// A store is below its disk reserve and refuses writes.
    #[error("disk full: {0}")]
    DiskFull(String),
    /// A bound was passed; the text names it.
    #[error("too large: {0}")]
    TooLarge(String),
    /// A timestamp that PD cannot have issued.
    #[error("bad timestamp: {0}")]
    BadTimestamp(String),
    /// The snapshot is below the GC safe point: what it would see may be gone. Begin again with a newer one.
    #[error("the snapshot {ts} is older than the GC safe point {safe_point}")]
    SnapshotTooOld {
        /// The snapshot's, or the transaction's.
        ts: Timestamp,
        /// The oldest that can be read.
        safe_point: Timestamp,
    },
    /// Stored bytes do not decode, or a pushed-down scan was refused.
    #[error("{0}")]
    Corrupt(String),
}

impl Error {
    /// Whether running the whole transaction again, with a new snapshot, can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Conflict { .. } | Error::ReadConflict { .. } | Error::Aborted | Error::Fenced)
    }
}

impl From<crate::PdError> for Error {
    fn from(e: crate::PdError) -> Self {
        Error::Unavailable(e.to_string())
    }
}

/// A key error, split into "a lock is in the way" and everything that ends the attempt.
pub(crate) enum Refusal {
    /// Resolve it or wait, then try again.
    Locked(LockRecord),
    /// The commit timestamp must be at least this.
    CommitTsTooLow(Timestamp),
    /// The primary has no trace of the transaction.
    TxnNotFound,
    /// Final.
    Error(Error),
}

impl From<KeyError> for Refusal {
    fn from(e: KeyError) -> Self {
        Refusal::Error(match e.kind {
            Some(Kind::Locked(lock)) => return Refusal::Locked(lock),
            Some(Kind::CommitTsTooLow(low)) => return Refusal::CommitTsTooLow(Timestamp(low.min_commit_ts)),
            Some(Kind::TxnNotFound(_)) => return Refusal::TxnNotFound,
            Some(Kind::Conflict(c)) => Error::Conflict { key: c.key },
            Some(Kind::ReadConflict(c)) => Error::ReadConflict { key: c.key },
            Some(Kind::AlreadyExists(c)) => Error::AlreadyExists { key: c.key },
            Some(Kind::Aborted(_)) => Error::Aborted,
            Some(Kind::CommitFenced(_)) => Error::Fenced,
            Some(Kind::BadTimestamp(b)) => Error::BadTimestamp(b.reason),
            Some(Kind::SnapshotTooOld(old)) => {
                Error::SnapshotTooOld { ts: Timestamp(old.ts), safe_point: Timestamp(old.safe_point) }
            }
            Some(Kind::RowLocked(r)) => Error::RowLocked { key: r.key },
            Some(Kind::Deadlock(d)) => Error::Deadlock(Box::new(d.into())),
            Some(Kind::TooManyRowLocks(t)) => Error::TooLarge(format!("a store keeps at most {} row locks", t.limit)),
            Some(Kind::TooMuchKept(k)) => Error::TooLarge(format!(
                "what savepoints keep of the row with key {} has at most {} bytes",
                hex(&k.key),
                k.limit
            )),
            Some(Kind::Corrupt(c)) if c.key.is_empty() => Error::Corrupt(c.reason),
            Some(Kind::Corrupt(c)) => Error::Corrupt(format!("key {}: {}", hex(&c.key), c.reason)),
            None => Error::Corrupt("an empty error came over the wire".into()),
        })
    }
}

/// Keys in messages: hexadecimal, cut at 32 bytes.
pub(crate) fn hex(key: &[u8]) -> String {
    const SHOWN: usize = 32;
    let mut text: String = key.iter().take(SHOWN).map(|b| format!("{b:02x}")).collect();
    if key.len() > SHOWN {
        text.push('…');
    }
    text
}
