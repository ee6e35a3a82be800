//! Transactions over a replicated byte map: MVCC, locks, the commit protocol, routing.
//!
//! ```text
//!   gateway                                        store that leads a region
//!   ───────                                        ─────────────────────────
//!   Client ─ begin ─► Txn                          Service
//!     │      snapshot at a timestamp of PD           │ latches      one writer of a key at a time
//!     │      writes buffered                         │ concurrency  one-round commits above all reads
//!     │                                              ▼
//!   region_map ─ committer ─ resolver ══ Rpc ══►  txn, mvcc        (snapshot, request) → (batch, response)
//!     where       how          what others           │
//!                              left behind           ▼
//!                                                  RegionStore      snapshot, propose: `raftstore`
//! ```
//!
//! It is Percolator with what has been learnt since. A transaction reads a snapshot, and commits its writes all at
//! once if nobody has committed one of the same keys since that snapshot (snapshot isolation: lost updates
//! are refused, write skew is allowed).
//!
//! - **Row locks** make others wait instead: in the memory of the leader, granted in the order they are asked for, with the
//!   row's newest version, which the commit compares with what is there then ([`row_locks`]). With a fresh snapshot for every
//!   statement that is READ COMMITTED. Who waits for whom is told where PD is, and circles are broken ([`deadlock`]).
//! - **All keys in one region**: one round. The leader checks, chooses the commit timestamp and replicates the versions
//!   (1PC). What keeps such a timestamp above every snapshot read there is in `concurrency`.
//! - **Several regions**: locks with the new values everywhere. Up to 256 keys that is the commit (async commit, [`txn`]):
//!   each leader promises a timestamp above all it has served, the highest is the transaction's. With more keys one lock, the
//!   primary's, decides: it is turned into a version at a timestamp from PD. The other locks follow in the background
//!   either way. A value travels through the log once: commit moves it from its lock.
//! - **Too large for the gateway's memory**: a transaction leaves writes with the stores as locks while it goes on, in numbered parts
//!   and with generations, so that ROLLBACK TO can drop some; it reads them there. It remembers ranges, not keys, and its locks are
//!   ended by range. Readers go past: it is made to commit above them ([`client`], `spill.rs`; [`mvcc::spilled`]).
//! - **Serializable transactions** remember what they have read ([`client`], `reads.rs`). At COMMIT they take a timestamp from PD, the
//!   leaders see that all of it is at that timestamp as it was ([`txn`], `validate.rs`), as a read at it would, and what they write
//!   commits at exactly that timestamp. So each is as if it had happened at one instant between its beginning and its end.
//!   With reads and writes in one region the 1PC does all of it. Without writes there is nothing to look at.
//! - **Whoever meets a lock** asks its primary, and finishes what is decided, or waits, or after the TTL (by PD's
//!   time) ends it for everybody: rolls it back, or finds all locks of an async commit and commits it ([`txn`]).
//! - **The past** is read from any replica that is known to have all of it up to a timestamp: leaders say so every half second, a
//!   second behind PD's time ([`service`], `past.rs`), and clients ask their own node's store first ([`client`], `near.rs`).
//! - **Old versions** go once nobody can read them: below PD's safe point every store refuses reads and prewrites, then the
//!   locks that stand there are ended, then what is hidden is deleted through the log ([`gc`]). A client says which of its
//!   transactions is the oldest, and that holds the safe point back.
//! - **A lost answer** is asked for again: every request recognises its own traces. If the outcome of a commit can't be
//!   learnt before the deadline it is reported as unknown, never as a failure ([`client::committer`]).
//!
//! Pure, in the sense of the design (no clock, no lock, no `async`): [`codec`], [`mvcc`], [`txn`], [`gc`], [`latch`], [`row_locks`], [`deadlock`],
//! [`client::region_map`], [`client::committer`], `client::reads`. Around them [`Service`] and [`Client`] do the waiting and sending.
//!
//! What it does not do: it knows no rows and no tables; it never dials a socket.

pub mod client;
pub mod codec;
mod concurrency;
pub mod deadlock;
pub mod driver;
mod error;
pub mod gc;
#[cfg(test)]
mod golden;
pub mod latch;
pub mod local;
pub mod mvcc;
pub mod planted;
pub mod row_locks;
pub mod service;
pub mod space;
pub mod store;
pub mod txn;

pub use client::{
    COMMIT_MEMORY, Client, ClientConfig, CommitOptions, DetachedRows, Floor, LockPlace, LockedRow, OnLocked, Page,
    RegionRoute, RowLock, Savepoint, Scan, ScanOptions, Twin, Txn,
};
pub use driver::{Clock, GatewayDoor, Pd, PdError, Reply, Rpc, RpcError, ScanChunk, ScanSink, Spawn, StoreScan};
pub use error::Error;
pub use proto::wire::RowLockMode;
/// Of a monotonic clock; `sql` measures its leases and time-outs with it.
pub use raftstore::{Instant, MonotonicClock};
pub use service::{PastReads, Service};
pub use space::{SpaceError, Spaces};
pub use store::RegionStore;
