//! Log writes on their way, and what they promise. PURE.

use std::collections::VecDeque;

use proto::RegionId;

use super::pace::Pace;
use crate::{clock::Instant, region::outbox::Held};

/// One of them.
struct Writing {
    sequence: u64,
    /// What waits for it.
    held: Vec<Held>,
    synced: bool,
    begun: Instant,
}

/// All of them; they end in the order they were begun.
pub(super) struct Writes {
    open: VecDeque<Writing>,
    last_sequence: u64,
    /// Of the disk.
    pub(super) pace: Pace,
}

/// What a write has made true.
pub(super) struct Written {
    pub(super) held: Vec<Held>,
    pub(super) synced: bool,
}

impl Writes {
    pub(super) fn new(pace: Pace) -> Self {
        Writes { open: VecDeque::new(), last_sequence: 0, pace }
    }

    /// Whether none is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// The number of the latest.
    pub(super) fn last(&self) -> u64 {
        self.last_sequence
    }

    /// The number of the first that is on its way.
    pub(super) fn first_open(&self) -> Option<u64> {
        self.open.front().map(|w| w.sequence)
    }

    /// One more; its number.
    pub(super) fn begin(&mut self, now: Instant, held: Vec<Held>, synced: bool) -> u64 {
        self.last_sequence += 1;
        self.open.push_back(Writing { sequence: self.last_sequence, held, synced, begun: now });
        self.last_sequence
    }

    /// More waits for what is on its way already.
    pub(super) fn hold(&mut self, held: Vec<Held>) {
        self.open.back_mut().expect("something is held back by a write").held.extend(held);
    }

    /// The oldest is done, if it is not behind `sequence`.
    pub(super) fn end(&mut self, now: Instant, sequence: u64) -> Option<Written> {
        let Writing { held, synced, begun, .. } = self.open.pop_front_if(|w| w.sequence <= sequence)?;
        if synced {
            self.pace.wrote(now, begun);
        }
        Some(Written { held, synced })
    }

    /// Nothing waits for a replica any more that is gone.
    pub(super) fn forget(&mut self, region: RegionId) {
        self.open.iter_mut().for_each(|writing| writing.held.retain(|held| held.region != region));
    }
}
