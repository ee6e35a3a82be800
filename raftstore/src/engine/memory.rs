//! The state in memory: for the simulator, whose crashes lose what was not synced, and for tests without a disk.
//!
//! Every key holds its versions, newest last; a snapshot is a sequence number and sees the newest version at
//! or below it. Versions nobody can see any more go when the next write comes.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::{Cf, Cursor, Engine, EngineError, Snapshot, WriteBatch, WriteOp};

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
    unsynced: VecDeque<WriteBatch>,
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
        self.shared.state.read().durability.as_ref().map_or(0, |d| d.unsynced.len())
    }

    /// What a restart finds when of the unsynced batches only the first `kept` reached the disk. Only for
    /// [`MemoryEngine::crashable`] engines; another one keeps everything.
    pub fn after_crash(&self, kept: usize) -> Self {
        let state = self.shared.state.read();
        let Some(durability) = &state.durability else { return self.clone() };
        let mut synced = durability.synced.clone();
        for batch in durability.unsynced.iter().take(kept) {
            apply_plain(&mut synced, batch);
        }
        let maps = synced
            .clone()
            .map(|map| map.into_iter().map(|(key, value)| (key, vec![(1, Some(value))])).collect::<VersionedMap>());
        let state = State {
            maps,
            sequence: 1,
            garbage: VecDeque::new(),
            durability: Some(Durability { synced, unsynced: VecDeque::new() }),
        };
        MemoryEngine { shared: Arc::new(Shared { state: RwLock::new(state), live: Mutex::default() }) }
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
        let oldest = self.shared.live.lock().keys().next().copied().unwrap_or(state.sequence);
        state.collect_garbage(oldest);
        if let Some(durability) = &mut state.durability {
            durability.unsynced.push_back(batch);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        if let Some(durability) = &mut self.shared.state.write().durability {
            for batch in std::mem::take(&mut durability.unsynced) {
                apply_plain(&mut durability.synced, &batch);
            }
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
