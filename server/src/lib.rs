//! The process around a node: configuration, sockets, threads, clocks, files, wiring, the command line.
//!
//! ```text
//!   psql, drivers          other nodes, ctl            browsers, Prometheus
//!        │                       │                             │
//!  ┌─────▼──────┐         ┌──────▼──────┐               ┌──────▼─────┐
//!  │   pgwire   │         │     rpc     │               │    http    │
//!  │ one session│         │ gRPC, both  │               │            │
//!  │ a task     │         │ directions  │               │            │
//!  └─────┬──────┘         └──────┬──────┘               └──────┬─────┘
//!        │ sql::Session          │ node::Node, NodeRpc         │
//!  ┌─────▼──────┐         ┌──────▼──────────────────────┐      │
//!  │sql::Gateway├─────────▶ node (raftstore, kv, pd)    ◀──────┘
//!  └────────────┘ client  └──────┬──────────────────────┘
//!                                │ engines on disk (data_dir), clock, tasks
//!                            process: opens, starts and drains all of it
//! ```
//!
//! Everything that touches the world is here and only here: sockets ([`pgwire`], [`rpc`], [`http`]), clocks and tasks
//! ([`clock`]), the data directory ([`data_dir`]), settings ([`config`]), signals and exit codes ([`cli`]). The crates
//! below run unchanged in the simulator, over simulated doors.
//!
//! Not done here: decisions. What a statement means is `sql`'s, where a key lives is `kv`'s, who leads is
//! `raftstore`'s, what should move is `pd`'s. Nor TLS and passwords yet: without them a node listens on loopback only, unless
//! `--insecure` is said.

pub mod bounded;
pub mod cli;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod pgwire;
pub mod process;
pub mod rpc;
