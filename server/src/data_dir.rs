//! The data directory: made when missing, locked while the process lives.
//!
//! ```text
//! DIR/LOCK     flock'ed by the process that uses the directory; holds its pid for people
//! DIR/log/     raft-engine
//! DIR/state/   RocksDB
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

/// A locked data directory. The lock goes with the process, however it ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory when it is missing, and locks it. A second process is told who has it.
    pub fn open(path: &Path) -> anyhow::Result<DataDir> {
        fs::create_dir_all(path).with_context(|| format!("data directory {} cannot be made", path.display()))?;
        let lock_path = path.join("LOCK");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .with_context(|| format!("data directory {} is not writable", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut owner = String::new();
            // Only for the message: a lock file without a pid is still locked.
            let _ = lock.read_to_string(&mut owner);
            bail!("data directory {} is in use by another flaredb process (pid {})", path.display(), owner.trim());
        }
        let written =
            lock.rewind().and_then(|()| lock.set_len(0)).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.with_context(|| format!("data directory {} is not writable", path.display()))?;
        Ok(DataDir { path: path.to_owned(), _lock: lock })
    }
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// For raft-engine.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }
    /// For RocksDB.
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_a_directory() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("deep/er");
        let first = DataDir::open(&path).unwrap();
        let refused = DataDir::open(&path).unwrap_err().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let refused = format!("{:#}", DataDir::open(&temp.path().join("sub")).unwrap_err());
        assert!(refused.contains(&temp.path().display().to_string()), "{refused}");
    }
}
