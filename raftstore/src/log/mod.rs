//! The Raft log of all regions of a store: entries, hard states, where a log was cut.
//!
//! One batch carries what all dirty regions have to write and is synced once: the only sync on the commit
//! path. Implemented by raft-engine and by memory (the simulator); both pass one contract suite.

#[cfg(test)]
mod contract;
pub mod files;
pub mod memory;

use proto::{LogIndex, RegionId, Term};
use raft::eraftpb::{Entry, HardState};

pub use files::FileLog;
pub use memory::MemoryLog;

/// The log failed. The store stops: what it promised may not be there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Read, write or sync failed.
    #[error("Raft log: {0}")]
    Io(String),
    /// Another process has the directory open, or it can't be created or written.
    #[error("{0}")]
    Directory(String),
    /// A record is missing or does not decode.
    #[error("corrupt Raft log: {0}")]
    Corrupt(String),
}

/// A position in a log and the term of the entry there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Where.
    pub index: LogIndex,
    /// Of the entry there.
    pub term: Term,
}

/// What of one region a batch changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegionLog {
    /// Replace everything from the first one's index on. Their indexes are consecutive and join the log's end or overlap it.
    pub entries: Vec<Entry>,
    /// Term, vote and commit from now on.
    pub hard_state: Option<HardState>,
    /// The log is cut: this entry and all before it go.
    pub truncated: Option<Position>,
    /// First of all everything there was of the region goes: its replica was destroyed, or takes a snapshot, behind
    /// which (`truncated`) the log begins anew.
    pub removed: bool,
}

/// Changes of many regions that become durable together or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogBatch {
    /// At most one change a region, in no order.
    pub regions: Vec<(RegionId, RegionLog)>,
}

impl LogBatch {
    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }
}

/// What a log holds of a region at boot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogState {
    /// Term, vote, commit.
    pub hard_state: HardState,
    /// The entry before the first.
    pub truncated: Position,
    /// The last entry, `truncated` when there is none.
    pub last: Position,
}

/// The Raft log of all regions.
pub trait LogEngine: Send + Sync + 'static {
    /// What there is of a region; `None` when it was never written.
    fn load(&self, region: RegionId) -> Result<Option<LogState>, LogError>;
    /// Appends to `into` the entries `low..high` of a region, at least one and then as many as fit `max_bytes`.
    /// An index that is cut off or not there yet is an error.
    fn entries(
        &self,
        region: RegionId,
        low: LogIndex,
        high: LogIndex,
        max_bytes: u64,
        into: &mut Vec<Entry>,
    ) -> Result<(), LogError>;
    /// Writes a batch atomically; with `sync` it and all batches before it are durable when this returns.
    fn write(&self, batch: LogBatch, sync: bool) -> Result<(), LogError>;
    /// Makes all batches written so far durable.
    fn sync(&self) -> Result<(), LogError>;
    /// Gives back the space of what was cut off. May take long: never on the store loop.
    fn purge(&self) -> Result<(), LogError>;
}
