//! The past is read from a node that leads nothing of it, also while its leader is gone.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::{
    cluster::{Cluster, Node},
    wait::{self, Stopwatch},
};
use tokio_postgres::Client;

use crate::metrics::{scrape, sum};

/// Replicas are readable a second or two behind; the machine is busy.
const LIMIT: Duration = Duration::from_secs(60);
/// Nobody has to be elected for an answer; the machine is busy here, too. That no leader is asked the counters say.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// Requests that the replicas of a node have answered, and those that were left to leaders.
async fn past_reads(node: &Node) -> Result<(f64, f64)> {
    let samples = scrape(node).await?;
    let of = |outcome: &str| sum(&samples, &format!("flaredb_past_reads_total{{outcome=\"{outcome}\""));
    Ok((of("served"), of("behind") + of("locked")))
}

async fn count(client: &Client, sql: &str) -> Result<i64> {
    Ok(client.query_one(sql, &[]).await.with_context(|| sql.to_owned())?.get(0))
}

fn pd_leader(cluster: &Cluster) -> Result<usize> {
    let answer = cluster.nodes()[0].ctl(&["pd", "leader"])?;
    let address = answer["address"].as_str().context("pd leader has an address")?;
    cluster.nodes().iter().position(|n| n.address() == address).context("PD's leader is a node")
}

/// Has a node that is not PD lead the regions of a table and of the catalog; (that node, the third one).
async fn lead_elsewhere(cluster: &Cluster) -> Result<(usize, usize)> {
    let pd = pd_leader(cluster)?;
    let (leader, reader) = ((pd + 1) % 3, (pd + 2) % 3);
    let node = &cluster.nodes()[reader];
    let stores = node.ctl(&["store", "list"])?;
    let stores = stores.as_array().context("stores")?;
    let address = cluster.nodes()[leader].address();
    let store = stores.iter().find(|store| store["address"] == *address).context("its store")?["id"].clone();
    let regions = node.ctl(&["region", "list"])?;
    for region in regions.as_array().context("regions")? {
        let id = region["id"].to_string();
        if id != "1" && region["leader_store"] != store {
            node.ctl(&["region", "transfer-leader", &id, &store.to_string()])?;
        }
    }
    Ok((leader, reader))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_is_read_while_its_leader_is_gone() {
    let mut cluster = Cluster::start_ready(3).await;
    cluster.nodes()[0].ctl(&["scheduler", "disable", "balance-leader"]).expect("switches");
    let writer = cluster.nodes()[0].connect().await.expect("the cluster is ready");
    writer.batch_execute("CREATE TABLE past (id int PRIMARY KEY); INSERT INTO past VALUES (1)").await.expect("a row");
    let (leader, reader) =
        wait::until("one node leads all but PD", LIMIT, || async { lead_elsewhere(&cluster).await }).await;
    let node = &cluster.nodes()[reader];
    let client = node.connect().await.expect("it serves");
    let moment: String = client.query_one("SELECT clock_timestamp()::text", &[]).await.expect("a time").get(0);
    client.batch_execute("INSERT INTO past VALUES (2)").await.expect("a row");
    let then = format!("SELECT count(*) FROM past AS OF SYSTEM TIME '{moment}'");
    wait::until("its own replicas answer alone", LIMIT, || async {
        let before = past_reads(node).await?;
        ensure!(count(&client, &then).await? == 1, "the row came later");
        let after = past_reads(node).await?;
        ensure!(after.0 > before.0 && after.1 == before.1, "served, left to leaders: {before:?}, {after:?}");
        Ok(())
    })
    .await;
    client.batch_execute("SET flaredb.read_from = 'nearest'").await.expect("a setting");
    let now = "SELECT count(*) FROM past";
    wait::until("what is some seconds old is seen nearby", LIMIT, || async {
        // Used by its writers, too.
        client.batch_execute("UPDATE past SET id = id WHERE id = 1").await?;
        let before = past_reads(node).await?;
        ensure!(count(&client, now).await? == 2, "not yet");
        let after = past_reads(node).await?;
        ensure!(after.0 > before.0 && after.1 == before.1, "served, left to leaders: {before:?}, {after:?}");
        Ok(())
    })
    .await;

    cluster.kill(leader);
    let node = &cluster.nodes()[reader];
    let before = past_reads(node).await.expect("numbers");
    let watch = Stopwatch::start();
    assert_eq!(count(&client, now).await.expect("an answer"), 2);
    assert_eq!(count(&client, &then).await.expect("an answer"), 1);
    let took = watch.elapsed();
    let after = past_reads(node).await.expect("numbers");
    println!("two answers {took:?} after the kill; served, left to leaders: {before:?}, {after:?}");
    assert!(took < ANSWER_LIMIT, "{took:?}");
    assert!(after.0 > before.0 && after.1 == before.1, "served, left to leaders: {before:?}, {after:?}");
    // And as it is now, once another one leads.
    client.batch_execute("SET flaredb.read_from = 'leader'").await.expect("a setting");
    wait::until("the present is read again", LIMIT, || async {
        ensure!(count(&client, now).await? == 2, "rows are missing");
        Ok(())
    })
    .await;
}
