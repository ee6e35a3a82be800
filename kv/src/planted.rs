//! Bugs to plant, so that the simulator can show it finds them. Compiled only with the feature `planted-bugs`.

/// One bug, each against one rule of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Store: 1PC takes its commit timestamp without regard to the reads that were served (`max_ts`), and a read
    /// does not wait for writes in flight.
    SkipMaxTs,
    /// Client: after the primary's commit the secondaries' locks are rolled back, by the owner and by whoever
    /// resolves them: half of a transaction is lost.
    DropSecondaryCommit,
    /// Store: a prewrite does not look for versions newer than the transaction's snapshot: lost updates.
    SkipConflictCheck,
    /// Store: a rollback leaves no record, so that a late prewrite of a rolled back transaction succeeds.
    SkipRollbackRecord,
    /// Client: a commit whose answer was lost is reported as failed.
    LostCommitIsFailure,
    /// Store: reads do not look at locks.
    IgnoreLocks,
}
