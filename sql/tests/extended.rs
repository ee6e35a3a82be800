//! The extended protocol's messages, conflicts between sessions and gateways, limits; over a local kv layer.

mod support;

use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use futures::future::BoxFuture;
use sql::{Gateway, Session, SqlError, SqlState, Step, TransactionStatus, types::Format};
use support::{connect, gateway, local};

/// Runs a Query message: its tags and rows as text, or its error.
async fn simple(session: &mut Session, sql: &str) -> Result<Vec<String>, SqlError> {
    session.simple(sql).await?;
    drain(session, &[]).await
}

async fn drain(session: &mut Session, formats: &[Format]) -> Result<Vec<String>, SqlError> {
    let mut out = Vec::new();
    while let Some(step) = session.next().await? {
        match step {
            Step::Rows(batch) => {
                for row in 0..batch.len() {
                    let mut bytes = BytesMut::new();
                    batch.encode_row(row, formats, &mut bytes)?;
                    out.push(shown(&bytes, formats));
                }
            }
            Step::Done(tag) => out.push(tag),
            Step::Suspended => out.push("suspended".into()),
            _ => {}
        }
    }
    Ok(out)
}

fn shown(mut row: &[u8], formats: &[Format]) -> String {
    let count = row.get_i16();
    let column = |_| match row.get_i32() {
        -1 => "NULL".to_owned(),
        len => {
            let bytes = row.copy_to_bytes(len as usize);
            match formats {
                [Format::Binary] => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
                _ => String::from_utf8_lossy(&bytes).into_owned(),
            }
        }
    };
    (0..count).map(column).collect::<Vec<_>>().join("|")
}

async fn prepared(session: &mut Session, params: &[&[u8]], format: Format) -> Result<Vec<String>, SqlError> {
    let params = params.iter().map(|param| Some(Bytes::copy_from_slice(param))).collect();
    session.bind("", "s", &[format], params, &[format]).await?;
    session.execute("", 0, true).await?;
    let rows = drain(session, &[format]).await;
    session.sync().await?;
    rows
}

#[tokio::test]
async fn a_prepared_statement_is_planned_once() {
    let gateway = gateway(&local()).await;
    let mut session = connect(&gateway);
    simple(&mut session, "create table t (k int primary key, v bigint)").await.unwrap();
    simple(&mut session, "insert into t values (1, 10), (2, 20)").await.unwrap();
    session.parse("s", "update t set v = v + $1 where k = $2 returning v", &[]).await.unwrap();
    let described = session.describe_statement("s").await.unwrap();
    assert_eq!(described.param_oids, [20, 23]);
    let before = gateway.planner_runs();
    for _ in 0..3 {
        prepared(&mut session, &[&5i64.to_be_bytes(), &1i32.to_be_bytes()], Format::Binary).await.unwrap();
    }
    let rows = prepared(&mut session, &[b"-3", b"1"], Format::Text).await.unwrap();
    assert_eq!(rows, ["22", "UPDATE 1"]);
    assert_eq!(gateway.planner_runs(), before);
    // The simple protocol: the same shape, other literals.
    simple(&mut session, "select v from t where k = 1").await.unwrap();
    let before = gateway.planner_runs();
    assert_eq!(simple(&mut session, "select v from t where k = 2;").await.unwrap(), ["20", "SELECT 1"]);
    assert_eq!(gateway.planner_runs(), before);
    assert_eq!(simple(&mut session, "show flaredb.planner_runs").await.unwrap()[0], before.to_string());
}

/// What was prepared while the transaction's own TRUNCATE was in sight goes to other rows than the table has after ROLLBACK.
#[tokio::test]
async fn a_statement_prepared_in_a_transaction_that_changed_the_table_outlives_its_rollback() {
    let gateway = gateway(&local()).await;
    let mut session = connect(&gateway);
    simple(&mut session, "create table t (k int primary key)").await.unwrap();
    simple(&mut session, "insert into t values (1)").await.unwrap();
    simple(&mut session, "begin").await.unwrap();
    simple(&mut session, "truncate t").await.unwrap();
    session.parse("s", "insert into t values ($1)", &[]).await.unwrap();
    simple(&mut session, "rollback").await.unwrap();
    prepared(&mut session, &[b"2"], Format::Text).await.unwrap();
    assert_eq!(simple(&mut session, "select k from t order by k").await.unwrap(), ["1", "2", "SELECT 2"]);
    simple(&mut session, "begin").await.unwrap();
    simple(&mut session, "create table gone (k int primary key)").await.unwrap();
    session.parse("g", "select count(*) from gone", &[]).await.unwrap();
    simple(&mut session, "rollback").await.unwrap();
    session.bind("", "g", &[], Vec::new(), &[]).await.unwrap();
    let run = session.execute("", 0, true).await;
    assert_eq!(run.unwrap_err().sqlstate, SqlState::UNDEFINED_TABLE);
}

#[tokio::test]
async fn portals_give_rows_in_parts_and_pipelines_are_one_transaction() {
    let gateway = gateway(&local()).await;
    let mut session = connect(&gateway);
    simple(&mut session, "create table t (k int primary key)").await.unwrap();
    simple(&mut session, "insert into t values (1), (2), (3)").await.unwrap();
    session.parse("", "select k from t order by k", &[]).await.unwrap();
    session.bind("p", "", &[], Vec::new(), &[]).await.unwrap();
    session.execute("p", 2, false).await.unwrap();
    assert_eq!(drain(&mut session, &[]).await.unwrap(), ["1", "2", "suspended"]);
    session.execute("p", 2, false).await.unwrap();
    assert_eq!(drain(&mut session, &[]).await.unwrap(), ["3", "SELECT 3"]);
    session.sync().await.unwrap();
    // Two Executes before a Sync: the second one's error takes the first one's row away.
    session.parse("i", "insert into t values ($1)", &[]).await.unwrap();
    for value in [&b"9"[..], b"1"] {
        session.bind("", "i", &[], vec![Some(Bytes::from_static(value))], &[]).await.unwrap();
        let run = async {
            session.execute("", 0, false).await?;
            drain(&mut session, &[]).await
        };
        let run = run.await;
        assert_eq!(run.is_err(), value == b"1");
    }
    session.sync().await.unwrap();
    assert_eq!(session.status(), TransactionStatus::Idle);
    assert_eq!(simple(&mut session, "select count(*) from t").await.unwrap()[0], "3");
}

#[tokio::test]
async fn single_statements_that_conflict_are_repeated() {
    let local = local();
    let gateway = gateway(&local).await;
    let mut session = connect(&gateway);
    simple(&mut session, "create table t (k int primary key, v int)").await.unwrap();
    simple(&mut session, "insert into t values (1, 0)").await.unwrap();
    let add = |gateway: Arc<Gateway>| async move {
        let mut session = connect(&gateway);
        for _ in 0..25 {
            simple(&mut session, "update t set v = v + 1 where k = 1").await.expect("it is repeated");
        }
    };
    futures::future::join_all((0..4).map(|_| add(Arc::clone(&gateway)))).await;
    assert_eq!(simple(&mut session, "select v from t where k = 1").await.unwrap()[0], "100");
}

#[test]
fn gateways_start_together_and_see_each_others_tables() {
    on_a_server_thread(gateways_together);
}

async fn gateways_together() {
    let local = local();
    let gateways = futures::future::join_all((0..3).map(|_| gateway(&local))).await;
    let mut sessions: Vec<Session> = gateways.iter().map(connect).collect();
    simple(&mut sessions[0], "create table t (k int primary key, v int)").await.unwrap();
    simple(&mut sessions[1], "insert into t values (1, 1)").await.unwrap();
    assert_eq!(simple(&mut sessions[2], "select v from t where k = 1").await.unwrap()[0], "1");
    // Tables that are made at the same time all come about.
    let (a, rest) = sessions.split_at_mut(1);
    let both = futures::future::join(
        simple(&mut a[0], "create table a (x int)"),
        simple(&mut rest[0], "create table b (x int)"),
    );
    let (a, b) = both.await;
    assert!(a.is_ok() && b.is_ok(), "{a:?} {b:?}");
    assert_eq!(simple(&mut rest[1], "select count(*) from a, b").await.unwrap()[0], "0");
}

#[test]
fn deep_and_long_statements_are_refused_not_crashed_on() {
    on_a_server_thread(deep_and_long);
}

/// With as much stack as the server's threads have.
fn on_a_server_thread<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    std::thread::Builder::new().stack_size(sql::THREAD_STACK_BYTES).spawn(run).unwrap().join().unwrap();
}

async fn deep_and_long() {
    let gateway = gateway(&local()).await;
    let mut session = connect(&gateway);
    let deep = format!("select {}1{}", "(".repeat(10_000), ")".repeat(10_000));
    assert_eq!(simple(&mut session, &deep).await.unwrap_err().sqlstate, SqlState::STATEMENT_TOO_COMPLEX);
    let nested = format!("select {}1{}", "(".repeat(40), ")".repeat(40));
    assert_eq!(simple(&mut session, &nested).await.unwrap()[0], "1");
    let long = format!("select 1{}", " + 1".repeat(60));
    assert_eq!(simple(&mut session, &long).await.unwrap()[0], "61");
    let longer = format!("select 1{}", " + 1".repeat(50_000));
    assert_eq!(simple(&mut session, &longer).await.unwrap_err().sqlstate, SqlState::STATEMENT_TOO_COMPLEX);
    let digits = "9".repeat(1000);
    assert!(simple(&mut session, &format!("select {digits}")).await.is_err());
    assert_eq!(simple(&mut session, "select 1").await.unwrap()[0], "1");
}

#[tokio::test]
async fn a_cancel_ends_the_running_statement() {
    let gateway = gateway(&local()).await;
    let mut session = connect(&gateway);
    simple(&mut session, "create table t (k int primary key)").await.unwrap();
    simple(&mut session, "insert into t values (1)").await.unwrap();
    session.simple("select k from t order by k").await.unwrap();
    session.cancel_token().cancel();
    let mut failed = None;
    while failed.is_none() {
        match session.next().await {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => failed = Some(error.sqlstate),
        }
    }
    assert_eq!(failed, Some(SqlState::QUERY_CANCELED));
    assert_eq!(simple(&mut session, "select k from t").await.unwrap()[0], "1");
}

/// A clock for those who wait for minutes: they wait for moments.
struct Hasty(Arc<dyn kv::Clock>);

impl kv::MonotonicClock for Hasty {
    fn now(&self) -> kv::Instant {
        self.0.now()
    }
}

impl kv::Clock for Hasty {
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(if duration > Duration::from_secs(20) { Duration::from_millis(100) } else { duration })
    }
    fn wall_ms(&self) -> u64 {
        self.0.wall_ms()
    }
}

/// What was made behind a savepoint and taken back is deleted: rows, entries, and the notes about them.
#[tokio::test]
async fn what_a_savepoint_takes_back_is_deleted() {
    let mut local = local();
    local.clock = Arc::new(Hasty(local.clock.clone()));
    let gateway = gateway(&local).await;
    let mut session = connect(&gateway);
    let statements = [
        "create table t (k int primary key)",
        "insert into t values (1)",
        "begin",
        "create table u (k int primary key, v int)",
        "insert into u values (1, 1)",
        "savepoint a",
        "create index tk on t (k)",
        "insert into u values (2, 2)",
        "create index uv on u (v)",
        "create table w (k int)",
        "insert into w values (1)",
        "truncate t",
        "insert into t values (5)",
        "rollback to a",
        "insert into u values (3, 3)",
        "savepoint b",
        "insert into u values (4, 4)",
        "rollback to b",
        "rollback to a",
        "commit",
    ];
    for sql in statements {
        simple(&mut session, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    let client = &local.client;
    let kept = async {
        loop {
            let txn = client.begin().await.unwrap();
            let range =
                proto::KeyRange::new(proto::keyspace::table_prefix(1, 100), proto::keyspace::table_prefix(2, 0));
            let mut scan = txn.scan(kv::ScanOptions { range, ..Default::default() });
            let mut rows = 0;
            while let Some(page) = scan.next_page().await.unwrap() {
                rows += page.rows.len();
            }
            if rows <= 2 && sql::catalog::garbage::notes(&txn).await.unwrap().is_empty() {
                return rows;
            }
            tokio::task::yield_now().await;
        }
    };
    let kept = tokio::time::timeout(Duration::from_secs(20), kept).await;
    assert_eq!(kept, Ok(2), "a row of each table");
    assert_eq!(simple(&mut session, "select * from t").await.unwrap(), ["1", "SELECT 1"]);
    assert_eq!(simple(&mut session, "select * from u").await.unwrap(), ["1|1", "SELECT 1"]);
}
