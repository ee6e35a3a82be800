//! Every row has its entry in every index of its table, and no entry is without its row: after random statements of
//! several sessions, and after CREATE INDEX under writers. And no two rows share a value that they must not.

mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use kv::ScanOptions;
use proptest::prelude::*;
use sql::{
    catalog::store,
    codec::{IndexCodec, TableCodec},
};
use support::{
    connect, gateway, local,
    random::{SESSIONS, Said, play, run, search},
};

/// Runs of random statements.
const RUNS: u32 = 10;

const TABLE: &str = "CREATE TABLE r (k int PRIMARY KEY, a int UNIQUE, b int, c text)";
/// Where rows may share values until a statement or a transaction ends.
const LATE: &str = "CREATE TABLE s (k int PRIMARY KEY DEFERRABLE, a int UNIQUE DEFERRABLE INITIALLY DEFERRED, b int,
    UNIQUE NULLS NOT DISTINCT (b, a) DEFERRABLE)";
const INDEXES: [&str; 2] =
    ["CREATE INDEX r_b ON r (b DESC, c)", "CREATE UNIQUE INDEX r_c ON r (c, a) NULLS NOT DISTINCT"];

async fn pairs(txn: &kv::Txn, range: proto::KeyRange) -> BTreeMap<Bytes, Bytes> {
    let mut scan = txn.scan(ScanOptions { range, ..Default::default() });
    let mut found = BTreeMap::new();
    while let Some(page) = scan.next_page().await.expect("a page") {
        found.extend(page.rows);
    }
    found
}

/// What is wrong with the indexes.
async fn disagreement(local: &kv::local::Local) -> Option<String> {
    let txn = local.client.begin().await.expect("a snapshot");
    let catalog = store::load(&txn).await.expect("the catalog");
    for table in catalog.tables() {
        let codec = TableCodec::new(table);
        let rows = pairs(&txn, table.rows()).await;
        for index in &table.indexes {
            let index = IndexCodec::new(table, index);
            let entry = |(key, value): (&Bytes, &Bytes)| {
                let row = codec.decode(key, value).expect("a row");
                let entry = index.entry(&row, key).expect("an entry");
                (entry.key, entry.value)
            };
            let expected: BTreeMap<Bytes, Bytes> = rows.iter().map(entry).collect();
            let found = pairs(&txn, index.form().range()).await;
            if expected.len() != rows.len() {
                return Some(format!("two rows share an entry of {}", index.descriptor.name));
            }
            if let Some(shared) = shared(&index, &found) {
                return Some(shared);
            }
            if found != expected {
                let name = &index.descriptor.name;
                return Some(format!("{name} has {} entries for {} rows, or others", found.len(), rows.len()));
            }
        }
    }
    None
}

/// Two rows that have a value which only one may have.
fn shared(index: &IndexCodec, entries: &BTreeMap<Bytes, Bytes>) -> Option<String> {
    let values = entries.keys().map(|key| index.values(key).expect("an entry"));
    let values =
        values.filter(|values| !index.descriptor.nulls_distinct || !values.iter().any(sql::types::Datum::is_null));
    let values: Vec<_> = values.collect();
    let again = values.windows(2).find(|two| two[0] == two[1]).filter(|_| index.descriptor.unique)?;
    Some(format!("two rows share {:?} in {}", again[0], index.descriptor.name))
}

/// A statement of one of the sessions, on the table whose constraints may be deferred.
fn late_statement() -> impl Strategy<Value = Said> {
    let text = (0u8..12, 0i32..12, 0i32..12, 0i32..5).prop_map(|(kind, k, a, b)| {
        let a = if a == 0 { "NULL".to_owned() } else { a.to_string() };
        match kind {
            0..3 => format!("INSERT INTO s VALUES ({k}, {a}, {b})"),
            3 => format!("INSERT INTO s VALUES ({k}, {a}, NULL), ({b}, {k}, {k})"),
            4 => format!("UPDATE s SET a = {a} WHERE k = {k}"),
            5 => format!("UPDATE s SET a = {k} - a, b = {b} WHERE b = {b}"),
            6 => "UPDATE s SET k = 11 - k".to_owned(),
            7 => format!("UPDATE s SET k = k + 1, a = a + 1 WHERE k >= {k}"),
            8 => format!("UPDATE s SET k = {k} WHERE a = {a}"),
            9 => format!("INSERT INTO s SELECT k + 1, a + {b}, b FROM s WHERE k = {k}"),
            10 => format!("DELETE FROM s WHERE a = {a} OR k = {k}"),
            _ => format!("DELETE FROM s WHERE k = {k}"),
        }
    });
    let other = prop::sample::select(vec![
        "BEGIN",
        "BEGIN",
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "COMMIT",
        "COMMIT",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT s",
        "ROLLBACK TO s",
        "SET CONSTRAINTS ALL DEFERRED",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "TRUNCATE s",
        "ALTER TABLE s DROP CONSTRAINT s_b_a_key",
        "ALTER TABLE s ADD UNIQUE NULLS NOT DISTINCT (b, a) DEFERRABLE",
    ]);
    (0..SESSIONS, prop_oneof![4 => text, 3 => other.prop_map(str::to_owned)])
}

/// A statement of one of the sessions.
fn statement() -> impl Strategy<Value = Said> {
    let text = (0u8..9, 0i32..12, 0i32..12, 0i32..6, 0u8..5).prop_map(|(kind, k, a, b, c)| {
        let c = if c == 0 { "NULL".to_owned() } else { format!("'{}'", "x".repeat(c.into())) };
        let a = if a == 0 { "NULL".to_owned() } else { a.to_string() };
        match kind {
            0 | 1 => format!("INSERT INTO r VALUES ({k}, {a}, {b}, {c})"),
            2 => format!("INSERT INTO r VALUES ({k}, {a}, {b}, {c}) ON CONFLICT (a) DO UPDATE SET k = {b}, c = {c}"),
            3 => format!("INSERT INTO r VALUES ({k}, {a}, {b}, {c}), ({b}, {k}, {k}, {c}) ON CONFLICT DO NOTHING"),
            4 => format!("UPDATE r SET a = {a}, c = {c} WHERE k = {k}"),
            5 => format!("UPDATE r SET b = b + 1, k = k + {b} WHERE b = {b}"),
            6 => format!("UPDATE r SET c = {c} WHERE a = {a}"),
            7 => format!("DELETE FROM r WHERE a = {a} OR k = {k}"),
            _ => format!("DELETE FROM r WHERE k = {k}"),
        }
    });
    let other = prop::sample::select(vec![
        "BEGIN",
        "BEGIN",
        "COMMIT",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT s",
        "ROLLBACK TO s",
        "DROP INDEX IF EXISTS r_b",
        INDEXES[0],
        "TRUNCATE r",
    ]);
    let any = prop_oneof![6 => text, 2 => other.prop_map(str::to_owned)];
    (0..SESSIONS, any)
}

async fn agrees_after(statements: &[Said], plant: sql::planted::Plant) -> Option<String> {
    let local = local();
    let gateway = support::planted_gateway(&local, plant).await;
    match play(&gateway, [TABLE, LATE].into_iter().chain(INDEXES), statements).await {
        None => disagreement(&local).await,
        fault => fault,
    }
}

/// What random statements find: nothing, or what is wrong.
fn searched(plant: sql::planted::Plant, statement: impl Strategy<Value = Said>) -> Result<(), String> {
    search(RUNS, statement, async |statements| agrees_after(&statements, plant).await)
}

#[test]
fn indexes_agree_with_their_tables() {
    searched(sql::planted::Plant::default(), statement()).expect("they agree");
}

#[test]
fn values_are_not_shared_in_the_end() {
    searched(sql::planted::Plant::default(), late_statement()).expect("they are not");
}

#[cfg(feature = "planted-bugs")]
#[test]
fn a_forgotten_entry_is_found() {
    let plant = sql::planted::Plant::of(sql::planted::Planted::ForgetEntry);
    searched(plant, statement()).expect_err("it is found");
}

#[tokio::test]
async fn an_index_is_built_under_writers() {
    let local = local();
    let gateway = gateway(&local).await;
    let mut maker = connect(&gateway);
    run(&mut maker, "CREATE TABLE w (k int PRIMARY KEY, v int, n int)").await.expect("a table");
    run(&mut maker, "INSERT INTO w SELECT g, g, 0 FROM generate_series(1, 2500) AS g").await.expect("rows");
    let done = std::cell::Cell::new(false);
    let write = async |offset: i32| {
        let mut session = connect(&gateway);
        let mut written = 0;
        while !done.get() {
            let k = (written * 37 + offset) % 3000;
            let sql = match written % 4 {
                0 => format!("UPDATE w SET v = v + 10000, n = n + 1 WHERE k = {k}"),
                1 => format!("DELETE FROM w WHERE k = {}", k + 1),
                2 => format!("INSERT INTO w VALUES ({}, {}, 1)", k + 1, 100_000 + written * 10 + offset),
                _ => format!("UPDATE w SET k = k + 10000 WHERE k = {k}"),
            };
            let _ = run(&mut session, &sql).await;
            written += 1;
            tokio::task::yield_now().await;
        }
        written
    };
    let make = async {
        run(&mut maker, "CREATE INDEX w_n ON w (n)").await.expect("an index");
        run(&mut maker, "CREATE UNIQUE INDEX w_v ON w (v)").await.expect("a unique index");
        done.set(true);
    };
    let ((), one, two) = futures::join!(make, write(1), write(2));
    assert!(one + two > 0);
    assert_eq!(disagreement(&local).await, None);
}
