//! The process around a node: config, sockets, threads, clocks, the PostgreSQL wire, gRPC, HTTP, wiring, CLI.
//! No decisions.

#![recursion_limit = "256"]

pub mod cli;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod http;
pub mod logging;
pub mod pgwire;
pub mod process;
pub mod rpc;
