//! Leaderships move off stores that drain, are removed, or whose disk is slow. Also PD's own.

use proto::wire::StoreState;

use crate::{
    operator::{Kind, Plan, Step},
    placement::{best_leader, plan as make},
    survey::{Site, Survey},
};

const RULE: &str = "evict-leader";

/// See the module.
pub fn plan(survey: &Survey<'_>) -> Vec<Plan> {
    let (mut survey, mut plans) = (survey.clone(), Vec::new());
    let views: Vec<_> = survey.cluster.views().filter(|v| survey.is_free(v) && !v.is_joint()).collect();
    for view in views {
        let Some(site) = view.leader.and_then(|l| survey.site(l.store)) else { continue };
        let Some(why) = must_leave(site) else { continue };
        let (from, left) = (site.store, site.leaders);
        let Some(to) = best_leader(&survey, view, &[from]) else { continue };
        let reason = format!("{from} {why} and leads {left} regions; {to} takes this one");
        let plan = make(view, Kind::Repair, RULE, vec![Step::TransferLeader { to }], reason);
        if survey.has_room(&plan) {
            survey.count(&plan);
            plans.push(plan);
        }
    }
    plans
}

fn must_leave(site: &Site) -> Option<&'static str> {
    match site.state {
        StoreState::Draining => Some("drains"),
        StoreState::Removed => Some("was removed"),
        _ if site.stopping => Some("is about to stop"),
        _ if site.slow => Some("has a slow disk"),
        _ => None,
    }
}
