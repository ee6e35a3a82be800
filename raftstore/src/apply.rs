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

#[cfg(test)]
mod tests {
    use proto::{Batch, KeyRange, Peer, PeerId, PeerRole, RegionId, StoreId};

    use super::*;
    use crate::{StoreConfig, engine::memory::MemoryEngine};

    fn region() -> Region {
        Region {
            id: RegionId(1),
            range: KeyRange::new("b", "m"),
            epoch: Epoch { conf_ver: 1, version: 3 },
            peers: vec![Peer { id: PeerId(1), store: StoreId(1), role: PeerRole::Voter }],
        }
    }

    fn entry(index: u64, term: u64, batches: Vec<(Epoch, Batch)>) -> Entry {
        let proposals = batches
            .into_iter()
            .map(|(epoch, batch)| wire::Proposal { epoch: Some(epoch.into()), term, ops: batch.ops })
            .collect();
        let data = wire::Command { format: COMMAND_FORMAT, proposals }.encode_to_vec();
        Entry { index, term, data: data.into(), ..Entry::default() }
    }

    fn batch(build: impl FnOnce(&mut Batch)) -> Batch {
        let mut batch = Batch::default();
        build(&mut batch);
        batch
    }

    fn put(key: &'static str, value: &'static str) -> Batch {
        batch(|b| b.put(Cf::Data, key.into(), value.into()))
    }

    struct Bed {
        engine: Arc<MemoryEngine>,
        applier: Applier,
    }

    impl Bed {
        fn new() -> Self {
            let engine = Arc::new(MemoryEngine::new());
            let applier = Applier::new(engine.clone(), &StoreConfig::new(StoreId(1), 1));
            Bed { engine, applier }
        }
        fn apply(&self, entries: Vec<Entry>) -> Result<Applied, EngineError> {
            let task = ApplyTask { region: Arc::new(region()), entries };
            self.applier.run(vec![task]).map(|mut applied| applied.remove(0))
        }
        fn get(&self, cf: Cf, key: &str) -> Option<String> {
            let value = self.engine.snapshot().get(cf, key.as_bytes()).unwrap();
            value.map(|v| String::from_utf8(v.to_vec()).unwrap())
        }
        fn applied(&self) -> Option<u64> {
            let state = self.engine.snapshot().get(Cf::Meta, &keys::apply_key(RegionId(1))).unwrap()?;
            Some(keys::decode_apply(&state).unwrap().applied.index.0)
        }
    }

    #[test]
    fn data_and_apply_state_come_together() {
        let bed = Bed::new();
        let epoch = region().epoch;
        let no_op = Entry { index: 6, term: 6, ..Entry::default() };
        let entries = vec![no_op, entry(7, 6, vec![(epoch, put("c", "1")), (epoch, put("d", "2"))])];
        let applied = bed.apply(entries).unwrap();
        assert_eq!(applied.position, Position { index: LogIndex(7), term: Term(6) });
        assert_eq!(applied.outcomes.iter().map(|o| o.proposals.len()).collect::<Vec<_>>(), [0, 2]);
        assert_eq!((bed.get(Cf::Data, "c"), bed.get(Cf::Data, "d")), (Some("1".into()), Some("2".into())));
        assert_eq!(bed.applied(), Some(7));
    }

    #[test]
    fn refused_proposals_have_no_effect_and_others_of_the_entry_do() {
        let bed = Bed::new();
        let (now, old) = (region().epoch, Epoch { conf_ver: 1, version: 2 });
        let meta = batch(|b| b.put(Cf::Meta, "c".into(), "x".into()));
        let wide = batch(|b| b.delete_range(Cf::Data, "c".into(), Bytes::new()));
        let proposals =
            vec![(old, put("c", "1")), (now, put("z", "1")), (now, meta), (now, wide), (now, put("d", "2"))];
        let applied = bed.apply(vec![entry(6, 6, proposals)]).unwrap();
        let ok: Vec<_> = applied.outcomes[0].proposals.iter().map(Result::is_ok).collect();
        assert_eq!(ok, [false, false, false, false, true]);
        assert_eq!((bed.get(Cf::Data, "c"), bed.get(Cf::Meta, "c")), (None, None));
        assert_eq!(bed.get(Cf::Data, "d"), Some("2".into()));
        let mut stale = entry(7, 6, vec![(now, put("e", "1"))]);
        stale.term = 7;
        assert!(bed.apply(vec![stale]).unwrap().outcomes[0].proposals[0].is_err(), "proposed in another term");
    }

    #[test]
    fn a_move_sees_what_came_before_it_in_the_same_round() {
        let bed = Bed::new();
        let epoch = region().epoch;
        let lock = batch(|b| b.put(Cf::Lock, "c".into(), "headvalue".into()));
        let commit =
            |to: &'static str| batch(|b| b.move_value((Cf::Lock, "c".into()), 4, (Cf::Data, to.into()), ">".into()));
        bed.apply(vec![entry(6, 6, vec![(epoch, lock.clone())])]).unwrap();
        bed.apply(vec![entry(7, 6, vec![(epoch, commit("d"))])]).unwrap();
        assert_eq!((bed.get(Cf::Data, "d"), bed.get(Cf::Lock, "c")), (Some(">value".into()), None));
        // Lock, commit, lock again and commit again, all in one round.
        let twice = vec![(epoch, lock.clone()), (epoch, commit("e")), (epoch, lock), (epoch, commit("f"))];
        bed.apply(vec![entry(8, 6, twice)]).unwrap();
        assert_eq!((bed.get(Cf::Data, "e"), bed.get(Cf::Data, "f")), (Some(">value".into()), Some(">value".into())));
    }

    #[test]
    fn what_can_not_be_applied_stops_the_store() {
        let epoch = region().epoch;
        let missing = batch(|b| b.move_value((Cf::Lock, "c".into()), 4, (Cf::Data, "d".into()), "".into()));
        let mut unknown_format = entry(6, 6, vec![]);
        unknown_format.data =
            wire::Command { format: 99, proposals: vec![wire::Proposal::default()] }.encode_to_vec().into();
        let mut conf_change = Entry { index: 6, term: 6, ..Entry::default() };
        conf_change.set_entry_type(EntryType::EntryConfChangeV2);
        let deleted = batch(|b| {
            b.put(Cf::Lock, "c".into(), "headvalue".into());
            b.delete_range(Cf::Lock, "b".into(), "d".into());
            b.move_value((Cf::Lock, "c".into()), 4, (Cf::Data, "d".into()), "".into());
        });
        let garbage = Entry { index: 6, term: 6, data: vec![0xff; 9].into(), ..Entry::default() };
        let hopeless = [
            entry(6, 6, vec![(epoch, missing)]),
            unknown_format,
            conf_change,
            entry(6, 6, vec![(epoch, deleted)]),
            garbage,
        ];
        for entry in hopeless {
            let bed = Bed::new();
            let error = bed.apply(vec![entry]).unwrap_err();
            assert!(matches!(&error, EngineError::Corrupt(why) if why.contains("entry 6 of region 1")), "{error}");
            assert_eq!(bed.applied(), None);
        }
    }
}
