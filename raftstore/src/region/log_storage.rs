//! A region's log as raft-rs reads it: recent entries from memory, older ones from the log engine.
//!
//! With asynchronous writes raft-rs counts entries as stable when they were handed over, not when they are on
//! disk: so they must be readable here from that moment on, and the cache holds them until they are persisted.

use std::{cell::Cell, collections::VecDeque, sync::Arc};

use proto::{LogIndex, RegionId, Term};
use protobuf::Message as _;
use raft::{
    Error, GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

use crate::log::{LogEngine, LogState, Position};

/// Bytes of entries that all replicas of a store keep in memory for followers that are a little behind. Entries not
/// persisted or not applied are kept beyond it; they are bounded by the proposal limits.
const STORE_CACHE_BYTES: usize = 256 << 20;
/// One replica's share of it is between these, bytes.
const CACHE_BYTES: std::ops::RangeInclusive<usize> = 64 << 10..=4 << 20;

/// How much each of so many replicas may keep.
pub(crate) fn cache_share(replicas: usize) -> usize {
    (STORE_CACHE_BYTES / replicas.max(1)).clamp(*CACHE_BYTES.start(), *CACHE_BYTES.end())
}

/// The log of one replica.
pub(crate) struct LogStorage {
    region: RegionId,
    log: Arc<dyn LogEngine>,
    hard_state: HardState,
    conf_state: ConfState,
    truncated: Position,
    last: Position,
    /// A tail of the log, without holes.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    cache_bytes_max: usize,
    /// A snapshot to be sent to whoever needs entries that are cut off.
    offered: Option<Snapshot>,
    /// raft-rs wanted one, and what is offered did not do.
    wants_snapshot: Cell<bool>,
}

impl LogStorage {
    /// The log as found at boot; `commit` is the larger of what the log and the apply state know.
    pub(crate) fn new(
        region: RegionId,
        log: Arc<dyn LogEngine>,
        state: LogState,
        commit: LogIndex,
        conf_state: ConfState,
        cache_bytes_max: usize,
    ) -> Self {
        let hard_state = HardState { commit: commit.0, ..state.hard_state };
        LogStorage {
            region,
            log,
            hard_state,
            conf_state,
            truncated: state.truncated,
            last: state.last,
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max,
            offered: None,
            wants_snapshot: Cell::new(false),
        }
    }

    pub(crate) fn last(&self) -> Position {
        self.last
    }

    pub(crate) fn truncated(&self) -> Position {
        self.truncated
    }

    pub(crate) fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    pub(crate) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Whether raft-rs wanted a snapshot since the last call and did not get one.
    pub(crate) fn take_wants_snapshot(&self) -> bool {
        self.wants_snapshot.take()
    }

    /// What raft-rs gets when it asks for a snapshot.
    pub(crate) fn offer(&mut self, snapshot: Option<Snapshot>) {
        self.offered = snapshot;
    }

    /// The log begins anew behind a snapshot; the log engine was told.
    pub(crate) fn restart(&mut self, at: Position, conf_state: ConfState) {
        (self.truncated, self.last, self.conf_state) = (at, at, conf_state);
        self.cache.clear();
        self.cache_bytes = 0;
    }

    /// Whether an offered snapshot joins the log and knows the peer.
    fn does(&self, snapshot: &Snapshot, request_index: u64, to: u64) -> bool {
        let metadata = snapshot.get_metadata();
        let conf = metadata.get_conf_state();
        metadata.index >= self.truncated.index.0.max(request_index)
            && [&conf.voters, &conf.voters_outgoing, &conf.learners].iter().any(|peers| peers.contains(&to))
    }

    /// Makes entries readable, replacing everything from the first one's index on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        assert!(
            self.truncated.index.0 < first.index && first.index <= self.last.index.0 + 1,
            "{}: entry {} does not join the log {:?}..{:?}",
            self.region,
            first.index,
            self.truncated,
            self.last,
        );
        while self.cache.back().is_some_and(|e| e.index >= first.index) {
            let dropped = self.cache.pop_back().expect("it has a back");
            self.cache_bytes -= cost(&dropped);
        }
        self.last = Position { index: LogIndex(last.index), term: Term(last.term) };
        for entry in entries {
            self.cache_bytes += cost(entry);
            self.cache.push_back(entry.clone());
        }
    }

    /// Lets go of cached entries up to `settled` (persisted and applied) while the cache is too big.
    pub(crate) fn shrink_cache(&mut self, settled: LogIndex) {
        while self.cache_bytes > self.cache_bytes_max && self.cache.front().is_some_and(|e| e.index <= settled.0) {
            let dropped = self.cache.pop_front().expect("it has a front");
            self.cache_bytes -= cost(&dropped);
        }
    }

    /// Forgets entries up to `at`, which the log engine is told to cut too.
    pub(crate) fn truncate(&mut self, at: Position) {
        debug_assert!(self.truncated.index < at.index && at.index <= self.last.index);
        self.truncated = at;
        while self.cache.front().is_some_and(|e| e.index <= at.index.0) {
            let dropped = self.cache.pop_front().expect("it has a front");
            self.cache_bytes -= cost(&dropped);
        }
    }

    fn cached(&self, index: u64) -> Option<&Entry> {
        let first = self.cache.front()?.index;
        self.cache.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    fn read(&self, low: u64, high: u64, max_bytes: u64) -> raft::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.log
            .entries(self.region, LogIndex(low), LogIndex(high), max_bytes, &mut entries)
            .map_err(|e| Error::Store(StorageError::Other(Box::new(e))))?;
        Ok(entries)
    }
}

/// Memory an entry takes.
fn cost(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + size_of::<Entry>()
}

impl Storage for LogStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last.index.0 + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        let Some(first) = self.cache.front().map(|e| e.index).filter(|&first| first <= low) else {
            // A short answer is fine: raft-rs asks again for the rest.
            let cached_from = self.cache.front().map_or(high, |e| e.index.min(high));
            return self.read(low, cached_from, max_bytes);
        };
        let mut bytes = 0;
        let range = (low - first) as usize..(high - first) as usize;
        let fits = |(i, entry): &(usize, &Entry)| {
            bytes += u64::from(entry.compute_size());
            *i == 0 || bytes <= max_bytes
        };
        Ok(self.cache.range(range).enumerate().take_while(fits).map(|(_, entry)| entry.clone()).collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated.index.0 {
            return Ok(self.truncated.term.0);
        }
        if index == self.last.index.0 {
            return Ok(self.last.term.0);
        }
        if index < self.truncated.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last.index.0 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        match self.cached(index) {
            Some(entry) => Ok(entry.term),
            None => Ok(self.read(index, index + 1, u64::MAX)?[0].term),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.index.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.index.0)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        if let Some(offered) = self.offered.as_ref().filter(|offered| self.does(offered, request_index, to)) {
            return Ok(offered.clone());
        }
        self.wants_snapshot.set(true);
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::{LogBatch, MemoryLog, RegionLog};

    #[derive(Clone, Debug)]
    enum Step {
        /// So many entries from so far before the end.
        Append { back: u64, count: u64 },
        /// The cache gives way up to so far before the end.
        Shrink { back: u64 },
        /// The log is cut so far before the end.
        Cut { back: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..4u64, 1..6u64).prop_map(|(back, count)| Step::Append { back, count }),
            1 => (0..8u64).prop_map(|back| Step::Shrink { back }),
            1 => (0..8u64).prop_map(|back| Step::Cut { back }),
        ]
    }

    fn storage(log: &Arc<MemoryLog>) -> LogStorage {
        let start = Position { index: LogIndex(5), term: Term(5) };
        let change = RegionLog { truncated: Some(start), ..RegionLog::default() };
        log.write(LogBatch { regions: vec![(RegionId(1), change)] }, true).unwrap();
        let state = LogState { truncated: start, last: start, ..LogState::default() };
        LogStorage::new(RegionId(1), log.clone(), state, LogIndex(5), ConfState::default(), 0)
    }

    proptest! {
        /// Against a plain vector: it does not matter what is cached and what is on disk.
        #[test]
        fn reads_do_not_depend_on_the_cache(steps in prop::collection::vec(step(), 1..30)) {
            let log = Arc::new(MemoryLog::new());
            let mut storage = storage(&log);
            // (index, term), the first one cut off already.
            let mut model = vec![(5, 5)];
            for (i, step) in steps.into_iter().enumerate() {
                let (first, last) = (model[0].0, model[model.len() - 1].0);
                let mut change = RegionLog::default();
                match step {
                    Step::Append { back, count } => {
                        let from = last + 1 - back.min(last - first);
                        model.retain(|&(index, _)| index < from);
                        model.extend((from..from + count).map(|index| (index, 6 + i as u64)));
                        let entry = |index| Entry { index, term: 6 + i as u64, data: vec![7; 20].into(), ..Entry::default() };
                        change.entries = (from..from + count).map(entry).collect();
                        storage.append(&change.entries);
                    }
                    Step::Shrink { back } => storage.shrink_cache(LogIndex(last.saturating_sub(back))),
                    Step::Cut { back } if last - back.min(last) > first => {
                        model.retain(|&(index, _)| index >= last - back);
                        let at = Position { index: LogIndex(model[0].0), term: Term(model[0].1) };
                        change.truncated = Some(at);
                        storage.truncate(at);
                    }
                    Step::Cut { .. } => {}
                }
                log.write(LogBatch { regions: vec![(RegionId(1), change)] }, true).unwrap();
                for &(index, term) in &model {
                    prop_assert_eq!(storage.term(index).unwrap(), term);
                }
                let (first, last) = (model[0].0 + 1, model[model.len() - 1].0);
                prop_assert_eq!((storage.first_index().unwrap(), storage.last_index().unwrap()), (first, last));
                prop_assert!(storage.term(first.saturating_sub(2)).is_err() && storage.term(last + 1).is_err());
                let mut read = Vec::new();
                while read.len() < model.len() - 1 {
                    let low = first + read.len() as u64;
                    read.extend(storage.entries(low, last + 1, 50, GetEntriesContext::empty(false)).unwrap());
                }
                let read: Vec<_> = read.iter().map(|e| (e.index, e.term)).collect();
                prop_assert_eq!(&read[..], &model[1..]);
            }
        }
    }
}
