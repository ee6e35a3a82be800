//! Leaderships of busy regions move from busy stores to idle ones. A region that is too busy for any store is split
//! (`checker::split_region`).

use crate::{
    cluster::RegionView,
    operator::{Kind, Plan, Step},
    placement::plan as make,
    survey::{Site, Survey},
};

const RULE: &str = "hot-region";
/// A store is busy from this load on; below, balance of load is nobody's concern.
const BUSY_FROM: u64 = 1_000;
/// Moves of one round: load is measured over seconds, and what a move did is seen only then.
const MOVES: usize = 2;

/// See the module.
pub fn plan(survey: &Survey<'_>) -> Vec<Plan> {
    let (mut survey, mut plans, mut taken) = (survey.clone(), Vec::<Plan>::new(), Vec::new());
    let under_way = survey.operators.running().filter(|op| op.plan.rule == RULE).count();
    let views: Vec<_> = survey.cluster.views().filter(|v| survey.is_movable(v)).collect();
    while plans.len() + under_way < MOVES
        && let Some(plan) = one(&survey, &views, &taken)
    {
        survey.count(&plan);
        taken.push(plan.region);
        plans.push(plan);
    }
    plans
}

/// Whether a region is worth a move from a store that is so busy to another one: an eighth of the gap at least, else it is
/// noise; and never so much that the two change places.
pub(super) fn evens_out(load: u64, from: u64, to: u64) -> bool {
    let gap = from.saturating_sub(to);
    from >= BUSY_FROM && load > 0 && load * 8 >= gap && load * 2 <= gap
}

fn one(survey: &Survey<'_>, views: &[&RegionView], taken: &[proto::RegionId]) -> Option<Plan> {
    let mut sites: Vec<&Site> = survey.sites().filter(|s| s.takes_leaders()).collect();
    sites.sort_by_key(|s| (s.load, s.store));
    let from = sites.last().filter(|s| s.load >= BUSY_FROM)?;
    for to in sites.iter().take_while(|to| to.load < from.load) {
        let fits = |v: &&&RegionView| {
            let load = v.load_at(survey.now).score();
            let follows = v.region.peer_on(to.store).is_some_and(|p| v.is_caught_up(&p));
            v.is_led_by(from.store) && follows && !taken.contains(&v.id()) && evens_out(load, from.load, to.load)
        };
        let Some(view) = views.iter().filter(fits).max_by_key(|v| (v.load_at(survey.now).score(), v.id())) else {
            continue;
        };
        let load = view.load_at(survey.now).score();
        let reason = format!(
            "load of {}: {}, of {}: {}, of the region: {load}; after: {} and {}",
            from.store,
            from.load,
            to.store,
            to.load,
            from.load - load,
            to.load + load
        );
        let plan = make(view, Kind::Improve, RULE, vec![Step::TransferLeader { to: to.store }], reason);
        if survey.has_room(&plan) {
            return Some(plan);
        }
    }
    None
}
