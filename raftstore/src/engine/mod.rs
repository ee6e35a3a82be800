//! The one door to a store's state on disk.
//!
//! Writes are not synced one by one: after a crash the state is a prefix of what was written, and
//! [`Engine::sync`] moves the start of what may be lost. What was acknowledged lives in the synced Raft log.

#[cfg(test)]
mod contract;
pub mod files;
pub mod memory;
mod parts;
pub mod rocks;

use std::sync::Arc;

use bytes::Bytes;
use proto::KeyRange;

pub use files::Files;
pub use parts::{PART_FAMILIES, Part, check_parts, part_name};
pub use proto::Cf;

/// The disk failed or holds something it should not. The store stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Read or write failed.
    #[error("storage engine: {0}")]
    Io(String),
    /// Another process has the directory open, or it can't be created or written.
    #[error("{0}")]
    Directory(String),
    /// A record does not decode.
    #[error("corrupt record: {0}")]
    Corrupt(String),
}

/// One change to the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOp {
    /// Sets a key.
    Put(Cf, Bytes, Bytes),
    /// Removes a key.
    Delete(Cf, Bytes),
    /// Removes `start..end`; an empty `end` is "to the last key".
    DeleteRange(Cf, Bytes, Bytes),
}

/// Changes that become visible, and survive a crash, together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// In order.
    pub ops: Vec<WriteOp>,
}

/// State of all regions of a store. Implemented by RocksDB and by memory (the simulator); both pass one contract suite.
pub trait Engine: Send + Sync + 'static {
    /// A view that later writes do not change.
    fn snapshot(&self) -> Arc<dyn Snapshot>;
    /// Applies a batch atomically; visible when it returns, durable after the next `sync`.
    fn write(&self, batch: WriteBatch) -> Result<(), EngineError>;
    /// Makes everything written so far durable.
    fn sync(&self) -> Result<(), EngineError>;
    /// Roughly how many bytes `start..end` takes on disk, all column families.
    fn approximate_size(&self, start: &[u8], end: &[u8]) -> Result<u64, EngineError>;

    /// Folders beside the state, for the two below.
    fn files(&self) -> &dyn Files;
    /// Writes what `snapshot` shows of `range` in the families of users' records into new parts in `folder`. Takes as
    /// long as reading the range: never on the store loop.
    fn export(&self, snapshot: &dyn Snapshot, range: &KeyRange, folder: &str) -> Result<Vec<Part>, EngineError>;
    /// Lays the records of one family's parts over what is there. Visible when it returns, and durable even if writes
    /// before it are not: what it must not be mixed with has to be deleted in the same attempt. The parts stay.
    fn ingest(&self, folder: &str, parts: &[Part], cf: Cf) -> Result<(), EngineError>;
}

/// A view of the state.
pub trait Snapshot: Send + Sync {
    /// The value of a key.
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// A cursor over `lower..upper` (empty `upper`: no border). It starts invalid: seek first.
    fn cursor<'a>(&'a self, cf: Cf, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a>;
}

/// Walks keys in byte order. `Ok(true)`: stands on a record; `Ok(false)`: there is none (left).
pub trait Cursor: Send {
    /// To the first key at or after `key`.
    fn seek(&mut self, key: &[u8]) -> Result<bool, EngineError>;
    /// To the last key at or before `key`.
    fn seek_for_prev(&mut self, key: &[u8]) -> Result<bool, EngineError>;
    /// To the first key.
    fn seek_to_first(&mut self) -> Result<bool, EngineError>;
    /// To the last key.
    fn seek_to_last(&mut self) -> Result<bool, EngineError>;
    /// One on.
    fn next(&mut self) -> Result<bool, EngineError>;
    /// One back.
    fn prev(&mut self) -> Result<bool, EngineError>;
    /// The key it stands on. Panics when it stands on none.
    fn key(&self) -> &[u8];
    /// The value it stands on. Panics when it stands on none.
    fn value(&self) -> &[u8];
}

/// Makes sure that files can be created in `directory`, which is created when missing; the reason when not.
pub(crate) fn writable_directory(directory: &std::path::Path) -> Result<(), EngineError> {
    let refused = |what: &str, e: std::io::Error| {
        EngineError::Directory(format!("{what} {}: {e}; check the path and its permissions", directory.display()))
    };
    std::fs::create_dir_all(directory).map_err(|e| refused("can't create the directory", e))?;
    let probe = directory.join(".writable");
    std::fs::write(&probe, b"").map_err(|e| refused("can't write in", e))?;
    std::fs::remove_file(&probe).map_err(|e| refused("can't remove a file in", e))
}
