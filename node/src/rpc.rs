//! The doors of a node to other nodes. `server` brings them over gRPC, the simulator over its network.

use async_trait::async_trait;
use proto::wire::{
    AcceptRequest, AcceptResponse, HeartbeatRequest, HeartbeatResponse, KvRequest, KvResponse, PdRequest, PdResponse,
    ProbeRequest, ProbeResponse, RaftFrame, SnapshotHead, VerifyRequest, VerifyResponse,
};
use raftstore::snapshot::Outgoing;

/// The call did not bring an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was never sent.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It was sent and the answer is lost: it may have been carried out.
    #[error("no answer: {0}")]
    Lost(String),
}

/// Calls to another node, by the address of its gRPC door. The callee's side is the method of the same name of
/// [`crate::Node`]. Every call ends: a driver gives up at the latest when the request's deadline has passed, or its own limit.
#[async_trait]
pub trait NodeRpc: Send + Sync + 'static {
    /// Asks a node who it is.
    async fn probe(&self, address: &str, request: ProbeRequest) -> Result<ProbeResponse, CallError>;
    /// Hands a founding record over.
    async fn accept(&self, address: &str, request: AcceptRequest) -> Result<AcceptResponse, CallError>;
    /// Asks a node as PD.
    async fn pd(&self, address: &str, request: PdRequest) -> Result<PdResponse, CallError>;
    /// Reports to a node as PD. Calls to one address keep their order; a driver may use one stream for all.
    async fn heartbeat(&self, address: &str, request: HeartbeatRequest) -> Result<HeartbeatResponse, CallError>;
    /// Calls a node's kv service.
    async fn kv(&self, address: &str, request: KvRequest) -> Result<KvResponse, CallError>;
    /// Has a node mark a region, or asks what its replica has to say to a mark.
    async fn verify(&self, address: &str, request: VerifyRequest) -> Result<VerifyResponse, CallError>;
}

/// Sends Raft traffic. Lossy: it drops rather than waits, and never blocks.
pub trait FrameSender: Send + Sync + 'static {
    /// Sends a frame to the node at `address`, behind those sent to it before.
    fn send(&self, address: &str, frame: RaftFrame);
    /// Carries a snapshot to the node at `address`, on a stream of its own: head and blocks go to
    /// [`crate::Node::receive_snapshot`] there, and what came of it into [`Outgoing::finish`].
    fn send_snapshot(&self, address: &str, head: SnapshotHead, snapshot: Outgoing);
}
