//! Raft traffic between stores: what the store sends gets an envelope, and what comes in is checked.

use std::sync::Arc;

use bytes::Bytes;
use proto::{
    ClusterId, StoreId,
    wire::{RaftFrame, RaftMessage, SnapshotHead},
};
use raftstore::{Transport, snapshot::Outgoing};

use crate::{AddressBook, FrameSender};

/// Who sends.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The cluster.
    pub cluster: ClusterId,
    /// This store.
    pub store: StoreId,
    /// Its data directory.
    pub uuid: Bytes,
    /// Of this process.
    pub boot_id: u64,
}

/// `raftstore`'s way out: store ids become addresses.
pub struct Envelopes {
    sender: Sender,
    book: Arc<AddressBook>,
    frames: Arc<dyn FrameSender>,
}

impl Envelopes {
    /// For this sender.
    pub fn new(sender: Sender, book: Arc<AddressBook>, frames: Arc<dyn FrameSender>) -> Self {
        Envelopes { sender, book, frames }
    }
}

impl Transport for Envelopes {
    fn send(&self, to: StoreId, messages: Vec<RaftMessage>) {
        // A store without an address has lost its data directory: nobody is there to hear.
        let Some(address) = self.book.address(to) else { return };
        let Sender { cluster, store, uuid, boot_id } = self.sender.clone();
        let frame = RaftFrame {
            cluster_id: cluster.0,
            from_store: store.0,
            from_uuid: uuid,
            to_store: to.0,
            messages,
            boot_id,
        };
        self.frames.send(&address, frame);
    }

    fn send_snapshot(&self, snapshot: Outgoing) {
        let to = snapshot.to();
        let Some(address) = self.book.address(to) else {
            return snapshot.finish(Err(format!("nobody knows where {to} is")));
        };
        let Sender { cluster, store, uuid, boot_id } = self.sender.clone();
        let head = SnapshotHead {
            cluster_id: cluster.0,
            from_store: store.0,
            from_uuid: uuid,
            to_store: to.0,
            boot_id,
            message: Some(snapshot.message().clone()),
        };
        self.frames.send_snapshot(&address, head, snapshot);
    }
}

/// Who says that it sends to whom.
pub struct Claim<'a> {
    cluster: u64,
    from: u64,
    uuid: &'a Bytes,
    to: u64,
}

impl<'a> From<&'a RaftFrame> for Claim<'a> {
    fn from(frame: &'a RaftFrame) -> Self {
        Claim { cluster: frame.cluster_id, from: frame.from_store, uuid: &frame.from_uuid, to: frame.to_store }
    }
}

impl<'a> From<&'a SnapshotHead> for Claim<'a> {
    fn from(head: &'a SnapshotHead) -> Self {
        Claim { cluster: head.cluster_id, from: head.from_store, uuid: &head.from_uuid, to: head.to_store }
    }
}

/// Why a frame is not for us, if it is not: it carries another cluster's or another directory's identity.
pub fn refusal<'a>(me: &Sender, book: &AddressBook, said: impl Into<Claim<'a>>) -> Option<String> {
    let Claim { cluster, from, uuid, to } = said.into();
    if cluster != me.cluster.0 {
        return Some(format!("Raft frame of cluster {cluster:x}, this node belongs to {:x}", me.cluster.0));
    }
    if to != me.store.0 {
        return Some(format!("Raft frame for s{to}, this is {}: its directory is not here any more", me.store));
    }
    match book.uuid(StoreId(from)) {
        Some(known) if !uuid.is_empty() && known != *uuid => Some(format!(
            "Raft frame from a data directory that is not the one of s{from}: it must join as a new store"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proto::wire::Store;

    use super::*;

    #[test]
    fn frames_of_other_clusters_stores_and_directories_are_refused() {
        let uuid = |n: u8| Bytes::copy_from_slice(&[n; 16]);
        let me = Sender { cluster: ClusterId(7), store: StoreId(1), uuid: uuid(1), boot_id: 1 };
        let book = AddressBook::default();
        book.update(&[Store { id: 2, address: "n2:1".into(), uuid: uuid(2), ..Store::default() }]);
        let good =
            RaftFrame { cluster_id: 7, from_store: 2, from_uuid: uuid(2), to_store: 1, messages: vec![], boot_id: 1 };
        assert_eq!(refusal(&me, &book, &good), None);
        let refused = |frame: RaftFrame| refusal(&me, &book, &frame).expect("refused");
        assert!(refused(RaftFrame { cluster_id: 8, ..good.clone() }).contains("cluster 8"));
        assert!(refused(RaftFrame { to_store: 3, ..good.clone() }).contains("for s3"));
        assert!(refused(RaftFrame { from_uuid: uuid(9), ..good }).contains("new store"));
    }
}
