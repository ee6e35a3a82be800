//! What handles and the store core have in common: the inbox, who waits for an answer, and the replicas' views.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use proto::{LogIndex, PD_REGION, Peer, Region, RegionId, Term, Timestamp};
use tokio::sync::{Notify, oneshot, watch};

use super::inbox::{Inbox, NotTaken};
use crate::{
    api::PeerProgress,
    clock::MonotonicClock,
    config::StoreConfig,
    effect::{Answer, Event, Seen, Ticket},
    engine::Engine,
    metrics::Metrics,
    region::{
        ReplicaView, Role,
        resolved::{Mark, Resolved},
    },
    verify::Kept,
};

/// Who leads a region, as one replica of it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// What this replica is.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Whom it takes for the leader.
    pub leader: Option<Peer>,
    /// It leads and knows everything that was committed before.
    pub serves: bool,
}

impl From<&ReplicaView> for Leadership {
    fn from(view: &ReplicaView) -> Self {
        Leadership { role: view.role, term: view.term, leader: view.leader, serves: view.serves }
    }
}

impl Leadership {
    /// There is no replica here: nothing is known.
    const NONE: Leadership = Leadership { role: Role::Follower, term: Term(0), leader: None, serves: false };
}

/// One replica as others see it.
pub(crate) struct ReplicaShared {
    pub(crate) view: ArcSwap<ReplicaView>,
    /// Set when somebody watches; survives the replica.
    leadership: OnceLock<watch::Sender<Leadership>>,
    /// Whoever waits for another view, or for the replica's end.
    changed: Notify,
    applied: AtomicU64,
    committed: AtomicU64,
    progress: Mutex<Vec<PeerProgress>>,
    resolved: Mutex<Resolved>,
}

impl ReplicaShared {
    fn new(seen: Seen) -> Self {
        ReplicaShared {
            view: ArcSwap::from_pointee(seen.view),
            leadership: OnceLock::new(),
            changed: Notify::new(),
            applied: AtomicU64::new(seen.applied.0),
            committed: AtomicU64::new(seen.committed.0),
            progress: Mutex::new(seen.progress),
            resolved: Mutex::default(),
        }
    }

    /// Up to which timestamp this replica can be read, and up to which some replica can.
    pub(crate) fn resolved(&self) -> (Option<Timestamp>, Option<Timestamp>) {
        let (epoch, applied) = (self.view.load().region.epoch, self.applied());
        let mut resolved = self.resolved.lock();
        (resolved.readable(epoch, applied), resolved.latest())
    }

    /// How far every peer is, when this replica leads.
    pub(crate) fn progress(&self) -> Vec<PeerProgress> {
        self.progress.lock().clone()
    }

    /// What had been applied, at least.
    pub(crate) fn applied(&self) -> LogIndex {
        LogIndex(self.applied.load(Ordering::Acquire))
    }

    /// What was known to be committed, at least.
    pub(crate) fn committed(&self) -> LogIndex {
        LogIndex(self.committed.load(Ordering::Acquire))
    }

    /// At the end of a turn, before its messages leave. Whether it looks different now: a lease that was renewed is nothing
    /// to tell others.
    fn publish(&self, Seen { view, applied, committed, progress }: Seen) -> bool {
        let applies = self.applied.swap(applied.0, Ordering::AcqRel) != applied.0;
        let moved = self.committed.swap(committed.0, Ordering::AcqRel) != committed.0 || applies;
        let followed = {
            let mut known = self.progress.lock();
            let differs = *known != progress;
            *known = progress;
            differs
        };
        let before = self.view.load_full();
        if *before == view {
            return moved || followed;
        }
        let view = Arc::new(view);
        self.view.store(view.clone());
        self.changed.notify_waiters();
        if let Some(watched) = self.leadership.get() {
            self.tell(watched);
        }
        moved || followed || ReplicaView { lease_until: before.lease_until, ..ReplicaView::clone(&view) } != *before
    }

    /// Tells those who watch. The view is read under the channel's lock, so that the last to tell has the latest.
    fn tell(&self, watched: &watch::Sender<Leadership>) {
        tell(watched, || Leadership::from(&**self.view.load()));
    }
}

fn tell(watched: &watch::Sender<Leadership>, leadership: impl Fn() -> Leadership) {
    watched.send_if_modified(|now| {
        let leadership = leadership();
        std::mem::replace(now, leadership) != leadership
    });
}

/// Replicas that come and go while others look them up: a reader takes no lock and shares no counter with others.
/// Whoever adds or removes one copies a shard; with 10,000 regions that is a map of 160.
const SHARDS: usize = 64;

type Shard = BTreeMap<RegionId, Arc<ReplicaShared>>;

/// All replicas of a store, by region.
pub(crate) struct Replicas {
    shards: [ArcSwap<Shard>; SHARDS],
    /// Who was ever asked after; also keeps additions and removals in order.
    watched: Mutex<BTreeMap<RegionId, watch::Sender<Leadership>>>,
    /// What took over regions that were here, since the start: whoever asks for one is sent there.
    heirs: Mutex<BTreeMap<RegionId, RegionId>>,
    /// Grows whenever a replica comes or goes, or one that is none of PD's region looks different.
    changes: AtomicU64,
    /// Led here, and in use.
    led_awake: Mutex<BTreeSet<RegionId>>,
}

impl Replicas {
    fn new(seen: Vec<Seen>) -> Self {
        let mut shards: [Shard; SHARDS] = std::array::from_fn(|_| Shard::new());
        let mut led_awake = BTreeSet::new();
        for seen in seen {
            let id = seen.view.region.id;
            led_awake.extend(is_led_awake(&seen.view).then_some(id));
            shards[shard(id)].insert(id, Arc::new(ReplicaShared::new(seen)));
        }
        Replicas {
            shards: shards.map(ArcSwap::from_pointee),
            watched: Mutex::default(),
            heirs: Mutex::default(),
            changes: AtomicU64::new(1),
            led_awake: Mutex::new(led_awake),
        }
    }

    /// The regions that are led here and do not sleep, but for PD's.
    pub(crate) fn led_awake(&self) -> Vec<Arc<Region>> {
        let ids: Vec<RegionId> = self.led_awake.lock().iter().copied().filter(|id| *id != PD_REGION).collect();
        ids.into_iter().filter_map(|id| self.with(id, |replica| replica.view.load().region.clone())).collect()
    }

    /// What a leader has said of the past.
    pub(crate) fn told(&self, region: RegionId, mark: Mark) {
        self.with(region, |replica| replica.resolved.lock().told(mark, replica.applied()));
    }

    /// What `look` makes of a replica; `None` when it is not here.
    pub(crate) fn with<T>(&self, region: RegionId, look: impl FnOnce(&ReplicaShared) -> T) -> Option<T> {
        self.shards[shard(region)].load().get(&region).map(|replica| look(replica))
    }

    /// The replica, to be kept over an `await`.
    pub(crate) fn get(&self, region: RegionId) -> Option<Arc<ReplicaShared>> {
        self.shards[shard(region)].load().get(&region).cloned()
    }

    /// All of them, by region id.
    pub(crate) fn all(&self) -> Vec<Arc<ReplicaShared>> {
        let mut all = Vec::new();
        self.shards.iter().for_each(|shard| all.extend(shard.load().iter().map(|(id, r)| (*id, r.clone()))));
        all.sort_unstable_by_key(|(id, _)| *id);
        all.into_iter().map(|(_, replica)| replica).collect()
    }

    /// Another number than before: something looks different, or has come or gone.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Shows a replica at the end of a turn; it may be a new one.
    pub(crate) fn publish(&self, seen: Seen) {
        let region = seen.view.region.id;
        let awake = is_led_awake(&seen.view);
        if let Some(known) = self.get(region) {
            if is_led_awake(&known.view.load()) != awake {
                let mut led = self.led_awake.lock();
                if awake {
                    led.insert(region)
                } else {
                    led.remove(&region)
                };
            }
            // PD's region is never at rest.
            if known.publish(seen) && region != PD_REGION {
                self.changed();
            }
            return;
        }
        if awake {
            self.led_awake.lock().insert(region);
        }
        let watched = self.watched.lock();
        let replica = ReplicaShared::new(seen);
        if let Some(sender) = watched.get(&region) {
            replica.tell(replica.leadership.get_or_init(|| sender.clone()));
        }
        self.change(region, |shard| shard.insert(region, Arc::new(replica)));
    }

    /// A region is part of another one now.
    pub(crate) fn inherited(&self, source: RegionId, target: RegionId) {
        self.heirs.lock().insert(source, target);
    }

    /// A replica here of the region that has taken over one that was here.
    pub(crate) fn heir(&self, mut region: RegionId) -> Option<Arc<ReplicaShared>> {
        let heirs = self.heirs.lock();
        while let Some(heir) = heirs.get(&region) {
            region = *heir;
            if let Some(replica) = self.get(region) {
                return Some(replica);
            }
        }
        None
    }

    /// Waits until the replica here knows who leads the region and no merge of it is under way, or it is not here any more.
    pub(crate) async fn settled(&self, region: RegionId) {
        while let Some(replica) = self.get(region) {
            let mut changed = pin!(replica.changed.notified());
            changed.as_mut().enable();
            let here = self.get(region).is_some_and(|now| Arc::ptr_eq(&now, &replica));
            let settled = {
                let view = replica.view.load();
                view.leader.is_some() && !view.merging
            };
            if settled || !here {
                return;
            }
            changed.await;
        }
    }

    /// Forgets a replica.
    pub(crate) fn remove(&self, region: RegionId) {
        self.led_awake.lock().remove(&region);
        let watched = self.watched.lock();
        let gone = self.get(region);
        self.change(region, |shard| shard.remove(&region));
        gone.iter().for_each(|replica| replica.changed.notify_waiters());
        if let Some(sender) = watched.get(&region) {
            tell(sender, || Leadership::NONE);
        }
    }

    fn change(&self, region: RegionId, change: impl FnOnce(&mut Shard) -> Option<Arc<ReplicaShared>>) {
        let place = &self.shards[shard(region)];
        let mut copy = Shard::clone(&place.load());
        change(&mut copy);
        place.store(Arc::new(copy));
        self.changed();
    }

    /// Follows who leads a region as the replica here sees it, now or once there is one.
    pub(crate) fn watch(&self, region: RegionId) -> watch::Receiver<Leadership> {
        let mut watched = self.watched.lock();
        let replica = self.get(region);
        let now = replica.as_ref().map_or(Leadership::NONE, |r| Leadership::from(&**r.view.load()));
        let sender = watched.entry(region).or_insert_with(|| watch::Sender::new(now));
        if let Some(replica) = replica {
            // A turn may have been shown between the look and the attaching.
            replica.tell(replica.leadership.get_or_init(|| sender.clone()));
        }
        sender.subscribe()
    }
}

fn is_led_awake(view: &ReplicaView) -> bool {
    view.role == Role::Leader && !view.asleep
}

fn shard(region: RegionId) -> usize {
    region.0 as usize % SHARDS
}

/// Between handles and core.
pub(crate) struct Shared {
    pub(crate) config: Arc<StoreConfig>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) clock: Arc<dyn MonotonicClock>,
    pub(crate) inbox: Inbox,
    pub(crate) replicas: Replicas,
    waiting: Mutex<HashMap<Ticket, oneshot::Sender<Answer>>>,
    pub(crate) next_ticket: AtomicU64,
    /// Snapshots that are arriving.
    pub(crate) receiving: AtomicUsize,
    pub(crate) metrics: Metrics,
    /// Trees of marks.
    pub(crate) kept: Kept,
}

impl Shared {
    pub(crate) fn new(
        config: Arc<StoreConfig>,
        engine: Arc<dyn Engine>,
        clock: Arc<dyn MonotonicClock>,
        replicas: Vec<Seen>,
    ) -> Self {
        Shared {
            inbox: Inbox::new(config.limits),
            metrics: Metrics::new(config.store),
            kept: Kept::default(),
            config,
            engine,
            clock,
            replicas: Replicas::new(replicas),
            waiting: Mutex::default(),
            next_ticket: AtomicU64::new(1),
            receiving: AtomicUsize::new(0),
        }
    }

    /// Sends a request and gives what its answer arrives in; the receiver fails when the store stops.
    pub(crate) fn ask(&self, event: impl FnOnce(Ticket) -> Event) -> Result<oneshot::Receiver<Answer>, NotTaken> {
        let ticket = Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().insert(ticket, sender);
        if let Err(reason) = self.inbox.push(event(ticket)) {
            self.waiting.lock().remove(&ticket);
            return Err(reason);
        }
        Ok(receiver)
    }

    /// How many wait for an answer.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Hands out answers.
    pub(crate) fn answer(&self, replies: Vec<(Ticket, Answer)>) {
        if replies.is_empty() {
            return;
        }
        let senders: Vec<_> = {
            let mut waiting = self.waiting.lock();
            replies.into_iter().filter_map(|(ticket, answer)| Some((waiting.remove(&ticket)?, answer))).collect()
        };
        for (sender, answer) in senders {
            // Who asked may have gone.
            let _ = sender.send(answer);
        }
    }

    /// The store stops: whoever waits learns that the outcome is unknown.
    pub(crate) fn close(&self) {
        self.inbox.close();
        self.waiting.lock().clear();
    }
}
