//! What the kv layer itself costs: reads and commits over the local store, where a proposal applies at once.
//! Everything below (Raft, disks, sockets) is left out.
//!
//! `cargo run --release -p kv --example transactions`

use std::{future::Future, time::Duration};

use bytes::Bytes;
use kv::{CommitOptions, Floor, local::Local};

const KEYS: u64 = 100_000;
const ROUNDS: u64 = 100_000;

fn key(n: u64) -> Bytes {
    Bytes::from([b"\0\0\0\x01\0\0\0\x64\0\0\0\0", &n.to_be_bytes()[..]].concat())
}

async fn measure<F: Future<Output = ()>>(local: &Local, what: &str, mut operation: impl FnMut(u64) -> F) {
    let begun = local.clock.now();
    for n in 0..ROUNDS {
        operation(n.wrapping_mul(7_919) % KEYS).await;
        // Nothing here ever waits: let the background work (commits of secondaries) have its turn.
        tokio::task::yield_now().await;
    }
    let each: Duration = local.clock.now().since(begun) / ROUNDS as u32;
    println!("{what:<44} {:>8.2} µs", each.as_nanos() as f64 / 1000.0);
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let local = Local::start(&[key(KEYS / 2)], None);
    let client = &local.client;
    let value = Bytes::from(vec![7; 100]);
    for batch in 0..KEYS / 1000 {
        let txn = client.begin().await.expect("the local PD answers");
        (0..1000).for_each(|n| txn.put(key(batch * 1000 + n), value.clone()).expect("it fits"));
        txn.commit(CommitOptions::default()).await.expect("nobody else writes");
    }
    measure(&local, "get_latest", |n| async move {
        client.get_latest(&key(n)).await.expect("readable").expect("there");
    })
    .await;
    measure(&local, "begin, get", |n| async move {
        let txn = client.begin().await.expect("begun");
        txn.get(&key(n)).await.expect("readable").expect("there");
    })
    .await;
    let autocommit = CommitOptions { floor: Floor::StartTs, max_commit_ts: None };
    let value = &value;
    measure(&local, "begin, get, put, commit in one region", |n| async move {
        let txn = client.begin().await.expect("begun");
        txn.get(&key(n)).await.expect("readable").expect("there");
        txn.put(key(n), value.clone()).expect("it fits");
        txn.commit(autocommit).await.expect("nobody else writes");
    })
    .await;
    measure(&local, "begin, put 2 keys, commit over two regions", |n| async move {
        let txn = client.begin().await.expect("begun");
        txn.put(key(n), value.clone()).expect("it fits");
        txn.put(key((n + KEYS / 2) % KEYS), value.clone()).expect("it fits");
        txn.commit(autocommit).await.expect("nobody else writes");
    })
    .await;
}
