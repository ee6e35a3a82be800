//! Messages that no honest peer sends: a store drops them or lives with them, and never panics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;
use proto::{
    Batch, Cf, Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId, Timestamp,
    wire::{self, RaftMessage},
};
use protobuf::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use raftstore::{
    Applier, Event, Instant, MonotonicClock, SnapshotDriver, StoreConfig, StoreCore, StoreHandle, Target, Transport,
    bootstrap,
    effect::{ArrivedSnapshot, ProposeRequest, Ticket},
    engine::memory::MemoryEngine,
    log::{LogEngine, MemoryLog},
    snapshot::Outgoing,
};

#[derive(Default)]
struct Clock(AtomicU64);

impl MonotonicClock for Clock {
    fn now(&self) -> Instant {
        Instant(Duration::from_millis(self.0.load(Ordering::Relaxed)))
    }
}

fn region() -> Region {
    let peer = |store| Peer { id: PeerId(store), store: StoreId(store), role: PeerRole::Voter };
    Region {
        id: RegionId(1),
        range: KeyRange::default(),
        epoch: Epoch { conf_ver: 1, version: 1 },
        peers: (1..=3).map(peer).collect(),
    }
}

/// Store 1 of three; the others are whoever the test says they are.
struct Victim {
    clock: Arc<Clock>,
    core: StoreCore,
    handle: StoreHandle,
    log: Arc<MemoryLog>,
    applier: Applier,
    snapshots: SnapshotDriver,
}

/// Nothing leaves the victim.
struct Nowhere;

impl Transport for Nowhere {
    fn send(&self, _: StoreId, _: Vec<RaftMessage>) {}
    fn send_snapshot(&self, snapshot: Outgoing) {
        snapshot.finish(Err("nowhere".into()));
    }
}

impl Victim {
    fn new() -> Self {
        let clock = Arc::new(Clock::default());
        let (engine, log) = (Arc::new(MemoryEngine::new()), Arc::new(MemoryLog::new()));
        bootstrap(&*engine, &*log, StoreId(1), &[region()]).unwrap();
        let config = StoreConfig::new(StoreId(1), 1);
        let applier = Applier::new(engine.clone(), &config);
        let (core, handle) = StoreCore::open(config, engine.clone(), log.clone(), clock.clone()).unwrap();
        let snapshots = SnapshotDriver::new(engine, log.clone(), Arc::new(Nowhere), handle.clone());
        Victim { clock, core, handle, log, applier, snapshots }
    }

    /// By store 2.
    fn is_elected(&mut self) {
        self.clock.0.fetch_add(100, Ordering::Relaxed);
        self.run(Vec::new());
        let answers = [
            (MessageType::MsgRequestPreVoteResponse, 0),
            (MessageType::MsgRequestVoteResponse, 0),
            (MessageType::MsgAppendResponse, 6),
        ];
        for (kind, index) in answers {
            let mut message = Message { to: 1, from: 2, term: 6, index, ..Message::default() };
            message.set_msg_type(kind);
            self.run(vec![Event::Received(vec![envelope(message.write_to_bytes().unwrap(), 2, 0)])]);
        }
        assert!(self.handle.statuses()[0].view.serves, "store 2 elected it and has its first entry");
    }

    fn run(&mut self, events: Vec<Event>) {
        let mut events = events;
        loop {
            let mut effects = self.core.turn(self.clock.now(), events);
            self.handle.answer(&mut effects);
            events = Vec::new();
            if let Some(write) = effects.log {
                self.log.write(write.batch, write.sync).unwrap();
                events.push(Event::LogWritten(write.sequence));
            }
            // A committed entry that can't be applied stops a store loudly; that is not what is tried here.
            if !effects.apply.is_empty()
                && let Ok(applied) = self.applier.run(effects.apply)
            {
                events.push(Event::Applied(applied));
            }
            for task in effects.snapshots {
                self.snapshots.run(task).unwrap();
            }
            events.extend(self.handle.take_events());
            if events.is_empty() {
                return;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Tick,
    Propose,
    Message {
        kind: MessageType,
        from: u64,
        numbers: [u64; 6],
        reject: bool,
        entries: Vec<(u64, u64)>,
        context: Vec<u8>,
    },
    Bytes(Vec<u8>),
    /// Its files have arrived; there are none.
    Snapshot {
        from: u64,
        numbers: [u64; 6],
        end: Vec<u8>,
        peers: Vec<u64>,
        data: Option<Vec<u8>>,
    },
}

/// Numbers near those in use, and far from all.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 5..8u64, 4 => 0..12u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgPropose,
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgSnapshot,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
        MessageType::MsgTransferLeader,
        MessageType::MsgTimeoutNow,
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
    ];
    let numbers = prop::array::uniform6(number());
    let entries = prop::collection::vec((number(), number()), 0..4);
    let context = prop_oneof![Just(b"CampaignTransfer".to_vec()), prop::collection::vec(any::<u8>(), 0..20)];
    let message = (
        prop::sample::select(kinds.to_vec()),
        prop_oneof![4 => 2..4u64, 1 => 0..5u64],
        numbers,
        any::<bool>(),
        entries,
        context,
    )
        .prop_map(|(kind, from, numbers, reject, entries, context)| Step::Message {
            kind,
            from,
            numbers,
            reject,
            entries,
            context,
        });
    prop_oneof![
        2 => Just(Step::Tick),
        1 => Just(Step::Propose),
        8 => message,
        1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Step::Bytes),
        3 => snapshot(),
    ]
}

fn snapshot() -> impl Strategy<Value = Step> {
    let peers = prop_oneof![3 => Just(vec![1, 2, 3]), 1 => prop::collection::vec(0..5u64, 0..5)];
    let data = prop_oneof![4 => Just(None), 1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Some)];
    let end = prop::collection::vec(any::<u8>(), 0..2);
    let numbers = prop::array::uniform6(number());
    (2..4u64, numbers, end, peers, data).prop_map(|(from, numbers, end, peers, data)| Step::Snapshot {
        from,
        numbers,
        end,
        peers,
        data,
    })
}

/// A MsgSnapshot that is honest as far as the numbers let it.
fn arrived(from: u64, numbers: [u64; 6], end: Vec<u8>, peers: &[u64], data: Option<Vec<u8>>) -> Event {
    let [term, index, log_term, conf_ver, version, region_id] = numbers;
    let region = wire::Region {
        id: if region_id < 12 { 1 } else { region_id },
        range: Some(wire::KeyRange { start_key: Bytes::new(), end_key: end.into() }),
        epoch: Some(wire::RegionEpoch { conf_ver, version }),
        peers: peers.iter().map(|&id| wire::Peer { id, store_id: id, role: 0 }).collect(),
    };
    let content = wire::SnapshotContent { format: 1, region: Some(region), parts: Vec::new(), merges: None };
    let mut message = Message { to: 1, from, term, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    let snapshot = message.mut_snapshot();
    snapshot.set_data(data.unwrap_or_else(|| prost::Message::encode_to_vec(&content)).into());
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (index, log_term);
    metadata.mut_conf_state().voters = peers.to_vec();
    let message = envelope(message.write_to_bytes().unwrap(), from, 0);
    Event::SnapshotArrived(Box::new(ArrivedSnapshot { message, folder: "received".into() }))
}

fn envelope(bytes: Vec<u8>, from: u64, replicated: u64) -> RaftMessage {
    let peer = |id| Some(wire::Peer { id, store_id: id, role: 0 });
    RaftMessage {
        region_id: 1,
        from: peer(from),
        to: peer(1),
        epoch: Some(region().epoch.into()),
        message: bytes.into(),
        replicated,
        ..RaftMessage::default()
    }
}

fn event(step: Step) -> Event {
    match step {
        Step::Tick => unreachable!("a tick is no event"),
        Step::Propose => {
            let mut batch = Batch::default();
            batch.put(Cf::Data, "key".into(), Timestamp::MAX.to_string().into());
            let target = Target { region: RegionId(1), epoch: region().epoch, term: None };
            Event::Propose(ProposeRequest { ticket: Ticket(1), target, ops: batch.ops, bytes: 10 })
        }
        Step::Snapshot { from, numbers, end, peers, data } => arrived(from, numbers, end, &peers, data),
        Step::Bytes(bytes) => Event::Received(vec![envelope(bytes, 2, 0)]),
        Step::Message { kind, from, numbers, reject, entries, context } => {
            let [term, index, log_term, commit, reject_hint, other] = numbers;
            // Half of them follow each other, as an honest peer's do.
            let entries = entries.iter().enumerate().map(|(i, &(at, of))| {
                let honest = other % 2 == 0;
                let (index, term) = if honest { (index.wrapping_add(1 + i as u64), term) } else { (at, of) };
                Entry { index, term, ..Entry::default() }
            });
            let mut message = Message {
                to: 1,
                from,
                term,
                index,
                log_term,
                commit,
                commit_term: other,
                reject_hint,
                reject,
                entries: entries.collect::<Vec<_>>().into(),
                context: context.into(),
                ..Message::default()
            };
            message.set_msg_type(kind);
            Event::Received(vec![envelope(message.write_to_bytes().unwrap(), from, other)])
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn no_message_panics_a_store(leads: bool, steps in prop::collection::vec(step(), 1..120)) {
        let mut victim = Victim::new();
        if leads {
            victim.is_elected();
        }
        for step in steps {
            match step {
                Step::Tick => {
                    victim.clock.0.fetch_add(100, Ordering::Relaxed);
                    victim.run(Vec::new());
                }
                other => victim.run(vec![event(other)]),
            }
        }
    }
}
