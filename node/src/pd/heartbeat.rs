//! What this store reports to PD, and when.
//!
//! A beat a second says that the store is there. A change of what it leads is reported within [`POLL`]; to a new
//! PD, which knows nothing yet, everything it leads at once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::select;
use kv::{Clock, Pd};
use proto::{
    ClusterId, Epoch, PD_REGION, RegionId, Term,
    wire::{self, HeartbeatRequest, HeartbeatResponse, RegionStatus, StoreStatus},
};
use raftstore::{Instant, ReplicaStatus, Role, StoreHandle};

use super::PdClient;
use crate::{AddressBook, Membership};

/// How often the store looks for changes worth a report.
const POLL: Duration = Duration::from_millis(200);
/// A report at least this often: PD calls a store disconnected after five.
const BEAT: Duration = Duration::from_secs(1);
/// Everything is reported at least this often: sizes drift, and so would a picture with a gap.
const FULL: Duration = Duration::from_secs(10);
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

/// Decides what is due. PURE.
#[derive(Default)]
struct Reporter {
    /// Led regions as last reported to the PD of this term.
    reported: BTreeMap<RegionId, (Epoch, Term)>,
    pd_term: u64,
    last: Option<Instant>,
    last_full: Option<Instant>,
}

/// A report to make.
struct Due<'a> {
    full: bool,
    led: Vec<&'a ReplicaStatus>,
    seen: BTreeMap<RegionId, (Epoch, Term)>,
}

impl Reporter {
    fn due<'a>(&self, now: Instant, replicas: &'a [ReplicaStatus]) -> Option<Due<'a>> {
        let serving: Vec<_> = replicas.iter().filter(|r| r.view.serves).collect();
        let version = |r: &ReplicaStatus| (r.view.region.id, (r.view.region.epoch, r.view.term));
        let seen: BTreeMap<_, _> = serving.iter().map(|r| version(r)).collect();
        let over = |last: Option<Instant>, after| last.is_none_or(|last| now.since(last) >= after);
        // Of a region that is led no more only a full report can tell.
        let lost = self.reported.keys().any(|id| !seen.contains_key(id));
        if lost || over(self.last_full, FULL) {
            return Some(Due { full: true, led: serving, seen });
        }
        let changed = |r: &&&ReplicaStatus| self.reported.get(&r.view.region.id) != Some(&version(r).1);
        let led: Vec<_> = serving.iter().filter(changed).copied().collect();
        (!led.is_empty() || over(self.last, BEAT)).then_some(Due { full: false, led, seen })
    }

    /// PD took it. True: it is another PD than the last one, and must be told everything.
    fn taken(&mut self, now: Instant, pd_term: u64, full: bool, seen: BTreeMap<RegionId, (Epoch, Term)>) -> bool {
        self.last = Some(now);
        self.reported = seen;
        let new_pd = self.pd_term != pd_term;
        self.pd_term = pd_term;
        if full {
            self.last_full = Some(now);
        } else if new_pd {
            self.last_full = None;
        }
        new_pd && !full
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
                let (full, sent_at) = (due.full, self.clock.now());
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
                let again = reporter.taken(sent_at, answer.pd_term, full, due.seen);
                self.follow(answer, full).await;
                if again {
                    continue;
                }
            }
            match &mut region_one {
                // A new PD may be there.
                Some(leadership) => {
                    let _ = select(std::pin::pin!(leadership.changed()), self.clock.sleep(POLL)).await;
                }
                None => self.clock.sleep(POLL).await,
            }
        }
    }

    fn request(&self, due: &Due<'_>, replicas: usize) -> HeartbeatRequest {
        let disk = (self.disk)();
        let status = StoreStatus {
            store: Some(self.record.clone()),
            regions: replicas as u64,
            leaders: due.seen.len() as u64,
            capacity_bytes: disk.capacity_bytes,
            available_bytes: disk.available_bytes,
            silent_ms: 0,
            boot_id: self.membership.boot_id(),
        };
        HeartbeatRequest {
            cluster_id: self.cluster.0,
            store: Some(status),
            regions: due.led.iter().map(|r| region_status(&self.store, r)).collect(),
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
