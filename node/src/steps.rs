//! Carries out what PD wants done with regions that this store leads.
//!
//! A step runs beside the others, at most one a region. How it ends PD sees in the region; why it did not, in the next
//! heartbeat. PD repeats a step until the region shows it, so a step that runs already is simply not begun again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use kv::{Clock, Spawn};
use parking_lot::Mutex;
use proto::{
    KeyRange, Peer, PeerId, Region, RegionId, StoreId,
    wire::{
        NewRegionIds, PeerChangeStep, RegionStep, SplitBy, SplitStep, StepFailure, peer_change_step, region_step::Kind,
    },
};
use raftstore::{AdminError, NewRegion, PeerChange, StoreHandle, Target, engine::Engine};
use tokio::sync::watch;

use crate::{
    load::LoadMeter,
    measure,
    split_keys::{self, Cutter},
};

/// Failures that wait for a heartbeat. What is lost beyond, PD learns from its own deadline.
const FAILURES_MAX: usize = 1_000;
/// Steps under way. PD's own limits are far below.
const STEPS_MAX: usize = 1_000;
/// Between pages of a walk over a large region.
const PAGE_PAUSE: Duration = Duration::from_millis(1);

/// A step that did not succeed.
struct Failed {
    reason: String,
    again: bool,
}

impl From<AdminError> for Failed {
    fn from(error: AdminError) -> Self {
        Failed { again: !matches!(error, AdminError::Refused(_)), reason: error.to_string() }
    }
}

fn refused(reason: impl Into<String>) -> Failed {
    Failed { reason: reason.into(), again: false }
}

/// Runs steps.
pub struct Steps {
    store: StoreHandle,
    engine: Arc<dyn Engine>,
    load: Arc<LoadMeter>,
    clock: Arc<dyn Clock>,
    spawn: Arc<dyn Spawn>,
    /// By region, which step of which operator runs.
    running: Mutex<BTreeMap<RegionId, (u64, u32)>>,
    failures: Mutex<Vec<StepFailure>>,
    /// Counts ends of steps: a heartbeat is due.
    ended: watch::Sender<u64>,
}

impl Steps {
    /// Over this node's store.
    pub fn new(
        store: StoreHandle,
        engine: Arc<dyn Engine>,
        load: Arc<LoadMeter>,
        clock: Arc<dyn Clock>,
        spawn: Arc<dyn Spawn>,
    ) -> Arc<Steps> {
        let (running, failures) = (Mutex::default(), Mutex::default());
        Arc::new(Steps { store, engine, load, clock, spawn, running, failures, ended: watch::Sender::new(0) })
    }

    /// Fires when a step has ended.
    pub fn ended(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    /// Why steps failed since the last call.
    pub fn failures(&self) -> Vec<StepFailure> {
        std::mem::take(&mut *self.failures.lock())
    }

    /// Begins what does not run yet.
    pub fn begin(self: &Arc<Self>, steps: Vec<RegionStep>) {
        for step in steps {
            let (region, name) = (RegionId(step.region_id), (step.operator_id, step.index));
            {
                let mut running = self.running.lock();
                if running.len() >= STEPS_MAX || running.contains_key(&region) {
                    continue;
                }
                running.insert(region, name);
            }
            let this = self.clone();
            self.spawn.spawn(Box::pin(async move { this.run(region, step).await }));
        }
    }

    async fn run(&self, region: RegionId, step: RegionStep) {
        let (operator_id, index) = (step.operator_id, step.index);
        let result = self.carry_out(region, step).await;
        self.running.lock().remove(&region);
        if let Err(Failed { reason, again }) = result {
            tracing::info!(operator = operator_id, step = index, region = region.0, reason, "a step did not succeed");
            let mut failures = self.failures.lock();
            if failures.len() < FAILURES_MAX {
                failures.push(StepFailure { operator_id, index, region_id: region.0, reason, again });
            }
        }
        self.ended.send_modify(|n| *n += 1);
    }

    async fn carry_out(&self, region: RegionId, step: RegionStep) -> Result<(), Failed> {
        let epoch = step.epoch.ok_or_else(|| refused("a step without its region's epoch"))?.into();
        let target = Target { region, epoch, term: None };
        match step.kind {
            Some(Kind::ChangePeers(change)) => {
                let changes: Result<Vec<_>, _> = change.changes.into_iter().map(peer_change).collect();
                self.store.change_peers(&target, changes?).await?;
            }
            Some(Kind::TransferLeader(to)) => self.store.transfer_leader(&target, StoreId(to.to_store)).await?,
            Some(Kind::Split(split)) => self.split(&target, split).await?,
            Some(Kind::Merge(merge)) => {
                let into = merge.into.map(Region::try_from).ok_or_else(|| refused("a merge without its target"))?;
                self.store.merge(&target, &into.map_err(|e| refused(e.to_string()))?).await?;
            }
            None => return Err(refused("a step of a kind that this version does not know")),
        }
        Ok(())
    }

    async fn split(&self, target: &Target, step: SplitStep) -> Result<(), Failed> {
        let status = self.store.status(target.region);
        let region = status.map(|r| r.view.region.clone()).ok_or_else(|| refused("the region is not here"))?;
        let keys = match SplitBy::try_from(step.by) {
            Ok(SplitBy::Keys) => step.keys,
            Ok(SplitBy::Size) => self.keys_by_size(&region, step.ids.len()).await?,
            Ok(SplitBy::Load) => split_keys::by_load(&region.range, self.load.samples(region.id)).into_iter().collect(),
            Err(_) => return Err(refused("a way to split that this version does not know")),
        };
        if keys.is_empty() {
            return Err(refused("no key divides the region"));
        }
        let new = keys.into_iter().zip(step.ids).map(|(key, ids)| new_region(key, ids));
        self.store.split(target, new.collect()).await?;
        Ok(())
    }

    /// Walks over the region, with pauses.
    async fn keys_by_size(&self, region: &Region, cuts: usize) -> Result<Vec<Bytes>, Failed> {
        let failed = |e: raftstore::engine::EngineError| refused(e.to_string());
        let mut total = 0;
        self.walk(region.range.clone(), |_, bytes| {
            total += bytes;
            true
        })
        .await
        .map_err(failed)?;
        let mut cutter = Cutter::new(region.range.clone(), total, cuts + 1);
        self.walk(region.range.clone(), |key, bytes| cutter.push(key, bytes)).await.map_err(failed)?;
        Ok(cutter.finish())
    }

    async fn walk(
        &self,
        mut range: KeyRange,
        mut next: impl FnMut(&[u8], u64) -> bool + Send,
    ) -> Result<(), raftstore::engine::EngineError> {
        loop {
            let page = measure::page(&*self.engine, &range)?;
            if !page.records.iter().all(|(key, bytes)| next(key, *bytes)) {
                return Ok(());
            }
            match page.resume {
                Some(key) => range.start = key,
                None => return Ok(()),
            }
            self.clock.sleep(PAGE_PAUSE).await;
        }
    }
}

fn new_region(start: Bytes, ids: NewRegionIds) -> NewRegion {
    NewRegion { start, id: RegionId(ids.region_id), peers: ids.peer_ids.into_iter().map(PeerId).collect() }
}

fn peer_change(change: PeerChangeStep) -> Result<PeerChange, Failed> {
    use peer_change_step::Kind;
    Ok(match change.kind.ok_or_else(|| refused("a change of a kind that this version does not know"))? {
        Kind::AddLearner(peer) => PeerChange::AddLearner(Peer::try_from(peer).map_err(|e| refused(e.to_string()))?),
        Kind::Promote(id) => PeerChange::Promote(PeerId(id)),
        Kind::Demote(id) => PeerChange::Demote(PeerId(id)),
        Kind::Remove(id) => PeerChange::Remove(PeerId(id)),
    })
}
