//! What PD strives for: replicas, borders of size and load, patience, and how much may be under way at once.

use std::collections::BTreeSet;

use crate::scheduler;

/// The rules of a cluster. Every node is started with the same ones: any may become PD.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Voters of a region, when there are stores enough.
    pub replicas: usize,
    /// Labels of stores, the widest first, over whose values a region's replicas are spread.
    pub spread_over: Vec<String>,
    /// A store that is silent for longer than this is down for good: its replicas are made anew elsewhere.
    pub down_after_ms: u64,
    /// A region above is split.
    pub split_bytes: u64,
    /// A region that has more to do than this (see [`crate::cluster::Load::score`]) is split.
    pub split_load: u64,
    /// Two neighbours that are together below, and idle, are merged; 0: none ever are but by hand. Well below
    /// `split_bytes`, so that a merged region is far from the next split.
    pub merge_bytes: u64,
    /// Borders that are younger are left alone: what was just split, or emptied to be filled again, is not merged.
    pub merge_after_ms: u64,
    /// Schedulers that are switched off.
    pub disabled: BTreeSet<String>,
    /// How much is done at a time.
    pub limits: Limits,
}

/// Bounds of what is under way at once: each step costs stores work that clients wait behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// New replicas on their way to one store: each is a snapshot to receive and to ingest.
    pub arriving_per_store: usize,
    /// Replicas on their way away from one store: each may be a snapshot it makes.
    pub leaving_per_store: usize,
    /// Leaderships on their way to or from one store: each is a moment without a lease.
    pub leaders_per_store: usize,
    /// Splits and merges in the cluster: each changes routes that every client keeps.
    pub borders: usize,
    /// Operators in the cluster, those of people excepted: it bounds PD's memory and a plan gone wrong.
    pub operators: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { arriving_per_store: 4, leaving_per_store: 4, leaders_per_store: 16, borders: 8, operators: 512 }
    }
}

/// Above any restart of a machine.
pub const DOWN_AFTER_MS: u64 = 30 * 60 * 1_000;
/// A snapshot of it takes about a second, and a table of a terabyte still has no more than 10,000 of them.
pub const SPLIT_BYTES: u64 = 96 << 20;
/// What one region's log can be asked to do on small machines, about; two regions share it.
pub const SPLIT_LOAD: u64 = 20_000;
/// A fifth of a full one, so that a merged region is far from the next split.
pub const MERGE_PART: u64 = 5;
/// Long enough for a bulk load between its beginning and its first large region, and for a daily peak to come again.
pub const MERGE_AFTER_MS: u64 = 60 * 60 * 1_000;

impl Default for Rules {
    fn default() -> Self {
        Rules {
            replicas: 3,
            spread_over: ["region", "zone", "rack", "host"].map(String::from).into(),
            down_after_ms: DOWN_AFTER_MS,
            split_bytes: SPLIT_BYTES,
            split_load: SPLIT_LOAD,
            merge_bytes: SPLIT_BYTES / MERGE_PART,
            merge_after_ms: MERGE_AFTER_MS,
            disabled: BTreeSet::new(),
            limits: Limits::default(),
        }
    }
}

impl Rules {
    /// Whether that scheduler is on.
    pub fn has(&self, scheduler: &scheduler::Scheduler) -> bool {
        !self.disabled.contains(scheduler.name)
    }
}
