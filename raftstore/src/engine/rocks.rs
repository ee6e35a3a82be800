//! The state in RocksDB: one database, a column family for data, locks and the store's own records.
//!
//! The write-ahead log is written but not synced on the commit path: what was acknowledged lives in the
//! Raft log, and after a crash RocksDB recovers to a point in time (a prefix of the batches), behind which the
//! log is replayed. [`Engine::sync`] moves that point and with it how far the log may be cut.

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use proto::KeyRange;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRawIterator,
    IngestExternalFileOptions, Options, Range, ReadOptions, SnapshotWithThreadMode, SstFileWriter,
};

use super::{
    Cf, Cursor, Engine, EngineError, Files, Part, Snapshot, WriteBatch, WriteOp,
    files::DiskFiles,
    part_name,
    parts::{self, PartWriter},
};

/// Sizes, chosen so that three processes fit on a small machine.
#[derive(Clone, Copy, Debug)]
pub struct RocksOptions {
    /// Cache of uncompressed blocks, bytes, shared by the column families.
    pub block_cache_bytes: usize,
    /// One memtable of the data family, bytes; the lock family gets a quarter of it.
    pub memtable_bytes: usize,
    /// Threads that flush and compact.
    pub background_jobs: i32,
}

impl Default for RocksOptions {
    fn default() -> Self {
        RocksOptions { block_cache_bytes: 256 << 20, memtable_bytes: 64 << 20, background_jobs: 2 }
    }
}

/// All memtables together, in memtables of the data family: past it RocksDB flushes the oldest.
const MEMTABLES_AT_MOST: usize = 3;
/// Past this much write-ahead log the oldest memtable is flushed, so that recovery stays a matter of seconds.
const WAL_BYTES_AT_MOST: u64 = 256 << 20;
/// Bits of bloom filter a key: about 1 % false positives.
const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// RocksDB's own text logs kept.
const TEXT_LOGS_KEPT: usize = 4;
/// Files held open; each costs index and filter memory, all of them would cost descriptors.
const OPEN_FILES_AT_MOST: i32 = 1024;

/// A file is compacted when of so many records in a row,
const DELETIONS_WINDOW: usize = 16 << 10;
/// so many are deletions,
const DELETIONS_IN_WINDOW: usize = 8 << 10;
/// or this part of all its records.
const DELETIONS_PART: f64 = 0.5;

const CF_NAMES: [(Cf, &str); 3] = [(Cf::Data, "data"), (Cf::Lock, "lock"), (Cf::Meta, "meta")];

/// The state in RocksDB.
#[derive(Clone)]
pub struct RocksEngine {
    db: Arc<DB>,
    files: Arc<DiskFiles>,
}

/// The directory of the snapshots' folders, in RocksDB's own: ingested files are linked from there.
const FILES: &str = "snapshots";

impl RocksEngine {
    /// Opens or creates the database in `directory`. Refused with a reason when another process has it open or
    /// the directory can't be written.
    pub fn open(directory: &Path, options: RocksOptions) -> Result<Self, EngineError> {
        super::writable_directory(directory)?;
        let cache = Cache::new_hyper_clock_cache(options.block_cache_bytes, 0);
        let families = CF_NAMES
            .map(|(cf, name)| ColumnFamilyDescriptor::new(name, family_options(cf, options.memtable_bytes, &cache)));
        let db = DB::open_cf_descriptors(&database_options(options), directory, families)
            .map_err(|e| open_error(directory, &e))?;
        Ok(RocksEngine { db: Arc::new(db), files: Arc::new(DiskFiles::open(&directory.join(FILES))?) })
    }

    fn family(&self, cf: Cf) -> Result<&ColumnFamily, EngineError> {
        family(&self.db, cf)
    }
}

fn database_options(options: RocksOptions) -> Options {
    let mut db = Options::default();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    db.set_wal_recovery_mode(rocksdb::DBRecoveryMode::PointInTime);
    // The log buffer goes to the file when it is full, at a memtable switch and in sync(): no system call a write.
    db.set_manual_wal_flush(true);
    db.set_max_total_wal_size(WAL_BYTES_AT_MOST);
    db.set_db_write_buffer_size(options.memtable_bytes * MEMTABLES_AT_MOST);
    db.set_max_background_jobs(options.background_jobs);
    db.set_bytes_per_sync(1 << 20);
    db.set_max_open_files(OPEN_FILES_AT_MOST);
    db.set_keep_log_file_num(TEXT_LOGS_KEPT);
    db.set_stats_dump_period_sec(0);
    db.set_paranoid_checks(true);
    db
}

/// How files of the state are built, ingested ones too.
fn table_options() -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    table.set_block_size(16 << 10);
    table.set_format_version(5);
    table
}

fn file_options(table: &BlockBasedOptions) -> Options {
    let mut options = Options::default();
    options.set_block_based_table_factory(table);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

fn family_options(cf: Cf, memtable_bytes: usize, cache: &Cache) -> Options {
    let mut table = table_options();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut family = file_options(&table);
    family.set_level_compaction_dynamic_level_bytes(true);
    // What was deleted is read past until it is compacted away: files with many deletions in a row are compacted soon.
    family.add_compact_on_deletion_collector_factory(DELETIONS_WINDOW, DELETIONS_IN_WINDOW, DELETIONS_PART);
    match cf {
        Cf::Data => family.set_write_buffer_size(memtable_bytes),
        Cf::Lock => {
            // Nearly every look-up of a lock finds none: the filter answers in the memtable too.
            family.set_memtable_prefix_bloom_ratio(0.05);
            family.set_memtable_whole_key_filtering(true);
            family.set_write_buffer_size(memtable_bytes / 4);
        }
        Cf::Meta => family.set_write_buffer_size(4 << 20),
    }
    family
}

fn open_error(directory: &Path, error: &rocksdb::Error) -> EngineError {
    let (place, text) = (directory.display(), error.to_string());
    if text.contains("LOCK") || text.contains("lock hold") {
        EngineError::Directory(format!("{place} is in use by another process; stop it or choose another directory"))
    } else if matches!(error.kind(), rocksdb::ErrorKind::Corruption) {
        EngineError::Corrupt(format!("{place}: {text}"))
    } else {
        EngineError::Directory(format!("can't open the state in {place}: {text}"))
    }
}

fn io(error: rocksdb::Error) -> EngineError {
    match error.kind() {
        rocksdb::ErrorKind::Corruption => EngineError::Corrupt(error.to_string()),
        _ => EngineError::Io(error.to_string()),
    }
}

/// RocksDB wants an end of every range: after all keys of ours, which start with the number of a keyspace.
fn end_key(end: &[u8]) -> &[u8] {
    const AFTER_ALL: [u8; 16] = [0xff; 16];
    if end.is_empty() { &AFTER_ALL } else { end }
}

fn family(db: &DB, cf: Cf) -> Result<&ColumnFamily, EngineError> {
    let name = CF_NAMES[cf as usize].1;
    db.cf_handle(name).ok_or_else(|| EngineError::Corrupt(format!("column family {name} is missing")))
}

impl Engine for RocksEngine {
    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(RocksSnapshot::new(self.db.clone()))
    }

    fn write(&self, batch: WriteBatch) -> Result<(), EngineError> {
        let mut writes = rocksdb::WriteBatch::default();
        for op in &batch.ops {
            match op {
                WriteOp::Put(cf, key, value) => writes.put_cf(self.family(*cf)?, key, value),
                WriteOp::Delete(cf, key) => writes.delete_cf(self.family(*cf)?, key),
                WriteOp::DeleteRange(cf, start, end) => {
                    let end = end_key(end);
                    if start.as_ref() < end {
                        writes.delete_range_cf(self.family(*cf)?, start.as_ref(), end);
                    }
                }
            }
        }
        self.db.write(writes).map_err(io)
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.db.flush_wal(true).map_err(io)
    }

    fn approximate_size(&self, start: &[u8], end: &[u8]) -> Result<u64, EngineError> {
        let range = [Range::new(start, end_key(end))];
        let mut total = 0;
        for cf in [Cf::Data, Cf::Lock] {
            total += self.db.get_approximate_sizes_cf(self.family(cf)?, &range).iter().sum::<u64>();
        }
        Ok(total)
    }

    fn files(&self) -> &dyn Files {
        &*self.files
    }

    fn export(&self, snapshot: &dyn Snapshot, range: &KeyRange, folder: &str) -> Result<Vec<Part>, EngineError> {
        self.files.create(folder)?;
        let directory = self.files.path(folder);
        let options = file_options(&table_options());
        parts::export(&*self.files, snapshot, range, folder, &mut |file| {
            let writer = SstFileWriter::create(&options);
            writer.open(directory.join(file)).map_err(io)?;
            Ok(Box::new(SstFile(writer)))
        })
    }

    fn ingest(&self, folder: &str, parts: &[Part], cf: Cf) -> Result<(), EngineError> {
        let directory = self.files.path(folder);
        let mut links = Vec::new();
        for (at, _) in parts.iter().enumerate().filter(|(_, part)| part.cf == cf) {
            let part = directory.join(part_name(at));
            let link = part.with_extension("link");
            // RocksDB takes the link for its own; an attempt before a crash may have left one.
            let _ = fs::remove_file(&link);
            fs::hard_link(&part, &link).map_err(|e| EngineError::Io(format!("{}: {e}", link.display())))?;
            links.push(link);
        }
        if links.is_empty() {
            return Ok(());
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.db.ingest_external_file_cf_opts(self.family(cf)?, &options, links).map_err(io)
    }
}

/// One part in the making.
struct SstFile<'a>(SstFileWriter<'a>);

impl PartWriter for SstFile<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.0.put(key, value).map_err(io)
    }
    fn finish(mut self: Box<Self>) -> Result<(), EngineError> {
        self.0.finish().map_err(io)
    }
}

/// A snapshot that keeps its database open.
struct RocksSnapshot {
    // Declared, and so dropped, before the database it points into.
    snapshot: SnapshotWithThreadMode<'static, DB>,
    db: Arc<DB>,
}

impl RocksSnapshot {
    #[allow(unsafe_code)]
    fn new(db: Arc<DB>) -> Self {
        let snapshot = db.snapshot();
        // SAFETY: the snapshot borrows the DB behind the Arc, which does not move and which `self.db` keeps alive
        // longer than `self.snapshot` (fields drop in order). The 'static never leaves this struct.
        let snapshot = unsafe {
            std::mem::transmute::<SnapshotWithThreadMode<'_, DB>, SnapshotWithThreadMode<'static, DB>>(snapshot)
        };
        RocksSnapshot { snapshot, db }
    }
}

impl Snapshot for RocksSnapshot {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self.snapshot.get_pinned_cf(family(&self.db, cf)?, key).map_err(io)?;
        Ok(value.map(|v| Bytes::copy_from_slice(&v)))
    }

    fn cursor<'a>(&'a self, cf: Cf, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(lower);
        if !upper.is_empty() {
            options.set_iterate_upper_bound(upper);
        }
        let iterator = family(&self.db, cf).map(|family| self.snapshot.raw_iterator_cf_opt(family, options));
        Box::new(RocksCursor { iterator })
    }
}

struct RocksCursor<'a> {
    /// Or why there is none; told at the first seek.
    iterator: Result<DBRawIterator<'a>, EngineError>,
}

impl<'a> RocksCursor<'a> {
    fn go(&mut self, step: impl FnOnce(&mut DBRawIterator<'a>)) -> Result<bool, EngineError> {
        let iterator = self.iterator.as_mut().map_err(|e| e.clone())?;
        step(iterator);
        if iterator.valid() {
            return Ok(true);
        }
        iterator.status().map_err(io)?;
        Ok(false)
    }

    fn stands(&self) -> &DBRawIterator<'a> {
        self.iterator.as_ref().expect("the cursor stands on a record")
    }
}

impl Cursor for RocksCursor<'_> {
    fn seek(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        self.go(|i| i.seek(key))
    }
    fn seek_for_prev(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        self.go(|i| i.seek_for_prev(key))
    }
    fn seek_to_first(&mut self) -> Result<bool, EngineError> {
        self.go(|i| i.seek_to_first())
    }
    fn seek_to_last(&mut self) -> Result<bool, EngineError> {
        self.go(|i| i.seek_to_last())
    }
    fn next(&mut self) -> Result<bool, EngineError> {
        self.go(|i| {
            if i.valid() {
                i.next()
            }
        })
    }
    fn prev(&mut self) -> Result<bool, EngineError> {
        self.go(|i| {
            if i.valid() {
                i.prev()
            }
        })
    }
    fn key(&self) -> &[u8] {
        self.stands().key().expect("the cursor stands on a record")
    }
    fn value(&self) -> &[u8] {
        self.stands().value().expect("the cursor stands on a record")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> RocksOptions {
        RocksOptions { block_cache_bytes: 1 << 20, memtable_bytes: 1 << 20, background_jobs: 1 }
    }

    #[test]
    fn passes_the_contract() {
        let directories = std::cell::RefCell::new(Vec::new());
        super::super::contract::check(&|| {
            let directory = tempfile::tempdir().unwrap();
            let engine = RocksEngine::open(directory.path(), small()).unwrap();
            directories.borrow_mut().push(directory);
            Arc::new(engine)
        });
    }

    #[test]
    fn a_second_opener_is_told_why() {
        let directory = tempfile::tempdir().unwrap();
        let _first = RocksEngine::open(directory.path(), small()).unwrap();
        let error = RocksEngine::open(directory.path(), small()).err().unwrap();
        assert!(error.to_string().contains("in use by another process"), "{error}");
    }

    #[test]
    fn what_was_synced_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let engine = RocksEngine::open(directory.path(), small()).unwrap();
        engine.write(WriteBatch { ops: vec![WriteOp::Put(Cf::Data, "a".into(), "1".into())] }).unwrap();
        engine.sync().unwrap();
        drop(engine);
        let engine = RocksEngine::open(directory.path(), small()).unwrap();
        assert_eq!(engine.snapshot().get(Cf::Data, b"a").unwrap(), Some("1".into()));
    }
}
