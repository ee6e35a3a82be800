//! AS OF SYSTEM TIME: what was so at a time of the past; over a local kv layer.

mod support;

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
