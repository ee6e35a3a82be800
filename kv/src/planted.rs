//! Bugs to plant, so that the simulator can show it finds them. Without the feature `planted-bugs` none can be
//! planted, and every question for one is a constant no.

/// One bug, each against one rule of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Store: a 1PC takes its commit timestamp without regard to the reads that were served (`max_ts`), and a read
    /// does not wait for writes in flight.
    SkipMaxTs,
    /// Client: after the primary's commit the secondaries' locks are rolled back, by the owner and by whoever
    /// resolves them: half of a transaction is lost.
    DropSecondaryCommit,
    /// Store: reads do not look at locks.
    IgnoreLocks,
    /// Client: whoever meets an async commit's lock after its TTL asks the primary alone, and commits at what that says.
    PrimaryAlone,
    /// Store: asking for a missing lock of an async commit leaves nothing that keeps a late prewrite out.
    LateSecondary,
    /// Client: a request whose answer was lost counts as refused: committed writes are reported as failed.
    LostIsRefused,
    /// Public KV: a swap writes in another transaction than the one that compared.
    SwapUnchecked,
    /// Store: row locks that no write follows are taken for held at commit, whatever became of the leader that granted them.
    TrustLostRowLocks,
    /// Store: the row locks of a commit that was refused, because its region was cut for instance, are given up as if it stood.
    FreeUnapplied,
    /// Client and store: nobody says which snapshots are in use, and nobody is refused for reading below the safe point.
    GcUnderReader,
    /// Store: a delete marker is collected before the versions it hides.
    GcMarkerFirst,
    /// Client: a write under a row lock is not checked against what was committed since the lock was granted.
    TrustRowLocks,
    /// Client: a serializable transaction commits without a look at what became of what it has read.
    SkipValidation,
    /// Client: that look is taken when the commit is decided: what is reported as failed is committed.
    ValidateAfterDecision,
    /// Client: a lock that decides nothing, since its leader has served a later read, is taken for one of an async commit.
    TakeUndecided,
    /// Client: what a transaction has spilled stays what it is when it goes back to a place before.
    KeepDropped,
    /// Store: a reader is told that a spilled transaction commits above it, and nothing sees to that.
    PassUnsaid,
    /// Store: followers are told that they can be read at a timestamp at or below which a one-round commit may still land.
    ResolveUnannounced,
    /// Store: what a transaction has read is looked at without keeping later commits above that timestamp.
    ValidateUnannounced,
}

/// The bug of a client or of a service, if it has one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plant {
    #[cfg(feature = "planted-bugs")]
    bug: Option<Planted>,
}

impl Plant {
    /// With a bug.
    #[cfg(feature = "planted-bugs")]
    pub fn of(bug: Planted) -> Self {
        Plant { bug: Some(bug) }
    }

    #[cfg(feature = "planted-bugs")]
    /// Whether it is this one.
    pub fn has(self, bug: Planted) -> bool {
        self.bug == Some(bug)
    }

    #[cfg(not(feature = "planted-bugs"))]
    /// Whether it is this one.
    pub fn has(self, _: Planted) -> bool {
        false
    }
}
