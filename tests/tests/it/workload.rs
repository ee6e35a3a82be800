//! `flaredb workload`: histories of real processes, one of which dies, and of PostgreSQL, which says whether the checkers are right.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::ensure;
use tests::{
    cluster::{Cluster, binary},
    postgres::Postgres,
    wait,
};

/// Until all loads have made their tables and begun, on a busy machine.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);
/// Of a history: some transactions of every session.
const BEGUN_BYTES: u64 = 3_000;

const WORKLOADS: [&str; 6] = ["bank", "register", "append", "write-skew", "unique", "sequence"];

struct Run {
    name: &'static str,
    history: PathBuf,
    process: Child,
}

impl Run {
    fn start(name: &'static str, dsns: &str, isolation: &[&str], folder: &Path) -> Run {
        let history = folder.join(format!("{name}.history"));
        let process = Command::new(binary())
            .args(["workload", "run", name, "--dsn", dsns, "--sessions", "6", "--seconds", "6"])
            .args(isolation)
            .arg("--history")
            .arg(&history)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the workload starts");
        Run { name, history, process }
    }

    fn begun(&self) -> anyhow::Result<()> {
        let bytes = fs::metadata(&self.history)?.len();
        ensure!(bytes >= BEGUN_BYTES, "{}: {bytes} bytes of history", self.name);
        Ok(())
    }

    fn end(self) -> (PathBuf, Output) {
        (self.history, self.process.wait_with_output().expect("the workload ends"))
    }
}

fn check(history: &Path, level: &[&str]) -> Output {
    Command::new(binary()).args(["workload", "check"]).arg(history).args(level).output().expect("check runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_valid_though_a_node_dies() {
    let mut cluster = Cluster::start_ready(3).await;
    let dsns: Vec<_> = cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.sql_port())).collect();
    let dsns = dsns.join(",");
    let start = |name| Run::start(name, &dsns, &["--isolation", "serializable"], cluster.dir());
    let runs: Vec<_> = WORKLOADS.into_iter().map(start).collect();
    wait::until("all loads have begun", BEGIN_LIMIT, || async { runs.iter().try_for_each(Run::begun) }).await;
    cluster.kill(1);
    for run in runs {
        let name = run.name;
        let (history, output) = run.end();
        assert!(output.status.success(), "{name}: {}", text(&output));
        let again = check(&history, &[]);
        assert!(again.status.success(), "{name}, read from its file: {}", text(&again));
    }
}

#[test]
fn postgresql_keeps_its_levels() {
    let server = Postgres::start();
    let folder = tempfile::tempdir().expect("temporary folder");
    let dsn = server.impatient();
    let serializable = ["--isolation", "serializable"];
    let runs: Vec<_> = WORKLOADS.into_iter().map(|name| Run::start(name, &dsn, &serializable, folder.path())).collect();
    for run in runs {
        let name = run.name;
        let (_, output) = run.end();
        assert!(output.status.success(), "{name}: {}", text(&output));
    }
}

#[test]
fn write_skew_of_postgresql_is_told() {
    let server = Postgres::start();
    let folder = tempfile::tempdir().expect("temporary folder");
    let run = Run::start("write-skew", &server.address(), &["--isolation", "repeatable-read"], folder.path());
    let (history, output) = run.end();
    assert!(output.status.success(), "REPEATABLE READ allows it: {}", text(&output));
    let output = check(&history, &["--level", "serializable"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("nobody of pair"), "{}", text(&output));
}

#[test]
fn nonsense_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("history");
    for (content, reason) in
        [("", "empty"), ("{", "line 1"), ("{\"format\":7,\"workload\":\"bank\",\"level\":\"strict\"}", "format 7")]
    {
        fs::write(&file, content).expect("written");
        let output = check(&file, &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains(reason), "{content}: {}", text(&output));
    }
}
