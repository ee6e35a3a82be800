//! What goes into a store core and what comes out: the whole vocabulary between core and driver.
//!
//! Storage is somebody one sends messages to: a [`LogWrite`] or [`ApplyTask`] goes out as an effect, its completion
//! comes back as an event, and what had to wait for it (acknowledgements, votes, replies) leaves in that turn.
//! So "durable before acknowledged" is an order of events and not a discipline of the driver's.

use std::{collections::BTreeMap, sync::Arc};

use proto::{Epoch, LogIndex, PeerId, Region, RegionId, StoreId, Timestamp, wire};
use raft::eraftpb::{ConfChangeV2, Entry};

use crate::{
    api::{AdminError, NewRegion, PeerChange, PeerProgress, ProposeError, Target},
    keys::Tombstone,
    log::{LogBatch, Position},
    region::{ReplicaView, resolved::Mark},
    snapshot::{Content, Outcome, TakeTask},
};

/// Names a request that waits for an answer; given out by the handle, never by the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Raft messages of any regions arrived from other stores. Lost, repeated, reordered and even hostile ones are fine.
    Received(Vec<wire::RaftMessage>),
    /// Somebody wants operations replicated.
    Propose(ProposeRequest),
    /// Somebody wants to read and has no lease: answered when what was committed by now is applied.
    Read(Ticket, Target),
    /// Somebody wants to see all replicas as they are by now.
    Look(Ticket),
    /// Somebody wants a region itself changed.
    Admin(AdminRequest),
    /// Stand for election in a region now.
    Campaign(RegionId),
    /// Messages to a store were lost, as far as the transport knows.
    Unreachable(StoreId),
    /// [`LogWrite`]s up to this sequence are done (and synced, where they said so).
    LogWritten(u64),
    /// [`ApplyTask`]s are done.
    Applied(Vec<Applied>),
    /// The upkeep of [`Effects::upkeep`] is done.
    UpkeepDone,
    /// A snapshot was made, or why not.
    SnapshotMade(SnapshotId, Result<Content, String>),
    /// A transfer of a snapshot has ended.
    SnapshotSent {
        /// Of which one.
        id: SnapshotId,
        /// To whom.
        peer: PeerId,
        /// `Ok`: all of it is on the other store's disk.
        outcome: Outcome,
    },
    /// All parts of a snapshot have arrived and are durable.
    SnapshotArrived(Box<ArrivedSnapshot>),
    /// A snapshot is the region's state now, durably.
    SnapshotTaken(RegionId),
    /// Whether the disk is below its reserve: proposals are refused while it is.
    DiskFull(bool),
    /// Nothing that is proposed to these regions from now on is visible at a timestamp: see [`crate::region::resolved`].
    Resolve(Timestamp, Vec<(RegionId, Epoch)>),
}

/// A batch on its way into the log.
#[derive(Debug)]
pub struct ProposeRequest {
    /// Who waits.
    pub ticket: Ticket,
    /// The region as the proposer knows it.
    pub target: Target,
    /// What to apply.
    pub ops: Vec<wire::Op>,
    /// Their encoded size.
    pub bytes: usize,
}

/// A change of a region that somebody asks for.
#[derive(Debug)]
pub struct AdminRequest {
    /// Who waits.
    pub ticket: Ticket,
    /// The region as the caller knows it.
    pub target: Target,
    /// What is asked for.
    pub change: AdminChange,
}

/// What can be asked of the leader of a region.
#[derive(Debug)]
pub enum AdminChange {
    /// Split it; in key order.
    Split(Vec<NewRegion>),
    /// Change who its peers are.
    Peers(Vec<PeerChange>),
    /// Hand its leadership over to the peer on a store.
    Transfer(StoreId),
    /// Let its neighbour take it over.
    Merge(Box<Region>),
}

/// What a turn of the core wants done. The order of the fields is the order of doing.
#[derive(Debug, Default)]
pub struct Effects {
    /// How replicas look now, for handles.
    pub seen: Vec<Seen>,
    /// Replicas that are not here any more.
    pub gone: Vec<RegionId>,
    /// Of those, the ones whose region was merged, and into which one.
    pub merged: Vec<(RegionId, RegionId)>,
    /// Of replicas here, what is readable of the past.
    pub resolved: Vec<(RegionId, Mark)>,
    /// Answers to requests.
    pub replies: Vec<(Ticket, Answer)>,
    /// Messages that may leave now, by store.
    pub sends: BTreeMap<StoreId, Vec<wire::RaftMessage>>,
    /// At most one log write; writes are done in order.
    pub log: Option<LogWrite>,
    /// What happens to the state, done in order.
    pub apply: Vec<ApplyTask>,
    /// Sync the state engine, then purge the log, in the background; one at a time.
    pub upkeep: bool,
    /// What to do about snapshots, in the background.
    pub snapshots: Vec<SnapshotTask>,
    /// How slow the log's disk is (0 to 100), when it was looked at.
    pub slow_score: Option<u32>,
}

impl Effects {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty()
            && self.resolved.is_empty()
            && self.replies.is_empty()
            && self.sends.is_empty()
            && self.log.is_none()
            && self.apply.is_empty()
            && !self.upkeep
            && self.snapshots.is_empty()
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Of a proposal.
    Proposed(Result<(), ProposeError>),
    /// Of a read: the engine now shows everything that was committed when it was asked.
    Readable(Result<(), wire::RegionError>),
    /// Handles show the replicas as they were when it was asked, or later.
    Seen,
    /// Of a change of a region: what came out of it, in key order (nothing, of a transfer).
    Admin(Result<Vec<Region>, AdminError>),
}

/// One write to the Raft log, for all regions that have something to write.
#[derive(Debug, PartialEq)]
pub struct LogWrite {
    /// Grows by one.
    pub sequence: u64,
    /// What to write.
    pub batch: LogBatch,
    /// Whether it must be durable before [`Event::LogWritten`].
    pub sync: bool,
}

/// Something that happens to the state of one region. Tasks are done in order.
#[derive(Clone, Debug)]
pub struct ApplyTask {
    /// The region as the core knows it. The applier may know better: an entry before these has changed it.
    pub region: Arc<Region>,
    /// What happens.
    pub work: ApplyWork,
}

/// What happens to the state of a region.
#[derive(Clone, Debug)]
pub enum ApplyWork {
    /// Committed entries are applied; consecutive.
    Entries(Vec<Entry>),
    /// This store's replica goes: data, region state, apply state, and a synced tombstone in their place.
    Destroy(Tombstone),
}

/// What became of an [`ApplyTask`].
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// Of entries.
    Entries {
        /// Whose.
        region: RegionId,
        /// The last applied entry.
        position: Position,
        /// Of every entry, what it did.
        outcomes: Vec<EntryOutcome>,
    },
    /// The state is gone and the tombstone durable: the log may go.
    Destroyed(RegionId),
}

/// What one entry did.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryOutcome {
    /// The entry.
    pub position: Position,
    /// How its proposals ended, in their order. `Err`: refused at apply, without effect.
    pub proposals: Vec<Result<(), wire::RegionError>>,
    /// Of an entry that changes the region: what it is now. `Err`: refused at apply, without effect.
    pub change: Option<Result<RegionChange, wire::RegionError>>,
}

/// What an entry has made of a region.
#[derive(Clone, Debug, PartialEq)]
pub enum RegionChange {
    /// It was split.
    Split {
        /// All that came out of it, in key order; the first one is the region itself.
        regions: Vec<Arc<Region>>,
        /// Those of which this store has got a replica by it.
        born: Vec<RegionId>,
    },
    /// Its membership changed; this store may not be in it any more.
    Peers {
        /// The region from now on.
        region: Arc<Region>,
        /// For Raft.
        change: ConfChangeV2,
    },
    /// A merge has come on, or will not.
    Merge {
        /// The region from now on.
        region: Arc<Region>,
        /// How far.
        step: MergeStep,
    },
}

/// What an entry has made of a merge.
#[derive(Clone, Debug, PartialEq)]
pub enum MergeStep {
    /// The region is a source: it waits for its target and serves nobody.
    Prepared {
        /// The target as it must be when it takes over.
        into: Region,
    },
    /// The region was a source, and serves again.
    RolledBack,
    /// The region has taken over a source; its replica here is no more.
    Absorbed {
        /// Which one.
        source: RegionId,
    },
    /// The region will take over none that was prepared before.
    Abandoned,
}

/// A replica at the end of a turn.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What readers and PD see of it.
    pub view: ReplicaView,
    /// Applied up to here.
    pub applied: LogIndex,
    /// Known committed up to here.
    pub committed: LogIndex,
    /// Of a leader: how far every peer is.
    pub progress: Vec<PeerProgress>,
}

/// One snapshot that a store makes; within a process no two have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotId {
    /// Of which region.
    pub region: RegionId,
    /// Which one.
    pub number: u64,
}

/// A snapshot whose parts are in a folder.
#[derive(Clone, Debug)]
pub struct ArrivedSnapshot {
    /// For the replica.
    pub message: wire::RaftMessage,
    /// Where.
    pub folder: String,
}

/// One transfer of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct SendTask {
    /// Of which one.
    pub id: SnapshotId,
    /// Where to.
    pub to: StoreId,
    /// Which replica there.
    pub peer: PeerId,
    /// For it.
    pub message: wire::RaftMessage,
}

/// Something to do about a snapshot. Nobody waits for it but who gets its event.
#[derive(Clone, Debug, PartialEq)]
pub enum SnapshotTask {
    /// Make one: [`Event::SnapshotMade`].
    Make(SnapshotId),
    /// Send one that is made: [`Event::SnapshotSent`].
    Send(Box<SendTask>),
    /// Remove one that is made, when it is not being sent any more.
    Discard(SnapshotId),
    /// Make one that has arrived the region's state: [`Event::SnapshotTaken`]. The core writes nothing of the region
    /// until then.
    Take(Box<TakeTask>),
    /// Remove the folder of one that has arrived and that nobody wants.
    Refuse(String),
}
