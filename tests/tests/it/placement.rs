//! Regions that live, on real processes: by hand with `ctl`, and by PD itself.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    cluster::{Cluster, Node},
    wait,
};

/// A step is a Raft round or two; the machine is busy.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);

fn regions(node: &Node) -> Result<Vec<Value>> {
    node.ctl(&["region", "list"])?.as_array().cloned().context("a list")
}

/// Regions each store leads.
fn leaders(node: &Node) -> Result<BTreeMap<u64, usize>> {
    let mut led = BTreeMap::new();
    for region in regions(node)? {
        *led.entry(region["leader_store"].as_u64().with_context(|| format!("nobody leads {region}"))?).or_default() +=
            1;
    }
    Ok(led)
}

fn refused(node: &Node, args: &[&str], reason: &str) {
    let said = format!("{:#}", node.ctl(args).expect_err("refused"));
    assert!(said.contains(reason), "{args:?}: {said}");
}

async fn fill(node: &Node, rows: usize) {
    let client = node.connect().await.expect("the cluster is ready");
    client.batch_execute("CREATE TABLE filled (id int PRIMARY KEY, body text)").await.expect("a table");
    let insert = format!("INSERT INTO filled SELECT g, repeat('x', 100) FROM generate_series(1, {rows}) AS s(g)");
    client.batch_execute(&insert).await.expect("rows");
}

async fn rows(node: &Node) -> Result<i64> {
    Ok(node.connect().await?.query_one("SELECT count(*) FROM filled", &[]).await?.get(0))
}

/// The key (hex) of a row of `filled`, from what EXPLAIN says of a look-up.
async fn largest_region(node: &Node) -> u64 {
    wait::until("sizes are reported", CHANGE_LIMIT, || async {
        let list = node.ctl(&["region", "list", "--size", "--limit", "1"])?;
        let largest = list.as_array().and_then(|l| l.first()).context("a region")?;
        ensure!(largest["bytes"].as_u64() > Some(100_000), "{largest}");
        largest["id"].as_u64().context("an id")
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_are_split_and_led_by_hand() {
    let cluster = Cluster::start_ready(3).await;
    let node = &cluster.nodes()[0];
    fill(node, 2_000).await;
    let id = largest_region(node).await.to_string();
    let before = regions(node).expect("a list").len();

    node.ctl(&["region", "split", &id, "--at-half"]).expect("splits");
    wait::until("both parts are led", CHANGE_LIMIT, || async {
        ensure!(regions(node)?.len() == before + 1, "not yet");
        leaders(node).map(drop)
    })
    .await;
    assert_eq!(rows(&cluster.nodes()[1]).await.expect("reads"), 2_000);

    node.ctl(&["scheduler", "disable", "balance-leader"]).expect("switches");
    for store in ["1", "2", "3"] {
        let shown = node.ctl(&["region", "transfer-leader", &id, store]).expect("moves");
        assert_eq!(shown["leader_store"].to_string(), store);
    }
    node.ctl(&["scheduler", "enable", "balance-leader"]).expect("switches");
    let done = node.ctl(&["operator", "list", "--all", "--region", &id]).expect("a list");
    assert!(done.as_array().is_some_and(|l| l.iter().any(|op| op["state"] == "done")), "{done}");
    wait::until("leaders are even", CHANGE_LIMIT, || async {
        let led = leaders(node)?;
        let (most, least) = (led.values().max().unwrap_or(&0), led.values().min().unwrap_or(&0));
        ensure!(led.len() == 3 && most - least <= 2, "{led:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_with_the_reason() {
    let cluster = Cluster::start_ready(3).await;
    let node = &cluster.nodes()[1];
    refused(node, &["region", "show", "99"], "no region 99");
    refused(node, &["region", "split", "2"], "--key HEX or --at-half");
    refused(node, &["region", "split", "2", "--key", "00"], "region 1, not 2");
    refused(node, &["region", "split", "2", "--key", "xyz"], "not hexadecimal");
    refused(node, &["region", "split", "1", "--at-half"], "region 1 is PD's");
    refused(node, &["region", "split", "2", "--at-half", "--epoch", "9/9"], "not 9/9");
    refused(node, &["region", "merge", "2", "4"], "not neighbours");
    refused(node, &["region", "move", "2", "--from", "1", "--to", "1"], "to the same store");
    refused(node, &["region", "move", "2", "--from", "1", "--to", "2"], "has a replica on store 2 already");
    refused(node, &["region", "move", "2", "--from", "1", "--to", "7"], "no store 7");
    refused(node, &["region", "transfer-leader", "2", "7"], "no store 7");
    refused(node, &["store", "drain", "1"], "2 stores would be left for regions of 3 replicas");
    refused(node, &["store", "remove", "1"], "2 stores would be left for regions of 3 replicas");
    refused(node, &["store", "drain", "7"], "no store 7");
    refused(node, &["operator", "cancel", "7"], "no operator 7");
    refused(node, &["scheduler", "disable", "nothing"], "balance-region");
}
