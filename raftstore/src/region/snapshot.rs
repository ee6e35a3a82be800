//! What one replica has to do with snapshots: the one it keeps for peers that need it, and the one it takes itself.
//!
//! ```text
//! kept       (nothing) ─wanted─► making ─made─► offered to raft-rs ─► sent to peers ─lingers─► discarded
//! incoming   (nothing) ─raft-rs accepts─► waits for what is under way ─► taking ─► ready taken ─► persisted
//! ```
//!
//! With the one that is taken those replicas of the store end whose regions were merged into this one since.
//!
//! A kept snapshot lingers after its last transfer: another peer may need it, and until the peer that took it has asked
//! for what follows, the log must not be cut behind it.

use std::{collections::BTreeSet, sync::Arc};

use proto::{LogIndex, PeerId, Region, RegionId, StoreId, wire};
use raft::eraftpb::HardState;

use crate::{
    effect::{SendTask, SnapshotId, SnapshotTask},
    keys::Tombstone,
    log::Position,
    snapshot::{Content, KEPT_AT_MOST, TakeTask},
};

/// What replicas order of the store's drivers, and how many more snapshots the store may keep.
#[derive(Debug)]
pub(crate) struct SnapshotOrders {
    pub(crate) room: usize,
    pub(crate) last_number: u64,
    pub(crate) tasks: Vec<SnapshotTask>,
}

impl Default for SnapshotOrders {
    fn default() -> Self {
        SnapshotOrders { room: KEPT_AT_MOST, last_number: 0, tasks: Vec::new() }
    }
}

impl SnapshotOrders {
    /// Takes a place and orders a snapshot; `None` when the store keeps enough of them.
    fn make(&mut self, region: RegionId) -> Option<SnapshotId> {
        self.room = self.room.checked_sub(1)?;
        self.last_number += 1;
        let id = SnapshotId { region, number: self.last_number };
        self.tasks.push(SnapshotTask::Make(id));
        Some(id)
    }

    fn discard(&mut self, id: SnapshotId) {
        self.room += 1;
        self.tasks.push(SnapshotTask::Discard(id));
    }

    /// Files that nobody wants.
    pub(crate) fn refuse(&mut self, folder: String) {
        self.tasks.push(SnapshotTask::Refuse(folder));
    }
}

/// One made for others.
struct Kept {
    id: SnapshotId,
    /// The log is needed from here on.
    since: LogIndex,
    /// It is made.
    offered: bool,
    /// The region's borders have moved since: who holds what is behind them now could not take it.
    outdated: bool,
    sending: BTreeSet<PeerId>,
    ticks_left: u32,
}

/// One that this replica takes.
enum Incoming {
    /// raft-rs has accepted it; what is being written and applied comes first.
    Accepted(Content, String, Vec<EndingReplica>),
    /// The driver has it.
    Taking(Content, Vec<RegionId>),
    /// It is the state now; raft-rs's ready about it comes next.
    Taken(Content),
    /// That ready waits for its log write.
    Persisting(u64, Position),
}

/// A replica beside this one, silent already, whose state ends with this one's snapshot.
#[derive(Clone, Debug)]
pub(crate) struct EndingReplica {
    pub(crate) region: Arc<Region>,
    pub(crate) tombstone: Tombstone,
}

/// Both directions.
pub(super) struct Snapshots {
    region: RegionId,
    linger_ticks: u32,
    kept: Option<Kept>,
    incoming: Option<Incoming>,
    /// How many were taken since the start.
    taken: u64,
}

impl Snapshots {
    pub(super) fn new(region: RegionId, linger_ticks: u32) -> Self {
        Snapshots { region, linger_ticks, kept: None, incoming: None, taken: 0 }
    }

    /// raft-rs needs a snapshot and what was offered, if anything was, does not do. `applied`: what one made now holds
    /// at least. Whether the offer is to be taken back.
    pub(super) fn wanted(&mut self, applied: LogIndex, orders: &mut SnapshotOrders) -> bool {
        let stale = match &self.kept {
            Some(kept) if !kept.offered || !kept.sending.is_empty() => return false,
            Some(kept) => {
                orders.discard(kept.id);
                true
            }
            None => false,
        };
        let kept = |id| Kept {
            id,
            since: applied,
            offered: false,
            outdated: false,
            sending: BTreeSet::new(),
            ticks_left: self.linger_ticks,
        };
        self.kept = orders.make(self.region).map(kept);
        stale
    }

    /// The region's borders have moved. What was made before is sent to nobody any more.
    pub(super) fn outdate(&mut self) {
        self.kept.iter_mut().for_each(|kept| kept.outdated = true);
    }

    /// It is made, or can't be. Whether it may be offered.
    pub(super) fn made(&mut self, id: SnapshotId, made: Option<LogIndex>, orders: &mut SnapshotOrders) -> bool {
        match (&mut self.kept, made) {
            (Some(kept), Some(index)) if kept.id == id && !kept.outdated => {
                kept.since = index;
                kept.offered = true;
                kept.ticks_left = self.linger_ticks;
                true
            }
            (Some(kept), _) if kept.id == id => {
                orders.discard(id);
                self.kept = None;
                false
            }
            _ => false,
        }
    }

    /// raft-rs sends what is offered to a peer. False: there is nothing any more.
    pub(super) fn send(
        &mut self,
        peer: PeerId,
        to: StoreId,
        message: wire::RaftMessage,
        orders: &mut SnapshotOrders,
    ) -> bool {
        let Some(kept) = self.kept.as_mut().filter(|kept| kept.offered && !kept.outdated) else { return false };
        kept.sending.insert(peer);
        orders.tasks.push(SnapshotTask::Send(Box::new(SendTask { id: kept.id, to, peer, message })));
        true
    }

    /// A transfer has ended.
    pub(super) fn sent(&mut self, id: SnapshotId, peer: PeerId) {
        if let Some(kept) = self.kept.as_mut().filter(|kept| kept.id == id) {
            kept.sending.remove(&peer);
            kept.ticks_left = self.linger_ticks;
        }
    }

    /// A tick passed. Whether the offer is to be taken back: nobody used it for long.
    pub(super) fn tick(&mut self, orders: &mut SnapshotOrders) -> bool {
        let Some(kept) = self.kept.as_mut().filter(|kept| kept.offered && kept.sending.is_empty()) else {
            return false;
        };
        kept.ticks_left = kept.ticks_left.saturating_sub(1);
        let over = kept.outdated || kept.ticks_left == 0;
        if over {
            orders.discard(kept.id);
            self.kept = None;
        }
        over
    }

    /// From where on the log is needed for whoever takes the kept one.
    pub(super) fn log_needed_from(&self) -> Option<LogIndex> {
        self.kept.as_ref().map(|kept| kept.since)
    }

    /// Whether none is made, kept or taken.
    pub(super) fn is_idle(&self) -> bool {
        self.kept.is_none() && self.incoming.is_none()
    }

    /// Whether a snapshot is on its way into the state: Raft's messages are taken, but nothing else happens.
    pub(super) fn incoming(&self) -> bool {
        self.incoming.is_some()
    }

    /// See [`super::ReplicaView::restorations`].
    pub(super) fn restorations(&self) -> u64 {
        2 * self.taken + u64::from(self.incoming())
    }

    /// What the region will be when the snapshot that comes is its state.
    pub(super) fn arriving(&self) -> Option<&Region> {
        match &self.incoming {
            Some(Incoming::Accepted(content, ..) | Incoming::Taking(content, _) | Incoming::Taken(content)) => {
                Some(&content.region)
            }
            Some(Incoming::Persisting(..)) | None => None,
        }
    }

    /// raft-rs has accepted a snapshot whose parts are in a folder.
    pub(super) fn accepted(&mut self, content: Content, folder: String) {
        debug_assert!(self.incoming.is_none());
        self.incoming = Some(Incoming::Accepted(content, folder, Vec::new()));
    }

    /// These end with it.
    pub(super) fn end_with(&mut self, replicas: Vec<EndingReplica>) {
        match &mut self.incoming {
            Some(Incoming::Accepted(.., ending)) => *ending = replicas,
            _ => debug_assert!(replicas.is_empty(), "a snapshot that is begun takes no more along"),
        }
    }

    /// Those that were to end with a snapshot which is accepted and not begun: it will not come, they end by themselves.
    pub(super) fn abandon_ending(&mut self) -> Vec<EndingReplica> {
        match &mut self.incoming {
            Some(Incoming::Accepted(.., ending)) => std::mem::take(ending),
            _ => Vec::new(),
        }
    }

    /// Whether readies must not be taken now. When the replica is `still` (nothing written, nothing applied is under
    /// way) an accepted snapshot is handed to the driver.
    pub(super) fn blocks(
        &mut self,
        still: bool,
        task: impl FnOnce(Content, String, &[EndingReplica]) -> TakeTask,
        orders: &mut SnapshotOrders,
    ) -> bool {
        match self.incoming.take() {
            Some(Incoming::Accepted(content, folder, ending)) if still => {
                orders.tasks.push(SnapshotTask::Take(Box::new(task(content.clone(), folder, &ending))));
                self.incoming = Some(Incoming::Taking(content, ending.iter().map(|e| e.region.id).collect()));
            }
            other => self.incoming = other,
        }
        matches!(self.incoming, Some(Incoming::Accepted(..) | Incoming::Taking(..)))
    }

    /// The driver is done; which replicas have ended with it.
    pub(super) fn taken(&mut self) -> Vec<RegionId> {
        let (incoming, ended) = match self.incoming.take() {
            Some(Incoming::Taking(content, ended)) => (Some(Incoming::Taken(content)), ended),
            other => (other, Vec::new()),
        };
        self.incoming = incoming;
        ended
    }

    /// raft-rs's ready of this number is about the snapshot; what it is.
    pub(super) fn ready(&mut self, number: u64) -> Content {
        let Some(Incoming::Taken(content)) = self.incoming.take() else {
            panic!("{}: a snapshot in a ready that was never taken", self.region);
        };
        self.incoming = Some(Incoming::Persisting(number, content.position));
        content
    }

    /// Log writes up to this ready are durable; the snapshot's position, when it is among them for the first time.
    pub(super) fn persisted(&mut self, number: u64) -> Option<Position> {
        match self.incoming {
            Some(Incoming::Persisting(mine, position)) if mine <= number => {
                self.incoming = None;
                self.taken += 1;
                Some(position)
            }
            _ => None,
        }
    }

    /// The replica goes. What the driver is taking right now can't be called back: see [`Snapshots::busy`].
    pub(super) fn close(&mut self, orders: &mut SnapshotOrders) {
        if let Some(kept) = self.kept.take() {
            orders.discard(kept.id);
        }
        if let Some(Incoming::Accepted(_, folder, _)) = self.incoming.take() {
            orders.refuse(folder);
        }
    }

    /// Whether the driver is changing the replica's state.
    pub(super) fn busy(&self) -> bool {
        matches!(self.incoming, Some(Incoming::Taking(..)))
    }
}

/// The hard state to begin with after a snapshot.
pub(super) fn hard_state(raft: &HardState, position: Position) -> HardState {
    HardState { commit: position.index.0, ..raft.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: RegionId = RegionId(7);

    #[test]
    fn one_is_made_offered_sent_and_discarded() {
        let (mut snapshots, mut orders) = (Snapshots::new(REGION, 3), SnapshotOrders::default());
        assert!(!snapshots.wanted(LogIndex(20), &mut orders));
        assert!(!snapshots.wanted(LogIndex(21), &mut orders), "it is being made");
        assert_eq!((orders.room, snapshots.log_needed_from()), (KEPT_AT_MOST - 1, Some(LogIndex(20))));
        let id = SnapshotId { region: REGION, number: 1 };
        assert_eq!(orders.tasks, [SnapshotTask::Make(id)]);
        assert!(snapshots.made(id, Some(LogIndex(25)), &mut orders));
        assert!(snapshots.send(PeerId(2), StoreId(2), wire::RaftMessage::default(), &mut orders));
        (0..9).for_each(|_| assert!(!snapshots.tick(&mut orders), "it is on its way"));
        assert!(!snapshots.wanted(LogIndex(30), &mut orders));
        snapshots.sent(id, PeerId(2));
        assert_eq!(snapshots.log_needed_from(), Some(LogIndex(25)), "it lingers");
        assert!(!snapshots.tick(&mut orders) && !snapshots.tick(&mut orders));
        assert!(snapshots.tick(&mut orders));
        assert_eq!((orders.room, snapshots.log_needed_from()), (KEPT_AT_MOST, None));
        assert_eq!(orders.tasks.last(), Some(&SnapshotTask::Discard(id)));
    }

    #[test]
    fn one_of_other_borders_is_sent_no_more() {
        let (mut snapshots, mut orders) = (Snapshots::new(REGION, 3), SnapshotOrders::default());
        snapshots.wanted(LogIndex(20), &mut orders);
        let id = SnapshotId { region: REGION, number: 1 };
        assert!(snapshots.made(id, Some(LogIndex(25)), &mut orders));
        let send = |snapshots: &mut Snapshots, peer| {
            snapshots.send(PeerId(peer), StoreId(peer), wire::RaftMessage::default(), &mut SnapshotOrders::default())
        };
        assert!(send(&mut snapshots, 2));
        snapshots.outdate();
        assert!(!send(&mut snapshots, 3));
        assert!(!snapshots.tick(&mut orders), "it is on its way to another");
        snapshots.sent(id, PeerId(2));
        assert!(snapshots.tick(&mut orders), "nobody waits for it to linger");
        snapshots.wanted(LogIndex(30), &mut orders);
        snapshots.outdate();
        let second = SnapshotId { region: REGION, number: 2 };
        assert!(!snapshots.made(second, Some(LogIndex(30)), &mut orders), "the borders moved while it was made");
        assert_eq!((orders.room, snapshots.log_needed_from()), (KEPT_AT_MOST, None));
    }

    #[test]
    fn a_stale_one_is_replaced_and_a_full_store_waits() {
        let (mut snapshots, mut orders) = (Snapshots::new(REGION, 3), SnapshotOrders::default());
        snapshots.wanted(LogIndex(20), &mut orders);
        let first = SnapshotId { region: REGION, number: 1 };
        snapshots.made(first, Some(LogIndex(20)), &mut orders);
        assert!(snapshots.wanted(LogIndex(90), &mut orders), "the old offer is taken back");
        assert_eq!(snapshots.log_needed_from(), Some(LogIndex(90)));
        assert!(!snapshots.made(first, Some(LogIndex(20)), &mut orders), "a late answer");
        assert!(!snapshots.made(SnapshotId { number: 2, ..first }, None, &mut orders), "it failed");
        assert_eq!(orders.room, KEPT_AT_MOST);
        orders.room = 0;
        snapshots.wanted(LogIndex(90), &mut orders);
        assert_eq!(snapshots.log_needed_from(), None);
    }
}
