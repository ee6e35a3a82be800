//! A joint state that nobody is about to leave: its operator's PD is gone.

use crate::{
    cluster::RegionView,
    operator::{Kind, Plan, Step},
    placement::plan,
    survey::Survey,
};

/// See the module.
pub fn check(_: &Survey<'_>, view: &RegionView) -> Option<Plan> {
    if !view.is_joint() {
        return None;
    }
    let steps = vec![Step::Joint { promote: vec![], demote: vec![] }];
    Some(plan(view, Kind::Repair, "joint-state", steps, "a membership change was begun and not ended".into()))
}
