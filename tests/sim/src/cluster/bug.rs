//! Bugs to plant, and how a cluster is built.

/// A bug to plant. Those of `kv`, `pd` and `sql` exist only with the feature `planted-bugs`; those of `raftstore` have no
/// effect without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// Of a store.
    Store(raftstore::Planted),
    /// Of transactions.
    #[cfg(feature = "planted-bugs")]
    Kv(kv::planted::Planted),
    /// Of PD.
    #[cfg(feature = "planted-bugs")]
    Pd(pd::Planted),
    /// Of gateways.
    #[cfg(all(feature = "planted-bugs", feature = "sql"))]
    Sql(sql::planted::Planted),
}

impl Bug {
    pub(super) fn of_store(self) -> raftstore::Planted {
        match self {
            Bug::Store(bug) => bug,
            _ => raftstore::Planted::Nothing,
        }
    }
    pub(super) fn of_kv(self) -> kv::planted::Plant {
        match self {
            #[cfg(feature = "planted-bugs")]
            Bug::Kv(bug) => kv::planted::Plant::of(bug),
            _ => kv::planted::Plant::default(),
        }
    }
    #[cfg(feature = "planted-bugs")]
    pub(super) fn of_pd(self) -> Option<pd::Planted> {
        match self {
            Bug::Pd(bug) => Some(bug),
            _ => None,
        }
    }
    /// The rules of a cluster with the bug. A PD that goes back in time is hidden by a safe point which has gone on: its
    /// timestamps are refused. There is none for an hour, then.
    pub(super) fn rules(self, rules: node::Rules) -> node::Rules {
        match self {
            #[cfg(feature = "planted-bugs")]
            Bug::Pd(pd::Planted::TsoWindowNotPersisted) => {
                node::Rules { gc: node::GcRules::with_retention(3_600_000), ..rules }
            }
            _ => rules,
        }
    }
    #[cfg(feature = "sql")]
    pub(crate) fn of_sql(self) -> sql::planted::Plant {
        match self {
            #[cfg(feature = "planted-bugs")]
            Bug::Sql(bug) => sql::planted::Plant::of(bug),
            _ => sql::planted::Plant::default(),
        }
    }
}

/// All bugs that this build can plant.
pub const BUGS: &[Bug] = &[
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::AckBeforeSync),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::ServeExpiredLease),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::ForgetVote),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::VoteAfterRestart),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::TruncateUnsynced),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::TornApply),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::UnmarkedSnapshot),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::SleepThroughRestart),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::StaleEpoch),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::SplitUnsynced),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::TransferKeepsLease),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::RemoveBelowQuorum),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::EarlyMark),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::MergeSourceStillRead),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::MergePurgesUnsynced),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::ReadUnapplied),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::ReadRestoring),
    #[cfg(feature = "planted-bugs")]
    Bug::Store(raftstore::Planted::ResolveMerging),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::SkipMaxTs),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::DropSecondaryCommit),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::IgnoreLocks),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::LostIsRefused),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::TrustRowLocks),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::TrustLostRowLocks),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::GcUnderReader),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::GcMarkerFirst),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::SkipValidation),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::ValidateAfterDecision),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::ValidateUnannounced),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::TakeUndecided),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::SwapUnchecked),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::ResolveUnannounced),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::KeepDropped),
    #[cfg(feature = "planted-bugs")]
    Bug::Kv(kv::planted::Planted::PassUnsaid),
    #[cfg(feature = "planted-bugs")]
    Bug::Pd(pd::Planted::TsoWindowNotPersisted),
    #[cfg(feature = "planted-bugs")]
    Bug::Pd(pd::Planted::RemovalBelowQuorum),
    #[cfg(all(feature = "planted-bugs", feature = "sql"))]
    Bug::Sql(sql::planted::Planted::CommitPastLease),
    #[cfg(all(feature = "planted-bugs", feature = "sql"))]
    Bug::Sql(sql::planted::Planted::KeepDoomed),
    #[cfg(all(feature = "planted-bugs", feature = "sql"))]
    Bug::Sql(sql::planted::Planted::AcknowledgeInUse),
    #[cfg(all(feature = "planted-bugs", feature = "sql"))]
    Bug::Sql(sql::planted::Planted::RepeatUnknown),
    #[cfg(all(feature = "planted-bugs", feature = "sql"))]
    Bug::Sql(sql::planted::Planted::ForgetEntry),
    #[cfg(all(feature = "planted-bugs", feature = "sql"))]
    Bug::Sql(sql::planted::Planted::SkipParentLock),
    #[cfg(all(feature = "planted-bugs", feature = "sql"))]
    Bug::Sql(sql::planted::Planted::LookAlone),
    #[cfg(all(feature = "planted-bugs", feature = "sql"))]
    Bug::Sql(sql::planted::Planted::UnguardedParent),
    #[cfg(all(feature = "planted-bugs", feature = "sql"))]
    Bug::Sql(sql::planted::Planted::TrustQueue),
    #[cfg(all(feature = "planted-bugs", feature = "sql"))]
    Bug::Sql(sql::planted::Planted::KeepLostLocks),
];

/// How a cluster is built.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// A bug to plant.
    pub bug: Bug,
}
