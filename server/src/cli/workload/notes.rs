//! What sessions saw, as it comes: into the file, into memory, and counted.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{LineWriter, Write},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use history::{Header, History, Outcome, Transaction};
use parking_lot::Mutex;

/// Counted as they come.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) committed: u64,
    failed: u64,
    unknown: u64,
    /// SQLSTATEs, and ways in which connections broke.
    errors: BTreeMap<String, u64>,
    first_ns: Option<u64>,
    last_ns: u64,
    pause_ns: u64,
}

impl Tally {
    fn add(&mut self, transaction: &Transaction) {
        let at = transaction.returned_ns;
        let first = *self.first_ns.get_or_insert(transaction.invoked_ns);
        match transaction.outcome {
            Outcome::Fail => self.failed += 1,
            Outcome::Unknown => self.unknown += 1,
            Outcome::Ok => {
                self.committed += 1;
                self.pause_ns = self.pause_ns.max(at.saturating_sub(self.last_ns.max(first)));
                self.last_ns = self.last_ns.max(at);
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
        let ran = seconds(self.last_ns.saturating_sub(self.first_ns.unwrap_or(0)));
        let per_second = if ran > 0.0 { self.committed as f64 / ran } else { 0.0 };
        write!(
            f,
            "{} transactions in {ran:.1} s ({per_second:.0} a second), {} failed, {} unknown; longest pause {:.2} s",
            self.committed,
            self.failed,
            self.unknown,
            seconds(self.pause_ns)
        )?;
        self.errors.iter().try_for_each(|(what, count)| write!(f, "\n  {count} × {what}"))
    }
}

struct Open {
    file: Option<LineWriter<File>>,
    failed: Option<std::io::Error>,
    kept: Option<Vec<Transaction>>,
    tally: Tally,
}

/// A history in the making.
pub(super) struct Notes {
    header: Header,
    open: Mutex<Open>,
}

impl Notes {
    /// The file is made at once, so that a path that can't be written is known before the load.
    pub(super) fn start(header: Header, path: Option<&Path>, keep: bool) -> anyhow::Result<Notes> {
        let create = |path: &Path| -> anyhow::Result<LineWriter<File>> {
            let mut file = LineWriter::new(File::create(path)?);
            writeln!(file, "{}", header.line())?;
            Ok(file)
        };
        let file = path.map(|p| create(p).with_context(|| format!("writing {}", p.display()))).transpose()?;
        let open = Open { file, failed: None, kept: keep.then(Vec::new), tally: Tally::default() };
        Ok(Notes { header, open: Mutex::new(open) })
    }

    /// Takes a transaction down.
    pub(super) fn add(&self, transaction: Transaction) {
        let open = &mut *self.open.lock();
        open.tally.add(&transaction);
        if let Some(file) = &mut open.file
            && let Err(error) = writeln!(file, "{}", transaction.line())
        {
            open.failed.get_or_insert(error);
        }
        open.kept.iter_mut().for_each(|kept| kept.push(transaction.clone()));
    }

    /// Counts an error.
    pub(super) fn error(&self, what: &str) {
        let errors = &mut self.open.lock().tally.errors;
        match errors.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(errors.insert(what.to_owned(), 1)),
        }
    }

    /// What was counted so far.
    pub(super) fn tally(&self) -> Tally {
        self.open.lock().tally.clone()
    }

    /// Writes what is left; the history, if it was to be kept.
    pub(super) fn finish(self) -> anyhow::Result<Option<History>> {
        let open = self.open.into_inner();
        if let Some(mut file) = open.file {
            file.flush().context("writing the history")?;
        }
        if let Some(error) = open.failed {
            return Err(error).context("writing the history");
        }
        Ok(open.kept.map(|transactions| History { header: self.header, transactions }))
    }
}
