//! The PostgreSQL wire protocol: bytes to calls of a [`sql::Session`], its steps to bytes.
//!
//! ```text
//!  door ── accepts, bounds ──▶ greeting ── startup, keys ──▶ connection ── one message after another
//!                                 │                              │
//!                              startup (PURE)          frontend, backend (PURE)
//!                                 └────────── wire: socket and buffers ──────────┘
//! ```
//!
//! Framing is written here and not taken from a crate: the ones there are read past a short body (a panic or the next
//! message's bytes) and repair invalid UTF-8 instead of refusing it.
//!
//! Not done here: what a statement means, the forms of values (`sql::types`), passwords and TLS (the security issue).

pub mod backend;
mod connection;
pub mod door;
pub mod frontend;
mod greeting;
pub mod startup;
pub mod wire;

pub use door::{DoorConfig, Phase, SqlDoor};
