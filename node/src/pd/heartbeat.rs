//! What this store reports to PD, and when.
//!
//! A beat a second says that the store is there, and which of its regions have moved on. A change of what it leads is
//! reported within a fifth of that; to a new PD, which knows nothing yet, everything it leads at once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::select;
use kv::{Clock, Pd};
use proto::{
    ClusterId, Epoch, LogIndex, PD_REGION, RegionId, Term,
    wire::{self, HeartbeatRequest, HeartbeatResponse, RegionStatus, StoreStatus},
};
use raftstore::{Instant, ReplicaStatus, Role, StoreHandle};

use super::PdClient;
use crate::{AddressBook, Membership};

/// How often the store looks for changes worth a report.
const POLL: Duration = Duration::from_millis(200);
/// A report at least this often: PD calls a store disconnected after five.
const BEAT: Duration = Duration::from_secs(1);
/// Everything is reported at least this often, so that a picture with a gap mends.
const FULL: Duration = Duration::from_secs(30);
/// After a failed report.
const RETRY: Duration = Duration::from_millis(100);

/// Bytes of the disk under the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSpace {
    /// In all.
    pub capacity_bytes: u64,
    /// Free.
    pub available_bytes: u64,
}

/// What of a led region PD is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    epoch: Epoch,
    term: Term,
    applied: LogIndex,
}

/// Decides what is due. PURE.
#[derive(Default)]
struct Reporter {
    /// Led regions as last reported to the PD of this term.
    reported: BTreeMap<RegionId, Told>,
    pd_term: u64,
    last: Option<Instant>,
    last_full: Option<Instant>,
}

/// A report to make.
struct Due<'a> {
    full: bool,
    regions: Vec<&'a ReplicaStatus>,
    /// How many this store leads.
    leaders: usize,
}

fn told(replica: &ReplicaStatus) -> Told {
    Told { epoch: replica.view.region.epoch, term: replica.view.term, applied: replica.applied }
}

impl Reporter {
    fn due<'a>(&self, now: Instant, replicas: &'a [ReplicaStatus]) -> Option<Due<'a>> {
        let serving: Vec<_> = replicas.iter().filter(|r| r.view.serves).collect();
        let leaders = serving.len();
        let over = |last: Option<Instant>, after| last.is_none_or(|last| now.since(last) >= after);
        // Of a region that is led no more only a full report can tell.
        let lost = self.reported.keys().any(|id| !serving.iter().any(|r| r.view.region.id == *id));
        if lost || over(self.last_full, FULL) {
            return Some(Due { full: true, regions: serving, leaders });
        }
        let beat = over(self.last, BEAT);
        let changed = |r: &&&ReplicaStatus| {
            let (now, before) = (told(r), self.reported.get(&r.view.region.id));
            // What was merely written to is worth no report of its own.
            before.is_none_or(|b| (b.epoch, b.term) != (now.epoch, now.term) || (beat && *b != now))
        };
        let regions: Vec<_> = serving.iter().filter(changed).copied().collect();
        (beat || !regions.is_empty()).then_some(Due { full: false, regions, leaders })
    }

    /// PD took it. True: it is another PD than the last one, and must be told everything.
    fn taken(&mut self, now: Instant, pd_term: u64, due: &Due<'_>) -> bool {
        self.last = Some(now);
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
}

impl Heartbeat {
    /// Reports until the node stops.
    pub async fn run(self) {
        let mut region_one = self.store.watch(PD_REGION);
        let (mut reporter, mut trouble) = (Reporter::default(), String::new());
        loop {
            let replicas = self.store.statuses();
            if let Some(due) = reporter.due(self.clock.now(), &replicas) {
                let sent_at = self.clock.now();
                let answer = self.pd.heartbeat(self.request(&due, replicas.len())).await;
                let said = match &answer {
                    Ok(answer) => answer.refusal.clone(),
                    Err(reason) => reason.clone(),
                };
                self.report_trouble(&mut trouble, said);
                let Ok(answer) = answer else {
                    self.clock.sleep(RETRY).await;
                    continue;
                };
                let again = reporter.taken(sent_at, answer.pd_term, &due);
                self.follow(answer, due.full).await;
                if again {
                    continue;
                }
            }
            // A new PD may be there.
            let _ = select(std::pin::pin!(region_one.changed()), self.clock.sleep(POLL)).await;
        }
    }

    fn request(&self, due: &Due<'_>, replicas: usize) -> HeartbeatRequest {
        let disk = (self.disk)();
        let status = StoreStatus {
            store: Some(self.record.clone()),
            regions: replicas as u64,
            leaders: due.leaders as u64,
            capacity_bytes: disk.capacity_bytes,
            available_bytes: disk.available_bytes,
            silent_ms: 0,
            boot_id: self.membership.boot_id(),
        };
        HeartbeatRequest {
            cluster_id: self.cluster.0,
            store: Some(status),
            regions: due.regions.iter().map(|r| region_status(&self.store, r)).collect(),
            full: due.full,
            wall_ms: self.clock.wall_ms(),
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

    /// Region 1's peers and the stores' addresses, as PD knows them.
    async fn follow(&self, answer: HeartbeatResponse, full: bool) {
        let region = answer.pd_region.and_then(|r| Some((proto::Region::try_from(r.clone()).ok()?, r)));
        if let Some((region, message)) = region
            && self.pd.set_pd_region(&region)
            && let Err(error) = self.membership.remember_pd_region(&message)
        {
            tracing::error!(%error, "region 1's peers could not be remembered");
        }
        if !full {
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

/// A replica as PD and people are told about it.
pub fn region_status(store: &StoreHandle, replica: &ReplicaStatus) -> RegionStatus {
    let view = &replica.view;
    let approximate_bytes = match view.role {
        Role::Leader => store.approximate_bytes(view.region.id).unwrap_or(0),
        _ => 0,
    };
    RegionStatus {
        region: Some((&*view.region).into()),
        leader: view.leader.map(Into::into),
        term: view.term.0,
        applied_index: replica.applied.0,
        committed_index: replica.committed.0,
        approximate_bytes,
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
            lease_until: None,
            asleep: false,
            split_off: Arc::default(),
        };
        ReplicaStatus { view: Arc::new(view), applied, committed: applied, progress: Vec::new() }
    }

    /// What is due at a millisecond, as (full, region ids); PD of `pd_term` takes it.
    fn report(r: &mut Reporter, ms: u64, pd_term: u64, replicas: &[ReplicaStatus]) -> Option<(bool, Vec<u64>, bool)> {
        let now = Instant(Duration::from_millis(ms));
        let due = r.due(now, replicas)?;
        let ids = due.regions.iter().map(|r| r.view.region.id.0).collect();
        let again = r.taken(now, pd_term, &due);
        Some((due.full, ids, again))
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
    }
}
