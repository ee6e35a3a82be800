//! The state in memory: for the simulator, whose crashes lose what was not synced, and for tests without a disk.
//!
//! Every key holds its versions, newest last; a snapshot is a sequence number and sees the newest version at
//! or below it. Versions nobody can see any more go when the next write comes.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::{Buf, BufMut, Bytes};
use parking_lot::{Mutex, RwLock};
use proto::KeyRange;

use super::{
    Cf, Cursor, Engine, EngineError, Files, Part, Snapshot, WriteBatch, WriteOp,
    files::MemoryFiles,
    part_name,
    parts::{self, PartWriter},
};

/// How many column families there are: data, lock, meta.
const CF_COUNT: usize = 3;

/// One key's history: (sequence, value or tombstone), oldest first.
type Versions = Vec<(u64, Option<Bytes>)>;

/// Keys of one column family with all versions somebody may still see.
type VersionedMap = BTreeMap<Bytes, Versions>;

/// What is in memory, and what a crash would leave.
#[derive(Default)]
struct State {
    maps: [VersionedMap; CF_COUNT],
    /// Sequence of the last write.
    sequence: u64,
    /// Keys with a version that went out of use at this sequence; collected when no snapshot is older.
    garbage: VecDeque<(u64, Cf, Bytes)>,
    /// Present when crashes are to be simulated.
    durability: Option<Durability>,
}

/// Which writes survive a crash.
#[derive(Default)]
struct Durability {
    synced: [BTreeMap<Bytes, Bytes>; CF_COUNT],
    unsynced: VecDeque<Unsynced>,
}

/// A change since the last sync.
enum Unsynced {
    Written(WriteBatch),
    /// On disk at once, whatever of the writes before it is not.
    Ingested(Cf, Vec<(Bytes, Bytes)>),
}

impl Durability {
    /// Applies what of the unsynced changes survives when `kept` batches do.
    fn replay(synced: &mut [BTreeMap<Bytes, Bytes>; CF_COUNT], unsynced: &VecDeque<Unsynced>, kept: usize) {
        let mut batches = 0;
        for change in unsynced {
            match change {
                Unsynced::Written(batch) => {
                    batches += 1;
                    if batches <= kept {
                        apply_plain(synced, batch);
                    }
                }
                Unsynced::Ingested(cf, records) => synced[*cf as usize].extend(records.iter().cloned()),
            }
        }
    }
}

#[derive(Default)]
struct Shared {
    state: RwLock<State>,
    /// Sequence → how many snapshots stand on it.
    live: Mutex<BTreeMap<u64, usize>>,
}

/// An engine without a disk.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    shared: Arc<Shared>,
    files: Arc<MemoryFiles>,
}

impl MemoryEngine {
    /// Loses nothing but everything at the end of the process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers what was not synced, so that [`MemoryEngine::after_crash`] can lose it.
    pub fn crashable() -> Self {
        let engine = Self::default();
        engine.shared.state.write().durability = Some(Durability::default());
        engine
    }

    /// How many batches a crash may lose now.
    pub fn unsynced(&self) -> usize {
        let written = |d: &Durability| d.unsynced.iter().filter(|u| matches!(u, Unsynced::Written(_))).count();
        self.shared.state.read().durability.as_ref().map_or(0, written)
    }

    /// What a restart finds when of the unsynced batches only the first `kept` reached the disk. Only for
    /// [`MemoryEngine::crashable`] engines; another one keeps everything.
    pub fn after_crash(&self, kept: usize) -> Self {
        let state = self.shared.state.read();
        let Some(durability) = &state.durability else { return self.clone() };
        let mut synced = durability.synced.clone();
        Durability::replay(&mut synced, &durability.unsynced, kept);
        let maps = synced
            .clone()
            .map(|map| map.into_iter().map(|(key, value)| (key, vec![(1, Some(value))])).collect::<VersionedMap>());
        let state = State {
            maps,
            sequence: 1,
            garbage: VecDeque::new(),
            durability: Some(Durability { synced, unsynced: VecDeque::new() }),
        };
        let shared = Shared { state: RwLock::new(state), live: Mutex::default() };
        MemoryEngine { shared: Arc::new(shared), files: Arc::new(self.files.after_crash()) }
    }
}

fn apply_plain(maps: &mut [BTreeMap<Bytes, Bytes>; CF_COUNT], batch: &WriteBatch) {
    for op in &batch.ops {
        match op {
            WriteOp::Put(cf, key, value) => {
                maps[*cf as usize].insert(key.clone(), value.clone());
            }
            WriteOp::Delete(cf, key) => {
                maps[*cf as usize].remove(key);
            }
            WriteOp::DeleteRange(cf, start, end) => {
                maps[*cf as usize].retain(|key, _| key < start || !(end.is_empty() || key < end));
            }
        }
    }
}

impl State {
    fn set(&mut self, cf: Cf, key: Bytes, value: Option<Bytes>) {
        let sequence = self.sequence;
        let versions = self.maps[cf as usize].entry(key.clone()).or_default();
        let superseded = !versions.is_empty();
        let dead = value.is_none();
        match versions.last_mut() {
            Some(last) if last.0 == sequence => last.1 = value,
            _ => versions.push((sequence, value)),
        }
        if superseded || dead {
            self.garbage.push_back((sequence, cf, key));
        }
    }

    fn delete_range(&mut self, cf: Cf, start: &Bytes, end: &Bytes) {
        let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end.clone()) };
        if !end.is_empty() && start >= end {
            return;
        }
        let keys: Vec<Bytes> = self.maps[cf as usize]
            .range((Bound::Included(start.clone()), upper))
            .filter(|(_, versions)| versions.last().is_some_and(|v| v.1.is_some()))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.set(cf, key, None);
        }
    }

    /// Drops versions that a snapshot at `oldest` or later can't see.
    fn collect_garbage(&mut self, oldest: u64) {
        while self.garbage.front().is_some_and(|(sequence, ..)| *sequence <= oldest) {
            let Some((_, cf, key)) = self.garbage.pop_front() else { return };
            let map = &mut self.maps[cf as usize];
            let Some(versions) = map.get_mut(&key) else { continue };
            let visible = versions.iter().rposition(|(sequence, _)| *sequence <= oldest).unwrap_or(0);
            versions.drain(..visible);
            if versions.len() == 1 && versions[0].1.is_none() && versions[0].0 <= oldest {
                map.remove(&key);
            }
        }
    }
}

impl Engine for MemoryEngine {
    fn snapshot(&self) -> Arc<dyn Snapshot> {
        // Under the state's lock, so that no write collects what this snapshot is about to pin.
        let state = self.shared.state.read();
        *self.shared.live.lock().entry(state.sequence).or_default() += 1;
        Arc::new(MemorySnapshot { shared: self.shared.clone(), sequence: state.sequence })
    }

    fn write(&self, batch: WriteBatch) -> Result<(), EngineError> {
        let mut state = self.shared.state.write();
        state.sequence += 1;
        for op in &batch.ops {
            match op {
                WriteOp::Put(cf, key, value) => state.set(*cf, key.clone(), Some(value.clone())),
                WriteOp::Delete(cf, key) => {
                    if state.maps[*cf as usize].contains_key(key) {
                        state.set(*cf, key.clone(), None);
                    }
                }
                WriteOp::DeleteRange(cf, start, end) => state.delete_range(*cf, start, end),
            }
        }
        self.collect_garbage(&mut state);
        if let Some(durability) = &mut state.durability {
            durability.unsynced.push_back(Unsynced::Written(batch));
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        if let Some(Durability { synced, unsynced }) = &mut self.shared.state.write().durability {
            Durability::replay(synced, &std::mem::take(unsynced), usize::MAX);
        }
        Ok(())
    }

    fn approximate_size(&self, start: &[u8], end: &[u8]) -> Result<u64, EngineError> {
        let state = self.shared.state.read();
        let lower = Bound::Included(start);
        let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        let size = |map: &VersionedMap| {
            map.range::<[u8], _>((lower, upper))
                .filter_map(|(key, versions)| versions.last()?.1.as_ref().map(|value| key.len() + value.len()))
                .sum::<usize>() as u64
        };
        // `meta` is the store's own and lies in no region's range.
        Ok(size(&state.maps[Cf::Data as usize]) + size(&state.maps[Cf::Lock as usize]))
    }

    fn files(&self) -> &dyn Files {
        &*self.files
    }

    fn export(&self, snapshot: &dyn Snapshot, range: &KeyRange, folder: &str) -> Result<Vec<Part>, EngineError> {
        self.files.create(folder)?;
        parts::export(&*self.files, snapshot, range, folder, &mut |file| {
            Ok(Box::new(Records { files: &self.files, folder: folder.into(), file: file.into(), bytes: Vec::new() }))
        })
    }

    fn ingest(&self, folder: &str, parts: &[Part], cf: Cf) -> Result<(), EngineError> {
        let mut records = Vec::new();
        for (at, _) in parts.iter().enumerate().filter(|(_, part)| part.cf == cf) {
            read_records(self.files.whole(folder, &part_name(at))?, &mut records)?;
        }
        let mut state = self.shared.state.write();
        state.sequence += 1;
        records.iter().for_each(|(key, value)| state.set(cf, key.clone(), Some(value.clone())));
        self.collect_garbage(&mut state);
        if let Some(durability) = &mut state.durability {
            durability.unsynced.push_back(Unsynced::Ingested(cf, records));
        }
        Ok(())
    }
}

impl MemoryEngine {
    /// Drops versions that no snapshot sees.
    fn collect_garbage(&self, state: &mut State) {
        let oldest = self.shared.live.lock().keys().next().copied().unwrap_or(state.sequence);
        state.collect_garbage(oldest);
    }
}

/// Length-prefixed keys and values.
struct Records<'a> {
    files: &'a MemoryFiles,
    folder: String,
    file: String,
    bytes: Vec<u8>,
}

impl PartWriter for Records<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        for bytes in [key, value] {
            self.bytes.put_u64(bytes.len() as u64);
            self.bytes.put_slice(bytes);
        }
        Ok(())
    }
    fn finish(self: Box<Self>) -> Result<(), EngineError> {
        self.files.append(&self.folder, &self.file, &self.bytes)
    }
}

fn read_records(mut bytes: Bytes, into: &mut Vec<(Bytes, Bytes)>) -> Result<(), EngineError> {
    let torn = || EngineError::Corrupt("a part is torn".into());
    while !bytes.is_empty() {
        let mut next = || {
            let length = bytes.try_get_u64().ok().and_then(|n| usize::try_from(n).ok()).ok_or_else(torn)?;
            if bytes.len() < length { Err(torn()) } else { Ok(bytes.split_to(length)) }
        };
        into.push((next()?, next()?));
    }
    Ok(())
}

struct MemorySnapshot {
    shared: Arc<Shared>,
    sequence: u64,
}

impl Drop for MemorySnapshot {
    fn drop(&mut self) {
        let mut live = self.shared.live.lock();
        if let Some(count) = live.get_mut(&self.sequence) {
            *count -= 1;
            if *count == 0 {
                live.remove(&self.sequence);
            }
        }
    }
}

impl MemorySnapshot {
    fn visible(&self, versions: &Versions) -> Option<Bytes> {
        versions.iter().rev().find(|(sequence, _)| *sequence <= self.sequence)?.1.clone()
    }
}

impl Snapshot for MemorySnapshot {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let state = self.shared.state.read();
        Ok(state.maps[cf as usize].get(key).and_then(|versions| self.visible(versions)))
    }

    fn cursor<'a>(&'a self, cf: Cf, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a> {
        Box::new(MemoryCursor {
            snapshot: self,
            cf,
            lower: Bytes::copy_from_slice(lower),
            upper: (!upper.is_empty()).then(|| Bytes::copy_from_slice(upper)),
            at: None,
        })
    }
}

struct MemoryCursor<'a> {
    snapshot: &'a MemorySnapshot,
    cf: Cf,
    lower: Bytes,
    upper: Option<Bytes>,
    at: Option<(Bytes, Bytes)>,
}

impl MemoryCursor<'_> {
    fn upper(&self) -> Bound<Bytes> {
        self.upper.clone().map_or(Bound::Unbounded, Bound::Excluded)
    }

    fn forward(&mut self, from: Bound<Bytes>) -> bool {
        let empty = match (&from, &self.upper) {
            (Bound::Included(start) | Bound::Excluded(start), Some(upper)) => start >= upper,
            _ => false,
        };
        let state = self.snapshot.shared.state.read();
        self.at = if empty {
            None
        } else {
            state.maps[self.cf as usize]
                .range((from, self.upper()))
                .find_map(|(key, versions)| Some((key.clone(), self.snapshot.visible(versions)?)))
        };
        self.at.is_some()
    }

    fn backward(&mut self, to: Bound<Bytes>) -> bool {
        let empty = match &to {
            Bound::Included(end) => *end < self.lower,
            Bound::Excluded(end) => *end <= self.lower,
            Bound::Unbounded => false,
        };
        let state = self.snapshot.shared.state.read();
        self.at = if empty {
            None
        } else {
            state.maps[self.cf as usize]
                .range((Bound::Included(self.lower.clone()), to))
                .rev()
                .find_map(|(key, versions)| Some((key.clone(), self.snapshot.visible(versions)?)))
        };
        self.at.is_some()
    }
}

impl Cursor for MemoryCursor<'_> {
    fn seek(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        let from = Bytes::copy_from_slice(key).max(self.lower.clone());
        Ok(self.forward(Bound::Included(from)))
    }

    fn seek_for_prev(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        let to = match &self.upper {
            Some(upper) if upper.as_ref() <= key => Bound::Excluded(upper.clone()),
            _ => Bound::Included(Bytes::copy_from_slice(key)),
        };
        Ok(self.backward(to))
    }

    fn seek_to_first(&mut self) -> Result<bool, EngineError> {
        Ok(self.forward(Bound::Included(self.lower.clone())))
    }

    fn seek_to_last(&mut self) -> Result<bool, EngineError> {
        Ok(self.backward(self.upper()))
    }

    fn next(&mut self) -> Result<bool, EngineError> {
        match self.at.take() {
            Some((key, _)) => Ok(self.forward(Bound::Excluded(key))),
            None => Ok(false),
        }
    }

    fn prev(&mut self) -> Result<bool, EngineError> {
        match self.at.take() {
            Some((key, _)) => Ok(self.backward(Bound::Excluded(key))),
            None => Ok(false),
        }
    }

    fn key(&self) -> &[u8] {
        &self.at.as_ref().expect("the cursor stands on a record").0
    }

    fn value(&self) -> &[u8] {
        &self.at.as_ref().expect("the cursor stands on a record").1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str) -> WriteBatch {
        WriteBatch { ops: vec![WriteOp::Put(Cf::Data, key.into(), value.into())] }
    }

    #[test]
    fn passes_the_contract() {
        super::super::contract::check(&|| Arc::new(MemoryEngine::new()));
        super::super::contract::check(&|| Arc::new(MemoryEngine::crashable()));
    }

    #[test]
    fn a_crash_loses_a_suffix_of_what_was_not_synced() {
        let engine = MemoryEngine::crashable();
        engine.write(put("a", "1")).unwrap();
        engine.sync().unwrap();
        engine.write(put("a", "2")).unwrap();
        engine.write(put("b", "3")).unwrap();
        assert_eq!(engine.unsynced(), 2);
        let read = |e: &MemoryEngine, key: &str| e.snapshot().get(Cf::Data, key.as_bytes()).unwrap();
        let lost_all = engine.after_crash(0);
        assert_eq!((read(&lost_all, "a"), read(&lost_all, "b")), (Some("1".into()), None));
        let lost_one = engine.after_crash(1);
        assert_eq!((read(&lost_one, "a"), read(&lost_one, "b")), (Some("2".into()), None));
        // What survived one crash is durable in the next.
        assert_eq!(read(&lost_one.after_crash(0), "a"), Some("2".into()));
    }

    #[test]
    fn versions_nobody_sees_are_dropped() {
        let engine = MemoryEngine::new();
        let pinned = {
            engine.write(put("a", "1")).unwrap();
            engine.snapshot()
        };
        for _ in 0..10 {
            engine.write(put("a", "2")).unwrap();
        }
        assert_eq!(pinned.get(Cf::Data, b"a").unwrap(), Some("1".into()));
        drop(pinned);
        engine.write(WriteBatch { ops: vec![WriteOp::Delete(Cf::Data, "a".into())] }).unwrap();
        let state = engine.shared.state.read();
        assert!(state.maps.iter().all(BTreeMap::is_empty) && state.garbage.is_empty());
    }
}
