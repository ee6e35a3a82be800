//! Snapshots: how a replica gets a region's state that the log no longer tells, or that it never had.
//!
//! ```text
//! leader   raft-rs wants one ─► Make: engine snapshot ─► parts (SST files), off the loop ─► SnapshotMade
//!          raft-rs asks again ─► MsgSnapshot ─► Send: message and parts, on a stream of their own ─► SnapshotSent
//! follower Receiving: blocks ─► checksums ─► synced folder ─► SnapshotArrived ─► raft-rs accepts it
//!          ─► Take: marker, log cut, old records out, parts in, apply state ─► SnapshotTaken ─► the replica goes on
//! ```
//!
//! - The message is handed to raft-rs only when every file is there and has its checksum; a broken transfer leaves
//!   nothing, at boot neither, and the leader is told (`report_snapshot`) and tries again with the next heartbeat.
//! - While a snapshot is being taken its replica says nothing and its log and state are written by nobody else: what
//!   was applied and written before must be done first ([`crate::region`], [`crate::store`]).
//! - A crash at any step ends in the old state or, once the marker is durable, in the new one (`taking`).
//! - Bounded: snapshots kept by a store (`KEPT_AT_MOST`), transfers it takes, bytes a second of each.
//!
//! [`SnapshotDriver`] does this for both kinds of drivers, threads and the simulator's events. What is not here: when a
//! replica wants one (`region::snapshot`), and sockets ([`crate::Transport`]).

mod content;
mod driver;
mod incoming;
mod outgoing;
pub(crate) mod taking;
#[cfg(test)]
mod tests;

pub use content::Content;
pub use driver::SnapshotDriver;
pub(crate) use incoming::RECEIVING_AT_MOST;
pub use incoming::Receiving;
pub use outgoing::{Outcome, Outgoing};
pub use taking::{MergedAway, TakeError, TakeTask, Taking};

/// Snapshots that a store makes, sends or keeps at once, one a region: each takes disk, and sending it bandwidth. A
/// region that wants one more waits for its leader's next heartbeat.
pub(crate) const KEPT_AT_MOST: usize = 4;
