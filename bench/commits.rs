//! How long a replicated commit takes: three stores on real disks in one process, joined by channels, beside what the
//! disk alone does in the same run. `cargo run --release -p raftstore --example commits -- 8 5` (writers, seconds)

use std::{
    io::{Seek, Write},
    sync::{Arc, OnceLock},
    time::{Duration, Instant as Stopwatch},
};

use proto::{Batch, Cf, Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId, wire};
use raftstore::{
    Instant, MonotonicClock, StoreConfig, StoreCore, StoreHandle, Target, Transport, bootstrap,
    driver::{Drivers, RunningStore, shorten_slices},
    engine::rocks::{RocksEngine, RocksOptions},
    log::FileLog,
    snapshot::Outgoing,
};

struct Clock(Stopwatch);

impl MonotonicClock for Clock {
    fn now(&self) -> Instant {
        Instant(self.0.elapsed())
    }
}

struct Direct {
    peers: Arc<Vec<OnceLock<StoreHandle>>>,
}

impl Transport for Direct {
    fn send(&self, to: StoreId, messages: Vec<wire::RaftMessage>) {
        if let Some(handle) = self.peers[to.0 as usize - 1].get() {
            handle.deliver(wire::RaftFrame { messages, ..wire::RaftFrame::default() });
        }
    }

    fn send_snapshot(&self, snapshot: Outgoing) {
        snapshot.finish(Err("nobody is away here".into()));
    }
}

#[allow(clippy::disallowed_methods)] // A benchmark reads the clock.
fn now() -> Stopwatch {
    Stopwatch::now()
}

/// Median and 99th percentile of writes of 200 bytes with one fdatasync each, µs. Into space that the file has
/// already, as the Raft log's files do: otherwise every sync writes the file's metadata too.
fn disk_alone(directory: &std::path::Path) -> (u128, u128) {
    let mut file = std::fs::File::create(directory.join("probe")).expect("a file");
    let room = file.write_all(&vec![0; 1 << 20]).and_then(|()| file.sync_all()).and_then(|()| file.rewind());
    room.expect("the disk works");
    let times = (0..1000).map(|_| {
        let start = now();
        file.write_all(&[7; 200]).and_then(|()| file.sync_data()).expect("the disk works");
        start.elapsed().as_micros()
    });
    percentiles(times.collect())
}

fn percentiles(mut times: Vec<u128>) -> (u128, u128) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn main() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().on_thread_start(shorten_slices).build();
    runtime.expect("threads").block_on(run());
}

async fn run() {
    let argument = |n: usize, default: u64| std::env::args().nth(n).map_or(default, |a| a.parse().expect("a number"));
    let (writers, seconds) = (argument(1, 1), argument(2, 5));
    let directory = tempfile::tempdir_in(".").expect("a directory");
    let peer = |store| Peer { id: PeerId(store), store: StoreId(store), role: PeerRole::Voter };
    let region = Region {
        id: RegionId(1),
        range: KeyRange::default(),
        epoch: Epoch { conf_ver: 1, version: 1 },
        peers: (1..=3).map(peer).collect(),
    };
    let clock = Arc::new(Clock(now()));
    let peers = Arc::new(vec![OnceLock::new(), OnceLock::new(), OnceLock::new()]);
    let mut running = Vec::new();
    for store in 1..=3 {
        let place = directory.path().join(store.to_string());
        let engine = Arc::new(RocksEngine::open(&place.join("state"), RocksOptions::default()).expect("a state"));
        let log = Arc::new(FileLog::open(&place.join("log")).expect("a log"));
        bootstrap(&*engine, &*log, StoreId(store), std::slice::from_ref(&region)).expect("the first records");
        let config = StoreConfig::new(StoreId(store), store);
        let (core, handle) = StoreCore::open(config, engine.clone(), log.clone(), clock.clone()).expect("a store");
        assert!(peers[store as usize - 1].set(handle.clone()).is_ok());
        let failed = Arc::new(|reason| panic!("{reason}"));
        let transport = Arc::new(Direct { peers: peers.clone() });
        let drivers = Drivers { engine, log, transport, clock: clock.clone(), disk_reserve: None, failed };
        running.push(RunningStore::start(core, handle, drivers).expect("threads"));
    }
    let leader = peers[0].get().expect("store 1").clone();
    leader.watch(RegionId(1)).wait_for(|l| l.serves).await.expect("it runs");

    let (disk_median, disk_p99) = disk_alone(directory.path());
    let target = Target { region: region.id, epoch: region.epoch, term: None };
    let end = now() + Duration::from_secs(seconds);
    let tasks = (0..writers).map(|writer| {
        let leader = leader.clone();
        #[allow(clippy::disallowed_methods)] // No simulator here.
        tokio::spawn(async move {
            let mut times = Vec::new();
            while now() < end {
                let mut batch = Batch::default();
                let key = format!("{writer:04}/{:08}", times.len());
                batch.put(Cf::Data, key.into(), vec![7; 150].into());
                let start = now();
                leader.propose(&target, batch).await.expect("it commits");
                times.push(start.elapsed().as_micros());
            }
            times
        })
    });
    let mut times = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        times.extend(task.await.expect("it ends"));
    }
    let count = times.len() as u64;
    let (median, p99) = percentiles(times);
    println!("disk alone: fdatasync median {disk_median} µs, p99 {disk_p99} µs");
    println!("{writers} writers: {} commits/s, median {median} µs, p99 {p99} µs", count / seconds);
}
