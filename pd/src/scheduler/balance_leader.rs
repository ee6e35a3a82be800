//! Leaderships move from stores that lead many regions to stores that lead few, the idle regions first; a busy one never to
//! a store that has more to do already.

use std::collections::BTreeMap;

use proto::StoreId;

use crate::{
    cluster::RegionView,
    operator::{Kind, Plan, Step},
    placement::plan as make,
    scheduler::hot_region,
    survey::{Site, Survey},
};

const RULE: &str = "balance-leader";

/// What each store leads and may hand over, the idle last.
type Led<'a> = BTreeMap<StoreId, Vec<&'a RegionView>>;

/// See the module.
pub fn plan(survey: &Survey<'_>) -> Vec<Plan> {
    let (mut survey, mut plans) = (survey.clone(), Vec::new());
    // A round looks at all regions once, however many it moves.
    if sites(&survey).last().zip(sites(&survey).first()).is_none_or(|(most, least)| least.leaders + 2 > most.leaders) {
        return plans;
    }
    let mut led = Led::new();
    for view in survey.cluster.views().filter(|v| survey.is_movable(v)) {
        if let Some(leader) = view.leader {
            led.entry(leader.store).or_default().push(view);
        }
    }
    let now = survey.now;
    led.values_mut()
        .for_each(|views| views.sort_unstable_by_key(|v| std::cmp::Reverse((v.load_at(now).score(), v.id()))));
    while let Some(plan) = one(&survey, &mut led) {
        survey.count(&plan);
        plans.push(plan);
    }
    plans
}

/// Those that have room for one more change, by what they lead.
fn sites<'a>(survey: &'a Survey<'_>) -> Vec<&'a Site> {
    let limit = survey.rules.limits.leaders_per_store;
    let mut sites: Vec<&Site> = survey.sites().filter(|s| s.takes_leaders() && s.leaders_moving < limit).collect();
    sites.sort_by_key(|s| (s.leaders, s.store));
    sites
}

fn one(survey: &Survey<'_>, led: &mut Led<'_>) -> Option<Plan> {
    let sites = sites(survey);
    for from in sites.iter().rev() {
        let Some(views) = led.get_mut(&from.store) else { continue };
        // One more there and one less here must not turn the two around.
        for to in sites.iter().take_while(|to| to.leaders + 2 <= from.leaders) {
            let follows = |v: &RegionView| v.region.peer_on(to.store).is_some_and(|p| v.is_caught_up(&p));
            // What hot-region would bring back stays.
            let stays = |load: u64| hot_region::evens_out(load, to.load + load, from.load.saturating_sub(load));
            let goes = |v: &&RegionView| follows(v) && !stays(v.load_at(survey.now).score());
            let Some(at) = views.iter().rposition(goes) else { continue };
            let view = views.remove(at);
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
