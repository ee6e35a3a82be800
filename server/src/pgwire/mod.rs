//! The PostgreSQL wire protocol.
pub mod backend;
pub mod frontend;
pub mod startup;
pub mod wire;
