//! The client: transactions over regions it finds by itself.
//!
//! ```text
//!   Client ── begin ──► Txn ── get, scan ──► read.rs, scan.rs ─┐
//!                        │ put, insert, …  (buffer.rs)          ├─► route.rs ──► Rpc ──► a store
//!                        └─ commit ──► committer.rs (decides) ──┘      │
//!                                       commit.rs (does)               └─ region_map.rs (where), PD asked last
//!                  locks met on the way: resolver.rs          the past, from replicas that do not lead: near.rs
//! ```
//!
//! Every operation has a deadline and repeats what may be repeated until then: all requests of the kv service
//! are idempotent, so an answer that was lost is asked for again.

mod backoff;
mod buffer;
mod commit;
pub mod committer;
mod gateways;
mod held;
mod in_use;
mod keeper;
mod marks;
mod near;
mod read;
mod reads;
pub mod region_map;
mod resolver;
mod retry;
mod route;
mod row_locks;
mod scan;
mod sleepers;
mod snapshot;
mod spill;
mod txn;
mod validate;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use proto::{KeyRange, StoreId, Timestamp, keyspace, wire};
use raftstore::Instant;

use crate::{
    Clock, Error, Pd, Rpc, Spawn,
    planted::{Plant, Planted},
};

use backoff::Jitter;
use in_use::InUse;
use keeper::Keeper;
use near::Source;
use region_map::RegionMap;

pub use region_map::Route;
pub use row_locks::{LockedRow, OnLocked, RowLock};
pub use scan::{Page, Scan, ScanOptions};
pub use txn::{CommitOptions, DetachedRows, Floor, LockPlace, Savepoint, Twin, Txn};

/// How long after its beginning a commit's outcome is looked for at most, whatever happened to the process meanwhile; what
/// comes later is reported as unknown. So long the record of a commit has to stay at the primary. Above the default
/// `operation_timeout` and the grace behind it together.
pub const COMMIT_MEMORY: Duration = Duration::from_secs(22);

/// Between two regions that are asked for old locks. A region that sleeps is woken by that: with fifty a second few are
/// awake at a time, and ten thousand take some minutes.
const OLDER_PAUSE: Duration = Duration::from_millis(20);

/// How a client behaves; the defaults suit a gateway.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Seeds the jitter of pauses between attempts.
    pub seed: u64,
    /// How long a read, a scan's page or a commit is tried. Longer than an election and a lock's TTL together,
    /// so that the loss of one node is not seen.
    pub operation_timeout: Duration,
    /// How long the outcome of a commit is asked for after its deadline, before it is reported as unknown.
    pub outcome_grace: Duration,
    /// How long locks of a transaction live without a heartbeat. With the election timeout it bounds how long a
    /// dead coordinator blocks others.
    pub lock_ttl: Duration,
    /// Memory for the writes of one transaction, in bytes; what is more is left with the stores, as locks, when the transaction
    /// makes room.
    pub spill_bytes: usize,
    /// Rows that one transaction has locked in the leaders' memory; more are written as locks.
    pub spill_rows: usize,
    /// A bug, for tests of the tests.
    pub plant: Plant,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            seed: 0x5EED,
            operation_timeout: Duration::from_secs(15),
            outcome_grace: Duration::from_secs(5),
            lock_ttl: Duration::from_millis(2000),
            spill_bytes: 32 << 20,
            spill_rows: 100_000,
            plant: Plant::default(),
        }
    }
}

/// Runs transactions. Cheap to clone; clones share the region map.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    rpc: Arc<dyn Rpc>,
    pd: Arc<dyn Pd>,
    clock: Arc<dyn Clock>,
    spawn: Arc<dyn Spawn>,
    regions: RwLock<RegionMap>,
    jitter: Jitter,
    keeper: Keeper,
    in_use: Arc<InUse>,
    /// The newest timestamp, and when it was asked for.
    recent: Mutex<(Timestamp, Instant)>,
    config: ClientConfig,
}

/// A part of an asked range, the region that holds it and who leads that, for scans, EXPLAIN and views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionRoute {
    /// Of the asked range, not empty. The parts of an answer adjoin, whatever is merged and split meanwhile.
    pub part: KeyRange,
    /// Range, epoch and peers.
    pub region: Arc<proto::Region>,
    /// The leader's store, when known.
    pub leader: Option<StoreId>,
}

impl Client {
    /// A client with the default behaviour.
    pub fn new(rpc: Arc<dyn Rpc>, pd: Arc<dyn Pd>, clock: Arc<dyn Clock>, spawn: Arc<dyn Spawn>) -> Self {
        Self::with_config(rpc, pd, clock, spawn, ClientConfig::default())
    }

    /// A client that behaves as `config` says. `rpc` fills in the cluster id of the header.
    pub fn with_config(
        rpc: Arc<dyn Rpc>,
        pd: Arc<dyn Pd>,
        clock: Arc<dyn Clock>,
        spawn: Arc<dyn Spawn>,
        config: ClientConfig,
    ) -> Self {
        let jitter = Jitter::new(config.seed);
        let (regions, keeper, in_use) = (RwLock::default(), Keeper::default(), Arc::default());
        let recent = Mutex::default();
        Client { inner: Arc::new(Inner { rpc, pd, clock, spawn, regions, jitter, keeper, in_use, recent, config }) }
    }

    pub(crate) fn has(&self, bug: Planted) -> bool {
        self.inner.config.plant.has(bug)
    }

    /// A transaction whose snapshot is now.
    pub async fn begin(&self) -> Result<Txn, Error> {
        Ok(Txn::new(self.clone(), self.timestamp().await?, false))
    }

    /// A transaction whose snapshot is now, and that commits only if what it has read is then still the same: all such
    /// transactions are as if each had happened at once, between its beginning and its end. One without writes always commits.
    pub async fn begin_serializable(&self) -> Result<Txn, Error> {
        Ok(Txn::serializable(self.clone(), self.timestamp().await?))
    }

    /// A read-only transaction at a timestamp that PD has issued before.
    pub fn begin_at(&self, ts: Timestamp) -> Txn {
        Txn::new(self.clone(), ts, true)
    }

    /// The newest committed value of a key: what an autocommit read of one key needs, without asking PD for a
    /// timestamp. Linearizable for this key alone.
    pub async fn get_latest(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.read_latest(key).await
    }

    /// The regions that `range` touches, in key order, each with its part of `range`. Their own ranges may overlap: after a merge
    /// the map may know the smaller region of before for one key, and PD the merged one for the next.
    pub async fn regions(&self, range: &KeyRange) -> Result<Vec<RegionRoute>, Error> {
        let deadline = self.deadline();
        let mut found = Vec::new();
        let mut key = range.start.clone();
        loop {
            let route = self.locate(&key, deadline).await?;
            let end = route.region.range.end.clone();
            let leader = route.known_leader.then_some(route.store);
            let rest = KeyRange::new(key, range.end.clone());
            if let Some(part) = rest.intersect(&route.region.range) {
                found.push(RegionRoute { part, leader, region: route.region });
            }
            if end.is_empty() || (!range.end.is_empty() && end >= range.end) {
                return Ok(found);
            }
            key = end;
        }
    }

    /// Waits until what transactions with keys in `keys` have locked, there and in the rest of `range`, does not need these
    /// keys any more, and gets the locks of finished and dead ones out of the way. For when no such transaction can begin
    /// to commit any more.
    pub async fn finish_transactions(&self, keys: &KeyRange, range: &KeyRange) -> Result<(), Error> {
        // Locks elsewhere ask their primary.
        let of =
            |primaries: &KeyRange| wire::FindLocksRequest { primaries: Some(primaries.into()), ..Default::default() };
        self.finish_locks(range, of(keys), &[], Duration::ZERO).await?;
        // And an async commit's primary asks all its locks.
        self.finish_locks(keys, of(range), &[], Duration::ZERO).await
    }

    /// Waits until no lock of a transaction that began before `safe_point` is left anywhere, and gets those of finished and dead
    /// ones out of the way. `safe_point` must be durable at PD, and refused by every store that has not just taken over.
    /// Regions that sleep without such locks sleep on.
    pub async fn finish_older(&self, safe_point: Timestamp) -> Result<(), Error> {
        let all = KeyRange::new(keyspace::keyspace_range(keyspace::PD_KEYSPACE).end, Bytes::new());
        let older = wire::FindLocksRequest { started_before: safe_point.0, ..Default::default() };
        let clear = self.sleepers_clear_of(safe_point).await?;
        tracing::debug!(%safe_point, sleepers = clear.len(), "old locks are looked for, but for sleepers that have none");
        self.finish_locks(&all, older, &clear, OLDER_PAUSE).await
    }

    /// The oldest timestamp that a transaction of this client reads or writes at.
    pub fn oldest_snapshot(&self) -> Option<Timestamp> {
        self.inner.in_use.oldest().filter(|_| !self.has(Planted::GcUnderReader))
    }

    /// Until no lock of those that `sought` describes stands in `range`, which is looked through with pauses, but for the ranges
    /// that are `clear` of them, in key order.
    async fn finish_locks(
        &self,
        range: &KeyRange,
        sought: wire::FindLocksRequest,
        clear: &[KeyRange],
        pause: Duration,
    ) -> Result<(), Error> {
        let mut rest = range.clone();
        loop {
            match sleepers::behind(clear, &rest.start) {
                Some(behind) if sleepers::is_beyond(&behind, range) => return Ok(()),
                Some(behind) => rest.start = behind,
                None => {}
            }
            let deadline = self.deadline();
            let (part, reply) = self
                .call_clipped(&rest, false, Source::Leader, deadline, |part| {
                    let range = Some((&part).into());
                    wire::kv_request::Body::FindLocks(wire::FindLocksRequest { range, ..sought.clone() })
                })
                .await?;
            let found = match reply.response.body {
                Some(wire::kv_response::Body::FindLocks(found)) => found,
                _ => return Err(read::wrong_answer("find locks")),
            };
            if let Some(error) = found.error {
                return Err(read::unexpected(crate::error::Refusal::from(error)));
            }
            if !found.locks.is_empty() {
                let mut wait = resolver::LockWait::on_keys();
                for lock in &found.locks {
                    self.clear_lock(lock, &mut wait, deadline).await?;
                }
                // The same part again: some of them may live on for a while.
                continue;
            }
            let next = if found.resume_key.is_empty() { part.end } else { found.resume_key };
            if sleepers::is_beyond(&next, range) {
                return Ok(());
            }
            rest.start = next;
            if !pause.is_zero() {
                self.inner.clock.sleep(pause).await;
            }
        }
    }

    /// Drops every version and lock in `range`, region by region, outside of any transaction. Only for key
    /// spaces nobody reads or writes any more (the table id of a dropped or truncated table), [`COMMIT_MEMORY`] after the last
    /// commit there and after [`Client::finish_transactions`]. May be repeated.
    pub async fn delete_range_unsafe(&self, range: &KeyRange) -> Result<(), Error> {
        let deadline = self.deadline();
        let mut key = range.start.clone();
        loop {
            let rest = KeyRange::new(key.clone(), range.end.clone());
            let (part, _) = self
                .call_clipped(&rest, false, Source::Leader, deadline, |part| {
                    let request = wire::UnsafeDeleteRangeRequest { range: Some((&part).into()) };
                    wire::kv_request::Body::UnsafeDeleteRange(request)
                })
                .await?;
            if part.end.is_empty() || part.end == range.end {
                return Ok(());
            }
            key = part.end;
        }
    }

    /// A timestamp after every one handed out before the call.
    pub async fn timestamp(&self) -> Result<Timestamp, Error> {
        let asked = self.inner.clock.now();
        let ts = self.inner.pd.timestamp().await?;
        let mut recent = self.inner.recent.lock();
        if ts > recent.0 {
            *recent = (ts, asked);
        }
        Ok(ts)
    }

    /// The placement driver this client asks.
    pub fn pd(&self) -> &Arc<dyn Pd> {
        &self.inner.pd
    }
}

#[cfg(test)]
mod tests {
    use proto::{Epoch, Peer, PeerId, PeerRole, Region, RegionId, Term};

    use super::*;
    use crate::local::Local;

    #[tokio::test]
    async fn the_parts_of_a_range_adjoin_though_the_map_is_older_than_a_merge() {
        let client = Local::start(&[Bytes::from("d"), Bytes::from("m")], None).client;
        // What is region 2 now had a smaller one at its start.
        let before = Region {
            id: RegionId(9),
            range: KeyRange::new("", "b"),
            epoch: Epoch { conf_ver: 1, version: 0 },
            peers: vec![Peer { id: PeerId(9), store: StoreId(1), role: PeerRole::Voter }],
        };
        client.inner.regions.write().learn(before, None, Term(1));
        let found = client.regions(&KeyRange::new("a", "n")).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|route| (route.region.id.0, route.part)).collect();
        let expected = [(9, "a", "b"), (2, "b", "d"), (3, "d", "m"), (4, "m", "n")];
        assert_eq!(found, expected.map(|(id, start, end)| (id, KeyRange::new(start, end))));
    }
}
