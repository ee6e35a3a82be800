//! Nodes over simulated drivers.
//!
//! - [`stores`]: stores only, without PD or transactions: fewest events, for what `raftstore` promises.
//! - [`nodes`]: whole nodes, for what `kv`, `pd` and `node` promise.

pub mod nodes;
pub mod stores;

use crate::{
    faults::Victim,
    network::Network,
    runtime::{NodeIndex, Owner},
};

/// What a life of a node is called with when it begins: (node, life, a client that lives on it).
pub type BootHook<C> = Box<dyn Fn(NodeIndex, Owner, C) + Send + Sync>;

/// A bug to plant. Those of `kv` and `pd` exist only with the feature `planted-bugs`; those of `raftstore` have no
/// effect without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// Of a store.
    Store(raftstore::Planted),
    /// Of transactions.
    #[cfg(feature = "planted-bugs")]
    Kv(kv::planted::Planted),
    /// Of PD.
    #[cfg(feature = "planted-bugs")]
    Pd(pd::Planted),
}

impl Bug {
    fn of_store(self) -> raftstore::Planted {
        match self {
            Bug::Store(bug) => bug,
            _ => raftstore::Planted::Nothing,
        }
    }
    fn of_kv(self) -> kv::planted::Plant {
        match self {
            #[cfg(feature = "planted-bugs")]
            Bug::Kv(bug) => kv::planted::Plant::of(bug),
            _ => kv::planted::Plant::default(),
        }
    }
    #[cfg(feature = "planted-bugs")]
    fn of_pd(self) -> Option<pd::Planted> {
        match self {
            Bug::Pd(bug) => Some(bug),
            _ => None,
        }
    }
}

/// All bugs that this build can plant.
pub const BUGS: &[Bug] = &[
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::AckBeforeSync),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::ServeExpiredLease),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::ForgetVote),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::VoteAfterRestart),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::TruncateUnsynced),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::TornApply),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::SkipMaxTs),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::DropSecondaryCommit),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::IgnoreLocks),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::LostIsRefused),
    #[cfg(feature = "planted-bugs")]
    Bug::Pd(pd::Planted::TsoWindowNotPersisted),
];

/// How a cluster is built.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// A bug to plant.
    pub bug: Bug,
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
