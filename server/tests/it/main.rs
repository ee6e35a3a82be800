//! The SQL port byte by byte, over a kv layer in this process.

mod bad_input;
mod client;
mod copy;
mod extended;
mod sessions;
mod simple;
