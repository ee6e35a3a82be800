//! Each planted bug breaks one rule; the simulator must notice within a stated number of seeds.
//!
//! A bug that is not found means that a fault is missing, or that a judge is blind.

use raftstore::Planted;
use sim::{
    cluster::Settings,
    run::{Kind, run},
};

/// Seeds 1 to `within` of `kind` with `settings`: at least one must fail.
fn must_be_found(kind: Kind, within: u64, settings: Settings) {
    for seed in 1..=within {
        if let Err(reason) = run(seed, kind, &settings).verdict {
            println!("{settings:?}: found by seed {seed}: {reason}");
            return;
        }
    }
    panic!("{settings:?} was not found within {within} seeds");
}

fn store_bug(planted: Planted, within: u64) {
    must_be_found(Kind::Stores, within, Settings { planted, ..Settings::default() });
}

#[test]
fn acknowledging_before_the_sync_is_found() {
    store_bug(Planted::AckBeforeSync, 10);
}

#[test]
fn serving_under_an_expired_lease_is_found() {
    store_bug(Planted::ServeExpiredLease, 10);
}

#[test]
fn forgetting_a_vote_over_a_restart_is_found() {
    store_bug(Planted::ForgetVote, 100);
}

#[test]
fn voting_right_after_a_restart_is_found() {
    store_bug(Planted::VoteAfterRestart, 100);
}

#[test]
fn cutting_the_log_above_the_synced_state_is_found() {
    store_bug(Planted::TruncateUnsynced, 100);
}

#[test]
fn an_apply_in_two_halves_is_found() {
    store_bug(Planted::TornApply, 100);
}
