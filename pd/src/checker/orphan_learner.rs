//! A learner whose operator is gone: promoted where a voter is missing, removed otherwise.

use super::{replica_count::wanted, store_down::is_lost};
use crate::{
    cluster::RegionView,
    operator::{Kind, Plan, Step},
    placement::plan,
    survey::Survey,
};

/// See the module.
pub fn check(survey: &Survey<'_>, view: &RegionView) -> Option<Plan> {
    let learners: Vec<_> = view.learners().filter(|p| !is_lost(survey, p.store)).collect();
    let voters = view.voters().count();
    let missing = wanted(survey, view).saturating_sub(voters);
    let (useful, spare) = learners.split_at(missing.min(learners.len()));
    if let Some(peer) = spare.first() {
        let reason = format!("a learner on {} that nobody waits for: {voters} vote", peer.store);
        return Some(plan(view, Kind::Repair, "orphan-learner", vec![Step::Remove { store: peer.store }], reason));
    }
    // Together, so that no even number of voters comes between; those that still catch up are waited for.
    if useful.is_empty() || useful.len() < missing || !useful.iter().all(|p| view.is_caught_up(p)) {
        return None;
    }
    let promote = useful.iter().map(|p| p.store).collect();
    let reason = format!("{missing} voters are missing, and learners have caught up");
    Some(plan(view, Kind::Repair, "orphan-learner", vec![Step::Joint { promote, demote: vec![] }], reason))
}
