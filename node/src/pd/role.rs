//! PD as a role: it starts when this store serves region 1, and stops when it does not any more.
//!
//! ```text
//!   this replica of region 1:  follower │ leader t7, serves        │ follower │ leader t9, serves
//!   role:                      –        │ Service(t7) ─────────────┤ –        │ Service(t9)
//! ```
//!
//! A service that lingers a moment too long does no harm: whatever it does is fenced by its term.

use std::{sync::Arc, time::Duration};

use futures::future::{Either, select};
use kv::{Clock, deadlock::Detector};
use parking_lot::{Mutex, RwLock};
use pd::{Answer, MetaError, Now, Service, Settings};
use proto::{
    ClusterId, PD_REGION, Region, Timestamp,
    wire::{
        self, HeartbeatRequest, HeartbeatResponse, PdRequest, PdResponse, RegionError, pd_request::Body,
        pd_response::Body as Out,
    },
};
use raftstore::{Leadership, ReplicaView, StoreHandle};
use tokio::sync::watch;

use super::region_one::RegionOne;

/// How often a PD that leads looks after its timestamp window: a few times within [`pd::tso::REFRESH_BELOW_MS`].
const TICK: Duration = Duration::from_millis(250);
/// Between attempts to take office while region 1 can't be read.
const RETRY: Duration = Duration::from_millis(100);
/// The longest a call may wait for something to happen; callers ask again.
pub const MAX_WAIT_MS: u64 = 10_000;

/// What a PD starts from, besides region 1.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The cluster.
    pub cluster: ClusterId,
    /// From the founding record.
    pub founders: Vec<wire::Store>,
    /// From the founding record.
    pub founded: Vec<Region>,
    /// What PD strives for.
    pub rules: pd::Rules,
    /// An invariant to break.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<pd::Planted>,
}

/// The role of this node.
pub struct PdRole {
    origin: Origin,
    store: StoreHandle,
    clock: Arc<dyn Clock>,
    /// Of region 1, of which there may be no replica here.
    leadership: watch::Receiver<Leadership>,
    running: RwLock<Option<Arc<Service>>>,
    /// Who waits for whom on all stores. Every PD hears it anew.
    deadlocks: Mutex<Detector>,
}

/// Both clocks of this node, as PD's cores take them.
pub fn now(clock: &dyn Clock) -> Now {
    Now { monotonic_ms: clock.now().0.as_millis() as u64, wall_ms: clock.wall_ms() }
}

impl PdRole {
    /// The role over this node's store. Inactive until [`PdRole::run`].
    pub fn new(origin: Origin, store: StoreHandle, clock: Arc<dyn Clock>) -> Self {
        let leadership = store.watch(PD_REGION);
        PdRole { origin, store, clock, leadership, running: RwLock::new(None), deadlocks: Mutex::default() }
    }

    /// Whether this node is PD, as far as it knows.
    pub fn is_running(&self) -> bool {
        self.running.read().is_some()
    }

    /// PD, while this node is it.
    pub fn service(&self) -> Option<Arc<Service>> {
        self.running.read().clone()
    }

    /// What this PD has done; nothing, on any other node.
    pub fn counts(&self) -> Option<pd::Counts> {
        self.running.read().as_ref().map(|service| service.counts())
    }

    /// Who leads region 1, as this store's replica sees it from now on; nobody, while there is no replica here.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        let mut leadership = self.leadership.clone();
        leadership.mark_unchanged();
        leadership
    }

    /// Starts and stops the service as region 1's leadership comes and goes. Ends when the store is gone.
    pub async fn run(self: Arc<Self>) {
        let mut leadership = self.leadership.clone();
        loop {
            let now = *leadership.borrow_and_update();
            self.follow(now).await;
            let next = std::pin::pin!(leadership.changed());
            match select(next, self.clock.sleep(self.pause(now))).await {
                Either::Left((Err(_), _)) => return self.resign("the store stopped"),
                Either::Left((Ok(()), _)) => {}
                Either::Right(_) => self.tick().await,
            }
        }
    }

    /// How long nothing has to be done if leadership does not change.
    fn pause(&self, seen: Leadership) -> Duration {
        match (seen.serves, self.is_running()) {
            (true, true) => TICK,
            (true, false) => RETRY,
            // Only a change can bring work; the sleep merely ends.
            (false, _) => Duration::from_secs(3_600),
        }
    }

    async fn follow(&self, seen: Leadership) {
        let current = self.running.read().clone();
        if let Some(service) = current {
            if seen.serves && service.term() == seen.term && !service.has_failed() {
                return;
            }
            self.resign(if service.has_failed() { "a write's outcome was lost" } else { "region 1 is led by another" });
        }
        if !seen.serves {
            return;
        }
        let Some(view) = self.region_one() else { return };
        let meta = Arc::new(RegionOne::new(self.store.clone(), &view.region, seen.term));
        let settings = Settings {
            cluster: self.origin.cluster,
            me: view.peer,
            term: seen.term,
            founders: self.origin.founders.clone(),
            founded: self.origin.founded.clone(),
            rules: self.origin.rules.clone(),
            #[cfg(feature = "planted-bugs")]
            planted: self.origin.planted,
        };
        match Service::start(meta, settings, now(&*self.clock)).await {
            Ok(service) => *self.running.write() = Some(Arc::new(service)),
            Err(error) => tracing::warn!(term = seen.term.0, %error, "PD could not take office yet"),
        }
    }

    fn region_one(&self) -> Option<Arc<ReplicaView>> {
        self.store.status(PD_REGION).map(|s| s.view)
    }

    fn resign(&self, reason: &str) {
        if let Some(service) = self.running.write().take() {
            tracing::info!(term = service.term().0, reason, "PD leaves office");
            service.resign();
        }
    }

    async fn tick(&self) {
        let service = self.running.read().clone();
        if let Some(service) = service
            && let Err(error) = service.tick(now(&*self.clock)).await
        {
            tracing::warn!(term = service.term().0, %error, "PD could not extend its timestamp window");
            return;
        }
        let service = self.running.read().clone();
        if let Some(service) = service
            && let Err(error) = service.plan(now(&*self.clock)).await
        {
            tracing::warn!(term = service.term().0, %error, "PD could not plan");
        }
    }

    /// `count` timestamps if this node is PD and nothing has to be waited for; the last of them.
    pub fn try_timestamps(&self, count: u32) -> Option<Timestamp> {
        self.running.read().as_ref()?.try_timestamps(now(&*self.clock), count)
    }

    /// "Not here", and where perhaps.
    fn not_pd(&self) -> RegionError {
        let seen = *self.leadership.borrow();
        if seen.leader.is_none() && self.region_one().is_none() {
            return RegionError::region_not_found(PD_REGION);
        }
        RegionError::not_leader(PD_REGION, seen.leader.filter(|l| l.store != self.store.store()), seen.term)
    }

    /// Answers a request as PD; waits as long as the request says (at most [`MAX_WAIT_MS`]).
    pub async fn call(&self, request: PdRequest) -> PdResponse {
        let error = |e| PdResponse { error: Some(e), ..PdResponse::default() };
        let wait_ms = match &request.body {
            Some(Body::CatalogLease(r)) => r.wait_ms,
            Some(Body::CatalogPublish(r)) => r.wait_ms,
            _ => 0,
        };
        let until = self.clock.now() + Duration::from_millis(wait_ms.min(MAX_WAIT_MS));
        let Some(service) = self.running.read().clone() else { return error(self.not_pd()) };
        let request = match request.body {
            Some(Body::ReportWaits(report)) => return self.waits_reported(report),
            body => PdRequest { body, ..request },
        };
        let mut changes = service.changes();
        loop {
            changes.mark_unchanged();
            let (otherwise, recheck_ms) = match service.call(now(&*self.clock), &request).await {
                Answer::Done(response) => return response,
                Answer::Wait { otherwise, recheck_ms } => (otherwise, recheck_ms),
            };
            let left = until.since(self.clock.now());
            if left.is_zero() {
                return otherwise;
            }
            let pause = recheck_ms.map_or(left, |ms| left.min(Duration::from_millis(ms)));
            // Whatever ends the wait, the request is looked at anew.
            let _ = select(std::pin::pin!(changes.changed()), self.clock.sleep(pause)).await;
        }
    }

    /// Looks for deadlocks. A PD that is none any more does no harm: the waits it is told of stand.
    fn waits_reported(&self, report: wire::ReportWaitsRequest) -> PdResponse {
        let waits = report.waits.into_iter().map(Into::into).collect();
        let found = self.deadlocks.lock().report(report.store_id, waits, self.clock.now());
        let deadlocks = found.into_iter().map(Into::into).collect();
        let body = Some(Out::ReportWaits(wire::ReportWaitsResponse { deadlocks }));
        PdResponse { body, ..PdResponse::default() }
    }

    /// Keeps a store that listens until there is a step for it.
    async fn listen(&self, service: &Service, request: &HeartbeatRequest) -> Result<HeartbeatResponse, MetaError> {
        let until = self.clock.now() + Duration::from_millis(request.listen_ms.min(MAX_WAIT_MS));
        let mut changes = service.changes();
        loop {
            changes.mark_unchanged();
            // An empty answer would make the store ask again at once, until this role has followed.
            if service.has_failed() {
                return Err(MetaError::NotLeading(Box::new(self.not_pd())));
            }
            if let Some(answer) = service.listen(now(&*self.clock), request).await? {
                return Ok(answer);
            }
            let left = until.since(self.clock.now());
            if left.is_zero() {
                return Ok(service.nothing_to_do());
            }
            let _ = select(std::pin::pin!(changes.changed()), self.clock.sleep(left)).await;
        }
    }

    /// Takes a store's report as PD, or keeps it while it listens. `pd_term` 0 in the answer: this node is not PD.
    pub async fn heartbeat(&self, request: HeartbeatRequest) -> HeartbeatResponse {
        let service = self.running.read().clone();
        let answer = match service {
            Some(service) if request.listen_ms > 0 => self.listen(&service, &request).await,
            Some(service) => service.heartbeat(now(&*self.clock), request).await,
            None => Err(MetaError::NotLeading(Box::new(self.not_pd()))),
        };
        answer.unwrap_or_else(|error| HeartbeatResponse {
            refusal: error.to_string(),
            leader: match &error {
                MetaError::NotLeading(e) => e.leader_hint().map(Into::into),
                _ => None,
            },
            ..HeartbeatResponse::default()
        })
    }
}
