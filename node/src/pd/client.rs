//! Finds PD and asks it, until a deadline.
//!
//! PD is whoever leads region 1: this very node (then nothing is sent), the one that answered last, the one an
//! answer names, or else the stores of region 1 in turn.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{Either, select};
use kv::{Clock, PdError, Spawn, deadlock::Deadlock, row_locks::Wait};
use parking_lot::{Mutex, RwLock};
use proto::{
    ClusterId, KeyRange, PROTOCOL_VERSION, Region, StoreId, Timestamp,
    wire::{
        self, AllocIdsRequest, CancelOperatorRequest, CancelOperatorResponse, CatalogLeaseRequest,
        CatalogPublishRequest, ClusterStatusRequest, ClusterStatusResponse, FindRegionRequest, FindRegionResponse,
        GatewayAliveRequest, GetRegionRequest, GetStoresRequest, HeartbeatRequest, HeartbeatResponse,
        LiveGatewaysRequest, OperatorsRequest, OperatorsResponse, PdRequest, PdResponse, PlanRequest, PlanResponse,
        RegionStatus, RegisterStoreRequest, RegisterStoreResponse, ReportWaitsRequest, RequestHeader, SafePointGrant,
        SafePointRequest, ScanRegionsRequest, SchedulersRequest, SchedulersResponse, SplitRegionRequest,
        StoreChangeRequest, StoreChangeResponse, StoreStatus, TimestampRequest, pd_request::Body,
        pd_response::Body as Out, plan_request::Kind,
    },
};
use raftstore::Instant;
use tokio::sync::{Notify, oneshot};

use super::role::{MAX_WAIT_MS, PdRole};
use crate::{AddressBook, CallError, NodeRpc};

/// How long a call looks for PD: several elections.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long one attempt may take before another store is asked, beside what the request itself waits.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause after the first failed attempt, doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Short against an election, so that a new PD is found soon after it took office.
const MAX_PAUSE: Duration = Duration::from_millis(160);
/// How long a report of waits looks for PD: it would soon be out of date.
const REPORT_DEADLINE: Duration = Duration::from_millis(500);
/// How long PD is asked to wait for gateways at a time.
const PUBLISH_WAIT_MS: u64 = 5_000;
/// How long a DDL may take to become known everywhere: any lease has run out long before.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(60);

/// Doors and clocks of a [`PdClient`].
#[derive(Clone)]
pub struct Doors {
    /// To other nodes.
    pub rpc: Arc<dyn NodeRpc>,
    /// Where they are.
    pub book: Arc<AddressBook>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Tasks.
    pub spawn: Arc<dyn Spawn>,
}

/// Asks PD. Cheap to clone.
#[derive(Clone)]
pub struct PdClient {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: ClusterId,
    doors: Doors,
    /// This node's store and its role, once it has a store.
    local: RwLock<Option<(StoreId, Arc<PdRole>)>>,
    target: Mutex<Target>,
    timestamps: Mutex<Queue>,
    /// Wakes whoever waits for an answer, in order, when this node sees another leader of region 1.
    moved: Notify,
}

/// Whom to ask.
#[derive(Default)]
struct Target {
    /// Stores with a peer of region 1.
    candidates: Vec<StoreId>,
    /// Answered last, or was named by somebody.
    leader: Option<StoreId>,
    /// Next of the candidates.
    turn: usize,
}

/// Where an attempt goes.
enum Door {
    /// To this node's own role.
    Here(StoreId, Arc<PdRole>),
    /// To another node.
    There(StoreId, String),
}

/// Callers that wait for a timestamp. One request is in flight at most; the next one carries all that queued.
#[derive(Default)]
struct Queue {
    waiting: Vec<oneshot::Sender<Result<Timestamp, PdError>>>,
    in_flight: bool,
}

impl PdClient {
    /// A client of the cluster whose region 1 has (or had) these peers.
    pub fn new(cluster: ClusterId, doors: Doors, pd_region: &Region) -> Self {
        let (local, target, timestamps) = (RwLock::new(None), Mutex::default(), Mutex::default());
        let inner = Inner { cluster, doors, local, target, timestamps, moved: Notify::new() };
        let client = PdClient { inner: Arc::new(inner) };
        client.set_pd_region(pd_region);
        client
    }

    /// From now on this node, as `store`, may be PD itself.
    pub fn set_local(&self, store: StoreId, role: Arc<PdRole>) {
        let mut leadership = role.leadership();
        *self.inner.local.write() = Some((store, role));
        // Nobody but this task follows region 1: a watch wakes its receivers in no order, and what woke up would go on in
        // none (the simulator repeats its runs).
        let inner = Arc::downgrade(&self.inner);
        self.inner.doors.spawn.spawn(Box::pin(async move {
            while leadership.changed().await.is_ok() {
                let Some(inner) = inner.upgrade() else { return };
                leadership.mark_unchanged();
                inner.moved.notify_waiters();
            }
        }));
    }

    /// Region 1 has these peers; whether that is new.
    pub fn set_pd_region(&self, region: &Region) -> bool {
        let peers: Vec<_> = region.peers.iter().map(|p| p.store).collect();
        let mut target = self.inner.target.lock();
        let old = std::mem::replace(&mut target.candidates, peers);
        old != target.candidates
    }

    /// The store to ask now.
    fn pick(&self) -> Option<StoreId> {
        let mut target = self.inner.target.lock();
        if target.leader.is_some() {
            return target.leader;
        }
        target.turn = target.turn.wrapping_add(1);
        let count = target.candidates.len().max(1);
        target.candidates.get(target.turn % count).copied()
    }

    /// `asked` is not PD; `hint` may be.
    fn learn(&self, asked: StoreId, hint: Option<StoreId>) {
        // A store that names itself is between terms: ask around.
        self.inner.target.lock().leader = hint.filter(|h| *h != asked);
    }

    fn answered(&self, store: StoreId) {
        self.inner.target.lock().leader = Some(store);
    }

    /// One attempt, at whoever seems to be PD.
    async fn attempt(&self, request: PdRequest, limit: Duration) -> Result<PdResponse, String> {
        let (store, response) = match self.door()? {
            Door::Here(store, role) => {
                (store, self.within(limit, role.call(request)).await.ok_or("no answer of this node as PD")?)
            }
            Door::There(store, address) => {
                (store, self.ask(store, limit, self.inner.doors.rpc.pd(&address, request)).await?)
            }
        };
        match &response.error {
            None => self.answered(store),
            Some(error) => {
                self.learn(store, error.leader_hint().map(|p| p.store));
                return Err(format!("{store}: {error}"));
            }
        }
        Ok(response)
    }

    fn door(&self) -> Result<Door, String> {
        let local = self.inner.local.read().clone();
        if let Some((store, role)) = &local
            && role.is_running()
        {
            return Ok(Door::Here(*store, role.clone()));
        }
        let store = self.pick().ok_or("region 1 has no known peers")?;
        match local {
            // Not PD, but its replica of region 1 may know who is.
            Some((own, role)) if own == store => Ok(Door::Here(own, role)),
            _ => match self.inner.doors.book.address(store) {
                Some(address) => Ok(Door::There(store, address)),
                None => {
                    self.learn(store, None);
                    Err(format!("the address of {store} is not known"))
                }
            },
        }
    }

    /// Calls another node. A call that hangs ends as soon as this node's replica of region 1 hears of another leader:
    /// the one asked may be a stopped process whose connections still stand.
    async fn ask<T>(
        &self,
        store: StoreId,
        limit: Duration,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, String> {
        let (failed, elsewhere) =
            match select(std::pin::pin!(self.within(limit, call)), std::pin::pin!(self.moved_from(store))).await {
                Either::Left((Some(Ok(answer)), _)) => return Ok(answer),
                Either::Left((Some(Err(error)), _)) => (format!("{store}: {error}"), None),
                Either::Left((None, _)) => (format!("{store}: no answer in time"), None),
                Either::Right((new, _)) => (format!("region 1 is led by {new} now"), Some(new)),
            };
        self.learn(store, elsewhere);
        Err(failed)
    }

    /// Completes when this node's replica of region 1 (if it has one) learns that another store than `asked` leads.
    async fn moved_from(&self, asked: StoreId) -> StoreId {
        let Some(role) = self.inner.local.read().as_ref().map(|(_, role)| role.clone()) else {
            return std::future::pending().await;
        };
        loop {
            self.inner.moved.notified().await;
            let leader = role.leadership().borrow().leader;
            if let Some(new) = leader.map(|l| l.store).filter(|l| *l != asked) {
                return new;
            }
        }
    }

    async fn within<T>(&self, limit: Duration, call: impl Future<Output = T>) -> Option<T> {
        match select(std::pin::pin!(call), self.inner.doors.clock.sleep(limit)).await {
            Either::Left((answer, _)) => Some(answer),
            Either::Right(_) => None,
        }
    }

    /// Asks until an answer or the deadline. PD's requests may all be repeated.
    async fn call(&self, body: Body, deadline: Instant) -> Result<Out, PdError> {
        let clock = &self.inner.doors.clock;
        let waits = match &body {
            Body::CatalogLease(r) => Duration::from_millis(r.wait_ms.min(MAX_WAIT_MS)),
            Body::CatalogPublish(r) => Duration::from_millis(r.wait_ms.min(MAX_WAIT_MS)),
            _ => Duration::ZERO,
        };
        let mut pause = FIRST_PAUSE;
        loop {
            let limit = (ATTEMPT + waits).min(deadline.since(clock.now()));
            let header = RequestHeader {
                cluster_id: self.inner.cluster.0,
                protocol_version: PROTOCOL_VERSION,
                deadline_ms: limit.as_millis() as u64,
                ..RequestHeader::default()
            };
            let request = PdRequest { header: Some(header), body: Some(body.clone()) };
            let reason = match self.attempt(request, limit).await {
                Ok(PdResponse { refusal, .. }) if !refusal.is_empty() => return Err(PdError::Refused(refusal)),
                Ok(PdResponse { body: Some(out), .. }) => return Ok(out),
                Ok(_) => "PD's answer has no body this version knows".into(),
                Err(reason) => reason,
            };
            if deadline.since(clock.now()) <= pause {
                return Err(PdError::Unavailable(reason));
            }
            clock.sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    fn deadline(&self) -> Instant {
        self.inner.doors.clock.now() + DEADLINE
    }

    /// One heartbeat to whoever seems to be PD. `Err`: it was not, or did not answer; the reason.
    pub async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, String> {
        let limit = ATTEMPT + Duration::from_millis(request.listen_ms);
        let (store, response) = match self.door()? {
            Door::Here(store, role) => {
                (store, self.within(limit, role.heartbeat(request)).await.ok_or("no answer in time")?)
            }
            Door::There(store, address) => {
                (store, self.ask(store, limit, self.inner.doors.rpc.heartbeat(&address, request)).await?)
            }
        };
        if response.pd_term == 0 {
            self.learn(store, response.leader.map(|p| StoreId(p.store_id)));
            return Err(response.refusal);
        }
        self.answered(store);
        Ok(response)
    }

    /// What PD knows of the cluster.
    pub async fn cluster_status(&self) -> Result<ClusterStatusResponse, PdError> {
        match self.call(Body::ClusterStatus(ClusterStatusRequest {}), self.deadline()).await? {
            Out::ClusterStatus(status) => Ok(status),
            _ => Err(odd_answer()),
        }
    }

    /// Asks PD to change regions: the operators that do it; none when it is so already.
    pub async fn plan(&self, request: PlanRequest) -> Result<PlanResponse, PdError> {
        match self.call(Body::Plan(request), self.deadline()).await? {
            Out::Plan(planned) => Ok(planned),
            _ => Err(odd_answer()),
        }
    }

    /// What PD is doing, and has done lately.
    pub async fn operators(&self, request: OperatorsRequest) -> Result<OperatorsResponse, PdError> {
        match self.call(Body::Operators(request), self.deadline()).await? {
            Out::Operators(found) => Ok(found),
            _ => Err(odd_answer()),
        }
    }

    /// Ends an operator.
    pub async fn cancel_operator(&self, id: u64) -> Result<CancelOperatorResponse, PdError> {
        match self.call(Body::CancelOperator(CancelOperatorRequest { id }), self.deadline()).await? {
            Out::CancelOperator(ended) => Ok(ended),
            _ => Err(odd_answer()),
        }
    }

    /// Drains a store, takes that back, or removes it.
    pub async fn change_store(&self, request: StoreChangeRequest) -> Result<StoreChangeResponse, PdError> {
        match self.call(Body::StoreChange(request), self.deadline()).await? {
            Out::StoreChange(changed) => Ok(changed),
            _ => Err(odd_answer()),
        }
    }

    /// PD's schedulers, after the named one was switched.
    pub async fn schedulers(&self, request: SchedulersRequest) -> Result<SchedulersResponse, PdError> {
        match self.call(Body::Schedulers(request), self.deadline()).await? {
            Out::Schedulers(list) => Ok(list),
            _ => Err(odd_answer()),
        }
    }

    /// One region, and what is being done with it.
    pub async fn find_region(&self, request: FindRegionRequest) -> Result<FindRegionResponse, PdError> {
        match self.call(Body::FindRegion(request), self.deadline()).await? {
            Out::FindRegion(found) => Ok(found),
            _ => Err(odd_answer()),
        }
    }

    /// Gives a data directory its store id.
    pub async fn register(&self, store: wire::Store) -> Result<RegisterStoreResponse, PdError> {
        match self.call(Body::RegisterStore(RegisterStoreRequest { store: Some(store) }), self.deadline()).await? {
            Out::RegisterStore(registered) => Ok(registered),
            _ => Err(odd_answer()),
        }
    }

    /// Carries waiting callers' requests until nobody waits.
    async fn fetch_timestamps(self) {
        loop {
            let waiting = {
                let mut queue = self.inner.timestamps.lock();
                let count = queue.waiting.len().min(pd::tso::MAX_COUNT as usize);
                if count == 0 {
                    queue.in_flight = false;
                    return;
                }
                queue.waiting.drain(..count).collect::<Vec<_>>()
            };
            let count = waiting.len() as u32;
            let answer = match self.call(Body::Timestamp(TimestampRequest { count }), self.deadline()).await {
                Ok(Out::Timestamp(t)) if t.count == count && t.last >= u64::from(count) => {
                    Ok(t.last - u64::from(count))
                }
                Ok(_) => Err(odd_answer()),
                Err(error) => Err(error),
            };
            for (waiter, position) in waiting.into_iter().zip(1..) {
                // A caller that has gone away leaves a timestamp unused.
                let _ = waiter.send(answer.clone().map(|before| Timestamp(before + position)));
            }
        }
    }
}

fn odd_answer() -> PdError {
    PdError::Unavailable("PD answered another question".into())
}

#[async_trait]
impl kv::Pd for PdClient {
    async fn timestamp(&self) -> Result<Timestamp, PdError> {
        let at_once = self.inner.local.read().as_ref().and_then(|(_, role)| role.try_timestamps(1));
        if let Some(timestamp) = at_once {
            return Ok(timestamp);
        }
        let (sender, answer) = oneshot::channel();
        let idle = {
            let mut queue = self.inner.timestamps.lock();
            queue.waiting.push(sender);
            !std::mem::replace(&mut queue.in_flight, true)
        };
        if idle {
            self.inner.doors.spawn.spawn(Box::pin(self.clone().fetch_timestamps()));
        }
        answer.await.unwrap_or_else(|_| Err(PdError::Unavailable("this node is stopping".into())))
    }

    async fn alloc_ids(&self, count: u32) -> Result<u64, PdError> {
        match self.call(Body::AllocIds(AllocIdsRequest { count }), self.deadline()).await? {
            Out::AllocIds(ids) => Ok(ids.first),
            _ => Err(odd_answer()),
        }
    }

    async fn report_waits(&self, waits: Vec<Wait>) -> Result<Vec<Deadlock>, PdError> {
        let store_id = self.inner.local.read().as_ref().map_or(0, |(store, _)| store.0);
        let report = ReportWaitsRequest { store_id, waits: waits.into_iter().map(Into::into).collect() };
        let deadline = self.inner.doors.clock.now() + REPORT_DEADLINE;
        match self.call(Body::ReportWaits(report), deadline).await? {
            Out::ReportWaits(found) => Ok(found.deadlocks.into_iter().map(Into::into).collect()),
            _ => Err(odd_answer()),
        }
    }

    async fn region_of(&self, key: &[u8]) -> Result<RegionStatus, PdError> {
        let key = bytes::Bytes::copy_from_slice(key);
        match self.call(Body::GetRegion(GetRegionRequest { key }), self.deadline()).await? {
            Out::GetRegion(found) => {
                found.region.ok_or(PdError::Unavailable("no leader has reported the region of this key yet".into()))
            }
            _ => Err(odd_answer()),
        }
    }

    async fn regions(&self, range: &KeyRange, limit: u32) -> Result<Vec<RegionStatus>, PdError> {
        let request = ScanRegionsRequest { range: Some(range.into()), limit };
        match self.call(Body::ScanRegions(request), self.deadline()).await? {
            Out::ScanRegions(found) => Ok(found.regions),
            _ => Err(odd_answer()),
        }
    }

    async fn stores(&self) -> Result<Vec<StoreStatus>, PdError> {
        match self.call(Body::GetStores(GetStoresRequest {}), self.deadline()).await? {
            Out::GetStores(found) => Ok(found.stores),
            _ => Err(odd_answer()),
        }
    }

    async fn operators(&self, finished: bool) -> Result<Vec<wire::OperatorStatus>, PdError> {
        let request = OperatorsRequest { finished, ..OperatorsRequest::default() };
        Ok(PdClient::operators(self, request).await?.operators)
    }

    async fn split_at(&self, keys: Vec<Bytes>) -> Result<Vec<u64>, PdError> {
        let split = SplitRegionRequest { region_id: 0, keys };
        Ok(self.plan(PlanRequest { kind: Some(Kind::Split(split)), epoch: None }).await?.operator_ids)
    }

    async fn operator(&self, id: u64) -> Result<Option<wire::OperatorStatus>, PdError> {
        let request = OperatorsRequest { id, finished: true, region_id: 0 };
        Ok(PdClient::operators(self, request).await?.operators.into_iter().next())
    }

    async fn catalog_lease(
        &self,
        gateway: u64,
        acknowledged: u64,
        wait: Duration,
    ) -> Result<(u64, Timestamp), PdError> {
        let wait_ms = (wait.as_millis() as u64).min(MAX_WAIT_MS);
        let request = CatalogLeaseRequest { gateway_id: gateway, acknowledged_version: acknowledged, wait_ms };
        match self.call(Body::CatalogLease(request), self.deadline() + Duration::from_millis(wait_ms)).await? {
            Out::CatalogLease(lease) => Ok((lease.published_version, Timestamp(lease.expires_at))),
            _ => Err(odd_answer()),
        }
    }

    async fn safe_point(&self) -> Result<SafePointGrant, PdError> {
        let store_id = self.inner.local.read().as_ref().map_or(0, |(store, _)| store.0);
        match self.call(Body::SafePoint(SafePointRequest { store_id }), self.deadline()).await? {
            Out::SafePoint(grant) => Ok(grant),
            _ => Err(odd_answer()),
        }
    }

    async fn gateway_alive(&self, gateway: u64) -> Result<bool, PdError> {
        let request = GatewayAliveRequest { gateway_id: gateway };
        match self.call(Body::GatewayAlive(request), self.deadline()).await? {
            Out::GatewayAlive(answer) => Ok(answer.alive),
            _ => Err(odd_answer()),
        }
    }

    async fn live_gateways(&self) -> Result<Vec<u64>, PdError> {
        match self.call(Body::LiveGateways(LiveGatewaysRequest {}), self.deadline()).await? {
            Out::LiveGateways(answer) => Ok(answer.gateway_ids),
            _ => Err(odd_answer()),
        }
    }

    async fn publish_catalog(&self, version: u64) -> Result<(), PdError> {
        let deadline = self.inner.doors.clock.now() + PUBLISH_DEADLINE;
        loop {
            let request = CatalogPublishRequest { version, wait_ms: PUBLISH_WAIT_MS };
            match self.call(Body::CatalogPublish(request), deadline).await? {
                Out::CatalogPublish(p) if p.done => return Ok(()),
                Out::CatalogPublish(p) if self.inner.doors.clock.now() >= deadline => {
                    let waiting = p.waiting_for;
                    return Err(PdError::Unavailable(format!(
                        "catalog version {version} waits for gateways {waiting:?}"
                    )));
                }
                Out::CatalogPublish(_) => {}
                _ => return Err(odd_answer()),
            }
        }
    }
}
