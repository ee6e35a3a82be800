//! Each planted bug breaks one rule; the simulator must notice within a stated number of seeds.
//!
//! A bug that is not found means that a fault is missing, or that a judge is blind.
//!
//! Three show between two messages, for which seeds have to be lucky, and have tests of their own: `kv`'s `PassUnsaid` in `local::spill`,
//! `raftstore`'s `ResolveMerging` and `ReadRestoring` in golden scripts.

use kv::planted::Planted as Kv;
use pd::Planted as Pd;
use raftstore::Planted as Store;
use sim::{
    cluster::{Bug, Settings},
    run::{Kind, run},
};

/// Seeds 1 to `within` of `kind` with `bug`: at least one must fail.
fn must_be_found(kind: Kind, within: u64, bug: Bug) {
    let settings = Settings { bug };
    for seed in 1..=within {
        if let Err(reason) = run(seed, kind, &settings).verdict {
            println!("{bug:?}: found by seed {seed}: {reason}");
            return;
        }
    }
    panic!("{bug:?} was not found within {within} seeds");
}

#[test]
fn acknowledging_before_the_sync_is_found() {
    must_be_found(Kind::Stores, 20, Bug::Store(Store::AckBeforeSync));
}

#[test]
fn serving_under_an_expired_lease_is_found() {
    must_be_found(Kind::Stores, 20, Bug::Store(Store::ServeExpiredLease));
}

#[test]
fn forgetting_a_vote_over_a_restart_is_found() {
    must_be_found(Kind::Stores, 100, Bug::Store(Store::ForgetVote));
}

#[test]
fn voting_right_after_a_restart_is_found() {
    must_be_found(Kind::Stores, 100, Bug::Store(Store::VoteAfterRestart));
}

#[test]
fn cutting_the_log_above_the_synced_state_is_found() {
    must_be_found(Kind::Stores, 10, Bug::Store(Store::TruncateUnsynced));
}

#[test]
fn an_apply_in_two_halves_is_found() {
    must_be_found(Kind::Stores, 50, Bug::Store(Store::TornApply));
}

#[test]
fn a_snapshot_half_ingested_is_found() {
    must_be_found(Kind::Stores, 20, Bug::Store(Store::UnmarkedSnapshot));
}

#[test]
fn comparing_replicas_at_different_moments_is_found() {
    must_be_found(Kind::Stores, 10, Bug::Store(Store::EarlyMark));
}

#[test]
fn applying_what_was_meant_for_another_epoch_is_found() {
    must_be_found(Kind::Stores, 10, Bug::Store(Store::StaleEpoch));
}

#[test]
fn a_region_that_speaks_before_its_split_is_durable_is_found() {
    must_be_found(Kind::Stores, 40, Bug::Store(Store::SplitUnsynced));
}

#[test]
fn a_hand_over_that_keeps_the_lease_is_found() {
    must_be_found(Kind::Stores, 20, Bug::Store(Store::TransferKeepsLease));
}

#[test]
fn removing_below_quorum_is_found() {
    must_be_found(Kind::Stores, 50, Bug::Store(Store::RemoveBelowQuorum));
}

#[test]
fn sleeping_through_a_leaders_restart_is_found() {
    must_be_found(Kind::Stores, 5, Bug::Store(Store::SleepThroughRestart));
}

#[test]
fn reading_a_merges_source_is_found() {
    must_be_found(Kind::Stores, 10, Bug::Store(Store::MergeSourceStillRead));
}

#[test]
fn purging_a_merges_source_before_its_target_is_durable_is_found() {
    must_be_found(Kind::Stores, 40, Bug::Store(Store::MergePurgesUnsynced));
}

#[test]
fn skipping_max_ts_is_found() {
    must_be_found(Kind::Bank, 20, Bug::Kv(Kv::SkipMaxTs));
}

#[test]
fn dropping_a_secondarys_commit_is_found() {
    must_be_found(Kind::Bank, 20, Bug::Kv(Kv::DropSecondaryCommit));
}

#[test]
fn asking_the_primary_of_an_async_commit_alone_is_found() {
    must_be_found(Kind::Bank, 60, Bug::Kv(Kv::PrimaryAlone));
}

#[test]
fn letting_a_late_lock_of_an_async_commit_in_is_found() {
    must_be_found(Kind::Bank, 60, Bug::Kv(Kv::LateSecondary));
}

#[test]
fn reading_past_locks_is_found() {
    must_be_found(Kind::Bank, 20, Bug::Kv(Kv::IgnoreLocks));
}

#[test]
fn calling_a_lost_answer_a_refusal_is_found() {
    must_be_found(Kind::Bank, 20, Bug::Kv(Kv::LostIsRefused));
}

#[test]
fn keeping_what_was_taken_back_is_found() {
    must_be_found(Kind::Large, 10, Bug::Kv(Kv::KeepDropped));
}

#[test]
fn trusting_row_locks_for_writes_is_found() {
    must_be_found(Kind::Guard, 40, Bug::Kv(Kv::TrustRowLocks));
}

#[test]
fn trusting_row_locks_that_went_with_their_leader_is_found() {
    must_be_found(Kind::Guard, 40, Bug::Kv(Kv::TrustLostRowLocks));
}

#[test]
fn collecting_what_is_still_read_is_found() {
    must_be_found(Kind::Bank, 20, Bug::Kv(Kv::GcUnderReader));
}

#[test]
fn collecting_a_delete_marker_before_what_it_hides_is_found() {
    must_be_found(Kind::Bank, 40, Bug::Kv(Kv::GcMarkerFirst));
}

#[test]
fn committing_without_a_look_at_the_reads_is_found() {
    must_be_found(Kind::Append, 5, Bug::Kv(Kv::SkipValidation));
}

#[test]
fn looking_at_the_reads_when_the_commit_is_decided_is_found() {
    must_be_found(Kind::Append, 10, Bug::Kv(Kv::ValidateAfterDecision));
}

#[test]
fn looking_at_the_reads_without_holding_later_commits_off_is_found() {
    must_be_found(Kind::Append, 40, Bug::Kv(Kv::ValidateUnannounced));
}

#[test]
fn taking_locks_that_decide_nothing_for_a_commit_is_found() {
    must_be_found(Kind::Append, 10, Bug::Kv(Kv::TakeUndecided));
}

#[test]
fn calling_the_past_readable_while_it_still_changes_is_found() {
    must_be_found(Kind::Past, 20, Bug::Kv(Kv::ResolveUnannounced));
}

#[test]
fn reading_a_replica_before_it_has_applied_the_past_is_found() {
    must_be_found(Kind::Past, 60, Bug::Store(Store::ReadUnapplied));
}

#[test]
fn swapping_what_was_not_compared_is_found() {
    must_be_found(Kind::Space, 20, Bug::Kv(Kv::SwapUnchecked));
}

#[test]
fn using_timestamps_before_their_window_is_durable_is_found() {
    must_be_found(Kind::Register, 40, Bug::Pd(Pd::TsoWindowNotPersisted));
}

#[test]
fn pd_planning_a_removal_below_quorum_is_found() {
    must_be_found(Kind::Moving, 20, Bug::Pd(Pd::RemovalBelowQuorum));
}

/// Bugs of gateways.
#[cfg(feature = "sql")]
mod gateways {
    use sql::planted::Planted as Sql;

    use super::{Bug, Kind, must_be_found};

    #[test]
    fn acknowledging_a_table_lock_in_use_is_found() {
        must_be_found(Kind::Schema, 10, Bug::Sql(Sql::AcknowledgeInUse));
    }

    #[test]
    fn committing_past_the_catalog_lease_is_found() {
        must_be_found(Kind::Indexed, 30, Bug::Sql(Sql::CommitPastLease));
    }

    #[test]
    fn keeping_transactions_that_used_another_schema_is_found() {
        must_be_found(Kind::Indexed, 20, Bug::Sql(Sql::KeepDoomed));
    }

    #[test]
    fn repeating_a_statement_of_unknown_outcome_is_found() {
        must_be_found(Kind::SqlRegister, 60, Bug::Sql(Sql::RepeatUnknown));
    }

    #[test]
    fn removing_a_parent_under_a_lock_that_went_is_found() {
        must_be_found(Kind::Family, 100, Bug::Sql(Sql::UnguardedParent));
    }

    #[test]
    fn trusting_an_advisory_locks_queue_is_found() {
        must_be_found(Kind::Advisory, 20, Bug::Sql(Sql::TrustQueue));
    }

    #[test]
    fn keeping_advisory_locks_past_the_lease_is_found() {
        must_be_found(Kind::Advisory, 20, Bug::Sql(Sql::KeepLostLocks));
    }

    #[test]
    fn forgetting_an_index_entry_is_found() {
        must_be_found(Kind::SqlRegister, 5, Bug::Sql(Sql::ForgetEntry));
    }

    #[test]
    fn looking_for_a_shared_value_without_a_lock_is_found() {
        must_be_found(Kind::Seats, 10, Bug::Sql(Sql::LookAlone));
    }

    #[test]
    fn looking_for_a_parent_without_a_lock_is_found() {
        must_be_found(Kind::Family, 10, Bug::Sql(Sql::SkipParentLock));
    }
}
