//! How messages reach other stores.

use proto::{StoreId, wire::RaftMessage};

/// Sends Raft messages. Never blocks; may lose, repeat and reorder, which Raft repairs. What is handed over in one
/// call goes in one frame; one stream a pair of stores keeps them in order where it can.
pub trait Transport: Send + Sync + 'static {
    /// Sends `messages` to a store.
    fn send(&self, to: StoreId, messages: Vec<RaftMessage>);
}
