//! Who is in the cluster: founders, newcomers, and those that only look like founders. Real processes, asked with `ctl`.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    cluster::{Cluster, Node, READY_LIMIT, binary},
    ports::Port,
    wait,
};

/// A process beside a cluster; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node with a list of its own.
struct Loner {
    dir: tempfile::TempDir,
    listen: Port,
    sql: Port,
    http: Port,
}

impl Loner {
    fn new() -> Loner {
        let [listen, sql, http] = std::array::from_fn(|_| Port::reserve());
        Loner { dir: tempfile::tempdir().expect("a folder"), listen, sql, http }
    }
    fn command(&self, join: &[String]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["start", "--log", "warn", "--data-dir"])
            .arg(self.dir.path().join("data"))
            .args(["--listen", &self.listen.address(), "--join", &join.join(",")])
            .args(["--sql-listen", &self.sql.address(), "--http-listen", &self.http.address()]);
        command
    }
    fn spawn(&self, join: &[String]) -> Process {
        let mut command = self.command(join);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Process(command.spawn().expect("flaredb starts"))
    }
}

/// Waits for PD and regions alone; these tests need no SQL.
async fn founded(cluster: &Cluster) {
    wait::until("the cluster is founded", READY_LIMIT, || async {
        cluster.nodes()[0].ctl(&["cluster", "wait-ready", "--timeout", "1"]).map(drop)
    })
    .await;
}

/// Store id → (address, state), as a node tells.
fn stores(node: &Node) -> Result<BTreeMap<u64, (String, String)>> {
    let list = node.ctl(&["store", "list"])?;
    let text = |row: &Value, column: &str| row[column].as_str().unwrap_or_default().to_owned();
    let row = |row: &Value| Some((row["id"].as_u64()?, (text(row, "address"), text(row, "state"))));
    list.as_array().context("a list")?.iter().map(|r| row(r).context("an id")).collect()
}

/// How many regions each store leads, by the regions' own list.
fn leaders(node: &Node) -> Result<BTreeMap<u64, usize>> {
    let list = node.ctl(&["region", "list"])?;
    let mut led = BTreeMap::new();
    for region in list.as_array().context("a list")? {
        let leader = region["leader_store"].as_u64().with_context(|| format!("nobody leads {region}"))?;
        *led.entry(leader).or_default() += 1;
    }
    Ok(led)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_founder_comes_back_as_a_new_store() {
    let mut cluster = Cluster::launch(3);
    founded(&cluster).await;
    cluster.kill(2);
    fs::remove_dir_all(cluster.nodes()[2].data_dir()).expect("its disk is lost");
    cluster.start(2);
    let (first, wiped) = (&cluster.nodes()[0], &cluster.nodes()[2]);
    let known = wait::until("it is registered again", READY_LIMIT, || async {
        let known = stores(first)?;
        ensure!(known.len() == 4, "{known:?}");
        Ok(known)
    })
    .await;
    let at_its_address: Vec<_> = known.iter().filter(|(_, (address, _))| *address == wiped.address()).collect();
    assert!(matches!(at_its_address[..], [(id, _)] if *id > 3), "under a new id, and nobody else is there: {known:?}");
    wait::until("it follows the cluster", READY_LIMIT, || async {
        ensure!(stores(wiped)? == stores(first)?, "it sees another cluster");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founders_with_unequal_lists_say_so() {
    let (a, b) = (Loner::new(), Loner::new());
    let (a_address, b_address) = (a.listen.address(), b.listen.address());
    let _first = a.spawn(&[a_address.clone(), b_address.clone(), "127.0.0.1:1".into()]);
    let mut command = b.command(&[a_address, b_address]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut second = Process(command.spawn().expect("flaredb starts"));
    let status = wait::until("the second gives up", READY_LIMIT, || {
        let end = second.0.try_wait();
        async { end?.context("it still waits") }
    })
    .await;
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    let mut said = String::new();
    second.0.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    assert!(said.contains("--join lists differ") && said.contains("[127.0.0.1:1,"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_outside_the_list_joins_and_answers() {
    let cluster = Cluster::launch(1);
    founded(&cluster).await;
    let (newcomer, first) = (Loner::new(), &cluster.nodes()[0]);
    let _process = newcomer.spawn(&[first.address()]);
    wait::until("both say that it is there", READY_LIMIT, || async {
        let known = stores(first)?;
        let state = known.values().find(|(address, _)| *address == newcomer.listen.address()).map(|(_, s)| s.as_str());
        ensure!(known.len() == 2 && state == Some("up"), "{known:?}");
        let status = Command::new(binary())
            .args(["ctl", "--endpoint", &newcomer.listen.address(), "cluster", "status"])
            .output()?;
        ensure!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_hands_every_leadership_over_first() {
    let mut cluster = Cluster::launch(3);
    founded(&cluster).await;
    let known = stores(&cluster.nodes()[2]).expect("PD answers");
    for index in 0..2 {
        let address = cluster.nodes()[index].address();
        let (&gone, _) = known.iter().find(|(_, (at, _))| *at == address).expect("a founder");
        let status = cluster.terminate(index);
        assert_eq!(status.code(), Some(0));
        let log = cluster.nodes()[index].log();
        assert!(log.contains("leaderships are handed over") && log.contains("left=0"), "{log}");
        let others = &cluster.nodes()[2];
        wait::until("others lead", READY_LIMIT, || async {
            let led = leaders(others)?;
            ensure!(!led.contains_key(&gone), "{led:?}");
            Ok(())
        })
        .await;
        cluster.start(index);
        founded(&cluster).await;
    }
}
