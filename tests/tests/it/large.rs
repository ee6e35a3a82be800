//! Large transactions, and clients that behave badly in them: memory stays bounded, and nothing is left locked.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{cluster::Cluster, wait};
use tokio_postgres::{Client, NoTls, error::SqlState};

/// For what the cluster does on its own.
const LIMIT: Duration = Duration::from_secs(60);
/// Rows that take more than the memory of one transaction.
const ROWS: i64 = 300_000;
/// Memory of a process at most, in MiB: a debug build with its caches, and far below what the rows of these transactions would take.
const MEMORY_MIB: u64 = 900;

/// The highest memory use of a process so far, in MiB.
fn peak(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib >> 10)
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.expect("an answer").get(0)
}

/// Until nobody is in the way of changing all rows.
async fn free(client: &Client) {
    wait::until("no row is locked", LIMIT, || async {
        client
            .batch_execute("SET lock_timeout = '1s'; BEGIN; SELECT 1 FROM t WHERE id % 1000 = 7 FOR UPDATE; ROLLBACK")
            .await?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_rows_change_in_one_transaction() {
    let cluster = Cluster::start_ready(3).await;
    let (client, other) = (cluster.nodes()[0].connect().await.unwrap(), cluster.nodes()[1].connect().await.unwrap());
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, n int, s text)").await.unwrap();
    let fill =
        format!("INSERT INTO t SELECT i, 0, 'some text that is here to take room' FROM generate_series(1, {ROWS}) i");
    client.batch_execute(&fill).await.unwrap();
    client.batch_execute("BEGIN; UPDATE t SET n = n + 1; SAVEPOINT a; UPDATE t SET n = n + 100").await.unwrap();
    // Nobody waits for it who only reads.
    assert_eq!(number(&other, "SELECT sum(n) FROM t").await, 0);
    assert_eq!(number(&client, "SELECT sum(n) FROM t").await, 101 * ROWS);
    client.batch_execute("ROLLBACK TO a; DELETE FROM t WHERE id % 2 = 0").await.unwrap();
    assert_eq!(number(&client, "SELECT sum(n) FROM t").await, ROWS / 2);
    assert_eq!(number(&other, "SELECT sum(n) FROM t").await, 0);
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(number(&other, "SELECT sum(n) FROM t").await, ROWS / 2);
    for node in cluster.nodes() {
        let used = peak(node.pid().expect("it runs")).unwrap();
        assert!(used < MEMORY_MIB, "a node has used {used} MiB");
    }
    // A client that vanishes leaves nothing locked, and nothing written.
    let (leaving, connection) = tokio_postgres::connect(&cluster.nodes()[0].connection(), NoTls).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "the client's own task")]
    let connection = tokio::spawn(connection);
    leaving.batch_execute("BEGIN; UPDATE t SET n = 7").await.unwrap();
    connection.abort();
    free(&other).await;
    assert_eq!(number(&other, "SELECT sum(n) FROM t").await, ROWS / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_savepoints_and_an_idle_client() {
    let cluster = Cluster::start_ready(1).await;
    let (client, other) = (cluster.nodes()[0].connect().await.unwrap(), cluster.nodes()[0].connect().await.unwrap());
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, n int)").await.unwrap();
    // Nested ones, and back to the middle.
    let nested: Vec<String> = (1..=10_000).map(|n| format!("SAVEPOINT s{n}; INSERT INTO t VALUES ({n}, 0)")).collect();
    client.batch_execute(&format!("BEGIN; {}", nested.join(";"))).await.unwrap();
    client.batch_execute("ROLLBACK TO s5001").await.unwrap();
    assert_eq!(number(&client, "SELECT count(*) FROM t").await, 5000);
    // One after the other, as drivers make them.
    let drivers: Vec<String> =
        (1..=10_000).map(|n| format!("SAVEPOINT d; INSERT INTO t VALUES ({}, 1); RELEASE d", n + 100_000)).collect();
    client.batch_execute(&drivers.join(";")).await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(number(&other, "SELECT count(*) FROM t").await, 15_000);

    client.batch_execute("SET idle_in_transaction_session_timeout = '300ms'").await.unwrap();
    client.batch_execute("BEGIN; UPDATE t SET n = 9 WHERE id = 1").await.unwrap();
    other.batch_execute("UPDATE t SET n = 8 WHERE id = 1").await.unwrap();
    let ended = client.batch_execute("COMMIT").await.unwrap_err();
    assert!(ended.is_closed() || ended.code() == Some(&SqlState::from_code("25P03")), "{ended}");
    assert_eq!(number(&other, "SELECT n::bigint FROM t WHERE id = 1").await, 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_races_with_cancel() {
    let cluster = Cluster::start_ready(3).await;
    let (client, other) = (cluster.nodes()[0].connect().await.unwrap(), cluster.nodes()[1].connect().await.unwrap());
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, n int)").await.unwrap();
    client.batch_execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 2000) i").await.unwrap();
    let token = client.cancel_token();
    let mut expected = 0;
    for _ in 0..30 {
        client.batch_execute("BEGIN; UPDATE t SET n = n + 1").await.unwrap();
        let (committed, cancelled) = tokio::join!(client.batch_execute("COMMIT"), token.cancel_query(NoTls));
        cancelled.unwrap();
        // The cancel may also meet what comes next.
        let after = wait::until("the session answers", LIMIT, || async {
            let row = client.query_one("SELECT min(n)::bigint, max(n)::bigint FROM t", &[]).await?;
            Ok((row.get::<_, i64>(0), row.get::<_, i64>(1)))
        })
        .await;
        match committed {
            Ok(()) => expected += 1,
            Err(error) => {
                assert!(error.code().is_some(), "{error}");
                expected += i64::from(after.0 > expected);
            }
        }
        assert_eq!(after, (expected, expected), "all of a transaction or nothing");
        ensure_idle(&client).await.unwrap();
    }
    other.batch_execute("SET lock_timeout = '20s'; UPDATE t SET n = 0").await.unwrap();
}

async fn ensure_idle(client: &Client) -> Result<()> {
    let row = client.query_one("SELECT 1", &[]).await?;
    ensure!(row.get::<_, i32>(0) == 1, "an answer");
    Ok(())
}
