//! Reading the past from any replica: up to which timestamp one has all that can ever be visible. PURE.
//!
//! ```text
//!   leader     its user keeps later writes above R ─► under the lease: all else that is visible at R is applied at index i
//!              ──(region, epoch, R, i)──► followers, batched for each pair of stores
//!   follower   a read at or below R: same epoch? applied up to i? no snapshot on its way, no merge? ─► the engine as it is
//! ```
//!
//! What a timestamp means, and how writes are kept above it, is the user's affair (`kv`). What is said here is like a read of
//! the whole region at R by its leader, at an instant when it alone served the region: whatever made that read right makes
//! every later one right, wherever the state has come at least as far. So a mark stays true when another leader is elected,
//! and even for a replica that is no peer any more. It does not outlive the epoch: behind a merge there are keys of which it
//! says nothing. The leader of a merge's source has no lease once that is prepared, and says nothing more.
//!
//! Followers apply an entry somewhat after the leader. So a replica keeps two marks: one that it has reached, and one to
//! come; it takes no later one before it has reached that, or one that lags would never reach any.

use proto::{Epoch, LogIndex, Timestamp};

/// Whoever has applied so much in this epoch has all that can ever be visible at the timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The region's.
    pub epoch: Epoch,
    /// The timestamp.
    pub ts: Timestamp,
    /// How much.
    pub index: LogIndex,
}

/// What one replica knows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resolved {
    reached: Option<Mark>,
    coming: Option<Mark>,
}

impl Resolved {
    /// A leader has said so; `applied`: how far this replica is.
    pub fn told(&mut self, mark: Mark, applied: LogIndex) {
        self.advance(applied);
        let is_news = |known: &Mark| mark.epoch > known.epoch || (mark.epoch == known.epoch && mark.ts > known.ts);
        if !self.reached.as_ref().is_none_or(is_news) {
            return;
        }
        if self.coming.as_ref().is_none_or(|coming| mark.epoch > coming.epoch) {
            self.coming = Some(mark);
        }
        self.advance(applied);
    }

    /// Up to which timestamp a replica of this epoch that has applied so much can be read.
    pub fn readable(&mut self, epoch: Epoch, applied: LogIndex) -> Option<Timestamp> {
        self.advance(applied);
        self.reached.filter(|mark| mark.epoch == epoch).map(|mark| mark.ts)
    }

    /// The latest it was told, whether reached or not.
    pub fn latest(&self) -> Option<Timestamp> {
        self.coming.or(self.reached).map(|mark| mark.ts)
    }

    fn advance(&mut self, applied: LogIndex) {
        if let Some(mark) = self.coming.take_if(|mark| mark.index <= applied) {
            self.reached = Some(mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(version: u64, ts: u64, index: u64) -> Mark {
        Mark { epoch: epoch(version), ts: Timestamp(ts), index: LogIndex(index) }
    }

    fn epoch(version: u64) -> Epoch {
        Epoch { conf_ver: 1, version }
    }

    #[test]
    fn a_mark_counts_when_it_is_reached_and_the_one_before_until_then() {
        let mut known = Resolved::default();
        let readable = |known: &mut Resolved, applied| known.readable(epoch(1), LogIndex(applied)).map(|ts| ts.0);
        known.told(mark(1, 100, 7), LogIndex(7));
        known.told(mark(1, 200, 9), LogIndex(7));
        assert_eq!((readable(&mut known, 8), known.latest()), (Some(100), Some(Timestamp(200))));
        // Otherwise a replica that is always somewhat behind would never reach one.
        known.told(mark(1, 300, 11), LogIndex(8));
        assert_eq!(readable(&mut known, 9), Some(200));
        // An old one that was on its way for long.
        known.told(mark(1, 150, 8), LogIndex(9));
        assert_eq!(readable(&mut known, 9), Some(200));
    }

    #[test]
    fn a_mark_does_not_outlive_its_epoch() {
        let mut known = Resolved::default();
        known.told(mark(1, 100, 7), LogIndex(7));
        assert_eq!(known.readable(epoch(2), LogIndex(8)), None);
        known.told(mark(1, 200, 20), LogIndex(8));
        known.told(mark(2, 150, 9), LogIndex(8));
        assert_eq!(known.readable(epoch(2), LogIndex(9)), Some(Timestamp(150)));
        known.told(mark(1, 500, 9), LogIndex(9));
        assert_eq!(known.readable(epoch(2), LogIndex(9)), Some(Timestamp(150)));
    }
}
