//! Replicas move from the heaviest stores to the lightest, as long as that evens out more than it costs.
//!
//! Weight is bytes, and an empty region weighs something too, so that a cluster without data is spread as well.
//! A move is made only when the two stores are still in the same order after it, or equal: nothing ever moves back.

use proto::StoreId;

use crate::{
    cluster::RegionView,
    operator::{Kind, Plan},
    placement::{self, crowding, plan as make},
    survey::{EMPTY_REGION_BYTES, Site, Survey, weight},
};

const RULE: &str = "balance-region";

/// See the module.
pub fn plan(survey: &Survey<'_>) -> Vec<Plan> {
    let (mut survey, mut plans, mut taken) = (survey.clone(), Vec::new(), Vec::new());
    let views: Vec<_> = survey.cluster.views().filter(|v| survey.is_movable(v)).collect();
    while let Some(plan) = one(&survey, &views, &taken) {
        survey.count(&plan);
        taken.push(plan.region);
        plans.push(plan);
    }
    plans
}

fn one(survey: &Survey<'_>, views: &[&RegionView], taken: &[proto::RegionId]) -> Option<Plan> {
    let limits = &survey.rules.limits;
    let mut sites: Vec<&Site> = survey.sites().filter(|s| s.takes_replicas() || s.live && s.full).collect();
    sites.sort_by_key(|s| (s.weight, s.store));
    let targets = || sites.iter().filter(|s| s.takes_replicas() && s.arriving < limits.arriving_per_store);
    for from in sites.iter().rev().filter(|s| s.leaving < limits.leaving_per_store) {
        for to in targets() {
            if from.weight <= to.weight {
                break;
            }
            let gap = from.weight - to.weight;
            // Not even an empty one fits: no need to look at all of them.
            if gap < 2 * EMPTY_REGION_BYTES {
                break;
            }
            let fits = |v: &&&RegionView| {
                !taken.contains(&v.id()) && weight(v) * 2 <= gap && may_move(survey, v, from.store, to.store)
            };
            // Followers first: a leader's replica costs a transfer more. Then the heaviest, for fewer moves.
            let best = views
                .iter()
                .filter(fits)
                .min_by_key(|v| (v.is_led_by(from.store), std::cmp::Reverse(weight(v)), v.id()));
            let Some(view) = best else { continue };
            let steps = placement::replace(survey, view, &[to.store], &[from.store])?;
            let score = |weight: u64| format!("{}M", weight >> 20);
            let reason = format!(
                "{} has {} replicas ({}), {} has {} ({}); after: {} and {}",
                from.store,
                from.replicas,
                score(from.weight),
                to.store,
                to.replicas,
                score(to.weight),
                score(from.weight - weight(view)),
                score(to.weight + weight(view)),
            );
            let plan = make(view, Kind::Improve, RULE, steps, reason);
            if survey.has_room(&plan) {
                return Some(plan);
            }
        }
    }
    None
}

/// From here to there, and not closer together than before.
fn may_move(survey: &Survey<'_>, view: &RegionView, from: StoreId, to: StoreId) -> bool {
    if !view.is_on(from) || view.is_on(to) {
        return false;
    }
    let stores = Survey::stores_of(&view.region);
    let after: Vec<_> = stores.iter().map(|s| if *s == from { to } else { *s }).collect();
    crowding(survey, &after) <= crowding(survey, &stores)
}
