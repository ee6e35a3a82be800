//! What this store reports to PD, and when.
//!
//! A beat a second says that the store is there, and which of its regions have moved on. A change of what it leads is
//! reported within a fifth of that, or within milliseconds when a step has ended; to a new PD, which knows nothing yet, everything it
//! leads at once. The answers bring steps for [`Steps`]; between reports the store listens for more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::{Either, select};
use kv::{Clock, Pd};
use proto::{
    ClusterId, Epoch, LogIndex, PD_REGION, PeerId, RegionId, Term,
    wire::{
        self, HeartbeatRequest, HeartbeatResponse, PeerProgress, RegionStatus, SnapshotCounts, StaleReplica,
        StoreStatus,
    },
};
use raftstore::{Instant, ReplicaStatus, Role, StoreHandle, engine::Engine};
use tokio::sync::watch;

use super::PdClient;
use crate::{AddressBook, Membership, gc::OldVersions, load::LoadMeter, measure::Sizes, steps::Steps};

/// How often the store looks for changes worth a report.
const POLL: Duration = Duration::from_millis(200);
/// A step has ended: what it made of the region, a leader of what was split off above all, shows within milliseconds. So
/// soon the store looks again,
const SOON: Duration = Duration::from_millis(5);
/// and so often.
const SOON_ROUNDS: u32 = 4;
/// A report at least this often: PD calls a store disconnected after five.
const BEAT: Duration = Duration::from_secs(1);
/// Everything is reported at least this often, so that a picture with a gap mends.
const FULL: Duration = Duration::from_secs(30);
/// After a failed report.
const RETRY: Duration = Duration::from_millis(100);
/// How long PD may keep the answer to a store that listens.
const LISTEN: Duration = Duration::from_secs(2);

/// Bytes of the disk under the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSpace {
    /// In all.
    pub capacity_bytes: u64,
    /// Free.
    pub available_bytes: u64,
}

/// What of a led region PD is told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    epoch: Epoch,
    term: Term,
    applied: LogIndex,
    /// Peers that follow closely: PD waits for learners to.
    following: Vec<PeerId>,
}

impl Told {
    /// What is worth a report at once.
    fn matters(&self) -> (Epoch, Term, &[PeerId]) {
        (self.epoch, self.term, &self.following)
    }
}

/// All replicas, looked at again only when one of them looks different: with 10,000 a look takes milliseconds.
#[derive(Default)]
struct Look {
    /// [`StoreHandle::changes`] before it was taken.
    changes: u64,
    /// By region: that of PD's comes first, and is always of now.
    replicas: Vec<ReplicaStatus>,
}

impl Look {
    fn of(store: &StoreHandle, last: Look) -> Look {
        let changes = store.changes();
        if last.changes != changes {
            return Look { changes, replicas: store.statuses() };
        }
        let mut look = last;
        let first = look.replicas.first_mut().filter(|r| r.view.region.id == PD_REGION);
        if let Some((known, now)) = first.zip(store.status(PD_REGION)) {
            *known = now;
        }
        look
    }

    /// PD's region, if it is led here.
    fn pd_region(&self) -> Option<&ReplicaStatus> {
        self.replicas.first().filter(|r| r.view.region.id == PD_REGION && r.view.serves)
    }
}

/// Decides what is due. PURE.
#[derive(Default)]
struct Reporter {
    /// Everything that a look of this number shows was reported.
    settled: Option<u64>,
    leaders: usize,
    /// Led regions as last reported to the PD of this term.
    reported: BTreeMap<RegionId, Told>,
    pd_term: u64,
    last: Option<Instant>,
    last_full: Option<Instant>,
}

/// A report to make.
struct Due<'a> {
    full: bool,
    /// Everything that differs is in it, also what was merely written to.
    beat: bool,
    changes: u64,
    regions: Vec<&'a ReplicaStatus>,
    /// How many this store leads.
    leaders: usize,
}

fn told(replica: &ReplicaStatus) -> Told {
    let close = |p: &&raftstore::PeerProgress| {
        p.active
            && !p.needs_snapshot
            && p.matched.0.saturating_add(pd::cluster::CAUGHT_UP_ENTRIES) >= replica.committed.0
    };
    Told {
        epoch: replica.view.region.epoch,
        term: replica.view.term,
        applied: replica.applied,
        following: replica.progress.iter().filter(close).map(|p| p.peer).collect(),
    }
}

impl Reporter {
    fn due<'a>(&self, now: Instant, look: &'a Look) -> Option<Due<'a>> {
        let over = |last: Option<Instant>, after| last.is_none_or(|last| now.since(last) >= after);
        let (beat, changes) = (over(self.last, BEAT), look.changes);
        let changed = |r: &ReplicaStatus| {
            let (now, before) = (told(r), self.reported.get(&r.view.region.id));
            // What was merely written to is worth no report of its own.
            before.is_none_or(|b| b.matters() != now.matters() || (beat && *b != now))
        };
        let leads_pd = look.pd_region().is_some();
        if self.settled == Some(changes)
            && !over(self.last_full, FULL)
            && self.reported.contains_key(&PD_REGION) == leads_pd
        {
            let regions: Vec<_> = look.pd_region().into_iter().filter(|r| changed(r)).collect();
            let leaders = self.leaders;
            return (beat || !regions.is_empty()).then_some(Due { full: false, beat, changes, regions, leaders });
        }
        let serving: Vec<_> = look.replicas.iter().filter(|r| r.view.serves).collect();
        let leaders = serving.len();
        // Of a region that is led no more only a full report can tell.
        let led: BTreeSet<_> = serving.iter().map(|r| r.view.region.id).collect();
        let lost = self.reported.keys().any(|id| !led.contains(id));
        if lost || over(self.last_full, FULL) {
            return Some(Due { full: true, beat: true, changes, regions: serving, leaders });
        }
        let regions: Vec<_> = serving.iter().filter(|r| changed(r)).copied().collect();
        (beat || !regions.is_empty()).then_some(Due { full: false, beat, changes, regions, leaders })
    }

    /// PD took it. True: it is another PD than the last one, and must be told everything.
    fn taken(&mut self, now: Instant, pd_term: u64, due: &Due<'_>) -> bool {
        self.last = Some(now);
        if due.beat {
            (self.settled, self.leaders) = (Some(due.changes), due.leaders);
        }
        let new_pd = std::mem::replace(&mut self.pd_term, pd_term) != pd_term;
        if due.full {
            self.reported.clear();
            self.last_full = Some(now);
        } else if new_pd {
            self.last_full = None;
        }
        self.reported.extend(due.regions.iter().map(|r| (r.view.region.id, told(r))));
        new_pd && !due.full
    }
}

/// The store's reports, and what PD tells in return.
pub struct Heartbeat {
    /// Of this node.
    pub membership: Arc<Membership>,
    /// The cluster.
    pub cluster: ClusterId,
    /// The store's record as PD shall keep it.
    pub record: wire::Store,
    /// The store.
    pub store: StoreHandle,
    /// Finds PD.
    pub pd: PdClient,
    /// Follows PD's list of stores.
    pub book: Arc<AddressBook>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The disk.
    pub disk: Arc<dyn Fn() -> DiskSpace + Send + Sync>,
    /// The state, to measure regions.
    pub engine: Arc<dyn Engine>,
    /// What regions have to do.
    pub load: Arc<LoadMeter>,
    /// How large they are.
    pub sizes: Arc<Sizes>,
    /// What is said of old versions.
    pub old_versions: Arc<OldVersions>,
    /// Carries out what PD answers.
    pub steps: Arc<Steps>,
    /// Set when the process is about to end.
    pub stopping: Arc<AtomicBool>,
    /// Why this node must end, once it must.
    pub end: watch::Sender<Option<String>>,
}

impl Heartbeat {
    /// Reports until the node stops.
    pub async fn run(self: Arc<Self>) {
        let (mut region_one, mut ended) = (self.store.watch(PD_REGION), self.steps.ended());
        let (mut reporter, mut trouble) = (Reporter::default(), String::new());
        let (mut look, mut stopping, mut measuring, mut soon) = (Look::default(), false, true, 0);
        loop {
            let seen = look.changes;
            look = Look::of(&self.store, look);
            measuring |= look.changes != seen;
            let now = self.clock.now();
            if !std::mem::replace(&mut stopping, self.stopping.load(Ordering::Relaxed)) && stopping {
                reporter.last = None;
            }
            if let Some(due) = reporter.due(now, &look) {
                if measuring {
                    let serving: Vec<_> = look.replicas.iter().filter(|r| r.view.serves).collect();
                    measuring = self.sizes.round(&self.store, &*self.engine, &serving);
                }
                let request = self.request(now, &due, &look.replicas);
                let (asked, answer) = (self.clock.now(), self.pd.heartbeat(request).await);
                let said = match &answer {
                    Ok(answer) => answer.refusal.clone(),
                    Err(reason) => reason.clone(),
                };
                self.report_trouble(&mut trouble, said);
                let Ok(answer) = answer else {
                    self.clock.sleep(RETRY).await;
                    continue;
                };
                if let Some(grant) = &answer.safe_point {
                    self.old_versions.granted(asked, grant);
                }
                if answer.removed {
                    self.must_end();
                }
                let again = reporter.taken(now, answer.pd_term, &due);
                self.follow(answer, due.full).await;
                if again {
                    continue;
                }
            }
            // A new PD may be there, or a step has ended.
            let news = select(Box::pin(region_one.changed()), Box::pin(ended.changed()));
            let pause = if soon > 0 { SOON } else { POLL };
            soon = match select(news, self.clock.sleep(pause)).await {
                Either::Left((Either::Right(_), _)) => SOON_ROUNDS,
                _ => soon.saturating_sub(1),
            };
        }
    }

    /// Waits for steps until the node stops.
    pub async fn listen(self: Arc<Self>) {
        loop {
            let request = HeartbeatRequest {
                cluster_id: self.cluster.0,
                store: Some(StoreStatus { store: Some(self.record.clone()), ..StoreStatus::default() }),
                listen_ms: LISTEN.as_millis() as u64,
                ..HeartbeatRequest::default()
            };
            match self.pd.heartbeat(request).await {
                Ok(answer) if answer.refusal.is_empty() => self.steps.begin(answer.steps),
                // The reports say why.
                _ => self.clock.sleep(BEAT).await,
            }
        }
    }

    fn request(&self, now: Instant, due: &Due<'_>, replicas: &[ReplicaStatus]) -> HeartbeatRequest {
        let disk = (self.disk)();
        let status = StoreStatus {
            store: Some(self.record.clone()),
            regions: replicas.len() as u64,
            leaders: due.leaders as u64,
            capacity_bytes: disk.capacity_bytes,
            available_bytes: disk.available_bytes,
            boot_id: self.membership.boot_id(),
            stopping: self.stopping.load(Ordering::Relaxed),
            snapshots: Some(self.snapshots()),
            slow_score: self.store.slow_score(),
            ..StoreStatus::default()
        };
        HeartbeatRequest {
            cluster_id: self.cluster.0,
            store: Some(status),
            regions: due.regions.iter().map(|r| region_status(r, &self.sizes, &self.load, now)).collect(),
            full: due.full,
            wall_ms: self.clock.wall_ms(),
            failures: self.steps.failures(),
            listen_ms: 0,
            safe_point: Some(self.old_versions.report()),
            stale: if due.full { replicas.iter().filter_map(orphan).collect() } else { vec![] },
        }
    }

    fn snapshots(&self) -> SnapshotCounts {
        let counts = self.store.snapshots();
        SnapshotCounts {
            sending: counts.sending,
            receiving: counts.receiving,
            sent: counts.sent,
            received: counts.received,
            bytes: counts.bytes,
        }
    }

    /// PD says that this store was removed. It holds nothing, or what others have too; it never comes back as this store.
    fn must_end(&self) {
        let reason = format!(
            "store {} was removed from the cluster: this node ends. With an empty data directory it joins as a new store",
            self.record.id
        );
        if self.end.send_replace(Some(reason.clone())).is_none() {
            tracing::error!(reason, "this node must stop");
        }
    }

    fn report_trouble(&self, before: &mut String, now: String) {
        if *before == now {
            return;
        }
        let store = self.record.id;
        match now.is_empty() {
            false => tracing::warn!(store, reason = now, "PD did not take this store's report"),
            true => tracing::info!(store, "PD takes this store's reports"),
        }
        *before = now;
    }

    /// A region goes on without this store's replica, which has not heard: told as another replica would tell it.
    fn leave(&self, gone: wire::Region) {
        let replica = self.store.status(RegionId(gone.id));
        let (Some(replica), Some(from)) = (replica, gone.peers.first().copied()) else { return };
        let to = Some(replica.view.peer.into());
        let (region_id, epoch) = (gone.id, gone.epoch);
        let message =
            wire::RaftMessage { region_id, from: Some(from), to, epoch, gone: Some(gone), ..Default::default() };
        // When too much waits, the next full report asks again.
        let _ = self.store.deliver(wire::RaftFrame { messages: vec![message], ..Default::default() });
    }

    /// Region 1's peers and the stores' addresses, as PD knows them.
    async fn follow(&self, answer: HeartbeatResponse, full: bool) {
        self.steps.begin(answer.steps);
        answer.gone.into_iter().for_each(|region| self.leave(region));
        let region = answer.pd_region.and_then(|r| Some((proto::Region::try_from(r.clone()).ok()?, r)));
        if let Some((region, message)) = region
            && self.pd.set_pd_region(&region)
            && let Err(error) = self.membership.remember_pd_region(&message)
        {
            tracing::error!(%error, "region 1's peers could not be remembered");
        }
        // A new store may be about to get a replica from here.
        if !full && answer.store_count as usize == self.book.stores().len() {
            return;
        }
        let Ok(stores) = self.pd.stores().await else { return };
        let records: Vec<_> = stores.into_iter().filter_map(|s| s.store).collect();
        if self.book.update(&records)
            && let Err(error) = self.membership.remember_addresses(&self.book.records())
        {
            tracing::error!(%error, "the stores' addresses could not be remembered");
        }
    }
}

/// A replica that hears of no leader, or sleeps and hears of nobody: its region may have gone on without it.
fn orphan(replica: &ReplicaStatus) -> Option<StaleReplica> {
    let view = &replica.view;
    let hears = view.leader.is_some() && !(view.asleep && view.role == Role::Follower);
    (!hears).then(|| StaleReplica {
        region_id: view.region.id.0,
        peer_id: view.peer.id.0,
        epoch: Some(view.region.epoch.into()),
    })
}

/// A replica as PD and people are told about it.
pub fn region_status(replica: &ReplicaStatus, sizes: &Sizes, load: &LoadMeter, now: Instant) -> RegionStatus {
    let view = &replica.view;
    let leads = view.role == Role::Leader;
    let size = if leads { sizes.of(view.region.id) } else { Default::default() };
    let progress = replica.progress.iter().filter(|p| p.peer != view.peer.id).map(|p| PeerProgress {
        peer_id: p.peer.0,
        matched: p.matched.0,
        active: p.active,
        needs_snapshot: p.needs_snapshot,
    });
    RegionStatus {
        region: Some((&*view.region).into()),
        leader: view.leader.map(Into::into),
        term: view.term.0,
        applied_index: replica.applied.0,
        committed_index: replica.committed.0,
        approximate_bytes: size.bytes,
        progress: if leads { progress.collect() } else { vec![] },
        load: if leads { load.load(now, view.region.id) } else { None },
        approximate_keys: size.keys,
    }
}

#[cfg(test)]
mod tests {
    use proto::{KeyRange, Peer, PeerId, PeerRole, Region, StoreId};
    use raftstore::ReplicaView;

    use super::*;

    fn replica(region: u64, term: u64, applied: u64) -> ReplicaStatus {
        let peer = Peer { id: PeerId(region), store: StoreId(1), role: PeerRole::Voter };
        let epoch = Epoch { conf_ver: 1, version: 1 };
        let region = Arc::new(Region { id: RegionId(region), range: KeyRange::default(), epoch, peers: vec![peer] });
        let (role, term, applied) = (Role::Leader, Term(term), LogIndex(applied));
        let view = ReplicaView {
            region,
            peer,
            role,
            term,
            leader: Some(peer),
            serves: true,
            merging: false,
            merged_away: false,
            lease_until: None,
            split_off: Arc::default(),
            asleep: false,
            restorations: 0,
        };
        ReplicaStatus { view: Arc::new(view), applied, committed: applied, progress: Vec::new() }
    }

    /// What is due at a millisecond, as (full, region ids); PD of `pd_term` takes it.
    fn report(r: &mut Reporter, ms: u64, pd_term: u64, replicas: &[ReplicaStatus]) -> Option<(bool, Vec<u64>, bool)> {
        let now = Instant(Duration::from_millis(ms));
        // Another look at the same is no news.
        let changes = replicas.iter().map(|r| r.view.region.id.0 * 1_000 + r.applied.0).sum();
        let look = Look { changes, replicas: replicas.to_vec() };
        let due = r.due(now, &look)?;
        let ids = due.regions.iter().map(|r| r.view.region.id.0).collect();
        let again = r.taken(now, pd_term, &due);
        Some((due.full, ids, again))
    }

    #[test]
    fn who_hears_of_nobody_asks_pd() {
        let seen_as = |role, asleep| {
            let mut replica = replica(1, 7, 5);
            replica.view = Arc::new(ReplicaView { role, asleep, ..ReplicaView::clone(&replica.view) });
            orphan(&replica).is_some()
        };
        assert!(seen_as(Role::Follower, true), "its removal may have passed it by");
        assert!(!seen_as(Role::Follower, false) && !seen_as(Role::Leader, true));
    }

    #[test]
    fn changes_are_reported_at_once_progress_with_the_beat_and_all_to_a_new_pd() {
        let mut r = Reporter::default();
        assert_eq!(report(&mut r, 0, 7, &[replica(1, 7, 5)]), Some((true, vec![1], false)));
        assert_eq!(report(&mut r, 200, 7, &[replica(1, 7, 9)]), None);
        assert_eq!(report(&mut r, 400, 7, &[replica(1, 7, 9), replica(2, 6, 5)]), Some((false, vec![2], false)));
        assert_eq!(report(&mut r, 1400, 7, &[replica(1, 7, 9), replica(2, 6, 5)]), Some((false, vec![1], false)));
        assert_eq!(report(&mut r, 2400, 8, &[replica(1, 7, 9), replica(2, 6, 5)]), Some((false, vec![], true)));
        assert_eq!(report(&mut r, 2400, 8, &[replica(1, 7, 9), replica(2, 6, 5)]), Some((true, vec![1, 2], false)));
        assert_eq!(report(&mut r, 2600, 8, &[replica(2, 6, 5)]), Some((true, vec![2], false)), "1 is led no more");
        assert_eq!(report(&mut r, 3600, 8, &[replica(2, 6, 5)]), Some((false, vec![], false)), "a beat without news");
        assert_eq!(report(&mut r, 3800, 8, &[replica(2, 6, 5)]), None);
        assert_eq!(report(&mut r, 32_600, 8, &[replica(2, 6, 5)]), Some((true, vec![2], false)));
    }
}
