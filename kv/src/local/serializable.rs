//! Serializable transactions end to end over the local store.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::{CommitOptions, Error, RowLock, RowLockMode, ScanOptions, Txn};

fn b(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

/// Regions …, d…, m…
fn local() -> Local {
    Local::start(&[b("d"), b("m")], None)
}

async fn write(client: &Client, pairs: &[(&str, &str)]) {
    let txn = client.begin().await.unwrap();
    pairs.iter().for_each(|(key, value)| txn.put(b(key), b(value)).unwrap());
    commit(&txn).await.unwrap();
}

async fn commit(txn: &Txn) -> Result<(), Error> {
    txn.commit(CommitOptions::default()).await.map(|_| ())
}

async fn begin(local: &Local) -> Txn {
    local.client.begin_serializable().await.unwrap()
}

async fn count(txn: &Txn, start: &str, end: &str) -> usize {
    let mut scan = txn.scan(ScanOptions { range: KeyRange::new(b(start), b(end)), ..ScanOptions::default() });
    let mut rows = 0;
    while let Some(page) = scan.next_page().await.unwrap() {
        rows += page.rows.len();
    }
    rows
}

fn conflict(key: &str) -> Result<(), Error> {
    Err(Error::ReadConflict { key: b(key) })
}

#[tokio::test]
async fn of_a_write_skew_one_commits() {
    // In one region, over two, and with more writes in a third.
    for (one, two, more) in [("a", "b", None), ("a", "e", None), ("a", "e", Some("z"))] {
        let local = local();
        write(&local.client, &[(one, "1"), (two, "1")]).await;
        let (first, second) = (begin(&local).await, begin(&local).await);
        first.get(two.as_bytes()).await.unwrap();
        second.get(one.as_bytes()).await.unwrap();
        first.put(b(one), b("0")).unwrap();
        second.put(b(two), b("0")).unwrap();
        if let Some(more) = more {
            first.put(b(more), b("1")).unwrap();
            second.put(b("y"), b("2")).unwrap();
        }
        assert_eq!((commit(&first).await, commit(&second).await), (Ok(()), conflict(one)));
        let after = local.client.begin().await.unwrap();
        assert_eq!(after.get(two.as_bytes()).await.unwrap(), Some(b("1")));
        assert_eq!(after.get(b"y").await.unwrap(), None);
    }
}

#[tokio::test]
async fn what_was_not_there_was_read_as_well() {
    let local = local();
    write(&local.client, &[("a1", "1"), ("e1", "1")]).await;
    let keys = begin(&local).await;
    assert_eq!(keys.get_many(&[b("a2"), b("z")]).await.unwrap(), [None, None]);
    keys.put(b("sum"), b("0")).unwrap();
    let range = begin(&local).await;
    assert_eq!(count(&range, "a", "f").await, 2);
    range.put(b("sum2"), b("2")).unwrap();
    let elsewhere = begin(&local).await;
    assert_eq!(count(&elsewhere, "a", "a2").await + count(&elsewhere, "b", "").await, 2);
    elsewhere.put(b("sum3"), b("2")).unwrap();
    write(&local.client, &[("a2", "new")]).await;
    assert_eq!(commit(&keys).await, conflict("a2"));
    assert_eq!(commit(&range).await, conflict("a2"));
    assert_eq!(commit(&elsewhere).await, Ok(()));
}

#[tokio::test]
async fn rows_that_were_locked_and_let_go_were_read() {
    let local = local();
    write(&local.client, &[("a", "1"), ("b", "1")]).await;
    let lock = RowLock { mode: RowLockMode::Update, on_locked: Default::default(), absent: false, label: b("") };
    for savepoint in [true, false] {
        let txn = begin(&local).await;
        let (back, place) = (txn.savepoint(), txn.lock_place());
        txn.lock_rows(&[b("a"), b("c")], &lock).await.unwrap();
        if savepoint {
            txn.roll_back_to(&back).await.unwrap();
        } else {
            txn.unlock_rows(&[b("a")], place);
        }
        txn.put(b("d"), b("1")).unwrap();
        let key = if savepoint { "a" } else { "c" };
        while commit_put(&local, key).await.is_err() {
            tokio::task::yield_now().await;
        }
        assert_eq!(commit(&txn).await, conflict(key));
    }
}

/// A lock that was given up goes a moment later.
async fn commit_put(local: &Local, key: &str) -> Result<(), Error> {
    let txn = local.client.begin().await.unwrap();
    txn.put(b(key), b("2")).unwrap();
    commit(&txn).await
}

#[tokio::test]
async fn only_a_real_conflict_is_one() {
    let local = local();
    write(&local.client, &[("a", "1"), ("e", "1"), ("z", "1")]).await;
    // A read-only transaction commits whatever has happened.
    let reader = begin(&local).await;
    assert_eq!(count(&reader, "", "").await, 3);
    // One that writes what it has read, beside another that it has not read of.
    let (one, two) = (begin(&local).await, begin(&local).await);
    for (txn, keys) in [(&one, ["a", "e"]), (&two, ["z", "z1"])] {
        for key in keys {
            txn.get(key.as_bytes()).await.unwrap();
            txn.put(b(key), b("2")).unwrap();
        }
    }
    assert_eq!((commit(&one).await, commit(&two).await), (Ok(()), Ok(())));
    assert_eq!(commit(&reader).await, Ok(()));
    // Both write the same: the first one wins, as ever.
    let (one, two) = (begin(&local).await, begin(&local).await);
    for txn in [&one, &two] {
        txn.put(b("a"), b("3")).unwrap();
    }
    assert_eq!((commit(&one).await, commit(&two).await), (Ok(()), Err(Error::Conflict { key: b("a") })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_reads_of_others_are_no_conflict() {
    let local = local();
    write(&local.client, &[("a", "0"), ("e", "0"), ("z", "0")]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (client, stopped) = (local.client.clone(), stop.clone());
    let reading = tokio::runtime::Handle::current().spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            let txn = client.begin().await.unwrap();
            txn.get_many(&[b("a"), b("e"), b("z")]).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    for round in 1..=300 {
        let txn = begin(&local).await;
        assert_eq!(txn.get(b"a").await.unwrap(), Some(b(&(round - 1).to_string())));
        txn.put(b("a"), b(&round.to_string())).unwrap();
        if round % 3 > 0 {
            txn.put(b("e"), b(&round.to_string())).unwrap();
        }
        if round % 3 > 1 {
            txn.get(b"z").await.unwrap();
        }
        assert_eq!(commit(&txn).await, Ok(()), "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    reading.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_at_the_same_time_exactly_one_commits() {
    for (one, two, more) in [("a", "b", false), ("a", "e", false), ("a", "e", true)] {
        let local = local();
        write(&local.client, &[(one, "1"), (two, "1")]).await;
        for round in 0..150 {
            let (first, second) = (begin(&local).await, begin(&local).await);
            for (txn, read, written) in [(&first, two, one), (&second, one, two)] {
                txn.get(read.as_bytes()).await.unwrap();
                txn.put(b(written), b(&round.to_string())).unwrap();
                if more {
                    txn.put(b(&format!("z{written}")), b(&round.to_string())).unwrap();
                }
            }
            let handle = tokio::runtime::Handle::current();
            let both = [first, second].map(|txn| handle.spawn(async move { commit(&txn).await }));
            let mut failed = Vec::new();
            for one in both {
                failed.extend(one.await.unwrap().err());
            }
            assert!(matches!(&failed[..], [Error::ReadConflict { .. }]), "round {round}: {failed:?}");
        }
    }
}
