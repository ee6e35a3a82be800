//! Sessions of several nodes, as one cluster's: who sees whom, who cancels and ends whom, who keeps whom off.

use std::{
    future::poll_fn,
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tests::{cluster::Cluster, wait};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::{AsyncMessage, Client, NoTls, error::SqlState};

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

/// What a statement of one boolean says.
async fn says(client: &Client, statement: &str) -> bool {
    client.query_one(statement, &[]).await.unwrap_or_else(|error| panic!("{statement}: {error}")).get(0)
}

/// Until somebody waits for the advisory lock of this number.
async fn wanted(viewer: &Client, objid: u32) {
    wait::until("somebody waits for the lock", LIMIT, || async {
        let waits = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted";
        let row = viewer.query_one(waits, &[&objid]).await?;
        ensure!(row.get::<_, Option<i32>>(0).is_some(), "nobody's");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn advisory_locks_hold_between_nodes() {
    let cluster = Cluster::start_ready(3).await;
    let (a, b, c) = (named(&cluster, 0, "a").await, named(&cluster, 1, "b").await, named(&cluster, 2, "c").await);

    // A session's, counted; two integers are another lock than one bigint.
    a.batch_execute("SELECT pg_advisory_lock(7), pg_advisory_lock(7)").await.unwrap();
    assert!(!says(&b, "SELECT pg_try_advisory_lock(7)").await);
    assert!(!says(&b, "SELECT pg_try_advisory_lock_shared(7)").await);
    assert!(says(&b, "SELECT pg_try_advisory_lock(0, 7)").await);
    assert!(says(&a, "SELECT pg_advisory_unlock(7)").await);
    let (waited, ()) = tokio::join!(b.batch_execute("SELECT pg_advisory_lock(7)"), async {
        wanted(&c, 7).await;
        assert!(says(&a, "SELECT pg_advisory_unlock(7)").await);
    });
    waited.unwrap();
    assert!(!says(&a, "SELECT pg_advisory_unlock(7)").await, "it is b's");
    b.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    assert!(says(&a, "SELECT pg_try_advisory_lock(7) AND pg_try_advisory_lock(0, 7)").await);

    // Shared; and a wait that ends by itself or is cancelled leaves nothing behind.
    assert!(
        says(&b, "SELECT pg_try_advisory_lock_shared(8)").await
            && says(&c, "SELECT pg_try_advisory_lock_shared(8)").await
    );
    let patience = a.batch_execute("SET lock_timeout = '50ms'; SELECT pg_advisory_lock(8)").await;
    assert_eq!(patience.unwrap_err().code(), Some(&SqlState::LOCK_NOT_AVAILABLE));
    a.batch_execute("SET lock_timeout = 0; SET statement_timeout = '50ms'").await.unwrap();
    let patience = a.batch_execute("SELECT pg_advisory_lock(8)").await;
    assert_eq!(patience.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    a.batch_execute("RESET statement_timeout").await.unwrap();
    b.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    c.batch_execute("DISCARD ALL").await.unwrap();
    assert!(says(&b, "SELECT pg_try_advisory_lock(8)").await);

    // A transaction's: gone with COMMIT, ROLLBACK, ROLLBACK TO, an error.
    for end in ["COMMIT", "ROLLBACK", "SELECT 1 / 0"] {
        a.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(9)").await.unwrap();
        assert!(!says(&b, "SELECT pg_try_advisory_xact_lock(9)").await);
        let _ = a.batch_execute(end).await;
        let _ = a.batch_execute("ROLLBACK").await;
        assert!(says(&b, "SELECT pg_try_advisory_xact_lock(9)").await, "after {end}");
    }
    a.batch_execute("BEGIN; SAVEPOINT s; SELECT pg_advisory_xact_lock(9); ROLLBACK TO s; SELECT 1").await.unwrap();
    wait::until("the savepoint's lock is free", LIMIT, || async {
        ensure!(says(&b, "SELECT pg_try_advisory_xact_lock(9)").await, "not yet");
        Ok(())
    })
    .await;

    // Two that wait for each other.
    a.batch_execute("COMMIT; SELECT pg_advisory_unlock_all(); SELECT pg_advisory_lock(1)").await.unwrap();
    b.batch_execute("SELECT pg_advisory_lock(2)").await.unwrap();
    let ask = async |client: &Client, lock: &str| {
        let asked = client.batch_execute(lock).await;
        // The statement failed; what the session had locked before is still its own.
        client.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
        asked
    };
    let (first, second) = tokio::join!(ask(&a, "SELECT pg_advisory_lock(2)"), ask(&b, "SELECT pg_advisory_lock(1)"));
    let deadlock = [first, second].into_iter().filter_map(Result::err).collect::<Vec<_>>();
    assert_eq!(deadlock.len(), 1, "{deadlock:?}");
    assert_eq!(deadlock[0].code(), Some(&SqlState::T_R_DEADLOCK_DETECTED));
}

/// Each session takes one lock of a pair and then asks for the other; how long after the last word one of them is told.
async fn crosswise((a, b, viewer): (&Client, &Client, &Client), [first, second]: [&str; 2]) -> Duration {
    a.batch_execute(&format!("BEGIN; {first}")).await.unwrap();
    b.batch_execute(&format!("BEGIN; {second}")).await.unwrap();
    let told = async |client: &Client, statement: &str| {
        let result = client.batch_execute(statement).await;
        let at = Instant::now();
        client.batch_execute("ROLLBACK; SELECT pg_advisory_unlock_all()").await.unwrap();
        (result, at)
    };
    let (earlier, (began, later)) = tokio::join!(told(a, second), async {
        waiting(viewer, "a").await;
        (Instant::now(), told(b, first).await)
    });
    let failed: Vec<_> = [earlier, later].into_iter().filter_map(|(result, at)| Some((result.err()?, at))).collect();
    let [(error, at)] = &failed[..] else { panic!("{first}, {second}: {failed:?}") };
    assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED), "{first}, {second}: {error:?}");
    let detail = error.as_db_error().and_then(|error| error.detail()).unwrap_or_default();
    assert_eq!(detail.lines().count(), 4, "who waits for whom, and with which statements: {detail}");
    let rows_or_names =
        [first, second].into_iter().filter(|sql| sql.starts_with("UPDATE") || sql.starts_with("SELECT"));
    rows_or_names.for_each(|sql| assert!(detail.contains(sql), "{sql}: {detail}"));
    at.duration_since(began)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlocks_over_locks_of_any_kinds_are_found_soon() {
    const ROW: &str = "UPDATE t SET v = 1 WHERE k = 1";
    const ADVISORY: &str = "SELECT pg_advisory_xact_lock(1)";
    let cluster = Cluster::start_ready(3).await;
    let (a, b, viewer) =
        (named(&cluster, 0, "a").await, named(&cluster, 1, "b").await, named(&cluster, 2, "viewer").await);
    a.batch_execute("CREATE TABLE t (k int PRIMARY KEY, v int); CREATE TABLE u (k int); CREATE TABLE w (k int)")
        .await
        .unwrap();
    a.batch_execute("INSERT INTO t VALUES (1, 0), (2, 0)").await.unwrap();
    let pairs = [
        [ROW, "UPDATE t SET v = 1 WHERE k = 2"],
        [ADVISORY, ROW],
        [ROW, ADVISORY],
        ["SELECT pg_advisory_lock(2)", ROW],
        [ADVISORY, "LOCK TABLE u"],
        ["LOCK TABLE u", "LOCK TABLE w"],
        ["DROP TABLE u", "TRUNCATE w"],
    ];
    for pair in pairs {
        let mut times = Vec::new();
        for _ in 0..5 {
            times.push(crosswise((&a, &b, &viewer), pair).await);
        }
        times.sort_unstable();
        println!("{pair:?}: {times:?}");
        // The machine may be busy: the best of five.
        assert!(times[0] <= Duration::from_millis(200), "{pair:?}: {times:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_advisory_lock_outlives_its_queues_leader_and_not_its_node() {
    let mut cluster = Cluster::start_ready(3).await;
    let holder = named(&cluster, 0, "holder").await;
    holder.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
    // Whichever node has the queue in memory: neither of the others takes the lock with it when it dies.
    for node in [1, 2] {
        cluster.kill(node);
        let other = &cluster.nodes()[3 - node];
        wait::until("the lock is asked for", LIMIT, || async {
            let other = other.connect().await?;
            let got: bool = other.query_one("SELECT pg_try_advisory_lock(7)", &[]).await?.get(0);
            assert!(!got, "it is the holder's");
            Ok(())
        })
        .await;
        cluster.start(node);
        cluster.wait_ready().await;
    }
    cluster.kill(0);
    let heir = &cluster.nodes()[1];
    wait::until("the lock of a dead node is free", LIMIT, || async {
        let heir = heir.connect().await?;
        let got: bool = heir.query_one("SELECT pg_try_advisory_lock(7)", &[]).await?.get(0);
        ensure!(got, "it is still the dead one's");
        Ok(())
    })
    .await;
}

/// A session and what it is told.
async fn listener(cluster: &Cluster, node: usize) -> (Client, UnboundedReceiver<(String, String)>) {
    let connection = cluster.nodes()[node].connection();
    let (client, mut connection) = tokio_postgres::connect(&connection, NoTls).await.expect("the node serves");
    let (sender, told) = unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(n) = message {
                let _ = sender.send((n.channel().to_owned(), n.payload().to_owned()));
            }
        }
    });
    (client, told)
}

/// The next thing a listener is told.
async fn next(told: &mut UnboundedReceiver<(String, String)>) -> (String, String) {
    let next = tokio::time::timeout(LIMIT, told.recv()).await.expect("a notification comes in time");
    next.expect("the session goes on")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_come_with_their_commit_and_in_its_order() {
    let cluster = Cluster::start_ready(3).await;
    let (near, mut near_told) = listener(&cluster, 0).await;
    let (far, mut far_told) = listener(&cluster, 1).await;
    let sender = named(&cluster, 2, "sender").await;
    near.batch_execute("LISTEN jobs; LISTEN own").await.unwrap();
    far.batch_execute("BEGIN; LISTEN jobs; LISTEN undone; COMMIT; BEGIN; UNLISTEN jobs; ROLLBACK; UNLISTEN undone")
        .await
        .unwrap();

    let say = |text: &str| ("jobs".to_owned(), text.to_owned());
    sender.batch_execute("BEGIN; NOTIFY jobs, 'never'; ROLLBACK; NOTIFY nobody, 'x'; NOTIFY undone").await.unwrap();
    let all = "BEGIN; NOTIFY jobs, 'a'; NOTIFY jobs, 'a'; SAVEPOINT s; NOTIFY jobs, 'taken back'; ROLLBACK TO s;
               SELECT pg_notify('jobs', 'b' || g) FROM generate_series(1, 3) AS g(g); COMMIT";
    sender.batch_execute(all).await.unwrap();
    for told in [&mut near_told, &mut far_told] {
        for text in ["a", "b1", "b2", "b3"] {
            assert_eq!(next(told).await, say(text));
        }
    }
    // Those of several sessions come to everybody in one order.
    let senders = [&sender, &near, &far];
    let send = async |at: usize| {
        for n in 0..20 {
            senders[at].batch_execute(&format!("NOTIFY jobs, '{at}.{n}'")).await.unwrap();
        }
    };
    tokio::join!(send(0), send(1), send(2));
    let (mut near_saw, mut far_saw) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        near_saw.push(next(&mut near_told).await);
        far_saw.push(next(&mut far_told).await);
    }
    assert_eq!(near_saw, far_saw);

    // Who is in a transaction is told when it is over; who listens to itself has its own with its COMMIT.
    near.batch_execute("BEGIN; SELECT 1").await.unwrap();
    sender.batch_execute("NOTIFY jobs, 'late'").await.unwrap();
    assert_eq!(next(&mut far_told).await, say("late"));
    assert!(near_told.try_recv().is_err(), "it is in a transaction");
    near.batch_execute("NOTIFY own, 'echo'; COMMIT").await.unwrap();
    assert_eq!((next(&mut near_told).await, next(&mut near_told).await), (say("late"), ("own".into(), "echo".into())));

    let long = sender.batch_execute(&format!("NOTIFY jobs, '{}'", "x".repeat(8000))).await;
    assert_eq!(long.unwrap_err().code(), Some(&SqlState::INVALID_PARAMETER_VALUE));
    near.batch_execute("UNLISTEN *").await.unwrap();
    sender.batch_execute("NOTIFY jobs, 'last'").await.unwrap();
    assert_eq!(next(&mut far_told).await, say("last"));
    assert!(near_told.try_recv().is_err());
}
