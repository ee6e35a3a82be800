//! How a store behaves.

use std::time::Duration;

use proto::StoreId;

/// Settings of a store core.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Which store this is.
    pub store: StoreId,
    /// Raft's unit of time. Ticks are never closer together; missed ones are dropped.
    pub tick: Duration,
    /// A follower that heard nothing for this many ticks stands for election when its turn has come (1 to 1.6 times of it, with
    /// five voters up to 1.9). Above `heartbeat_ticks`.
    pub election_ticks: u32,
    /// A leader makes itself heard every so many ticks.
    pub heartbeat_ticks: u32,
    /// How much the clocks of two stores may run apart during an election timeout; comes off the lease.
    pub clock_drift: Duration,
    /// Tells the starts of a store's process apart.
    pub boot_id: u64,
    /// Whether regions that nobody uses go to sleep.
    pub hibernates: bool,
    /// How much log is kept.
    pub log: LogBounds,
    /// What was applied may stay unsynced in the state engine for this long; a restart replays it from the log, which
    /// is not cut further.
    pub sync_every: Duration,
    /// Makes the election jitter of this store; equal seeds repeat equal runs.
    pub seed: u64,
    /// How much may wait.
    pub limits: Limits,
    /// A bug to be found by the simulator; without effect unless the `planted-bugs` feature is on.
    pub planted: Planted,
}

impl StoreConfig {
    /// The defaults for a store: fail-over in 1.1 to 1.8 s.
    pub fn new(store: StoreId, seed: u64) -> Self {
        StoreConfig {
            store,
            tick: Duration::from_millis(100),
            election_ticks: 10,
            heartbeat_ticks: 2,
            clock_drift: Duration::from_millis(50),
            boot_id: seed,
            hibernates: true,
            log: LogBounds::default(),
            sync_every: Duration::from_secs(10),
            seed,
            limits: Limits::default(),
            planted: Planted::Nothing,
        }
    }

    /// How long after a heartbeat was sent its acknowledgement by a quorum lets the leader serve reads. No voter
    /// that got it votes for another one before (election ticks − 1) ticks: the first tick may follow at once.
    pub fn lease(&self) -> Duration {
        (self.tick * self.election_ticks.saturating_sub(1)).saturating_sub(self.clock_drift)
    }

    /// One election timeout.
    pub fn election_timeout(&self) -> Duration {
        self.tick * self.election_ticks
    }

    pub(crate) fn has(&self, bug: Planted) -> bool {
        cfg!(feature = "planted-bugs") && self.planted == bug
    }
}

/// How much of a region's log is kept for peers that lack it.
#[derive(Clone, Copy, Debug)]
pub struct LogBounds {
    /// Entries beyond which the log is cut although a peer that is away needs it. raft-engine keeps an index of all
    /// entries in memory.
    pub entries: u64,
    /// The same for bytes: from about a region's size on a snapshot is the cheaper way to catch up.
    pub bytes: u64,
    /// A cut waits until so many entries can go: it costs a log write.
    pub cut_entries: u64,
}

impl Default for LogBounds {
    fn default() -> Self {
        LogBounds { entries: 64 << 10, bytes: 64 << 20, cut_entries: 1024 }
    }
}

/// Bounds of what waits in a store. Past them callers are told `ServerBusy`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of proposals of one region between propose and apply. Bounds the memory of a region whose quorum is slow.
    pub region_bytes: usize,
    /// Proposals of one region between propose and apply.
    pub region_proposals: usize,
    /// Requests waiting for the store loop.
    pub inbox_requests: usize,
    /// Raft messages waiting for the store loop; past it frames are dropped, which Raft repairs.
    pub inbox_messages: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            region_bytes: 64 << 20,
            region_proposals: 16 << 10,
            inbox_requests: 64 << 10,
            inbox_messages: 64 << 10,
        }
    }
}

/// The largest batch one proposal may carry, bytes: a quarter of what a gRPC frame takes.
pub const PROPOSAL_BYTES_AT_MOST: usize = 16 << 20;
/// Proposals that wait together become one entry until it has this many bytes; more make the next entry.
pub const ENTRY_BYTES_ABOUT: usize = 1 << 20;
/// Proposals in one entry at most.
pub const ENTRY_PROPOSALS_AT_MOST: usize = 512;

/// Mistakes the simulator must find, one for each invariant this crate keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Planted {
    /// None.
    #[default]
    Nothing,
    /// Append responses and votes leave before the log is synced.
    AckBeforeSync,
    /// A leader serves reads under a lease that has run out.
    ServeExpiredLease,
    /// The vote is not written: after a restart a second candidate of the term gets it too.
    ForgetVote,
    /// A voter that restarts votes at once, although it may have acknowledged a lease.
    VoteAfterRestart,
    /// The log is cut up to what is applied, although the state is not synced that far.
    TruncateUnsynced,
    /// The apply state is written apart from the data, and before it.
    TornApply,
    /// Requests are served and proposals applied although the region has changed since they were made.
    StaleEpoch,
    /// A region that is split off speaks before it is durable: a split that is applied again after a crash gives it an empty
    /// log, although it has voted.
    SplitUnsynced,
    /// A leader that hands over goes on serving reads under its lease.
    TransferKeepsLease,
    /// A leader changes the membership although too few of the new voters are alive.
    RemoveBelowQuorum,
    /// A snapshot is taken without the marker that has it taken again after a crash.
    UnmarkedSnapshot,
    /// The source of a merge goes on being read while its target may have taken it over.
    MergeSourceStillRead,
    /// The log of a merge's source goes before it is durable that the target has its data.
    MergePurgesUnsynced,
    /// Sleeping regions do not wake when their leader's store falls silent or is restarted.
    SleepThroughRestart,
    /// Replicas are compared as they are before the round in which the mark is applied.
    EarlyMark,
    /// The past is read from a replica that has not applied what belongs to it yet.
    ReadUnapplied,
    /// The past is read from a replica while a snapshot replaces its state.
    ReadRestoring,
    /// The source of a merge is said to be readable up to ever later timestamps, and read, while its target may have taken it
    /// over.
    ResolveMerging,
}
