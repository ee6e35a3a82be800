//! The gateway's copy of the catalog, and its right to use it.
//!
//! PD grants the right for some seconds at a time, up to a timestamp. Three things hang on it: every commit stays
//! below that timestamp; no statement starts when the lease has run out; no result is sent that was read after
//! it. So a schema change may count a gateway that was silent until then as gone.
//!
//! The lease's end by this node's own clock is taken as: the clock *before* a timestamp was asked of PD, plus the
//! time from that timestamp to the end, less a margin for clocks that run at different speeds.
//!
//! With the lease a gateway has every table in the shared modes ([`crate::table_locks`]). When it ran out before it was renewed, others may
//! have locked tables meanwhile: open transactions are doomed, and the locks that stand now are read, before the next lease counts.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use kv::{Client, Clock, Instant, Pd};
use parking_lot::Mutex;
use proto::{Timestamp, wire::TableUse};
use tokio::sync::watch;

use super::{CatalogSnapshot, fence::Fence, store};
use crate::{
    error::{SqlError, SqlResult},
    planted::{Plant, Planted},
    table_locks::{self, Barriers, SessionId, record::Holder},
};

/// How long PD may keep a renewal waiting for news. Well below any lease.
const RENEW_WAIT: Duration = Duration::from_secs(1);
/// A lease as PD grants it (8 s), and the wait for news before it does.
const LONGEST: Duration = Duration::from_secs(8).saturating_add(RENEW_WAIT);
/// Pause after a renewal that failed: PD's leader is being elected.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The lease is taken to be shorter by this part, for clocks that drift.
const DRIFT_DIVISOR: u32 = 20;
/// How long a statement waits for a lease that has run out before it is refused.
const LEASE_WAIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
struct Lease {
    end: Timestamp,
    local_end: Instant,
}

/// Leases that ran out before they were renewed.
#[derive(Default)]
struct Lapsed {
    count: u64,
    /// The end of the last one.
    end: Timestamp,
}

/// The cached catalog under its lease.
pub struct LeasedCatalog {
    client: Client,
    pd: Arc<dyn Pd>,
    clock: Arc<dyn Clock>,
    gateway: u64,
    current: ArcSwap<CatalogSnapshot>,
    lease: ArcSwap<Lease>,
    fences: Mutex<Vec<std::sync::Weak<Fence>>>,
    barriers: Arc<Barriers>,
    version: watch::Sender<u64>,
    lapsed: Mutex<Lapsed>,
    plant: Plant,
}

impl LeasedCatalog {
    /// Loads the catalog and takes the first lease for the gateway of this id.
    pub async fn open(
        client: Client,
        pd: Arc<dyn Pd>,
        clock: Arc<dyn Clock>,
        gateway: u64,
        plant: Plant,
    ) -> SqlResult<Self> {
        let catalog = LeasedCatalog {
            lease: ArcSwap::from_pointee(Lease { end: Timestamp::ZERO, local_end: clock.now() }),
            client,
            pd,
            clock,
            gateway,
            current: ArcSwap::default(),
            fences: Mutex::default(),
            barriers: Arc::default(),
            version: watch::Sender::new(0),
            lapsed: Mutex::default(),
            plant,
        };
        // Version 0 is acknowledged first: the gateway is known to PD before it loads, so no change is missed.
        let acknowledged = catalog.renew(0, Duration::ZERO).await?;
        catalog.refresh().await?;
        catalog.read_locks().await?;
        tracing::info!(gateway, acknowledged, version = catalog.current().version, "catalog loaded");
        Ok(catalog)
    }

    /// The newest catalog this gateway knows.
    pub fn current(&self) -> Arc<CatalogSnapshot> {
        self.current.load_full()
    }
    /// Its version, without counting a reference.
    pub fn current_version(&self) -> u64 {
        self.current.load().version
    }
    /// Commits must stay below this timestamp.
    pub fn end(&self) -> Timestamp {
        self.lease.load().end
    }
    /// A new session's fence.
    pub fn fence(&self, pid: u32) -> Arc<Fence> {
        let session = SessionId { gateway: self.gateway, pid };
        let fence = Arc::new(Fence::new(session, Arc::clone(&self.barriers)));
        let mut fences = self.fences.lock();
        fences.retain(|fence| fence.strong_count() > 0);
        fences.push(Arc::downgrade(&fence));
        fence
    }
    /// What this gateway knows of strong table locks.
    pub(crate) fn barriers(&self) -> &Arc<Barriers> {
        &self.barriers
    }
    /// What the transactions of all sessions use of tables.
    pub(crate) fn uses(&self) -> Vec<TableUse> {
        self.all_fences().iter().flat_map(|fence| fence.uses()).collect()
    }
    /// A session locks a table: from now on uses of it wait which that excludes. Completes when there are none any more, or after a
    /// while with those that are left.
    pub(crate) async fn called_back(&self, table: u32, holder: Holder, wait: Duration) -> Vec<TableUse> {
        self.barriers.set(table, holder);
        if self.plant.has(Planted::AcknowledgeInUse) {
            return Vec::new();
        }
        // Whoever comes later meets the barrier.
        let fences = self.all_fences();
        let against = || {
            let stands = fences.iter().filter_map(|fence| fence.against(table, holder.modes, holder.session));
            stands.collect::<Vec<TableUse>>()
        };
        let unused = self.barriers.unused(|| against().is_empty());
        futures::future::select(std::pin::pin!(unused), self.clock.sleep(wait)).await;
        against()
    }
    fn all_fences(&self) -> Vec<Arc<Fence>> {
        self.fences.lock().iter().filter_map(std::sync::Weak::upgrade).collect()
    }
    /// Reads the table locks that stand.
    async fn read_locks(&self) -> SqlResult<()> {
        self.barriers.merge(table_locks::read_all(&self.client).await?);
        Ok(())
    }
    /// Whether the lease holds at this moment: what was read before the call may be shown.
    pub fn holds(&self) -> bool {
        self.clock.now() < self.lease.load().local_end
    }
    /// How many leases have run out before they were renewed: what sessions hold beyond their transactions ended with each.
    pub fn lapses(&self) -> u64 {
        self.lapsed.lock().count
    }
    /// Calls `lost` whenever a lease has run out, for ever.
    pub async fn watch(&self, lost: impl Fn()) {
        let mut seen = self.lapses();
        loop {
            let lease = **self.lease.load();
            let left = lease.local_end.since(self.clock.now());
            if left.is_zero() {
                self.note_lapse(lease);
            }
            if self.lapses() != seen {
                seen = self.lapses();
                lost();
            }
            self.clock.sleep(left.max(RETRY_PAUSE)).await;
        }
    }
    fn note_lapse(&self, lease: Lease) {
        let mut lapsed = self.lapsed.lock();
        if lapsed.end != lease.end {
            *lapsed = Lapsed { count: lapsed.count + 1, end: lease.end };
            if lease.end != Timestamp::ZERO {
                tracing::warn!(gateway = self.gateway, "the catalog lease ran out: open transactions are ended");
            }
            if !(self.plant.has(Planted::KeepDoomed) || self.plant.has(Planted::CommitPastLease)) {
                self.all_fences().iter().for_each(|fence| fence.doom_all());
            }
        }
    }
    /// 40001 when the lease ran out while something was read.
    pub fn check(&self) -> SqlResult<()> {
        if self.holds() { Ok(()) } else { Err(SqlError::serialization("The gateway's catalog lease ran out.")) }
    }
    /// Waits until the lease holds, for some seconds.
    pub async fn held(&self) -> SqlResult<()> {
        let deadline = self.clock.now() + LEASE_WAIT;
        while !self.holds() {
            if self.clock.now() >= deadline {
                return Err(SqlError::unavailable("the gateway could not renew its catalog lease with PD"));
            }
            self.clock.sleep(RETRY_PAUSE).await;
        }
        Ok(())
    }
    /// Waits until this gateway works with `version` or a newer one.
    pub async fn reached(&self, version: u64) {
        let mut watching = self.version.subscribe();
        // An error means that the gateway is gone, and with it everyone who could wait.
        let _ = watching.wait_for(|known| *known >= version).await;
    }

    /// Keeps the lease and follows the published versions, for ever.
    pub async fn keep(&self) {
        loop {
            let acknowledged = self.current_version();
            let renewed = match self.renew(acknowledged, RENEW_WAIT).await {
                Ok(published) if published > acknowledged => self.refresh().await,
                other => other.map(|_| ()),
            };
            if let Err(error) = renewed {
                tracing::warn!(gateway = self.gateway, %error, "the catalog lease was not renewed");
                self.clock.sleep(RETRY_PAUSE).await;
            }
        }
    }

    /// Acknowledges a version and takes a new lease; the version that is published now.
    async fn renew(&self, acknowledged: u64, wait: Duration) -> SqlResult<u64> {
        let asked = self.clock.now();
        let now = self.pd.timestamp().await?;
        let (published, end) = self.pd.catalog_lease(self.gateway, acknowledged, wait).await?;
        let old = **self.lease.load();
        if self.clock.now() >= old.local_end {
            self.note_lapse(old);
            if old.end != Timestamp::ZERO {
                self.read_locks().await?;
            }
        }
        // PD's time may have stepped forward between the two.
        let length = Duration::from_millis(end.physical_ms().saturating_sub(now.physical_ms())).min(LONGEST);
        self.lease.store(Arc::new(Lease { end, local_end: asked + (length - length / DRIFT_DIVISOR) }));
        Ok(published)
    }

    /// Loads the newest catalog and makes it this gateway's. When it returns, no transaction of this gateway can commit that
    /// used an older form of a table.
    async fn refresh(&self) -> SqlResult<()> {
        let txn = self.client.begin().await?;
        let mut fresh = store::load(&txn).await?;
        let old = self.current();
        if fresh.version <= old.version {
            return Ok(());
        }
        let changed = old.changed_in(&fresh);
        fresh.set_usable_from(&old, &changed, txn.start_ts());
        let version = fresh.version;
        self.current.store(Arc::new(fresh));
        let fences = self.all_fences();
        let changed = if self.plant.has(Planted::KeepDoomed) { Vec::new() } else { changed };
        let committing: Vec<_> = fences.into_iter().filter(|fence| fence.doom(&changed)).collect();
        for fence in committing {
            fence.committed().await;
        }
        self.version.send_replace(version);
        Ok(())
    }
}
