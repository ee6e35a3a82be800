//! Queries.
pub mod bind;
pub mod failure;
pub mod functions;
pub mod normalise;
pub mod run;
pub mod types;
