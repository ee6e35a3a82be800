//! Transactions that leave their writes with the stores while they go on.

use proto::wire::kv_request::Body;
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::{CommitOptions, Error, OnLocked, RowLock, RowLockMode, Savepoint, ScanOptions, Txn, planted::Plant};

type Rows = BTreeMap<Bytes, Bytes>;

/// Regions …, 3…, 6…; a transaction keeps hardly anything in memory.
fn local() -> Local {
    let config = ClientConfig {
        spill_bytes: 400,
        spill_rows: 4,
        lock_ttl: Duration::from_millis(150),
        ..ClientConfig::default()
    };
    Local::start_with(&[key(3), key(6)], None, config)
}

fn key(n: u64) -> Bytes {
    Bytes::from(format!("{n}"))
}

fn value(n: u64) -> Bytes {
    Bytes::from(format!("value {n}"))
}

async fn scanned(txn: &Txn, reverse: bool) -> Rows {
    let mut scan = txn.scan(ScanOptions { reverse, page_bytes: 20, ..ScanOptions::default() });
    let mut rows = Rows::new();
    while let Some(page) = scan.next_page().await.unwrap() {
        rows.extend(page.rows);
    }
    rows
}

async fn all(client: &Client) -> Rows {
    scanned(&client.begin().await.unwrap(), false).await
}

/// splitmix64
fn next(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (z ^ (z >> 27)) % below
}

/// One transaction against a map, with places to go back to; how it ends is the seed's choice.
async fn run(local: &Local, mut seed: u64) {
    let txn = local.client.begin().await.unwrap();
    let stored = scanned(&txn, false).await;
    let mut model = stored.clone();
    let mut places: Vec<(Savepoint, Rows)> = Vec::new();
    for step in 0..60 {
        let at = key(next(&mut seed, 10));
        match next(&mut seed, 12) {
            0..=3 => {
                txn.put(at.clone(), value(step)).unwrap();
                model.insert(at, value(step));
            }
            4 if !model.contains_key(&at) => {
                txn.insert(at.clone(), value(step)).unwrap();
                model.insert(at, value(step));
            }
            4 | 5 => {
                txn.delete(at.clone()).unwrap();
                model.remove(&at);
            }
            6 => places.push((txn.savepoint(), model.clone())),
            7 => {
                let keep = next(&mut seed, places.len() as u64 + 1) as usize;
                places.truncate(keep);
            }
            8 if !places.is_empty() => {
                let to = next(&mut seed, places.len() as u64) as usize;
                places.truncate(to + 1);
                txn.roll_back_to(&places[to].0).await.unwrap();
                model = places[to].1.clone();
            }
            9 => assert_eq!(scanned(&txn, next(&mut seed, 2) == 0).await, model),
            10 => assert_eq!(txn.get(&at).await.unwrap().as_ref(), model.get(&at)),
            11 => {
                let many: Vec<Bytes> = (0..10).map(key).collect();
                let found = txn.get_many(&many).await.unwrap();
                assert!(many.iter().zip(&found).all(|(key, value)| model.get(key) == value.as_ref()));
            }
            _ => {}
        }
        txn.make_room().await.unwrap();
        assert_eq!(all(&local.client).await, stored, "nobody else sees any of it");
    }
    match next(&mut seed, 3) {
        0 => txn.rollback(),
        1 => drop(txn),
        _ => {
            txn.commit(CommitOptions::default()).await.unwrap();
            assert_eq!(all(&local.client).await, model);
            return;
        }
    }
    drop(places);
    assert_eq!(all(&local.client).await, stored);
}

#[tokio::test]
async fn what_is_spilled_is_as_if_it_were_in_memory() {
    let local = local();
    for seed in 0..150 {
        run(&local, seed).await;
    }
}

#[tokio::test]
async fn a_statement_does_not_see_what_it_writes() {
    let local = local();
    let txn = local.client.begin().await.unwrap();
    (0..10).for_each(|n| txn.put(key(n), value(n)).unwrap());
    let reading = txn.as_statement();
    let before = scanned(&reading, false).await;
    let mut early = reading.scan(ScanOptions { page_bytes: 1, ..ScanOptions::default() });
    let first = early.next_page().await.unwrap().unwrap().rows;
    reading.detach().await.unwrap();
    for n in 0..20 {
        txn.put(key(n % 10), value(100 + n)).unwrap();
        txn.make_room().await.unwrap();
    }
    assert_eq!(scanned(&reading, true).await, before);
    assert_eq!(reading.get(&key(7)).await.unwrap(), Some(value(7)));
    let mut rest: Rows = first.into_iter().collect();
    while let Some(page) = early.next_page().await.unwrap() {
        rest.extend(page.rows);
    }
    assert_eq!(rest, before);
    let after = scanned(&txn, false).await;
    assert_eq!(after.get(&key(9)), Some(&value(119)));
    txn.commit(CommitOptions::default()).await.unwrap();
    assert_eq!(all(&local.client).await, after);
}

#[tokio::test]
async fn readers_go_past_and_the_commit_comes_behind_them() {
    let local = local();
    let large = local.client.begin().await.unwrap();
    (0..10).for_each(|n| large.put(key(n), value(n)).unwrap());
    large.make_room().await.unwrap();
    let began = local.clock.now();
    let reader = local.client.begin().await.unwrap();
    assert_eq!(scanned(&reader, false).await, Rows::new());
    assert_eq!(local.client.get_latest(&key(4)).await.unwrap(), None);
    assert!(local.clock.now().since(began) < Duration::from_millis(100), "nobody waits");
    // Long after the TTL of the first lock it lives.
    local.clock.sleep(Duration::from_millis(600)).await;
    let committed = large.commit(CommitOptions::default()).await.unwrap();
    assert!(committed > reader.start_ts());
    assert_eq!(scanned(&reader, false).await, Rows::new());
    assert_eq!(all(&local.client).await.len(), 10);
}

#[tokio::test]
async fn what_exists_is_not_inserted_and_a_part_that_fails_leaves_nothing() {
    let local = local();
    let first = local.client.begin().await.unwrap();
    first.put(key(5), value(5)).unwrap();
    first.commit(CommitOptions::default()).await.unwrap();
    let txn = local.client.begin().await.unwrap();
    (0..10).for_each(|n| txn.insert(key(n), value(n)).unwrap());
    assert_eq!(txn.make_room().await, Err(Error::AlreadyExists { key: key(5) }));
    assert_eq!(txn.put(key(1), value(1)), Err(Error::Aborted));
    // Its locks go in the background.
    let inserted = async || {
        let other = local.client.begin().await.unwrap();
        (0..5).for_each(|n| other.insert(key(n), value(n)).unwrap());
        other.commit(CommitOptions::default()).await
    };
    while let Err(error) = inserted().await {
        assert!(error.is_retryable(), "{error}");
    }
    // Also one that this very transaction has inserted, when it was spilled meanwhile.
    let twice = local.client.begin().await.unwrap();
    (6..10).for_each(|n| twice.insert(key(n), value(n)).unwrap());
    twice.make_room().await.unwrap();
    twice.insert(key(7), value(7)).unwrap();
    assert_eq!(twice.commit(CommitOptions::default()).await, Err(Error::AlreadyExists { key: key(7) }));
}

#[tokio::test]
async fn who_waits_for_a_spilled_lock_is_called_and_circles_are_found() {
    let local = local();
    let lock = |on_locked| RowLock { mode: RowLockMode::Update, on_locked, absent: true, label: Bytes::new() };
    let large = local.client.begin().await.unwrap();
    (0..8).for_each(|n| large.put(key(n), value(n)).unwrap());
    large.make_room().await.unwrap();
    let other = local.client.begin().await.unwrap();
    other.lock_rows(&[key(9)], &lock(OnLocked::Wait)).await.unwrap();
    assert_eq!(
        other.lock_rows(&[key(1)], &lock(OnLocked::Refuse)).await,
        Err(Error::RowLocked { key: key(1) }),
        "NOWAIT does not wait"
    );
    let waiting = {
        let (other, lock) = (other.clone(), lock(OnLocked::Wait));
        tokio::runtime::Handle::current().spawn(async move { other.lock_rows(&[key(1)], &lock).await })
    };
    // Each waits for the other; the younger one gives way.
    large.lock_rows(&[key(1)], &lock(OnLocked::Wait)).await.unwrap();
    let circle = {
        let (large, lock) = (large.clone(), lock(OnLocked::Wait));
        tokio::runtime::Handle::current().spawn(async move { large.lock_rows(&[key(9)], &lock).await })
    };
    assert!(matches!(waiting.await.unwrap(), Err(Error::Deadlock(_))));
    other.rollback();
    circle.await.unwrap().unwrap();
    // And who waits for no circle has the row when the transaction ends.
    let third = local.client.begin().await.unwrap();
    let waiting =
        tokio::runtime::Handle::current().spawn(async move { third.lock_rows(&[key(2)], &lock(OnLocked::Wait)).await });
    large.commit(CommitOptions::default()).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap()[0].value, Some(value(2)));
}

#[tokio::test]
async fn many_row_locks_are_written_down() {
    let local = local();
    let rows: Vec<Bytes> = (0..10).map(key).collect();
    let filling = local.client.begin().await.unwrap();
    rows.iter().for_each(|key| filling.put(key.clone(), value(1)).unwrap());
    filling.commit(CommitOptions::default()).await.unwrap();
    let lock = |mode, on_locked| RowLock { mode, on_locked, absent: false, label: Bytes::new() };
    let txn = local.client.begin().await.unwrap();
    let locked = txn.lock_rows(&rows, &lock(RowLockMode::Update, OnLocked::Wait)).await.unwrap();
    assert!(locked.iter().all(|row| row.value == Some(value(1))));
    assert!(local.client.row_locks().await.unwrap().len() <= 4);
    // They keep others off all the same, and its owner has them.
    let other = local.client.begin().await.unwrap();
    let waiting =
        other.lock_rows(&rows, &lock(RowLockMode::Update, OnLocked::WaitFor(Duration::from_millis(50)))).await;
    assert_eq!(waiting, Err(Error::LockTimeout));
    other.rollback();
    txn.lock_rows(&rows, &lock(RowLockMode::Update, OnLocked::Refuse)).await.unwrap();
    txn.put(key(1), value(2)).unwrap();
    txn.commit(CommitOptions::default()).await.unwrap();
    assert_eq!(all(&local.client).await.get(&key(1)), Some(&value(2)));
    let shared = local.client.begin().await.unwrap();
    let refused = shared.lock_rows(&rows, &lock(RowLockMode::Share, OnLocked::Wait)).await;
    assert!(matches!(refused, Err(Error::TooLarge(_))));
}

/// Holds every commit back until it is opened.
struct Gate {
    service: Service,
    reached: Notify,
    closed: Semaphore,
}

#[async_trait]
impl Rpc for Gate {
    async fn call(&self, _: StoreId, request: KvRequest) -> Result<Reply, RpcError> {
        if matches!(request.body, Some(Body::Commit(_))) {
            self.reached.notify_one();
            // An error says that the gate is open.
            let _ = self.closed.acquire().await;
        }
        Ok(self.service.call(request).await)
    }

    fn local_store(&self) -> Option<StoreId> {
        None
    }
}

/// A reader comes by when a spilled transaction has its commit timestamp and has not said so to its primary: what the reader sees
/// then, and at the same snapshot when the transaction is committed.
async fn seen_around_a_commit(plant: Plant) -> [Option<Bytes>; 2] {
    let config = ClientConfig { spill_bytes: 0, spill_rows: 0, plant, ..ClientConfig::default() };
    let local = Local::start_with(&[], None, config.clone());
    let gate =
        Arc::new(Gate { service: local.service.clone(), reached: Notify::new(), closed: Semaphore::const_new(0) });
    let writer = Client::with_config(gate.clone(), local.pd.clone(), local.clock.clone(), local.spawn.clone(), config);
    let txn = writer.begin().await.unwrap();
    txn.put(key(1), value(1)).unwrap();
    txn.make_room().await.unwrap();
    let reading = async {
        gate.reached.notified().await;
        let reader = local.client.begin().await.unwrap();
        let before = reader.get(&key(1)).await.unwrap();
        gate.closed.close();
        (reader, before)
    };
    let (committed, (reader, before)) = futures::future::join(txn.commit(CommitOptions::default()), reading).await;
    committed.unwrap();
    assert_eq!(local.client.get_latest(&key(1)).await.unwrap(), Some(value(1)));
    [before, reader.get(&key(1)).await.unwrap()]
}

#[tokio::test]
async fn who_passes_a_spilled_lock_does_not_see_its_transaction_later() {
    assert_eq!(seen_around_a_commit(Plant::default()).await, [None, None]);
}

#[cfg(feature = "planted-bugs")]
#[tokio::test]
async fn passing_a_spilled_lock_unsaid_is_found() {
    let plant = Plant::of(crate::planted::Planted::PassUnsaid);
    assert_eq!(seen_around_a_commit(plant).await, [None, Some(value(1))]);
}
