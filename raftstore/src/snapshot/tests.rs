//! A snapshot taken with a crash behind every step, over memory and over files.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use proto::{Epoch, KeyRange, LogIndex, Peer, PeerId, PeerRole, Region, RegionId, StoreId, Term, wire};
use raft::eraftpb::{Entry, HardState};

use super::{Content, MergedAway, RECEIVING_AT_MOST, TakeTask, Taking, taking::recover};
use crate::{
    Event, Instant, MonotonicClock, StoreConfig, StoreCore, StoreHandle,
    engine::{
        Cf, Engine, Part, WriteBatch, WriteOp,
        memory::MemoryEngine,
        part_name,
        rocks::{RocksEngine, RocksOptions},
    },
    keys::{self, Tombstone},
    log::{FileLog, LogBatch, LogEngine, MemoryLog, Position, RegionLog},
    store::bootstrap,
};

const REGION: RegionId = RegionId(1);

/// What stays of a neighbour, `z..`, that was merged into the region by an entry that the snapshot holds.
const MERGED_AWAY: MergedAway = MergedAway {
    region: RegionId(2),
    tombstone: Tombstone { peer: PeerId(1), epoch: Epoch { conf_ver: 1, version: 1 }, merged: Some((REGION, 2)) },
};

fn region(start: &'static str, end: &'static str, version: u64) -> Region {
    Region {
        id: REGION,
        range: KeyRange::new(start, end),
        epoch: Epoch { conf_ver: 1, version },
        peers: vec![Peer { id: PeerId(1), store: StoreId(1), role: PeerRole::Voter }],
    }
}

fn put(cf: Cf, key: &'static str, value: &'static str) -> WriteOp {
    WriteOp::Put(cf, key.into(), value.into())
}

fn write(engine: &dyn Engine, ops: Vec<WriteOp>) {
    engine.write(WriteBatch { ops }).unwrap();
}

/// What a crash leaves.
type Disk = (Arc<dyn Engine>, Arc<dyn LogEngine>);

/// Every record of the users, as `cf:key=value`.
fn records(engine: &dyn Engine) -> Vec<String> {
    let (snapshot, mut found) = (engine.snapshot(), Vec::new());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    for (cf, name) in [(Cf::Data, "data"), (Cf::Lock, "lock")] {
        let mut cursor = snapshot.cursor(cf, b"", b"");
        let mut on = cursor.seek_to_first().unwrap();
        while on {
            found.push(format!("{name}:{}={}", text(cursor.key()), text(cursor.value())));
            on = cursor.next().unwrap();
        }
    }
    found
}

/// An old replica of `b..z` on `disk`, and a snapshot made by `maker` of its left part, arrived and synced.
fn prepare((engine, log): &Disk, maker: &dyn Engine) -> TakeTask {
    let source = Region { id: MERGED_AWAY.region, ..region("z", "", 1) };
    bootstrap(&**engine, &**log, StoreId(1), &[region("b", "z", 1), source.clone()]).unwrap();
    let entries = (6..=30).map(|index| Entry { index, term: 6, ..Entry::default() }).collect();
    let hard_state = HardState { term: 6, vote: 3, commit: 8, ..HardState::default() };
    let change = RegionLog { entries, hard_state: Some(hard_state.clone()), ..RegionLog::default() };
    log.write(LogBatch { regions: vec![(REGION, change)] }, true).unwrap();
    let old =
        [put(Cf::Data, "zz", "old"), put(Cf::Data, "b", "old"), put(Cf::Data, "c", "old"), put(Cf::Lock, "q", "old")];
    write(&**engine, [&old[..], &[put(Cf::Data, "a", "other")]].concat());
    engine.sync().unwrap();

    let new = vec![put(Cf::Data, "b", "new"), put(Cf::Data, "d", "new"), put(Cf::Lock, "d", "new")];
    write(maker, new);
    let region = region("b", "m", 2);
    let parts = maker.export(&*maker.snapshot(), &region.range, "made").unwrap();
    engine.files().create("received").unwrap();
    for at in 0..parts.len() {
        let bytes = maker.files().read("made", &part_name(at), 0, 1 << 20).unwrap();
        engine.files().append("received", &part_name(at), &bytes).unwrap();
    }
    engine.files().sync("received").unwrap();
    let position = Position { index: LogIndex(20), term: Term(7) };
    let cleared = vec![KeyRange::new("b", "z"), region.range.clone(), source.range];
    let hard_state = HardState { term: 8, vote: 0, commit: 8, ..HardState::default() };
    TakeTask {
        content: Content { position, region, merges: Default::default(), parts },
        hard_state,
        folder: "received".into(),
        cleared,
        merged_away: vec![MERGED_AWAY],
    }
}

const OLD: [&str; 5] = ["data:a=other", "data:b=old", "data:c=old", "data:zz=old", "lock:q=old"];
const NEW: [&str; 4] = ["data:a=other", "data:b=new", "data:d=new", "lock:d=new"];

/// The disk holds one state or the other, whole, and nothing else.
fn check((engine, log): &Disk, new: bool) {
    assert_eq!(records(&**engine), if new { &NEW[..] } else { &OLD[..] });
    let snapshot = engine.snapshot();
    let get = |key: Bytes| snapshot.get(Cf::Meta, &key).unwrap();
    assert_eq!(get(keys::snapshot_key(REGION)), None);
    let applied = keys::decode_apply(&get(keys::apply_key(REGION)).unwrap()).unwrap();
    let known = keys::decode_region(&get(keys::region_key(REGION)).unwrap()).unwrap();
    let state = log.load(REGION).unwrap().unwrap();
    let source = MERGED_AWAY.region;
    assert_eq!(get(keys::region_key(source)).is_none(), new);
    assert_eq!(get(keys::apply_key(source)).is_none(), new);
    let tombstone = get(keys::tombstone_key(source)).map(|bytes| keys::decode_tombstone(&bytes).unwrap());
    assert_eq!(tombstone, new.then_some(MERGED_AWAY.tombstone));
    if new {
        assert_eq!((applied.applied.index, applied.commit), (LogIndex(20), LogIndex(20)));
        assert_eq!(known.epoch.version, 2);
        assert_eq!((state.truncated, state.last), (applied.applied, applied.applied));
        assert_eq!((state.hard_state.term, state.hard_state.vote, state.hard_state.commit), (8, 0, 20));
    } else {
        assert_eq!((applied.applied.index, known.epoch.version), (keys::INITIAL.index, 1));
        assert_eq!((state.truncated.index, state.last.index), (LogIndex(5), LogIndex(30)));
    }
    assert!(engine.files().folders().unwrap().is_empty());
}

/// Steps of a snapshot with parts of both families.
const STEPS: usize = 6;

/// Takes a snapshot, dies after so many steps, and starts again.
fn dies_after(steps: usize, disk: Disk, maker: &dyn Engine, crash: impl FnOnce(Disk) -> Disk) {
    let task = prepare(&disk, maker);
    let mut taking = Taking::new(disk.0.clone(), disk.1.clone(), task, false);
    let done: Vec<bool> = (0..steps).map(|_| taking.step().unwrap()).collect();
    assert_eq!(done.last().copied().unwrap_or(false), steps == STEPS);
    drop(taking);
    let disk = crash(disk);
    recover(&disk.0, &disk.1).unwrap();
    check(&disk, steps > 0);
    recover(&disk.0, &disk.1).unwrap();
    check(&disk, steps > 0);
}

#[test]
fn a_crash_behind_any_step_ends_in_one_state_in_memory() {
    for steps in 0..=STEPS {
        // With none, one and many of the writes that were not synced.
        for kept in [0, 1, 100] {
            let (engine, log) = (MemoryEngine::crashable(), Arc::new(MemoryLog::crashable()));
            let crash = {
                let (engine, log) = (engine.clone(), log.clone());
                move |_| -> Disk { (Arc::new(engine.after_crash(kept)), Arc::new(log.after_crash(kept))) }
            };
            dies_after(steps, (Arc::new(engine), log), &MemoryEngine::new(), crash);
        }
    }
}

fn open(directory: &Path) -> Disk {
    let options = RocksOptions { block_cache_bytes: 1 << 20, memtable_bytes: 1 << 20, background_jobs: 1 };
    let engine = RocksEngine::open(&directory.join("state"), options).unwrap();
    (Arc::new(engine), Arc::new(FileLog::open(&directory.join("log")).unwrap()))
}

#[test]
fn a_crash_behind_any_step_ends_in_one_state_in_files() {
    for steps in 0..=STEPS {
        let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (maker, _) = open(other.path());
        let crash = |disk: Disk| {
            drop(disk);
            open(directory.path())
        };
        dies_after(steps, open(directory.path()), &*maker, crash);
    }
}

#[test]
fn torn_files_of_a_broken_transfer_are_gone_after_a_restart() {
    let (engine, log) = (MemoryEngine::crashable(), Arc::new(MemoryLog::crashable()));
    prepare(&(Arc::new(engine.clone()), log.clone()), &MemoryEngine::new());
    engine.files().create("received-1-9").unwrap();
    engine.files().append("received-1-9", "0000.sst", b"half of it").unwrap();
    let disk: Disk = (Arc::new(engine.after_crash(0)), Arc::new(log.after_crash(0)));
    assert_eq!(disk.0.files().folders().unwrap().len(), 2);
    recover(&disk.0, &disk.1).unwrap();
    check(&disk, false);
}

#[derive(Default)]
struct Clock;

impl MonotonicClock for Clock {
    fn now(&self) -> Instant {
        Instant::default()
    }
}

/// A store with an old replica of `b..m` and another region at its right.
fn store() -> (StoreCore, StoreHandle, Arc<MemoryEngine>) {
    let (engine, log) = (Arc::new(MemoryEngine::new()), Arc::new(MemoryLog::new()));
    let other = Region { id: RegionId(2), ..region("m", "z", 1) };
    bootstrap(&*engine, &*log, StoreId(1), &[region("b", "m", 1), other]).unwrap();
    let config = StoreConfig::new(StoreId(1), 1);
    let (core, handle) = StoreCore::open(config, engine.clone(), log, Arc::new(Clock)).unwrap();
    (core, handle, engine)
}

fn content(region: Region, index: u64) -> Content {
    let parts = vec![
        Part { cf: Cf::Data, bytes: 8, checksum: crc32fast::hash(b"two part") },
        Part { cf: Cf::Lock, bytes: 1, checksum: crc32fast::hash(b"s") },
    ];
    Content { position: Position { index: LogIndex(index), term: Term(7) }, region, merges: Default::default(), parts }
}

fn message(content: &Content) -> wire::RaftMessage {
    content.message(PeerId(2), PeerId(1), Term(7))
}

fn block(part: u32, offset: u64, data: &'static [u8]) -> wire::SnapshotBlock {
    wire::SnapshotBlock { part, offset, data: data.into() }
}

#[test]
fn what_arrives_whole_is_told_and_nothing_else_stays() {
    let (_core, handle, engine) = store();
    let folders = || engine.files().folders().unwrap().len();
    let begin = || handle.receive_snapshot(message(&content(region("b", "m", 1), 20))).unwrap();
    let whole = [block(0, 0, b"two "), block(0, 4, b"part"), block(1, 0, b"s")];
    let mut receiving = begin();
    whole.iter().for_each(|block| receiving.block(block).unwrap());
    receiving.finish().unwrap();
    assert!(matches!(&handle.take_events()[..], [Event::SnapshotArrived(_)]));
    assert_eq!(folders(), 1);
    let broken: [&[wire::SnapshotBlock]; 6] = [
        &[block(0, 0, b"two "), block(0, 4, b"pert")],
        &[block(0, 1, b"wo ")],
        &[block(1, 0, b"s")],
        &[block(0, 0, b"two parts")],
        &[block(0, 0, b"")],
        &[whole[0].clone(), whole[1].clone(), whole[2].clone(), block(2, 0, b"more")],
    ];
    for blocks in broken {
        let mut receiving = begin();
        let (last, good) = blocks.split_last().unwrap();
        good.iter().for_each(|block| receiving.block(block).unwrap());
        assert!(receiving.block(last).is_err(), "{last:?}");
    }
    let mut short = begin();
    short.block(&whole[0]).unwrap();
    assert!(short.finish().is_err());
    assert_eq!((folders(), handle.take_events().len()), (1, 0), "a broken one leaves nothing");
}

#[test]
fn what_is_not_wanted_is_refused_before_it_is_sent() {
    let (_core, handle, _engine) = store();
    let begin = |region, index| handle.receive_snapshot(message(&content(region, index)));
    let refused = |region, index| begin(region, index).err().unwrap();
    assert!(refused(region("b", "m", 0), 20).contains("epoch"));
    assert!(refused(region("b", "m", 1), 5).contains("has applied"));
    assert!(refused(region("b", "p", 2), 20).contains("covers keys"));
    let mut elsewhere = region("b", "m", 1);
    elsewhere.peers[0].store = StoreId(9);
    assert!(refused(elsewhere, 20).contains("no peer"));
    let under_way: Vec<_> = (0..RECEIVING_AT_MOST).map(|_| begin(region("b", "m", 1), 20).unwrap()).collect();
    assert!(refused(region("b", "m", 1), 20).contains("already"));
    drop(under_way);
    assert!(begin(region("b", "m", 1), 20).is_ok());
}
