//! How much of a replica's log may go.
//!
//! ```text
//!  truncated          cut here               needed by a peer     synced            last
//!      ├──────────────────┼───────────────────────┼──────────────────┼────────────────┤
//! ```
//!
//! Never what this store's state does not hold durably. What a peer still needs is kept up to a bound
//! ([`crate::config::LogBounds`]): beyond it, catching up by a snapshot costs less than the log, and half of the log
//! goes. A peer that is there and catching up, or taking a snapshot, gets a multiple of it. The leader decides and
//! tells the others with its heartbeats.

use std::collections::VecDeque;

use proto::LogIndex;
use raft::eraftpb::Entry;

use crate::{config::LogBounds, log::Position};

/// How many times the bounds the log may grow for a peer that is catching up: it must get there while others write.
pub(super) const CATCHING_UP_TIMES: u64 = 4;
/// The log's size is known at so many places of one bound's worth.
const MILESTONES: u64 = 64;

/// How many bytes were appended up to some indexes.
#[derive(Debug, Default)]
struct Size {
    total: u64,
    /// Appended before the log begins.
    gone: u64,
    milestones: VecDeque<(LogIndex, u64)>,
}

/// What is known about the log's dispensable head.
#[derive(Debug)]
pub(super) struct Truncation {
    bounds: LogBounds,
    truncated: LogIndex,
    /// No peer will be sent this any more.
    dispensable: LogIndex,
    /// In the state engine when it was last synced.
    synced: LogIndex,
    size: Size,
}

impl Truncation {
    /// What the state engine holds at boot is on disk.
    pub(super) fn new(bounds: LogBounds, truncated: Position, applied: LogIndex) -> Self {
        Truncation {
            bounds,
            truncated: truncated.index,
            dispensable: truncated.index,
            synced: applied,
            size: Size::default(),
        }
    }

    pub(super) fn dispensable(&mut self, index: LogIndex) {
        self.dispensable = self.dispensable.max(index);
    }

    /// Up to where somebody may have cut the log, as the leaders of this replica's knowledge have said.
    pub(super) fn announced(&self) -> LogIndex {
        self.dispensable
    }

    /// Whether the state engine may lack some of what was applied, were the power to go.
    pub(super) fn lacks(&self, applied: LogIndex) -> bool {
        applied > self.synced
    }

    pub(super) fn synced(&mut self, applied: LogIndex) {
        self.synced = self.synced.max(applied);
    }

    /// Entries joined the log's end. Those that they replaced are counted too: they are few.
    pub(super) fn appended(&mut self, entries: &[Entry]) {
        let Some(last) = entries.last() else { return };
        self.size.total += entries.iter().map(|e| (e.data.len() + e.context.len()) as u64).sum::<u64>();
        let milestone = self.size.milestones.back().map_or(self.size.gone, |(_, total)| *total);
        if self.size.total - milestone >= self.bounds.bytes / MILESTONES {
            self.size.milestones.push_back((LogIndex(last.index), self.size.total));
        }
    }

    /// Where to cut a log that is so many times beyond its bounds, peers or not: in the middle.
    pub(super) fn excess(&self, last: LogIndex, times: u64) -> Option<LogIndex> {
        let entries = last.0.saturating_sub(self.truncated.0);
        if entries > self.bounds.entries * times {
            return Some(LogIndex(self.truncated.0 + entries / 2));
        }
        let bytes = self.size.total - self.size.gone;
        if bytes <= self.bounds.bytes * times {
            return None;
        }
        let middle = self.size.gone + bytes / 2;
        self.size.milestones.iter().find(|(_, total)| *total >= middle).map(|(index, _)| *index)
    }

    /// Where to cut now, if it is worth it. `unsafe_end` is a planted bug's.
    pub(super) fn due(&self, last: LogIndex, unsafe_end: Option<LogIndex>) -> Option<LogIndex> {
        let end = match unsafe_end {
            Some(end) => end,
            None => self.dispensable.min(self.synced).min(last),
        };
        let worth = if unsafe_end.is_some() { 1 } else { self.bounds.cut_entries };
        (end.0 >= self.truncated.0 + worth).then_some(end)
    }

    pub(super) fn cut(&mut self, at: LogIndex) {
        self.truncated = at;
        while let Some((_, total)) = self.size.milestones.pop_front_if(|(index, _)| *index <= at) {
            self.size.gone = total;
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::Term;

    use super::*;

    const BOUNDS: LogBounds = LogBounds { entries: 10_000, bytes: 64_000, cut_entries: 1000 };

    fn truncation() -> Truncation {
        Truncation::new(BOUNDS, Position { index: LogIndex(5), term: Term(5) }, LogIndex(5))
    }

    #[test]
    fn the_log_is_cut_below_what_is_synced_and_what_peers_need() {
        let mut truncation = truncation();
        let last = LogIndex(9000);
        truncation.synced(LogIndex(8000));
        assert_eq!(truncation.due(last, None), None, "a peer has nothing");
        truncation.dispensable(LogIndex(5000));
        assert_eq!(truncation.due(last, None), Some(LogIndex(5000)));
        truncation.cut(LogIndex(5000));
        truncation.dispensable(LogIndex(9000));
        truncation.dispensable(LogIndex(10));
        assert_eq!(truncation.due(last, None), Some(LogIndex(8000)), "never beyond the synced state");
        truncation.cut(LogIndex(8000));
        assert_eq!(truncation.due(last, None), None);
    }

    #[test]
    fn a_log_with_too_many_entries_loses_half_of_them() {
        let mut truncation = truncation();
        assert_eq!(truncation.excess(LogIndex(10_005), 1), None);
        assert_eq!(truncation.excess(LogIndex(10_007), 1), Some(LogIndex(5006)));
        assert_eq!(truncation.excess(LogIndex(10_007), 4), None);
        assert_eq!(truncation.excess(LogIndex(40_009), 4), Some(LogIndex(20_007)));
        truncation.cut(LogIndex(5006));
        assert_eq!(truncation.excess(LogIndex(10_007), 1), None);
    }

    #[test]
    fn so_does_one_with_too_many_bytes() {
        let mut truncation = truncation();
        let entry = |index| Entry { index, data: vec![7; 100].into(), ..Entry::default() };
        (6..=645).for_each(|index| truncation.appended(&[entry(index)]));
        assert_eq!(truncation.excess(LogIndex(645), 1), None, "just full");
        (646..=1005).for_each(|index| truncation.appended(&[entry(index)]));
        let half = truncation.excess(LogIndex(1005), 1).unwrap();
        assert!((500..520).contains(&half.0), "{half}");
        truncation.cut(half);
        assert_eq!(truncation.excess(LogIndex(1005), 1), None);
    }
}
