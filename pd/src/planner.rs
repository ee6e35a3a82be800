//! One round of planning: checkers region by region, then schedulers, all within the limits.

use std::collections::BTreeSet;

use proto::wire::{self, StoreState};

use crate::{
    Cluster, Now,
    checker::{CHECKERS, URGENT},
    operator::{Kind, Plan},
    rules::Rules,
    scheduler::SCHEDULERS,
    survey::{Survey, is_full},
};

/// What plans depend on, besides operators under way and the age of borders and leaderships: two rounds that see the same
/// find the same.
/// With 10,000 regions a round takes milliseconds, and a cluster at rest needs none.
#[derive(Clone, Debug, PartialEq)]
pub struct Sight {
    revision: u64,
    settled: bool,
    stores: Vec<(wire::Store, StoreState, [bool; 4])>,
    disabled: BTreeSet<String>,
}

impl Sight {
    /// As it is now.
    pub fn of(cluster: &Cluster, rules: &Rules, now: Now) -> Sight {
        let stores = cluster.store_looks(now);
        Sight {
            revision: cluster.revision(),
            settled: cluster.has_settled(now),
            stores: stores
                .map(|s| (s.record.clone(), s.state, [s.live, is_full(s.disk), s.slow, s.stopping]))
                .collect(),
            disabled: rules.disabled.clone(),
        }
    }
}

/// What should be done now, the urgent first. Nothing before the stores have reported.
pub fn plan(survey: &Survey<'_>) -> Vec<Plan> {
    let mut plans: Vec<Plan> = Vec::new();
    let mut survey = survey.clone();
    let running = survey.operators.running().len();
    if !survey.cluster.has_settled(survey.now) {
        return plans;
    }
    let cluster = survey.cluster;
    let busy = |plans: &[Plan], region| plans.iter().any(|p| p.region == region || p.neighbour() == Some(region));
    for view in cluster.views() {
        // A repair may take a region from an improvement.
        let held = survey.operators.of_region(view.id()).map(|op| op.plan.kind);
        if view.leader.is_none() || view.term.0 == 0 || held >= Some(Kind::Repair) || busy(&plans, view.id()) {
            continue;
        }
        let checkers = if held.is_some() { URGENT } else { CHECKERS };
        let found = checkers.iter().find_map(|check| check(&survey, view));
        let Some(plan) = found.filter(|p| held.is_none_or(|held| p.kind > held)) else { continue };
        let clash = plan.neighbour().is_some_and(|n| busy(&plans, n));
        if !clash && survey.has_room(&plan) && running + plans.len() < survey.rules.limits.operators {
            survey.count(&plan);
            plans.push(plan);
        }
    }
    for scheduler in SCHEDULERS.iter().filter(|s| survey.rules.has(s)) {
        for plan in (scheduler.plan)(&survey) {
            if !busy(&plans, plan.region) && running + plans.len() < survey.rules.limits.operators {
                survey.count(&plan);
                plans.push(plan);
            }
        }
    }
    plans
}
