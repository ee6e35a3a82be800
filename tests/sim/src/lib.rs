//! The simulator: a whole cluster in one thread, from a seed.
//!
//! ```text
//!   sql/         gateways on the nodes, workloads in SQL (feature `sql`)
//!   workload/    clients that write down what they saw        check/    judges of those histories
//!        │                                                        ▲
//!   cluster      N nodes over simulated drivers ── history ───────┘
//!        │
//!   runtime/     virtual time, events, tasks      network    links        disk/    what a crash takes
//!        ▲
//!   changes      splits, memberships, hand-overs of regions
//!   faults       crash, torn write, slow and stalled disk, partition, loss, delay, doubling, pause, clock jump
//! ```
//!
//! A run is a function of its seed and of the code. It prints what it covered; a failure prints seed and
//! commit, and `./dev sim --seed N` replays it with its trace. Every seed runs twice in the tests and must
//! give one trace hash.
//!
//! **Planted bugs** (feature `planted-bugs`) show that the judges and the faults are good for something: each
//! of them breaks one invariant, and each must be found within a stated number of seeds.
//!
//! What it does not do: it has no sockets, no RocksDB, no raft-engine. Those pass the same contract suites as
//! the engines in memory (`raftstore`), and a few clusters of real processes (`tests`).

pub mod changes;
pub mod check;
pub mod cluster;
pub mod coverage;
pub mod disk;
pub mod faults;
pub mod machines;
pub mod network;
pub mod run;
pub mod runtime;
#[cfg(feature = "sql")]
pub mod sql;
pub mod store_host;
pub mod trace;
pub mod transfer;
pub mod workload;
