//! A replica on a store that drains (or was removed and still lives) moves; the number of replicas never falls.

use proto::wire::StoreState;

use crate::{
    cluster::RegionView,
    operator::{Kind, Plan},
    placement::{self, plan},
    survey::Survey,
};

/// See the module.
pub fn check(survey: &Survey<'_>, view: &RegionView) -> Option<Plan> {
    let leaves =
        |store| survey.site(store).is_some_and(|s| matches!(s.state, StoreState::Draining | StoreState::Removed));
    let from = view.region.peers.iter().find(|p| leaves(p.store))?.store;
    let stores = Survey::stores_of(&view.region);
    let kept: Vec<_> = stores.iter().copied().filter(|s| !leaves(*s)).collect();
    let to = placement::best_store(survey, &kept, &stores)?;
    let steps = placement::replace(survey, view, &[to], &[from])?;
    let left = survey.site(from).map_or(0, |s| s.replicas);
    let reason = format!("{from} is to be left, it has {left} replicas; {to} takes this one");
    Some(plan(view, Kind::Repair, "store-leaving", steps, reason))
}
