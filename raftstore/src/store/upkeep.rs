//! When the state engine is synced and the log purged: in the background, behind the applying.

use std::{collections::BTreeMap, time::Duration};

use proto::{LogIndex, RegionId};

use crate::clock::Instant;

/// After this many applied entries it is done earlier.
const ENTRIES: u64 = 32 << 10;

/// What was applied since the last sync of the state engine.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// After this long what was applied is made durable, so that a restart replays little and the log can be cut.
    interval: Duration,
    last_at: Instant,
    entries_since: u64,
    /// What was applied when the running one was started.
    running: Option<BTreeMap<RegionId, LogIndex>>,
}

impl Upkeep {
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Upkeep { interval, last_at: now, entries_since: 0, running: None }
    }

    pub(super) fn applied(&mut self, entries: usize) {
        self.entries_since += entries as u64;
    }

    /// Whether one is to be started now; if so `applied` tells how far each region is.
    pub(super) fn start(&mut self, now: Instant, applied: impl FnOnce() -> BTreeMap<RegionId, LogIndex>) -> bool {
        let due = self.entries_since >= ENTRIES || (self.entries_since > 0 && now.since(self.last_at) >= self.interval);
        if self.running.is_some() || !due {
            return false;
        }
        self.running = Some(applied());
        self.last_at = now;
        self.entries_since = 0;
        true
    }

    /// It is done; what is durable now.
    pub(super) fn done(&mut self) -> BTreeMap<RegionId, LogIndex> {
        self.running.take().unwrap_or_default()
    }
}
