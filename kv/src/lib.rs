//! Transactions over a replicated byte map: MVCC, locks, the commit protocol, routing.

pub mod client;
pub mod driver;
mod error;
#[cfg(feature = "planted-bugs")]
pub mod planted;
pub mod store;

pub use client::{Client, ClientConfig, CommitOptions, Floor, Page, RegionRoute, Scan, ScanOptions, Txn};
pub use driver::{Clock, Pd, PdError, Reply, Rpc, RpcError, ScanChunk, ScanSink, Spawn, StoreScan};
pub use error::Error;
/// Of a monotonic clock; `sql` measures its leases and time-outs with it.
pub use raftstore::{Instant, MonotonicClock};
pub use store::RegionStore;
