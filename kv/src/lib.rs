//! Transactions over a replicated byte map: MVCC, locks, the commit protocol, routing.

pub mod driver;
pub mod store;

pub use driver::{Clock, Pd, PdError, Reply, Rpc, RpcError, ScanChunk, ScanSink, Spawn, StoreScan};
pub use store::RegionStore;
