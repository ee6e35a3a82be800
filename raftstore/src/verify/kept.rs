//! The latest trees of a store, for those who ask.

use std::collections::VecDeque;

use parking_lot::Mutex;
use proto::RegionId;

use super::Verified;

/// Trees that are kept: of the marks that may be asked for at one time, not of all regions. One takes at most some
/// hundred KiB ([`super::tree::NODES_KEPT`]).
const KEPT_AT_MOST: usize = 32;

/// By mark; the oldest go first.
#[derive(Default)]
pub(crate) struct Kept(Mutex<VecDeque<Verified>>);

impl Kept {
    pub(crate) fn keep(&self, verified: Verified) {
        let mut kept = self.0.lock();
        // A mark that is replayed after a restart, or hashed again, counts once.
        kept.retain(|old| old.id != verified.id || old.region.id != verified.region.id);
        if kept.len() == KEPT_AT_MOST {
            kept.pop_front();
        }
        kept.push_back(verified);
    }

    pub(crate) fn of(&self, region: RegionId, id: u64) -> Option<Verified> {
        self.0.lock().iter().rev().find(|v| v.id == id && v.region.id == region).cloned()
    }
}
