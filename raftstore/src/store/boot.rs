//! From what is on disk to replicas, and the first records of a new cluster.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use proto::{Cf, LogIndex, Region, RegionId, StoreId};
use tracing::info;

use super::lifecycle::first_records;
use crate::{
    apply::destruction,
    config::StoreConfig,
    engine::{Engine, EngineError, Snapshot, WriteBatch, WriteOp},
    keys::{self, ApplyState, BadRecord, INITIAL, Tombstone},
    log::{LogBatch, LogEngine, LogError, LogState, RegionLog},
    region::{
        Replica,
        log_storage::{LogStorage, cache_share},
        membership,
    },
};

/// The store can't start with what it found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// The state engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The records contradict each other.
    #[error("region {}: {why}; the data directory is damaged or mixed up", region.0)]
    Damaged {
        /// Whose.
        region: RegionId,
        /// What does not fit.
        why: String,
    },
}

/// Writes the first records of those `regions` that have a peer on `store`; what is there already stays, and what was
/// destroyed stays away: its peer is no member any more, and would elect itself out of the past. Durable when it
/// returns. A crash in the middle only means that it has to be called again.
pub fn bootstrap(
    engine: &dyn Engine,
    log: &dyn LogEngine,
    store: StoreId,
    regions: &[Region],
) -> Result<(), BootError> {
    let snapshot = engine.snapshot();
    let mut state = WriteBatch::default();
    let mut first = LogBatch::default();
    for region in regions.iter().filter(|r| r.peer_on(store).is_some()) {
        // It is here, it was destroyed, or a snapshot of it is being taken.
        let known = |key: Bytes| Ok::<_, EngineError>(snapshot.get(Cf::Meta, &key)?.is_some());
        let (here, destroyed) = (known(keys::region_key(region.id))?, known(keys::tombstone_key(region.id))?);
        if here || destroyed || known(keys::snapshot_key(region.id))? {
            continue;
        }
        match log.load(region.id)? {
            Some(found) if found.last != INITIAL => {
                return Err(BootError::Damaged { region: region.id, why: "it has a log but no state".into() });
            }
            Some(_) => {}
            None => first.regions.push((region.id, first_records())),
        }
        let apply = ApplyState { applied: INITIAL, commit: INITIAL.index };
        state.ops.push(WriteOp::Put(Cf::Meta, keys::region_key(region.id), keys::encode_region(region)));
        state.ops.push(WriteOp::Put(Cf::Meta, keys::apply_key(region.id), keys::encode_apply(apply)));
    }
    if !first.is_empty() {
        log.write(first, true)?;
    }
    if !state.ops.is_empty() {
        info!(store = store.0, regions = state.ops.len() / 2, "the first regions are written");
        engine.write(state)?;
        engine.sync()?;
    }
    Ok(())
}

/// All replicas of the store, from its state engine, and what is known of those that were here.
pub(super) fn replicas(
    config: &Arc<StoreConfig>,
    engine: &dyn Engine,
    log: &Arc<dyn LogEngine>,
) -> Result<(Vec<Replica>, BTreeMap<RegionId, Tombstone>), BootError> {
    let snapshot = engine.snapshot();
    let mut regions = Vec::new();
    each(&*snapshot, keys::region_keys(), |_, value| {
        regions.push(keys::decode_region(value)?);
        Ok(())
    })?;
    let mut tombstones = BTreeMap::new();
    each(&*snapshot, keys::tombstone_keys(), |key, value| {
        tombstones.insert(keys::region_of_key(key)?, keys::decode_tombstone(value)?);
        Ok(())
    })?;
    let (regions, left): (Vec<_>, Vec<_>) = regions.into_iter().partition(|r| r.peer_on(config.store).is_some());
    bury(engine, &left, &mut tombstones)?;
    check_borders(&regions)?;
    mend_logs(&**log, &*snapshot, &regions, &tombstones)?;
    let cache_bytes = cache_share(regions.len());
    let replicas = regions.into_iter().map(|region| replica(config, &*snapshot, log, Arc::new(region), cache_bytes));
    Ok((replicas.collect::<Result<_, _>>()?, tombstones))
}

/// One key, one region: with two, the end of one replica would take the other's data along.
fn check_borders(regions: &[Region]) -> Result<(), BootError> {
    let mut sorted: Vec<_> = regions.iter().collect();
    sorted.sort_by(|a, b| a.range.start.cmp(&b.range.start));
    match sorted.windows(2).find(|w| w[0].range.end.is_empty() || w[0].range.end > w[1].range.start) {
        Some(w) => Err(BootError::Damaged { region: w[1].id, why: format!("{} covers some of its keys", w[0].id) }),
        None => Ok(()),
    }
}

pub(super) fn each(
    snapshot: &dyn Snapshot,
    (first, end): (Bytes, Bytes),
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), BadRecord>,
) -> Result<(), EngineError> {
    let mut cursor = snapshot.cursor(Cf::Meta, &first, &end);
    let mut on = cursor.seek_to_first()?;
    while on {
        take(cursor.key(), cursor.value()).map_err(|e| EngineError::Corrupt(e.to_string()))?;
        on = cursor.next()?;
    }
    Ok(())
}

/// Regions whose last applied entry removed this store, and the crash came before the rest: their state goes now.
fn bury(
    engine: &dyn Engine,
    left: &[Region],
    tombstones: &mut BTreeMap<RegionId, Tombstone>,
) -> Result<(), EngineError> {
    let mut batch = WriteBatch::default();
    for region in left {
        // The peer's own id went with the membership: whoever comes here later has one above all that were known.
        let highest = region.peers.iter().map(|p| p.id).max().unwrap_or_default();
        let tombstone = Tombstone { peer: highest, epoch: region.epoch, merged: None };
        info!(region = region.id.0, "a replica that was removed is destroyed");
        batch.ops.extend(destruction(region, tombstone));
        tombstones.insert(region.id, tombstone);
    }
    if batch.ops.is_empty() {
        return Ok(());
    }
    engine.write(batch)?;
    engine.sync()
}

/// Where a crash came between the state and the log: a region that was split off gets its first records, the log of a
/// destroyed replica goes.
fn mend_logs(
    log: &dyn LogEngine,
    snapshot: &dyn Snapshot,
    regions: &[Region],
    tombstones: &BTreeMap<RegionId, Tombstone>,
) -> Result<(), BootError> {
    let mut batch = LogBatch::default();
    for region in regions {
        if log.load(region.id)?.is_none() && apply_state(snapshot, region.id)?.is_some_and(|a| a.applied == INITIAL) {
            info!(region = region.id.0, "a region that was split off gets its log");
            batch.regions.push((region.id, first_records()));
        }
    }
    for region in tombstones.keys().filter(|buried| !regions.iter().any(|r| r.id == **buried)) {
        if log.load(*region)?.is_some() {
            batch.regions.push((*region, RegionLog { removed: true, ..RegionLog::default() }));
        }
    }
    if batch.is_empty() { Ok(()) } else { Ok(log.write(batch, true)?) }
}

pub(super) fn apply_state(snapshot: &dyn Snapshot, region: RegionId) -> Result<Option<ApplyState>, EngineError> {
    let value = snapshot.get(Cf::Meta, &keys::apply_key(region))?;
    value.map(|v| keys::decode_apply(&v)).transpose().map_err(|e| EngineError::Corrupt(e.to_string()))
}

fn replica(
    config: &Arc<StoreConfig>,
    snapshot: &dyn Snapshot,
    log: &Arc<dyn LogEngine>,
    region: Arc<Region>,
    cache_bytes: usize,
) -> Result<Replica, BootError> {
    let damaged = |why: String| BootError::Damaged { region: region.id, why };
    let peer =
        region.peer_on(config.store).ok_or_else(|| damaged(format!("store {} has no peer in it", config.store.0)))?;
    let apply = apply_state(snapshot, region.id)?.ok_or_else(|| damaged("it has no apply state".into()))?;
    let found = log.load(region.id)?.ok_or_else(|| damaged("it has no log".into()))?;
    let commit = check_log(&found, &apply).map_err(damaged)?;
    info!(
        region = region.id.0,
        peer = peer.id.0,
        term = found.hard_state.term,
        applied = apply.applied.index.0,
        commit = commit.0,
        last = found.last.index.0,
        "replica found"
    );
    let storage = LogStorage::new(region.id, log.clone(), found, commit, membership::conf_state(&region), cache_bytes);
    let mut replica = Replica::new(config.clone(), region.clone(), peer, storage, apply.applied)
        .map_err(|e| damaged(e.to_string()))?;
    if let Some(merges) = snapshot.get(Cf::Meta, &keys::merges_key(region.id))? {
        replica.restore_merges(keys::decode_merges(&merges).map_err(|e| damaged(e.to_string()))?);
    }
    Ok(replica)
}

/// Whether log and state fit together; the commit index to start with. raft-rs panics on what is refused here.
pub(super) fn check_log(log: &LogState, apply: &ApplyState) -> Result<LogIndex, String> {
    let commit = apply.commit.0.max(log.hard_state.commit);
    if apply.applied.index < log.truncated.index {
        return Err(format!(
            "applied {} is behind the cut of the log at {}",
            apply.applied.index.0, log.truncated.index.0
        ));
    }
    if commit > log.last.index.0 {
        return Err(format!("{commit} is committed but the log ends at {}", log.last.index.0));
    }
    Ok(LogIndex(commit))
}

#[cfg(test)]
mod tests {
    use proto::{Epoch, KeyRange, Peer, PeerId, PeerRole};

    use super::*;
    use crate::{engine::memory::MemoryEngine, log::memory::MemoryLog};

    #[test]
    fn a_region_that_has_left_is_not_founded_again() {
        let (engine, log) = (MemoryEngine::default(), MemoryLog::default());
        let peer = Peer { id: PeerId(1), store: StoreId(1), role: PeerRole::Voter };
        let epoch = Epoch { conf_ver: 1, version: 1 };
        let region = Region { id: RegionId(7), range: KeyRange::default(), epoch, peers: vec![peer] };
        let found = || bootstrap(&engine, &log, StoreId(1), std::slice::from_ref(&region)).unwrap();
        let is_there = || engine.snapshot().get(Cf::Meta, &keys::region_key(region.id)).unwrap().is_some();
        found();
        assert!(is_there());
        engine
            .write(WriteBatch { ops: destruction(&region, Tombstone { peer: peer.id, epoch, merged: None }) })
            .unwrap();
        found();
        assert!(!is_there());
    }
}
