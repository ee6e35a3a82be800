//! DDL.
pub mod default;
