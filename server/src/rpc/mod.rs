//! gRPC between nodes and for tools: what `node` calls through its driver traits, carried over HTTP/2.
//!
//! ```text
//!   kv::Client ── Rpc ─────┐                                   ┌─ Kv service ──── kv::Service
//!   node (PD calls) ───────┤   Channels: one HTTP/2            ├─ Pd service ──── PD role
//!   node (founding) ───────┼── connection per address ─────────┼─ Founding ────── node
//!   raftstore ─ Transport ─┘   (lazy, it reconnects)           └─ Raft service ── raftstore
//! ```
//!
//! A call to this very node never comes here: it is handed over without serialising. What is *not* done
//! here: retries and routing. A call either brings an answer or an error that says whether it was sent.

pub mod channels;
pub mod client;
mod public_kv;
pub mod server;
pub mod services;
mod snapshots;
pub mod streams;

/// The generated stubs; their messages are `proto::wire`'s.
#[allow(missing_docs, clippy::all, clippy::too_many_lines)]
pub mod stubs {
    tonic::include_proto!("flaredb.v1");
}

/// All services' descriptors, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/flaredb.bin"));

/// The longest message between nodes: a Raft entry at its limit, a full page of a scan or a prewrite, and room for
/// what is around them. What is longer was not made by FlareDB.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
