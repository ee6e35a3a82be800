//! From what is on disk to replicas, and the first records of a new cluster.

use std::sync::Arc;

use proto::{Cf, LogIndex, PeerRole, Region, RegionId, StoreId};
use raft::eraftpb::{ConfState, HardState};
use tracing::info;

use crate::{
    config::StoreConfig,
    engine::{Engine, EngineError, Snapshot, WriteBatch, WriteOp},
    keys::{self, ApplyState, INITIAL},
    log::{LogBatch, LogEngine, LogError, LogState, RegionLog},
    region::{
        Replica,
        log_storage::{LogStorage, cache_share},
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

/// Writes the first records of those `regions` that have a peer on `store`; what is there already stays. Durable
/// when it returns. A crash in the middle only means that it has to be called again.
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
        if snapshot.get(Cf::Meta, &keys::region_key(region.id))?.is_some() {
            continue;
        }
        let hard_state = HardState { term: INITIAL.term.0, commit: INITIAL.index.0, ..HardState::default() };
        match log.load(region.id)? {
            Some(found) if found.last != INITIAL => {
                return Err(BootError::Damaged { region: region.id, why: "it has a log but no state".into() });
            }
            Some(_) => {}
            None => {
                let change =
                    RegionLog { hard_state: Some(hard_state), truncated: Some(INITIAL), ..RegionLog::default() };
                first.regions.push((region.id, change));
            }
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

/// All replicas of the store, from its state engine.
pub(super) fn replicas(
    config: &Arc<StoreConfig>,
    engine: &dyn Engine,
    log: &Arc<dyn LogEngine>,
) -> Result<Vec<Replica>, BootError> {
    let snapshot = engine.snapshot();
    let (first, end) = keys::region_keys();
    let mut cursor = snapshot.cursor(Cf::Meta, &first, &end);
    let mut regions = Vec::new();
    let mut on = cursor.seek_to_first()?;
    while on {
        regions.push(keys::decode_region(cursor.value()).map_err(|e| EngineError::Corrupt(e.to_string()))?);
        on = cursor.next()?;
    }
    let cache_bytes = cache_share(regions.len());
    regions.into_iter().map(|region| replica(config, &*snapshot, log, Arc::new(region), cache_bytes)).collect()
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
    let apply = snapshot.get(Cf::Meta, &keys::apply_key(region.id))?;
    let apply = apply.ok_or_else(|| damaged("it has no apply state".into()))?;
    let apply = keys::decode_apply(&apply).map_err(|e| EngineError::Corrupt(e.to_string()))?;
    let found = log.load(region.id)?.ok_or_else(|| damaged("it has no log".into()))?;
    let commit = check_log(&found, &apply).map_err(damaged)?;
    let fresh = found.hard_state.term == INITIAL.term.0;
    info!(
        region = region.id.0,
        peer = peer.id.0,
        term = found.hard_state.term,
        applied = apply.applied.index.0,
        commit = commit.0,
        last = found.last.index.0,
        "replica found"
    );
    let storage = LogStorage::new(region.id, log.clone(), found, commit, conf_state(&region), cache_bytes);
    Replica::new(config.clone(), region.clone(), peer, storage, apply.applied, fresh)
        .map_err(|e| damaged(e.to_string()))
}

/// Whether log and state fit together; the commit index to start with. raft-rs panics on what is refused here.
fn check_log(log: &LogState, apply: &ApplyState) -> Result<LogIndex, String> {
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

fn conf_state(region: &Region) -> ConfState {
    let of = |roles: &[PeerRole]| region.peers.iter().filter(|p| roles.contains(&p.role)).map(|p| p.id.0).collect();
    let joint = region.peers.iter().any(|p| matches!(p.role, PeerRole::IncomingVoter | PeerRole::DemotingVoter));
    ConfState {
        voters: of(&[PeerRole::Voter, PeerRole::IncomingVoter]),
        learners: of(&[PeerRole::Learner]),
        voters_outgoing: if joint { of(&[PeerRole::Voter, PeerRole::DemotingVoter]) } else { Vec::new() },
        learners_next: of(&[PeerRole::DemotingVoter]),
        ..ConfState::default()
    }
}
