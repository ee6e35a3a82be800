//! Steps and operators as people read them, and as stores get them.

use std::fmt;

use proto::{
    Peer, PeerRole, StoreId,
    wire::{
        self, ChangePeersStep, MergeStep, OperatorState, OperatorStatus, PeerChangeStep, RegionStep, SplitStep,
        TransferLeaderStep, peer_change_step, region_step,
    },
};

use super::{Finished, Operator, Outcome, SplitBy, Step};
use crate::{
    Now,
    cluster::{Cluster, RegionView},
};

fn stores(list: &[StoreId]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::AddLearner { store, peer } if peer.0 == 0 => write!(f, "add a learner on {store}"),
            Step::AddLearner { store, peer } => write!(f, "add learner {peer} on {store}"),
            Step::Joint { promote, demote } => match (promote.is_empty(), demote.is_empty()) {
                (true, true) => f.write_str("leave the joint state"),
                (false, true) => write!(f, "promote {}", stores(promote)),
                (true, false) => write!(f, "demote {}", stores(demote)),
                (false, false) => write!(f, "promote {} and demote {}", stores(promote), stores(demote)),
            },
            Step::Remove { store } => write!(f, "remove the learner on {store}"),
            Step::TransferLeader { to } => write!(f, "let {to} lead"),
            Step::Split { by, .. } => match by {
                SplitBy::Keys(keys) => write!(f, "split at {} keys", keys.len()),
                SplitBy::Size(parts) => write!(f, "split into {parts} by size"),
                SplitBy::Load => f.write_str("split by load"),
            },
            Step::Merge { into } => write!(f, "merge into {into}"),
        }
    }
}

/// The step as the region's leader gets it. `None`: the region is not as the step needs it.
pub fn for_store(op: &Operator, index: usize, view: &RegionView, cluster: &Cluster) -> Option<RegionStep> {
    use region_step::Kind;
    let kind = match op.plan.steps.get(index)? {
        Step::TransferLeader { to } => Kind::TransferLeader(TransferLeaderStep { to_store: to.0 }),
        Step::Split { by, ids } => {
            let ids = ids.iter().map(|child| wire::NewRegionIds {
                region_id: child.region.0,
                peer_ids: child.peers.iter().map(|p| p.0).collect(),
            });
            let (by, keys) = match by {
                SplitBy::Keys(keys) => (wire::SplitBy::Keys, keys.clone()),
                SplitBy::Size(_) => (wire::SplitBy::Size, vec![]),
                SplitBy::Load => (wire::SplitBy::Load, vec![]),
            };
            Kind::Split(SplitStep { by: by as i32, keys, ids: ids.collect() })
        }
        Step::Merge { into } => Kind::Merge(MergeStep { into: Some((&cluster.region(*into)?.region).into()) }),
        change => Kind::ChangePeers(ChangePeersStep { changes: changes(change, view)? }),
    };
    Some(RegionStep {
        operator_id: op.id.0,
        index: index as u32,
        region_id: view.id().0,
        epoch: Some(view.epoch().into()),
        kind: Some(kind),
    })
}

fn changes(step: &Step, view: &RegionView) -> Option<Vec<PeerChangeStep>> {
    use peer_change_step::Kind;
    let id = |store: &StoreId| view.region.peer_on(*store).map(|p| p.id.0);
    let kinds: Option<Vec<Kind>> = match step {
        Step::AddLearner { store, peer } => {
            let learner = Peer { id: *peer, store: *store, role: PeerRole::Learner };
            Some(vec![Kind::AddLearner(learner.into())])
        }
        Step::Joint { promote, demote } => {
            let up = promote.iter().map(|s| Some(Kind::Promote(id(s)?)));
            up.chain(demote.iter().map(|s| Some(Kind::Demote(id(s)?)))).collect()
        }
        Step::Remove { store } => id(store).map(|id| vec![Kind::Remove(id)]),
        Step::TransferLeader { .. } | Step::Split { .. } | Step::Merge { .. } => None,
    };
    Some(kinds?.into_iter().map(|kind| PeerChangeStep { kind: Some(kind) }).collect())
}

impl Operator {
    /// As people see it while it runs.
    pub fn status(&self, now: Now) -> OperatorStatus {
        OperatorStatus {
            id: self.id.0,
            region_id: self.plan.region.0,
            rule: self.plan.rule.into(),
            reason: self.plan.reason.clone(),
            steps: self.plan.steps.iter().map(ToString::to_string).collect(),
            done: self.at as u32,
            state: OperatorState::Running as i32,
            outcome: self.trouble.clone(),
            age_ms: now.monotonic_ms.saturating_sub(self.since_ms),
            ran_ms: 0,
        }
    }
}

impl Finished {
    /// As people see it.
    pub fn status(&self, now: Now) -> OperatorStatus {
        let (state, outcome) = match &self.outcome {
            Outcome::Done => (OperatorState::Done, String::new()),
            Outcome::Cancelled(why) => (OperatorState::Cancelled, why.clone()),
            Outcome::Replaced(by) => (OperatorState::Replaced, format!("operator {} took the region", by.0)),
            Outcome::TimedOut(step) => (OperatorState::TimedOut, step.clone()),
            Outcome::Failed(why) => (OperatorState::Failed, why.clone()),
        };
        let ran_ms = self.at_ms.saturating_sub(self.operator.since_ms);
        OperatorStatus { state: state as i32, outcome, ran_ms, ..self.operator.status(now) }
    }
}
