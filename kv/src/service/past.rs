//! Reading the past from replicas that do not lead.
//!
//! ```text
//!   round    PD's time less a lag = R ─► max_ts := max(max_ts, R) ─► regions led here and awake, without a write in flight
//!            that may commit at or below R ─► the store: under the lease, "all that is visible at R is applied at index i"
//!   follower (R, i) ─► has it applied i? ─► reads at or below R, without max_ts and without the leader
//! ```
//!
//! That is a read of the whole region at R, done in advance: what makes a read right makes these right. So locks on disk
//! need not hold R back. Whatever commits at or below R has its version or its lock there at index i, and whoever meets such a
//! lock goes to the leader, who gets it out of the way; a lock that comes later takes its commit timestamp from PD or from
//! `max_ts`, above R. A long transaction holds up who meets it, not its whole region.
//!
//! Another leader needs nothing of this: before it lets anything commit in one round it takes a timestamp from PD, above R.
//! The safe point is asked about by every replica for itself, as always after the snapshot was taken.
//!
//! Regions that sleep are left alone: the mark they fell asleep with stays good, and who reads later asks the leader, which
//! wakes them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use proto::{
    Epoch, KeyRange, RegionId, Timestamp,
    wire::{GetRequest, GetResponse, KeyError, RegionError, ScanRequest, key_error, kv_response::Body},
};
use raftstore::RegionSnapshot;

use crate::{Reply, planted::Planted};

use super::{
    Call, Service, check_keys,
    read::{get_refused, reply, scan_refused, seen},
};

/// How far behind PD's time replicas are said to be readable. It keeps writes under way, which are younger, from being held up
/// or pushed to later timestamps.
const LAG: Duration = Duration::from_secs(1);
/// How often that is said.
const EVERY: Duration = Duration::from_millis(500);

/// What became of reads that any replica might answer, since the start.
#[derive(Debug, Default)]
pub struct PastReads {
    /// Answered without the leader's say.
    pub served: AtomicU64,
    /// This replica was not known to be far enough.
    pub behind: AtomicU64,
    /// A lock stood in the way.
    pub locked: AtomicU64,
}

impl Service {
    /// Says again and again how far the past of what is led here can be read elsewhere.
    pub async fn keep_resolving(self) {
        loop {
            self.inner.clock.sleep(EVERY).await;
            self.resolve_past().await;
        }
    }

    async fn resolve_past(&self) {
        let inner = &self.inner;
        let led = inner.store.led_awake();
        if led.is_empty() {
            return;
        }
        // Without PD nothing new can be said.
        let Ok(now) = inner.pd_time.fresh().await else { return };
        let ts = Timestamp::new(now.physical_ms().saturating_sub(LAG.as_millis() as u64), now.logical());
        let ts = if inner.plant.has(Planted::ResolveUnannounced) { now } else { ts };
        let announced = !inner.plant.has(Planted::ResolveUnannounced);
        if announced {
            inner.concurrency.raise(ts);
        }
        let held_up = |range: &KeyRange| announced && inner.concurrency.in_flight_in(range, ts).is_some();
        let free = led.iter().filter(|region| !held_up(&region.range));
        let regions: Vec<(RegionId, Epoch)> = free.map(|region| (region.id, region.epoch)).collect();
        if !regions.is_empty() {
            inner.store.resolve(ts, regions);
        }
    }

    /// What became of reads that any replica might answer.
    pub fn past_reads(&self) -> &PastReads {
        &self.inner.past
    }
}

impl Call<'_> {
    /// A get answered from a replica that need not lead; `None`: only the leader can, and this store may be it.
    pub(super) async fn get_past(&self, request: &GetRequest) -> Result<Option<Reply>, RegionError> {
        let read_ts = Timestamp(request.read_ts);
        let Some(snapshot) = self.past_snapshot(read_ts) else { return self.for_the_leader() };
        check_keys(&snapshot.region, request.keys.iter().map(|k| k.as_ref()))?;
        if let Err(refused) = self.check_age(read_ts).await? {
            return Ok(Some(get_refused(refused)));
        }
        let seen = seen(request.own, request.passed.clone());
        match self.read_keys(&snapshot, request.keys.clone(), read_ts, &seen) {
            Ok(Ok(pairs)) => Ok(Some(self.of_the_past(reply(Body::Get(GetResponse { pairs, error: None }))))),
            Ok(Err(_locked)) => self.for_the_leader_to_clear(),
            Err(fault) => Ok(Some(get_refused(fault.into()))),
        }
    }

    /// The same for a page of a scan.
    pub(super) async fn scan_past(
        &self,
        range: &KeyRange,
        request: &ScanRequest,
    ) -> Result<Option<Reply>, RegionError> {
        let read_ts = Timestamp(request.read_ts);
        let Some(snapshot) = self.past_snapshot(read_ts) else { return self.for_the_leader() };
        if !snapshot.region.range.covers(range) {
            return Err(RegionError::key_not_in_region(&range.start, &snapshot.region));
        }
        if let Err(refused) = self.check_age(read_ts).await? {
            return Ok(Some(scan_refused(refused)));
        }
        let page = self.page(&snapshot, range, request);
        let locked = |error: &KeyError| matches!(error.kind, Some(key_error::Kind::Locked(_)));
        match &page.response.body {
            Some(Body::Scan(scan)) if scan.error.as_ref().is_some_and(locked) => self.for_the_leader_to_clear(),
            _ => Ok(Some(self.of_the_past(page))),
        }
    }

    fn past_snapshot(&self, at: Timestamp) -> Option<RegionSnapshot> {
        let snapshot = self.inner.store.past_snapshot(&self.target, at);
        if snapshot.is_none() {
            self.inner.past.behind.fetch_add(1, Ordering::Relaxed);
        }
        snapshot
    }

    fn of_the_past(&self, mut reply: Reply) -> Reply {
        self.inner.past.served.fetch_add(1, Ordering::Relaxed);
        reply.response.of_the_past = true;
        reply
    }

    fn for_the_leader_to_clear(&self) -> Result<Option<Reply>, RegionError> {
        self.inner.past.locked.fetch_add(1, Ordering::Relaxed);
        self.for_the_leader()
    }

    /// Says who leads, unless this store may.
    fn for_the_leader(&self) -> Result<Option<Reply>, RegionError> {
        match self.inner.store.try_snapshot(&self.target) {
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Ok(None),
        }
    }
}
