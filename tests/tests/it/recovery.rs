//! Quorum lost for good, on real processes: two of three machines burn down, the third goes on by hand.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use tests::{
    cluster::{Cluster, Node},
    wait,
};

use super::placement::{fill, rows, store_of, whole};

/// One node elects itself, region by region.
const ALONE_LIMIT: Duration = Duration::from_secs(60);

fn refused(node: &Node, args: &[&str], reason: &str) {
    let said = format!("{:#}", node.ctl(args).expect_err("refused"));
    assert!(said.contains(reason), "{args:?}: {said}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Surveys, plans and applies on node 0, whose companions are lost; looks at what is refused on the way.
fn recover(cluster: &mut Cluster, lost: &str, one_of_them: &str) {
    let dir = cluster.dir().to_owned();
    let (survey, plan) = (dir.join("survey"), dir.join("plan"));
    let (survey, plan) = (text(&survey), text(&plan));
    let data = cluster.nodes()[0].data_dir().to_owned();
    let data = text(&data);
    let take = ["unsafe-recover", "survey", "--data-dir", data, "--out", survey];
    refused(&cluster.nodes()[0], &take, "in use by another flaredb process");
    cluster.kill(0);
    let node = &cluster.nodes()[0];
    node.ctl(&take).expect("a stopped store is surveyed");

    let make = |lost| node.ctl(&["unsafe-recover", "plan", "--lost", lost, "--out", plan, survey]);
    let said = |lost| format!("{:#}", make(lost).expect_err("refused"));
    assert!(said(one_of_them).contains("neither surveyed nor named lost"));
    assert!(said("77").contains("no surveyed store has heard of store 77"));
    refused(node, &["unsafe-recover", "plan", "--lost", lost, "--out", plan, plan], "can't be read");
    let regions = make(lost).expect("a plan");
    assert!(regions.as_array().is_some_and(|l| l.len() >= 4), "{regions}");

    let apply = ["unsafe-recover", "apply", "--data-dir", data, "--plan", plan];
    node.ctl(&apply).expect("shows what it would do");
    assert!(!node.data_dir().join("UNSAFE-RECOVERY.txt").exists(), "nothing was changed");
    let yes = [&apply[..], &["--yes"]].concat();
    let done = node.ctl(&yes).expect("is carried out");
    // The survivor may not have applied the split; then the plan does not know what comes out of it.
    assert!(done.as_array().is_some_and(|l| l.len() == 5), "{done}");
    node.ctl(&yes).expect("and again");
    let note = fs::read_to_string(node.data_dir().join("UNSAFE-RECOVERY.txt")).expect("a note");
    assert!(note.contains("region 1 goes on alone"), "{note}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_lost_its_quorum_goes_on_with_one_store() {
    let mut cluster = Cluster::start_ready(3).await;
    fill(&cluster.nodes()[0], 2_000).await;
    let node = &cluster.nodes()[0];
    node.ctl(&["region", "split", "2", "--at-half"]).expect("splits");
    let ids = [1, 2].map(|n| store_of(node, &cluster.nodes()[n]).expect("it is there"));
    // What was acknowledged with a quorum elsewhere may be lost; this was read here, so it is not.
    assert_eq!(rows(node).await.expect("reads"), 2_000);
    cluster.kill_all(&[1, 2]);
    for n in [1, 2] {
        fs::remove_dir_all(cluster.nodes()[n].data_dir()).expect("it burns");
    }

    recover(&mut cluster, &format!("{},{}", ids[0], ids[1]), &ids[0].to_string());
    cluster.start(0);
    let node = &cluster.nodes()[0];
    let found = wait::until("the survivor serves", ALONE_LIMIT, || rows(node)).await;
    assert_eq!(found, 2_000);
    let client = node.connect().await.expect("it serves");
    client.batch_execute("INSERT INTO filled VALUES (5000, 'after')").await.expect("writes");
    client.batch_execute("CREATE TABLE later (id int PRIMARY KEY)").await.expect("schema changes");
    assert!(node.log().contains("unsafe recovery was carried out here"));
    for id in ids {
        let shown = node.ctl(&["store", "list"]).expect("a list");
        let row = shown.as_array().and_then(|l| l.iter().find(|r| r["id"] == id).cloned());
        assert_eq!(row.expect("it stays on the list")["state"], "removed");
    }

    let joined = [cluster.join(), cluster.join()];
    let node = &cluster.nodes()[0];
    whole(node, None).await;
    wait::until("new nodes serve", ALONE_LIMIT, || async {
        for n in joined {
            ensure!(rows(&cluster.nodes()[n]).await? == 2_001, "rows are missing");
        }
        let client = cluster.nodes()[joined[1]].connect().await?;
        client.batch_execute("INSERT INTO later VALUES (1)").await.context("a write through a new node")
    })
    .await;
}
