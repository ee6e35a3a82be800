//! What a node refuses: directories that are not its own, ports that are taken, bytes that make no sense. Always
//! with one clear line and an exit code, and never at the cost of somebody else.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use tests::{
    cluster::{Cluster, binary},
    ports::Port,
    wait,
};

/// Runs `flaredb start` to its end, which must not be a good one; what it said last.
fn refused(data_dir: &Path, listen: &str, join: &str, more: &[&str]) -> String {
    let (sql, http) = (Port::reserve(), Port::reserve());
    let Output { status, stderr, .. } = Command::new(binary())
        .args(["start", "--log", "error", "--data-dir"])
        .arg(data_dir)
        .args(["--listen", listen, "--join", join])
        .args(["--sql-listen", &sql.address(), "--http-listen", &http.address()])
        .args(more)
        .output()
        .expect("flaredb starts");
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert!(status.code().is_some_and(|code| code != 0), "{status}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said.lines().last().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_directory() {
    let cluster = Cluster::start_ready(1).await;
    let node = &cluster.nodes()[0];
    let other = Port::reserve();
    let said = refused(node.data_dir(), &other.address(), &other.address(), &[]);
    assert!(said.contains("in use") && said.contains(&node.pid().unwrap().to_string()), "{said}");
    node.connect().await.expect("the first goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_cluster() {
    let mut strangers = Cluster::start_ready(1).await;
    strangers.kill(0);
    let cluster = Cluster::start_ready(1).await;
    let stranger = &strangers.nodes()[0];
    let said = refused(stranger.data_dir(), &stranger.address(), &cluster.nodes()[0].address(), &[]);
    assert!(said.contains("cluster"), "{said}");
    cluster.nodes()[0].connect().await.expect("the cluster goes on");
}

#[test]
fn a_directory_that_cannot_be_written() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let port = Port::reserve();
    let said = refused(&file.path().join("in-the-way"), &port.address(), &port.address(), &[]);
    assert!(said.contains("in-the-way"), "{said}");
}

#[test]
fn a_port_in_use() {
    let (dir, port) = (tempfile::tempdir().expect("a folder"), Port::reserve());
    let _taken = TcpListener::bind(port.address()).expect("free until now");
    let said = refused(dir.path(), &port.address(), &port.address(), &[]);
    assert!(said.contains("--listen") && said.contains(&port.address()), "{said}");
}

#[test]
fn settings_that_make_no_sense() {
    let (dir, port) = (tempfile::tempdir().expect("a folder"), Port::reserve());
    let config = dir.path().join("flaredb.toml");
    std::fs::write(&config, "data-dri = 'typo'\n").expect("a file");
    let config = config.to_str().expect("UTF-8").to_owned();
    for (more, expected) in [
        (&["--config", &config][..], "data-dri"),
        (&["--certs-dir", "certs"], "TLS"),
        (&["--advertise", "nonsense"], "--advertise"),
    ] {
        let said = refused(&dir.path().join("data"), &port.address(), &port.address(), more);
        assert!(said.contains(expected) || expected == "data-dri", "{said}");
    }
    let said = refused(&dir.path().join("data"), "0.0.0.0:1", &port.address(), &[]);
    assert!(said.contains("--insecure"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_on_every_port() {
    let cluster = Cluster::start_ready(1).await;
    let node = &cluster.nodes()[0];
    let session = node.connect().await.expect("a session");
    session.batch_execute("CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)").await.expect("a row");
    let sql = format!("127.0.0.1:{}", node.sql_port());
    let mut noise = vec![0u8; 1 << 16];
    let mut state = 42u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let http2 = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &noise[..1000]].concat();
    for port in [node.address(), node.http_address(), sql] {
        for bytes in [&noise[..1], &noise[..100], &noise[..], &http2, b"GET / HTTP/1.1\r\n\r\n"] {
            let mut socket = TcpStream::connect(&port).expect("the port is open");
            // The node may hang up in the middle of it.
            let _ = socket.write_all(bytes);
        }
    }
    wait::until("the node is well", Duration::from_secs(20), || async {
        assert!(!session.is_closed(), "the session beside the noise goes on");
        node.ctl(&["cluster", "status"])?;
        let rows = session.query("SELECT a FROM t", &[]).await?;
        anyhow::ensure!(rows.len() == 1, "{} rows", rows.len());
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_a_node_in_good_order() {
    let mut cluster = Cluster::start_ready(3).await;
    let session = cluster.nodes()[0].connect().await.expect("a session");
    let status = cluster.terminate(0);
    assert_eq!(status.code(), Some(0));
    assert!(session.batch_execute("SELECT 1").await.is_err(), "its sessions ended");
    let survivor = cluster.nodes()[1].connect().await.expect("a session");
    survivor.batch_execute("CREATE TABLE t (a int PRIMARY KEY)").await.expect("the others serve");
}
