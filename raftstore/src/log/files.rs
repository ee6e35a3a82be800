//! The Raft log in raft-engine: one stream of files for all regions, one fdatasync a batch.

use std::path::Path;

use proto::{LogIndex, RegionId, Term};
use raft::eraftpb::{Entry, HardState};
use raft_engine::{Command, Config, Engine, MessageExt, ReadableSize};

use super::{LogBatch, LogEngine, LogError, LogState, Position, RegionLog};
use crate::keys;

/// Size at which a log file is closed and the next begun, bytes. Small enough that space comes back soon.
const FILE_BYTES: u64 = 64 << 20;
/// Past this the oldest files are purged, their last live entries rewritten.
const PURGE_AT_BYTES: u64 = 512 << 20;
/// Batches from this size on are compressed; below it the CPU costs more than the write.
const COMPRESS_FROM_BYTES: u64 = 16 << 10;

/// Key of a region's hard state in raft-engine's per-region key-value space.
const HARD_STATE: &[u8] = b"h";
/// Key of where a region's log was cut.
const TRUNCATED: &[u8] = b"t";

/// Tells raft-engine where an entry keeps its index.
struct Entries;

impl MessageExt for Entries {
    type Entry = Entry;
    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// The log in files.
pub struct FileLog {
    engine: Engine,
}

impl FileLog {
    /// Opens or creates the log in `directory`. Refused with a reason when another process has it open or the
    /// directory can't be written. A torn last record (a crash in the middle of a write) is cut off: it was never synced.
    pub fn open(directory: &Path) -> Result<Self, LogError> {
        crate::engine::writable_directory(directory).map_err(|e| LogError::Directory(e.to_string()))?;
        let place = directory.display();
        let config = Config {
            dir: directory.to_str().ok_or_else(|| LogError::Directory(format!("{place} is not UTF-8")))?.to_string(),
            target_file_size: ReadableSize(FILE_BYTES),
            purge_threshold: ReadableSize(PURGE_AT_BYTES),
            batch_compression_threshold: ReadableSize(COMPRESS_FROM_BYTES),
            ..Config::default()
        };
        let engine = Engine::open(config).map_err(|e| {
            let text = e.to_string();
            if text.to_lowercase().contains("lock") {
                LogError::Directory(format!(
                    "{place} is in use by another process; stop it or choose another directory"
                ))
            } else if matches!(e, raft_engine::Error::Corruption(_)) {
                LogError::Corrupt(format!("{place}: {text}"))
            } else {
                LogError::Directory(format!("can't open the Raft log in {place}: {text}"))
            }
        })?;
        Ok(FileLog { engine })
    }

    fn truncated(&self, region: RegionId) -> Result<Option<Position>, LogError> {
        let Some(bytes) = self.engine.get(region.0, TRUNCATED) else { return Ok(None) };
        keys::decode_position(&bytes).map(Some).map_err(|e| LogError::Corrupt(format!("{region}: {e}")))
    }
}

fn io(error: raft_engine::Error) -> LogError {
    match error {
        raft_engine::Error::Corruption(text) => LogError::Corrupt(text),
        other => LogError::Io(other.to_string()),
    }
}

fn encode(region: RegionId, change: &RegionLog, batch: &mut raft_engine::LogBatch) -> Result<(), LogError> {
    let position = |at: Position| keys::encode_position(at).to_vec();
    if change.removed {
        batch.add_command(region.0, Command::Clean);
        // Entries of the same change follow it.
        if let Some(begins) = change.truncated {
            batch.put(region.0, TRUNCATED.to_vec(), position(begins)).map_err(io)?;
        }
    }
    if !change.entries.is_empty() {
        batch.add_entries::<Entries>(region.0, &change.entries).map_err(io)?;
    }
    if let Some(hard_state) = &change.hard_state {
        batch.put_message(region.0, HARD_STATE.to_vec(), hard_state).map_err(io)?;
    }
    if let Some(truncated) = change.truncated.filter(|_| !change.removed) {
        batch.put(region.0, TRUNCATED.to_vec(), position(truncated)).map_err(io)?;
        batch.add_command(region.0, Command::Compact { index: truncated.index.0 + 1 });
    }
    Ok(())
}

impl LogEngine for FileLog {
    fn load(&self, region: RegionId) -> Result<Option<LogState>, LogError> {
        let Some(truncated) = self.truncated(region)? else { return Ok(None) };
        let hard_state = self
            .engine
            .get_message::<HardState>(region.0, HARD_STATE)
            .map_err(io)?
            .ok_or_else(|| LogError::Corrupt(format!("{region}: no hard state")))?;
        let last = match self.engine.last_index(region.0).filter(|&last| last > truncated.index.0) {
            None => truncated,
            Some(last) => {
                let entry = self.engine.get_entry::<Entries>(region.0, last).map_err(io)?;
                let entry = entry.ok_or_else(|| LogError::Corrupt(format!("{region}: last entry {last} is gone")))?;
                Position { index: LogIndex(last), term: Term(entry.term) }
            }
        };
        Ok(Some(LogState { hard_state, truncated, last }))
    }

    fn entries(
        &self,
        region: RegionId,
        low: LogIndex,
        high: LogIndex,
        max_bytes: u64,
        into: &mut Vec<Entry>,
    ) -> Result<(), LogError> {
        if low >= high {
            return Ok(());
        }
        let missing =
            |why: String| LogError::Corrupt(format!("{region}: entries {low}..{high} are not all there: {why}"));
        let bytes = usize::try_from(max_bytes).ok();
        match self.engine.fetch_entries_to::<Entries>(region.0, low.0, high.0, bytes, into) {
            Ok(0) => Err(missing("none found".into())),
            Ok(_) => Ok(()),
            Err(e @ (raft_engine::Error::EntryCompacted | raft_engine::Error::EntryNotFound)) => {
                Err(missing(e.to_string()))
            }
            Err(e) => Err(io(e)),
        }
    }

    fn write(&self, batch: LogBatch, sync: bool) -> Result<(), LogError> {
        let mut writes = raft_engine::LogBatch::default();
        for (region, change) in &batch.regions {
            encode(*region, change, &mut writes)?;
        }
        if writes.is_empty() {
            return if sync { self.sync() } else { Ok(()) };
        }
        self.engine.write(&mut writes, sync).map(drop).map_err(io)
    }

    fn sync(&self) -> Result<(), LogError> {
        self.engine.sync().map_err(io)
    }

    fn purge(&self) -> Result<(), LogError> {
        // Returns regions whose old entries hold files back; the store cuts their logs by its own rules.
        self.engine.purge_expired_files().map(drop).map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{super::contract, *};

    #[test]
    fn passes_the_contract() {
        let directories = std::cell::RefCell::new(Vec::new());
        contract::check(&|| {
            let directory = tempfile::tempdir().unwrap();
            let log = FileLog::open(directory.path()).unwrap();
            directories.borrow_mut().push(directory);
            Arc::new(log)
        });
    }

    #[test]
    fn a_second_opener_is_told_why() {
        let directory = tempfile::tempdir().unwrap();
        let _first = FileLog::open(directory.path()).unwrap();
        let error = FileLog::open(directory.path()).err().unwrap();
        assert!(error.to_string().contains("in use by another process"), "{error}");
    }

    #[test]
    fn what_was_synced_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let log = FileLog::open(directory.path()).unwrap();
        for region in [1, 2] {
            contract::start(&log, region);
            log.write(contract::append(region, 6, &[6, 7]), true).unwrap();
        }
        log.write(contract::restart(2, 40), true).unwrap();
        log.write(contract::append(2, 41, &[9]), true).unwrap();
        log.purge().unwrap();
        drop(log);
        let log = FileLog::open(directory.path()).unwrap();
        let load = |region| log.load(RegionId(region)).unwrap().unwrap();
        assert_eq!(load(1).last, Position { index: LogIndex(7), term: Term(7) });
        assert_eq!(load(1).truncated, Position { index: LogIndex(5), term: Term(5) });
        assert_eq!(load(2).truncated.index, LogIndex(40));
        assert_eq!(load(2).last, Position { index: LogIndex(41), term: Term(9) });
    }
}
