//! Transactions over a replicated byte map: MVCC, locks, the commit protocol, routing.

pub mod client;
pub mod codec;
mod concurrency;
pub mod driver;
mod error;
pub mod latch;
pub mod local;
pub mod mvcc;
#[cfg(feature = "planted-bugs")]
pub mod planted;
pub mod service;
pub mod store;
pub mod txn;

pub use client::{Client, ClientConfig, CommitOptions, Floor, Page, RegionRoute, Scan, ScanOptions, Txn};
pub use driver::{Clock, Pd, PdError, Reply, Rpc, RpcError, ScanChunk, ScanSink, Spawn, StoreScan};
pub use error::Error;
/// Of a monotonic clock; `sql` measures its leases and time-outs with it.
pub use raftstore::{Instant, MonotonicClock};
pub use service::Service;
pub use store::RegionStore;
