//! Leaderships move from stores that lead many regions to stores that lead few, the idle regions first.

use crate::{
    cluster::RegionView,
    operator::{Kind, Plan, Step},
    placement::plan as make,
    survey::{Site, Survey},
};

const RULE: &str = "balance-leader";

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
    let limit = survey.rules.limits.leaders_per_store;
    let mut sites: Vec<&Site> = survey.sites().filter(|s| s.takes_leaders() && s.leaders_moving < limit).collect();
    sites.sort_by_key(|s| (s.leaders, s.store));
    for from in sites.iter().rev() {
        // One more there and one less here must not turn the two around.
        for to in sites.iter().take_while(|to| to.leaders + 2 <= from.leaders) {
            let fits = |v: &&&RegionView| {
                let follows = v.region.peer_on(to.store).is_some_and(|p| v.is_caught_up(&p));
                v.is_led_by(from.store) && follows && !taken.contains(&v.id())
            };
            let Some(view) = views.iter().filter(fits).min_by_key(|v| (v.load.score(), v.id())) else { continue };
            let reason = format!(
                "{} leads {} regions, {} leads {}; after: {} and {}",
                from.store,
                from.leaders,
                to.store,
                to.leaders,
                from.leaders - 1,
                to.leaders + 1
            );
            return Some(make(view, Kind::Improve, RULE, vec![Step::TransferLeader { to: to.store }], reason));
        }
    }
    None
}
