//! This node's side of PD: the role it may have, its reports, and the client that finds whoever has the role.

pub mod client;
pub mod heartbeat;
pub mod region_one;
pub mod role;

pub use client::PdClient;
pub use role::PdRole;
