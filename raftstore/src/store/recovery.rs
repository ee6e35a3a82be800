//! A region that lost its quorum goes on with one replica alone: the surgery on a stopped store.
//!
//! ```text
//!   1  every entry of the log is applied, committed or not: with the old epoch, under which it was proposed
//!   2  term and commit index go up in the log                                              synced
//!   3  the region record names this peer alone, with an epoch above all that the lost knew  synced
//! ```
//!
//! The order is what makes it right. Entries check the epoch when they are applied: under the new one all of them would be
//! refused, acknowledged writes among them; and a membership change that still waited in the log would bring the lost peers
//! back. A crash between the steps leaves a member of the old region, and the steps are done again.
//!
//! Nobody calls this while a quorum lives, or might come back: entries that were never committed are now, and what only
//! the lost stores held is gone. Who decides that is a person, through `node`'s plan.

use std::sync::Arc;

use bytes::Bytes;
use proto::{Cf, KeyRange, LogIndex, Peer, PeerRole, Region, RegionId, StoreId, Term};
use tracing::warn;

use super::{
    boot::{BootError, apply_state, check_log, each},
    lifecycle::first_records,
};
use crate::{
    Applier, StoreConfig,
    effect::{ApplyTask, ApplyWork},
    engine::{Engine, EngineError, Snapshot, WriteBatch, WriteOp},
    keys::{self, INITIAL},
    log::{LogBatch, LogEngine, LogState, Position, RegionLog},
};

/// Bytes of entries that are applied at once.
const APPLY_BYTES: u64 = 8 << 20;

/// What a stopped store holds of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// As of what is applied.
    pub region: Region,
    /// The last applied entry.
    pub applied: Position,
    /// The last entry of the log.
    pub last: Position,
    /// The replica's term.
    pub term: Term,
    /// A snapshot is half taken: neither the old state nor the new one is whole.
    pub taking_snapshot: bool,
}

/// Above what a region that goes on alone begins, and what it keeps.
#[derive(Clone, Debug)]
pub struct Floor {
    /// Its epoch's count of membership changes.
    pub conf_ver: u64,
    /// Its term.
    pub term: Term,
    /// What it keeps of its range, and at least which version it has then; `None`: all.
    pub keeps: Option<(KeyRange, u64)>,
}

/// All that a stopped store holds, by region id. Changes nothing.
pub fn remains(engine: &dyn Engine, log: &dyn LogEngine) -> Result<Vec<Remains>, BootError> {
    let snapshot = engine.snapshot();
    let mut regions = Vec::new();
    each(&*snapshot, keys::region_keys(), |_, value| {
        regions.push(keys::decode_region(value)?);
        Ok(())
    })?;
    regions.into_iter().map(|region| one(&*snapshot, log, region)).collect()
}

fn one(snapshot: &dyn Snapshot, log: &dyn LogEngine, region: Region) -> Result<Remains, BootError> {
    let taking_snapshot = snapshot.get(Cf::Meta, &keys::snapshot_key(region.id))?.is_some();
    let applied = apply_state(snapshot, region.id)?.map_or(Position::default(), |a| a.applied);
    // A region that was split off just before the crash has no log yet.
    let log = log.load(region.id)?;
    let last = log.as_ref().map_or(INITIAL, |l| l.last);
    let term = Term(log.map_or(INITIAL.term.0, |l| l.hard_state.term));
    Ok(Remains { region, applied, last, term, taking_snapshot })
}

fn damaged(region: RegionId, why: impl Into<String>) -> BootError {
    BootError::Damaged { region, why: why.into() }
}

fn stored(engine: &dyn Engine, region: RegionId) -> Result<Region, BootError> {
    let value = engine.snapshot().get(Cf::Meta, &keys::region_key(region))?;
    let value = value.ok_or_else(|| damaged(region, "it is not here"))?;
    Ok(keys::decode_region(&value).map_err(|e| EngineError::Corrupt(e.to_string()))?)
}

/// Makes the peer of a stopped store the only one of its region; `also` goes into the same batch. Durable when it returns;
/// may be called again after a crash, and does nothing to a region that is alone above the floor already.
pub fn go_on_alone(
    engine: &Arc<dyn Engine>,
    log: &dyn LogEngine,
    store: StoreId,
    region: RegionId,
    floor: Floor,
    also: impl FnOnce(&dyn Snapshot) -> Result<Vec<WriteOp>, EngineError>,
) -> Result<Region, BootError> {
    let before = stored(&**engine, region)?;
    let peer = before.peer_on(store).ok_or_else(|| damaged(region, format!("{store} has no peer in it")))?;
    if before.peers.len() == 1 && before.epoch.conf_ver > floor.conf_ver {
        return Ok(before);
    }
    let last = apply_all(engine, log, store, &before)?;
    let mut now = stored(&**engine, region)?;
    now.epoch.conf_ver = now.epoch.conf_ver.max(floor.conf_ver) + 1;
    now.peers = vec![Peer { role: PeerRole::Voter, ..peer }];
    raise_term(log, region, floor.term, last)?;
    let mut ops = also(&*engine.snapshot())?;
    if let Some((range, version)) = floor.keeps {
        ops.extend(narrowed(&mut now, &range, version)?);
    }
    ops.push(WriteOp::Put(Cf::Meta, keys::region_key(region), keys::encode_region(&now)));
    engine.write(WriteBatch { ops })?;
    engine.sync()?;
    warn!(region = region.0, peer = peer.id.0, epoch = %now.epoch, last = last.0, "unsafe recovery: the region goes on with this replica alone");
    Ok(now)
}

/// The rest of its keys goes: they belong to newer regions, of which this replica has not heard.
fn narrowed(region: &mut Region, keeps: &KeyRange, version: u64) -> Result<Vec<WriteOp>, BootError> {
    let old = region.range.clone();
    let Some(range) = old.intersect(keeps) else {
        return Err(damaged(region.id, "nothing is left of what it should keep of its range"));
    };
    let mut ops = Vec::new();
    if range != old {
        let mut gone = |start: &Bytes, end: &Bytes| {
            let clear = |cf| WriteOp::DeleteRange(cf, start.clone(), end.clone());
            ops.extend([Cf::Data, Cf::Lock].map(clear));
        };
        if old.start < range.start {
            gone(&old.start, &range.start);
        }
        if !range.end.is_empty() && range.end != old.end {
            gone(&range.end, &old.end);
        }
    }
    region.epoch.version = region.epoch.version.max(version) + 1;
    region.range = range;
    Ok(ops)
}

/// Applies what the log holds; the index of the last entry.
fn apply_all(
    engine: &Arc<dyn Engine>,
    log: &dyn LogEngine,
    store: StoreId,
    region: &Region,
) -> Result<LogIndex, BootError> {
    let id = region.id;
    let snapshot = engine.snapshot();
    if snapshot.get(Cf::Meta, &keys::snapshot_key(id))?.is_some() {
        return Err(damaged(
            id,
            "a snapshot of it is half taken: start the store once, so that it is taken or given up",
        ));
    }
    let apply = apply_state(&*snapshot, id)?.ok_or_else(|| damaged(id, "it has no apply state"))?;
    let Some(found) = log.load(id)? else { return Ok(apply.applied.index) };
    check_log(&found, &apply).map_err(|why| damaged(id, why))?;
    let applier = Applier::new(engine.clone(), &StoreConfig::new(store, 0));
    let mut next = apply.applied.index.0 + 1;
    while next <= found.last.index.0 {
        let mut entries = Vec::new();
        log.entries(id, LogIndex(next), LogIndex(found.last.index.0 + 1), APPLY_BYTES, &mut entries)?;
        next += entries.len() as u64;
        let region = Arc::new(stored(&**engine, id)?);
        applier.run(vec![ApplyTask { region, work: ApplyWork::Entries(entries) }])?;
    }
    engine.sync()?;
    Ok(found.last.index)
}

/// What is in the log is committed, and whoever led in the lost majority did so in an older term.
fn raise_term(log: &dyn LogEngine, region: RegionId, floor: Term, last: LogIndex) -> Result<(), BootError> {
    let raised = |found: &LogState| {
        let mut state = found.hard_state.clone();
        (state.term, state.vote, state.commit) = (state.term.max(floor.0) + 1, 0, last.0);
        Some(state)
    };
    let change = match log.load(region)? {
        Some(found) => RegionLog { hard_state: raised(&found), ..RegionLog::default() },
        None => {
            let first = first_records();
            let born = LogState { hard_state: first.hard_state.clone().unwrap_or_default(), ..LogState::default() };
            RegionLog { hard_state: raised(&born), ..first }
        }
    };
    Ok(log.write(LogBatch { regions: vec![(region, change)] }, true)?)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::{Batch, Epoch, PeerId, wire};
    use raft::eraftpb::{Entry, EntryType, HardState};

    use super::*;
    use crate::{
        Instant, MonotonicClock, NewRegion,
        engine::memory::MemoryEngine,
        keys::COMMAND_FORMAT,
        log::memory::MemoryLog,
        region::split,
        store::{StoreCore, bootstrap},
    };

    const STORE: StoreId = StoreId(1);
    const ID: RegionId = RegionId(2);
    const FLOOR: Floor = Floor { conf_ver: 100, term: Term(50), keeps: None };

    fn peer(id: u64) -> Peer {
        Peer { id: PeerId(id), store: StoreId(id), role: PeerRole::Voter }
    }

    fn region() -> Region {
        let epoch = Epoch { conf_ver: 1, version: 1 };
        Region { id: ID, range: KeyRange::new("b", "m"), epoch, peers: vec![peer(1), peer(2), peer(3)] }
    }

    fn command(index: u64, proposals: Vec<wire::Proposal>, change: Option<wire::RegionChange>) -> Entry {
        let command = wire::Command { format: COMMAND_FORMAT, proposals, change };
        Entry { index, term: 6, data: command.encode_to_vec().into(), ..Entry::default() }
    }

    fn put(index: u64, epoch: Epoch, key: &'static str) -> Entry {
        let mut batch = Batch::default();
        batch.put(Cf::Data, key.into(), "1".into());
        command(index, vec![wire::Proposal { epoch: Some(epoch.into()), term: 6, ops: batch.ops }], None)
    }

    fn split_at(index: u64, epoch: Epoch, start: &'static str, id: u64) -> Entry {
        let peers = [1, 2, 3].map(|i| PeerId(id * 10 + i)).to_vec();
        let kind = split::to_wire(&[NewRegion { start: start.into(), id: RegionId(id), peers }]);
        let kind = Some(wire::region_change::Kind::Split(kind));
        command(index, vec![], Some(wire::RegionChange { epoch: Some(epoch.into()), term: 6, kind }))
    }

    /// Brings a lost store in place of the survivor.
    fn removal_of_the_survivor(index: u64, epoch: Epoch) -> Entry {
        let peers = vec![peer(2).into(), peer(3).into()];
        let context = wire::Membership { epoch: Some(epoch.into()), term: 6, peers };
        let mut entry = Entry { index, term: 6, context: context.encode_to_vec().into(), ..Entry::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry
    }

    struct Standing;

    impl MonotonicClock for Standing {
        fn now(&self) -> Instant {
            Instant::default()
        }
    }

    struct Bed {
        engine: Arc<MemoryEngine>,
        log: Arc<MemoryLog>,
    }

    impl Bed {
        fn with(entries: Vec<Entry>) -> Bed {
            let bed = Bed { engine: Arc::new(MemoryEngine::new()), log: Arc::new(MemoryLog::default()) };
            bootstrap(&*bed.engine, &*bed.log, STORE, &[region()]).unwrap();
            let hard_state = Some(HardState { term: 6, vote: 2, commit: 6, ..HardState::default() });
            let change = RegionLog { entries, hard_state, ..RegionLog::default() };
            bed.log.write(LogBatch { regions: vec![(ID, change)] }, true).unwrap();
            bed
        }
        fn alone(&self, id: RegionId) -> Result<Region, BootError> {
            let engine: Arc<dyn Engine> = self.engine.clone();
            go_on_alone(&engine, &*self.log, STORE, id, FLOOR, |_| Ok(Vec::new()))
        }
        fn has(&self, key: &str) -> bool {
            self.engine.snapshot().get(Cf::Data, key.as_bytes()).unwrap().is_some()
        }
    }

    #[test]
    fn all_of_the_log_is_applied_before_the_membership_changes() {
        let epoch = region().epoch;
        let after = Epoch { version: 2, ..epoch };
        let bed = Bed::with(vec![put(6, epoch, "c"), split_at(7, epoch, "g", 7), put(8, after, "d")]);
        let before = remains(&*bed.engine, &*bed.log).unwrap();
        assert_eq!((before[0].last.index, before[0].applied), (LogIndex(8), INITIAL));
        let now = bed.alone(ID).unwrap();
        assert_eq!((now.peers, now.epoch), (vec![peer(1)], Epoch { conf_ver: 101, version: 2 }));
        assert!(bed.has("c") && bed.has("d"), "the last one was never committed");
        let log = bed.log.load(ID).unwrap().unwrap();
        assert_eq!((log.hard_state.term, log.hard_state.vote, log.hard_state.commit), (51, 0, 8));
        // What was split off by it has lost its quorum too, and has no log.
        let found = remains(&*bed.engine, &*bed.log).unwrap();
        assert_eq!(found.iter().map(|r| r.region.id.0).collect::<Vec<_>>(), [2, 7]);
        let born = bed.alone(RegionId(7)).unwrap();
        assert_eq!((born.range, born.peers.len()), (KeyRange::new("g", "m"), 1));
        // The store starts with both.
        let config = StoreConfig::new(STORE, 1);
        StoreCore::open(config, bed.engine.clone(), bed.log.clone(), Arc::new(Standing)).unwrap();
    }

    #[test]
    fn what_belongs_to_newer_regions_goes() {
        let bed = Bed::with(vec![put(6, region().epoch, "c"), put(7, region().epoch, "h")]);
        let floor = Floor { keeps: Some((KeyRange::new("", "g"), 4)), ..FLOOR };
        let engine: Arc<dyn Engine> = bed.engine.clone();
        let now = go_on_alone(&engine, &*bed.log, STORE, ID, floor, |_| Ok(Vec::new())).unwrap();
        assert_eq!((now.range, now.epoch.version), (KeyRange::new("b", "g"), 5));
        assert_eq!((bed.has("c"), bed.has("h")), (true, false));
    }

    #[test]
    fn a_survivor_that_its_own_log_removes_stays_and_twice_is_once() {
        let bed = Bed::with(vec![put(6, region().epoch, "c"), removal_of_the_survivor(7, region().epoch)]);
        let once = bed.alone(ID).unwrap();
        assert_eq!(once.peers, [peer(1)]);
        assert_eq!(bed.alone(ID).unwrap(), once);
    }

    #[test]
    fn half_a_snapshot_is_no_survivor() {
        let bed = Bed::with(vec![]);
        let marker = WriteOp::Put(Cf::Meta, keys::snapshot_key(ID), Bytes::from_static(b"x"));
        bed.engine.write(WriteBatch { ops: vec![marker] }).unwrap();
        assert!(remains(&*bed.engine, &*bed.log).unwrap()[0].taking_snapshot);
        assert!(bed.alone(ID).unwrap_err().to_string().contains("half taken"));
        assert!(bed.alone(RegionId(9)).unwrap_err().to_string().contains("not here"));
    }
}
