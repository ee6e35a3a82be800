//! Committed entries into the state: one engine batch a round, with the data and how far it is applied.
//!
//! A refusal here (epoch) has no effect and is the same on every replica, because it depends on nothing but the log
//! and the state. Anything else that goes wrong is not deterministic or means that something is corrupt: the store stops.
//!
//! The current region of a replica is known here first: an entry that changes it is seen by the next one, while the core
//! learns of it with [`Applied`] and may still send tasks that carry the region as it was.
//!
//! - `region_change`: entries that split the region or change its peers.
//! - `mark`: entries at which all replicas are compared.
//! - `merge`: entries by which two regions become one.
//! - `destroy`: what is left of a replica that is no peer any more.

mod destroy;
mod mark;
mod merge;
mod region_change;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, OnceLock},
};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message;
use proto::{
    Cf, Epoch, LogIndex, Region, RegionId, StoreId, Term,
    wire::{self, RegionError, op::Kind},
};
use raft::eraftpb::{Entry, EntryType};

use crate::{
    config::Planted,
    effect::{Applied, ApplyTask, ApplyWork, EntryOutcome, RegionChange},
    engine::{Engine, EngineError, Snapshot, WriteBatch, WriteOp},
    keys::{self, ApplyState, COMMAND_FORMAT},
    log::Position,
    verify::Marked,
};

pub(crate) use destroy::{burial, destruction};

/// Regions that the core does not know yet as they are, by what was applied. Few: the core catches up within a turn or two.
type Ahead = BTreeMap<RegionId, Arc<Region>>;

/// Applies the committed entries of all regions of a store.
pub struct Applier {
    engine: Arc<dyn Engine>,
    store: StoreId,
    ahead: Mutex<Ahead>,
    /// Views at marks that nobody has fetched yet.
    marked: Mutex<Vec<Marked>>,
    /// Regions that others have taken over here. What the core still sends of them changes nothing. Their ids are never
    /// used again, and few: one for each merge in the life of a process.
    absorbed: Mutex<BTreeSet<RegionId>>,
    torn: bool,
    trusts_any_epoch: bool,
    syncs_births: bool,
    marks_early: bool,
}

impl Applier {
    /// An applier that writes to `engine`.
    pub fn new(engine: Arc<dyn Engine>, config: &crate::StoreConfig) -> Self {
        Applier {
            engine,
            store: config.store,
            ahead: Mutex::default(),
            marked: Mutex::default(),
            absorbed: Mutex::default(),
            torn: config.has(Planted::TornApply),
            trusts_any_epoch: config.has(Planted::StaleEpoch),
            syncs_births: !config.has(Planted::SplitUnsynced),
            marks_early: config.has(Planted::EarlyMark),
        }
    }

    /// Applies tasks in one batch. An error means that the store must stop.
    pub fn run(&self, tasks: Vec<ApplyTask>) -> Result<Vec<Applied>, EngineError> {
        let mut ahead = self.ahead.lock();
        let mut absorbed = self.absorbed.lock();
        let mut round = Round::new(self, &mut ahead, &mut absorbed);
        let applied = tasks.into_iter().map(|task| round.task(task)).collect::<Result<Vec<_>, _>>()?;
        let (ops, marked) = (round.ops, round.marked);
        let mut batch = WriteBatch { ops };
        if self.torn {
            let is_state = |op: &WriteOp| matches!(op, WriteOp::Put(Cf::Meta, ..));
            let (state, data) = batch.ops.into_iter().partition(is_state);
            self.engine.write(WriteBatch { ops: state })?;
            batch = WriteBatch { ops: data };
        }
        self.engine.write(batch)?;
        if !marked.is_empty() {
            self.marked.lock().extend(marked);
        }
        // A tombstone is durable before the log goes: a log without one would be a voter that forgot its votes. And a region
        // that is split off is durable before its replica speaks: what it promised is in a log that begins now, and the
        // split may never be applied here again (a snapshot of the parent skips it).
        let to_be_durable = |done: &Applied| match done {
            Applied::Destroyed(_) => true,
            Applied::Entries { outcomes, .. } => self.syncs_births && outcomes.iter().any(gives_birth),
        };
        if applied.iter().any(to_be_durable) {
            self.engine.sync()?;
        }
        Ok(applied)
    }
}

fn gives_birth(outcome: &EntryOutcome) -> bool {
    matches!(&outcome.change, Some(Ok(RegionChange::Split { born, .. })) if !born.is_empty())
}

/// One batch in the making.
struct Round<'a> {
    engine: &'a dyn Engine,
    store: StoreId,
    ahead: &'a mut Ahead,
    absorbed: &'a mut BTreeSet<RegionId>,
    trusts_any_epoch: bool,
    marks_early: bool,
    /// The state before this round; made when the first move needs it.
    before: OnceLock<Arc<dyn Snapshot>>,
    ops: Vec<WriteOp>,
    /// Values as of `ops[..seen]`; kept up only once there are moves.
    pending: HashMap<(Cf, Bytes), Option<Bytes>>,
    seen: usize,
    /// Of the entry that is being applied.
    marks: Vec<u64>,
    marked: Vec<Marked>,
}

/// What is wrong with an entry.
fn corrupt(region: &Region, position: Position, why: impl std::fmt::Display) -> EngineError {
    let (index, term) = (position.index.0, position.term.0);
    EngineError::Corrupt(format!("entry {index} of region {} (term {term}): {why}", region.id.0))
}

impl<'a> Round<'a> {
    fn new(applier: &'a Applier, ahead: &'a mut Ahead, absorbed: &'a mut BTreeSet<RegionId>) -> Self {
        Round {
            engine: &*applier.engine,
            store: applier.store,
            ahead,
            absorbed,
            trusts_any_epoch: applier.trusts_any_epoch,
            marks_early: applier.marks_early,
            before: OnceLock::new(),
            ops: Vec::new(),
            pending: HashMap::new(),
            seen: 0,
            marks: Vec::new(),
            marked: Vec::new(),
        }
    }

    fn task(&mut self, task: ApplyTask) -> Result<Applied, EngineError> {
        let mut region = self.current(task.region);
        let entries = match task.work {
            ApplyWork::Entries(entries) => entries,
            ApplyWork::Destroy(tombstone) => {
                self.ahead.remove(&region.id);
                self.ops.extend(destruction(&region, tombstone));
                return Ok(Applied::Destroyed(region.id));
            }
        };
        if self.absorbed.contains(&region.id) {
            let last = entries.last().expect("a task has entries");
            let position = Position { index: LogIndex(last.index), term: Term(last.term) };
            return Ok(Applied::Entries { region: region.id, position, outcomes: Vec::new() });
        }
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in &entries {
            let outcome = self.entry(&mut region, entry)?;
            self.views(&region, outcome.position)?;
            outcomes.push(outcome);
        }
        let position = outcomes.last().expect("a task has entries").position;
        // The commit index on disk must not be ahead of the log on disk; what is applied was synced there.
        let state = ApplyState { applied: position, commit: position.index };
        self.ops.push(WriteOp::Put(Cf::Meta, keys::apply_key(region.id), keys::encode_apply(state)));
        Ok(Applied::Entries { region: region.id, position, outcomes })
    }

    /// The region as of what was applied. Epochs only grow along a log.
    fn current(&mut self, known: Arc<Region>) -> Arc<Region> {
        match self.ahead.get(&known.id) {
            Some(ahead) if ahead.epoch > known.epoch => ahead.clone(),
            Some(_) => {
                self.ahead.remove(&known.id);
                known
            }
            None => known,
        }
    }

    fn entry(&mut self, region: &mut Arc<Region>, entry: &Entry) -> Result<EntryOutcome, EngineError> {
        let position = Position { index: LogIndex(entry.index), term: Term(entry.term) };
        let mut outcome = EntryOutcome { position, proposals: Vec::new(), change: None };
        match entry.get_entry_type() {
            EntryType::EntryConfChangeV2 => outcome.change = Some(self.membership(region, position, entry)?),
            EntryType::EntryNormal if entry.data.is_empty() => {}
            EntryType::EntryNormal => self.command(region, entry, &mut outcome)?,
            EntryType::EntryConfChange => {
                return Err(corrupt(region, position, "a membership change of a kind that no version proposes"));
            }
        }
        Ok(outcome)
    }

    fn command(
        &mut self,
        region: &mut Arc<Region>,
        entry: &Entry,
        outcome: &mut EntryOutcome,
    ) -> Result<(), EngineError> {
        let position = outcome.position;
        let command = wire::Command::decode(entry.data.clone()).map_err(|e| corrupt(region, position, e))?;
        if command.format != COMMAND_FORMAT {
            let why = format!("format {}, this version knows {COMMAND_FORMAT}", command.format);
            return Err(corrupt(region, position, why));
        }
        for proposal in command.proposals {
            let checked = self.check(region, position, proposal.epoch, proposal.term);
            let keys = || if self.trusts_any_epoch { Ok(()) } else { check_keys(region, &proposal.ops) };
            outcome.proposals.push(match checked.and_then(|()| keys()) {
                Err(refusal) => Err(refusal),
                Ok(()) => {
                    for op in proposal.ops {
                        self.op(op).map_err(|e| match e {
                            EngineError::Corrupt(why) => corrupt(region, position, why),
                            other => other,
                        })?;
                    }
                    Ok(())
                }
            });
        }
        if let Some(change) = command.change {
            outcome.change = Some(self.change(region, position, change)?);
        }
        Ok(())
    }

    /// What of a proposal is checked again when its entry is applied.
    fn check(
        &self,
        region: &Region,
        position: Position,
        epoch: Option<wire::RegionEpoch>,
        term: u64,
    ) -> Result<(), RegionError> {
        if term != position.term.0 {
            return Err(RegionError::stale_command());
        }
        if epoch.map(Epoch::from) != Some(region.epoch) && !self.trusts_any_epoch {
            return Err(RegionError::epoch_mismatch(&[region]));
        }
        Ok(())
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
            Some(Kind::Mark(mark)) => self.marks.push(mark.id),
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
            Some(Kind::Mark(_)) => {}
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
    use proto::{Batch, KeyRange, Peer, PeerId, PeerRole};

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
        let data = wire::Command { format: COMMAND_FORMAT, proposals, change: None }.encode_to_vec();
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
            let task = ApplyTask { region: Arc::new(region()), work: ApplyWork::Entries(entries) };
            self.applier.run(vec![task]).map(|mut applied| applied.remove(0))
        }
        fn outcomes(&self, entries: Vec<Entry>) -> Vec<EntryOutcome> {
            match self.apply(entries).unwrap() {
                Applied::Entries { outcomes, .. } => outcomes,
                other => panic!("{other:?}"),
            }
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
        let outcomes = bed.outcomes(entries);
        assert_eq!(outcomes[1].position, Position { index: LogIndex(7), term: Term(6) });
        assert_eq!(outcomes.iter().map(|o| o.proposals.len()).collect::<Vec<_>>(), [0, 2]);
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
        let outcomes = bed.outcomes(vec![entry(6, 6, proposals)]);
        let ok: Vec<_> = outcomes[0].proposals.iter().map(Result::is_ok).collect();
        assert_eq!(ok, [false, false, false, false, true]);
        assert_eq!((bed.get(Cf::Data, "c"), bed.get(Cf::Meta, "c")), (None, None));
        assert_eq!(bed.get(Cf::Data, "d"), Some("2".into()));
        let mut stale = entry(7, 6, vec![(now, put("e", "1"))]);
        stale.term = 7;
        assert!(bed.outcomes(vec![stale])[0].proposals[0].is_err(), "proposed in another term");
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
        unknown_format.data = wire::Command { format: 99, proposals: vec![wire::Proposal::default()], change: None }
            .encode_to_vec()
            .into();
        let mut conf_change = Entry { index: 6, term: 6, ..Entry::default() };
        conf_change.set_entry_type(EntryType::EntryConfChange);
        let change = Some(wire::RegionChange { epoch: Some(epoch.into()), term: 6, kind: None });
        let mut unknown_change = entry(6, 6, vec![]);
        unknown_change.data =
            wire::Command { format: COMMAND_FORMAT, proposals: vec![], change }.encode_to_vec().into();
        let deleted = batch(|b| {
            b.put(Cf::Lock, "c".into(), "headvalue".into());
            b.delete_range(Cf::Lock, "b".into(), "d".into());
            b.move_value((Cf::Lock, "c".into()), 4, (Cf::Data, "d".into()), "".into());
        });
        let garbage = Entry { index: 6, term: 6, data: vec![0xff; 9].into(), ..Entry::default() };
        let hopeless = [
            entry(6, 6, vec![(epoch, missing)]),
            unknown_format,
            unknown_change,
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
