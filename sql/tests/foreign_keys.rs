//! No child is without its parent: after random statements of several sessions, in transactions with savepoints and constraints put
//! off, over tables with every action.

mod support;

use proptest::prelude::*;
use support::{
    connect, gateway, local,
    random::{SESSIONS, Said, play, run, search},
};

/// Runs of random statements.
const RUNS: u32 = 8;

const TABLES: [&str; 7] = [
    "CREATE TABLE p (id int PRIMARY KEY, u int UNIQUE, v int)",
    "CREATE TABLE kept (id int PRIMARY KEY, p int REFERENCES p)",
    "CREATE TABLE gone (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE)",
    "CREATE INDEX gone_p ON gone (p)",
    "CREATE TABLE lost (id int PRIMARY KEY, p int REFERENCES p (u) ON DELETE SET NULL ON UPDATE SET NULL)",
    "CREATE TABLE late (id int PRIMARY KEY, p int DEFAULT 0 REFERENCES p ON DELETE SET DEFAULT DEFERRABLE INITIALLY DEFERRED)",
    "CREATE TABLE grand (id int PRIMARY KEY, up int REFERENCES grand ON DELETE CASCADE,
        p int REFERENCES gone ON DELETE CASCADE ON UPDATE SET NULL)",
];
const CHILDREN: [&str; 5] = ["kept", "gone", "lost", "late", "grand"];
/// How many rows have no parent.
const ORPHANS: [&str; 6] = [
    "SELECT count(*) FROM kept c LEFT JOIN p ON p.id = c.p WHERE c.p IS NOT NULL AND p.id IS NULL",
    "SELECT count(*) FROM gone c LEFT JOIN p ON p.id = c.p WHERE c.p IS NOT NULL AND p.id IS NULL",
    "SELECT count(*) FROM lost c LEFT JOIN p ON p.u = c.p WHERE c.p IS NOT NULL AND p.u IS NULL",
    "SELECT count(*) FROM late c LEFT JOIN p ON p.id = c.p WHERE c.p IS NOT NULL AND p.id IS NULL",
    "SELECT count(*) FROM grand c LEFT JOIN gone g ON g.id = c.p WHERE c.p IS NOT NULL AND g.id IS NULL",
    "SELECT count(*) FROM grand c LEFT JOIN grand g ON g.id = c.up WHERE c.up IS NOT NULL AND g.id IS NULL",
];

/// A statement of one of the sessions.
fn statement() -> impl Strategy<Value = Said> {
    let child = prop::sample::select(CHILDREN.to_vec());
    let text = (0u8..13, child, 0i32..14, 0i32..8, 0i32..8).prop_map(|(kind, child, id, a, b)| {
        let p = if a == 0 { "NULL".to_owned() } else { a.to_string() };
        match kind {
            0 | 1 => format!("INSERT INTO p VALUES ({a}, {b}, 0)"),
            2 => format!("DELETE FROM p WHERE id = {a}"),
            3 => format!("DELETE FROM p WHERE u >= {a} AND u < {b}"),
            4 => format!("UPDATE p SET id = {b} WHERE id = {a}"),
            5 => format!("UPDATE p SET u = {b}, v = v + 1 WHERE id = {a}"),
            6 => format!("UPDATE p SET v = v + 1 WHERE id = {a}"),
            7 | 8 if child == "grand" => format!("INSERT INTO grand VALUES ({id}, {p}, {b})"),
            7 => format!("INSERT INTO {child} VALUES ({id}, {p})"),
            8 => format!(
                "INSERT INTO {child} VALUES ({id}, {p}), ({}, {b}) ON CONFLICT (id) DO UPDATE SET p = {b}",
                id + 1
            ),
            9 => format!("UPDATE {child} SET p = {p} WHERE id = {id}"),
            10 => format!("UPDATE {child} SET id = id + {b} WHERE id = {id}"),
            11 => format!("UPDATE {child} SET p = p + 1 WHERE p = {b}"),
            _ => format!("DELETE FROM {child} WHERE id = {id}"),
        }
    });
    let other = prop::sample::select(vec![
        "BEGIN",
        "BEGIN",
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "COMMIT",
        "COMMIT",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT s",
        "ROLLBACK TO s",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "SET CONSTRAINTS ALL DEFERRED",
        "DELETE FROM kept",
        "TRUNCATE lost",
        "ALTER TABLE lost ADD CHECK (p < 100)",
    ]);
    (0..SESSIONS, prop_oneof![6 => text, 2 => other.prop_map(str::to_owned)])
}

/// What is wrong after these statements.
async fn orphans_after(statements: Vec<Said>) -> Option<String> {
    let local = local();
    let gateway = gateway(&local).await;
    let before = TABLES.into_iter().chain(["INSERT INTO p VALUES (0, 0, 0), (1, 1, 0), (2, 2, 0), (3, 3, 0)"]);
    if let Some(fault) = play(&gateway, before, &statements).await {
        return Some(fault);
    }
    let mut session = connect(&gateway);
    for sql in ORPHANS {
        let count = run(&mut session, sql).await.expect(sql);
        if count != Some(0) {
            return Some(format!("{sql}: {count:?}"));
        }
    }
    None
}

/// A constraint is tried again and again between two tables whose rows come and go, until a moment without orphans; none come then.
#[tokio::test]
async fn a_constraint_comes_under_writers() {
    let local = local();
    let gateway = gateway(&local).await;
    let mut maker = connect(&gateway);
    for sql in [
        "CREATE TABLE p (id int PRIMARY KEY)",
        "CREATE TABLE c (id int PRIMARY KEY, p int)",
        "INSERT INTO p SELECT g FROM generate_series(0, 9) AS g",
    ] {
        run(&mut maker, sql).await.expect(sql);
    }
    let done = std::cell::Cell::new(false);
    let write = async |offset: i32| {
        let mut session = connect(&gateway);
        let mut written = 0;
        while !done.get() {
            let (p, c) = ((written * 7 + offset) % 10, (written * 3 + offset) % 40);
            let sql = match written % 4 {
                0 => format!("INSERT INTO c VALUES ({c}, {p})"),
                1 => format!("DELETE FROM p WHERE id = {p}"),
                2 => format!("DELETE FROM c WHERE id = {}", (c + 11) % 40),
                _ => format!("INSERT INTO p VALUES ({p})"),
            };
            let _ = run(&mut session, &sql).await;
            written += 1;
            tokio::task::yield_now().await;
        }
    };
    let make = async {
        let orphans = "DELETE FROM c WHERE NOT EXISTS (SELECT 1 FROM p WHERE p.id = c.p)";
        let mut tries = 0;
        loop {
            run(&mut maker, orphans).await.expect(orphans);
            match run(&mut maker, "ALTER TABLE c ADD CONSTRAINT fk FOREIGN KEY (p) REFERENCES p").await {
                Ok(_) => break,
                Err(error) if error.sqlstate.0 == "23503" && tries < 100 => tries += 1,
                Err(error) => panic!("{error}"),
            }
        }
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        done.set(true);
    };
    futures::join!(make, write(1), write(2));
    let left = "SELECT count(*) FROM c LEFT JOIN p ON p.id = c.p WHERE p.id IS NULL";
    assert_eq!(run(&mut maker, left).await.expect(left), Some(0));
}

#[test]
fn children_have_parents() {
    search(RUNS, statement(), orphans_after).expect("they have");
}
