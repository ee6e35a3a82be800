//! Two neighbours that are small and idle become one. Never over a table's border: it will be wanted again.

use proto::{KeyRange, PD_REGION, StoreId, keyspace};

use crate::{
    cluster::RegionView,
    operator::{Kind, Plan, Step},
    placement::{self, plan},
    survey::Survey,
};

/// Above this load a region is not idle; a hundredth of what splits one.
const IDLE_PART: u64 = 100;

/// See the module. The region is the left one of the two; the smaller of them ends.
pub fn check(survey: &Survey<'_>, view: &RegionView) -> Option<Plan> {
    let right = survey.cluster.right_of(view)?;
    if !may_merge(view, right) || is_table_border(&right.region.range) {
        return None;
    }
    let small = view.approximate_bytes + right.approximate_bytes < survey.rules.merge_bytes;
    let idle =
        view.load_at(survey.now).score() + right.load_at(survey.now).score() <= survey.rules.split_load / IDLE_PART;
    let old = |v: &RegionView| survey.cluster.shaped_for_ms(survey.now, v.id()) >= survey.rules.merge_after_ms;
    let free = survey.is_movable(view) && survey.is_movable(right);
    if !(small && idle && free && old(view) && old(right)) {
        return None;
    }
    let (source, target) = if view.approximate_bytes < right.approximate_bytes { (view, right) } else { (right, view) };
    let steps = steps(survey, source, target)?;
    let reason = format!(
        "{} and {} bytes, together below {}, and idle",
        view.approximate_bytes, right.approximate_bytes, survey.rules.merge_bytes
    );
    Some(plan(source, Kind::Improve, "merge-regions", steps, reason))
}

/// Whether two regions may become one at all: of the same keyspace, and none of them PD's.
pub fn may_merge(a: &RegionView, b: &RegionView) -> bool {
    let keyspace = |v: &RegionView| keyspace_of(&v.region.range.start);
    let same = keyspace(a) == keyspace(b);
    same && a.id() != PD_REGION && b.id() != PD_REGION
}

fn keyspace_of(start: &[u8]) -> Option<u32> {
    start.first_chunk::<4>().map(|word| u32::from_be_bytes(*word))
}

/// The steps of a merge: the source's replicas come to the target's stores first.
pub fn steps(survey: &Survey<'_>, source: &RegionView, target: &RegionView) -> Option<Vec<Step>> {
    let (from, to) = (Survey::stores_of(&source.region), Survey::stores_of(&target.region));
    let not_in = |list: &[StoreId], other: &[StoreId]| -> Vec<StoreId> {
        list.iter().copied().filter(|s| !other.contains(s)).collect()
    };
    let (arriving, leaving) = (not_in(&to, &from), not_in(&from, &to));
    let mut steps = match arriving.is_empty() && leaving.is_empty() {
        true => vec![],
        false => placement::replace(survey, source, &arriving, &leaving)?,
    };
    steps.push(Step::Merge { into: target.id() });
    Some(steps)
}

/// Whether a table starts exactly here.
fn is_table_border(range: &KeyRange) -> bool {
    range.start.len() <= keyspace::PREFIX_LEN - 4
}
