//! Old versions on real processes: readable while somebody may read them, and gone afterwards.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{
    cluster::{Cluster, Node},
    wait,
};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::metrics::{scrape, sum};

/// A new PD waits out leases of 8 s, and a safe point takes some heartbeats; the machine is busy.
const LIMIT: Duration = Duration::from_secs(90);
const ROWS: u64 = 200;

async fn value(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = |m: &SimpleQueryMessage| match m {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    messages.iter().find_map(row).expect("a value")
}

async fn sqlstate(client: &Client, sql: &str) -> String {
    let error = client.batch_execute(sql).await.expect_err(sql);
    error.as_db_error().expect("the server says so").code().code().to_owned()
}

/// What all nodes have collected.
async fn collected(nodes: &[Node]) -> Result<u64> {
    let mut all = 0.0;
    for node in nodes {
        all += sum(&scrape(node).await?, "flaredb_gc_records_total");
    }
    Ok(all as u64)
}

#[tokio::test]
async fn old_versions_stay_for_their_readers_and_go() {
    let cluster = Cluster::launch_with(3, &["--gc-retention", "1"], false);
    cluster.wait_ready().await;
    let nodes = cluster.nodes();
    let client = nodes[0].connect().await.expect("a session");
    let run = async |sql: &str| client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    run("CREATE TABLE t (k int PRIMARY KEY, v int); CREATE INDEX i ON t (v)").await;
    run(&format!("INSERT INTO t SELECT n, 1 FROM generate_series(1, {ROWS}) n")).await;

    // A snapshot on another node is read again and again while everything under it is written over.
    let reader = nodes[1].connect().await.expect("a session");
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.expect("a transaction");
    assert_eq!(value(&reader, "SELECT sum(v) FROM t").await, ROWS.to_string());
    let then = value(&client, "SELECT now()").await;
    for _ in 0..4 {
        run("UPDATE t SET v = v + 1").await;
    }
    run(&format!("DELETE FROM t WHERE k > {}", ROWS / 2)).await;
    wait::until("there is a safe point", LIMIT, || async {
        ensure!(safe_point(&nodes[0]) > 0, "none yet");
        Ok(())
    })
    .await;
    assert_eq!(value(&reader, "SELECT sum(v) FROM t").await, ROWS.to_string());
    let past = format!("SELECT sum(v) FROM t AS OF SYSTEM TIME '{then}'");
    assert_eq!(value(&client, &past).await, ROWS.to_string());

    reader.batch_execute("COMMIT").await.expect("the end");
    // Four versions of each row and of its index entry, and what deletion left of half of them.
    wait::until("old versions are collected", LIMIT, || async {
        let collected = collected(nodes).await?;
        ensure!(collected >= 2 * 4 * ROWS, "{collected} records only");
        Ok(())
    })
    .await;
    assert_eq!(sqlstate(&client, &past).await, "72000");
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, (ROWS / 2).to_string());
    assert_eq!(value(&client, "SELECT sum(v) FROM t WHERE v = 5").await, (5 * ROWS / 2).to_string());
    let regions = nodes[0].ctl(&["region", "list"]).expect("regions");
    for region in regions.as_array().expect("a list") {
        let id = region["id"].to_string();
        let verified = nodes[0].verify(&id).expect("replicas hold the same");
        assert_eq!(verified["outcome"], "equal", "{verified}");
    }
}

fn safe_point(node: &Node) -> u64 {
    let status = node.ctl(&["cluster", "status"]).expect("a status");
    status["gc_safe_point"].as_u64().expect("a number")
}
