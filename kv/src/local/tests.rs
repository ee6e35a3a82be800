//! Transactions end to end over the local store: what a user of `kv` may rely on.

use super::*;
use crate::{CommitOptions, Error, Floor, ScanOptions, Txn};

fn b(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

/// Regions …, d…, m…
fn local() -> Local {
    Local::start(&[b("d"), b("m")], None)
}

async fn write(client: &Client, pairs: &[(&str, &str)]) -> Timestamp {
    let txn = client.begin().await.unwrap();
    for (key, value) in pairs {
        txn.put(b(key), b(value)).unwrap();
    }
    txn.commit(CommitOptions::default()).await.unwrap()
}

async fn read(txn: &Txn, key: &str) -> Option<String> {
    txn.get(key.as_bytes()).await.unwrap().map(|v| String::from_utf8(v.to_vec()).unwrap())
}

async fn scan(txn: &Txn, options: ScanOptions) -> String {
    let mut scan = txn.scan(options);
    let mut rows = Vec::new();
    while let Some(page) = scan.next_page().await.unwrap() {
        for (key, value) in page.rows {
            rows.push(format!("{}={}", String::from_utf8_lossy(&key), String::from_utf8_lossy(&value)));
        }
    }
    rows.join(" ")
}

#[tokio::test]
async fn one_region_commits_in_one_round_and_several_are_atomic() {
    let local = local();
    let before = local.client.begin().await.unwrap();
    write(&local.client, &[("b1", "x"), ("b2", "y")]).await;
    write(&local.client, &[("a", "1"), ("e", "2"), ("z", "3")]).await;
    let after = local.client.begin().await.unwrap();
    assert_eq!((read(&before, "a").await, read(&before, "z").await), (None, None));
    for (key, value) in [("b1", "x"), ("b2", "y"), ("a", "1"), ("e", "2"), ("z", "3")] {
        assert_eq!(read(&after, key).await.as_deref(), Some(value));
        assert_eq!(local.client.get_latest(key.as_bytes()).await.unwrap(), Some(b(value)));
    }
    let many = after.get_many(&[b("z"), b("none"), b("a"), b("z")]).await.unwrap();
    assert_eq!(many, [Some(b("3")), None, Some(b("1")), Some(b("3"))]);
}

#[tokio::test]
async fn scans_cross_regions_in_pages_and_see_own_writes() {
    let local = local();
    let keys: Vec<String> = ["a", "b", "d", "e", "m", "n"].iter().map(|k| k.to_string()).collect();
    let pairs: Vec<(&str, &str)> = keys.iter().map(|k| (k.as_str(), "1")).collect();
    write(&local.client, &pairs).await;
    let txn = local.client.begin().await.unwrap();
    txn.delete(b("b")).unwrap();
    txn.put(b("c"), b("own")).unwrap();
    txn.put(b("z"), b("own")).unwrap();
    let all = KeyRange::default();
    let plain = ScanOptions { range: all.clone(), ..ScanOptions::default() };
    assert_eq!(scan(&txn, plain.clone()).await, "a=1 c=own d=1 e=1 m=1 n=1 z=own");
    let tiny = ScanOptions { page_bytes: 1, ..plain.clone() };
    assert_eq!(scan(&txn, tiny.clone()).await, "a=1 c=own d=1 e=1 m=1 n=1 z=own");
    let back = ScanOptions { reverse: true, ..tiny };
    assert_eq!(scan(&txn, back.clone()).await, "z=own n=1 m=1 e=1 d=1 c=own a=1");
    assert_eq!(scan(&txn, ScanOptions { limit: 3, ..back }).await, "z=own n=1 m=1");
    assert_eq!(scan(&txn, ScanOptions { limit: 2, ..plain.clone() }).await, "a=1 c=own");
    let some = ScanOptions { range: KeyRange::new("b", "e"), keys_only: true, ..plain };
    assert_eq!(scan(&txn, some).await, "c= d=");
    assert!(txn.has_writes_in(&KeyRange::new("c", "d")) && !txn.has_writes_in(&KeyRange::new("d", "e")));
    assert!(txn.may_have_written(&KeyRange::new("c", "d")) && !txn.may_have_written(&KeyRange::new("d", "e")));
}

#[tokio::test]
async fn lost_update_is_refused_and_write_skew_is_allowed() {
    let local = local();
    write(&local.client, &[("a", "1"), ("e", "1")]).await;
    let (one, two) = (local.client.begin().await.unwrap(), local.client.begin().await.unwrap());
    assert_eq!((read(&one, "a").await, read(&two, "a").await), (Some("1".into()), Some("1".into())));
    one.put(b("a"), b("one")).unwrap();
    two.put(b("a"), b("two")).unwrap();
    one.commit(CommitOptions::default()).await.unwrap();
    let lost = two.commit(CommitOptions::default()).await;
    assert_eq!(lost, Err(Error::Conflict { key: b("a") }));
    assert!(lost.unwrap_err().is_retryable());

    // Each reads both and writes one: snapshot isolation lets both commit.
    let (one, two) = (local.client.begin().await.unwrap(), local.client.begin().await.unwrap());
    assert_eq!((read(&one, "e").await, read(&two, "a").await), (Some("1".into()), Some("one".into())));
    one.put(b("a"), b("0")).unwrap();
    two.put(b("e"), b("0")).unwrap();
    one.commit(CommitOptions::default()).await.unwrap();
    two.commit(CommitOptions::default()).await.unwrap();
}

#[tokio::test]
async fn inserts_are_checked_and_locks_conflict() {
    let local = local();
    write(&local.client, &[("a", "1")]).await;
    let insert = local.client.begin().await.unwrap();
    insert.insert(b("a"), b("2")).unwrap();
    insert.insert(b("e"), b("2")).unwrap();
    assert_eq!(insert.commit(CommitOptions::default()).await, Err(Error::AlreadyExists { key: b("a") }));
    let again = local.client.begin().await.unwrap();
    assert_eq!(read(&again, "e").await, None);

    let (locker, writer) = (local.client.begin().await.unwrap(), local.client.begin().await.unwrap());
    locker.lock(b("a")).unwrap();
    writer.put(b("a"), b("3")).unwrap();
    locker.commit(CommitOptions::default()).await.unwrap();
    assert!(matches!(writer.commit(CommitOptions::default()).await, Err(Error::Conflict { .. })));
    assert_eq!(local.client.get_latest(b"a").await.unwrap(), Some(b("1")));
}

#[tokio::test]
async fn a_commit_stays_below_its_fence() {
    let local = local();
    for keys in [&["a"][..], &["a", "e"]] {
        let txn = local.client.begin().await.unwrap();
        keys.iter().for_each(|key| txn.put(b(key), b("1")).unwrap());
        let fence = Some(txn.start_ts().next());
        let options = CommitOptions { floor: Floor::StartTs, max_commit_ts: fence };
        assert_eq!(txn.commit(options).await, Err(Error::Fenced));
        assert_eq!(local.client.get_latest(b"a").await.unwrap(), None);
    }
}

#[tokio::test]
async fn locks_of_a_dead_coordinator_are_resolved_after_their_ttl() {
    use proto::wire::{Mutation, PrewriteRequest, RequestHeader, kv_request::Body, kv_response};
    const TTL_MS: u64 = 50;
    let local = local();
    write(&local.client, &[("a", "old")]).await;
    write(&local.client, &[("e", "old")]).await;
    let start_ts = local.client.timestamp().await.unwrap().0;
    for (region, key) in [(2, "a"), (3, "e")] {
        let mutations = vec![Mutation { key: b(key), value: b("new"), ..Mutation::default() }];
        let prewrite = PrewriteRequest { mutations, primary: b("a"), start_ts, ttl_ms: TTL_MS, ..Default::default() };
        let epoch = Some(Epoch { conf_ver: 1, version: 1 }.into());
        let header = Some(RequestHeader { region_id: region, epoch, ..Default::default() });
        let reply = local.service.call(KvRequest { header, body: Some(Body::Prewrite(prewrite)) }).await;
        assert!(matches!(&reply.response.body, Some(kv_response::Body::Prewrite(r)) if r.errors.is_empty()));
    }
    let txn = local.client.begin().await.unwrap();
    assert_eq!(read(&txn, "e").await.as_deref(), Some("old"));
    let now = local.client.timestamp().await.unwrap().physical_ms();
    assert!(now >= Timestamp(start_ts).physical_ms() + TTL_MS, "rolled back before its time");
    assert_eq!(read(&txn, "a").await.as_deref(), Some("old"));
    write(&local.client, &[("a", "newer"), ("e", "newer")]).await;
}

#[tokio::test]
async fn a_scan_over_many_locks_of_one_dead_transaction_does_not_resolve_them_one_by_one() {
    use proto::wire::{CheckTxnRequest, Mutation, PrewriteRequest, RequestHeader, kv_request::Body};
    let local = local();
    let key = |n: u32| b(&format!("a{n:05}"));
    let start_ts = local.client.timestamp().await.unwrap().0;
    let mutations = (0..3000).map(|n| Mutation { key: key(n), value: b("new"), ..Mutation::default() }).collect();
    let prewrite = PrewriteRequest { mutations, primary: key(0), start_ts, ..Default::default() };
    let current_ts = Timestamp::MAX.0;
    let check = CheckTxnRequest { primary: key(0), start_ts, current_ts, ..Default::default() };
    for body in [Body::Prewrite(prewrite), Body::CheckTxn(check)] {
        let epoch = Some(Epoch { conf_ver: 1, version: 1 }.into());
        let header = Some(RequestHeader { region_id: 2, epoch, ..Default::default() });
        let reply = local.service.call(KvRequest { header, body: Some(body) }).await;
        assert_eq!(reply.response.region_error, None);
    }
    let txn = local.client.begin().await.unwrap();
    assert_eq!(scan(&txn, ScanOptions::default()).await, "");
}

#[tokio::test]
async fn a_timestamp_from_the_future_is_refused() {
    let local = local();
    let future = Timestamp::new(local.clock.wall_ms() + 3_600_000, 0);
    let txn = local.client.begin_at(future);
    assert!(matches!(txn.get(b"a").await, Err(Error::BadTimestamp(_))));
    assert!(matches!(txn.put(b("a"), b("1")), Err(Error::BadTimestamp(_))));
}

#[tokio::test]
async fn a_dropped_range_is_gone_and_its_neighbours_are_not() {
    let local = local();
    write(&local.client, &[("a", "1"), ("c", "1"), ("e", "1"), ("n", "1"), ("z", "1")]).await;
    let dropped = KeyRange::new("c", "o");
    // The commit of what was locked may still be under way, and it needs all of its keys.
    local.client.finish_transactions(&dropped, &KeyRange::default()).await.unwrap();
    local.client.delete_range_unsafe(&dropped).await.unwrap();
    let txn = local.client.begin().await.unwrap();
    assert_eq!(scan(&txn, ScanOptions::default()).await, "a=1 z=1");
    let regions = local.client.regions(&KeyRange::new("a", "n")).await.unwrap();
    assert_eq!(regions.iter().map(|r| r.region.id.0).collect::<Vec<_>>(), [2, 3, 4]);
}

#[tokio::test]
async fn a_row_that_a_leader_grants_anew_was_not_held_all_the_time() {
    use proto::wire::{
        LockRowsRequest, RequestHeader, RowLockMode, RowLocksAction, RowLocksRequest, kv_request, kv_response,
    };
    let local = local();
    write(&local.client, &[("a", "1")]).await;
    let ask = |body: kv_request::Body| {
        let epoch = Some(Epoch { conf_ver: 1, version: 1 }.into());
        let header = Some(RequestHeader { region_id: 2, epoch, deadline_ms: 200, ..Default::default() });
        let asked = local.service.clone();
        async move { asked.call(KvRequest { header, body: Some(body) }).await.response.body }
    };
    let claim = |start_ts: Timestamp| LockRowsRequest {
        keys: vec![b("a")],
        start_ts: start_ts.0,
        mode: RowLockMode::Update as i32,
        ttl_ms: 60_000,
        ..Default::default()
    };
    let waits = |body| matches!(body, Some(kv_response::Body::LockRows(answer)) if answer.waiting);
    let held = |start_ts: Timestamp, term: u64| {
        let request = RowLocksRequest {
            start_ts: start_ts.0,
            action: RowLocksAction::Check as i32,
            keys: vec![b("a")],
            terms: vec![term],
            ..Default::default()
        };
        let answer = ask(kv_request::Body::RowLocks(request));
        async move { matches!(answer.await, Some(kv_response::Body::RowLocks(answer)) if answer.held) }
    };
    let holder = local.client.begin().await.unwrap();
    let lock = crate::RowLock {
        mode: RowLockMode::Update,
        on_locked: crate::OnLocked::Wait,
        absent: false,
        label: Bytes::new(),
    };
    holder.lock_rows(&[b("a")], &lock).await.unwrap();
    // It queues here, is granted the row by the next leader, and loses it with that one.
    let queued = local.client.timestamp().await.unwrap();
    assert!(waits(ask(kv_request::Body::LockRows(claim(queued))).await));
    local.elect_again();
    let later = local.client.timestamp().await.unwrap();
    assert!(waits(ask(kv_request::Body::LockRows(claim(later))).await));
    assert!(!held(queued, 2).await, "others may have had it since");
    assert!(held(queued, 3).await);
    assert!(matches!(holder.commit(CommitOptions::default()).await, Err(Error::Conflict { .. })));
}

#[tokio::test]
async fn what_was_committed_outlives_the_range_of_its_primary() {
    use proto::wire::{CommitRequest, Mutation, PrewriteRequest, RequestHeader, kv_request::Body};
    let local = local();
    write(&local.client, &[("e", "old")]).await;
    write(&local.client, &[("z", "old")]).await;
    let start_ts = local.client.timestamp().await.unwrap().0;
    let prewrite = |key| {
        let mutations = vec![Mutation { key: b(key), value: b("new"), ..Mutation::default() }];
        Body::Prewrite(PrewriteRequest { mutations, primary: b("a"), start_ts, ttl_ms: 50, ..Default::default() })
    };
    let bodies = [(2, prewrite("a")), (3, prewrite("e")), (4, prewrite("z"))];
    // The coordinator dies right after the commit of the primary.
    let commit_ts = local.client.timestamp().await.unwrap().0;
    let commit = CommitRequest { keys: vec![b("a")], start_ts, commit_ts, primary: b("a"), ..Default::default() };
    for (region_id, body) in bodies.into_iter().chain([(2, Body::Commit(commit))]) {
        let epoch = Some(Epoch { conf_ver: 1, version: 1 }.into());
        let header = Some(RequestHeader { region_id, epoch, ..Default::default() });
        let reply = local.service.call(KvRequest { header, body: Some(body) }).await;
        assert_eq!(reply.response.region_error, None);
    }
    let dropped = KeyRange::new("a", "c");
    local.client.finish_transactions(&dropped, &KeyRange::new("", "")).await.unwrap();
    local.client.delete_range_unsafe(&dropped).await.unwrap();
    let txn = local.client.begin().await.unwrap();
    assert_eq!(scan(&txn, ScanOptions::default()).await, "e=new z=new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_keep_the_sum() {
    const ACCOUNTS: u64 = 6;
    let local = local();
    let account = |n: u64| b(&format!("{}account", ["a", "b", "e", "f", "n", "o"][n as usize]));
    let setup = local.client.begin().await.unwrap();
    (0..ACCOUNTS).for_each(|n| setup.put(account(n), b("100")).unwrap());
    setup.commit(CommitOptions::default()).await.unwrap();
    let value = |v: Option<Bytes>| -> i64 { String::from_utf8_lossy(&v.unwrap()).parse().unwrap() };
    let transfer = |client: Client, n: u64| async move {
        let (from, to) = (account(n % ACCOUNTS), account((n * 7 + 1) % ACCOUNTS));
        loop {
            let txn = client.begin().await.unwrap();
            let (have, get) = (value(txn.get(&from).await.unwrap()), value(txn.get(&to).await.unwrap()));
            if from != to {
                txn.put(from.clone(), b(&(have - 1).to_string())).unwrap();
                txn.put(to.clone(), b(&(get + 1).to_string())).unwrap();
            }
            match txn.commit(CommitOptions::default()).await {
                Ok(_) => return,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    };
    let handle = tokio::runtime::Handle::current();
    let tasks: Vec<_> = (0..60).map(|n| handle.spawn(transfer(local.client.clone(), n))).collect();
    for task in tasks {
        task.await.unwrap();
        let txn = local.client.begin().await.unwrap();
        let mut sum = 0;
        for n in 0..ACCOUNTS {
            sum += value(txn.get(&account(n)).await.unwrap());
        }
        assert_eq!(sum, 600);
    }
}

#[tokio::test]
async fn malformed_requests_are_refused_and_do_no_harm() {
    use proto::wire::{
        CommitRequest, FindLocksRequest, Mutation, PrewriteRequest, RequestHeader, RollbackRequest, ScanRequest,
        UnsafeDeleteRangeRequest, ValidateRequest, kv_request::Body,
    };
    let local = local();
    write(&local.client, &[("a", "1")]).await;
    let now = local.client.timestamp().await.unwrap().0;
    let range = || Some((&KeyRange::new("c", "a")).into());
    let twice = vec![Mutation { key: b("a"), ..Default::default() }; 2];
    let bodies = [
        Body::Prewrite(PrewriteRequest { mutations: twice, try_one_pc: true, start_ts: now, ..Default::default() }),
        Body::Prewrite(PrewriteRequest { start_ts: u64::MAX, ..Default::default() }),
        Body::Commit(CommitRequest { keys: vec![b("a")], start_ts: u64::MAX, commit_ts: now, ..Default::default() }),
        Body::Commit(CommitRequest { keys: vec![b("a"), b("a")], start_ts: 1, commit_ts: now, ..Default::default() }),
        Body::Rollback(RollbackRequest { keys: vec![b("a"), b("a")], start_ts: u64::MAX }),
        Body::Rollback(RollbackRequest { keys: vec![b("outside")], start_ts: 1 }),
        Body::Scan(ScanRequest { range: range(), read_ts: now, ..Default::default() }),
        Body::Scan(ScanRequest { pushdown: b("nobody reads this"), read_ts: now, ..Default::default() }),
        Body::Validate(ValidateRequest { spans: vec![range().unwrap()], start_ts: 1, at_ts: now }),
        Body::Validate(ValidateRequest { spans: vec![(&KeyRange::default()).into(); 2], start_ts: 1, at_ts: now }),
        Body::Validate(ValidateRequest { at_ts: u64::MAX, ..Default::default() }),
        Body::UnsafeDeleteRange(UnsafeDeleteRangeRequest { range: range() }),
        Body::FindLocks(FindLocksRequest { range: range(), ..Default::default() }),
        Body::FindLocks(FindLocksRequest { primaries: range(), ..Default::default() }),
    ];
    for region_id in [0, 1, 2, 99] {
        for body in bodies.iter().cloned().map(Some).chain([None]) {
            let epoch = Some(Epoch { conf_ver: 1, version: 1 }.into());
            let header = Some(RequestHeader { region_id, epoch, ..Default::default() });
            local.service.call(KvRequest { header, body }).await;
        }
    }
    assert_eq!(local.client.get_latest(b"a").await.unwrap(), Some(b("1")));
}

#[tokio::test]
async fn more_regions_than_requests_at_once() {
    let border = |n: usize| b(&format!("{n:02}"));
    let local = Local::start(&(1..60).map(border).collect::<Vec<_>>(), None);
    let all = |value: &'static str| {
        let client = local.client.clone();
        async move {
            let txn = client.begin().await.unwrap();
            (0..60).for_each(|n| txn.put(b(&format!("{n:02}key")), b(value)).unwrap());
            txn
        }
    };
    let (first, second) = (all("first").await, all("second").await);
    first.commit(CommitOptions::default()).await.unwrap();
    assert!(second.commit(CommitOptions::default()).await.unwrap_err().is_retryable());
    all("third").await.commit(CommitOptions::default()).await.unwrap();
    let txn = local.client.begin().await.unwrap();
    assert_eq!(scan(&txn, ScanOptions::default()).await.matches("=third").count(), 60);
}
