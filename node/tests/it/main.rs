//! Whole nodes in one process: real threads and time, engines in memory, calls instead of sockets.
#![allow(clippy::disallowed_methods)] // This is a driver: it reads clocks, sleeps and spawns.

mod cluster;
mod founding;
mod harness;
mod placement;
mod verify;
