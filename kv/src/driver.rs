//! The doors through which `kv` reaches the world. Each has a real and a simulated implementation.

use std::{any::Any, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use proto::{
    KeyRange, StoreId, Timestamp,
    wire::{
        GatewayRequest, GatewayResponse, KvRequest, KvResponse, OperatorStatus, RegionStatus, SafePointGrant,
        StoreStatus,
    },
};
use raftstore::MonotonicClock;

use crate::{deadlock::Deadlock, row_locks::Wait};

/// The call did not bring an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// It was never sent: safe to repeat whatever it was.
    #[error("store {0} is unreachable: {1}")]
    Unreachable(StoreId, String),
    /// It was sent and the answer is lost: it may have been carried out.
    #[error("no answer from store {0}: {1}")]
    Lost(StoreId, String),
}

/// An answer, and what a pushed-down scan made; on the local short cut the chunk is handed over as it is.
#[derive(Clone, Default)]
pub struct Reply {
    /// The message.
    pub response: KvResponse,
    /// Instead of `ScanResponse.chunk`, decoded.
    pub chunk: Option<ScanChunk>,
}

/// Calls of the kv service of any store, this node's own included (without serialising).
#[async_trait]
pub trait Rpc: Send + Sync + 'static {
    /// Sends `request` to `store` and waits for its answer, at most the header's deadline.
    async fn call(&self, store: StoreId, request: KvRequest) -> Result<Reply, RpcError>;
    /// The store of this very node, when it has one: preferred where any store will do.
    fn local_store(&self) -> Option<StoreId>;
}

/// PD did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PdError {
    /// Nobody answered as PD before the deadline.
    #[error("PD is not available: {0}")]
    Unavailable(String),
    /// PD understood and said no.
    #[error("PD refused: {0}")]
    Refused(String),
}

/// What transactions and gateways ask of the placement driver. Finds PD's leader and retries by itself, within a deadline.
#[async_trait]
pub trait Pd: Send + Sync + 'static {
    /// A timestamp after every one handed out before the call. Coalesced: callers that wait share one request.
    async fn timestamp(&self) -> Result<Timestamp, PdError>;
    /// `count` consecutive ids nobody else gets; the first of them.
    async fn alloc_ids(&self, count: u32) -> Result<u64, PdError>;
    /// The region that holds `key`, and who leads it as far as PD knows.
    async fn region_of(&self, key: &[u8]) -> Result<RegionStatus, PdError>;
    /// Up to `limit` regions that touch `range`, in key order.
    async fn regions(&self, range: &KeyRange, limit: u32) -> Result<Vec<RegionStatus>, PdError>;
    /// All stores.
    async fn stores(&self) -> Result<Vec<StoreStatus>, PdError>;
    /// What PD is doing with regions; with `finished` also what it has done lately.
    async fn operators(&self, finished: bool) -> Result<Vec<OperatorStatus>, PdError>;
    /// Has the regions that hold `keys` cut there: the operators that do it; none when all of them are borders already.
    async fn split_at(&self, keys: Vec<Bytes>) -> Result<Vec<u64>, PdError>;
    /// One operator, as long as PD remembers it.
    async fn operator(&self, id: u64) -> Result<Option<OperatorStatus>, PdError>;
    /// All waits for row locks on this node's store: the deadlocks whose victim waits there. Not tried for long: who waits
    /// still is reported again.
    async fn report_waits(&self, waits: Vec<Wait>) -> Result<Vec<Deadlock>, PdError>;
    /// Acknowledges a catalog version and renews the gateway's lease: (published version, the lease's end).
    /// Waits up to `wait` for a version newer than `acknowledged`.
    async fn catalog_lease(&self, gateway: u64, acknowledged: u64, wait: Duration)
    -> Result<(u64, Timestamp), PdError>;
    /// How old timestamps may be, for this node's store.
    async fn safe_point(&self) -> Result<SafePointGrant, PdError>;
    /// Whether a gateway may hold a catalog lease. `false` is for good: by its own clock it has lost the one it had.
    async fn gateway_alive(&self, gateway: u64) -> Result<bool, PdError>;
    /// Gateways that hold a catalog lease or may believe so; 0 stands for those whom an older PD may have granted one. Whoever is not
    /// among them commits and shows nothing of what it did under the leases it had.
    async fn live_gateways(&self) -> Result<Vec<u64>, PdError>;
    /// Publishes a catalog version; returns when no live gateway works with an older one.
    async fn publish_catalog(&self, version: u64) -> Result<(), PdError>;
}

/// Time, of which the simulator is the master.
pub trait Clock: MonotonicClock {
    /// Completes `duration` from now.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
    /// Milliseconds since the Unix epoch by this node's wall clock. For PD's physical part and for people; never for order.
    fn wall_ms(&self) -> u64;
}

/// Starts background work of this node; dropped when the node stops or crashes.
pub trait Spawn: Send + Sync + 'static {
    /// Runs `task` to its end.
    fn spawn(&self, task: BoxFuture<'static, ()>);
}

/// What the store-side half of a scan made of a page of rows.
pub type ScanChunk = Arc<dyn Any + Send + Sync>;

/// The store-side half of scans: `sql`'s code behind `kv`'s door, wired by `server`.
pub trait StoreScan: Send + Sync + 'static {
    /// Starts a page. `spec` is `ScanRequest.pushdown`; a bad one is refused with the reason.
    fn start(&self, spec: &Bytes) -> Result<Box<dyn ScanSink>, String>;
    /// For the wire.
    fn encode(&self, chunk: &ScanChunk) -> Result<Bytes, String>;
    /// From the wire.
    fn decode(&self, bytes: Bytes) -> Result<ScanChunk, String>;
}

/// Takes the visible rows of a page in key order.
pub trait ScanSink: Send {
    /// One row.
    fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), String>;
    /// The page's result.
    fn finish(self: Box<Self>) -> Result<ScanChunk, String>;
}

/// The SQL side of this node, as other nodes' ask it: `sql`'s code behind `kv`'s door, wired by `server`.
#[async_trait]
pub trait GatewayDoor: Send + Sync + 'static {
    /// Answers another gateway, or this one.
    async fn call(&self, request: GatewayRequest) -> GatewayResponse;
}
