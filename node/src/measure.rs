//! How large are the regions led here? Measured a few at a time, so that a store with many regions does not stall over it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::{Cf, KeyRange, LogIndex, Region, RegionId};
use raftstore::{
    ReplicaStatus, StoreHandle,
    engine::{Engine, EngineError},
};

/// Regions measured at a time, those first that were not for longest: some milliseconds of work.
const AT_A_TIME: usize = 16;
/// Records looked at to know how large one is.
const RECORDS: u64 = 64;
/// The engine's estimate leaves out what it has not written to a file yet, so regions that seem smaller than this are read
/// up to it.
const READ_BYTES: u64 = 512 << 10;

/// A region's size when it was last measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// On disk, roughly.
    pub bytes: u64,
    /// Records, from the size of the first few, roughly.
    pub keys: u64,
    /// The state that was measured.
    applied: LogIndex,
    version: u64,
    /// When, in rounds.
    round: u64,
}

#[derive(Default)]
struct State {
    round: u64,
    sizes: BTreeMap<RegionId, Size>,
}

/// The sizes of a store's regions.
#[derive(Default)]
pub struct Sizes(Mutex<State>);

impl Sizes {
    /// One round: measures those of the led regions whose size is oldest, if anything was applied to them since. Whether
    /// more are left to measure.
    pub fn round(&self, store: &StoreHandle, engine: &dyn Engine, led: &[&ReplicaStatus]) -> bool {
        let mut state = self.0.lock();
        state.round += 1;
        let round = state.round;
        let here: BTreeSet<_> = led.iter().map(|r| r.view.region.id).collect();
        state.sizes.retain(|id, _| here.contains(id));
        let mut due: Vec<_> = led
            .iter()
            .filter_map(|r| {
                let (id, version) = (r.view.region.id, r.view.region.epoch.version);
                match state.sizes.get(&id) {
                    Some(s) if s.applied == r.applied && s.version == version => None,
                    known => Some((known.map_or(0, |s| s.round), r)),
                }
            })
            .collect();
        due.sort_by_key(|(measured, r)| (*measured, r.view.region.id));
        let more = due.len() > AT_A_TIME;
        for (_, replica) in due.into_iter().take(AT_A_TIME) {
            match measure(store, engine, &replica.view.region) {
                Ok((bytes, keys)) => {
                    let (applied, version) = (replica.applied, replica.view.region.epoch.version);
                    state.sizes.insert(replica.view.region.id, Size { bytes, keys, applied, version, round });
                }
                Err(error) => {
                    tracing::warn!(region = replica.view.region.id.0, %error, "a region could not be measured")
                }
            }
        }
        more
    }

    /// As last measured; nothing of a region that was not yet.
    pub fn of(&self, region: RegionId) -> Size {
        self.0.lock().sizes.get(&region).copied().unwrap_or_default()
    }
}

fn measure(store: &StoreHandle, engine: &dyn Engine, region: &Region) -> Result<(u64, u64), EngineError> {
    let bytes = store.approximate_bytes(region.id)?;
    let (mut records, mut seen, mut all) = (0, 0, true);
    walk(engine, &region.range, |_, size| {
        records += 1;
        seen += size;
        all = if bytes < READ_BYTES { seen < READ_BYTES } else { records < RECORDS };
        all
    })?;
    let keys = if all { records } else { bytes.max(seen).saturating_mul(records) / seen.max(1) };
    Ok((bytes.max(seen), keys))
}

/// Hands versions of the range to `next` in key order (their user key, their bytes) while it wants more.
fn walk(engine: &dyn Engine, range: &KeyRange, mut next: impl FnMut(&[u8], u64) -> bool) -> Result<(), EngineError> {
    let snapshot = engine.snapshot();
    let mut cursor = snapshot.cursor(Cf::Data, &range.start, &range.end);
    let mut more = cursor.seek_to_first()?;
    while more {
        let key = kv::codec::split_versioned(cursor.key()).map_or(cursor.key(), |(user, _)| user);
        let bytes = (cursor.key().len() + cursor.value().len()) as u64;
        if !next(key, bytes) {
            break;
        }
        more = cursor.next()?;
    }
    Ok(())
}

/// A page of a region's versions for a walk with pauses: user keys and bytes, from `from` on, and where to go on.
pub struct Page {
    /// (user key, bytes), in key order.
    pub records: Vec<(Bytes, u64)>,
    /// The first engine key that was not read; `None`: the end.
    pub resume: Option<Bytes>,
}

/// Bytes of a page: some milliseconds of reading.
const PAGE_BYTES: u64 = 1 << 20;

/// Reads a page.
pub fn page(engine: &dyn Engine, range: &KeyRange) -> Result<Page, EngineError> {
    let snapshot = engine.snapshot();
    let mut cursor = snapshot.cursor(Cf::Data, &range.start, &range.end);
    let (mut records, mut read) = (Vec::new(), 0);
    let mut more = cursor.seek_to_first()?;
    while more {
        if read >= PAGE_BYTES {
            return Ok(Page { records, resume: Some(Bytes::copy_from_slice(cursor.key())) });
        }
        let key = kv::codec::split_versioned(cursor.key()).map_or(cursor.key(), |(user, _)| user);
        let bytes = (cursor.key().len() + cursor.value().len()) as u64;
        records.push((Bytes::copy_from_slice(key), bytes));
        read += bytes;
        more = cursor.next()?;
    }
    Ok(Page { records, resume: None })
}
