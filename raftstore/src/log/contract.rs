//! What every [`LogEngine`] must do, written once and run against each of them.

use std::sync::Arc;

use proto::{LogIndex, RegionId, Term};
use raft::eraftpb::{Entry, HardState};

use super::{LogBatch, LogEngine, Position, RegionLog};

/// Runs the suite; `make` gives an empty log each time.
pub(super) fn check(make: &dyn Fn() -> Arc<dyn LogEngine>) {
    state_is_loaded(&*make());
    an_overlapping_append_replaces_the_tail(&*make());
    a_cut_log_forgets_its_head(&*make());
    reads_are_bounded(&*make());
    a_restarted_log_forgets_everything(&*make());
}

/// An entry of a term.
pub(super) fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: vec![7; 100].into(), ..Entry::default() }
}

/// A batch that appends entries of these terms from `first` on to a region that starts behind (5, 5).
pub(super) fn append(region: u64, first: u64, terms: &[u64]) -> LogBatch {
    let entries = terms.iter().enumerate().map(|(i, &term)| entry(first + i as u64, term)).collect();
    let hard_state = Some(HardState { term: *terms.last().unwrap(), commit: 5, ..HardState::default() });
    LogBatch { regions: vec![(RegionId(region), RegionLog { entries, hard_state, ..RegionLog::default() })] }
}

/// Bootstraps a region: its log is empty and starts behind (5, 5).
pub(super) fn start(log: &dyn LogEngine, region: u64) -> RegionLog {
    let truncated = Some(Position { index: LogIndex(5), term: Term(5) });
    let hard_state = Some(HardState { term: 5, vote: 3, commit: 5, ..HardState::default() });
    let change = RegionLog { hard_state, truncated, ..RegionLog::default() };
    log.write(LogBatch { regions: vec![(RegionId(region), change.clone())] }, true).unwrap();
    change
}

fn terms(log: &dyn LogEngine, region: u64, low: u64, high: u64) -> Vec<(u64, u64)> {
    let mut entries = Vec::new();
    log.entries(RegionId(region), LogIndex(low), LogIndex(high), u64::MAX, &mut entries).unwrap();
    entries.iter().map(|e| (e.index, e.term)).collect()
}

fn state_is_loaded(log: &dyn LogEngine) {
    assert_eq!(log.load(RegionId(1)).unwrap(), None);
    let change = start(log, 1);
    start(log, 2);
    let state = log.load(RegionId(1)).unwrap().unwrap();
    assert_eq!((Some(state.hard_state), Some(state.truncated)), (change.hard_state, change.truncated));
    assert_eq!(state.last, state.truncated);
    log.write(append(1, 6, &[6, 6, 7]), false).unwrap();
    log.sync().unwrap();
    let state = log.load(RegionId(1)).unwrap().unwrap();
    assert_eq!(state.last, Position { index: LogIndex(8), term: Term(7) });
    assert_eq!(state.hard_state.term, 7);
    assert_eq!(log.load(RegionId(2)).unwrap().unwrap().last.index, LogIndex(5), "regions are apart");
}

fn an_overlapping_append_replaces_the_tail(log: &dyn LogEngine) {
    start(log, 1);
    log.write(append(1, 6, &[6, 6, 6, 6]), true).unwrap();
    log.write(append(1, 8, &[7]), true).unwrap();
    assert_eq!(terms(log, 1, 6, 9), [(6, 6), (7, 6), (8, 7)]);
    assert_eq!(log.load(RegionId(1)).unwrap().unwrap().last.index, LogIndex(8));
    let mut none = Vec::new();
    assert!(log.entries(RegionId(1), LogIndex(8), LogIndex(10), u64::MAX, &mut none).is_err());
}

fn a_cut_log_forgets_its_head(log: &dyn LogEngine) {
    start(log, 1);
    log.write(append(1, 6, &[6, 6, 7, 7]), true).unwrap();
    let cut = |index, term| {
        let truncated = Some(Position { index: LogIndex(index), term: Term(term) });
        LogBatch { regions: vec![(RegionId(1), RegionLog { truncated, ..RegionLog::default() })] }
    };
    log.write(cut(8, 7), false).unwrap();
    assert_eq!(terms(log, 1, 9, 10), [(9, 7)]);
    assert!(log.entries(RegionId(1), LogIndex(8), LogIndex(9), u64::MAX, &mut Vec::new()).is_err());
    assert_eq!(log.load(RegionId(1)).unwrap().unwrap().truncated, Position { index: LogIndex(8), term: Term(7) });
    log.write(cut(9, 7), true).unwrap();
    let state = log.load(RegionId(1)).unwrap().unwrap();
    assert_eq!(state.last, state.truncated, "an empty log ends where it was cut");
    log.write(append(1, 10, &[8]), true).unwrap();
    assert_eq!(terms(log, 1, 10, 11), [(10, 8)]);
    log.purge().unwrap();
    assert_eq!(terms(log, 1, 10, 11), [(10, 8)]);
}

fn reads_are_bounded(log: &dyn LogEngine) {
    start(log, 1);
    log.write(append(1, 6, &[6; 10]), true).unwrap();
    let mut entries = Vec::new();
    log.entries(RegionId(1), LogIndex(6), LogIndex(16), 350, &mut entries).unwrap();
    assert!((2..=3).contains(&entries.len()), "{} entries of about 110 bytes", entries.len());
    entries.clear();
    log.entries(RegionId(1), LogIndex(6), LogIndex(16), 0, &mut entries).unwrap();
    assert_eq!(entries.len(), 1, "at least one");
}

/// A batch that lets a region's log begin anew behind an index, with one entry.
pub(super) fn restart(region: u64, behind: u64) -> LogBatch {
    let truncated = Some(Position { index: LogIndex(behind), term: Term(7) });
    let hard_state = Some(HardState { term: 9, commit: behind, ..HardState::default() });
    let change = RegionLog { entries: vec![entry(behind + 1, 9)], removed: true, truncated, hard_state };
    LogBatch { regions: vec![(RegionId(region), change)] }
}

fn a_restarted_log_forgets_everything(log: &dyn LogEngine) {
    // Behind its end, in its middle, and where nothing was.
    for (region, behind) in [(1, 20), (2, 8), (3, 50)] {
        if region != 3 {
            start(log, region);
            log.write(append(region, 6, &[6; 10]), true).unwrap();
        }
        log.write(restart(region, behind), true).unwrap();
        let state = log.load(RegionId(region)).unwrap().unwrap();
        assert_eq!((state.truncated.index, state.last.index), (LogIndex(behind), LogIndex(behind + 1)));
        assert_eq!((state.hard_state.term, state.hard_state.vote), (9, 0));
        log.write(append(region, behind + 2, &[9, 9]), true).unwrap();
        log.purge().unwrap();
        assert_eq!(terms(log, region, behind + 1, behind + 4).len(), 3);
        assert!(log.entries(RegionId(region), LogIndex(6), LogIndex(7), u64::MAX, &mut Vec::new()).is_err());
    }
}
