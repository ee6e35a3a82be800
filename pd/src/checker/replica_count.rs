//! As many voters as the rules say, as far as there are stores, and an odd number: two voters survive less than one.

use proto::wire::StoreState;

use super::store_down::is_lost;
use crate::{
    cluster::RegionView,
    operator::{Kind, Plan},
    placement::{self, crowding, plan},
    survey::Survey,
};

/// How many voters the region should have.
pub fn wanted(survey: &Survey<'_>, view: &RegionView) -> usize {
    // Stores that have one already count while they live, whatever their disk says.
    let may = |s: &crate::survey::Site| {
        s.takes_replicas() || (view.is_on(s.store) && !is_lost(survey, s.store) && s.state != StoreState::Draining)
    };
    let possible = survey.sites().filter(|s| may(s)).count();
    let most = survey.rules.replicas.min(possible).max(1);
    most - usize::from(most % 2 == 0)
}

/// See the module.
pub fn check(survey: &Survey<'_>, view: &RegionView) -> Option<Plan> {
    let (voters, wanted) = (view.voters().count(), wanted(survey, view));
    match voters.cmp(&wanted) {
        std::cmp::Ordering::Less => too_few(survey, view, wanted - voters),
        std::cmp::Ordering::Greater => too_many(survey, view),
        std::cmp::Ordering::Equal => None,
    }
}

fn too_few(survey: &Survey<'_>, view: &RegionView, missing: usize) -> Option<Plan> {
    let here = Survey::stores_of(&view.region);
    let learners: Vec<_> = view.learners().map(|p| p.store).collect();
    let (mut kept, mut arriving) = (here.clone(), Vec::new());
    for _ in learners.len()..missing {
        let to = placement::best_store(survey, &kept, &kept)?;
        kept.push(to);
        arriving.push(to);
    }
    if arriving.is_empty() {
        return None;
    }
    let mut steps = placement::replace(survey, view, &arriving, &[])?;
    if let Some(crate::operator::Step::Joint { promote, .. }) = steps.last_mut() {
        promote.extend(learners);
    }
    let reason = format!("{} of {} voters", view.voters().count(), view.voters().count() + missing);
    Some(plan(view, Kind::Repair, "replica-count", steps, reason))
}

/// One too many goes: from the most crowded place, then the heaviest store. Stores that leave anyway are the affair of
/// their own checker, which never lowers the count.
fn too_many(survey: &Survey<'_>, view: &RegionView) -> Option<Plan> {
    let wanted = wanted(survey, view);
    // A region on two of three stores of which one is full would lose its second copy for nothing.
    if wanted < survey.rules.replicas {
        return None;
    }
    let stores: Vec<_> = view.voters().map(|p| p.store).collect();
    let without = |store: proto::StoreId| stores.iter().copied().filter(|s| *s != store).collect::<Vec<_>>();
    let leads = |store| view.is_led_by(store);
    let surplus = stores.iter().copied().min_by_key(|&s| {
        let weight = survey.site(s).map_or(u64::MAX, |site| site.weight);
        (survey.is_live(s), crowding(survey, &without(s)), leads(s), std::cmp::Reverse(weight), s)
    })?;
    let steps = placement::replace(survey, view, &[], &[surplus])?;
    let reason = format!("{} voters, {wanted} are enough", stores.len());
    Some(plan(view, Kind::Repair, "replica-count", steps, reason))
}
