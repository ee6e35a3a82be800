//! Checkers: what must be mended in a region. One file each, the most urgent first; a region's first finding is what counts.

pub mod joint_state;
pub mod merge_regions;
pub mod orphan_learner;
pub mod replica_count;
pub mod split_region;
pub mod store_down;
pub mod store_leaving;
pub mod zone_spread;

use crate::{cluster::RegionView, operator::Plan, survey::Survey};

/// A checker: what it finds in one region that nobody has. Pure.
pub type Checker = fn(&Survey<'_>, &RegionView) -> Option<Plan>;

/// All of them, in order.
pub const CHECKERS: &[Checker] = &[
    joint_state::check,
    store_down::check,
    orphan_learner::check,
    replica_count::check,
    store_leaving::check,
    zone_spread::check,
    split_region::check,
    merge_regions::check,
];

/// What can't wait for a scheduler's operator that has the region. Only what no step of such an operator looks like: its
/// learners are no orphans.
pub const URGENT: &[Checker] = &[store_down::check];
