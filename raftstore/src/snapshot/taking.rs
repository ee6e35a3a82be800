//! A received snapshot becomes a region's state, in steps between which the store may die.
//!
//! ```text
//!  mark      marker in `meta`, synced          from here on boot starts again with the next step
//!  cut       the region's log begins behind the snapshot, with its hard state; synced
//!  replace   one family after another: old records go, parts are ingested
//!  settle    region state, apply state, marker gone: one batch, synced
//!  purge     the folder goes
//! ```
//!
//! Replicas whose regions were merged into this one, by entries that the snapshot holds, end in `settle`: sooner, the old
//! state would lack what its log tells it to take over; later, two replicas would hold the same keys.
//!
//! The marker comes before the log is cut, because state older than the log's beginning can't be brought up by it; the
//! log is cut before the apply state says so, because what is applied must not be ahead of the log.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use proto::{Cf, Epoch, KeyRange, LogIndex, PeerId, Region, RegionId, Term, wire};
use protobuf::Message as _;
use raft::eraftpb::HardState;
use tracing::{info, warn};

use super::content::{Content, from_wire, to_wire};
use crate::{
    apply::burial,
    engine::{Engine, EngineError, PART_FAMILIES, WriteBatch, WriteOp, check_parts},
    keys::{self, ApplyState, Tombstone},
    log::{LogBatch, LogEngine, LogError, Position, RegionLog},
    region::merge::Merges,
    store::BootError,
};

/// A snapshot whose files are here, to become a region's state.
#[derive(Clone, Debug, PartialEq)]
pub struct TakeTask {
    /// What it is.
    pub content: Content,
    /// Term and vote of the replica; its commit index is the snapshot's.
    pub hard_state: HardState,
    /// Where the parts are.
    pub folder: String,
    /// Whose records go first.
    pub cleared: Vec<KeyRange>,
    /// The replicas that end with it.
    pub merged_away: Vec<MergedAway>,
}

/// A replica whose region was merged into another one by an entry that a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergedAway {
    /// The source.
    pub region: RegionId,
    /// What stays of it; says into what it was merged.
    pub tombstone: Tombstone,
}

/// It could not be taken; the store stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TakeError {
    /// The state.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl From<TakeError> for BootError {
    fn from(error: TakeError) -> Self {
        match error {
            TakeError::Engine(e) => BootError::Engine(e),
            TakeError::Log(e) => BootError::Log(e),
        }
    }
}

fn encode_marker(task: &TakeTask) -> Bytes {
    let Content { position, region, merges, parts } = &task.content;
    let marker = wire::SnapshotMarker {
        content: Some(to_wire(region, merges, parts)),
        index: position.index.0,
        term: position.term.0,
        hard_state: task.hard_state.write_to_bytes().expect("three numbers").into(),
        folder: task.folder.clone(),
        cleared: task.cleared.iter().map(Into::into).collect(),
        merged_away: task.merged_away.iter().map(encode_merged_away).collect(),
    };
    let mut value = BytesMut::with_capacity(1 + marker.encoded_len());
    value.put_u8(keys::VERSION);
    marker.encode(&mut value).expect("a buffer grows");
    value.freeze()
}

fn encode_merged_away(away: &MergedAway) -> wire::MergedAway {
    let (target, version) = away.tombstone.merged.unwrap_or_default();
    wire::MergedAway {
        region_id: away.region.0,
        peer_id: away.tombstone.peer.0,
        epoch: Some(away.tombstone.epoch.into()),
        target_id: target.0,
        target_version: version,
    }
}

fn decode_merged_away(away: wire::MergedAway) -> MergedAway {
    let epoch = away.epoch.map(Epoch::from).unwrap_or_default();
    let merged = Some((RegionId(away.target_id), away.target_version));
    MergedAway { region: RegionId(away.region_id), tombstone: Tombstone { peer: PeerId(away.peer_id), epoch, merged } }
}

fn decode_marker(value: &[u8]) -> Result<TakeTask, EngineError> {
    let corrupt = |why: String| EngineError::Corrupt(format!("snapshot marker: {why}"));
    let Some((&keys::VERSION, body)) = value.split_first() else {
        return Err(corrupt(format!("version {:?}, this program knows {}", value.first(), keys::VERSION)));
    };
    let marker = wire::SnapshotMarker::decode(body).map_err(|e| corrupt(e.to_string()))?;
    let (region, merges, parts) = from_wire(marker.content.unwrap_or_default()).map_err(corrupt)?;
    let hard_state = HardState::parse_from_bytes(&marker.hard_state).map_err(|e| corrupt(e.to_string()))?;
    let position = Position { index: LogIndex(marker.index), term: Term(marker.term) };
    Ok(TakeTask {
        content: Content { position, region, merges, parts },
        hard_state,
        folder: marker.folder,
        cleared: marker.cleared.into_iter().map(Into::into).collect(),
        merged_away: marker.merged_away.into_iter().map(decode_merged_away).collect(),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Mark,
    Cut,
    Replace(usize),
    Settle,
    Purge,
}

/// A snapshot on its way into the state.
pub struct Taking {
    engine: Arc<dyn Engine>,
    log: Arc<dyn LogEngine>,
    task: TakeTask,
    next: Step,
}

impl Taking {
    /// Begins with the marker. `unmarked` is a planted bug's.
    pub(super) fn new(engine: Arc<dyn Engine>, log: Arc<dyn LogEngine>, task: TakeTask, unmarked: bool) -> Self {
        Taking { engine, log, task, next: if unmarked { Step::Cut } else { Step::Mark } }
    }

    /// Whose state.
    pub fn region(&self) -> RegionId {
        self.task.content.region.id
    }

    /// Does one step; whether it was the last. An error means that the store must stop.
    pub fn step(&mut self) -> Result<bool, TakeError> {
        let region = self.region();
        self.next = match self.next {
            Step::Mark => {
                let marker = WriteOp::Put(Cf::Meta, keys::snapshot_key(region), encode_marker(&self.task));
                self.write(vec![marker])?;
                self.engine.sync()?;
                Step::Cut
            }
            Step::Cut => {
                self.cut_log()?;
                Step::Replace(0)
            }
            Step::Replace(at) => {
                let cf = PART_FAMILIES[at];
                let clear = |r: &KeyRange| WriteOp::DeleteRange(cf, r.start.clone(), r.end.clone());
                self.write(self.task.cleared.iter().map(clear).collect())?;
                self.engine.ingest(&self.task.folder, &self.task.content.parts, cf)?;
                if at + 1 < PART_FAMILIES.len() { Step::Replace(at + 1) } else { Step::Settle }
            }
            Step::Settle => {
                self.settle()?;
                Step::Purge
            }
            Step::Purge => {
                self.engine.files().remove(&self.task.folder)?;
                return Ok(true);
            }
        };
        Ok(false)
    }

    fn write(&self, ops: Vec<WriteOp>) -> Result<(), EngineError> {
        self.engine.write(WriteBatch { ops })
    }

    fn cut_log(&self) -> Result<(), LogError> {
        let position = self.task.content.position;
        let hard_state = HardState { commit: position.index.0, ..self.task.hard_state.clone() };
        let change = RegionLog {
            removed: true,
            truncated: Some(position),
            hard_state: Some(hard_state),
            ..RegionLog::default()
        };
        self.log.write(LogBatch { regions: vec![(self.region(), change)] }, true)
    }

    fn settle(&self) -> Result<(), EngineError> {
        let Content { position, region, merges, .. } = &self.task.content;
        let apply = ApplyState { applied: *position, commit: position.index };
        let merges = match merges.is_empty() {
            true => WriteOp::Delete(Cf::Meta, keys::merges_key(region.id)),
            false => WriteOp::Put(Cf::Meta, keys::merges_key(region.id), keys::encode_merges(merges)),
        };
        let mut ops = vec![
            merges,
            WriteOp::Put(Cf::Meta, keys::region_key(region.id), keys::encode_region(region)),
            WriteOp::Put(Cf::Meta, keys::apply_key(region.id), keys::encode_apply(apply)),
            WriteOp::Delete(Cf::Meta, keys::snapshot_key(region.id)),
        ];
        for away in &self.task.merged_away {
            ops.extend(burial(away.region, away.tombstone));
        }
        self.write(ops)?;
        self.engine.sync()
    }
}

/// At boot, before any replica is made: snapshots whose marker stands are taken, and folders that nothing refers to go.
pub(crate) fn recover(engine: &Arc<dyn Engine>, log: &Arc<dyn LogEngine>) -> Result<(), BootError> {
    let snapshot = engine.snapshot();
    let (first, end) = keys::snapshot_keys();
    let mut cursor = snapshot.cursor(Cf::Meta, &first, &end);
    let mut on = cursor.seek_to_first()?;
    while on {
        let task = decode_marker(cursor.value())?;
        let Content { position, region, .. } = &task.content;
        info!(region = region.id.0, index = position.index.0, "a snapshot is taken again after a restart");
        check_parts(engine.files(), &task.folder, &task.content.parts)?;
        let mut taking = Taking { next: Step::Cut, ..Taking::new(engine.clone(), log.clone(), task, false) };
        while !taking.step()? {}
        on = cursor.next()?;
    }
    for folder in engine.files().folders()? {
        warn!(folder, "files of a snapshot that came to nothing are removed");
        engine.files().remove(&folder)?;
    }
    Ok(())
}

/// The region and its position as of an engine's view; the reason, when it is not there.
pub(super) fn state_of(
    snapshot: &dyn crate::engine::Snapshot,
    region: RegionId,
) -> Result<(Region, Position, Merges), String> {
    let get = |key: Bytes| {
        let value = snapshot.get(Cf::Meta, &key).map_err(|e| e.to_string())?;
        value.ok_or_else(|| format!("{region} is not here"))
    };
    let state = keys::decode_region(&get(keys::region_key(region))?).map_err(|e| e.to_string())?;
    let apply = keys::decode_apply(&get(keys::apply_key(region))?).map_err(|e| e.to_string())?;
    let merges = snapshot.get(Cf::Meta, &keys::merges_key(region)).map_err(|e| e.to_string())?;
    let merges = merges.map(|m| keys::decode_merges(&m)).transpose().map_err(|e| e.to_string())?;
    Ok((state, apply.applied, merges.unwrap_or_default()))
}
