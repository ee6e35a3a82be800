//! A replicated, range-partitioned, ordered byte map: one Raft group per region, all groups of a process in one store.
//!
//! Whoever has a [`StoreHandle`] can propose batches of operations to a region and take current snapshots of it, on
//! the store whose replica leads. Underneath, a proposal takes this way:
//!
//! ```text
//!   propose(target, batch)                               snapshot(target)
//!        │ Inbox                                             │ lease holds? ── yes ──► engine snapshot, from any thread
//!        ▼                                                   │ no: ReadIndex through the inbox
//!   StoreCore::turn ── Replica (raft-rs) ──► entry           ▼
//!        │ LogWrite: one append, one sync for all regions   turn ──► heartbeats ──► quorum ──► applied ──► snapshot
//!        │ sends: to the followers, at once
//!        ▼ LogWritten + acknowledgements
//!   turn ──► committed ──► Applier: data and apply state in one engine batch ──► answer
//! ```
//!
//! Two cores without I/O, clock or randomness of their own, and what drives them:
//!
//! - [`region`]: one replica. raft-rs, batching, the leader's lease, ReadIndex, elections, log truncation.
//! - [`store`]: all replicas of a process. One log write a turn, promises held until it is durable, boot.
//!   [`StoreHandle`] stands in front of it, for any thread.
//! - [`snapshot`]: a region's state as files, made, carried and taken by drivers of both kinds.
//! - [`verify`]: whether the replicas of a region hold the same, by marks in its log.
//! - [`driver`]: threads, in production. In the simulator events call the same [`StoreCore::turn`].
//!
//! Regions are split, moved and merged while they serve: [`region`] says how, with the proofs in `region::merge` and its
//! neighbours.
//!
//! Disk is behind two traits, [`engine::Engine`] (RocksDB, memory) for the state and [`log::LogEngine`] (raft-engine,
//! memory) for the Raft log; [`keys`] draws what they hold. Only the log is synced on the commit path. The state
//! recovers to a prefix of what was applied, and the log, which is never cut further than that, is replayed behind it.
//! Peers that are away hold the log only up to a bound: whoever comes back later gets a snapshot, as a new peer does.
//!
//! What it does not do: transactions, versions, locks (`kv`); deciding where regions live (`pd`); sockets
//! (`server`, behind [`Transport`]).

pub mod api;
pub mod apply;
pub mod clock;
pub mod config;
pub mod driver;
pub mod effect;
pub mod engine;
mod handle;
pub mod keys;
pub mod log;
pub mod metrics;
mod raft_logger;
pub mod region;
pub mod snapshot;
pub mod store;
pub mod transport;
pub mod verify;

pub use api::{AdminError, NewRegion, PeerChange, PeerProgress, ProposeError, RegionSnapshot, Target};
pub use apply::Applier;
pub use clock::{Instant, MonotonicClock};
pub use config::{Limits, LogBounds, Planted, StoreConfig};
pub use effect::{Effects, Event};
pub use handle::{Leadership, ReplicaStatus, StoreHandle, together};
pub use metrics::Metrics;
pub use region::{
    ReplicaView, Role,
    merge::{Merges, Prepared},
};
pub use snapshot::SnapshotDriver;
pub use store::{BootError, StoreCore, bootstrap};
pub use transport::Transport;
