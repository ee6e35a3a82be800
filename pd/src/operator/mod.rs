//! Operators: what PD has decided to do with a region, step by step.
//!
//! ```text
//!   checker, scheduler, person ──▶ Plan ── admitted ──▶ Operator ──▶ step ──▶ leader's store
//!                                   region, epoch,        │  ▲          (heartbeat's answer, repeated)
//!                                   steps, rule, reason   │  └──── region as its leader reports it
//!                                                         ▼
//!                                                      finished: done, cancelled, replaced, timed out, failed
//! ```
//!
//! A move is `AddLearner(to) → [TransferLeader off] → Joint(promote to, demote from) → Remove(from)`.
//!
//! Nobody tells an operator that a step was carried out: a step is done when the region, as its leader reports it, shows
//! it. So a lost answer, a repeated step, a new leader and a new PD make no difference: a new PD simply plans
//! anew from what it sees. If the region shows something that no step of the operator leads to, somebody else changed it,
//! and the operator is cancelled.
//!
//! Before a step leaves, [`safety`] looks once more whether it leaves fewer live voters than a quorum.

pub mod describe;
pub mod progress;
pub mod registry;
pub mod safety;

use bytes::Bytes;
use proto::{Epoch, PeerId, RegionId, StoreId};

pub use registry::{Operators, Refused};

/// An operator's name, unique in the cluster's life: PD's term and a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperatorId(pub u64);

/// How urgent: a plan replaces a running operator of a lower kind on its region, and is refused otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Makes a good thing better: schedulers, and borders.
    Improve,
    /// Mends: checkers of replicas.
    Repair,
    /// A person asked for it.
    Admin,
}

/// How the keys of a split are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitBy {
    /// They are given.
    Keys(Vec<Bytes>),
    /// Into so many parts of like size.
    Size(u32),
    /// In two, by what is asked for.
    Load,
}

/// Ids for a region that a split makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildIds {
    /// The region's.
    pub region: RegionId,
    /// Its peers', in the order of the parent's.
    pub peers: Vec<PeerId>,
}

/// What a region's leader does at once. Peers are named by their store: a region has at most one on each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A learner comes to `store`; done when it has caught up.
    AddLearner {
        /// Where.
        store: StoreId,
        /// Its id; given when the plan is admitted.
        peer: PeerId,
    },
    /// Learners become voters and voters learners, in one joint state (or, if it is only one, at once). Also ends a joint
    /// state that was left over, when there is nothing to change.
    Joint {
        /// Become voters.
        promote: Vec<StoreId>,
        /// Become learners.
        demote: Vec<StoreId>,
    },
    /// The learner on that store leaves.
    Remove {
        /// Where.
        store: StoreId,
    },
    /// That store's replica leads.
    TransferLeader {
        /// Where.
        to: StoreId,
    },
    /// The region is cut; it keeps the left part.
    Split {
        /// Where.
        by: SplitBy,
        /// Given when the plan is admitted; as many as there may be new regions.
        ids: Vec<ChildIds>,
    },
    /// The region ends, and its range belongs to its neighbour.
    Merge {
        /// Which.
        into: RegionId,
    },
}

/// What somebody wants done with a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which.
    pub region: RegionId,
    /// As it was seen; another one by the time of admission is refused.
    pub epoch: Epoch,
    /// How urgent.
    pub kind: Kind,
    /// In order; not empty.
    pub steps: Vec<Step>,
    /// The checker's or scheduler's name, or "admin".
    pub rule: &'static str,
    /// Why, with scores before and after where there are any.
    pub reason: String,
}

impl Plan {
    /// Ids that admission has to bring: for learners, and for the regions of splits, of a region with so many peers.
    pub fn wants_ids(&self, peers: usize) -> u32 {
        let of = |step: &Step| match step {
            Step::AddLearner { .. } => 1,
            Step::Split { by, .. } => by.parts() * (1 + peers as u32),
            _ => 0,
        };
        self.steps.iter().map(of).sum()
    }

    /// Gives out ids, from `next` on, as many as [`Plan::wants_ids`] said.
    pub fn give_ids(&mut self, mut next: u64, peers: usize) {
        let mut take = || {
            next += 1;
            next - 1
        };
        for step in &mut self.steps {
            match step {
                Step::AddLearner { peer, .. } => *peer = PeerId(take()),
                Step::Split { by, ids } => {
                    let mut child =
                        || ChildIds { region: RegionId(take()), peers: (0..peers).map(|_| PeerId(take())).collect() };
                    *ids = (0..by.parts()).map(|_| child()).collect();
                }
                _ => {}
            }
        }
    }

    /// The other region it changes, if it does.
    pub fn neighbour(&self) -> Option<RegionId> {
        self.steps.iter().find_map(|step| match step {
            Step::Merge { into } => Some(*into),
            _ => None,
        })
    }

    /// Stores that get a replica.
    pub fn arrivals(&self) -> impl Iterator<Item = StoreId> {
        self.steps.iter().filter_map(|step| match step {
            Step::AddLearner { store, .. } => Some(*store),
            _ => None,
        })
    }
    /// Stores that lose a replica.
    pub fn departures(&self) -> impl Iterator<Item = StoreId> {
        self.steps.iter().filter_map(|step| match step {
            Step::Remove { store } => Some(*store),
            _ => None,
        })
    }
    /// Whether it changes a peer on that store.
    pub fn is_about(&self, store: StoreId) -> bool {
        self.arrivals().chain(self.departures()).any(|s| s == store)
    }
    /// Who shall lead in the end, if that changes.
    pub fn new_leader(&self) -> Option<StoreId> {
        self.steps.iter().rev().find_map(|step| match step {
            Step::TransferLeader { to } => Some(*to),
            _ => None,
        })
    }
    /// Whether it changes borders.
    pub fn changes_borders(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Split { .. } | Step::Merge { .. }))
    }
}

impl SplitBy {
    /// How many regions come out of it besides the parent.
    pub fn parts(&self) -> u32 {
        match self {
            SplitBy::Keys(keys) => keys.len() as u32,
            SplitBy::Size(parts) => parts.saturating_sub(1),
            SplitBy::Load => 1,
        }
    }
}

/// A plan on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct Operator {
    /// Its name.
    pub id: OperatorId,
    /// What it does.
    pub plan: Plan,
    /// Where the region's peers were when it was admitted, sorted.
    pub(crate) stores: Vec<StoreId>,
    /// Where a step of an operator that it took the region from may still bring a learner, or take one away.
    pub(crate) loose: Vec<StoreId>,
    /// The first step that is not done.
    pub(crate) at: usize,
    /// When it was admitted, PD's monotonic clock.
    pub(crate) since_ms: u64,
    /// When that step became the next.
    pub(crate) step_since_ms: u64,
    /// When that step last left, and in which term of the region.
    pub(crate) sent: Option<(u64, proto::Term)>,
    /// How often its leader refused that step.
    pub(crate) refusals: u32,
    /// What the leader last said against it.
    pub(crate) trouble: String,
}

/// How an operator ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Done,
    /// It makes no sense any more, or a person said so.
    Cancelled(String),
    /// A more urgent one took its region.
    Replaced(OperatorId),
    /// A step took too long.
    TimedOut(String),
    /// A step was refused for good.
    Failed(String),
}

impl Outcome {
    /// In one word.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Cancelled(_) => "cancelled",
            Outcome::Replaced(_) => "replaced",
            Outcome::TimedOut(_) => "timed_out",
            Outcome::Failed(_) => "failed",
        }
    }
}

/// An operator that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// As it was.
    pub operator: Operator,
    /// How it ended.
    pub outcome: Outcome,
    /// When, PD's monotonic clock.
    pub at_ms: u64,
}
