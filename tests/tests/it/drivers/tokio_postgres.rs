//! The Rust driver: binary parameters and results.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use futures::{SinkExt, TryStreamExt};
use tests::{cluster::Cluster, wait};
use tokio_postgres::{
    Client,
    error::{ErrorPosition, SqlState},
};

async fn cluster_and_client() -> (Cluster, Client) {
    let cluster = Cluster::start_ready(3).await;
    let client = cluster.nodes()[1].connect().await.expect("a session");
    (cluster, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_every_type_come_back() {
    let (_cluster, client) = cluster_and_client().await;
    let ddl = "CREATE TABLE v (id int8 PRIMARY KEY, small int2, i int4, r float4, d float8, t text, c varchar(10), \
               b bool, bin bytea, day date, at timestamp, tz timestamptz)";
    client.batch_execute(ddl).await.expect("a table");
    let day = "2026-11-23";
    let insert = client
        .prepare("INSERT INTO v VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10::text::date,$11::text::timestamp,$12::text::timestamptz)")
        .await
        .expect("prepared");
    let (at, tz) = ("2026-11-23 10:11:12.5", "2026-11-23 10:11:12+02");
    let bytes = vec![0u8, 255, 7];
    let inserted = client
        .execute(&insert, &[&1i64, &2i16, &-3i32, &1.5f32, &-2.25f64, &"grün", &"kurz", &true, &bytes, &day, &at, &tz])
        .await;
    assert_eq!(inserted.expect("a row"), 1);
    let row = client
        .query_one("SELECT id, small, i, r, d, t, c, b, bin, day::text, at::text FROM v WHERE id = $1", &[&1i64])
        .await
        .expect("the row");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i16>(1), row.get::<_, i32>(2)), (1, 2, -3));
    assert_eq!((row.get::<_, f32>(3), row.get::<_, f64>(4)), (1.5, -2.25));
    assert_eq!((row.get::<_, &str>(5), row.get::<_, &str>(6), row.get::<_, bool>(7)), ("grün", "kurz", true));
    assert_eq!((row.get::<_, Vec<u8>>(8), row.get::<_, &str>(9)), (bytes, day));
    assert_eq!(row.get::<_, &str>(10), at);
    let nulls = client.query_one("SELECT NULL::int4, NULL::text", &[]).await.expect("a row");
    assert_eq!((nulls.get::<_, Option<i32>>(0), nulls.get::<_, Option<&str>>(1)), (None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_commit_and_roll_back() {
    let (cluster, mut client) = cluster_and_client().await;
    client.batch_execute("CREATE TABLE t (a int PRIMARY KEY, b int)").await.expect("a table");
    let transaction = client.transaction().await.expect("begun");
    transaction.execute("INSERT INTO t VALUES ($1, $2)", &[&1, &10]).await.expect("a row");
    transaction.rollback().await.expect("rolled back");
    let transaction = client.transaction().await.expect("begun");
    transaction.execute("INSERT INTO t VALUES ($1, $2)", &[&2, &20]).await.expect("a row");
    assert_eq!(transaction.query("SELECT * FROM t", &[]).await.expect("own writes").len(), 1);
    transaction.commit().await.expect("committed");
    let elsewhere = cluster.nodes()[2].connect().await.expect("a session");
    let rows = elsewhere.query("SELECT a FROM t", &[]).await.expect("rows");
    assert_eq!(rows.iter().map(|r| r.get::<_, i32>(0)).collect::<Vec<_>>(), [2]);

    let transaction = client.transaction().await.expect("begun");
    let error = transaction.execute("INSERT INTO t VALUES (2, 0)", &[]).await;
    let code = match error {
        Err(error) => error.code().cloned(),
        Ok(_) => transaction.commit().await.expect_err("a duplicate").code().cloned(),
    };
    assert_eq!(code, Some(SqlState::UNIQUE_VIOLATION));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_carry_their_fields() {
    let (_cluster, client) = cluster_and_client().await;
    client.batch_execute("CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL)").await.expect("a table");
    let state = async |sql: &str| client.batch_execute(sql).await.expect_err(sql).code().cloned().expect("an SQLSTATE");
    assert_eq!(state("SELECT * FROM missing").await, SqlState::UNDEFINED_TABLE);
    assert_eq!(state("SELECT missing FROM t").await, SqlState::UNDEFINED_COLUMN);
    assert_eq!(state("SELEC").await, SqlState::SYNTAX_ERROR);
    assert_eq!(state("SELECT 1/0").await, SqlState::DIVISION_BY_ZERO);
    assert_eq!(state("INSERT INTO t VALUES (99999999999, 1)").await, SqlState::NUMERIC_VALUE_OUT_OF_RANGE);
    let error = client.batch_execute("INSERT INTO t VALUES (1, NULL)").await.expect_err("NOT NULL");
    let error = error.as_db_error().expect("from the server").clone();
    assert_eq!((error.code(), error.table(), error.column()), (&SqlState::NOT_NULL_VIOLATION, Some("t"), Some("b")));
    // Positions count from the beginning of the message, as PostgreSQL's do.
    for (sql, at) in [
        ("SELECT a, missing FROM t", 11),
        ("SELECT 1;\nSELECT t.missing FROM t", 18),
        ("SELECT * FROM t JOIN missing m ON true", 22),
        ("INSERT INTO t (a, missing) VALUES (1, 2)", 19),
        ("SELECT a FROM t WHERE a = 1 AND é.b = 2", 33),
    ] {
        let error = client.batch_execute(sql).await.expect_err(sql);
        let position = error.as_db_error().and_then(|error| error.position().cloned());
        assert_eq!(position, Some(ErrorPosition::Original(at)), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_name_their_tables() {
    let (_cluster, client) = cluster_and_client().await;
    client.batch_execute("CREATE TABLE t (a int PRIMARY KEY, b text)").await.expect("a table");
    let oid: u32 = client.query_one("SELECT 't'::regclass::oid", &[]).await.expect("an oid").get(0);
    let sql =
        "SELECT x.b, count(*), x.a + 1 FROM (SELECT * FROM t WHERE b > '') x JOIN t ON t.a = x.a GROUP BY x.a, x.b";
    let statement = client.prepare(sql).await.expect("prepared");
    let origins: Vec<_> = statement.columns().iter().map(|column| (column.table_oid(), column.column_id())).collect();
    assert_eq!(origins, [(Some(oid), Some(2)), (None, None), (None, None)]);
    let statement = client.prepare("SELECT b, a FROM t WHERE a = 1").await.expect("prepared");
    assert!(statement.columns().iter().all(|column| column.table_oid() == Some(oid)), "by key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn savepoints_nest() {
    let (_cluster, mut client) = cluster_and_client().await;
    client.batch_execute("CREATE TABLE t (a int PRIMARY KEY)").await.expect("a table");
    let mut outer = client.transaction().await.expect("begun");
    outer.execute("INSERT INTO t VALUES (1)", &[]).await.expect("a row");
    let inner = outer.transaction().await.expect("a savepoint");
    inner.execute("INSERT INTO t VALUES (2)", &[]).await.expect("a row");
    let duplicate = inner.execute("INSERT INTO t VALUES (1)", &[]).await.expect_err("a duplicate");
    assert_eq!(duplicate.code(), Some(&SqlState::UNIQUE_VIOLATION));
    inner.rollback().await.expect("back");
    let inner = outer.transaction().await.expect("a savepoint");
    inner.execute("INSERT INTO t VALUES (3)", &[]).await.expect("a row");
    inner.commit().await.expect("released");
    outer.commit().await.expect("committed");
    let rows = client.query("SELECT a FROM t ORDER BY a", &[]).await.expect("rows");
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [1, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleep_lasts_and_is_cancelled() {
    let (_cluster, client) = cluster_and_client().await;
    let watch = wait::Stopwatch::start();
    client.batch_execute("SELECT pg_sleep(0.2)").await.expect("slept");
    assert!(watch.elapsed() >= Duration::from_millis(200));
    let cancel = client.cancel_token();
    let cancelling = async {
        loop {
            cancel.cancel_query(tokio_postgres::NoTls).await.expect("sent");
            tokio::task::yield_now().await;
        }
    };
    let error = tokio::select! {
        done = client.batch_execute("SELECT pg_sleep(3600)") => done.expect_err("cancelled"),
        () = cancelling => unreachable!("it goes on until the statement ends"),
    };
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_copied_in_and_out() {
    let (_cluster, client) = cluster_and_client().await;
    client.batch_execute("CREATE TABLE t (a int PRIMARY KEY, b text)").await.expect("a table");
    let mut sink = pin!(client.copy_in("COPY t FROM STDIN").await.expect("a copy begins"));
    for n in 0..1000 {
        sink.send(Bytes::from(format!("{n}\tnumber {n}\n"))).await.expect("taken");
    }
    assert_eq!(sink.finish().await.expect("copied"), 1000);
    let out: Vec<Bytes> =
        client.copy_out("COPY t TO STDOUT").await.expect("a copy").try_collect().await.expect("whole");
    let text = out.concat();
    assert_eq!(text.iter().filter(|b| **b == b'\n').count(), 1000);
    assert!(text.starts_with(b"0\tnumber 0\n"), "in the order of the key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn portals_fetch_piece_by_piece() {
    let (_cluster, mut client) = cluster_and_client().await;
    let transaction = client.transaction().await.expect("begun");
    let portal = transaction.bind("SELECT * FROM generate_series(1, 25)", &[]).await.expect("a portal");
    let mut sizes = Vec::new();
    loop {
        let rows = transaction.query_portal(&portal, 10).await.expect("rows");
        sizes.push(rows.len());
        if rows.len() < 10 {
            break;
        }
    }
    assert_eq!(sizes, [10, 10, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_is_cancelled() {
    let (_cluster, client) = cluster_and_client().await;
    let cancel = client.cancel_token();
    client.batch_execute("CREATE TABLE n (a int PRIMARY KEY)").await.expect("a table");
    client.batch_execute("INSERT INTO n SELECT * FROM generate_series(1, 1000)").await.expect("rows");
    // A thousand to the fourth: nobody waits for that.
    let sleeping = client.batch_execute("SELECT count(*) FROM n a, n b, n c, n d WHERE a.a + b.a + c.a + d.a = 0");
    let cancelling = async {
        loop {
            cancel.cancel_query(tokio_postgres::NoTls).await.expect("sent");
            tokio::task::yield_now().await;
        }
    };
    let error = tokio::select! {
        done = sleeping => done.expect_err("cancelled"),
        () = cancelling => unreachable!("it goes on until the statement ends"),
    };
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    // A request that was on its way may still hit the next statement, as PostgreSQL's documentation warns.
    wait::until("the session goes on", Duration::from_secs(10), || async {
        Ok(client.batch_execute("SELECT 1").await?)
    })
    .await;
}
