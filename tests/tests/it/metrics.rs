//! `/metrics` of a real process: the counters move.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tests::{
    cluster::{Cluster, Node},
    wait,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Counters are there as soon as the node serves; the machine is busy.
const LIMIT: Duration = Duration::from_secs(30);

/// Sample name with its labels → value.
pub async fn scrape(node: &Node) -> Result<BTreeMap<String, f64>> {
    let mut socket = TcpStream::connect(node.http_address()).await?;
    socket.write_all(b"GET /metrics HTTP/1.0\r\nHost: node\r\n\r\n").await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").context("a head and a body")?;
    ensure!(head.contains("200 OK"), "{head}");
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').with_context(|| format!("a sample: {line}"))?;
        Ok((name.to_string(), value.parse::<f64>().with_context(|| format!("a number: {line}"))?))
    };
    body.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
}

/// The sum of all samples that begin so.
pub fn sum(samples: &BTreeMap<String, f64>, prefix: &str) -> f64 {
    samples.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, value)| value).sum()
}

#[tokio::test]
async fn a_nodes_counters_move_with_what_it_does() {
    let cluster = Cluster::start_ready(1).await;
    let node = &cluster.nodes()[0];
    let before = scrape(node).await.expect("numbers");
    let client = node.connect().await.expect("the cluster is ready");
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)").await.expect("rows");
    let region = node.ctl(&["region", "list"]).expect("regions");
    let region = region.as_array().and_then(|all| all.last()).and_then(|r| r["id"].as_u64()).expect("a region");
    node.ctl(&["region", "split", &region.to_string(), "--key", "fffffff0"]).expect("a split");
    let after = wait::until("the counters have moved", LIMIT, || async {
        let after = scrape(node).await?;
        for name in [
            "flaredb_store_proposals_total{class=\"user\",outcome=\"applied\"",
            "flaredb_store_propose_seconds_count{class=\"user\"",
            "flaredb_store_applied_entries_total{class=\"user\"",
            "flaredb_store_apply_seconds_count",
            "flaredb_store_log_write_seconds_count",
            "flaredb_store_log_write_bytes_sum",
            "flaredb_store_regions{class=\"user\"",
            "flaredb_store_region_leaders{class=\"user\"",
            "flaredb_pd_timestamps_total",
            "flaredb_pd_operators_total{outcome=\"done\",rule=\"admin\"}",
            "flaredb_sql_statements_total",
            "raft_engine_",
        ] {
            ensure!(sum(&after, name) > sum(&before, name), "{name} stands still");
        }
        Ok(after)
    })
    .await;
    assert_eq!(after["flaredb_up"], 1.0);
    assert_eq!(sum(&after, "flaredb_store_regions{class=\"meta\""), 1.0);
    let stores = node.ctl(&["store", "list"]).expect("stores");
    assert_eq!(stores[0]["snapshots_received"], 0, "{stores}");
}
