//! `ctl region verify` and the slow pass, on real processes and a disk that rots.

use std::time::Duration;

use anyhow::ensure;
use proto::{Cf, keyspace};
use raftstore::engine::{
    Engine, WriteBatch, WriteOp,
    rocks::{RocksEngine, RocksOptions},
};
use tests::{cluster::Cluster, wait};

/// A replica that was away catches up, and the slow pass comes around; the machine is busy.
const LIMIT: Duration = Duration::from_secs(60);

/// Changes the last record of a user's table in a data directory that no process has open; its key, in hex.
fn rot(data_dir: &std::path::Path) -> String {
    let options = RocksOptions { block_cache_bytes: 1 << 20, memtable_bytes: 1 << 20, background_jobs: 1 };
    let engine = RocksEngine::open(&data_dir.join("state"), options).expect("the process is gone");
    let first = keyspace::table_prefix(keyspace::SQL_KEYSPACE, keyspace::FIRST_USER_TABLE);
    let snapshot = engine.snapshot();
    let mut cursor = snapshot.cursor(Cf::Data, &first, &[]);
    assert!(cursor.seek_to_last().expect("it reads"), "a user's table has records");
    let key = bytes::Bytes::copy_from_slice(cursor.key());
    let op = WriteOp::Put(Cf::Data, key.clone(), [cursor.value(), b"!"].concat().into());
    engine.write(WriteBatch { ops: vec![op] }).expect("it writes");
    engine.sync().expect("it syncs");
    key.iter().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test]
async fn a_record_that_rots_on_one_disk_is_named() {
    let mut cluster = Cluster::launch_with(3, &["--verify-every", "1"], false);
    cluster.wait_ready().await;
    let client = cluster.nodes()[0].connect().await.expect("the cluster is ready");
    let fill = "CREATE TABLE t (id int PRIMARY KEY, body text); INSERT INTO t SELECT g, 'x' FROM generate_series(1, 2000) AS s(g)";
    client.batch_execute(fill).await.expect("rows");
    let equal = |index: usize| {
        let all = cluster.nodes()[index].ctl(&["region", "verify", "--all"])?;
        let all = all.as_array().cloned().unwrap_or_default();
        ensure!(all.len() >= 4 && all.iter().all(|r| r["outcome"] == "equal"), "{all:?}");
        Ok(all.iter().filter_map(|r| r["records"].as_u64()).sum::<u64>())
    };
    let records = wait::until("all regions are equal", LIMIT, || async { equal(1) }).await;
    assert!(records >= 2000, "{records}");

    // A clean end: the state is synced, and what rots is not replayed from the log.
    assert!(cluster.terminate(2).success());
    let said = wait::until("the one that is away is named", LIMIT, || async {
        let said = format!("{:#}", cluster.nodes()[0].ctl(&["region", "verify", "2", "--timeout", "1"]).unwrap_err());
        ensure!(said.contains("not known to be equal"), "{said}");
        Ok(said)
    })
    .await;
    assert!(said.contains("1 of 1"), "{said}");

    let key = rot(cluster.nodes()[2].data_dir());
    cluster.start(2);
    cluster.wait_ready().await;
    let region = cluster.nodes()[0].ctl(&["region", "show", "--key", &key]).expect("it is led");
    let region = region["id"].as_u64().expect("an id").to_string();
    let named = wait::until("the range is named", LIMIT, || async {
        let answer = cluster.nodes()[0].verify(&region)?;
        ensure!(
            answer["outcome"] == "differs" && answer["stores"].as_array().is_some_and(|s| s.len() == 3),
            "{answer}"
        );
        Ok(answer["differences"].clone())
    })
    .await;
    let named = named.as_array().cloned().unwrap_or_default();
    let range = named.first().and_then(|d| d.as_str()).expect("one difference");
    assert!(named.len() == 1 && range.contains(" differs from s") && range.contains("(table 1"), "{named:?}");
    let borders = range.split_once(" in ").and_then(|(_, r)| r.split_once(" .. ")).expect("two borders");
    let start = borders.0.split(' ').next().expect("a key");
    assert!(start <= key.as_str() && (borders.1 == "the end" || key.as_str() < borders.1), "{key} in {range}");
    wait::until("the slow pass shouts", LIMIT, || async {
        let logs: String = cluster.nodes().iter().map(|node| node.log()).collect();
        ensure!(logs.contains("REPLICAS OF A REGION DIFFER"), "not yet");
        Ok(())
    })
    .await;
}
