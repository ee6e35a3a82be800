//! A map behind the engine's door: every snapshot is a copy-on-write view.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;
use parking_lot::RwLock;
use raftstore::engine::{Cf, Cursor, Engine, EngineError, Snapshot, WriteBatch, WriteOp};

type Map = BTreeMap<Bytes, Bytes>;

#[derive(Default)]
pub(super) struct MemoryEngine {
    maps: RwLock<[Arc<Map>; 3]>,
}

impl MemoryEngine {
    pub(super) fn new() -> Self {
        Self::default()
    }
}

impl Engine for MemoryEngine {
    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(View { maps: self.maps.read().clone() })
    }

    fn write(&self, batch: WriteBatch) -> Result<(), EngineError> {
        let mut maps = self.maps.write();
        for op in batch.ops {
            match op {
                WriteOp::Put(cf, key, value) => {
                    Arc::make_mut(&mut maps[cf as usize]).insert(key, value);
                }
                WriteOp::Delete(cf, key) => {
                    Arc::make_mut(&mut maps[cf as usize]).remove(&key);
                }
                WriteOp::DeleteRange(cf, start, end) => {
                    Arc::make_mut(&mut maps[cf as usize])
                        .retain(|key, _| *key < start || !(end.is_empty() || *key < end));
                }
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn approximate_size(&self, _start: &[u8], _end: &[u8]) -> Result<u64, EngineError> {
        Ok(0)
    }
}

struct View {
    maps: [Arc<Map>; 3],
}

impl Snapshot for View {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.maps[cf as usize].get(key).cloned())
    }

    fn cursor<'a>(&'a self, cf: Cf, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a> {
        let (lower, upper) = (Bytes::copy_from_slice(lower), Bytes::copy_from_slice(upper));
        Box::new(MapCursor { map: &self.maps[cf as usize], lower, upper, at: None })
    }
}

struct MapCursor<'a> {
    map: &'a Map,
    lower: Bytes,
    upper: Bytes,
    at: Option<(&'a Bytes, &'a Bytes)>,
}

impl<'a> MapCursor<'a> {
    fn forward(&mut self, from: Bound<&[u8]>) -> Result<bool, EngineError> {
        let found = self.map.range::<[u8], _>((from, Bound::Unbounded)).next();
        self.at = found.filter(|(key, _)| self.upper.is_empty() || **key < self.upper);
        Ok(self.at.is_some())
    }

    fn backward(&mut self, from: Bound<&[u8]>) -> Result<bool, EngineError> {
        let found = self.map.range::<[u8], _>((Bound::Unbounded, from)).next_back();
        self.at = found.filter(|(key, _)| **key >= self.lower);
        Ok(self.at.is_some())
    }
}

impl Cursor for MapCursor<'_> {
    fn seek(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        let from = key.max(self.lower.as_ref()).to_vec();
        self.forward(Bound::Included(&from))
    }

    fn seek_for_prev(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        if !self.upper.is_empty() && key >= self.upper.as_ref() {
            return self.seek_to_last();
        }
        self.backward(Bound::Included(key))
    }

    fn seek_to_first(&mut self) -> Result<bool, EngineError> {
        let lower = self.lower.clone();
        self.forward(Bound::Included(&lower))
    }

    fn seek_to_last(&mut self) -> Result<bool, EngineError> {
        let upper = self.upper.clone();
        self.backward(if upper.is_empty() { Bound::Unbounded } else { Bound::Excluded(&upper) })
    }

    fn next(&mut self) -> Result<bool, EngineError> {
        let Some((key, _)) = self.at else { return Ok(false) };
        self.forward(Bound::Excluded(key))
    }

    fn prev(&mut self) -> Result<bool, EngineError> {
        let Some((key, _)) = self.at else { return Ok(false) };
        self.backward(Bound::Excluded(key))
    }

    fn key(&self) -> &[u8] {
        self.at.expect("the cursor stands on a record").0
    }

    fn value(&self) -> &[u8] {
        self.at.expect("the cursor stands on a record").1
    }
}
