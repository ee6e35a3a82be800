//! AS OF SYSTEM TIME: what was so at a time of the past; over a local kv layer.

mod support;

use std::time::Duration;

use bytes::{Buf, BytesMut};
use sql::{Session, SqlError, SqlState, Step};
use support::{connect, gateway, local, planted_gateway};

/// Runs a Query message: its rows as text, or its error.
async fn rows(session: &mut Session, sql: &str) -> Result<Vec<String>, SqlError> {
    session.simple(sql).await?;
    let mut out = Vec::new();
    while let Some(step) = session.next().await? {
        let Step::Rows(batch) = step else { continue };
        for row in 0..batch.len() {
            let mut bytes = BytesMut::new();
            batch.encode_row(row, &[], &mut bytes)?;
            let count = bytes.get_i16();
            let column = |_| match bytes.get_i32() {
                -1 => "NULL".to_owned(),
                len => String::from_utf8_lossy(&bytes.copy_to_bytes(len as usize)).into_owned(),
            };
            out.push((0..count).map(column).collect::<Vec<_>>().join("|"));
        }
    }
    Ok(out)
}

async fn run(session: &mut Session, statements: &[&str]) {
    for sql in statements {
        rows(session, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

async fn state(session: &mut Session, sql: &str) -> SqlState {
    rows(session, sql).await.map(|rows| panic!("{sql}: {rows:?}")).unwrap_err().sqlstate
}

/// Until what the store was told before has run out, and it hears of the safe point: 72000.
async fn too_old(session: &mut Session, sql: &str) {
    for _ in 0..100_000 {
        match rows(session, sql).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => return assert_eq!(error.sqlstate, SqlState::SNAPSHOT_TOO_OLD),
        }
    }
    panic!("{sql} is never too old");
}

#[tokio::test]
async fn the_past_is_read_by_every_kind_of_plan() {
    let local = local();
    let gateway = planted_gateway(&local, sql::planted::Plant::default()).await;
    let mut s = connect(&gateway);
    run(
        &mut s,
        &[
            "create table t (k int primary key, v int)",
            "create index i on t (v)",
            "insert into t select n, n from generate_series(1, 9) n",
        ],
    )
    .await;
    let then = local.client.timestamp().await.unwrap();
    run(&mut s, &["update t set v = -v", "delete from t where k > 5", "insert into t values (10, 10)"]).await;
    let old = [
        ("select v from t {} where k = 7", "7"),
        ("select k from t {} where v = 7", "7"),
        ("select count(*), sum(v) from t {}", "9|45"),
        ("select count(*) from t a join t b on a.k = b.k {}", "9"),
        ("select max(k) from t {} where k between 2 and 8", "8"),
    ];
    for (sql, wanted) in old {
        let past = sql.replace("{}", &format!("as of system time {then}"));
        assert_eq!(rows(&mut s, &past).await.unwrap(), [wanted], "{past}");
        assert_eq!(rows(&mut s, &past.replace(&then.to_string(), &format!("'{then}'"))).await.unwrap(), [wanted]);
        assert_ne!(rows(&mut s, &sql.replace("{}", "")).await.unwrap_or_default(), [wanted], "{sql}");
    }
    // A whole transaction, and its cursor.
    run(&mut s, &[&format!("begin as of system time '{then}'")]).await;
    assert_eq!(rows(&mut s, "select count(*) from t").await.unwrap(), ["9"]);
    run(&mut s, &["declare c cursor for select k from t order by k"]).await;
    assert_eq!(rows(&mut s, "fetch 2 from c").await.unwrap(), ["1", "2"]);
    run(&mut s, &["commit"]).await;
    run(&mut s, &["begin", &format!("set transaction as of system time {then}")]).await;
    assert_eq!(rows(&mut s, "select v from t where k = 1").await.unwrap(), ["1"]);
    assert_eq!(state(&mut s, "update t set v = 0").await, SqlState::READ_ONLY_SQL_TRANSACTION);
    run(&mut s, &["rollback"]).await;
    assert_eq!(rows(&mut s, "select v from t where k = 1").await.unwrap(), ["-1"]);
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let local = local();
    let gateway = gateway(&local).await;
    let mut s = connect(&gateway);
    let before = local.client.timestamp().await.unwrap();
    run(&mut s, &["create table t (k int primary key)", "insert into t values (1)"]).await;
    let made = local.client.timestamp().await.unwrap();
    let at = |ts| format!("select * from t as of system time {ts}");
    assert_eq!(rows(&mut s, &at(made)).await.unwrap(), ["1"]);
    // Before the table was, and before it was what it is.
    assert_eq!(state(&mut s, &at(before)).await, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
    run(&mut s, &["truncate t"]).await;
    assert_eq!(state(&mut s, &at(made)).await, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
    assert_eq!(
        state(&mut s, "select * from t as of system time '2999-01-01'").await,
        SqlState::INVALID_PARAMETER_VALUE
    );
    assert_eq!(state(&mut s, "select * from t as of system time 'then'").await, SqlState::INVALID_DATETIME_FORMAT);
    assert_eq!(state(&mut s, "insert into t values (2) as of system time '-1s'").await, SqlState::SYNTAX_ERROR);
    assert_eq!(state(&mut s, "begin as of system time '2999-01-01'").await, SqlState::INVALID_PARAMETER_VALUE);
    let now = local.client.timestamp().await.unwrap();
    assert_eq!(state(&mut s, &format!("{} for update", at(now))).await, SqlState::READ_ONLY_SQL_TRANSACTION);
    run(&mut s, &["begin"]).await;
    assert_eq!(state(&mut s, &at(now)).await, SqlState::FEATURE_NOT_SUPPORTED);
    run(&mut s, &["rollback", "begin", "select * from t"]).await;
    let late = format!("set transaction as of system time {now}");
    assert_eq!(state(&mut s, &late).await, SqlState::ACTIVE_SQL_TRANSACTION);
    run(&mut s, &["rollback", &format!("begin as of system time {now}")]).await;
    assert_eq!(state(&mut s, "set transaction read write").await, SqlState::SYNTAX_ERROR);
    run(&mut s, &["rollback"]).await;
    // Below the safe point.
    local.pd.set_safe_point(now.next());
    too_old(&mut s, &at(now)).await;
    assert!(rows(&mut s, "select * from t").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_transaction_that_is_too_old_is_told_so() {
    let local = local();
    let gateway = gateway(&local).await;
    let mut s = connect(&gateway);
    run(&mut s, &["create table t (k int primary key, v int)", "insert into t values (1, 1)"]).await;
    run(&mut s, &["begin isolation level repeatable read", "select * from t", "insert into t values (2, 2)"]).await;
    local.pd.set_safe_point(local.client.timestamp().await.unwrap());
    too_old(&mut s, "select count(*) from t").await;
    run(&mut s, &["rollback"]).await;
    assert_eq!(rows(&mut s, "select count(*) from t").await.unwrap(), ["1"]);
}

/// Until a query's only value is `wanted`.
async fn becomes(local: &kv::local::Local, session: &mut Session, sql: &str, wanted: &str) {
    let deadline = local.clock.now() + Duration::from_secs(30);
    loop {
        let found = rows(session, sql).await.unwrap();
        if found == [wanted] {
            return;
        }
        assert!(local.clock.now() < deadline, "{sql}: {found:?} all the time");
        local.clock.sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_nearest_replicas_are_read_some_seconds_behind_by_what_only_reads() {
    let local = local();
    let gateway = gateway(&local).await;
    let mut s = connect(&gateway);
    let made = ["create table t (k int primary key, v int)", "create sequence q", "insert into t values (1, 1)"];
    run(&mut s, &made).await;
    run(&mut s, &["set flaredb.read_from = 'nearest'"]).await;
    assert_eq!(rows(&mut s, "show flaredb.read_from").await.unwrap(), ["nearest"]);
    // Its table was made too lately: read as it is now.
    assert_eq!(rows(&mut s, "select v from t").await.unwrap(), ["1"]);
    let old = "select count(*) from t as of system time follower_read_timestamp()";
    let deadline = local.clock.now() + Duration::from_secs(30);
    while rows(&mut s, old).await.is_err() {
        assert!(local.clock.now() < deadline, "the table is never old enough");
        local.clock.sleep(Duration::from_millis(20)).await;
    }
    becomes(&local, &mut s, old, "1").await;
    run(&mut s, &["update t set v = 2"]).await;
    // By key, by a scan, by a query.
    for old in ["select v from t where k = 1", "select v from t", "select max(v) from t group by k"] {
        assert_eq!(rows(&mut s, old).await.unwrap(), ["1"], "{old}");
    }
    for new in ["select v from t for update", "select v + 0 * nextval('q') from t", "update t set v = v returning v"] {
        assert_eq!(rows(&mut s, new).await.unwrap(), ["2"], "{new}");
    }
    run(&mut s, &["begin"]).await;
    assert_eq!(rows(&mut s, "select v from t").await.unwrap(), ["2"]);
    run(&mut s, &["commit", "begin read only"]).await;
    assert_eq!(rows(&mut s, "select v from t").await.unwrap(), ["1"]);
    assert_eq!(state(&mut s, "set transaction read write").await, SqlState::ACTIVE_SQL_TRANSACTION);
    run(&mut s, &["rollback"]).await;
    becomes(&local, &mut s, "select v from t", "2").await;
    // Its rows of then are not what it is now.
    run(&mut s, &["update t set v = 4", "create index i on t (v)"]).await;
    assert_eq!(rows(&mut s, "select v from t where v > 3").await.unwrap(), ["4"]);
    run(&mut s, &["truncate t"]).await;
    assert!(rows(&mut s, "select v from t").await.unwrap().is_empty());
    run(&mut s, &["set flaredb.read_from = 'leader'", "insert into t values (3, 3)"]).await;
    assert_eq!(rows(&mut s, "select v from t").await.unwrap(), ["3"]);
    assert_eq!(state(&mut s, "set flaredb.read_from = 'anywhere'").await, SqlState::INVALID_PARAMETER_VALUE);
}
