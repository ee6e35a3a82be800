//! The placement driver: the cluster's picture, its timestamps and ids, and the leases of its gateways.
//!
//! PD is no process and has no consensus of its own. It is a *role* of whoever leads region 1, whose keys
//! are PD's memory:
//!
//! ```text
//!   stores ──heartbeats──▶ ┌───────────────────────── Service (while leading) ────────┐
//!   clients ──PdRequest──▶ │ Cluster          Tso            Ids       CatalogLeases  │
//!                          │ who holds what   timestamps     ids       DDL waits      │
//!                          │ (from reports)   (window)       (next)    (bounded)      │
//!                          └───────┬──────────────┬────────────┬────────────┬─────────┘
//!                                  └── MetaStore: read, and write fenced by the term ──▶ region 1
//! ```
//!
//! The cores are pure: time comes in as [`Now`], what must be durable goes out as a value that
//! [`Service`] writes before it answers. Only few things are durable: the stores, the upper bound of
//! handed-out timestamps, the next ids, the published catalog version, the GC safe point, the switched-off schedulers. Everything else is
//! rebuilt from what stores and gateways report to a new PD at once.
//!
//! # Placement
//!
//! Once a second PD looks at the picture and decides what should change:
//!
//! ```text
//!   Cluster + Operators + Rules ──▶ Survey ──▶ checkers (mend), schedulers (improve) ──▶ Plans
//!     reported     under way         counted                                              │ admitted, ids durable
//!                                                                                         ▼
//!   leader's store ◀── steps, in the heartbeat's answer ──────────────────────────── Operators
//!        └──────────── the region as it is now, in the next heartbeat ────────────────────▲
//! ```
//!
//! [`survey`] counts what is under way as done, so that nothing is moved twice; [`planner`] runs the [`checker`]s region by
//! region and the [`scheduler`]s over all; [`operator`] takes a plan through its steps, and judges by the region itself
//! whether one is done. A new PD knows nothing of its predecessor's operators and plans anew from what it sees, but
//! not before the stores have reported to it.
//!
//! Why two PDs at the same instant do no harm: an answer leaves only after region 1's leadership was
//! confirmed *behind* the work ([`MetaStore::confirm`]), and every durable change is fenced by the term. So an
//! older PD that does not know it yet can neither answer nor write.
//!
//! What it does not do: it opens no connection (stores and clients call it), it executes nothing on stores,
//! and it knows neither Raft nor the way region 1 is reached: that is `node`'s [`MetaStore`].

pub mod after_loss;
pub mod catalog_lease;
pub mod checker;
pub mod cluster;
pub mod gateways;
pub mod ids;
pub mod keys;
pub mod meta;
pub mod operator;
pub mod placement;
pub mod planner;
pub mod rules;
pub mod safe_point;
pub mod scheduler;
pub mod service;
pub mod survey;
pub mod tso;

pub use catalog_lease::CatalogLeases;
pub use cluster::Cluster;
pub use gateways::Gateways;
pub use meta::{MetaError, MetaStore, MetaWrite};
pub use operator::Operators;
pub use rules::{GcRules, MERGE_PART, Rules};
pub use safe_point::SafePoint;
pub use service::{Answer, Counts, Service, Settings};
pub use survey::Survey;
pub use tso::Tso;

/// A reading of both clocks of PD's node, handed in by the caller: the cores read none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never steps back; only differences mean something.
    pub monotonic_ms: u64,
    /// Milliseconds since the Unix epoch by the node's wall clock. It may be wrong.
    pub wall_ms: u64,
}

/// Invariants that a test may break on purpose.
#[cfg(feature = "planted-bugs")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The timestamp window is used without being persisted first: a new PD may go backward.
    TsoWindowNotPersisted,
    /// Where one voter is silent another one is demoted and removed, and nobody asks whether those left are a quorum.
    RemovalBelowQuorum,
}

#[cfg(test)]
mod golden;
