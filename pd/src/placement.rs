//! Where should a replica go, and who should lead?

use proto::StoreId;

use crate::{
    cluster::RegionView,
    operator::{Kind, Plan, Step, safety},
    survey::{Site, Survey},
};

/// How crowded a set of stores is: for each label, the widest first, how many pairs share its value. Less is better,
/// compared from the left: two replicas in one zone are worse than any number in one rack each of different zones.
pub fn crowding(survey: &Survey<'_>, stores: &[StoreId]) -> Vec<usize> {
    let sites: Vec<_> = stores.iter().filter_map(|s| survey.site(*s)).collect();
    let levels = survey.rules.spread_over.len();
    let share = |level: usize, a: &Site, b: &Site| a.labels[level].is_some() && a.labels[level] == b.labels[level];
    let pairs = |level: usize| {
        let with_later = |(i, a): (usize, &&Site)| sites[i + 1..].iter().filter(|b| share(level, a, b)).count();
        sites.iter().enumerate().map(with_later).sum()
    };
    (0..levels).map(pairs).collect()
}

/// The best store for one more replica beside those on `kept`, none of `taken`: the least crowding one, then the lightest.
pub fn best_store(survey: &Survey<'_>, kept: &[StoreId], taken: &[StoreId]) -> Option<StoreId> {
    let limit = survey.rules.limits.arriving_per_store;
    let fits = |s: &&Site| s.takes_replicas() && s.arriving < limit && !taken.contains(&s.store);
    let price = |s: &&Site| (crowding(survey, &[kept, &[s.store]].concat()), s.weight, s.replicas, s.store);
    survey.sites().filter(fits).min_by_key(price).map(|s| s.store)
}

/// Who should lead when `leaving` may not: a live voter that has caught up, on the store that leads least.
pub fn best_leader(survey: &Survey<'_>, view: &RegionView, leaving: &[StoreId]) -> Option<StoreId> {
    let live = |store| survey.is_live(store);
    let fits = |store: &StoreId| survey.site(*store).is_some_and(Site::takes_leaders) && !leaving.contains(store);
    view.voters()
        .filter(|p| view.is_caught_up(p) && safety::is_live(view, p, &live))
        .map(|p| p.store)
        .filter(fits)
        .min_by_key(|s| (survey.site(*s).map(|s| s.leaders), *s))
}

/// The steps from a region's peers to those on other stores: learners first, the leadership off those that leave, then all
/// voters at once, then out with the old. `None`: somebody must lead who can't.
pub fn replace(survey: &Survey<'_>, view: &RegionView, arriving: &[StoreId], leaving: &[StoreId]) -> Option<Vec<Step>> {
    let mut steps: Vec<_> = arriving.iter().map(|&store| Step::AddLearner { store, peer: proto::PeerId(0) }).collect();
    if view.leader.is_some_and(|l| leaving.contains(&l.store)) {
        match best_leader(survey, view, leaving) {
            Some(to) => steps.push(Step::TransferLeader { to }),
            // A lone replica: the new one must vote before it can lead.
            None => {
                let to = *arriving.first()?;
                steps.push(Step::Joint { promote: arriving.to_vec(), demote: vec![] });
                steps.push(Step::TransferLeader { to });
            }
        }
    }
    let votes = |s: &&StoreId| view.voters().any(|p| p.store == **s);
    let demote: Vec<_> = leaving.iter().filter(votes).copied().collect();
    let promoted = steps.iter().any(|s| matches!(s, Step::Joint { .. }));
    let promote = if promoted { vec![] } else { arriving.to_vec() };
    if !promote.is_empty() || !demote.is_empty() {
        steps.push(Step::Joint { promote, demote });
    }
    steps.extend(leaving.iter().map(|&store| Step::Remove { store }));
    Some(steps)
}

/// A plan for the region as it is seen.
pub fn plan(view: &RegionView, kind: Kind, rule: &'static str, steps: Vec<Step>, reason: String) -> Plan {
    Plan { region: view.id(), epoch: view.epoch(), kind, steps, rule, reason }
}
