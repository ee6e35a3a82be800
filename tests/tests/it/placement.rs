//! Regions that live, on real processes: by hand with `ctl`, and by PD itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    cluster::{Cluster, Node},
    wait,
};

/// A step is a Raft round or two; the machine is busy.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// Every region needs a snapshot and four steps.
const MOVE_LIMIT: Duration = Duration::from_secs(120);
/// The shortest there is.
const DOWN_AFTER: &[&str] = &["--down-after", "10"];

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

/// The id of the store at a node's address.
pub(super) fn store_of(asked: &Node, node: &Node) -> Result<u64> {
    let list = asked.ctl(&["store", "list"])?;
    let rows = list.as_array().context("a list")?;
    let own = rows.iter().find(|row| row["address"] == node.address().as_str() && row["state"] == "up");
    own.and_then(|row| row["id"].as_u64()).with_context(|| format!("{} is not there: {list}", node.address()))
}

/// The stores that each region has voters on; learners and members of a joint state count as none.
fn voters(node: &Node) -> Result<Vec<BTreeSet<u64>>> {
    let stores = |region: &Value| -> Result<BTreeSet<u64>> {
        let peers = region["peers"].as_array().context("peers")?;
        let text = peers.iter().filter_map(Value::as_str).filter(|p| !p.contains(' '));
        text.map(|p| p.split_once("@s").and_then(|(_, s)| s.parse().ok()).context("a store")).collect()
    };
    regions(node)?.iter().map(stores).collect()
}

/// Waits until every region has three voters, none of them on `without`.
pub(super) async fn whole(node: &Node, without: Option<u64>) {
    wait::until("every region is whole", MOVE_LIMIT, || async {
        let all = voters(node)?;
        let fine = |on: &BTreeSet<u64>| on.len() == 3 && without.is_none_or(|store| !on.contains(&store));
        ensure!(!all.is_empty() && all.iter().all(fine), "{all:?}");
        Ok(())
    })
    .await;
}

/// Starts a fourth node and waits until it is a store; its index and id.
async fn fourth(cluster: &mut Cluster) -> (usize, u64) {
    let index = cluster.join();
    let (first, new) = (&cluster.nodes()[0], &cluster.nodes()[index]);
    let id = wait::until("it is registered", CHANGE_LIMIT, || async { store_of(first, new) }).await;
    (index, id)
}

/// One session that inserts and wants no error.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Writer {
    async fn start(node: &Node) -> Writer {
        let client = node.connect().await.expect("the cluster is ready");
        client.batch_execute("CREATE TABLE written (id bigint PRIMARY KEY)").await.expect("a table");
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), written.clone());
        let task = tokio::spawn(async move {
            let insert = client.prepare("INSERT INTO written VALUES ($1)").await?;
            while !stopped.load(Ordering::Relaxed) {
                let id = counted.load(Ordering::Relaxed) as i64;
                client.execute(&insert, &[&id]).await.with_context(|| format!("insert {id}"))?;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Writer { stop, written, task }
    }

    /// How many rows it wrote, without an error.
    async fn finish(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no panic").expect("no statement failed");
        self.written.load(Ordering::Relaxed) as i64
    }
}

fn refused(node: &Node, args: &[&str], reason: &str) {
    let said = format!("{:#}", node.ctl(args).expect_err("refused"));
    assert!(said.contains(reason), "{args:?}: {said}");
}

pub(super) async fn fill(node: &Node, rows: usize) {
    let client = node.connect().await.expect("the cluster is ready");
    client.batch_execute("CREATE TABLE filled (id int PRIMARY KEY, body text)").await.expect("a table");
    let insert = format!("INSERT INTO filled SELECT g, repeat('x', 100) FROM generate_series(1, {rows}) AS s(g)");
    client.batch_execute(&insert).await.expect("rows");
}

pub(super) async fn rows(node: &Node) -> Result<i64> {
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
        // On a machine with much to do a peer may seem silent for a moment, and is refused then.
        let shown =
            wait::until("it is moved", CHANGE_LIMIT, || async { node.ctl(&["region", "transfer-leader", &id, store]) })
                .await;
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

/// The region of `rows` is cut in half; the ids of both halves.
async fn halves(node: &Node, id: &str) -> (String, String) {
    let known: BTreeSet<_> = regions(node).expect("a list").iter().map(|r| r["id"].to_string()).collect();
    node.ctl(&["region", "split", id, "--at-half"]).expect("splits");
    let new = wait::until("the other half is led", CHANGE_LIMIT, || async {
        leaders(node)?;
        let ids = regions(node)?.iter().map(|r| r["id"].to_string()).find(|id| !known.contains(id));
        ids.context("there is no new region")
    })
    .await;
    (id.into(), new)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_are_merged_by_hand_under_load_and_over_a_kill() {
    let mut cluster = Cluster::start_ready(3).await;
    let node = &cluster.nodes()[0];
    fill(node, 2_000).await;
    let writer = Writer::start(&cluster.nodes()[1]).await;
    let id = largest_region(node).await.to_string();
    let before = regions(node).expect("a list").len();
    // Either half takes the other one over.
    let (left, right) = halves(node, &id).await;
    let shown = node.ctl(&["region", "merge", &right, &left]).expect("merges");
    assert_eq!(shown["id"].to_string(), left);
    let (left, right) = halves(node, &left).await;
    node.ctl(&["region", "merge", &left, &right]).expect("merges");
    assert_eq!(regions(node).expect("a list").len(), before);
    assert_eq!(rows(&cluster.nodes()[2]).await.expect("reads"), 2_000);
    refused(node, &["region", "merge", &left, &right], "no region");
    let written = writer.finish().await;

    let (left, right) = halves(node, &right).await;
    node.ctl(&["region", "merge", &right, &left, "--no-wait"]).expect("is planned");
    cluster.kill(2);
    cluster.start(2);
    let (node, back) = (&cluster.nodes()[0], &cluster.nodes()[2]);
    wait::until("it is merged all the same", MOVE_LIMIT, || async {
        // Whatever became of the first attempt.
        let _ = node.ctl(&["region", "merge", &right, &left]);
        let now = regions(node)?.len();
        ensure!(now == before, "{now} regions, {before} before");
        Ok(())
    })
    .await;
    let client = wait::until("it serves SQL", CHANGE_LIMIT, || async { back.connect().await }).await;
    let found: i64 = client.query_one("SELECT count(*) FROM written", &[]).await.expect("reads").get(0);
    assert_eq!((rows(back).await.expect("reads"), found), (2_000, written));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_with_the_reason() {
    let cluster = Cluster::start_ready(3).await;
    let node = &cluster.nodes()[1];
    refused(node, &["region", "show", "99"], "no region 99");
    refused(node, &["region", "split", "99", "--at-half"], "no region 99");
    refused(node, &["region", "move", "99", "--from", "1", "--to", "2"], "no region 99");
    refused(node, &["region", "transfer-leader", "99", "1"], "no region 99");
    refused(node, &["region", "transfer-leader", "2", "1", "--epoch", "x"], "not CONF/VERSION");
    refused(node, &["region", "split", "2"], "--key HEX or --at-half");
    refused(node, &["region", "split", "2", "--key", "00"], "region 1, not 2");
    refused(node, &["region", "split", "2", "--key", "xyz"], "not hexadecimal");
    refused(node, &["region", "split", "1", "--at-half"], "region 1 is PD's");
    refused(node, &["region", "split", "2", "--at-half", "--epoch", "9/9"], "not 9/9");
    refused(node, &["region", "merge", "2", "4"], "not neighbours");
    refused(node, &["region", "merge", "2", "2"], "not neighbours");
    refused(node, &["region", "merge", "2", "1"], "region 1 is PD's");
    refused(node, &["region", "merge", "2", "99"], "no region 99");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_are_down_get_nothing() {
    let mut cluster = Cluster::launch_with(3, DOWN_AFTER, false);
    cluster.wait_ready().await;
    for name in ["balance-region", "balance-leader", "hot-region"] {
        cluster.nodes()[0].ctl(&["scheduler", "disable", name]).expect("switches");
    }
    let (index, id) = fourth(&mut cluster).await;
    let dead = store_of(&cluster.nodes()[0], &cluster.nodes()[2]).expect("it is there").to_string();
    // Nobody is to repair what stays: the fourth goes first.
    cluster.kill(index);
    let (node, to) = (&cluster.nodes()[0], id.to_string());
    wait::until("its silence is noticed", CHANGE_LIMIT, || async {
        let shown = node.ctl(&["store", "show", &to])?;
        ensure!(shown["state"] != "up", "{shown}");
        Ok(())
    })
    .await;
    refused(node, &["region", "move", "2", "--from", "1", "--to", &to], "it takes no replicas");
    refused(node, &["store", "drain", &dead], "2 stores would be left for regions of 3 replicas");
    cluster.kill(2);
    let node = &cluster.nodes()[0];
    wait::until("its silence is noticed", CHANGE_LIMIT, || async {
        let shown = node.ctl(&["store", "show", &dead])?;
        ensure!(shown["state"] != "up", "{shown}");
        leaders(node).map(drop)
    })
    .await;
    refused(node, &["region", "transfer-leader", "2", &dead], "does not answer");
    // A quorum is left, and not one voter more.
    refused(node, &["store", "remove", "1"], "1 stores would be left for regions of 3 replicas");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_pd_is_waited_for() {
    let cluster = Cluster::start_ready(3).await;
    let node = &cluster.nodes()[0];
    node.ctl(&["scheduler", "disable", "balance-leader"]).expect("switches");
    // Each time PD is another one, and has heard of nothing yet when the next request comes.
    for store in ["1", "2", "3", "1", "2"] {
        node.ctl(&["region", "transfer-leader", "1", store]).expect("moves");
        node.ctl(&["region", "show", "3"]).expect("is known");
        node.ctl(&["region", "transfer-leader", "2", store]).expect("moves");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fourth_node_gets_replicas_and_leaderships() {
    let mut cluster = Cluster::start_ready(3).await;
    fill(&cluster.nodes()[0], 500).await;
    let writer = Writer::start(&cluster.nodes()[1]).await;
    let (index, id) = fourth(&mut cluster).await;
    let (first, new) = (&cluster.nodes()[0], &cluster.nodes()[index]);
    wait::until("it has its share", MOVE_LIMIT, || async {
        let on_it = voters(first)?.iter().filter(|on| on.contains(&id)).count();
        let led = leaders(first)?.get(&id).copied().unwrap_or(0);
        // PD's region stays where it is: nine replicas over four stores.
        ensure!(on_it >= 2 && led >= 1, "{on_it} replicas, {led} leaderships");
        Ok(())
    })
    .await;
    whole(first, None).await;
    let written = writer.finish().await;
    let sql = wait::until("it serves SQL", CHANGE_LIMIT, || async { new.connect().await }).await;
    assert_eq!(rows(new).await.expect("reads"), 500);
    let found: i64 = sql.query_one("SELECT count(*) FROM written", &[]).await.expect("reads").get(0);
    assert_eq!(found, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_gone_for_good_is_replaced() {
    let mut cluster = Cluster::launch_with(3, DOWN_AFTER, false);
    cluster.wait_ready().await;
    fill(&cluster.nodes()[0], 500).await;
    let lost = store_of(&cluster.nodes()[0], &cluster.nodes()[2]).expect("it is there");
    fourth(&mut cluster).await;
    cluster.kill(2);
    let first = &cluster.nodes()[0];
    whole(first, Some(lost)).await;
    assert_eq!(rows(first).await.expect("reads"), 500);
    // It can be taken off the list, twice.
    for _ in 0..2 {
        let gone = first.ctl(&["store", "remove", &lost.to_string()]).expect("nothing is left on it");
        assert_eq!(gone["state"], "removed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_drained_and_removed_under_load() {
    let mut cluster = Cluster::start_ready(3).await;
    fill(&cluster.nodes()[0], 500).await;
    fourth(&mut cluster).await;
    let writer = Writer::start(&cluster.nodes()[0]).await;
    let (first, leaver) = (&cluster.nodes()[0], &cluster.nodes()[2]);
    let id = store_of(first, leaver).expect("it is there");
    let gone = first.ctl(&["store", "remove", &id.to_string()]).expect("its replicas go elsewhere");
    assert_eq!(gone["state"], "removed");
    let all = voters(first).expect("a list");
    assert!(all.iter().all(|on| on.len() == 3 && !on.contains(&id)), "{all:?}");
    let written = writer.finish().await;
    // Its process ends by itself, and says why; started again it does the same.
    for start_again in [true, false] {
        let status = wait::until("the removed node ends", CHANGE_LIMIT, || {
            let ended = cluster.ended(2);
            async move { ended.context("it runs") }
        })
        .await;
        assert_eq!(status.code(), Some(1));
        if start_again {
            cluster.start(2);
        }
    }
    assert!(cluster.nodes()[2].log().contains(&format!("store {id} was removed from the cluster: this node ends")));
    let client = cluster.nodes()[1].connect().await.expect("it serves");
    let found: i64 = client.query_one("SELECT count(*) FROM written", &[]).await.expect("reads").get(0);
    assert!(written > 0 && found == written, "{found} rows, {written} were acknowledged");
    let shown: i64 = client
        .query_one("SELECT count(*) FROM flaredb.stores WHERE state = 'removed'", &[])
        .await
        .expect("reads")
        .get(0);
    assert_eq!(shown, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_is_seen_as_tables() {
    let cluster = Cluster::start_ready(3).await;
    let client = cluster.nodes()[0].connect().await.expect("the cluster is ready");
    for _ in 0..2 {
        // The second time the plan is in the cache; its rows are not.
        let sql = "SELECT count(*), count(DISTINCT leader_store) FROM flaredb.regions";
        let row = client.query_one(sql, &[]).await.expect("reads");
        assert_eq!(row.get::<_, i64>(0), 4);
        client.batch_execute("SELECT * FROM flaredb.operators; SELECT * FROM flaredb.stores").await.expect("reads");
    }
    let sql = "SELECT count(*) FROM flaredb.region_peers p JOIN flaredb.stores s USING (store_id) \
               WHERE p.role = 'voter' AND s.state = 'up'";
    assert_eq!(client.query_one(sql, &[]).await.expect("reads").get::<_, i64>(0), 12);
    client.batch_execute("DELETE FROM flaredb.regions").await.expect_err("they are PD's");
}
