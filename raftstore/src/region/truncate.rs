//! How much of a replica's log may go: what every peer has and what this store's state has durably applied.

use proto::{LogIndex, Peer, Region};
use tracing::warn;

use crate::log::Position;

/// The log is cut when at least this many entries can go: a cut costs a log write, entries cost memory in its index.
const CUT_FROM_ENTRIES: u64 = 1024;
/// The leader warns when its log has this many entries that a lagging peer holds back, and at every doubling.
const WARN_FROM_ENTRIES: u64 = 64 << 10;

/// What is known about the log's dispensable head.
#[derive(Debug)]
pub(super) struct Truncation {
    truncated: LogIndex,
    /// Durable on every peer.
    replicated: LogIndex,
    /// In the state engine when it was last synced.
    synced: LogIndex,
    warn_at: u64,
    snapshot_warned: bool,
}

impl Truncation {
    /// What the state engine holds at boot is on disk.
    pub(super) fn new(truncated: Position, applied: LogIndex) -> Self {
        Truncation {
            truncated: truncated.index,
            replicated: truncated.index,
            synced: applied,
            warn_at: WARN_FROM_ENTRIES,
            snapshot_warned: false,
        }
    }

    pub(super) fn replicated(&mut self, index: LogIndex) {
        self.replicated = self.replicated.max(index);
    }

    pub(super) fn synced(&mut self, applied: LogIndex) {
        self.synced = self.synced.max(applied);
    }

    /// Where to cut now, if it is worth it. `unsafe_end` is a planted bug's.
    pub(super) fn due(&self, last: LogIndex, unsafe_end: Option<LogIndex>) -> Option<LogIndex> {
        let end = match unsafe_end {
            Some(end) => end,
            None => self.replicated.min(self.synced).min(last),
        };
        let worth = if unsafe_end.is_some() { 1 } else { CUT_FROM_ENTRIES };
        (end.0 >= self.truncated.0 + worth).then_some(end)
    }

    pub(super) fn cut(&mut self, at: LogIndex) {
        self.truncated = at;
        self.warn_at = WARN_FROM_ENTRIES;
    }

    /// Whether it is time to say (again) that the log grows because of a lagging peer.
    pub(super) fn lag_to_warn(&mut self, last: LogIndex) -> bool {
        let held_back = self.replicated < self.synced && last.0 - self.truncated.0 >= self.warn_at;
        if held_back {
            self.warn_at *= 2;
        }
        held_back
    }

    /// A peer asks for entries that are gone (it lost its disk): says so once.
    pub(super) fn warn_wants_snapshot(&mut self, region: &Region, own: Peer, peer: u64) {
        if !std::mem::replace(&mut self.snapshot_warned, true) {
            warn!(
                region = region.id.0,
                peer = own.id.0,
                lagging_peer = peer,
                truncated = self.truncated.0,
                "a peer needs entries that are cut off; it can't catch up before snapshots exist"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::Term;

    use super::*;

    #[test]
    fn the_log_is_cut_below_what_is_synced_and_what_all_peers_have() {
        let mut truncation = Truncation::new(Position { index: LogIndex(5), term: Term(5) }, LogIndex(5));
        let last = LogIndex(9000);
        truncation.synced(LogIndex(8000));
        assert_eq!(truncation.due(last, None), None, "a peer has nothing");
        truncation.replicated(LogIndex(5000));
        assert_eq!(truncation.due(last, None), Some(LogIndex(5000)));
        truncation.cut(LogIndex(5000));
        truncation.replicated(LogIndex(9000));
        truncation.replicated(LogIndex(10));
        assert_eq!(truncation.due(last, None), Some(LogIndex(8000)), "never beyond the synced state");
        truncation.cut(LogIndex(8000));
        assert_eq!(truncation.due(last, None), None);
    }

    #[test]
    fn a_lagging_peer_is_named_at_every_doubling() {
        let mut truncation = Truncation::new(Position { index: LogIndex(5), term: Term(5) }, LogIndex(5));
        truncation.synced(LogIndex(1 << 20));
        assert!(!truncation.lag_to_warn(LogIndex(1000)));
        assert!(truncation.lag_to_warn(LogIndex(70_000)));
        assert!(!truncation.lag_to_warn(LogIndex(70_001)));
        assert!(truncation.lag_to_warn(LogIndex(140_000)));
    }
}
