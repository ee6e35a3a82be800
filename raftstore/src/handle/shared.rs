//! What handles and the store core have in common: the inbox, who waits for an answer, and the replicas' views.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use proto::{LogIndex, Peer, RegionId, Term};
use tokio::sync::{oneshot, watch};

use super::inbox::{Inbox, NotTaken};
use crate::{
    clock::MonotonicClock,
    config::StoreConfig,
    effect::{Answer, Event, Seen, Ticket},
    engine::Engine,
    region::{ReplicaView, Role},
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

/// One replica as others see it.
pub(crate) struct ReplicaShared {
    pub(crate) view: ArcSwap<ReplicaView>,
    pub(crate) leadership: watch::Sender<Leadership>,
    applied: AtomicU64,
    committed: AtomicU64,
}

impl ReplicaShared {
    fn new(seen: Seen) -> Self {
        ReplicaShared {
            leadership: watch::Sender::new(Leadership::from(&seen.view)),
            view: ArcSwap::from_pointee(seen.view),
            applied: AtomicU64::new(seen.applied.0),
            committed: AtomicU64::new(seen.committed.0),
        }
    }

    /// What had been applied, at least.
    pub(crate) fn applied(&self) -> LogIndex {
        LogIndex(self.applied.load(Ordering::Acquire))
    }

    /// What was known to be committed, at least.
    pub(crate) fn committed(&self) -> LogIndex {
        LogIndex(self.committed.load(Ordering::Acquire))
    }

    /// At the end of a turn, before its messages leave.
    pub(crate) fn publish(&self, Seen { view, applied, committed }: Seen) {
        self.applied.store(applied.0, Ordering::Release);
        self.committed.store(committed.0, Ordering::Release);
        if **self.view.load() == view {
            return;
        }
        let leadership = Leadership::from(&view);
        self.view.store(Arc::new(view));
        self.leadership.send_if_modified(|now| std::mem::replace(now, leadership) != leadership);
    }
}

/// Between handles and core.
pub(crate) struct Shared {
    pub(crate) config: Arc<StoreConfig>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) clock: Arc<dyn MonotonicClock>,
    pub(crate) inbox: Inbox,
    pub(crate) replicas: BTreeMap<RegionId, ReplicaShared>,
    waiting: Mutex<HashMap<Ticket, oneshot::Sender<Answer>>>,
    next_ticket: AtomicU64,
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
            config,
            engine,
            clock,
            replicas: replicas.into_iter().map(|seen| (seen.view.region.id, ReplicaShared::new(seen))).collect(),
            waiting: Mutex::default(),
            next_ticket: AtomicU64::new(1),
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
