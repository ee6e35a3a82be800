//! Nodes over simulated drivers.
//!
//! - [`stores`]: stores only, without PD or transactions: fewest events, for what `raftstore` promises.

pub mod stores;

use crate::{
    faults::Victim,
    network::Network,
    runtime::{NodeIndex, Owner},
};

/// What a life of a node is called with when it begins: (node, life, a client that lives on it).
pub type BootHook<C> = Box<dyn Fn(NodeIndex, Owner, C) + Send + Sync>;

/// How a cluster is built.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// A bug of `raftstore` to plant.
    pub planted: raftstore::Planted,
}

/// A cluster that workloads can talk to and faults can hit.
pub trait Cluster: Victim {
    /// How sessions talk to it.
    type Client: Clone + Send + Sync + 'static;
    /// A client on a node; `None` while the node is down or not ready.
    fn client(&self, node: NodeIndex) -> Option<Self::Client>;
    /// Calls `hook` for every node that is ready now, and whenever one gets ready later.
    fn on_ready(&self, hook: BootHook<Self::Client>);
    /// The links.
    fn network(&self) -> &Network;
    /// Breaks reference cycles at the end of a run.
    fn shut_down(&self);
}
