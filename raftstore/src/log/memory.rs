//! The Raft log in memory. A simulated crash keeps a prefix of the batches that were not synced.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;
use proto::{LogIndex, RegionId, Term};
use protobuf::Message;
use raft::eraftpb::{Entry, HardState};

use super::{LogBatch, LogEngine, LogError, LogState, Position, RegionLog};

#[derive(Clone, Default)]
struct Log {
    hard_state: HardState,
    truncated: Position,
    entries: VecDeque<Entry>,
}

impl Log {
    fn apply(&mut self, change: RegionLog) -> Result<(), LogError> {
        if let Some(hard_state) = change.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(first) = change.entries.first() {
            let keep = first.index.checked_sub(self.truncated.index.0 + 1);
            match keep {
                Some(keep) if keep as usize <= self.entries.len() => self.entries.truncate(keep as usize),
                _ => return Err(LogError::Corrupt(format!("entry {} does not join the log", first.index))),
            }
            self.entries.extend(change.entries);
        }
        if let Some(truncated) = change.truncated {
            while self.entries.front().is_some_and(|e| e.index <= truncated.index.0) {
                self.entries.pop_front();
            }
            self.truncated = truncated;
        }
        Ok(())
    }

    fn last(&self) -> Position {
        self.entries.back().map_or(self.truncated, |e| Position { index: LogIndex(e.index), term: Term(e.term) })
    }
}

type Logs = BTreeMap<RegionId, Log>;

#[derive(Default)]
struct State {
    now: Logs,
    /// What a crash leaves; kept only when crashes are simulated.
    synced: Option<Logs>,
    unsynced: VecDeque<LogBatch>,
}

/// A log without a disk.
#[derive(Default)]
pub struct MemoryLog {
    state: Mutex<State>,
}

impl MemoryLog {
    /// Loses nothing but everything at the end of the process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers what was not synced, so that [`MemoryLog::after_crash`] can lose it.
    pub fn crashable() -> Self {
        MemoryLog { state: Mutex::new(State { synced: Some(Logs::new()), ..State::default() }) }
    }

    /// How many batches a crash may lose now.
    pub fn unsynced(&self) -> usize {
        self.state.lock().unsynced.len()
    }

    /// What a restart finds when of the unsynced batches only the first `kept` reached the disk. Only for
    /// [`MemoryLog::crashable`] logs; another one keeps everything.
    pub fn after_crash(&self, kept: usize) -> Self {
        let state = self.state.lock();
        let Some(synced) = &state.synced else {
            return MemoryLog { state: Mutex::new(State { now: state.now.clone(), ..State::default() }) };
        };
        let mut logs = synced.clone();
        for batch in state.unsynced.iter().take(kept) {
            // They were accepted once; on top of the same prefix they are accepted again.
            write(&mut logs, batch.clone()).expect("an accepted batch is accepted again");
        }
        MemoryLog { state: Mutex::new(State { now: logs.clone(), synced: Some(logs), unsynced: VecDeque::new() }) }
    }
}

fn write(logs: &mut Logs, batch: LogBatch) -> Result<(), LogError> {
    batch.regions.into_iter().try_for_each(|(region, change)| {
        if change.removed {
            logs.remove(&region);
            if let Some(truncated) = change.truncated {
                // Entries of the same change follow it.
                logs.insert(region, Log { truncated, ..Log::default() });
            }
        }
        match change.hard_state.is_some() || change.truncated.is_some() || !change.entries.is_empty() {
            true => logs.entry(region).or_default().apply(change),
            false => Ok(()),
        }
    })
}

impl LogEngine for MemoryLog {
    fn load(&self, region: RegionId) -> Result<Option<LogState>, LogError> {
        let state = self.state.lock();
        // A replica without data has written a hard state and waits for a snapshot: that is no log yet.
        let begun = state.now.get(&region).filter(|log| log.truncated != Position::default());
        Ok(begun.map(|log| LogState { hard_state: log.hard_state.clone(), truncated: log.truncated, last: log.last() }))
    }

    fn entries(
        &self,
        region: RegionId,
        low: LogIndex,
        high: LogIndex,
        max_bytes: u64,
        into: &mut Vec<Entry>,
    ) -> Result<(), LogError> {
        let state = self.state.lock();
        let missing = || LogError::Corrupt(format!("{region}: entries {low}..{high} are not all there"));
        let log = state.now.get(&region).ok_or_else(missing)?;
        let skip = low.0.checked_sub(log.truncated.index.0 + 1).ok_or_else(missing)? as usize;
        let take = high.0.saturating_sub(low.0) as usize;
        if log.entries.len() < skip + take {
            return Err(missing());
        }
        let mut bytes = 0;
        for (i, entry) in log.entries.range(skip..skip + take).enumerate() {
            bytes += u64::from(entry.compute_size());
            if i > 0 && bytes > max_bytes {
                break;
            }
            into.push(entry.clone());
        }
        Ok(())
    }

    fn write(&self, batch: LogBatch, sync: bool) -> Result<(), LogError> {
        let mut state = self.state.lock();
        if state.synced.is_some() {
            state.unsynced.push_back(batch.clone());
        }
        write(&mut state.now, batch)?;
        drop(state);
        if sync { self.sync() } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), LogError> {
        let mut state = self.state.lock();
        let unsynced = std::mem::take(&mut state.unsynced);
        if let Some(synced) = &mut state.synced {
            unsynced.into_iter().try_for_each(|batch| write(synced, batch))?;
        }
        Ok(())
    }

    fn purge(&self) -> Result<(), LogError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{super::contract, *};

    #[test]
    fn passes_the_contract() {
        contract::check(&|| Arc::new(MemoryLog::new()));
        contract::check(&|| Arc::new(MemoryLog::crashable()));
    }

    #[test]
    fn a_crash_loses_a_suffix_of_what_was_not_synced() {
        let log = MemoryLog::crashable();
        contract::start(&log, 1);
        log.write(contract::append(1, 6, &[1, 1]), true).unwrap();
        log.write(contract::append(1, 8, &[1]), false).unwrap();
        log.write(contract::append(1, 7, &[2, 2, 2]), false).unwrap();
        assert_eq!(log.unsynced(), 2);
        let last = |log: &MemoryLog| log.load(RegionId(1)).unwrap().unwrap().last;
        assert_eq!(last(&log), Position { index: LogIndex(9), term: Term(2) });
        assert_eq!(last(&log.after_crash(1)), Position { index: LogIndex(8), term: Term(1) });
        assert_eq!(last(&log.after_crash(0)), Position { index: LogIndex(7), term: Term(1) });
    }
}
