//! Bugs to plant, so that the simulator can show it finds them. Without the feature `planted-bugs` none can be
//! planted, and every question for one is a constant no.

/// One bug, each against one rule of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A commit is not fenced by the catalog lease: a gateway that was silent while its lease ran out commits by a schema
    /// that is gone.
    CommitPastLease,
    /// A new catalog is taken without regard to transactions that used the old one, and a new lease without regard to those that used
    /// tables under one that had run out.
    KeepDoomed,
    /// A single statement whose outcome is unknown is run again, as if it had met a conflict: it may be applied twice.
    RepeatUnknown,
    /// An UPDATE writes no entries of the new row into the secondary indexes.
    ForgetEntry,
    /// Who removes a key trusts that its lock kept children off until the commit: it may have gone with its leader.
    UnguardedParent,
    /// Whoever is first in an advisory lock's queue has it, whatever its record says: a queue is lost with its leader.
    TrustQueue,
    /// A session keeps its advisory locks when its gateway's lease has lapsed, and others take it for dead.
    KeepLostLocks,
    /// A gateway acknowledges a table lock while transactions of its own still use the table.
    AcknowledgeInUse,
    /// Who looks whether a unique value that may be deferred is another row's does not lock it: two look at once, and neither sees
    /// the other.
    LookAlone,
    /// A row's parent is looked for and not locked: it may go before the row is committed.
    SkipParentLock,
}

/// The bug of a gateway, if it has one.
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
    pub(crate) fn has(self, bug: Planted) -> bool {
        self.bug == Some(bug)
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(crate) fn has(self, _: Planted) -> bool {
        false
    }
}
