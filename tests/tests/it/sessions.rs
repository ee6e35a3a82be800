//! Sessions of several nodes, as one cluster's: who sees whom, who cancels and ends whom, who keeps whom off.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Result, ensure};
use tests::{cluster::Cluster, wait};
use tokio_postgres::{Client, error::SqlState};

/// For what the cluster does on its own.
const LIMIT: Duration = Duration::from_secs(30);

/// The session's process id, and what others see of it from `viewer`, once it waits for a lock.
async fn waiting(viewer: &Client, application: &str) -> i32 {
    wait::until(&format!("{application} waits for a lock"), LIMIT, || async {
        let of = "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock' AND state = 'active'";
        Ok(viewer.query_one(of, &[&application]).await?.get(0))
    })
    .await
}

async fn named(cluster: &Cluster, node: usize, application: &str) -> Client {
    let client = cluster.nodes()[node].connect().await.expect("the node serves");
    client.batch_execute(&format!("SET application_name = '{application}'")).await.expect("it is set");
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_seen_cancelled_and_ended_from_other_nodes() {
    let cluster = Cluster::start_ready(3).await;
    let (holder, waiter, viewer) =
        (named(&cluster, 0, "holder").await, named(&cluster, 1, "waiter").await, named(&cluster, 2, "viewer").await);
    holder.batch_execute("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0)").await.unwrap();
    holder.batch_execute("BEGIN; UPDATE t SET n = 1 WHERE id = 1").await.unwrap();
    let own: i32 = waiter.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);

    let (update, pid) = tokio::join!(waiter.batch_execute("UPDATE t SET n = 2 WHERE id = 1"), async {
        let pid = waiting(&viewer, "waiter").await;
        let who = "SELECT w.pid, h.pid FROM flaredb.locks w JOIN flaredb.locks h ON w.waits_for = h.transaction
                   WHERE NOT w.granted AND h.granted";
        let who = viewer.query_one(who, &[]).await.unwrap();
        let holder: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        assert_eq!((who.get::<_, i32>(0), who.get::<_, i32>(1)), (pid, holder));
        let idle = "SELECT state, isolation, locks_held FROM flaredb.transactions WHERE application_name = 'holder'";
        let idle = viewer.query_one(idle, &[]).await.unwrap();
        let seen: (String, String, i64) = (idle.get(0), idle.get(1), idle.get(2));
        assert_eq!(seen, ("idle in transaction".into(), "read committed".into(), 1));
        let cancelled: bool = viewer.query_one("SELECT pg_cancel_backend($1)", &[&pid]).await.unwrap().get(0);
        assert!(cancelled);
        pid
    });
    assert_eq!((update.unwrap_err().code(), pid), (Some(&SqlState::QUERY_CANCELED), own));
    assert!(waiter.batch_execute("SELECT 1").await.is_ok(), "only the statement ended");

    let nobody: bool = viewer.query_one("SELECT pg_terminate_backend(2147483647)", &[]).await.unwrap().get(0);
    assert!(!nobody);
    let (update, ()) = tokio::join!(waiter.batch_execute("UPDATE t SET n = 2 WHERE id = 1"), async {
        let pid = waiting(&viewer, "waiter").await;
        viewer.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    });
    assert_eq!(update.unwrap_err().code(), Some(&SqlState::ADMIN_SHUTDOWN));
    // One that is idle ends as well, and what it had locked is free.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holder'";
    viewer.query_one(end, &[]).await.unwrap();
    viewer.batch_execute("UPDATE t SET n = 3 WHERE id = 1").await.unwrap();
    wait::until("the sessions are gone", LIMIT, || async {
        let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('holder', 'waiter')";
        let left: i64 = viewer.query_one(left, &[]).await?.get(0);
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await;
}

/// A bare connection that has been greeted: its socket, process id and secret.
fn greeted(port: u16) -> Result<(TcpStream, [u8; 8])> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    let body = b"\x00\x03\x00\x00user\0postgres\0database\0postgres\0\0";
    socket.write_all(&(body.len() as u32 + 4).to_be_bytes())?;
    socket.write_all(body)?;
    loop {
        let (kind, body) = message(&mut socket)?;
        if kind == b'K' {
            return Ok((socket, body.as_slice().try_into()?));
        }
    }
}

fn message(socket: &mut TcpStream) -> Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    socket.read_exact(&mut head)?;
    let mut body = vec![0; u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4];
    socket.read_exact(&mut body)?;
    Ok((head[0], body))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_may_come_in_at_another_node() {
    let cluster = Cluster::start_ready(3).await;
    let ports: Vec<u16> = cluster.nodes().iter().map(|node| node.sql_port()).collect();
    let viewer = cluster.nodes()[2].connect().await.unwrap();
    let (mut socket, key) = greeted(ports[0]).unwrap();
    let sleep = b"SELECT pg_sleep(3600)\0";
    socket.write_all(b"Q").unwrap();
    socket.write_all(&(sleep.len() as u32 + 4).to_be_bytes()).unwrap();
    socket.write_all(sleep).unwrap();
    wait::until("the statement runs", LIMIT, || async {
        let runs = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%3600%' AND state = 'active' AND pid <> pg_backend_pid()";
        Ok(viewer.query_one(runs, &[]).await?)
    })
    .await;
    let cancel = |key: &[u8]| {
        let mut socket = TcpStream::connect(("127.0.0.1", ports[1])).unwrap();
        socket.write_all(&[0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e]).unwrap();
        socket.write_all(key).unwrap();
        let mut rest = Vec::new();
        // Answered by the end of the connection, when it has been passed on.
        socket.read_to_end(&mut rest).unwrap();
    };
    let mut wrong = key;
    wrong[7] ^= 1;
    cancel(&wrong);
    let active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%3600%' AND state = 'active' AND pid <> pg_backend_pid()";
    assert_eq!(viewer.query_one(active, &[]).await.unwrap().get::<_, i64>(0), 1, "a wrong secret does nothing");
    cancel(&key);
    let error = loop {
        if let (b'E', body) = message(&mut socket).unwrap() {
            break String::from_utf8_lossy(&body).into_owned();
        }
    };
    assert!(error.contains("57014"), "{error}");
}
