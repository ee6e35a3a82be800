//! Clusters of real `flaredb` processes on loopback ports and temporary folders.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Client, NoTls};

use crate::{ports::Port, power::Power, source, wait};

/// A cluster of three loopback processes founds itself in about a second; a busy two-core machine needs longer.
pub const READY_LIMIT: Duration = Duration::from_secs(60);

/// The binary under test: `FLAREDB_BIN`, or what cargo builds for the profile of this test.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("FLAREDB_BIN") {
        Some(path) => path.into(),
        None => built_binary(),
    })
}

fn built_binary() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--workspace", "--bin", "flaredb"])
        .current_dir(source::root())
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo build --bin flaredb failed");
    // <target>/debug/deps/it-1234 → <target>/debug/flaredb
    let this = std::env::current_exe().expect("path of this test");
    this.parent().and_then(Path::parent).expect("tests lie in <profile>/deps").join("flaredb")
}

/// One node: its ports, folder and, while it runs, its process.
pub struct Node {
    listen: Port,
    sql: Port,
    http: Port,
    data_dir: PathBuf,
    log: PathBuf,
    power: Option<Power>,
    process: Option<Child>,
}

impl Node {
    /// `127.0.0.1:port` of gRPC.
    pub fn address(&self) -> String {
        self.listen.address()
    }
    /// The port of the PostgreSQL wire.
    pub fn sql_port(&self) -> u16 {
        self.sql.number()
    }
    /// `127.0.0.1:port` of HTTP.
    pub fn http_address(&self) -> String {
        self.http.address()
    }
    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }
    /// What it has logged so far, all its runs.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }
    /// What a driver needs to connect as postgres.
    pub fn connection(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres connect_timeout=5", self.sql_port())
    }
    /// Connects as postgres.
    pub async fn connect(&self) -> Result<Client> {
        connect(&self.connection()).await
    }
    /// `flaredb ctl --endpoint <this node> --output json <args>`, parsed.
    pub fn ctl(&self, args: &[&str]) -> Result<serde_json::Value> {
        let out = Command::new(binary())
            .args(["ctl", "--endpoint", &self.address(), "--output", "json"])
            .args(args)
            .output()?;
        ensure!(out.status.success(), "ctl {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout)
            .with_context(|| format!("ctl {}: {}", args.join(" "), String::from_utf8_lossy(&out.stdout)))
    }
    /// `ctl region verify` of one region, whether its replicas are equal or not (the exit code says that too).
    pub fn verify(&self, region: &str) -> Result<serde_json::Value> {
        let mut command = Command::new(binary());
        command.args(["ctl", "--endpoint", &self.address(), "--output", "json", "region", "verify", region]);
        let out = command.output()?;
        let rows: serde_json::Value = serde_json::from_slice(&out.stdout)
            .with_context(|| format!("ctl region verify: {}", String::from_utf8_lossy(&out.stderr)))?;
        let equal = rows[0]["outcome"] == "equal";
        ensure!(equal == out.status.success(), "exit code {:?} of {rows}", out.status.code());
        Ok(rows[0].clone())
    }
    fn signal(&self, signal: Signal) {
        let pid = self.pid().expect("the node runs");
        kill_process(Pid::from_raw(pid as i32).expect("a pid"), signal).expect("our own child takes a signal");
    }
}

/// Connects and lets the connection run beside.
pub async fn connect(connection: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(connection, NoTls).await?;
    #[allow(clippy::disallowed_methods, reason = "a real client on a real runtime")]
    tokio::spawn(connection);
    Ok(client)
}

/// A cluster; its processes end with it. Its folder stays when the test panics, and is named.
pub struct Cluster {
    nodes: Vec<Node>,
    /// The first so many nodes are in the `--join` list.
    founders: usize,
    dir: tempfile::TempDir,
    extra_args: Vec<String>,
    power: bool,
}

impl Cluster {
    /// Starts `nodes` processes with the same `--join` list, and waits for none of them.
    pub fn launch(nodes: usize) -> Cluster {
        Self::launch_with(nodes, &[], false)
    }

    /// The same, with more arguments to each `flaredb start`; with `power` its power can fail.
    pub fn launch_with(nodes: usize, extra_args: &[&str], power: bool) -> Cluster {
        let dir = tempfile::Builder::new().prefix("flaredb-test-").tempdir().expect("temporary folder");
        let extra_args = extra_args.iter().map(|&a| a.into()).collect();
        let mut cluster = Cluster { nodes: vec![], founders: nodes, dir, extra_args, power };
        for n in 1..=nodes {
            cluster.nodes.push(cluster.node(n));
        }
        for index in 0..nodes {
            cluster.start(index);
        }
        cluster
    }

    fn node(&self, n: usize) -> Node {
        let dir = self.dir.path();
        Node {
            listen: Port::reserve(),
            sql: Port::reserve(),
            http: Port::reserve(),
            data_dir: dir.join(format!("node{n}")),
            log: dir.join(format!("node{n}.log")),
            power: self.power.then(|| Power::new(dir, &format!("node{n}"))),
            process: None,
        }
    }

    /// Starts one more node, which joins the founders' cluster; its index.
    pub fn join(&mut self) -> usize {
        let index = self.nodes.len();
        self.nodes.push(self.node(index + 1));
        self.start(index);
        index
    }

    /// Starts `nodes` processes and waits until the cluster serves.
    pub async fn start_ready(nodes: usize) -> Cluster {
        let cluster = Self::launch(nodes);
        cluster.wait_ready().await;
        cluster
    }

    /// The nodes, in the order of the `--join` list.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The folder that holds data and logs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the process of a node that does not run.
    pub fn start(&mut self, index: usize) {
        let join: Vec<_> = self.nodes[..self.founders].iter().map(Node::address).collect();
        let node = &mut self.nodes[index];
        assert!(node.process.is_none(), "node {index} runs already");
        let log = File::options().create(true).append(true).open(&node.log).expect("log file");
        let mut command = Command::new(binary());
        command
            .arg("start")
            .arg("--data-dir")
            .arg(&node.data_dir)
            .args(["--listen", &node.listen.address()])
            .args(["--sql-listen", &node.sql.address()])
            .args(["--http-listen", &node.http.address()])
            .args(["--join", &join.join(",")])
            .args(&self.extra_args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log);
        if let Some(power) = &node.power {
            power.wire(&mut command);
        }
        node.process = Some(command.spawn().expect("flaredb starts"));
    }

    /// `kill -9`.
    pub fn kill(&mut self, index: usize) {
        self.kill_all(&[index]);
    }

    /// The power of some nodes fails at one instant: they die, then lose what they had not synced. How many bytes.
    pub fn cut_power(&mut self, indexes: &[usize]) -> u64 {
        for &index in indexes {
            self.nodes[index].signal(Signal::KILL);
        }
        indexes.iter().for_each(|&index| self.reap(index));
        let lose = |&index: &usize| {
            let node = &self.nodes[index];
            node.power.as_ref().expect("launched with power").fail(&node.data_dir)
        };
        indexes.iter().map(lose).sum()
    }

    /// `kill -9` for some nodes at one instant.
    pub fn kill_all(&mut self, indexes: &[usize]) {
        for &index in indexes {
            self.nodes[index].signal(Signal::KILL);
        }
        indexes.iter().for_each(|&index| self.reap(index));
    }

    fn reap(&mut self, index: usize) {
        let mut child = self.nodes[index].process.take().expect("the node runs");
        child.wait().expect("our own child is reaped");
    }

    /// SIGTERM, and waits for its end; the exit status.
    pub fn terminate(&mut self, index: usize) -> std::process::ExitStatus {
        self.nodes[index].signal(Signal::TERM);
        let mut child = self.nodes[index].process.take().expect("the node runs");
        child.wait().expect("our own child is reaped")
    }

    /// How the process of a node has ended, if it has by itself.
    pub fn ended(&mut self, index: usize) -> Option<std::process::ExitStatus> {
        let process = &mut self.nodes[index].process;
        let status = process.as_mut()?.try_wait().expect("our own child is asked")?;
        *process = None;
        Some(status)
    }

    /// SIGSTOP.
    pub fn pause(&self, index: usize) {
        self.nodes[index].signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self, index: usize) {
        self.nodes[index].signal(Signal::CONT);
    }

    /// Waits until some running node says that PD and every region have leaders, and SQL answers there.
    pub async fn wait_ready(&self) {
        wait::until("cluster is ready", READY_LIMIT, || async {
            let node = self.nodes.iter().find(|n| n.process.is_some()).context("no node runs")?;
            node.ctl(&["cluster", "wait-ready"])?;
            node.connect().await?.simple_query("SELECT 1").await?;
            Ok(())
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.process.take() {
                // A stopped process does not die before it goes on, except by SIGKILL.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("data and logs are kept in {}", self.dir.path().display());
            for node in &self.nodes {
                let log = node.log();
                let tail: Vec<_> = log.lines().rev().take(20).collect();
                eprintln!("--- last lines of {}", node.log.display());
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}
