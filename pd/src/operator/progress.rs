//! Is a step done, by what its region looks like? Or has somebody else changed the region?

use proto::{PeerId, PeerRole, StoreId};

use super::{Operator, Step};
use crate::cluster::{Cluster, RegionView};

/// The limits of a step's stay as the next one, ms. Behind the outer ones of the service levels: a split or merge within a
/// minute, a move within five.
pub fn limit_ms(step: &Step) -> u64 {
    match step {
        Step::AddLearner { .. } => 300_000,
        Step::Joint { .. } | Step::Remove { .. } | Step::Split { .. } | Step::Merge { .. } => 60_000,
        Step::TransferLeader { .. } => 20_000,
    }
}

/// How an operator stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// So many of its steps are done.
    At(usize),
    /// The region is not what its steps can have made of it; why.
    Astray(String),
}

/// Looks where an operator stands by now.
pub fn look(op: &Operator, cluster: &Cluster) -> Standing {
    let steps = &op.plan.steps;
    let Some(view) = cluster.region(op.plan.region) else {
        // It is gone from the picture when a newer one covers its range.
        return match steps.get(op.at) {
            Some(Step::Merge { .. }) => Standing::At(steps.len()),
            _ => Standing::Astray(format!("region {} is not there any more", op.plan.region.0)),
        };
    };
    let mut at = op.at;
    while steps.get(at).is_some_and(|step| is_done(step, op, view)) {
        at += 1;
    }
    if let Some(reason) = astray(op, at, view) {
        return Standing::Astray(reason);
    }
    Standing::At(at)
}

fn is_done(step: &Step, op: &Operator, view: &RegionView) -> bool {
    let role = |store: &StoreId| view.region.peer_on(*store).map(|p| p.role);
    match step {
        Step::AddLearner { store, peer } => view
            .region
            .peer_on(*store)
            .is_some_and(|p| p.id == *peer && (p.role != PeerRole::Learner || view.is_caught_up(&p))),
        Step::Joint { promote, demote } => {
            !view.is_joint()
                && promote.iter().all(|s| role(s) == Some(PeerRole::Voter))
                && demote.iter().all(|s| matches!(role(s), Some(PeerRole::Learner) | None))
        }
        Step::Remove { store } => !view.is_on(*store),
        Step::TransferLeader { to } => view.is_led_by(*to),
        Step::Split { .. } => view.region.epoch.version > op.plan.epoch.version,
        Step::Merge { .. } => false,
    }
}

/// Where peers are when the first `at` steps are done.
fn stores_at(op: &Operator, at: usize) -> Vec<StoreId> {
    let mut stores = op.stores.clone();
    for step in &op.plan.steps[..at.min(op.plan.steps.len())] {
        match step {
            Step::AddLearner { store, .. } => stores.push(*store),
            Step::Remove { store } => stores.retain(|s| s != store),
            _ => {}
        }
    }
    stores.sort_unstable();
    stores
}

/// The ids of the learners it brings, by store.
fn arrives_as(op: &Operator, store: StoreId) -> Option<PeerId> {
    op.plan.steps.iter().find_map(|step| match step {
        Step::AddLearner { store: at, peer } if *at == store => Some(*peer),
        _ => None,
    })
}

fn astray(op: &Operator, at: usize, view: &RegionView) -> Option<String> {
    let splits = op.plan.steps.iter().any(|s| matches!(s, Step::Split { .. }));
    // A merge's source is of a new epoch while it waits, and of another one when that came to nothing.
    let merges = matches!(op.plan.steps.get(at), Some(Step::Merge { .. }));
    if view.region.epoch.version != op.plan.epoch.version && !splits && !merges {
        return Some("the region's borders have changed".into());
    }
    let own = |stores: Vec<StoreId>| stores.into_iter().filter(|s| !op.loose.contains(s)).collect::<Vec<_>>();
    let mut now: Vec<_> = view.region.peers.iter().map(|p| p.store).collect();
    now.sort_unstable();
    let now = own(now);
    // The step under way may have come half as far: a learner that is there and has not caught up.
    if now != own(stores_at(op, at)) && now != own(stores_at(op, at + 1)) {
        let list: Vec<_> = now.iter().map(ToString::to_string).collect();
        return Some(format!("somebody else changed its peers, they are on {} now", list.join(" ")));
    }
    let stranger =
        |p: &&proto::Peer| arrives_as(op, p.store).is_some_and(|id| id != p.id) && !op.stores.contains(&p.store);
    view.region.peers.iter().find(stranger).map(|p| format!("{} on {} is not its own", p.id, p.store))
}
