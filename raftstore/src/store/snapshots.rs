//! The store's share in snapshots: how many it keeps, and when the log is free for one that is taken.

use proto::RegionId;
use tracing::info;

use super::StoreCore;
use crate::{
    clock::Instant,
    effect::{ArrivedSnapshot, SnapshotTask},
    region::{
        message,
        outbox::{Outbox, Removal},
        snapshot::SnapshotOrders,
    },
};

/// Between turns.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    room: Option<usize>,
    last_number: u64,
    /// Each waits for the log write of this sequence: its driver writes to the log itself.
    waiting: Vec<(u64, SnapshotTask)>,
    /// Replicas that are to go when their snapshot is taken: nobody may write where the driver does.
    deferred: Vec<Removal>,
}

impl Snapshots {
    /// Puts off the end of a replica that is taking a snapshot.
    pub(super) fn defer(&mut self, removal: Removal) {
        self.deferred.push(removal);
    }

    /// For the replicas of a turn.
    pub(super) fn orders(&self) -> SnapshotOrders {
        let fresh = SnapshotOrders::default();
        SnapshotOrders { room: self.room.unwrap_or(fresh.room), last_number: self.last_number, ..fresh }
    }

    /// What is to be done after a turn, whose last log write is `last`; `first_open`: the first one that is not done.
    pub(super) fn tasks(&mut self, orders: SnapshotOrders, last: u64, first_open: Option<u64>) -> Vec<SnapshotTask> {
        (self.room, self.last_number) = (Some(orders.room), orders.last_number);
        let (taking, mut due): (Vec<_>, Vec<_>) =
            orders.tasks.into_iter().partition(|task| matches!(task, SnapshotTask::Take(_)));
        self.waiting.extend(taking.into_iter().map(|task| (last, task)));
        let free = |after: u64| first_open.is_none_or(|open| open > after);
        due.extend(self.waiting.extract_if(.., |(after, _)| free(*after)).map(|(_, task)| task));
        due
    }
}

impl StoreCore {
    /// The files of a snapshot are here. It may not cover keys of another region's replica: that one has not heard yet
    /// of a split or a merge, and what it does then would go wrong.
    pub(super) fn snapshot_arrived(&mut self, now: Instant, arrived: ArrivedSnapshot, out: &mut Outbox) {
        let refused = match message::decode_snapshot(&arrived.message) {
            Err(refused) => Some(refused.to_string()),
            Ok((_, content)) => self.overlap(&content.region),
        };
        let region = RegionId(arrived.message.region_id);
        match (refused, self.replica(region)) {
            (None, Some(replica)) => replica.snapshot_arrived(now, arrived, out),
            (refused, _) => {
                let reason = refused.unwrap_or_else(|| "its region is not here".into());
                info!(region = region.0, reason, "a snapshot is not taken");
                out.snapshots.refuse(arrived.folder);
            }
        }
    }

    /// A snapshot is a region's state now.
    pub(super) fn snapshot_taken(&mut self, region: RegionId, out: &mut Outbox) {
        out.removed.extend(self.snapshots.deferred.extract_if(.., |removal| removal.region == region));
        if let Some(replica) = self.replica(region) {
            replica.snapshot_taken();
        }
    }

    fn overlap(&self, region: &proto::Region) -> Option<String> {
        let other = self.covered_by(&region.range, Some(region.id))?;
        Some(format!("{other} of this store covers some of its keys"))
    }
}
