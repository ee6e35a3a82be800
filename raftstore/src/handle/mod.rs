//! How the rest of a node uses a store: from any thread, without passing through the store loop where a lease holds.
//!
//! The core and the handles share an inbox, the list of those who wait for an answer, and what each replica looked
//! like at the end of the last turn. The driver of the core stands between: it takes the events that wait, and brings
//! back what a turn has changed ([`StoreHandle::answer`]) before any message of that turn leaves.

mod inbox;
mod receive;
mod shared;

use std::sync::{Arc, atomic::Ordering};

use prost::Message;
use proto::{
    Batch, Epoch, LogIndex, PD_REGION, Region, RegionId, StoreId, Timestamp,
    wire::{self, RegionError},
};
use tokio::sync::watch;

use crate::{
    api::{AdminError, NewRegion, PeerChange, PeerProgress, ProposeError, RegionSnapshot, Target},
    clock::MonotonicClock,
    config::{Planted, StoreConfig},
    effect::{AdminChange, AdminRequest, Answer, Effects, Event, ProposeRequest, Seen},
    engine::{Engine, EngineError, Snapshot},
    metrics::{Counted, Metrics, SnapshotCounts},
    region::{ReplicaView, Role, merge::moved_on, message},
    snapshot::{RECEIVING_AT_MOST, Receiving},
    verify::Verified,
};
use inbox::NotTaken;
pub use inbox::together;
pub use shared::Leadership;
use shared::ReplicaShared;
pub(crate) use shared::Shared;

/// How long somebody should wait when the store's inbox is full, ms.
const BUSY_BACKOFF_MS: u64 = 20;

/// A replica's state for PD, people and tests.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// Region, role, term, leader, lease.
    pub view: Arc<ReplicaView>,
    /// Applied at least up to here.
    pub applied: LogIndex,
    /// Known committed at least up to here.
    pub committed: LogIndex,
    /// When it leads: how far every peer is.
    pub progress: Vec<PeerProgress>,
}

/// Access to a store; cheap to clone.
#[derive(Clone)]
pub struct StoreHandle {
    shared: Arc<Shared>,
}

/// Ends what handles wait for when the core is dropped.
pub(crate) struct Closer(Arc<Shared>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl StoreHandle {
    /// A handle to a store with these replicas, and what the core keeps of it.
    pub(crate) fn new(
        config: Arc<StoreConfig>,
        engine: Arc<dyn Engine>,
        clock: Arc<dyn MonotonicClock>,
        replicas: Vec<Seen>,
    ) -> (StoreHandle, Closer) {
        let shared = Arc::new(Shared::new(config, engine, clock, replicas));
        (StoreHandle { shared: shared.clone() }, Closer(shared))
    }

    /// Which store this is.
    pub fn store(&self) -> StoreId {
        self.shared.config.store
    }

    /// A current view, without waiting; `None` when there is no lease and [`StoreHandle::snapshot`] must ask the quorum.
    pub fn try_snapshot(&self, target: &Target) -> Option<Result<RegionSnapshot, RegionError>> {
        let look = |replica: &ReplicaShared| self.snapshot_under_lease(replica, target);
        self.shared.replicas.with(target.region, look).unwrap_or_else(|| Some(Err(self.not_here(target.region))))
    }

    fn snapshot_under_lease(
        &self,
        replica: &ReplicaShared,
        target: &Target,
    ) -> Option<Result<RegionSnapshot, RegionError>> {
        let before = replica.view.load();
        if let Err(e) = check(&self.shared.config, &before, target) {
            return Some(Err(e));
        }
        if !self.lease_holds(&before) {
            return None;
        }
        let applied = replica.applied();
        let engine = self.shared.engine.snapshot();
        // Nobody else led between the two looks, so the snapshot holds all that was acknowledged before the first.
        let after = replica.view.load();
        if let Err(e) = check(&self.shared.config, &after, target) {
            return Some(Err(e));
        }
        if after.term != before.term || !self.lease_holds(&after) {
            return None;
        }
        Some(Ok(RegionSnapshot { engine, region: after.region.clone(), term: after.term, applied }))
    }

    fn lease_holds(&self, view: &ReplicaView) -> bool {
        let Some(until) = view.lease_until else { return false };
        self.shared.clock.now() < until || self.shared.config.has(Planted::ServeExpiredLease)
    }

    /// Whether this store alone serves the region right now. Cheap; `false` is no proof of the contrary.
    pub fn holds_lease(&self, target: &Target) -> bool {
        let look = |replica: &ReplicaShared| {
            let view = replica.view.load();
            check(&self.shared.config, &view, target).is_ok() && self.lease_holds(&view)
        };
        self.shared.replicas.with(target.region, look).unwrap_or(false)
    }

    /// A current view: under the lease at once, otherwise when a quorum has confirmed who leads. Answers within an
    /// election timeout or two.
    pub async fn snapshot(&self, target: &Target) -> Result<RegionSnapshot, RegionError> {
        if let Some(answer) = self.try_snapshot(target) {
            return answer;
        }
        let replica = self.shared.replicas.get(target.region).ok_or_else(|| self.not_here(target.region))?;
        let term = replica.view.load().term;
        let pinned = Target { term: Some(term), ..*target };
        let answer = match self.shared.ask(|ticket| Event::Read(ticket, pinned)) {
            Ok(answer) => answer.await,
            Err(reason) => return Err(not_taken(reason, target.region)),
        };
        match answer {
            Ok(Answer::Readable(Ok(()))) => {}
            Ok(Answer::Readable(Err(e))) => return Err(e),
            Ok(_) | Err(_) => return Err(self.not_here(target.region)),
        }
        let applied = replica.applied();
        let engine = self.shared.engine.snapshot();
        // The replica that was asked may have gone; then its last view is no proof of anything.
        let here = self.shared.replicas.get(target.region).is_some_and(|now| Arc::ptr_eq(&now, &replica));
        let view = replica.view.load();
        check(&self.shared.config, &view, &pinned)?;
        if !here {
            return Err(self.not_here(target.region));
        }
        Ok(RegionSnapshot { engine, region: view.region.clone(), term, applied })
    }

    /// Waits until the replica here knows who leads the region and no merge of it is under way, or it is not here any more.
    pub async fn settled(&self, region: RegionId) {
        self.shared.replicas.settled(region).await;
    }

    /// A view of a replica that need not lead, in which all is that can ever be visible at `at`; `None` when this replica is
    /// not that far, or is not known to be. Not for anything later than `at`.
    pub fn past_snapshot(&self, target: &Target, at: Timestamp) -> Option<RegionSnapshot> {
        let replica = self.shared.replicas.get(target.region)?;
        let before = replica.view.load_full();
        let config = &self.shared.config;
        let stands = |view: &ReplicaView| {
            view.region.epoch == target.epoch
                && (!view.merging || config.has(Planted::ResolveMerging))
                && (view.restorations.is_multiple_of(2) || config.has(Planted::ReadRestoring))
        };
        let (reached, latest) = replica.resolved();
        let up_to = if config.has(Planted::ReadUnapplied) { latest } else { reached };
        if !stands(&before) || up_to.is_none_or(|up_to| up_to < at) {
            return None;
        }
        let applied = replica.applied();
        let engine = self.shared.engine.snapshot();
        // Still there, and nobody has begun to replace what it holds: that would have been seen before it was begun.
        let here = self.shared.replicas.get(target.region).is_some_and(|now| Arc::ptr_eq(&now, &replica));
        let after = replica.view.load();
        let unchanged = after.restorations == before.restorations || config.has(Planted::ReadRestoring);
        let stood = here && stands(&after) && unchanged;
        stood.then(|| RegionSnapshot { engine, region: before.region.clone(), term: before.term, applied })
    }

    /// The regions that are led here and do not sleep, but for PD's own.
    pub fn led_awake(&self) -> Vec<Arc<Region>> {
        self.shared.replicas.led_awake()
    }

    /// Nothing that is proposed here to these regions from now on is visible at `ts`; what was proposed before and may be
    /// is applied. Tells the followers of those that are led here under a lease, in this epoch, so that they can be read.
    pub fn resolve(&self, ts: Timestamp, regions: Vec<(RegionId, Epoch)>) {
        // A store that stops leads nothing.
        let _ = self.shared.inbox.push(Event::Resolve(ts, regions));
    }

    /// Up to which timestamp the replica here can be read by [`StoreHandle::past_snapshot`].
    pub fn resolved(&self, region: RegionId) -> Option<Timestamp> {
        self.shared.replicas.with(region, |replica| replica.resolved().0)?
    }

    /// Replicates and applies a batch. `Ok`: it is applied here. A `Region` error: it certainly is and will be nowhere.
    pub async fn propose(&self, target: &Target, batch: Batch) -> Result<(), ProposeError> {
        let look = |replica: &ReplicaShared| check(&self.shared.config, &replica.view.load(), target);
        self.shared.replicas.with(target.region, look).unwrap_or_else(|| Err(self.not_here(target.region)))?;
        let bytes = batch.ops.iter().map(Message::encoded_len).sum();
        let (target, ops) = (*target, batch.ops);
        let (counts, begun) = (self.shared.metrics.proposals(target.region), self.shared.clock.now());
        let answer = self.shared.ask(|ticket| Event::Propose(ProposeRequest { ticket, target, ops, bytes }));
        let result = match answer.map_err(|reason| not_taken(reason, target.region)) {
            Err(error) => Err(error.into()),
            Ok(answer) => match answer.await {
                Ok(Answer::Proposed(result)) => result,
                Ok(_) | Err(_) => Err(ProposeError::Unknown("the store stopped".into())),
            },
        };
        match &result {
            Ok(()) => {
                counts.applied.inc();
                counts.seconds.observe(self.shared.clock.now().since(begun).as_secs_f64());
            }
            Err(ProposeError::Region(_)) => counts.refused.inc(),
            Err(ProposeError::Unknown(_)) => counts.unknown.inc(),
        }
        result
    }

    /// Splits a region that is led here; `at` in key order. Answers, when it is applied here, with all regions that
    /// came out of it, in key order: the region keeps its id and the left part, every part gets the same new epoch.
    pub async fn split(&self, target: &Target, at: Vec<NewRegion>) -> Result<Vec<Region>, AdminError> {
        if target.region == PD_REGION {
            return Err(AdminError::Refused(format!("{PD_REGION} is PD's own and is never split")));
        }
        self.change(target, AdminChange::Split(at)).await
    }

    /// Changes the peers of a region that is led here. Changes of voters go through one joint state, which the leader
    /// ends by itself. Answers, when the final membership is applied here, with the region as it is then.
    pub async fn change_peers(&self, target: &Target, changes: Vec<PeerChange>) -> Result<Region, AdminError> {
        let mut regions = self.change(target, AdminChange::Peers(changes)).await?;
        regions.pop().ok_or_else(|| AdminError::Unknown("the answer names no region".into()))
    }

    /// Hands the leadership of a region over. Answers when this replica sees another leader, or with the reason why
    /// it still leads.
    pub async fn transfer_leader(&self, target: &Target, to: StoreId) -> Result<(), AdminError> {
        self.change(target, AdminChange::Transfer(to)).await.map(drop)
    }

    /// Merges the region of `source`, led here, into its neighbour `into`, whose peers live on the same stores and which
    /// is exactly as the caller says. The source serves nobody meanwhile: a few round trips, or, if a peer is away or
    /// the target changes, until it is given up. Answers, when it is done here, with the target as it is then.
    pub async fn merge(&self, source: &Target, into: &Region) -> Result<Region, AdminError> {
        let mut regions = self.change(source, AdminChange::Merge(Box::new(into.clone()))).await?;
        regions.pop().ok_or_else(|| AdminError::Unknown("the answer names no region".into()))
    }

    async fn change(&self, target: &Target, change: AdminChange) -> Result<Vec<Region>, AdminError> {
        let look = |replica: &ReplicaShared| check(&self.shared.config, &replica.view.load(), target);
        self.shared.replicas.with(target.region, look).unwrap_or_else(|| Err(self.not_here(target.region)))?;
        let target = *target;
        let asked = self.shared.ask(|ticket| Event::Admin(AdminRequest { ticket, target, change }));
        match asked.map_err(|reason| not_taken(reason, target.region))?.await {
            Ok(Answer::Admin(result)) => result,
            Ok(_) | Err(_) => Err(AdminError::Unknown("the store stopped".into())),
        }
    }

    /// Takes a frame from another store. False: it was dropped because too much waits; Raft repairs that.
    pub fn deliver(&self, frame: wire::RaftFrame) -> bool {
        frame.messages.is_empty() || self.shared.inbox.push(Event::Received(frame.messages)).is_ok()
    }

    /// Begins to take a snapshot that another store sends; the reason, when it is not wanted here or not now. The blocks
    /// come next, then [`Receiving::finish`].
    pub fn receive_snapshot(&self, message: wire::RaftMessage) -> Result<Receiving, String> {
        let (_, content) = message::decode_snapshot(&message).map_err(|refused| refused.to_string())?;
        let replicas = self.statuses();
        if let Err(reason) = receive::check(&content, self.shared.config.store, &replicas) {
            if receive::is_here(&content, &replicas) {
                // Its leader does not know, or would not send it: it is told. A store that stops tells nobody.
                let _ = self.shared.inbox.push(Event::Received(vec![message]));
            }
            return Err(reason);
        }
        let taken = self.shared.receiving.fetch_add(1, Ordering::AcqRel);
        let receiving = if taken < RECEIVING_AT_MOST {
            let number = self.shared.next_ticket.fetch_add(1, Ordering::Relaxed);
            let folder = format!("received-{}-{number}", content.region.id.0);
            Receiving::begin(self.shared.clone(), message, content, folder)
        } else {
            Err(format!("the store takes {RECEIVING_AT_MOST} snapshots already"))
        };
        if receiving.is_err() {
            self.shared.receiving.fetch_sub(1, Ordering::AcqRel);
        }
        receiving
    }

    /// Has every replica of a region that is led here hash it as it is at one entry of its log; `id` is drawn at random by
    /// the caller. `Ok`: the mark is applied here, and is or will be at the others. See [`crate::verify`].
    pub async fn mark(&self, target: &Target, id: u64) -> Result<(), ProposeError> {
        let mut batch = Batch::default();
        batch.mark(id);
        self.propose(target, batch).await
    }

    /// What this store's replica has to say to a mark; `None`: nothing yet, or nothing any more.
    pub fn verified(&self, region: RegionId, id: u64) -> Option<Verified> {
        self.shared.kept.of(region, id)
    }

    /// For drivers: a marked region was hashed, or not.
    pub fn keep_verified(&self, verified: Verified) {
        self.shared.kept.keep(verified);
    }

    /// The store's counters, with what is so right now.
    pub fn metrics(&self) -> &Metrics {
        let counted = |r: &ReplicaStatus| Counted {
            region: r.view.region.id,
            leads: r.view.role == Role::Leader,
            asleep: r.view.asleep,
            unapplied: r.committed.0.saturating_sub(r.applied.0),
        };
        let replicas: Vec<_> = self.statuses().iter().map(counted).collect();
        let (requests, messages) = self.shared.inbox.lengths();
        let queues = [("requests", requests), ("messages", messages), ("unanswered", self.shared.waiting())];
        self.shared.metrics.observe(&replicas, &queues);
        &self.shared.metrics
    }

    /// What the store does with snapshots.
    pub fn snapshots(&self) -> SnapshotCounts {
        self.shared.metrics.snapshots()
    }

    /// How slow the log's disk is: 0 (as it should be) to 100.
    pub fn slow_score(&self) -> u32 {
        self.shared.metrics.slow_score.get().clamp(0, 100) as u32
    }

    /// For drivers: to count in.
    pub(crate) fn counters(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The settings of the store.
    pub(crate) fn config(&self) -> &StoreConfig {
        &self.shared.config
    }

    /// Messages to `store` were lost: leaders go back to asking what it has.
    pub fn unreachable(&self, store: StoreId) {
        // A store that stops needs no news.
        let _ = self.shared.inbox.push(Event::Unreachable(store));
    }

    /// Like [`StoreHandle::transfer_leader`], whatever the epoch, for who does not wait. Nothing happens when this
    /// replica does not lead.
    pub fn transfer(&self, region: RegionId, to: StoreId) {
        let epoch = self.shared.replicas.with(region, |replica| replica.view.load().region.epoch);
        if let Some(epoch) = epoch {
            let target = Target { region, epoch, term: None };
            let change = AdminChange::Transfer(to);
            let _ = self.shared.ask(|ticket| Event::Admin(AdminRequest { ticket, target, change }));
        }
    }

    /// Asks the replica of a region to stand for election now. Nothing happens shortly after a restart.
    pub fn campaign(&self, region: RegionId) {
        let _ = self.shared.inbox.push(Event::Campaign(region));
    }

    /// Whether the disk is below its reserve: proposals are refused while it is.
    pub fn disk_full(&self, full: bool) {
        let _ = self.shared.inbox.push(Event::DiskFull(full));
    }

    /// All replicas of the store, by region id.
    pub fn statuses(&self) -> Vec<ReplicaStatus> {
        self.shared.replicas.all().iter().map(|replica| status(replica)).collect()
    }

    /// The same, not as the last turn left them but as they are at some time after the call, and a view of the engine taken
    /// later, which proves nothing by itself. Wakes no region. No replicas when the store stops or is too busy.
    pub async fn look(&self) -> (Vec<ReplicaStatus>, Arc<dyn Snapshot>) {
        let answer = match self.shared.ask(Event::Look) {
            Ok(answer) => answer.await.ok(),
            Err(_) => None,
        };
        let replicas = if let Some(Answer::Seen) = answer { self.statuses() } else { Vec::new() };
        (replicas, self.shared.engine.snapshot())
    }

    /// One of them.
    pub fn status(&self, region: RegionId) -> Option<ReplicaStatus> {
        self.shared.replicas.with(region, status)
    }

    /// Grows whenever something in [`StoreHandle::statuses`] is different, leases excepted, and PD's region, which is never at
    /// rest: while it does not, nobody has to look at all of them again.
    pub fn changes(&self) -> u64 {
        self.shared.replicas.changes()
    }

    /// Roughly what a region takes on this store's disk, bytes.
    pub fn approximate_bytes(&self, region: RegionId) -> Result<u64, EngineError> {
        match self.shared.replicas.with(region, |replica| replica.view.load().region.clone()) {
            Some(region) => self.shared.engine.approximate_size(&region.range.start, &region.range.end),
            None => Ok(0),
        }
    }

    /// Follows who leads a region, as the replica here sees it; while there is none, nobody does. Meant for a few
    /// regions: what was watched once stays watched.
    pub fn watch(&self, region: RegionId) -> watch::Receiver<Leadership> {
        self.shared.replicas.watch(region)
    }

    // What drivers use.

    /// Sets what is called when events start to wait. For the driver; only the first call counts.
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        self.shared.inbox.set_waker(Arc::new(waker));
    }

    /// Whether nothing waits.
    pub fn is_idle(&self) -> bool {
        self.shared.inbox.is_empty()
    }

    /// Takes all events that wait, for [`crate::StoreCore::turn`].
    pub fn take_events(&self) -> Vec<Event> {
        self.shared.inbox.drain()
    }

    /// Queues the completion of an effect.
    pub fn complete(&self, event: Event) {
        // A store that stops needs no news.
        let _ = self.shared.inbox.push(event);
    }

    /// Shows what a turn has changed and hands out its answers. Before its messages leave: with one of them
    /// (TimeoutNow) a lease ends.
    pub fn answer(&self, effects: &mut Effects) {
        for seen in effects.seen.drain(..) {
            self.shared.replicas.publish(seen);
        }
        // Before it is gone, so that nobody is told that it is nowhere.
        effects.merged.drain(..).for_each(|(source, target)| self.shared.replicas.inherited(source, target));
        effects.gone.drain(..).for_each(|region| self.shared.replicas.remove(region));
        effects.resolved.drain(..).for_each(|(region, mark)| self.shared.replicas.told(region, mark));
        self.shared.answer(std::mem::take(&mut effects.replies));
        if let Some(score) = effects.slow_score {
            self.shared.metrics.slow_score.set(score.into());
        }
    }

    /// It is not here, or not any more.
    fn not_here(&self, region: RegionId) -> RegionError {
        match self.shared.replicas.heir(region) {
            Some(heir) => heir.view.load().epoch_mismatch(),
            None => RegionError::region_not_found(region),
        }
    }
}

fn status(replica: &ReplicaShared) -> ReplicaStatus {
    ReplicaStatus {
        view: replica.view.load_full(),
        applied: replica.applied(),
        committed: replica.committed(),
        progress: replica.progress(),
    }
}

fn not_taken(reason: NotTaken, region: RegionId) -> RegionError {
    match reason {
        NotTaken::Full => RegionError::server_busy("the store's inbox", BUSY_BACKOFF_MS),
        NotTaken::Closed => RegionError::region_not_found(region),
    }
}

/// Whether this replica leads the region that the caller means.
fn check(config: &StoreConfig, view: &ReplicaView, target: &Target) -> Result<(), RegionError> {
    if view.role != Role::Leader || target.term.is_some_and(|term| term != view.term) {
        // Whoever has an older picture may not know the leader's store: with this one it does.
        if moved_on(view.region.epoch, target.epoch) && !config.has(Planted::StaleEpoch) {
            return Err(view.epoch_mismatch());
        }
        let leader = view.leader.filter(|leader| leader.id != view.peer.id);
        return Err(RegionError::not_leader(view.region.id, leader, view.term));
    }
    if target.epoch != view.region.epoch && !config.has(Planted::StaleEpoch) {
        return Err(view.epoch_mismatch());
    }
    if view.merging {
        return Err(RegionError::merging(view.region.id));
    }
    Ok(())
}
