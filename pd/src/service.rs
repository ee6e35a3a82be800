//! PD while it leads: requests in, durable writes, answers out.
//!
//! Every request goes the same way: decide in a core → write what must be durable (one writer at a time) →
//! confirm that region 1 is still ours → answer. What has to wait (a gateway for a new catalog version, a DDL
//! for gateways) is given back as [`Answer::Wait`]; whoever owns time calls again when
//! [`Service::changes`] fires or the time is over.

mod admin;
mod catalog;
mod heartbeat;
mod operators;
mod safe_point;
mod stores;
mod timestamps;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::{
    ClusterId, KeyRange, PD_REGION, Peer, Region, StoreId, Term, Timestamp,
    wire::{
        self, AllocIdsResponse, ClusterStatusResponse, GetRegionResponse, GetStoresResponse, PdRequest, PdResponse,
        RegionError, ScanRegionsResponse, StoreStatus, pd_request::Body, pd_response,
    },
};
use tokio::sync::watch;

use crate::{
    CatalogLeases, Cluster, Gateways, MetaError, MetaStore, MetaWrite, Now, Operators, Rules, SafePoint, Tso,
    ids::{self, NextIds, Sequence},
    keys,
    planner::Sight,
};

/// What a term of PD starts from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node's peer of region 1.
    pub me: Peer,
    /// The term in which it leads.
    pub term: Term,
    /// The founders, as the founding record has them.
    pub founders: Vec<wire::Store>,
    /// The regions, as the founding record has them.
    pub founded: Vec<Region>,
    /// What to strive for; what people have switched off comes on top of it.
    pub rules: Rules,
    /// An invariant to break.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<crate::Planted>,
}

/// What comes of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Send it.
    Done(PdResponse),
    /// Call again on a change, or after `recheck_ms`; when the caller's own wait is over, send `otherwise`.
    Wait {
        /// The answer when nothing happens in time.
        otherwise: PdResponse,
        /// Something ends by itself then, if anything does.
        recheck_ms: Option<u64>,
    },
}

/// Why a request is not answered with its own body.
enum Failure {
    /// PD is (perhaps) elsewhere.
    Meta(MetaError),
    /// Understood, and refused.
    Refused(String),
    /// Not yet; the caller tries again.
    Busy(String),
}

impl From<MetaError> for Failure {
    fn from(e: MetaError) -> Self {
        Failure::Meta(e)
    }
}

/// What a PD has done since it took office, for people's graphs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operators under way, by rule.
    pub operators_running: BTreeMap<&'static str, u64>,
    /// Operators that have ended, by rule and outcome.
    pub operators_ended: BTreeMap<(&'static str, &'static str), u64>,
    /// Requests for timestamps that were answered.
    pub timestamp_requests: u64,
    /// Timestamps they took.
    pub timestamps: u64,
}

/// The cores, always locked together and never across a wait.
struct State {
    cluster: Cluster,
    tso: Tso,
    ids: NextIds,
    catalog: CatalogLeases,
    gateways: Gateways,
    operators: Operators,
    safe_point: SafePoint,
    rules: Rules,
    /// When there was planned last, by PD's monotonic clock.
    planned_ms: Option<u64>,
    /// Nothing was found to do, when that was looked for last: since when, and what was seen.
    at_rest: Option<(u64, Sight)>,
}

/// PD in one term.
pub struct Service {
    settings: Settings,
    meta: Arc<dyn MetaStore>,
    state: Mutex<State>,
    /// One durable change at a time, so that what is written never goes backward.
    writer: tokio::sync::Mutex<()>,
    /// A write's outcome was lost: what is durable must be read anew.
    failed: AtomicBool,
    /// Counts what waiting calls may wait for.
    changes: watch::Sender<u64>,
}

impl Service {
    /// Reads what is durable and takes office. In a new cluster, writes the founders first.
    pub async fn start(meta: Arc<dyn MetaStore>, settings: Settings, now: Now) -> Result<Service, MetaError> {
        let durable: BTreeMap<_, _> = meta.scan(&keys::all()).await?.into_iter().collect();
        let bound = number(&durable, keys::window())?.unwrap_or(0);
        let callers = number(&durable, keys::next_id(Sequence::Callers))?;
        let cluster_ids = number(&durable, keys::next_id(Sequence::Cluster))?;
        let published = number(&durable, keys::catalog_version())?.unwrap_or(0);
        let safe_point = Timestamp(number(&durable, keys::safe_point())?.unwrap_or(0));
        let stores = stores::load_or_found(&*meta, &durable, &settings.founders).await?;
        let ids = NextIds::restore(callers, cluster_ids, largest_founded_id(&settings));
        let founders = settings.founders.iter().map(|s| StoreId(s.id)).collect();
        let mut rules = settings.rules.clone();
        rules.disabled.extend(operators::disabled_schedulers(&durable)?);
        let cluster = Cluster::new(now, stores, founders, settings.founded.clone());
        let state = State {
            cluster: cluster.with_patience(rules.down_after_ms),
            tso: Tso::restore(bound),
            ids,
            catalog: CatalogLeases::restore(published, bound),
            gateways: Gateways::new(now.monotonic_ms),
            operators: Operators::new(settings.term),
            safe_point: SafePoint::restore(rules.gc, safe_point, now.monotonic_ms),
            rules,
            planned_ms: None,
            at_rest: None,
        };
        tracing::info!(
            term = settings.term.0,
            peer = settings.me.id.0,
            timestamp_bound_ms = bound,
            catalog_version = published,
            "PD takes office"
        );
        Ok(Service {
            settings,
            meta,
            state: Mutex::new(state),
            writer: tokio::sync::Mutex::new(()),
            failed: AtomicBool::new(false),
            changes: watch::channel(0).0,
        })
    }

    /// The term of region 1 this PD belongs to.
    pub fn term(&self) -> Term {
        self.settings.term
    }
    /// Set once it has resigned, or a write's outcome was lost: end this service and start another one.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
    /// Fires when a call that waits should be made again, and when the service has failed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
    /// Ends the service: calls that wait are woken, and everybody is sent elsewhere.
    pub fn resign(&self) {
        self.failed.store(true, Ordering::Release);
        self.changed();
    }
    /// What this PD has done since it took office.
    pub fn counts(&self) -> Counts {
        let state = self.state.lock();
        let mut running = BTreeMap::new();
        state.operators.running().for_each(|op| *running.entry(op.plan.rule).or_default() += 1);
        let (timestamp_requests, timestamps) = state.tso.served();
        let operators_ended = state.operators.ended_by_rule().clone();
        Counts { operators_running: running, operators_ended, timestamp_requests, timestamps }
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Answers a request, or says what it waits for.
    pub async fn call(&self, now: Now, request: &PdRequest) -> Answer {
        if self.has_failed() {
            let error = RegionError::not_leader(PD_REGION, None, self.settings.term);
            return Answer::Done(PdResponse { error: Some(error), ..PdResponse::default() });
        }
        let worked = match &request.body {
            Some(Body::CatalogLease(r)) => self.catalog_lease(now, r).await,
            Some(Body::CatalogPublish(r)) => self.catalog_publish(now, r).await,
            Some(body) => self.at_once(now, body).await.map(done),
            None => Err(Failure::Refused("the request has no body this version of PD knows".into())),
        };
        let confirmed = match worked {
            Ok(answer) => self.meta.confirm().await.map(|()| answer).map_err(Failure::Meta),
            Err(failure) => Err(failure),
        };
        confirmed.unwrap_or_else(|failure| Answer::Done(self.failure(failure)))
    }

    async fn at_once(&self, now: Now, body: &Body) -> Result<pd_response::Body, Failure> {
        use pd_response::Body as Out;
        Ok(match body {
            Body::Timestamp(r) => Out::Timestamp(self.timestamps(now, r.count).await?),
            Body::AllocIds(r) => Out::AllocIds(self.alloc_ids(r.count).await?),
            Body::RegisterStore(r) => Out::RegisterStore(self.register_store(now, r).await?),
            Body::GetRegion(r) => {
                let region = self.state.lock().cluster.region_of(&r.key).map(Into::into);
                Out::GetRegion(GetRegionResponse { region })
            }
            Body::ScanRegions(r) => {
                let range: KeyRange = r.range.clone().unwrap_or_default().into();
                let state = self.state.lock();
                let regions = state.cluster.regions(&range, r.limit as usize).into_iter().map(Into::into).collect();
                Out::ScanRegions(ScanRegionsResponse { regions })
            }
            Body::GetStores(_) => Out::GetStores(GetStoresResponse { stores: self.stores(now) }),
            Body::ClusterStatus(_) => {
                let safe_point = Some(self.safe_point());
                Out::ClusterStatus(ClusterStatusResponse { safe_point, ..self.cluster_status(now) })
            }
            Body::Plan(r) => Out::Plan(self.plan_for_people(now, r).await?),
            Body::Operators(r) => Out::Operators(self.list_operators(now, r)),
            Body::CancelOperator(r) => Out::CancelOperator(self.cancel_operator(now, r)?),
            Body::StoreChange(r) => Out::StoreChange(self.change_store(now, r).await?),
            Body::Schedulers(r) => Out::Schedulers(self.schedulers(r).await?),
            Body::FindRegion(r) => Out::FindRegion(self.find_region(now, r)?),
            Body::SafePoint(r) => Out::SafePoint(self.safe_point_reported(now, StoreId(r.store_id), None)),
            Body::GatewayAlive(r) => Out::GatewayAlive(self.gateway_alive(now, r.gateway_id)),
            Body::LiveGateways(_) => Out::LiveGateways(self.live_gateways(now).await?),
            Body::ReportWaits(_) => return Err(Failure::Refused("PD's role answers reports of waits".into())),
            Body::CatalogLease(_) | Body::CatalogPublish(_) => unreachable!("calls that wait go their own way"),
        })
    }

    async fn alloc_ids(&self, count: u32) -> Result<AllocIdsResponse, Failure> {
        if !(1..=ids::MAX_COUNT).contains(&count) {
            return Err(Failure::Refused(format!("{count} ids were asked for, 1 to {} are given", ids::MAX_COUNT)));
        }
        let writer = self.writer.lock().await;
        let first = self.take_ids(Sequence::Callers, count, Vec::new()).await?;
        drop(writer);
        Ok(AllocIdsResponse { first, count })
    }

    /// Takes ids and makes that durable together with `more`. The caller holds `writer`.
    async fn take_ids(&self, from: Sequence, count: u32, more: Vec<MetaWrite>) -> Result<u64, Failure> {
        let taken = self.state.lock().ids.take(from, count);
        let (first, next) = taken.ok_or_else(|| Failure::Refused("the ids are used up".into()))?;
        let mut writes = more;
        writes.push((keys::next_id(from), Some(keys::encode_u64(next))));
        self.write(writes).await?;
        Ok(first)
    }

    /// Every durable change goes through here.
    async fn write(&self, writes: Vec<MetaWrite>) -> Result<(), MetaError> {
        let result = self.meta.write(writes).await;
        if let Err(MetaError::Unknown(reason)) = &result {
            tracing::warn!(term = self.settings.term.0, reason, "PD lost the outcome of a write and starts anew");
            self.failed.store(true, Ordering::Release);
            self.changed();
        }
        result
    }

    fn stores(&self, now: Now) -> Vec<StoreStatus> {
        self.state.lock().cluster.store_statuses(now)
    }

    fn cluster_status(&self, now: Now) -> ClusterStatusResponse {
        let state = self.state.lock();
        ClusterStatusResponse {
            cluster_id: self.settings.cluster.0,
            pd_leader: Some(self.settings.me.into()),
            pd_term: self.settings.term.0,
            stores: state.cluster.store_statuses(now),
            regions: state.cluster.region_count() as u64,
            regions_without_leader: state.cluster.without_leader(now) as u64,
            ready: state.cluster.is_ready(now),
            last_timestamp: state.tso.last().0,
            ..ClusterStatusResponse::default()
        }
    }

    fn failure(&self, failure: Failure) -> PdResponse {
        match failure {
            Failure::Refused(refusal) => PdResponse { refusal, ..PdResponse::default() },
            Failure::Busy(what) => {
                PdResponse { error: Some(RegionError::server_busy(&what, BUSY_BACKOFF_MS)), ..PdResponse::default() }
            }
            Failure::Meta(error) => PdResponse { error: Some(self.not_pd(error)), ..PdResponse::default() },
        }
    }

    fn not_pd(&self, error: MetaError) -> RegionError {
        match error {
            MetaError::NotLeading(e) => *e,
            other => {
                tracing::warn!(term = self.settings.term.0, %other, "PD could not answer");
                RegionError {
                    message: format!("PD could not answer: {other}"),
                    ..RegionError::not_leader(PD_REGION, None, self.settings.term)
                }
            }
        }
    }
}

/// What a caller waits before it asks again for something PD can't do yet.
const BUSY_BACKOFF_MS: u64 = 50;

fn done(body: pd_response::Body) -> Answer {
    Answer::Done(PdResponse { body: Some(body), ..PdResponse::default() })
}

/// Ids of the founding record were not drawn from PD: its own start above them.
fn largest_founded_id(settings: &Settings) -> u64 {
    let peers = settings.founded.iter().flat_map(|r| r.peers.iter().map(|p| p.id.0).chain([r.id.0]));
    peers.chain(settings.founders.iter().map(|s| s.id)).max().unwrap_or(0)
}

fn number(durable: &BTreeMap<Bytes, Bytes>, key: Bytes) -> Result<Option<u64>, MetaError> {
    let Some(value) = durable.get(&key) else { return Ok(None) };
    let corrupt = || MetaError::Corrupt { key: key.clone(), reason: format!("{} bytes, not 8", value.len()) };
    keys::decode_u64(value).ok_or_else(corrupt).map(Some)
}

#[cfg(test)]
mod tests;
