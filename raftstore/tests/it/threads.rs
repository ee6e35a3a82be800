//! Three stores on real engines, joined by channels.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use proto::{
    Batch, Cf, Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId,
    wire::{RaftFrame, RaftMessage},
};
use raftstore::{
    Instant, MonotonicClock, StoreConfig, StoreCore, StoreHandle, Target, Transport, bootstrap,
    driver::{Drivers, RunningStore},
    engine::rocks::{RocksEngine, RocksOptions},
    log::FileLog,
};

struct Clock(OnceLock<std::time::Instant>);

impl MonotonicClock for Clock {
    #[allow(clippy::disallowed_methods)] // This is the clock.
    fn now(&self) -> Instant {
        Instant(self.0.get_or_init(std::time::Instant::now).elapsed())
    }
}

/// Hands messages to the other stores' inboxes.
struct Direct {
    from: StoreId,
    peers: Arc<Vec<OnceLock<StoreHandle>>>,
}

impl Transport for Direct {
    fn send(&self, to: StoreId, messages: Vec<RaftMessage>) {
        if let Some(handle) = self.peers[to.0 as usize - 1].get() {
            handle.deliver(RaftFrame { from_store: self.from.0, to_store: to.0, messages, ..RaftFrame::default() });
        }
    }
}

fn region(id: u64, start: &'static str, end: &'static str) -> Region {
    let peer = |store| Peer { id: PeerId(id * 10 + store), store: StoreId(store), role: PeerRole::Voter };
    Region {
        id: RegionId(id),
        range: KeyRange::new(start, end),
        epoch: Epoch { conf_ver: 1, version: 1 },
        peers: (1..=3).map(peer).collect(),
    }
}

struct Cluster {
    stores: Vec<RunningStore>,
    handles: Vec<StoreHandle>,
}

fn start(directories: &[tempfile::TempDir], regions: &[Region]) -> Cluster {
    let clock = Arc::new(Clock(OnceLock::new()));
    let peers = Arc::new(vec![OnceLock::new(), OnceLock::new(), OnceLock::new()]);
    let mut cluster = Cluster { stores: Vec::new(), handles: Vec::new() };
    for (i, directory) in directories.iter().enumerate() {
        let store = StoreId(i as u64 + 1);
        let options = RocksOptions { block_cache_bytes: 1 << 20, memtable_bytes: 1 << 20, background_jobs: 1 };
        let engine = Arc::new(RocksEngine::open(&directory.path().join("state"), options).unwrap());
        let log = Arc::new(FileLog::open(&directory.path().join("log")).unwrap());
        bootstrap(&*engine, &*log, store, regions).unwrap();
        let config = StoreConfig { tick: Duration::from_millis(20), ..StoreConfig::new(store, 7) };
        let (core, handle) = StoreCore::open(config, engine.clone(), log.clone(), clock.clone()).unwrap();
        let transport = Arc::new(Direct { from: store, peers: peers.clone() });
        let failed = Arc::new(move |reason| panic!("store {store} failed: {reason}"));
        let drivers = Drivers { engine, log, transport, clock: clock.clone(), disk_reserve: None, failed };
        cluster.stores.push(RunningStore::start(core, handle.clone(), drivers).unwrap());
        assert!(peers[i].set(handle.clone()).is_ok());
        cluster.handles.push(handle);
    }
    cluster
}

impl Cluster {
    /// Waits until a store serves the region.
    async fn leader(&self, region: RegionId) -> StoreHandle {
        let serving = self.handles.iter().map(|handle| {
            let mut watch = handle.watch(region);
            Box::pin(async move {
                watch.wait_for(|leadership| leadership.serves).await.unwrap();
                handle.clone()
            })
        });
        futures::future::select_all(serving).await.0
    }
}

fn directories() -> Vec<tempfile::TempDir> {
    (0..3).map(|_| tempfile::tempdir().unwrap()).collect()
}

fn target(region: &Region) -> Target {
    Target { region: region.id, epoch: region.epoch, term: None }
}

fn put(key: &str, value: &str) -> Batch {
    let mut batch = Batch::default();
    batch.put(Cf::Data, key.to_string().into(), value.to_string().into());
    batch
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let directories = directories();
    let regions = [region(1, "", "m"), region(2, "m", "")];
    let cluster = start(&directories, &regions);
    for (region, keys) in [(&regions[0], ["a", "b"]), (&regions[1], ["x", "y"])] {
        let leader = cluster.leader(region.id).await;
        let target = &target(region);
        let puts = keys.map(|key| leader.propose(target, put(key, "1")));
        futures::future::try_join_all(puts).await.unwrap();
        let snapshot = leader.snapshot(target).await.unwrap();
        assert_eq!(snapshot.engine.get(Cf::Data, keys[0].as_bytes()).unwrap(), Some("1".into()));
    }
    drop(cluster);
    let cluster = start(&directories, &regions);
    for (region, key) in [(&regions[0], "b"), (&regions[1], "y")] {
        let leader = cluster.leader(region.id).await;
        let snapshot = leader.snapshot(&target(region)).await.unwrap();
        assert_eq!(snapshot.engine.get(Cf::Data, key.as_bytes()).unwrap(), Some("1".into()));
    }
}

#[tokio::test]
async fn leadership_is_handed_over() {
    let directories = directories();
    let regions = [region(1, "", "")];
    let cluster = start(&directories, &regions);
    let old = cluster.leader(RegionId(1)).await;
    let new = cluster.handles.iter().find(|h| h.store() != old.store()).unwrap();
    old.transfer(RegionId(1), new.store());
    new.watch(RegionId(1)).wait_for(|l| l.serves).await.unwrap();
    new.propose(&target(&regions[0]), put("a", "2")).await.unwrap();
    assert!(old.propose(&target(&regions[0]), put("a", "3")).await.is_err());
}
