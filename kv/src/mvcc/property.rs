//! MVCC against a naive map: random transactions, then every kind of read at every timestamp.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use proto::{
    KeyRange, Timestamp,
    wire::{CommitRequest, Mutation, MutationKind, PrewriteRequest, RollbackRequest},
};
use raftstore::engine::{Engine, memory::MemoryEngine};

use super::{
    Reader, Seen,
    scan::{PageEnd, ScanSpec, scan_page},
};
use crate::{
    local,
    txn::{self, PrewriteMode},
};

const KEYS: u8 = 5;

/// How a transaction ends.
#[derive(Clone, Copy, Debug)]
enum End {
    OnePc,
    Commit,
    RollBack,
    /// Its locks stay.
    Leave,
}

#[derive(Clone, Debug)]
struct Write {
    /// (key, kind, value).
    changes: BTreeMap<u8, (MutationKind, u8)>,
    end: End,
}

fn write() -> impl Strategy<Value = Write> {
    let kind = prop_oneof![
        4 => Just(MutationKind::Put),
        2 => Just(MutationKind::Delete),
        1 => Just(MutationKind::Lock),
        1 => Just(MutationKind::Insert),
    ];
    let end =
        prop_oneof![8 => Just(End::OnePc), 4 => Just(End::Commit), 2 => Just(End::RollBack), 1 => Just(End::Leave)];
    let changes = proptest::collection::btree_map(0..KEYS, (kind, any::<u8>()), 1..4);
    (changes, end).prop_map(|(changes, end)| Write { changes, end })
}

fn key(k: u8) -> Bytes {
    Bytes::from(vec![b'k', k])
}

/// The naive map: every committed state in full, and the locks that were left.
#[derive(Default)]
struct Model {
    states: BTreeMap<u64, BTreeMap<u8, u8>>,
    locks: BTreeMap<u8, (u64, MutationKind)>,
}

impl Model {
    fn at(&self, ts: u64) -> BTreeMap<u8, u8> {
        self.states.range(..=ts).next_back().map(|(_, state)| state.clone()).unwrap_or_default()
    }

    fn blocks(&self, k: u8, ts: u64) -> bool {
        // min_commit_ts is start_ts + 1.
        self.locks.get(&k).is_some_and(|&(start, kind)| kind != MutationKind::Lock && start < ts)
    }

    /// Whether a write that starts now, after all commits, is accepted.
    fn accepts(&self, write: &Write) -> bool {
        let now = self.at(u64::MAX);
        let exists = |k, kind| kind == MutationKind::Insert && now.contains_key(k);
        write.changes.iter().all(|(k, &(kind, _))| !self.locks.contains_key(k) && !exists(k, kind))
    }

    fn commit(&mut self, write: &Write, commit_ts: u64) {
        let mut state = self.at(u64::MAX);
        for (&k, &(kind, value)) in &write.changes {
            match kind {
                MutationKind::Put | MutationKind::Insert => drop(state.insert(k, value)),
                MutationKind::Delete => drop(state.remove(&k)),
                MutationKind::Lock => {}
            }
        }
        self.states.insert(commit_ts, state);
    }
}

/// Runs a transaction on both sides; they must agree on whether it is accepted.
fn run(engine: &MemoryEngine, model: &mut Model, write: &Write, start_ts: u64) {
    let mutation = |(&k, &(kind, value)): (&u8, &(MutationKind, u8))| {
        let value = if matches!(kind, MutationKind::Put | MutationKind::Insert) { vec![value] } else { vec![] };
        Mutation { kind: kind as i32, key: key(k), value: value.into(), ..Mutation::default() }
    };
    let mutations: Vec<Mutation> = write.changes.iter().map(mutation).collect();
    let keys: Vec<Bytes> = mutations.iter().map(|m| m.key.clone()).collect();
    let request = PrewriteRequest { primary: keys[0].clone(), mutations, start_ts, ..Default::default() };
    let commit_ts = start_ts + 5;
    let mode =
        if matches!(write.end, End::OnePc) { PrewriteMode::OnePc(Timestamp(commit_ts)) } else { PrewriteMode::Locks };
    let view = engine.snapshot();
    let (batch, response) = txn::prewrite(&Reader::new(view.as_ref()), &request, mode, &|_| None).unwrap();
    assert_eq!(response.errors.is_empty(), model.accepts(write), "{write:?} at {start_ts}: {response:?}");
    if !response.errors.is_empty() {
        return;
    }
    local::apply(engine, batch).unwrap();
    let view = engine.snapshot();
    let reader = Reader::new(view.as_ref());
    let batch = match write.end {
        End::OnePc => {
            model.commit(write, commit_ts);
            return;
        }
        End::Commit => {
            model.commit(write, commit_ts);
            txn::commit(&reader, &CommitRequest { keys, start_ts, commit_ts, ..Default::default() }).unwrap().0
        }
        End::RollBack => txn::rollback(&reader, &RollbackRequest { keys, start_ts }).unwrap().0,
        End::Leave => {
            model.locks.extend(write.changes.iter().map(|(&k, &(kind, _))| (k, (start_ts, kind))));
            return;
        }
    };
    local::apply(engine, batch).unwrap();
}

/// All pages of a scan, up to the first lock that blocks it.
fn scan(engine: &MemoryEngine, mut range: KeyRange, spec: ScanSpec) -> (Vec<(u8, u8)>, Option<u8>) {
    let view = engine.snapshot();
    let mut rows = Vec::new();
    loop {
        let page = scan_page(view.as_ref(), &range, spec, &Seen::default(), |key, value| {
            rows.push((key[1], value[0]));
            Ok(())
        });
        match page.unwrap().0 {
            PageEnd::Done => return (rows, None),
            PageEnd::Locked(lock) => return (rows, Some(lock.key[1])),
            PageEnd::More(resume) if spec.reverse => range.end = resume,
            PageEnd::More(resume) => range.start = resume,
        }
    }
}

fn expected(model: &Model, from: u8, to: u8, ts: u64, reverse: bool) -> (Vec<(u8, u8)>, Option<u8>) {
    let state = model.at(ts);
    let mut rows = Vec::new();
    let mut keys: Vec<u8> = (from..to).collect();
    if reverse {
        keys.reverse();
    }
    for k in keys {
        if model.blocks(k, ts) {
            return (rows, Some(k));
        }
        rows.extend(state.get(&k).map(|&v| (k, v)));
    }
    (rows, None)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn reads_agree_with_a_naive_map(writes in proptest::collection::vec(write(), 1..60)) {
        let (engine, mut model) = (MemoryEngine::new(), Model::default());
        for (at, write) in writes.iter().enumerate() {
            run(&engine, &mut model, write, 10 * (at as u64 + 1));
        }
        let view = engine.snapshot();
        let reader = Reader::new(view.as_ref());
        for ts in (0..10 * (writes.len() as u64 + 2)).step_by(7) {
            let state = model.at(ts);
            for k in 0..KEYS {
                let value = reader.get(&key(k), Timestamp(ts)).unwrap();
                prop_assert_eq!(value.map(|v| v[0]), state.get(&k).copied(), "get {} at {}", k, ts);
                let blocks = reader.lock(&key(k)).unwrap().is_some_and(|lock| lock.blocks_read_at(Timestamp(ts)));
                prop_assert_eq!(blocks, model.blocks(k, ts), "lock of {} at {}", k, ts);
            }
            for (from, to) in [(0, KEYS), (1, 4), (2, 3)] {
                for (reverse, limit) in [(false, 1), (false, 9), (true, 2), (true, 9)] {
                    let spec = ScanSpec { read_ts: Timestamp(ts), limit, max_bytes: u64::MAX, reverse };
                    let found = scan(&engine, KeyRange::new(key(from), key(to)), spec);
                    prop_assert_eq!(found, expected(&model, from, to, ts, reverse), "scan {}..{} at {}", from, to, ts);
                }
            }
        }
    }
}
