//! Three stores on real engines, joined by channels.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use proto::{
    Batch, Cf, Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId,
    wire::{RaftFrame, RaftMessage, region_error::Kind},
};
use raftstore::{
    Instant, LogBounds, MonotonicClock, NewRegion, StoreConfig, StoreCore, StoreHandle, Target, Transport, bootstrap,
    driver::{Drivers, RunningStore},
    engine::{
        Engine, WriteBatch, WriteOp,
        rocks::{RocksEngine, RocksOptions},
    },
    log::FileLog,
    snapshot::Outgoing,
    verify::{Tree, differences},
};

struct Clock(OnceLock<std::time::Instant>);

impl MonotonicClock for Clock {
    #[allow(clippy::disallowed_methods)] // This is the clock.
    fn now(&self) -> Instant {
        Instant(self.0.get_or_init(std::time::Instant::now).elapsed())
    }
}

/// The stores that run.
#[derive(Default)]
struct Peers {
    handles: [Mutex<Option<StoreHandle>>; 3],
    snapshots: AtomicUsize,
}

impl Peers {
    fn get(&self, store: StoreId) -> Option<StoreHandle> {
        self.handles[store.0 as usize - 1].lock().unwrap().clone()
    }
}

/// Hands messages to the other stores' inboxes.
struct Direct {
    from: StoreId,
    peers: Arc<Peers>,
}

impl Transport for Direct {
    fn send(&self, to: StoreId, messages: Vec<RaftMessage>) {
        if let Some(handle) = self.peers.get(to) {
            handle.deliver(RaftFrame { from_store: self.from.0, to_store: to.0, messages, ..RaftFrame::default() });
        }
    }

    fn send_snapshot(&self, snapshot: Outgoing) {
        let to = self.peers.get(snapshot.to());
        self.peers.snapshots.fetch_add(1, Ordering::Relaxed);
        snapshot.carry(|message| to.ok_or("it is down")?.receive_snapshot(message));
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
    stores: Vec<Option<RunningStore>>,
    handles: Vec<StoreHandle>,
    peers: Arc<Peers>,
    clock: Arc<Clock>,
    /// As long as their stores run.
    engines: Mutex<Vec<Weak<RocksEngine>>>,
}

fn start(directories: &[tempfile::TempDir], regions: &[Region]) -> Cluster {
    let mut cluster = Cluster {
        stores: Vec::new(),
        handles: Vec::new(),
        peers: Arc::default(),
        clock: Arc::new(Clock(OnceLock::new())),
        engines: Mutex::default(),
    };
    for (i, directory) in directories.iter().enumerate() {
        let (running, handle) = cluster.open(StoreId(i as u64 + 1), directory.path(), regions);
        cluster.stores.push(Some(running));
        cluster.handles.push(handle);
    }
    cluster
}

impl Cluster {
    fn open(&self, store: StoreId, directory: &Path, regions: &[Region]) -> (RunningStore, StoreHandle) {
        let options = RocksOptions { block_cache_bytes: 1 << 20, memtable_bytes: 1 << 20, background_jobs: 1 };
        let engine = Arc::new(RocksEngine::open(&directory.join("state"), options).unwrap());
        let log = Arc::new(FileLog::open(&directory.join("log")).unwrap());
        bootstrap(&*engine, &*log, store, regions).unwrap();
        let config = StoreConfig {
            tick: Duration::from_millis(20),
            // So little that a store that is away for a moment needs a snapshot.
            log: LogBounds { entries: 20, bytes: 1 << 20, cut_entries: 5 },
            sync_every: Duration::from_millis(50),
            ..StoreConfig::new(store, 7)
        };
        let (core, handle) = StoreCore::open(config, engine.clone(), log.clone(), self.clock.clone()).unwrap();
        self.engines.lock().unwrap().push(Arc::downgrade(&engine));
        let transport = Arc::new(Direct { from: store, peers: self.peers.clone() });
        let failed = Arc::new(move |reason| panic!("store {store} failed: {reason}"));
        let drivers =
            Drivers { engine: engine.clone(), log, transport, clock: self.clock.clone(), disk_reserve: None, failed };
        let running = RunningStore::start(core, handle.clone(), drivers).unwrap();
        *self.peers.handles[store.0 as usize - 1].lock().unwrap() = Some(handle.clone());
        (running, handle)
    }

    fn stop(&mut self, store: StoreId) {
        let at = store.0 as usize - 1;
        *self.peers.handles[at].lock().unwrap() = None;
        self.stores[at] = None;
        self.handles.retain(|handle| handle.store() != store);
    }

    /// Lets a store lead the region.
    async fn hand_over(&self, region: &Region, to: &StoreHandle) {
        let hand_over = async {
            while !to.watch(region.id).borrow().serves {
                for handle in &self.handles {
                    // Only who leads can; and a busy machine may miss the time it has for it.
                    let _ = handle.transfer_leader(&target(region), to.store()).await;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), hand_over).await.expect("it leads within the deadline");
    }

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
    cluster.hand_over(&regions[0], new).await;
    new.propose(&target(&regions[0]), put("a", "2")).await.unwrap();
    assert!(old.propose(&target(&regions[0]), put("a", "3")).await.is_err());
}

#[tokio::test]
async fn a_follower_tells_whoever_has_an_older_picture_of_the_region() {
    let directories = directories();
    let regions = [region(2, "", "")];
    let cluster = start(&directories, &regions);
    let leader = cluster.leader(RegionId(2)).await;
    let new = NewRegion { start: "m".into(), id: RegionId(3), peers: vec![PeerId(31), PeerId(32), PeerId(33)] };
    leader.split(&target(&regions[0]), vec![new]).await.unwrap();
    let follower = cluster.handles.iter().find(|h| h.store() != leader.store()).unwrap();
    wait_for(follower, |replica| replica.view.region.id == RegionId(2) && replica.view.region.epoch.version == 2).await;
    let refused = follower.snapshot(&target(&regions[0])).await.err().unwrap();
    let Some(Kind::EpochMismatch(now)) = refused.kind else { panic!("{refused}") };
    assert_eq!(now.regions.len(), 2);
}

#[tokio::test]
async fn who_waits_for_a_leader_hears_of_the_election_and_of_the_end() {
    let directories = directories();
    let mut cluster = start(&directories, &[region(1, "", "")]);
    let handle = cluster.handles[0].clone();
    tokio::time::timeout(Duration::from_secs(30), handle.settled(RegionId(1))).await.expect("an election");
    assert!(handle.status(RegionId(1)).unwrap().view.leader.is_some());
    handle.settled(RegionId(2)).await;
    // One that hears of nobody waits.
    let lonely = cluster.handles[2].store();
    (1..=3).map(StoreId).filter(|store| *store != lonely).for_each(|store| cluster.stop(store));
    let handle = cluster.handles[0].clone();
    wait_for(&handle, |replica| replica.view.leader.is_none()).await;
    assert!(futures::poll!(std::pin::pin!(handle.settled(RegionId(1)))).is_pending());
}

/// Writes one key after the other, through whoever leads, until told to stop; gives back how many there are.
async fn write_on(handles: Vec<StoreHandle>, region: Region, stop: Arc<AtomicBool>) -> usize {
    let (target, value) = (target(&region), "v".repeat(1000));
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        for handle in &handles {
            if handle.propose(&target, put(&format!("k{written:06}"), &value)).await.is_ok() {
                written += 1;
            }
        }
        tokio::task::yield_now().await;
    }
    written
}

/// Waits for a condition on a replica's status.
async fn wait_for(handle: &StoreHandle, condition: impl Fn(&raftstore::ReplicaStatus) -> bool) {
    let wait = async {
        while !handle.statuses().iter().any(&condition) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it happens within the deadline");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_away_for_long_catches_up_by_a_snapshot_while_others_write() {
    let directories = directories();
    let regions = [region(1, "", "")];
    let mut cluster = start(&directories, &regions);
    let leader = cluster.leader(RegionId(1)).await;
    let away = cluster.handles.iter().map(StoreHandle::store).find(|s| *s != leader.store()).unwrap();
    cluster.stop(away);
    let stop = Arc::new(AtomicBool::new(false));
    let writing = write_on(cluster.handles.clone(), regions[0].clone(), stop.clone());
    let at = away.0 as usize - 1;
    let coming_back = async {
        wait_for(&leader, |status| status.applied.0 > 300).await;
        let (running, handle) = cluster.open(away, directories[at].path(), &regions);
        cluster.stores[at] = Some(running);
        let ahead = leader.statuses()[0].applied.0 + 200;
        wait_for(&handle, |status| status.applied.0 > ahead).await;
        stop.store(true, Ordering::Relaxed);
        handle
    };
    let (written, handle) = futures::join!(writing, coming_back);
    assert!(cluster.peers.snapshots.load(Ordering::Relaxed) > 0, "the log was too short");
    cluster.hand_over(&regions[0], &handle).await;
    let snapshot = handle.snapshot(&target(&regions[0])).await.unwrap();
    for i in 0..written {
        let key = format!("k{i:06}");
        assert!(snapshot.engine.get(Cf::Data, key.as_bytes()).unwrap().is_some(), "{key} of {written}");
    }
    assert!(std::fs::read_dir(directories[at].path().join("state/snapshots")).unwrap().next().is_none());
}

/// Marks that are tried, and how long each is waited for: a replica that took a snapshot over a mark has nothing to say to it.
const MARKS: u64 = 10;
const MARK_PATIENCE: Duration = Duration::from_secs(10);

/// What all stores have to say to a new mark.
async fn verified(cluster: &Cluster, region: &Region, id: u64) -> Vec<Arc<Tree>> {
    for id in (id * MARKS..).take(MARKS as usize) {
        cluster.leader(region.id).await.mark(&target(region), id).await.unwrap();
        if let Ok(trees) = tokio::time::timeout(MARK_PATIENCE, said_to(cluster, region, id)).await {
            return trees;
        }
    }
    panic!("no mark of {MARKS} was answered by all");
}

async fn said_to(cluster: &Cluster, region: &Region, id: u64) -> Vec<Arc<Tree>> {
    loop {
        let said: Vec<_> = cluster.handles.iter().filter_map(|handle| handle.verified(region.id, id)).collect();
        if said.len() == cluster.handles.len() {
            assert!(said.iter().all(|v| (v.index, &v.region) == (said[0].index, &said[0].region)));
            return said.into_iter().map(|v| v.tree.expect("it is hashed")).collect();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_compared_at_one_moment_under_writes_and_a_rotten_key_is_named() {
    let directories = directories();
    let regions = [region(1, "a", "z")];
    let cluster = start(&directories, &regions);
    cluster.leader(RegionId(1)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writing = write_on(cluster.handles.clone(), regions[0].clone(), stop.clone());
    let comparing = async {
        for id in 1..=20 {
            let trees = verified(&cluster, &regions[0], id).await;
            assert!(trees.iter().all(|tree| tree.root == trees[0].root), "mark {id}");
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (written, ()) = futures::join!(writing, comparing);
    assert!(written > 20, "{written}");
    let rot = WriteOp::Put(Cf::Data, "k000007".into(), "rotten".into());
    let engine = cluster.engines.lock().unwrap()[2].upgrade().expect("the store runs");
    engine.write(WriteBatch { ops: vec![rot] }).unwrap();
    let trees = verified(&cluster, &regions[0], 100).await;
    assert_eq!(differences(&trees[0], &trees[1]), []);
    let found = differences(&trees[0], &trees[2]);
    assert!(found.len() == 1 && found[0].contains(b"k000007"), "{found:?}");
}
