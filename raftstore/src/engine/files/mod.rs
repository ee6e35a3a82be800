//! Folders of files beside the state: where snapshots lie between making and sending, between arrival and ingestion.
//!
//! Not a file system: folders and files have names of this crate's choosing, files only grow, and a folder is durable
//! from [`Files::sync`] on and not before. Whoever finds a folder at boot that nothing refers to removes it.

mod disk;
mod memory;

use bytes::Bytes;

pub use disk::DiskFiles;
pub use memory::MemoryFiles;

use super::EngineError;

/// The folders of a store. Implemented by files and by memory (the simulator); both pass one contract suite.
pub trait Files: Send + Sync + 'static {
    /// Makes a folder, if it is not there.
    fn create(&self, folder: &str) -> Result<(), EngineError>;
    /// Adds to the end of a file of a folder that is there; the file is made when missing.
    fn append(&self, folder: &str, file: &str, bytes: &[u8]) -> Result<(), EngineError>;
    /// Up to `most` bytes from `offset` on; fewer only at the file's end. A missing file is an error.
    fn read(&self, folder: &str, file: &str, offset: u64, most: usize) -> Result<Bytes, EngineError>;
    /// Makes the folder and all in it durable.
    fn sync(&self, folder: &str) -> Result<(), EngineError>;
    /// Removes the folder with all in it; one that is not there stays so. After a crash it may be back, in part.
    fn remove(&self, folder: &str) -> Result<(), EngineError>;
    /// All folders, in no order.
    fn folders(&self) -> Result<Vec<String>, EngineError>;
}

#[cfg(test)]
mod contract {
    use super::*;

    /// Runs the suite on empty files.
    pub(super) fn check(files: &dyn Files) {
        assert!(files.folders().unwrap().is_empty());
        assert!(files.append("one", "a", b"x").is_err(), "no folder");
        ["one", "two", "one"].iter().for_each(|folder| files.create(folder).unwrap());
        files.append("one", "a", b"hello ").unwrap();
        files.append("one", "a", b"world").unwrap();
        files.append("one", "b", b"").unwrap();
        files.append("two", "a", b"x").unwrap();
        let read = |folder, file, offset, most| files.read(folder, file, offset, most).unwrap();
        assert_eq!(&read("one", "a", 0, 100)[..], b"hello world");
        assert_eq!(&read("one", "a", 6, 3)[..], b"wor");
        assert!(read("one", "a", 11, 5).is_empty() && read("one", "a", 100, 5).is_empty());
        assert!(read("one", "b", 0, 5).is_empty());
        assert!(files.read("one", "c", 0, 5).is_err() && files.read("three", "a", 0, 5).is_err());
        files.sync("one").unwrap();
        let mut folders = files.folders().unwrap();
        folders.sort();
        assert_eq!(folders, ["one", "two"]);
        files.remove("one").unwrap();
        files.remove("one").unwrap();
        assert_eq!(files.folders().unwrap(), ["two"]);
        assert!(files.read("one", "a", 0, 5).is_err());
        assert!(files.sync("one").is_err(), "what is not there is not durable");
    }

    #[test]
    fn memory_passes() {
        check(&MemoryFiles::default());
    }

    #[test]
    fn the_disk_passes_and_finds_its_folders_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("snapshots");
        check(&DiskFiles::open(&path).unwrap());
        assert_eq!(DiskFiles::open(&path).unwrap().folders().unwrap(), ["two"]);
    }
}
