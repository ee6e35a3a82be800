//! A store with very many regions: they elect, write and rest without disturbing each other.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use proto::{Batch, Cf, Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId, wire::RaftMessage};
use raftstore::{
    Applier, Event, Instant, MonotonicClock, Role, StoreConfig, StoreCore, StoreHandle, Target, bootstrap,
    effect::{ProposeRequest, Ticket},
    engine::memory::MemoryEngine,
    log::{LogEngine, MemoryLog},
};

const REGIONS: u64 = 1000;

#[derive(Default)]
struct Clock(AtomicU64);

impl MonotonicClock for Clock {
    fn now(&self) -> Instant {
        Instant(Duration::from_millis(self.0.load(Ordering::Relaxed)))
    }
}

struct Store {
    core: StoreCore,
    handle: StoreHandle,
    log: Arc<MemoryLog>,
    applier: Applier,
}

/// Three stores that share a clock; what they did is counted.
struct Cluster {
    clock: Arc<Clock>,
    stores: Vec<Store>,
    messages: usize,
    log_writes: usize,
    answers: usize,
}

fn region(id: u64) -> Region {
    let border = |at: u64| if at == 0 || at == REGIONS { String::new() } else { format!("{at:06}") };
    let peer = |store| Peer { id: PeerId(id * 10 + store), store: StoreId(store), role: PeerRole::Voter };
    Region {
        id: RegionId(id),
        range: KeyRange::new(border(id - 1), border(id)),
        epoch: Epoch { conf_ver: 1, version: 1 },
        // Every store is the first peer of a third of them.
        peers: (0..3).map(|i| peer((id + i) % 3 + 1)).collect(),
    }
}

impl Cluster {
    fn new() -> Self {
        let clock = Arc::new(Clock::default());
        let regions: Vec<_> = (1..=REGIONS).map(region).collect();
        let store = |id| {
            let (engine, log) = (Arc::new(MemoryEngine::new()), Arc::new(MemoryLog::new()));
            bootstrap(&*engine, &*log, StoreId(id), &regions).unwrap();
            let config = StoreConfig::new(StoreId(id), id);
            let applier = Applier::new(engine.clone(), &config);
            let (core, handle) = StoreCore::open(config, engine, log.clone(), clock.clone()).unwrap();
            Store { core, handle, log, applier }
        };
        Cluster { stores: (1..=3).map(store).collect(), clock, messages: 0, log_writes: 0, answers: 0 }
    }

    /// Runs events of one store, and everything that follows from them.
    fn run(&mut self, store: usize, events: Vec<Event>) {
        let mut waiting = VecDeque::from([(store, events)]);
        while let Some((store, events)) = waiting.pop_front() {
            let Store { core, log, applier, handle } = &mut self.stores[store];
            let mut effects = core.turn(self.clock.now(), events);
            self.answers += effects.replies.len();
            handle.answer(&mut effects);
            let mut done = Vec::new();
            if let Some(write) = effects.log {
                self.log_writes += 1;
                log.write(write.batch, write.sync).unwrap();
                done.push(Event::LogWritten(write.sequence));
            }
            if !effects.apply.is_empty() {
                done.push(Event::Applied(applier.run(effects.apply).unwrap()));
            }
            if !done.is_empty() {
                waiting.push_back((store, done));
            }
            for (to, messages) in effects.sends {
                let messages: Vec<RaftMessage> = messages;
                self.messages += messages.len();
                waiting.push_back((to.0 as usize - 1, vec![Event::Received(messages)]));
            }
        }
    }

    fn tick(&mut self) {
        self.clock.0.fetch_add(100, Ordering::Relaxed);
        (0..3).for_each(|store| self.run(store, Vec::new()));
    }

    fn led_by(&self, store: usize) -> Vec<RegionId> {
        let statuses = self.stores[store].handle.statuses();
        statuses.iter().filter(|s| s.view.role == Role::Leader).map(|s| s.view.region.id).collect()
    }
}

#[test]
fn a_thousand_regions_share_a_store() {
    let mut cluster = Cluster::new();
    (0..3).for_each(|_| cluster.tick());
    let led: Vec<_> = (0..3).map(|store| cluster.led_by(store)).collect();
    assert_eq!(led.iter().map(Vec::len).sum::<usize>() as u64, REGIONS, "every region has one leader");
    assert!(led.iter().all(|regions| regions.len() as u64 >= REGIONS / 3), "spread as the first peers are");

    // One write to every region a store leads: one turn, one log write there, one each on the others.
    cluster.log_writes = 0;
    let propose = |(ticket, &id): (usize, &RegionId)| {
        let target = Target { region: id, epoch: region(id.0).epoch, term: None };
        let mut batch = Batch::default();
        batch.put(Cf::Data, format!("{:06}/key", id.0 - 1).into(), "value".into());
        Event::Propose(ProposeRequest { ticket: Ticket(ticket as u64), target, ops: batch.ops, bytes: 20 })
    };
    let proposals: Vec<_> = led[0].iter().enumerate().map(propose).collect();
    let (count, before) = (proposals.len(), cluster.answers);
    cluster.run(0, proposals);
    assert_eq!(cluster.answers - before, count, "all are answered");
    assert_eq!(cluster.log_writes, 3, "one write a store for all regions");

    // At rest: heartbeats and their answers, in few frames, and nothing is written but a sync now and then, which shows
    // that the disk still answers.
    let beats = 10 / 2 * 3 * 2;
    (cluster.messages, cluster.log_writes) = (0, 0);
    (0..10).for_each(|_| cluster.tick());
    let heartbeats = 10 / 2 * 2 * 2;
    assert!(cluster.messages <= heartbeats * REGIONS as usize + beats, "{} messages in ten ticks", cluster.messages);
    assert!(cluster.log_writes <= 3 * 2, "{} log writes", cluster.log_writes);

    // After a while all but PD's region sleep, and only stores speak.
    (0..20).for_each(|_| cluster.tick());
    cluster.messages = 0;
    (0..10).for_each(|_| cluster.tick());
    assert!(cluster.messages <= heartbeats + beats, "{} messages while all sleep", cluster.messages);
}
