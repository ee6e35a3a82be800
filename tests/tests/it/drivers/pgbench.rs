//! pgbench: its own tables, its three scripts, in three protocol modes; then the sums must agree.

use std::process::Command;

use tests::cluster::{Cluster, Node};

fn pgbench(node: &Node, arguments: &[&str]) -> String {
    let port = node.sql_port().to_string();
    let output = Command::new("pgbench")
        .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres"])
        .args(arguments)
        .arg("postgres")
        .output()
        .expect("pgbench is installed (apt-get install postgresql)");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "pgbench {}: {err}", arguments.join(" "));
    assert!(!err.contains("aborted"), "{err}");
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sums_agree_after_all_scripts_in_all_modes() {
    let cluster = Cluster::start_ready(3).await;
    let node = &cluster.nodes()[0];
    pgbench(node, &["-i", "-q", "-s", "1"]);
    for script in ["tpcb-like", "simple-update", "select-only"] {
        for mode in ["simple", "extended", "prepared"] {
            // None is repeated: transactions that meet wait for each other.
            let options = ["-n", "-b", script, "-M", mode, "-c", "4", "-t", "20"];
            let out = pgbench(node, &options);
            assert!(out.contains("number of transactions actually processed: 80/80"), "{script} {mode}: {out}");
        }
    }
    let client = cluster.nodes()[1].connect().await.expect("a session");
    let sum = async |sql: &str| -> i64 { client.query_one(sql, &[]).await.expect(sql).get(0) };
    let history = sum("SELECT sum(delta) FROM pgbench_history").await;
    assert_eq!(sum("SELECT sum(abalance) FROM pgbench_accounts").await, history);
    assert_eq!(sum("SELECT count(*) FROM pgbench_history").await, 480);
    // simple-update leaves tellers and branches alone.
    let tellers = sum("SELECT sum(tbalance) FROM pgbench_tellers").await;
    assert_eq!(tellers, sum("SELECT sum(bbalance) FROM pgbench_branches").await);
}
