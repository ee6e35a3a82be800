//! One node without sockets and SQL.
pub mod address_book;
pub mod founding;
pub mod identity;
pub mod membership;
pub mod rpc;

pub use address_book::AddressBook;
pub use membership::{Founded, FoundingError, Membership};
pub use rpc::{CallError, FrameSender, NodeRpc};
