//! Folders on the disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{EngineError, Files};

/// Folders in a directory of their own, on the file system of the state.
pub struct DiskFiles {
    root: PathBuf,
}

fn io(path: &Path, error: std::io::Error) -> EngineError {
    EngineError::Io(format!("{}: {error}", path.display()))
}

impl DiskFiles {
    /// Opens or creates the directory.
    pub fn open(root: &Path) -> Result<Self, EngineError> {
        fs::create_dir_all(root).map_err(|e| io(root, e))?;
        Ok(DiskFiles { root: root.to_path_buf() })
    }

    /// Where a folder is. Its name is never a peer's.
    pub(in crate::engine) fn path(&self, folder: &str) -> PathBuf {
        self.root.join(folder)
    }

    fn sync_directory(path: &Path) -> Result<(), EngineError> {
        File::open(path).and_then(|directory| directory.sync_all()).map_err(|e| io(path, e))
    }
}

impl Files for DiskFiles {
    fn create(&self, folder: &str) -> Result<(), EngineError> {
        let path = self.path(folder);
        fs::create_dir_all(&path).map_err(|e| io(&path, e))
    }

    fn append(&self, folder: &str, file: &str, bytes: &[u8]) -> Result<(), EngineError> {
        let path = self.path(folder).join(file);
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        opened.and_then(|mut file| file.write_all(bytes)).map_err(|e| io(&path, e))
    }

    fn read(&self, folder: &str, file: &str, offset: u64, most: usize) -> Result<Bytes, EngineError> {
        let path = self.path(folder).join(file);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.take(most as u64).read_to_end(&mut bytes)
        });
        read.map_err(|e| io(&path, e))?;
        Ok(bytes.into())
    }

    fn sync(&self, folder: &str) -> Result<(), EngineError> {
        let path = self.path(folder);
        for entry in fs::read_dir(&path).map_err(|e| io(&path, e))? {
            let file = entry.map_err(|e| io(&path, e))?.path();
            File::open(&file).and_then(|f| f.sync_all()).map_err(|e| io(&file, e))?;
        }
        Self::sync_directory(&path)?;
        Self::sync_directory(&self.root)
    }

    fn remove(&self, folder: &str) -> Result<(), EngineError> {
        let path = self.path(folder);
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(io(&path, e)),
            _ => Ok(()),
        }
    }

    fn folders(&self) -> Result<Vec<String>, EngineError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(|e| io(&self.root, e))? {
            let name = entry.map_err(|e| io(&self.root, e))?.file_name();
            names.push(name.to_string_lossy().into_owned());
        }
        Ok(names)
    }
}
