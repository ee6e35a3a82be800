//! PD's memory: a few keys of region 1, reached through `node` and, in tests, a map.

use async_trait::async_trait;
use bytes::Bytes;
use proto::{KeyRange, wire::RegionError};

/// One durable change: set a key, or remove it when there is no value.
pub type MetaWrite = (Bytes, Option<Bytes>);

/// PD's memory did not answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MetaError {
    /// This node leads region 1 no longer in the term this `MetaStore` stands for, or can't prove it.
    #[error("no longer PD: {0}")]
    NotLeading(Box<RegionError>),
    /// The write's outcome is unknown; the role must start anew and read what became of it.
    #[error("the outcome of a write to region 1 is unknown: {0}")]
    Unknown(String),
    /// A record of region 1 does not decode.
    #[error("corrupt PD record {key:02x?}: {reason}")]
    Corrupt {
        /// Which.
        key: Bytes,
        /// Why.
        reason: String,
    },
}

/// Region 1 in one term of its leadership. Every call fails once that term has ended.
#[async_trait]
pub trait MetaStore: Send + Sync + 'static {
    /// Pairs of `range` in key order, at least as new as every write acknowledged before the call.
    async fn scan(&self, range: &KeyRange) -> Result<Vec<(Bytes, Bytes)>, MetaError>;
    /// Replicates the changes, all or none, only if the term still holds.
    async fn write(&self, writes: Vec<MetaWrite>) -> Result<(), MetaError>;
    /// Whether the lease of this very term holds right now. Cheap; `false` is not a proof of the contrary.
    fn holds_lease(&self) -> bool;
    /// Proves that at some instant after the call began no newer term was served: by the lease, otherwise
    /// by asking the quorum.
    async fn confirm(&self) -> Result<(), MetaError>;
}
