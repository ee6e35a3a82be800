//! The store's share in snapshots: how many it keeps, and when the log is free for one that is taken.

use proto::{Region, RegionId};
use tracing::info;

use super::StoreCore;
use crate::{
    clock::Instant,
    effect::{ArrivedSnapshot, SnapshotTask},
    region::{
        Replica, message,
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
    /// of a split or a merge, and what it does then would go wrong. One that is known to have been merged away ends with it.
    pub(super) fn snapshot_arrived(&mut self, now: Instant, arrived: ArrivedSnapshot, out: &mut Outbox) {
        let id = RegionId(arrived.message.region_id);
        let content = message::decode_snapshot(&arrived.message).map_err(|refused| refused.to_string());
        let fits = content.and_then(|(_, content)| Ok((self.make_room(&content.region)?, content.region)));
        let (sources, region) = match (fits, self.replicas.get(&id)) {
            (Ok(fits), Some(_)) => fits,
            (fits, _) => {
                let reason = fits.err().unwrap_or_else(|| "its region is not here".into());
                info!(region = id.0, reason, "a snapshot is not taken");
                return out.snapshots.refuse(arrived.folder);
            }
        };
        if self.replica(id).is_some_and(|replica| replica.snapshot_arrived(now, arrived, out)) {
            let ending: Vec<_> = sources.into_iter().filter_map(|s| self.silence(s, &region, out)).collect();
            self.absent.dying.extend(ending.iter().map(|source| (source.region.id, source.region.clone())));
            self.replicas.entry(id).and_modify(|replica| replica.end_with_snapshot(ending));
        }
    }

    /// A snapshot is a region's state now.
    pub(super) fn snapshot_taken(&mut self, region: RegionId, out: &mut Outbox) {
        out.removed.extend(self.snapshots.deferred.extract_if(.., |removal| removal.region == region));
        let ended = self.replica(region).map(Replica::snapshot_taken).unwrap_or_default();
        for source in ended {
            self.destroyed(source, out);
        }
    }

    /// The replicas that end with a snapshot of this region; the reason, if another one is in its way. What was merged into
    /// one of them ends before: with the entry by which that one is prepared, it knows that the earlier merge is committed.
    fn make_room(&self, region: &Region) -> Result<Vec<RegionId>, String> {
        let ends = |other: &&Replica| {
            let overlaps = other.id() != region.id && other.region().range.intersect(&region.range).is_some();
            overlaps && other.ends_with(region) && other.is_still()
        };
        let ending: Vec<_> = self.replicas.values().filter(ends).map(Replica::id).collect();
        let ids: Vec<_> = ending.iter().copied().chain([region.id]).collect();
        match self.covered_by(&region.range, &ids) {
            Some(other) => Err(format!("{other} of this store covers some of its keys")),
            None => Ok(ending),
        }
    }
}
