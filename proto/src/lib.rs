//! The nouns of FlareDB: ids, keys, regions, timestamps, messages. No behaviour, no other workspace crate.
//!
//! # Glossary: one noun per thing
//!
//! | word | is |
//! | --- | --- |
//! | **Cluster** | all nodes that share a founding record; [`ClusterId`] |
//! | **Node** | one process |
//! | **Store** | all replicas of one node, and its engines; [`StoreId`] |
//! | **Region** | a range of keys + an [`Epoch`] + [`Peer`]s; [`Region`] |
//! | **Epoch** | versions of a region's peers and borders; every request carries the one it knows |
//! | **Peer** | a membership record: peer id, store id, role |
//! | **Replica** | the live object of one region on one store |
//! | **Driver** | does I/O for a core |
//! | **Entry** | one record of a region's Raft log |
//! | **Proposal** | what one caller wants replicated; an entry carries several |
//! | **Batch** | the mutations of a proposal; [`Batch`] |
//! | **Term, index** | Raft's; [`Term`], [`LogIndex`] |
//! | **Lease** | the time in which a leader may serve reads without asking; also a gateway's right to use a catalog version |
//! | **PD** | the placement driver: a role of region 1's leader |
//! | **TSO** | PD's timestamp oracle; [`Timestamp`] |
//! | **Gateway** | the SQL side of a node: sessions and the catalog cache |
//! | **Operator, step** | PD's plan for a region |
//! | **Merge: source, target** | one region taken over by its neighbour; the target keeps its id |
//! | **Mark** | an entry at which every replica hashes its state, so that replicas can be compared |
//! | **Founder, founding record** | the nodes that made the cluster, and what they agreed on |
//! | **Prewrite, commit, primary, lock** | Percolator's; see `kv` |
//! | **Row lock** | keeps other transactions off a row until its owner ends; in the leader's memory. (Prewrite's *lock* is stored.) |
//! | **Wait, deadlock** | one transaction at a row lock of another; a circle of them, whose youngest gives way |
//! | **Validation** | the look, at a serializable transaction's commit timestamp, whether what it has read (its spans) is as it was |
//! | **Async commit** | a transaction over regions that is committed when locks stand on all its keys; the rest are its secondaries |
//! | **Safe point** | older snapshots are refused; what only they see goes |
//! | **Namespace** | a named part of the key space for the public KV service, strong or eventual; see `kv::space` |
//! | **Key plan** | a statement compiled to key accesses; see `sql` |
//!
//! The messages are generated from `proto/proto/flaredb/v1/*.proto` into [`wire`]; types with rules of their
//! own ([`Region`], [`Epoch`], …) are written by hand and convert to and from them.

pub mod batch;
pub mod error;
pub mod id;
pub mod keyspace;
pub mod region;
pub mod timestamp;

/// Generated messages, as they go over the wire.
#[allow(missing_docs, clippy::all)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/flaredb.v1.rs"));
}

pub use batch::{Batch, Cf};
pub use id::{ClusterId, LogIndex, PD_REGION, PeerId, RegionId, StoreId, Term};
pub use region::{Epoch, KeyRange, Malformed, Peer, PeerRole, Region};
pub use timestamp::Timestamp;

/// Version of the messages between nodes; a node refuses a peer whose version it does not know.
pub const PROTOCOL_VERSION: u32 = 1;
