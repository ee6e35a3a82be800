//! One node without sockets and SQL: founding, store, kv service, PD role, heartbeats and client, assembled over drivers.
//!
//! ```text
//!      calls of other nodes                                       this node's SQL (sql, through server)
//!  probe accept   raft        pd heartbeat      kv                 client            pd client
//!      │           │              │              │                    │                  │
//!  ┌───▼──────┐ ┌──▼─────┐  ┌─────▼────┐   ┌─────▼──────┐       ┌─────▼─────┐      ┌─────▼─────┐
//!  │Membership│ │ frames │  │  PdRole  │   │  KvDoor    │◀──────│kv::Client │─────▶│ PdClient  │
//!  │ founding │ │ checks │  │ pd::     │   │kv::Service │ local └─────┬─────┘      └─────┬─────┘
//!  │ identity │ └──┬─────┘  │ Service  │   └─────┬──────┘             │ NodeRpc::kv      │ NodeRpc::pd
//!  └───┬──────┘    │        └────┬─────┘         │                    ▼                  ▼
//!      │           │   region 1  │               │               other nodes, by AddressBook
//!      ▼           ▼             ▼               ▼
//!    Engine     StoreHandle of raftstore (its core is run by a StoreRunner)
//! ```
//!
//! A node is opened, then started. Opened, it knows its data directory and answers who it is; started, it has
//! found or founded its cluster and runs a store. PD is a role the node takes on while its store serves region 1.
//!
//! Every message says which cluster it belongs to, and Raft traffic and heartbeats from which data directory; what
//! does not match is refused with the reason.
//!
//! What it does not do: it has no socket and no thread of its own. `server` brings [`NodeRpc`] over gRPC and gives
//! [`StoreThreads`]; the simulator gives both of its own, and the same node runs in virtual time. It knows no SQL.

pub mod address_book;
pub mod drain;
pub mod eventual;
pub mod founding;
pub mod frames;
pub mod gc;
pub mod identity;
pub mod kv_door;
pub mod load;
pub mod measure;
pub mod membership;
pub mod node;
pub mod pd;
pub mod public_kv;
pub mod recovery;
pub mod rpc;
pub mod runner;
pub mod split_keys;
pub mod steps;
pub mod verify;

pub use ::pd::{GcRules, MERGE_PART, Rules};
pub use address_book::AddressBook;
pub use membership::{Founded, FoundingError, Membership};
pub use node::{Drivers, Node, NodeConfig, StartError};
pub use pd::{PdClient, heartbeat::DiskSpace};
pub use public_kv::PublicKv;
pub use rpc::{CallError, FrameSender, NodeRpc};
pub use runner::{StoreRunner, StoreThreads};
