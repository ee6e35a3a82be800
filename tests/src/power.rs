//! Power failures of real processes: what was written and not synced is taken away.
//!
//! `kill -9` leaves the page cache alone, so a process that forgets a sync passes every kill test. A shim under
//! the process (`tests/shim/unsynced.c`, LD_PRELOAD) notes what was synced; after the kill [`Power::fail`] cuts
//! every file to that. Directory entries are not lost, and bytes are lost from the end of a file only: both
//! engines write their files from front to back.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::source;

/// The shim, and what it noted of one node.
pub struct Power {
    shim: PathBuf,
    journal: PathBuf,
}

impl Power {
    /// Compiles the shim into `dir`; `name` tells nodes apart.
    pub fn new(dir: &Path, name: &str) -> Power {
        let shim = dir.join("unsynced.so");
        if !shim.exists() {
            let source = source::root().join("tests/shim/unsynced.c");
            let status = Command::new("cc")
                .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
                .arg(&shim)
                .arg(source)
                .arg("-ldl")
                .status()
                .expect("a C compiler");
            assert!(status.success(), "the shim compiles");
        }
        Power { shim, journal: dir.join(format!("{name}.syncs")) }
    }

    /// Puts the shim under a process.
    pub fn wire(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.shim).env("FLAREDB_SYNC_JOURNAL", &self.journal);
    }

    /// Cuts every file under `data_dir` to what was synced; how many bytes went. The process must be dead.
    pub fn fail(&self, data_dir: &Path) -> u64 {
        let synced = synced_bytes(&fs::read_to_string(&self.journal).expect("the shim kept a journal"));
        let mut lost = 0;
        for path in files_under(data_dir) {
            let size = fs::metadata(&path).expect("a file").len();
            let kept = synced.get(&path).copied().unwrap_or(0).min(size);
            if kept < size {
                lost += size - kept;
                File::options().write(true).open(&path).and_then(|f| f.set_len(kept)).expect("our own file");
            }
        }
        lost
    }
}

/// The journal's last word on every file.
fn synced_bytes(journal: &str) -> BTreeMap<PathBuf, u64> {
    let mut synced = BTreeMap::new();
    for line in journal.lines() {
        if let Some((bytes, path)) = line.strip_prefix("S ").and_then(|rest| rest.split_once(' ')) {
            synced.insert(PathBuf::from(path), bytes.parse().expect("a number"));
        } else if let Some((from, to)) = line.strip_prefix("R ").and_then(|rest| rest.split_once('\t')) {
            let bytes = synced.remove(Path::new(from)).unwrap_or(0);
            synced.insert(PathBuf::from(to), bytes);
        }
    }
    synced
}

fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("our own folder") {
            let path = entry.expect("our own folder").path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sync_counts_and_follows_a_rename() {
        let synced = synced_bytes("S 10 /d/a b\nS 20 /d/a b\nS 5 /d/c\nR /d/a b\t/d/e\nR /d/x\t/d/y\n");
        let expected = [("/d/c", 5), ("/d/e", 20), ("/d/y", 0)].map(|(path, bytes)| (PathBuf::from(path), bytes));
        assert_eq!(synced, BTreeMap::from(expected));
    }

    #[test]
    fn unsynced_bytes_are_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (data, power) = (dir.path().join("data"), Power::new(dir.path(), "n1"));
        fs::create_dir(&data).unwrap();
        let mut shell = Command::new("sh");
        // dd syncs what it wrote (conv=fdatasync); the shell's own append is not synced.
        let script =
            "dd if=/dev/zero of=kept bs=100 count=1 conv=fdatasync 2>/dev/null; echo more >> kept; echo gone > lost";
        power.wire(shell.args(["-c", script]).current_dir(&data));
        assert!(shell.status().unwrap().success());
        assert_eq!(power.fail(&data), 10);
        assert_eq!(fs::metadata(data.join("kept")).unwrap().len(), 100);
        assert_eq!(fs::metadata(data.join("lost")).unwrap().len(), 0);
    }
}
