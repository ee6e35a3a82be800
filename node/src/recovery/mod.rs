//! Unsafe recovery: regions that lost their quorum for good go on with what is left.
//!
//! ```text
//!   each surviving store, stopped     survey ──┐
//!                                     survey ──┼──▶ plan ──▶ a person reads it ──▶ each surviving store, stopped: apply
//!                                     survey ──┘
//! ```
//!
//! It is offline, because no log entry can be committed that would do it, and it loses what only the lost stores had:
//! acknowledged writes, halves of transactions. Entries that no quorum ever had are committed instead. [`plan`] decides
//! which replica of each region goes on; `raftstore::store::recovery` does the surgery; where region 1 is among them,
//! `pd::after_loss` moves PD's records ahead of what the lost stores may have handed out. What was done stays in the data
//! directory, and each start says so.
//!
//! The lost stores must never run again: two of them may be a quorum of the old members, and would go on beside this one.
//! One alone is told that its regions have other members, and by PD that it was removed.

pub mod plan;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use proto::{
    Cf, KeyRange, PD_REGION, Region, RegionId, StoreId, Term,
    wire::{self, RecoveryNote, RecoveryPlan, RecoverySurvey, ReplicaRemains},
};
use raftstore::{
    BootError,
    engine::{Engine, EngineError, Snapshot, WriteOp},
    keys::INITIAL,
    log::LogEngine,
    store::recovery::{Floor, Remains, go_on_alone, remains},
};

use crate::identity::Identity;
pub use plan::{FORMAT, Wishes};

/// Why a store was not surveyed, or a plan not carried out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RecoveryError {
    /// A person must look.
    #[error("{0}")]
    Refused(String),
    /// The disk failed, or holds what it should not.
    #[error(transparent)]
    Boot(#[from] BootError),
}

impl From<EngineError> for RecoveryError {
    fn from(e: EngineError) -> Self {
        RecoveryError::Boot(e.into())
    }
}

fn refused<T>(why: impl Into<String>) -> Result<T, RecoveryError> {
    Err(RecoveryError::Refused(why.into()))
}

/// A stopped store.
pub struct Stopped {
    engine: Arc<dyn Engine>,
    log: Arc<dyn LogEngine>,
    identity: Identity,
    store: StoreId,
    cluster: u64,
}

impl Stopped {
    /// The store of a data directory that no process runs on. Changes nothing.
    pub fn look(engine: Arc<dyn Engine>, log: Arc<dyn LogEngine>) -> Result<Stopped, RecoveryError> {
        let Some(identity) = Identity::look(engine.clone())? else { return refused("the directory is empty") };
        match (identity.store, identity.cluster()) {
            (Some(store), Some(cluster)) => Ok(Stopped { engine, log, identity, store, cluster: cluster.0 }),
            _ => refused("the directory belongs to no cluster yet"),
        }
    }

    /// What it holds.
    pub fn survey(&self) -> Result<RecoverySurvey, RecoveryError> {
        let found = remains(&*self.engine, &*self.log)?;
        let founders = self.identity.record.iter().flat_map(|r| &r.founders).map(|s| s.id);
        let members = found.iter().flat_map(|r| r.region.peers.iter().map(|p| p.store.0));
        let told = self.identity.addresses()?;
        let mut known: Vec<_> =
            founders.chain(members).chain(told.iter().map(|s| s.id)).chain([self.store.0]).collect();
        known.sort_unstable();
        known.dedup();
        let replica = |r: &Remains| ReplicaRemains {
            region: Some((&r.region).into()),
            applied_index: r.applied.index.0,
            last_index: r.last.index.0,
            last_term: r.last.term.0,
            term: r.term.0,
            taking_snapshot: r.taking_snapshot,
        };
        Ok(RecoverySurvey {
            format: FORMAT,
            cluster_id: self.cluster,
            store_id: self.store.0,
            uuid: self.identity.uuid.clone(),
            boot_id: self.identity.boot_id,
            replicas: found.iter().map(replica).collect(),
            known_stores: known,
        })
    }

    /// Whether this very store is in the plan, as it was surveyed.
    fn check(&self, plan: &RecoveryPlan) -> Result<(), RecoveryError> {
        if plan.format != FORMAT {
            return refused(format!("a plan of format {}, this program knows {FORMAT}", plan.format));
        }
        if plan.cluster_id != self.cluster {
            return refused(format!("a plan for cluster {:x}, this is cluster {:x}", plan.cluster_id, self.cluster));
        }
        let Some(site) = plan.sites.iter().find(|s| s.store_id == self.store.0) else {
            return refused(format!("store {} was not surveyed for this plan", self.store.0));
        };
        if site.uuid != self.identity.uuid {
            return refused(format!("store {} was surveyed with another data directory", self.store.0));
        }
        if site.boot_id != self.identity.boot_id {
            return refused(format!("store {} was started after it was surveyed: survey and plan again", self.store.0));
        }
        Ok(())
    }

    /// Whether the plan was carried out here already; an error when it is not for this store as it is.
    pub fn is_done(&self, plan: &RecoveryPlan) -> Result<bool, RecoveryError> {
        let done = self.identity.recoveries()?.notes.iter().any(|note| note.plan_id == plan.plan_id);
        if !done {
            self.check(plan)?;
        }
        Ok(done)
    }

    /// Carries the plan out on this store: the regions that go on here, as they are now. `wall_ms`: Unix milliseconds.
    /// Doing it twice is doing it once.
    pub fn apply(&self, plan: &RecoveryPlan, wall_ms: u64) -> Result<Vec<Region>, RecoveryError> {
        if self.is_done(plan)? {
            let notes = self.identity.recoveries()?.notes;
            let done = notes.into_iter().filter(|n| n.plan_id == plan.plan_id).flat_map(|n| n.regions);
            return Ok(done.filter_map(|r| Region::try_from(r).ok()).collect());
        }
        let mut regions = Vec::new();
        for rescue in plan.rescues.iter().filter(|r| r.store_id == self.store.0) {
            let id = RegionId(rescue.region.as_ref().map_or(0, |r| r.id));
            let keeps = rescue.keeps.clone().map(|range| (range.into(), rescue.version_floor));
            regions.push(self.alone(plan, id, keeps, wall_ms)?);
        }
        regions.extend(self.born(plan)?);
        if let Some(region_one) = region_one(plan) {
            self.identity.set_pd_region(&region_one)?;
        }
        let note = RecoveryNote {
            plan_id: plan.plan_id,
            lost_stores: plan.lost_stores.clone(),
            regions: regions.iter().map(Into::into).collect(),
        };
        self.identity.add_recovery(note)?;
        Ok(regions)
    }

    fn alone(
        &self,
        plan: &RecoveryPlan,
        region: RegionId,
        keeps: Option<(KeyRange, u64)>,
        wall_ms: u64,
    ) -> Result<Region, RecoveryError> {
        let floor = Floor { conf_ver: plan.conf_ver_floor, term: Term(plan.term_floor), keeps };
        let also = |state: &dyn Snapshot| match region {
            PD_REGION => pd_records(state, plan, wall_ms),
            _ => Ok(Vec::new()),
        };
        Ok(go_on_alone(&self.engine, &*self.log, self.store, region, floor, also)?)
    }

    /// Regions that came out of a survivor's log, which no survey could show; without a quorum as their parent was.
    fn born(&self, plan: &RecoveryPlan) -> Result<Vec<Region>, RecoveryError> {
        let lost = plan.lost_stores.iter().map(|id| StoreId(*id)).collect();
        let found = remains(&*self.engine, &*self.log)?;
        // A region that was split off has nothing applied; one that was here before was in the survey.
        let born = found.into_iter().filter(|r| r.applied == INITIAL && !plan.known_regions.contains(&r.region.id.0));
        let mut regions = Vec::new();
        for remains in born {
            let region = &remains.region;
            if !plan::has_quorum(region, &lost) && region.peer_on(self.store).is_some() {
                regions.push(self.alone(plan, region.id, None, 0)?);
            }
        }
        Ok(regions)
    }
}

/// PD's records, moved on.
fn pd_records(state: &dyn Snapshot, plan: &RecoveryPlan, wall_ms: u64) -> Result<Vec<WriteOp>, EngineError> {
    let range = pd::keys::all();
    let mut cursor = state.cursor(Cf::Data, &range.start, &range.end);
    let (mut durable, mut more) = (BTreeMap::new(), cursor.seek_to_first()?);
    while more {
        durable.insert(Bytes::copy_from_slice(cursor.key()), Bytes::copy_from_slice(cursor.value()));
        more = cursor.next()?;
    }
    let lost: Vec<_> = plan.lost_stores.iter().map(|id| StoreId(*id)).collect();
    let writes = pd::after_loss::writes(&durable, &lost, plan.largest_id, wall_ms);
    let writes = writes.map_err(|e| EngineError::Corrupt(e.to_string()))?;
    let op = |(key, value): pd::MetaWrite| match value {
        Some(value) => WriteOp::Put(Cf::Data, key, value),
        None => WriteOp::Delete(Cf::Data, key),
    };
    Ok(writes.into_iter().map(op).collect())
}

/// Region 1 as it goes on by the plan, for stores that have to find PD.
fn region_one(plan: &RecoveryPlan) -> Option<wire::Region> {
    let rescue = plan.rescues.iter().find(|r| r.region.as_ref().is_some_and(|r| r.id == PD_REGION.0))?;
    let peer = wire::Peer { id: rescue.peer_id, store_id: rescue.store_id, role: wire::PeerRole::Voter as i32 };
    let mut region = rescue.region.clone()?;
    region.peers = vec![peer];
    if let Some(epoch) = &mut region.epoch {
        epoch.conf_ver = plan.conf_ver_floor;
    }
    Some(region)
}

#[cfg(test)]
mod tests;
