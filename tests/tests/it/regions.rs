//! Regions cut by SQL, on a real process, as `flaredb.regions` and EXPLAIN show them afterwards.

use tests::cluster::Cluster;
use tokio_postgres::{Client, SimpleQueryMessage};

async fn refused(client: &Client, sql: &str, sqlstate: &str) {
    let error = client.batch_execute(sql).await.expect_err(sql);
    let error = error.as_db_error().expect("the server says so");
    assert_eq!(error.code().code(), sqlstate, "{sql}: {}", error.message());
}

/// The first values of the key columns at which a table's regions begin, in order.
async fn borders(client: &Client, table: &str) -> Vec<String> {
    let sql = "SELECT start_pretty FROM flaredb.regions WHERE table_name = $1 ORDER BY start_key";
    let rows = client.query(sql, &[&table]).await.expect("regions");
    rows.iter().map(|row| row.get(0)).collect()
}

async fn explained(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(&format!("EXPLAIN {sql}")).await.expect("a plan");
    let line = |m: &SimpleQueryMessage| match m {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    messages.iter().filter_map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn tables_are_cut_by_sql() {
    let cluster = Cluster::start_ready(1).await;
    let client = cluster.nodes()[0].connect().await.expect("the cluster is ready");
    let run = async |sql: &str| client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));

    run("CREATE TABLE spread (id int PRIMARY KEY, body text) SPLIT INTO 4 REGIONS BETWEEN 0 AND 999").await;
    let four = borders(&client, "spread").await;
    assert_eq!(four.len(), 4, "{four:?}");
    assert!(four[0].starts_with("start of") && four[1].contains("250") && four[3].contains("750"), "{four:?}");
    run("INSERT INTO spread SELECT g, 'x' FROM generate_series(0, 999) AS s(g)").await;
    let plan = explained(&client, "SELECT * FROM spread WHERE id IN (1, 999)").await;
    let regions =
        client.query("SELECT region_id FROM flaredb.regions WHERE table_name = 'spread' ORDER BY start_key", &[]);
    let regions: Vec<i64> = regions.await.expect("regions").iter().map(|row| row.get(0)).collect();
    for region in [regions[0], regions[3]] {
        assert!(plan.contains(&region.to_string()), "{region} is not in\n{plan}");
    }

    run("ALTER TABLE spread SPLIT AT VALUES (600), (10 + 2), (250)").await;
    run("ALTER INDEX spread_pkey SPLIT AT VALUES (900)").await;
    run("ALTER TABLE spread SPLIT AT VALUES (900)").await;
    assert_eq!(borders(&client, "spread").await.len(), 7);
    let count: i64 = client.query_one("SELECT count(*) FROM spread", &[]).await.expect("rows").get(0);
    assert_eq!(count, 1000);

    run("CREATE TABLE pair (a text, b bigint, PRIMARY KEY (a, b)) SPLIT AT VALUES ('k'), ('m', -5)").await;
    let pair = borders(&client, "pair").await;
    // The first one begins where `spread` ends.
    assert!(pair.len() == 3 && pair[1].contains('k') && pair[2].contains("-5"), "{pair:?}");
    run("CREATE TABLE IF NOT EXISTS pair (a int PRIMARY KEY) SPLIT AT VALUES (1)").await;
    run("ALTER TABLE IF EXISTS missing SPLIT AT VALUES (1)").await;
    run("ALTER INDEX IF EXISTS missing_pkey SPLIT AT VALUES (1)").await;
    assert_eq!(borders(&client, "pair").await.len(), 3);
    let listed = cluster.nodes()[0].ctl(&["region", "list", "--table", "public.pair"]).expect("it is found by name");
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
    let missing = cluster.nodes()[0].ctl(&["region", "list", "--table", "missing"]).expect_err("no such table");
    assert!(format!("{missing:#}").contains("relation \"missing\" does not exist"), "{missing:#}");
    run("CREATE TABLE beside (id int PRIMARY KEY); CREATE TABLE beyond (id int PRIMARY KEY)").await;
    let both = "SELECT count(*) FROM flaredb.regions WHERE table_names LIKE '%beside,%beyond%'";
    assert_eq!(client.query_one(both, &[]).await.expect("regions").get::<_, i64>(0), 1);

    refused(&client, "ALTER TABLE missing SPLIT AT VALUES (1)", "42P01").await;
    refused(&client, "ALTER INDEX missing SPLIT AT VALUES (1)", "42704").await;
    refused(&client, "ALTER TABLE spread SPLIT AT VALUES ('x')", "22P02").await;
    refused(&client, "ALTER TABLE spread SPLIT AT VALUES (1, 2)", "42601").await;
    refused(&client, "ALTER TABLE spread SPLIT AT (1)", "42601").await;
    refused(&client, "ALTER TABLE pair SPLIT INTO 4", "0A000").await;
    refused(&client, "CREATE TABLE other (id int PRIMARY KEY) SPLIT INTO 0", "22023").await;
    refused(&client, "BEGIN; ALTER TABLE spread SPLIT AT VALUES (1)", "25001").await;
    run("ROLLBACK").await;
    refused(&client, "SELECT 1 FROM other", "42P01").await;
}
