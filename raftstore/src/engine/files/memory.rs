//! Folders in memory. A crash takes half of every file that was not synced.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{EngineError, Files};

#[derive(Clone, Default)]
struct Folder {
    files: BTreeMap<String, Vec<u8>>,
    durable: bool,
}

/// Folders without a disk.
#[derive(Default)]
pub struct MemoryFiles(Mutex<BTreeMap<String, Folder>>);

impl MemoryFiles {
    /// What a restart finds: what was not synced is torn.
    pub(in crate::engine) fn after_crash(&self) -> Self {
        let mut folders = self.0.lock().clone();
        for folder in folders.values_mut() {
            if !std::mem::replace(&mut folder.durable, true) {
                folder.files.values_mut().for_each(|file| file.truncate(file.len() / 2));
            }
        }
        MemoryFiles(Mutex::new(folders))
    }

    /// A file's bytes.
    pub(in crate::engine) fn whole(&self, folder: &str, file: &str) -> Result<Bytes, EngineError> {
        self.read(folder, file, 0, usize::MAX)
    }
}

fn missing(folder: &str, file: &str) -> EngineError {
    EngineError::Io(format!("{folder}/{file}: it is not there"))
}

impl Files for MemoryFiles {
    fn create(&self, folder: &str) -> Result<(), EngineError> {
        self.0.lock().entry(folder.into()).or_default();
        Ok(())
    }

    fn append(&self, folder: &str, file: &str, bytes: &[u8]) -> Result<(), EngineError> {
        let mut folders = self.0.lock();
        let folder = folders.get_mut(folder).ok_or_else(|| missing(folder, file))?;
        folder.durable = false;
        folder.files.entry(file.into()).or_default().extend_from_slice(bytes);
        Ok(())
    }

    fn read(&self, folder: &str, file: &str, offset: u64, most: usize) -> Result<Bytes, EngineError> {
        let folders = self.0.lock();
        let bytes = folders.get(folder).and_then(|f| f.files.get(file)).ok_or_else(|| missing(folder, file))?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        Ok(Bytes::copy_from_slice(&bytes[from..from.saturating_add(most).min(bytes.len())]))
    }

    fn sync(&self, folder: &str) -> Result<(), EngineError> {
        self.0.lock().get_mut(folder).ok_or_else(|| missing(folder, ""))?.durable = true;
        Ok(())
    }

    fn remove(&self, folder: &str) -> Result<(), EngineError> {
        self.0.lock().remove(folder);
        Ok(())
    }

    fn folders(&self) -> Result<Vec<String>, EngineError> {
        Ok(self.0.lock().keys().cloned().collect())
    }
}
