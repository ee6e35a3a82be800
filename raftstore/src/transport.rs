//! How messages reach other stores.

use proto::{StoreId, wire::RaftMessage};

use crate::snapshot::Outgoing;

/// Sends Raft messages. Never blocks; may lose, repeat and reorder, which Raft repairs. What is handed over in one
/// call goes in one frame; one stream a pair of stores keeps them in order where it can.
pub trait Transport: Send + Sync + 'static {
    /// Sends `messages` to a store.
    fn send(&self, to: StoreId, messages: Vec<RaftMessage>);
    /// Carries a snapshot to its store, at its pace, beside other traffic: there message and blocks go to
    /// [`crate::StoreHandle::receive_snapshot`]. How it ended is told with [`Outgoing::finish`].
    fn send_snapshot(&self, snapshot: Outgoing);
}
