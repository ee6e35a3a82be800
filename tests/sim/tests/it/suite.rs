//! Many seeds of every workload, each twice; and all of them together must have met every fault.

use sim::{
    cluster::Settings,
    coverage::Coverage,
    run::{Kind, run},
};

/// Seeds of each workload, unless `FLAREDB_SIM_SEEDS` says otherwise: a minute or two on one core.
const SEEDS: u64 = 10;

/// What no suite may leave out.
const FAULTS: &[&str] = &[
    "crashes",
    "unsynced batches lost",
    "partitions",
    "one-way cuts",
    "bridges",
    "coups",
    "messages lost",
    "messages doubled",
    "messages overtaken",
    "pauses",
    "slow syncs",
    "stalled syncs",
    "clock jumps",
    "splits",
    "merges",
    "memberships",
    "hand-overs",
    "changes refused",
    "replicas compared",
];

fn seeds() -> u64 {
    std::env::var("FLAREDB_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS)
}

fn suite(kind: Kind, wanted: &[&'static str]) {
    suite_of(kind, seeds(), &[FAULTS, wanted].concat());
}

/// What is rare may not happen in so many seeds: then up to twice as many more are run.
fn suite_of(kind: Kind, seeds: u64, wanted: &[&'static str]) {
    let mut coverage = Coverage::default();
    for seed in 1..=seeds * 3 {
        if seed > seeds && coverage.missing(wanted).is_empty() {
            break;
        }
        let replay = format!("./dev sim --seed {seed} --kind {kind:?}");
        let first = run(seed, kind, &Settings::default());
        if let Err(reason) = &first.verdict {
            panic!("seed {seed}: {reason}\n  replay: {replay}");
        }
        let second = run(seed, kind, &Settings::default());
        assert_eq!(first.hash, second.hash, "seed {seed} does not repeat\n  replay: {replay}");
        coverage.merge(&first.coverage);
    }
    println!("{kind:?}: {coverage}");
    let missing = coverage.missing(wanted);
    assert!(missing.is_empty(), "never happened: {missing:?}\ncovered: {coverage}");
}

#[test]
fn registers_in_stores_are_linearizable() {
    suite(
        Kind::Stores,
        &[
            "elections",
            "lease expiries",
            "lease reads",
            "snapshots",
            "relapses",
            "regions that fell asleep",
            "sleeping leaders killed",
            "reads by quorum",
            "registers written",
            "writes of unknown outcome",
        ],
    );
}

#[test]
fn registers_in_nodes_are_linearizable() {
    suite(Kind::Register, &["elections", "lease expiries", "nodes started", "registers read", "registers written"]);
}

#[test]
fn strong_namespaces_are_linearizable() {
    suite(Kind::Space, &["elections", "registers read", "registers written", "registers swapped", "writes refused"]);
}

#[test]
fn money_is_neither_made_nor_lost() {
    suite(
        Kind::Bank,
        &[
            "elections",
            "lease expiries",
            "transfers",
            "transfers in conflict",
            "snapshots of the bank",
            "commits in one phase",
            "locks of async commits",
            "secondaries asked",
            "keys committed behind their locks",
            "primaries asked",
            "locks resolved",
            "increments",
            "versions collected",
        ],
    );
}

#[test]
fn money_is_neither_made_nor_lost_in_transactions_that_spill() {
    suite(
        Kind::Large,
        &[
            "elections",
            "spilled transactions committed",
            "transfers in conflict",
            "snapshots of the bank",
            "increments",
        ],
    );
}

#[test]
fn row_locks_keep_transactions_off_each_other() {
    suite(
        Kind::Guard,
        &[
            "elections",
            "taken under a guard",
            "too little under a guard",
            "given beside a guard",
            "guarded pairs read",
            "row locks lost",
        ],
    );
}

#[test]
fn serializable_transactions_are_as_if_one_after_the_other() {
    suite(
        Kind::Append,
        &[
            "elections",
            "lists read and appended to",
            "transactions whose reads were out of date",
            "lists appended to by somebody else",
            "reads as they were",
            "locks that decide nothing",
            "commits in one phase",
            "locks of async commits",
            "transactions judged",
        ],
    );
}

#[test]
fn transactions_of_one_snapshot_show_nothing_but_write_skew() {
    // The faults are those of the others; here it is about the level.
    let wanted = ["crashes", "lists read and appended to", "lists appended to by somebody else"];
    suite_of(Kind::AppendSnapshot, (seeds() / 2).max(1), &wanted);
}

#[test]
fn transactions_that_see_what_is_committed_do_not_go_round_in_circles() {
    let wanted = ["crashes", "lists read and appended to", "locks of async commits"];
    suite_of(Kind::AppendCommitted, (seeds() / 2).max(1), &wanted);
}

#[cfg(feature = "sql")]
#[test]
fn advisory_locks_are_one_sessions_at_a_time() {
    suite(
        Kind::Advisory,
        &[
            "elections",
            "exiles",
            "gateways started",
            "advisory locks held",
            "advisory locks of somebody else",
            "advisory locks not waited for longer",
            "advisory locks lost with a lease",
        ],
    );
}

#[cfg(feature = "sql")]
#[test]
fn registers_in_sql_are_linearizable() {
    suite(
        Kind::SqlRegister,
        &["exiles", "gateways started", "registers read", "registers written", "writes of unknown outcome"],
    );
}

#[cfg(feature = "sql")]
#[test]
fn money_is_neither_made_nor_lost_in_sql() {
    // Its regions stay whole.
    let faults = FAULTS.iter().copied().filter(|fault| !["splits", "merges"].contains(fault));
    let wanted: Vec<_> = faults
        .chain([
            "exiles",
            "gateways started",
            "transfers",
            "transfers in conflict",
            "snapshots of the bank",
            "increments",
            "commits in one phase",
            "keys committed behind their locks",
            "locks resolved",
            "commits of unknown outcome",
        ])
        .collect();
    suite_of(Kind::SqlBank, seeds(), &wanted);
}

#[cfg(feature = "sql")]
#[test]
fn everybody_sees_the_old_tables_or_the_new_ones() {
    suite(
        Kind::Schema,
        &[
            "exiles",
            "gateways started",
            "elements added",
            "looks at both tables",
            "looks at locked tables",
            "looks at both tables nearby",
            "past reads served",
            "schema changes",
            "refused for a change of the schema",
            "ranges deleted",
            "looks at garbage of gateways that are gone",
        ],
    );
}

#[cfg(feature = "sql")]
#[test]
fn children_have_parents() {
    suite(
        Kind::Family,
        &[
            "exiles",
            "gateways started",
            "children added",
            "children added in transactions",
            "children given to others",
            "children before their parents",
            "parents removed",
            "parents removed in transactions",
            "families seen",
            "kids truncated",
            "orphans refused",
            "parents kept by their children",
        ],
    );
}

#[cfg(feature = "sql")]
#[test]
fn rows_are_found_by_indexes_whatever_schema_they_were_written_by() {
    // Its faults are few and long.
    let wanted = [
        "absences",
        "crashes",
        "gateways started",
        "items written",
        "items written in transactions",
        "items written with long thought",
        "looks by key and by index",
        "indexes built",
        "indexes built concurrently",
        "refused for a change of the schema",
    ];
    suite_of(Kind::Indexed, seeds(), &wanted);
}

#[cfg(feature = "sql")]
#[test]
fn values_are_not_shared() {
    suite(
        Kind::Seats,
        &[
            "exiles",
            "gateways started",
            "seats added",
            "seats removed",
            "seats moved",
            "seats added in transactions",
            "seats that trade",
            "seats made anew",
            "seats seen",
            "shared values refused",
            "seats in conflict",
            "deadlocks",
        ],
    );
}

#[test]
fn the_past_is_the_same_on_every_replica() {
    suite(
        Kind::Past,
        &[
            "elections",
            "snapshots",
            "transfers",
            "versions collected",
            "looks at the past nearby",
            "looks at the past at leaders",
            "looks that agree",
            "past reads served",
            "past reads too early",
            "past reads at locks",
        ],
    );
}

#[test]
fn money_stays_while_regions_split_and_move() {
    // Five nodes and twice the time: a seed costs as much as five of the others, and not every fault comes up in few.
    let wanted = [
        "crashes",
        "elections",
        "transfers",
        "versions collected",
        "splits by PD",
        "merges by PD",
        "memberships changed by PD",
        "leaders moved by PD",
    ];
    suite_of(Kind::Moving, (seeds() * 2 / 5).max(1), &wanted);
}
