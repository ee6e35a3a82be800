//! A replica on a store that is down for good is made anew elsewhere; its place is given up only when the new one votes.

use proto::{StoreId, wire::StoreState};

use crate::{
    cluster::RegionView,
    operator::{Kind, Plan, Step},
    placement::{self, plan},
    survey::Survey,
};

/// Whether the store's replicas count as lost.
pub fn is_lost(survey: &Survey<'_>, store: StoreId) -> bool {
    match survey.site(store) {
        None => true,
        Some(site) => site.state == StoreState::Down || (site.state == StoreState::Removed && !site.live),
    }
}

/// See the module.
pub fn check(survey: &Survey<'_>, view: &RegionView) -> Option<Plan> {
    let lost = view.region.peers.iter().find(|p| is_lost(survey, p.store)).filter(|_| !view.is_joint())?;
    let stores = Survey::stores_of(&view.region);
    let kept: Vec<_> = stores.iter().copied().filter(|s| !is_lost(survey, *s)).collect();
    let repair = |steps, reason| Some(plan(view, Kind::Repair, "store-down", steps, reason));
    if !view.voters().any(|p| p.id == lost.id) {
        let steps = placement::replace(survey, view, &[], &[lost.store])?;
        return repair(steps, format!("a learner on {}, which is down", lost.store));
    }
    // A learner that is on its way anyway takes the place.
    if let Some(learner) = view.learners().find(|p| kept.contains(&p.store)) {
        let (promote, demote) = (vec![learner.store], vec![lost.store]);
        let steps = vec![Step::Joint { promote, demote }, Step::Remove { store: lost.store }];
        return repair(steps, format!("{} is down; the learner on {} takes its place", lost.store, learner.store));
    }
    let to = placement::best_store(survey, &kept, &stores)?;
    let steps = placement::replace(survey, view, &[to], &[lost.store])?;
    let (left, all) = (kept.len(), stores.len());
    repair(steps, format!("{} is down; {left} of {all} replicas are left, {to} is to have one", lost.store))
}
