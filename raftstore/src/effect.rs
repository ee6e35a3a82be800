//! What goes into a store core and what comes out: the whole vocabulary between core and driver.
//!
//! Storage is somebody one sends messages to: a [`LogWrite`] or [`ApplyTask`] goes out as an effect, its completion
//! comes back as an event, and what had to wait for it (acknowledgements, votes, replies) leaves in that turn.
//! So "durable before acknowledged" is an order of events and not a discipline of the driver's.

use std::{collections::BTreeMap, sync::Arc};

use proto::{LogIndex, Region, RegionId, StoreId, wire};
use raft::eraftpb::Entry;

use crate::{
    api::{ProposeError, Target},
    log::{LogBatch, Position},
    region::ReplicaView,
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
    /// Hand the leadership of a region over to its peer on a store.
    Transfer(RegionId, StoreId),
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
    /// Whether the disk is below its reserve: proposals are refused while it is.
    DiskFull(bool),
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

/// What a turn of the core wants done. The order of the fields is the order of doing.
#[derive(Debug, Default)]
pub struct Effects {
    /// How replicas look now, for handles.
    pub seen: Vec<Seen>,
    /// Answers to requests.
    pub replies: Vec<(Ticket, Answer)>,
    /// Messages that may leave now, by store.
    pub sends: BTreeMap<StoreId, Vec<wire::RaftMessage>>,
    /// At most one log write; writes are done in order.
    pub log: Option<LogWrite>,
    /// Committed entries, done in order.
    pub apply: Vec<ApplyTask>,
    /// Sync the state engine, then purge the log, in the background; one at a time.
    pub upkeep: bool,
}

impl Effects {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.sends.is_empty() && self.log.is_none() && self.apply.is_empty() && !self.upkeep
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Of a proposal.
    Proposed(Result<(), ProposeError>),
    /// Of a read: the engine now shows everything that was committed when it was asked.
    Readable(Result<(), wire::RegionError>),
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

/// Committed entries of one region, to be applied in order.
#[derive(Clone, Debug)]
pub struct ApplyTask {
    /// The region as of these entries.
    pub region: Arc<Region>,
    /// Consecutive.
    pub entries: Vec<Entry>,
}

/// What became of an [`ApplyTask`].
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// Whose.
    pub region: RegionId,
    /// The last applied entry.
    pub position: Position,
    /// Of every entry, how its proposals ended.
    pub outcomes: Vec<EntryOutcome>,
}

/// How the proposals of one entry ended, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryOutcome {
    /// The entry.
    pub position: Position,
    /// `Err`: refused at apply, without effect.
    pub proposals: Vec<Result<(), wire::RegionError>>,
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
}
