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
    /// When old versions go.
    pub gc: GcRules,
}

/// When versions that were written over go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcRules {
    /// So old a version's successor is at least, ms: so far back one can read.
    pub retention_ms: u64,
    /// Between two safe points, ms. Each costs one look at every region.
    pub every_ms: u64,
    /// A node that is silent for longer holds nothing back any more, ms. Above [`COMMIT_MEMORY_MS`]: until then a lost commit's
    /// outcome is still asked for.
    pub silent_ms: u64,
    /// How long a store may trust what it was told of the safe point, ms: several heartbeats, and a fail-over of PD (≤ 3 s).
    /// The same on every node: a new PD waits out its predecessor's leases.
    pub lease_ms: u64,
    /// The longest that a transaction holds old versions back, ms; then its snapshot is refused.
    pub hold_max_ms: u64,
}

/// What `kv` looks for the outcome of a commit at most, ms, and a margin.
pub const COMMIT_MEMORY_MS: u64 = 24_000;
/// Long enough to look at a mistake of a few minutes ago, short enough that hot rows stay quick to read.
pub const GC_RETENTION_MS: u64 = 10 * 60 * 1_000;
/// Of the retention, between two safe points. Each time every region is asked for old locks, and woken for it when it
/// sleeps: seldom, in a cluster with thousands of them.
pub const GC_EVERY_PART: u64 = 2;

impl GcRules {
    /// With this retention, and the rest as it suits it.
    pub fn with_retention(retention_ms: u64) -> GcRules {
        GcRules {
            retention_ms,
            every_ms: (retention_ms / GC_EVERY_PART).clamp(1_000, 600_000),
            silent_ms: COMMIT_MEMORY_MS + 6_000,
            lease_ms: 8_000,
            hold_max_ms: 24 * 60 * 60 * 1_000,
        }
    }
}

impl Default for GcRules {
    fn default() -> Self {
        GcRules::with_retention(GC_RETENTION_MS)
    }
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
            gc: GcRules::default(),
        }
    }
}

impl Rules {
    /// Whether that scheduler is on.
    pub fn has(&self, scheduler: &scheduler::Scheduler) -> bool {
        !self.disabled.contains(scheduler.name)
    }
}
