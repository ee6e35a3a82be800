//! Committed entries into the state: one engine batch a round, with the data and how far it is applied.
//!
//! A refusal here (epoch) has no effect and is the same on every replica, because it depends on nothing but the log
//! and the state. Anything else that goes wrong is not deterministic or means that something is corrupt: the store stops.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use proto::{
    Cf, Epoch, LogIndex, Region, Term,
    wire::{self, RegionError, op::Kind},
};
use raft::eraftpb::{Entry, EntryType};

use crate::{
    config::Planted,
    effect::{Applied, ApplyTask, EntryOutcome},
    engine::{Engine, EngineError, Snapshot, WriteBatch, WriteOp},
    keys::{self, ApplyState, COMMAND_FORMAT},
    log::Position,
};

/// Applies the committed entries of all regions of a store.
pub struct Applier {
    engine: Arc<dyn Engine>,
    torn: bool,
}

impl Applier {
    /// An applier that writes to `engine`.
    pub fn new(engine: Arc<dyn Engine>, config: &crate::StoreConfig) -> Self {
        Applier { engine, torn: config.has(Planted::TornApply) }
    }

    /// Applies tasks in one batch. An error means that the store must stop.
    pub fn run(&self, tasks: Vec<ApplyTask>) -> Result<Vec<Applied>, EngineError> {
        let mut round = Round::new(&*self.engine);
        let applied = tasks.iter().map(|task| round.task(task)).collect::<Result<Vec<_>, _>>()?;
        let mut batch = WriteBatch { ops: round.ops };
        if self.torn {
            let is_state = |op: &WriteOp| matches!(op, WriteOp::Put(Cf::Meta, ..));
            let (state, data) = batch.ops.into_iter().partition(is_state);
            self.engine.write(WriteBatch { ops: state })?;
            batch = WriteBatch { ops: data };
        }
        self.engine.write(batch)?;
        Ok(applied)
    }
}

/// One batch in the making.
struct Round<'a> {
    engine: &'a dyn Engine,
    /// The state before this round; made when the first move needs it.
    before: OnceLock<Arc<dyn Snapshot>>,
    ops: Vec<WriteOp>,
    /// Values as of `ops[..seen]`; kept up only once there are moves.
    pending: HashMap<(Cf, Bytes), Option<Bytes>>,
    seen: usize,
}

impl<'a> Round<'a> {
    fn new(engine: &'a dyn Engine) -> Self {
        Round { engine, before: OnceLock::new(), ops: Vec::new(), pending: HashMap::new(), seen: 0 }
    }

    fn task(&mut self, task: &ApplyTask) -> Result<Applied, EngineError> {
        let outcomes = task.entries.iter().map(|e| self.entry(&task.region, e)).collect::<Result<Vec<_>, _>>()?;
        let position = outcomes.last().expect("a task has entries").position;
        // The commit index on disk must not be ahead of the log on disk; what is applied was synced there.
        let state = ApplyState { applied: position, commit: position.index };
        self.ops.push(WriteOp::Put(Cf::Meta, keys::apply_key(task.region.id), keys::encode_apply(state)));
        Ok(Applied { region: task.region.id, position, outcomes })
    }

    fn entry(&mut self, region: &Region, entry: &Entry) -> Result<EntryOutcome, EngineError> {
        let position = Position { index: LogIndex(entry.index), term: Term(entry.term) };
        let corrupt = |why: String| {
            EngineError::Corrupt(format!(
                "entry {} of region {} (term {}): {why}",
                entry.index, region.id.0, entry.term
            ))
        };
        if entry.get_entry_type() != EntryType::EntryNormal {
            return Err(corrupt("a membership change, which this version does not know".into()));
        }
        if entry.data.is_empty() {
            return Ok(EntryOutcome { position, proposals: Vec::new() });
        }
        let command = wire::Command::decode(entry.data.clone()).map_err(|e| corrupt(e.to_string()))?;
        if command.format != COMMAND_FORMAT {
            return Err(corrupt(format!("format {}, this version knows {COMMAND_FORMAT}", command.format)));
        }
        let mut proposals = Vec::with_capacity(command.proposals.len());
        for proposal in command.proposals {
            proposals.push(match check(region, position, &proposal) {
                Err(refusal) => Err(refusal),
                Ok(()) => {
                    for op in proposal.ops {
                        self.op(op).map_err(|e| match e {
                            EngineError::Corrupt(why) => corrupt(why),
                            other => other,
                        })?;
                    }
                    Ok(())
                }
            });
        }
        Ok(EntryOutcome { position, proposals })
    }

    fn op(&mut self, op: wire::Op) -> Result<(), EngineError> {
        let known =
            |cf: i32| Cf::try_from(cf).map_err(|_| EngineError::Corrupt(format!("column family {cf} is not known")));
        match op.kind {
            Some(Kind::Put(put)) => self.ops.push(WriteOp::Put(known(put.cf)?, put.key, put.value)),
            Some(Kind::Delete(delete)) => self.ops.push(WriteOp::Delete(known(delete.cf)?, delete.key)),
            Some(Kind::DeleteRange(range)) => {
                self.ops.push(WriteOp::DeleteRange(known(range.cf)?, range.start_key, range.end_key));
            }
            Some(Kind::Move(m)) => {
                let (from, to) = ((known(m.from_cf)?, m.from_key), (known(m.to_cf)?, m.to_key));
                let value = self.value(&from)?;
                let value = value.ok_or_else(|| EngineError::Corrupt("a move of a value that is not there".into()))?;
                let offset = usize::try_from(m.offset).unwrap_or(usize::MAX);
                let rest = value
                    .get(offset..)
                    .ok_or_else(|| EngineError::Corrupt("a move of a value that is too short".into()))?;
                let mut moved = BytesMut::with_capacity(m.prefix.len() + rest.len());
                moved.put_slice(&m.prefix);
                moved.put_slice(rest);
                self.ops.push(WriteOp::Delete(from.0, from.1));
                self.ops.push(WriteOp::Put(to.0, to.1, moved.freeze()));
            }
            None => return Err(EngineError::Corrupt("an operation that this version does not know".into())),
        }
        Ok(())
    }

    /// The value of a key as of the operations so far.
    fn value(&mut self, key: &(Cf, Bytes)) -> Result<Option<Bytes>, EngineError> {
        for op in &self.ops[self.seen..] {
            match op {
                WriteOp::Put(cf, k, v) => {
                    self.pending.insert((*cf, k.clone()), Some(v.clone()));
                }
                WriteOp::Delete(cf, k) => {
                    self.pending.insert((*cf, k.clone()), None);
                }
                WriteOp::DeleteRange(cf, start, end) => {
                    // Keys of the range that are only in the engine: see `range_deleted`.
                    self.pending
                        .iter_mut()
                        .filter(|((c, k), _)| c == cf && k >= start && (end.is_empty() || k < end))
                        .for_each(|(_, v)| *v = None);
                }
            }
        }
        self.seen = self.ops.len();
        if let Some(value) = self.pending.get(key) {
            return Ok(value.clone());
        }
        if self.range_deleted(key) {
            return Ok(None);
        }
        self.before.get_or_init(|| self.engine.snapshot()).get(key.0, &key.1)
    }

    /// Whether this round deletes a range with the key, which it did not put itself.
    fn range_deleted(&self, (cf, key): &(Cf, Bytes)) -> bool {
        self.ops.iter().any(|op| match op {
            WriteOp::DeleteRange(c, start, end) => c == cf && start <= key && (end.is_empty() || key < end),
            _ => false,
        })
    }
}

/// What of a proposal is checked again when its entry is applied.
fn check(region: &Region, position: Position, proposal: &wire::Proposal) -> Result<(), RegionError> {
    if proposal.term != position.term.0 {
        return Err(RegionError::stale_command());
    }
    if proposal.epoch.map(Epoch::from) != Some(region.epoch) {
        return Err(RegionError::epoch_mismatch(&[region]));
    }
    check_keys(region, &proposal.ops)
}

/// Whether all operations stay inside the region and off the store's own records.
pub(crate) fn check_keys(region: &Region, ops: &[wire::Op]) -> Result<(), RegionError> {
    let key_in = |cf: i32, key: &[u8]| {
        let users = cf == Cf::Data as i32 || cf == Cf::Lock as i32;
        if users && region.range.contains(key) { Ok(()) } else { Err(RegionError::key_not_in_region(key, region)) }
    };
    for op in ops {
        match &op.kind {
            Some(Kind::Put(put)) => key_in(put.cf, &put.key)?,
            Some(Kind::Delete(delete)) => key_in(delete.cf, &delete.key)?,
            Some(Kind::DeleteRange(range)) => {
                key_in(range.cf, &range.start_key)?;
                let ends = !range.end_key.is_empty() || region.range.end.is_empty();
                let inside = region.range.end.is_empty() || range.end_key <= region.range.end;
                if !ends || !inside {
                    return Err(RegionError::key_not_in_region(&range.end_key, region));
                }
            }
            Some(Kind::Move(m)) => {
                key_in(m.from_cf, &m.from_key)?;
                key_in(m.to_cf, &m.to_key)?;
            }
            None => {
                return Err(RegionError {
                    kind: None,
                    message: "an operation of a kind this version does not know".into(),
                });
            }
        }
    }
    Ok(())
}
