//! PostgreSQL's functions and operators over Arrow, where DataFusion has none or another meaning.

pub mod aggregates;
pub mod arithmetic;
pub mod cast;
pub mod registry;
pub mod scalar;
pub mod session;
pub mod standard;
pub mod temporal;
