//! Row locks end to end over the local store.

use futures::FutureExt;
use proto::wire;

use super::*;
use crate::{ClientConfig, CommitOptions, Error, OnLocked, RowLock, RowLockMode, Txn};

fn b(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

/// Regions …, d…, m…
fn local() -> Local {
    Local::start(&[b("d"), b("m")], None)
}

fn lock(mode: RowLockMode) -> RowLock {
    RowLock { mode, on_locked: OnLocked::Wait, absent: false, label: b("a test") }
}

/// Locks of a transaction that has ended are given up a moment later: a write that meets one is repeated.
async fn write(client: &Client, pairs: &[(&str, &str)]) {
    loop {
        let txn = client.begin().await.unwrap();
        pairs.iter().for_each(|(key, value)| txn.put(b(key), b(value)).unwrap());
        match commit(&txn).await {
            Err(Error::Conflict { .. }) => tokio::task::yield_now().await,
            done => return done.unwrap(),
        }
    }
}

async fn update(txn: &Txn, keys: &[&str]) -> Result<Vec<Option<String>>, Error> {
    let keys: Vec<Bytes> = keys.iter().map(|key| b(key)).collect();
    let rows = txn.lock_rows(&keys, &lock(RowLockMode::Update)).await?;
    Ok(rows.into_iter().map(|row| row.value.map(|value| String::from_utf8(value.to_vec()).unwrap())).collect())
}

async fn commit(txn: &Txn) -> Result<(), Error> {
    txn.commit(CommitOptions::default()).await.map(|_| ())
}

fn some(value: &str) -> Vec<Option<String>> {
    vec![Some(value.into())]
}

/// Forty increments of one row, half of them of another one in another region as well, and how they ended.
async fn increments(local: &Local) -> Vec<Result<(), Error>> {
    write(&local.client, &[("a", "0"), ("z", "0")]).await;
    let increment = |at: u64| {
        let client = local.client.clone();
        async move {
            let txn = client.begin().await.unwrap();
            let keys = if at.is_multiple_of(2) { vec!["a", "z"] } else { vec!["a"] };
            for key in keys {
                let old: u64 = update(&txn, &[key]).await.unwrap()[0].clone().unwrap().parse().unwrap();
                txn.put(b(key), b(&(old + 1).to_string())).unwrap();
            }
            commit(&txn).await
        }
    };
    let all: Vec<_> = (0..40).map(|at| tokio::runtime::Handle::current().spawn(increment(at))).collect();
    futures::future::join_all(all).await.into_iter().map(|done| done.unwrap()).collect()
}

async fn assert_all_increments(local: &Local) {
    for done in increments(local).await {
        assert_eq!(done, Ok(()), "nobody meets a conflict");
    }
    assert_eq!(local.client.get_latest(b"a").await.unwrap(), Some(b("40")));
    assert_eq!(local.client.get_latest(b"z").await.unwrap(), Some(b("20")));
}

#[tokio::test]
async fn increments_of_one_row_wait_for_each_other_and_none_is_lost() {
    assert_all_increments(&local()).await;
}

#[tokio::test]
async fn rows_stay_locked_while_a_refused_commit_comes_again() {
    let local = local();
    local.refuse_one_of(5);
    assert_all_increments(&local).await;
}

#[cfg(feature = "planted-bugs")]
#[tokio::test]
async fn rows_of_a_refused_commit_given_up_is_found() {
    let plant = crate::planted::Plant::of(crate::planted::Planted::FreeUnapplied);
    let local = Local::start_with(&[b("d"), b("m")], None, ClientConfig { plant, ..ClientConfig::default() });
    local.refuse_one_of(5);
    assert!(increments(&local).await.iter().any(|done| matches!(done, Err(Error::Conflict { .. }))));
}

#[tokio::test]
async fn what_is_locked_is_the_newest_and_other_writers_are_kept_off() {
    let local = local();
    write(&local.client, &[("a", "1")]).await;
    let txn = local.client.begin().await.unwrap();
    write(&local.client, &[("a", "2")]).await;
    assert_eq!(update(&txn, &["a", "none"]).await, Ok(vec![Some("2".into()), None]));
    assert_eq!(txn.get(b"a").await.unwrap(), Some(b("1")), "the snapshot stays");
    assert_eq!(txn.at_fresh_snapshot().get(b"a").await.unwrap(), Some(b("2")));
    let other = local.client.begin().await.unwrap();
    other.put(b("a"), b("3")).unwrap();
    assert!(matches!(commit(&other).await, Err(Error::Conflict { .. })));
    write(&local.client, &[("none", "there")]).await;
    txn.put(b("a"), b("4")).unwrap();
    assert_eq!(update(&txn, &["a"]).await, Ok(some("4")), "its own write");
    commit(&txn).await.unwrap();
    write(&local.client, &[("a", "5")]).await;
}

#[tokio::test]
async fn nowait_skip_and_a_time_limit() {
    let local = local();
    write(&local.client, &[("a", "1"), ("b", "2")]).await;
    let (first, second) = (local.client.begin().await.unwrap(), local.client.begin().await.unwrap());
    update(&first, &["a"]).await.unwrap();
    let on_locked = |on_locked| RowLock { on_locked, ..lock(RowLockMode::NoKeyUpdate) };
    let keys = [b("a"), b("b")];
    let refused = second.lock_rows(&keys, &on_locked(OnLocked::Refuse)).await;
    assert_eq!(refused, Err(Error::RowLocked { key: b("a") }));
    let rows = second.lock_rows(&keys, &on_locked(OnLocked::Skip)).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.skipped).collect::<Vec<_>>(), [true, false]);
    let limit = OnLocked::WaitFor(Duration::from_millis(30));
    assert_eq!(second.lock_rows(&keys, &on_locked(limit)).await, Err(Error::LockTimeout));
    let key_share = RowLock { on_locked: OnLocked::Refuse, ..lock(RowLockMode::KeyShare) };
    assert!(second.lock_rows(&keys[..1], &key_share).await.is_err(), "UPDATE excludes even KEY SHARE");
    first.rollback();
    assert_eq!(update(&second, &["a"]).await, Ok(some("1")));
}

#[tokio::test]
async fn a_savepoint_gives_up_what_was_locked_since() {
    let local = local();
    write(&local.client, &[("a", "1"), ("e", "2")]).await;
    let (first, second) = (local.client.begin().await.unwrap(), local.client.begin().await.unwrap());
    update(&first, &["a"]).await.unwrap();
    let savepoint = first.savepoint();
    update(&first, &["e"]).await.unwrap();
    first.roll_back_to(&savepoint).await.unwrap();
    assert_eq!(update(&second, &["e"]).await, Ok(some("2")));
    let mut waiting = Box::pin(update(&second, &["a"]));
    assert!(waiting.as_mut().now_or_never().is_none());
    first.rollback();
    assert_eq!(waiting.await, Ok(some("1")));
}

#[tokio::test]
async fn the_youngest_of_a_deadlock_gives_way() {
    let local = local();
    write(&local.client, &[("a", "1"), ("z", "2")]).await;
    let (first, second) = (local.client.begin().await.unwrap(), local.client.begin().await.unwrap());
    update(&first, &["a"]).await.unwrap();
    update(&second, &["z"]).await.unwrap();
    let crossed = async {
        let failed = update(&second, &["a"]).await;
        second.rollback();
        failed
    };
    let (older, younger) = futures::join!(update(&first, &["z"]), crossed);
    assert_eq!(older, Ok(some("2")));
    let Err(Error::Deadlock(deadlock)) = younger else { panic!("{younger:?}") };
    assert_eq!((deadlock.victim, deadlock.cycle.len()), (second.start_ts(), 2));
    assert_eq!(deadlock.cycle[0].label, b("a test"));
}

/// A request to the store itself, about its first region.
fn to_the_store(local: &Local, body: wire::kv_request::Body) -> impl Future<Output = Reply> {
    let epoch = Some(Epoch { conf_ver: 1, version: 1 }.into());
    let header = Some(wire::RequestHeader { region_id: 2, epoch, deadline_ms: 5_000, ..Default::default() });
    local.service.call(KvRequest { header, body: Some(body) })
}

/// What is asked for there.
fn asked_for(key: &str, owner: Timestamp) -> wire::kv_request::Body {
    let (keys, mode) = (vec![b(key)], RowLockMode::Update as i32);
    let request = wire::LockRowsRequest { keys, start_ts: owner.0, mode, ttl_ms: 60_000, ..Default::default() };
    wire::kv_request::Body::LockRows(request)
}

#[tokio::test]
async fn a_place_that_nobody_asks_from_any_more_hides_no_deadlock() {
    let local = local();
    write(&local.client, &[("a", "1"), ("c", "2"), ("b", "3"), ("e", "4")]).await;
    let begin = async || local.client.begin().await.unwrap();
    let (first, second, third) = (begin().await, begin().await, begin().await);
    update(&first, &["a"]).await.unwrap();
    update(&second, &["c"]).await.unwrap();
    update(&third, &["b", "e"]).await.unwrap();
    // As at a leader that is none any more: the place is there, the request has gone to the next one.
    assert!(to_the_store(&local, asked_for("c", third.start_ts())).now_or_never().is_none());
    let crossed = async {
        let failed = update(&third, &["a"]).await;
        third.rollback();
        failed
    };
    let (older, also, youngest) = futures::join!(update(&first, &["b"]), update(&second, &["e"]), crossed);
    assert_eq!((older, also), (Ok(some("3")), Ok(some("4"))));
    let Err(Error::Deadlock(deadlock)) = youngest else { panic!("{youngest:?}") };
    assert_eq!(deadlock.cycle[0].key, "a");
}

#[tokio::test]
async fn locks_without_a_write_are_proven_at_commit() {
    let local = local();
    write(&local.client, &[("a", "1"), ("e", "2")]).await;
    let share = |txn: Txn| async move { txn.lock_rows(&[b("a")], &lock(RowLockMode::Share)).await.map(|_| ()) };
    let (first, second) = (local.client.begin().await.unwrap(), local.client.begin().await.unwrap());
    share(first.clone()).await.unwrap();
    share(second.clone()).await.unwrap();
    first.put(b("e"), b("3")).unwrap();
    commit(&first).await.unwrap();
    commit(&second).await.unwrap();
    write(&local.client, &[("a", "2")]).await;
    // What the store has given up is not there at commit.
    for writes in [false, true] {
        let third = local.client.begin().await.unwrap();
        share(third.clone()).await.unwrap();
        local.client.release_rows(third.start_ts(), [(STORE, vec![b("a")])]);
        let other = local.client.begin().await.unwrap();
        assert_eq!(update(&other, &["a"]).await, Ok(some("2")));
        other.rollback();
        if writes {
            third.put(b("e"), b("4")).unwrap();
        }
        assert!(matches!(commit(&third).await, Err(Error::Conflict { .. })));
    }
    assert_eq!(local.client.get_latest(b"e").await.unwrap(), Some(b("3")));
}

#[tokio::test]
async fn an_open_transaction_keeps_its_locks_and_one_that_is_gone_does_not() {
    let local = local();
    let config = ClientConfig { lock_ttl: Duration::from_millis(60), ..ClientConfig::default() };
    let rpc = Arc::new(LocalRpc { service: local.service.clone() });
    let (pd, clock, spawn) = (local.pd.clone(), local.clock.clone(), local.spawn.clone());
    let client = Client::with_config(rpc, pd, clock, spawn, config);
    write(&client, &[("a", "1"), ("e", "2")]).await;
    let (first, second) = (client.begin().await.unwrap(), client.begin().await.unwrap());
    update(&first, &["a"]).await.unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(1500), update(&second, &["a"])).await;
    assert!(waited.is_err(), "it is still locked after many times its time to live");
    // As when its node had died: nobody speaks for it any more.
    drop(first);
    assert_eq!(update(&second, &["a"]).await, Ok(some("1")));
}

#[tokio::test]
async fn who_stops_waiting_leaves_nothing_behind() {
    let local = local();
    write(&local.client, &[("a", "1")]).await;
    let (first, second) = (local.client.begin().await.unwrap(), local.client.begin().await.unwrap());
    update(&first, &["a"]).await.unwrap();
    {
        let mut waiting = Box::pin(update(&second, &["a"]));
        assert!(waiting.as_mut().now_or_never().is_none());
    }
    second.rollback();
    first.put(b("a"), b("2")).unwrap();
    commit(&first).await.unwrap();
    let third = local.client.begin().await.unwrap();
    assert_eq!(update(&third, &["a"]).await, Ok(some("2")));
}

/// What the store answers about "a", where a written lock stands whose owner has no row lock; it is committed once somebody waits,
/// or not.
async fn met_on_a_written_row(committed: bool) -> wire::LockRowsResponse {
    use wire::{CommitRequest, Mutation, PrewriteRequest, kv_request::Body, kv_response};
    let local = local();
    write(&local.client, &[("a", "old")]).await;
    let call = async |body| {
        let reply = to_the_store(&local, body).await;
        assert_eq!(reply.response.region_error, None);
        reply.response.body.unwrap()
    };
    let start_ts = local.client.timestamp().await.unwrap().0;
    let mutations = vec![Mutation { key: b("a"), value: b("new"), ..Default::default() }];
    let prewrite = PrewriteRequest { mutations, primary: b("a"), start_ts, ttl_ms: 60_000, ..Default::default() };
    call(Body::Prewrite(prewrite)).await;
    let waiter = local.client.timestamp().await.unwrap();
    let commit = async {
        let waits = |(_, status): &(StoreId, wire::RowLockStatus)| status.owner == waiter.0 && !status.granted;
        while !local.client.row_locks().await.unwrap().iter().any(waits) {
            tokio::task::yield_now().await;
        }
        let commit_ts = local.client.timestamp().await.unwrap().0;
        let commit = CommitRequest { keys: vec![b("a")], start_ts, commit_ts, primary: b("a"), ..Default::default() };
        if committed {
            call(Body::Commit(commit)).await;
        }
    };
    match futures::join!(call(asked_for("a", waiter)), commit).0 {
        kv_response::Body::LockRows(response) => response,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn who_meets_a_commit_under_way_waits_for_it_at_the_store() {
    let response = met_on_a_written_row(true).await;
    assert_eq!(response.rows[0].value, "new", "{response:?}");
}

#[tokio::test]
async fn who_meets_a_lock_that_stays_is_told() {
    let response = met_on_a_written_row(false).await;
    assert!(matches!(response.error.unwrap().kind, Some(wire::key_error::Kind::Locked(_))));
}
