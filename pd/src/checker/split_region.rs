//! A region that is too large, or has too much to do, is split. The store that leads it finds the keys.

use proto::PD_REGION;

use crate::{
    cluster::RegionView,
    operator::{Kind, Plan, SplitBy, Step},
    placement::plan,
    survey::Survey,
};

/// Regions that come out of one split by size: each is an election.
const PARTS_MAX: u64 = 16;

/// See the module.
pub fn check(survey: &Survey<'_>, view: &RegionView) -> Option<Plan> {
    if view.id() == PD_REGION || view.is_joint() {
        return None;
    }
    let (bytes, load) = (view.approximate_bytes, view.load.score());
    let rules = survey.rules;
    let (by, reason) = if bytes > rules.split_bytes {
        let half = (rules.split_bytes / 2).max(1);
        let parts = bytes.div_ceil(half).clamp(2, PARTS_MAX);
        let reason = format!("{bytes} bytes, at most {}: {parts} parts", rules.split_bytes);
        (SplitBy::Size(parts as u32), reason)
    } else if load > rules.split_load {
        (SplitBy::Load, format!("load {load}, at most {}", rules.split_load))
    } else {
        return None;
    };
    Some(plan(view, Kind::Improve, "split-region", vec![Step::Split { by, ids: vec![] }], reason))
}
