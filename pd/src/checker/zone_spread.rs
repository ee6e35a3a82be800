//! Replicas that are closer together than they need to be: one of them moves to where it shares less.

use crate::{
    cluster::RegionView,
    operator::{Kind, Plan},
    placement::{self, crowding, plan},
    survey::Survey,
};

/// See the module.
pub fn check(survey: &Survey<'_>, view: &RegionView) -> Option<Plan> {
    if !view.is_settled() {
        return None;
    }
    let stores = Survey::stores_of(&view.region);
    let now = crowding(survey, &stores);
    if now.iter().all(|pairs| *pairs == 0) {
        return None;
    }
    let moves = stores.iter().filter_map(|&from| {
        let kept: Vec<_> = stores.iter().copied().filter(|s| *s != from).collect();
        let to = placement::best_store(survey, &kept, &stores)?;
        let after = crowding(survey, &[&kept[..], &[to]].concat());
        // Rather not the leader's replica.
        (after < now).then_some((after, view.is_led_by(from), from, to))
    });
    let (after, _, from, to) = moves.min()?;
    let steps = placement::replace(survey, view, &[to], &[from])?;
    let said = |pairs: &[usize]| {
        let named = survey.rules.spread_over.iter().zip(pairs).filter(|(_, n)| **n > 0);
        let list: Vec<_> = named.map(|(label, n)| format!("{n} in one {label}")).collect();
        if list.is_empty() { "none together".to_string() } else { list.join(", ") }
    };
    let reason = format!("pairs of replicas: {}; from {from} to {to}: {}", said(&now), said(&after));
    Some(plan(view, Kind::Repair, "zone-spread", steps, reason))
}
