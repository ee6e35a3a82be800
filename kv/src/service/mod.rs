//! The kv service of a store: answers requests about the regions it leads.
//!
//! ```text
//!   read    raise max_ts → writes in flight? wait → snapshot ─────────────► mvcc ─────► reply
//!   lock    row locks, waiting ─► latches ─► snapshot ────────────────────► mvcc ─────► reply
//!   write   latches ─► snapshot ─► [1PC: publish, choose commit_ts] ─► txn ─► propose ─► reply
//!           └───────────────── held until the batch is applied, or certainly never will be ──────┘
//! ```
//!
//! A validation (SERIALIZABLE) goes the way of a read. As part of a 1PC it is one at the timestamp that was chosen:
//!
//! ```text
//!   latches ─► snapshot ─► publish, choose commit_ts, raise max_ts to it ─► writes in flight? wait ─► snapshot ─► txn ─► propose
//! ```
//!
//! A read of the past may be answered by any replica (`past.rs`).
//!
//! The snapshot's term goes into the proposal: had leadership changed in between, another leader may have written
//! under latches of its own, and the proposal is refused.
//!
//! A caller may stop waiting at any time: its deadline passes, or its connection breaks and the future is dropped.
//! Latches and in-memory locks stay until the fate of the proposal is known all the same (`proposal.rs`).

mod locking;
mod past;
mod pd_time;
mod proposal;
mod read;
mod rows;
mod safe_point;
mod sleepers;
mod spill;
mod turns;
mod validate;
mod write;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::{Either, select};
use proto::{
    Epoch, PD_REGION, Region, RegionId, Timestamp,
    wire::{
        GatewayRequest, KvRequest, KvResponse, RegionError, RequestHeader, SafePointGrant, kv_request::Body,
        kv_response,
    },
};
use raftstore::{Instant, RegionSnapshot, Target};

use crate::{
    Clock, GatewayDoor, Pd, RegionStore, Reply, Spawn, StoreScan, concurrency::Concurrency, planted::Plant,
    row_locks::Wait,
};

pub use past::PastReads;
use pd_time::PdTime;
use rows::Rows;
use safe_point::SafePoint;
use turns::Turns;

/// Requests under way at once: what is beyond waits at the client, not in this store's memory.
const MAX_IN_FLIGHT: usize = 10_000;
/// Before a client that found the store full should come back.
const BUSY_BACKOFF_MS: u64 = 20;
/// How long a request waits here for a leader or for a merge's end: several times what either takes when all is well. A
/// replica may also have lost touch with its group, and then others know better.
const SETTLING_PATIENCE: Duration = Duration::from_millis(20);
/// When the caller names no deadline.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// However long the caller says it waits.
const MAX_DEADLINE: Duration = Duration::from_secs(120);

/// The kv service of one store. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn RegionStore>,
    clock: Arc<dyn Clock>,
    spawn: Arc<dyn Spawn>,
    scan: Option<Arc<dyn StoreScan>>,
    gateway: OnceLock<Arc<dyn GatewayDoor>>,
    pd_time: PdTime,
    safe_point: SafePoint,
    turns: Arc<Turns>,
    rows: Arc<Rows>,
    concurrency: Arc<Concurrency>,
    in_flight: AtomicUsize,
    past: PastReads,
    plant: Plant,
}

/// One request's standing.
struct Call<'a> {
    inner: &'a Inner,
    target: Target,
    deadline: Instant,
    /// This store need not lead to answer.
    any_replica: bool,
}

impl Service {
    /// Over a store of regions. `scan` answers pushed-down scans; without it they are refused.
    pub fn new(
        store: Arc<dyn RegionStore>,
        pd: Arc<dyn Pd>,
        clock: Arc<dyn Clock>,
        spawn: Arc<dyn Spawn>,
        scan: Option<Arc<dyn StoreScan>>,
    ) -> Self {
        let rows = Rows::new(pd.clone(), clock.clone(), spawn.clone());
        let inner = Inner {
            store,
            clock: clock.clone(),
            spawn,
            scan,
            gateway: OnceLock::new(),
            pd_time: PdTime::new(pd.clone(), clock.clone()),
            safe_point: SafePoint::new(pd, clock),
            turns: Turns::new(),
            rows,
            concurrency: Arc::default(),
            in_flight: AtomicUsize::new(0),
            past: PastReads::default(),
            plant: Plant::default(),
        };
        Service { inner: Arc::new(inner) }
    }

    /// The same service with a bug. Only before it is shared.
    pub fn plant(mut self, plant: Plant) -> Self {
        Arc::get_mut(&mut self.inner).expect("the service is not shared yet").plant = plant;
        self
    }

    /// PD has said how old timestamps may be, in an answer to what was asked at `asked`.
    pub fn safe_point_granted(&self, asked: Instant, grant: &SafePointGrant) {
        self.inner.safe_point.granted(asked, grant);
    }

    /// Reads, and writes by start_ts, are refused here below this.
    pub fn refuse_below(&self) -> Timestamp {
        self.inner.safe_point.refuse_below()
    }

    /// Versions that nobody at or above this sees may go ([`crate::gc`]).
    pub fn collect_below(&self) -> Timestamp {
        self.inner.safe_point.collect_below()
    }

    /// From now on the node serves SQL, too. The first one stays.
    pub fn serve_gateway(&self, gateway: Arc<dyn GatewayDoor>) {
        let _ = self.inner.gateway.set(gateway);
    }

    /// Who waits for row locks here, and for whom.
    pub fn row_waits(&self) -> Vec<Wait> {
        self.inner.rows.waits()
    }

    /// Answers one request. The future may be dropped at any time; a write may then have been carried out or not.
    pub async fn call(&self, request: KvRequest) -> Reply {
        let header = request.header.unwrap_or_default();
        let answer = match self.inner.admit() {
            Some(_admitted) => match request.body {
                Some(body) => self.inner.answer(&header, body).await,
                None => Err(RegionError { kind: None, message: "a request without a body".into() }),
            },
            None => Err(RegionError::server_busy("the kv service's queue", BUSY_BACKOFF_MS)),
        };
        answer.unwrap_or_else(|error| Reply {
            response: KvResponse { region_error: Some(error), ..KvResponse::default() },
            chunk: None,
        })
    }
}

/// One of the `MAX_IN_FLIGHT` places.
struct Admitted<'a>(&'a AtomicUsize);

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inner {
    fn admit(&self) -> Option<Admitted<'_>> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let admitted = Admitted(&self.in_flight);
        (before < MAX_IN_FLIGHT).then_some(admitted)
    }

    async fn answer(&self, header: &RequestHeader, body: Body) -> Result<Reply, RegionError> {
        let limit = match header.deadline_ms {
            0 => DEFAULT_DEADLINE,
            ms => Duration::from_millis(ms).min(MAX_DEADLINE),
        };
        let target = Target {
            region: RegionId(header.region_id),
            epoch: header.epoch.map(Epoch::from).unwrap_or_default(),
            term: None,
        };
        if target.region == PD_REGION {
            return Err(RegionError::region_not_found(PD_REGION));
        }
        let call = Call { inner: self, target, deadline: self.clock.now() + limit, any_replica: header.any_replica };
        match body {
            Body::Get(request) => call.get(request).await,
            Body::Scan(request) => call.scan(request).await,
            Body::Prewrite(request) => call.prewrite(request).await,
            Body::Commit(request) => call.commit(request).await,
            Body::Rollback(request) => call.rollback(request).await,
            Body::CheckTxn(request) => call.check_txn(request).await,
            Body::CheckSecondaries(request) => call.check_secondaries(request).await,
            Body::Resolve(request) => call.resolve(request).await,
            Body::HeartbeatTxn(request) => call.heartbeat(request).await,
            Body::UnsafeDeleteRange(request) => call.unsafe_delete_range(request).await,
            Body::FindLocks(request) => call.find_locks(request).await,
            Body::Sleepers(request) => call.sleepers(request).await,
            Body::LockRows(request) => call.lock_rows(request).await,
            Body::RowLocks(request) => call.row_locks(request).await,
            Body::Validate(request) => call.validate(request).await,
            Body::DropGenerations(request) => call.drop_generations(request).await,
            Body::Gateway(request) => call.gateway(request).await,
        }
    }
}

impl Call<'_> {
    /// Waits for `future`, at most until the deadline.
    async fn within<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T, RegionError> {
        let mut future = pin!(future);
        // Most are ready at once, and then no timer is set.
        if let std::task::Poll::Ready(done) = futures::poll!(future.as_mut()) {
            return Ok(done);
        }
        let remaining = self.deadline.since(self.inner.clock.now());
        if remaining.is_zero() {
            return Err(RegionError::deadline_exceeded(what));
        }
        match select(future, self.inner.clock.sleep(remaining)).await {
            Either::Left((done, _)) => Ok(done),
            Either::Right(_) => Err(RegionError::deadline_exceeded(what)),
        }
    }

    /// Asks the SQL side of this node.
    async fn gateway(&self, request: GatewayRequest) -> Result<Reply, RegionError> {
        let answer = match self.inner.gateway.get() {
            Some(gateway) => self.within("asking the gateway", gateway.call(request)).await?,
            None => Default::default(),
        };
        let body = Some(kv_response::Body::Gateway(answer));
        Ok(Reply { response: KvResponse { body, ..KvResponse::default() }, chunk: None })
    }

    /// A current view of the region: at once under the lease, otherwise by asking the quorum. While its replicas elect a leader,
    /// or it is being merged, the end of that is waited for here: whoever is sent away comes back after pauses, and both are
    /// mostly a matter of a few milliseconds.
    async fn snapshot(&self) -> Result<RegionSnapshot, RegionError> {
        let store = &self.inner.store;
        let mut view = store.try_snapshot(&self.target);
        if let Some(Err(error)) = &view
            && error.is_passing()
        {
            let patience = self.deadline.since(self.inner.clock.now()).min(SETTLING_PATIENCE);
            let settled = store.settled(self.target.region);
            if let Either::Right(_) = select(settled, self.inner.clock.sleep(patience)).await {
                tracing::debug!(region = self.target.region.0, %error, "it does not settle");
            }
            view = store.try_snapshot(&self.target);
        }
        match view {
            Some(view) => view,
            None => self.within("asking the quorum", store.snapshot(&self.target)).await?,
        }
    }
}

/// Every key of a request must be the region's: the epoch says the borders are known, this says they were kept to.
fn check_keys<'k>(region: &Region, keys: impl IntoIterator<Item = &'k [u8]>) -> Result<(), RegionError> {
    match keys.into_iter().find(|key| !region.range.contains(key)) {
        Some(outside) => Err(RegionError::key_not_in_region(outside, region)),
        None => Ok(()),
    }
}
