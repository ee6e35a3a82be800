//! Schedulers: what could be better in the cluster. One file each; each can be switched off.

pub mod balance_leader;
pub mod balance_region;
pub mod evict_leader;
pub mod hot_region;

use crate::{operator::Plan, survey::Survey};

/// A scheduler. Pure.
pub struct Scheduler {
    /// What people call it.
    pub name: &'static str,
    /// What it does, for people.
    pub does: &'static str,
    /// Its plans, within the survey's limits.
    pub plan: fn(&Survey<'_>) -> Vec<Plan>,
}

/// All of them, the more urgent first.
pub const SCHEDULERS: &[Scheduler] = &[
    Scheduler {
        name: "evict-leader",
        does: "moves leaderships off stores that drain or whose disk is slow",
        plan: evict_leader::plan,
    },
    Scheduler {
        name: "balance-region",
        does: "moves replicas from the fullest stores to the emptiest",
        plan: balance_region::plan,
    },
    Scheduler {
        name: "hot-region",
        does: "moves the leaderships of busy regions from busy stores to idle ones",
        plan: hot_region::plan,
    },
    Scheduler {
        name: "balance-leader",
        does: "evens out how many regions each store leads",
        plan: balance_leader::plan,
    },
];
