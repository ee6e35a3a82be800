//! What the replicas of a turn want done, before the store turns it into effects.

use std::{collections::BTreeMap, sync::Arc};

use proto::{Epoch, Region, RegionId, StoreId, wire};
use raft::eraftpb::{Entry, HardState};

use super::{propose::Replies, resolved::Mark, snapshot::SnapshotOrders};
use crate::{
    effect::{ApplyTask, ApplyWork, Seen},
    log::{LogBatch, Position, RegionLog},
};

/// A message and the store it is for.
pub(crate) type Addressed = (StoreId, wire::RaftMessage);

/// Messages that promise something: they leave when the log write is done.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) region: RegionId,
    /// Number of the ready.
    pub(crate) number: u64,
    pub(crate) messages: Vec<Addressed>,
}

/// Collects over all dirty replicas of a turn.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) seen: Vec<Seen>,
    pub(crate) replies: Replies,
    /// Of replicas here, what is readable of the past.
    pub(crate) resolved: Vec<(RegionId, Mark)>,
    /// May leave now.
    pub(crate) messages: Vec<Addressed>,
    pub(crate) held: Vec<Held>,
    batch: LogBatch,
    /// Whether the batch must be synced.
    pub(crate) sync: bool,
    pub(crate) apply: Vec<ApplyTask>,
    /// What the changes of some regions begin with: a log that begins, or one that goes.
    begun: BTreeMap<RegionId, RegionLog>,
    pub(crate) snapshots: SnapshotOrders,
    /// Replicas that have gone this turn.
    pub(crate) gone: Vec<RegionId>,
    /// Of those, the ones whose region was merged, and into which one.
    pub(crate) merged: Vec<(RegionId, RegionId)>,
    /// Replicas that are to go, and why.
    pub(crate) removed: Vec<Removal>,
    /// Replicas that have come to an entry that takes over another region.
    pub(crate) gated: Vec<RegionId>,
}

/// A replica that is to go.
#[derive(Debug)]
pub(crate) struct Removal {
    pub(crate) region: RegionId,
    /// The epoch in which it is no peer any more.
    pub(crate) epoch: Epoch,
    pub(crate) reason: &'static str,
    /// The region itself is no more: see [`crate::keys::Tombstone::merged`].
    pub(crate) merged: Option<(RegionId, u64)>,
}

impl Outbox {
    /// For a turn of a store that may keep so many more snapshots.
    pub(crate) fn new(snapshots: SnapshotOrders) -> Self {
        Outbox { snapshots, ..Outbox::default() }
    }

    /// The change of this region; replicas are collected one after another, so it is the last or a new one.
    fn change(&mut self, region: RegionId) -> &mut RegionLog {
        if self.batch.regions.last().is_none_or(|(last, _)| *last != region) {
            let begun = self.begun.remove(&region).unwrap_or_default();
            self.batch.regions.push((region, begun));
        }
        &mut self.batch.regions.last_mut().expect("one was pushed").1
    }

    /// Entries and hard state that must be durable before promises about them leave.
    pub(crate) fn log(&mut self, region: RegionId, entries: Vec<Entry>, hard_state: HardState) {
        self.sync = true;
        let change = self.change(region);
        if let Some(first) = entries.first() {
            change.entries.retain(|e| e.index < first.index);
        }
        change.entries.extend(entries);
        change.hard_state = Some(hard_state);
    }

    /// What is written of the region's log this turn begins with this. Before its replica is collected.
    pub(crate) fn begin_log(&mut self, region: RegionId, first: RegionLog) {
        self.begun.insert(region, first);
    }

    /// All there is to write.
    pub(crate) fn take_batch(&mut self) -> LogBatch {
        self.batch.regions.extend(std::mem::take(&mut self.begun));
        std::mem::take(&mut self.batch)
    }

    /// The log is cut; nobody waits for that.
    pub(crate) fn truncate(&mut self, region: RegionId, at: Position) {
        self.change(region).truncated = Some(at);
    }

    /// Promises of a ready wait for this turn's write, or an earlier one still on its way.
    pub(crate) fn hold(&mut self, region: RegionId, number: u64, messages: Vec<Addressed>) {
        self.held.push(Held { region, number, messages });
    }

    /// Committed entries; consecutive ones of a region become one task.
    pub(crate) fn apply(&mut self, region: &Arc<Region>, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        match self.apply.last_mut() {
            Some(ApplyTask { region: last, work: ApplyWork::Entries(first) }) if last.id == region.id => {
                first.extend(entries);
            }
            _ => self.apply.push(ApplyTask { region: region.clone(), work: ApplyWork::Entries(entries) }),
        }
    }
}
