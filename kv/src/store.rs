//! What the kv service needs from a store of regions. `raftstore`'s handle is one; tests of `kv` and `sql`
//! use a single-node one in memory that applies at once.

use std::sync::Arc;

use async_trait::async_trait;
use proto::{Batch, Epoch, Region, RegionId, Timestamp, wire::RegionError};
use raftstore::{ProposeError, RegionSnapshot, ReplicaStatus, StoreHandle, Target, engine::Snapshot};

/// A store that holds replicas of regions.
#[async_trait]
pub trait RegionStore: Send + Sync + 'static {
    /// A current view, without waiting: `None` when the lease has run out and [`RegionStore::snapshot`] must ask the quorum.
    fn try_snapshot(&self, target: &Target) -> Option<Result<RegionSnapshot, RegionError>>;
    /// A current view; under the lease at once, otherwise by ReadIndex.
    async fn snapshot(&self, target: &Target) -> Result<RegionSnapshot, RegionError>;
    /// Waits until the replica here knows who leads the region and no merge of it is under way, or it is not here any more.
    async fn settled(&self, region: RegionId);
    /// A view of a replica that need not lead, in which all is that can ever be visible at `at`; `None` when this store has
    /// none that is known to be that far.
    fn past_snapshot(&self, target: &Target, at: Timestamp) -> Option<RegionSnapshot>;
    /// The regions that are led here and in use.
    fn led_awake(&self) -> Vec<Arc<Region>>;
    /// Nothing that is proposed here to these regions from now on is visible at `ts`; what was proposed before and may be
    /// is applied. Other replicas can be read at it as soon as they are as far as this one is now, if it alone serves the
    /// region.
    fn resolve(&self, ts: Timestamp, regions: Vec<(RegionId, Epoch)>);
    /// Replicates and applies a batch. With `target.term` set it is applied only if that term still
    /// holds at propose: what was evaluated under the leader's latches stays true.
    ///
    /// Completes when the batch is applied here, or when it certainly is not and never will be by this store's
    /// leadership of the term: [`ProposeError::Unknown`] only once the store does not lead in that term any more.
    /// Latches and in-memory locks are held until then, so an implementation must not give up earlier.
    async fn propose(&self, target: &Target, batch: Batch) -> Result<(), ProposeError>;
    /// All replicas as they are at some time after the call, and a view of the store taken later, which proves nothing by itself.
    /// Neither wakes a region.
    async fn look(&self) -> (Vec<ReplicaStatus>, Arc<dyn Snapshot>);
}

#[async_trait]
impl RegionStore for StoreHandle {
    fn try_snapshot(&self, target: &Target) -> Option<Result<RegionSnapshot, RegionError>> {
        StoreHandle::try_snapshot(self, target)
    }
    async fn snapshot(&self, target: &Target) -> Result<RegionSnapshot, RegionError> {
        StoreHandle::snapshot(self, target).await
    }
    async fn settled(&self, region: RegionId) {
        StoreHandle::settled(self, region).await;
    }
    fn past_snapshot(&self, target: &Target, at: Timestamp) -> Option<RegionSnapshot> {
        StoreHandle::past_snapshot(self, target, at)
    }
    fn led_awake(&self) -> Vec<Arc<Region>> {
        StoreHandle::led_awake(self)
    }
    fn resolve(&self, ts: Timestamp, regions: Vec<(RegionId, Epoch)>) {
        StoreHandle::resolve(self, ts, regions);
    }
    async fn propose(&self, target: &Target, batch: Batch) -> Result<(), ProposeError> {
        StoreHandle::propose(self, target, batch).await
    }
    async fn look(&self) -> (Vec<ReplicaStatus>, Arc<dyn Snapshot>) {
        StoreHandle::look(self).await
    }
}
