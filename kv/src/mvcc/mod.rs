//! Many versions of one map. PURE over a snapshot of the engine.
//!
//! A key's versions stand side by side, newest first. A read at a timestamp takes the first version at or below
//! it that is a put or a delete. A lock says that a version may be coming: a read that the coming version would
//! concern has to wait until its transaction is decided.
//!
//! ```text
//!   key   lock            versions (commit_ts: what)
//!   a                     30: put a3   20: delete   10: put a1        read at 25: none;  at 30: a3
//!   b     start 27, put   20: put b2                                  read at 26: b2;    at 27 and later: locked
//!   c     start 27, lock  20: put c2                                  read at 28: c2 (the lock changes nothing)
//! ```
//!
//! What it does not do: collect garbage; that is [`crate::gc`].

pub mod changes;
pub mod lock;
#[cfg(test)]
mod property;
pub mod reader;
pub mod scan;
pub mod spilled;
pub mod version;

use bytes::Bytes;
use proto::wire;
use raftstore::engine::EngineError;

pub use lock::{Lock, WriteKind};
pub use reader::{Reader, Seen};
pub use version::Version;

/// The stored state can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The disk failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A record is not what it must be.
    #[error("key {}: {reason}", crate::error::hex(key))]
    Corrupt {
        /// Where.
        key: Bytes,
        /// What is wrong.
        reason: &'static str,
    },
    /// The store-side half of a scan refused.
    #[error("pushed-down scan: {0}")]
    Pushdown(String),
}

impl Fault {
    /// A record under `key` is not what it must be.
    pub fn corrupt(key: &[u8], reason: &'static str) -> Self {
        Fault::Corrupt { key: Bytes::copy_from_slice(key), reason }
    }
}

impl From<Fault> for wire::KeyError {
    fn from(fault: Fault) -> Self {
        let corrupt = match fault {
            Fault::Corrupt { key, reason } => wire::Corrupt { key, reason: reason.into() },
            other => wire::Corrupt { key: Bytes::new(), reason: other.to_string() },
        };
        wire::KeyError { kind: Some(wire::key_error::Kind::Corrupt(corrupt)) }
    }
}
