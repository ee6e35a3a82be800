//! SQL over a `kv` transaction.
pub mod error;
pub mod types;
