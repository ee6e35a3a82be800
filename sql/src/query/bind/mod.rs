//! bind
pub mod operators;
