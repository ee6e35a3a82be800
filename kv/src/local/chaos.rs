//! Transfers over a wire that loses, delays and doubles requests and answers: the sum stays, every acknowledged
//! transfer is there, and no failed one.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::*;
use crate::{ClientConfig, CommitOptions, Error, ScanOptions, client::Txn, planted::Plant};

/// Loses, delays and doubles, from a seed.
struct BadWire {
    service: Service,
    clock: Arc<dyn Clock>,
    state: AtomicU64,
    lost: AtomicU32,
}

impl BadWire {
    fn roll(&self, sides: u64) -> u64 {
        let step = |x: u64| x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let before = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |x| Some(step(x))).unwrap();
        (step(before) >> 33) % sides
    }

    fn later(&self, request: KvRequest) {
        let (service, pause) = (self.service.clone(), self.clock.sleep(Duration::from_millis(self.roll(40))));
        LocalSpawn.spawn(
            async move {
                pause.await;
                service.call(request).await;
            }
            .boxed(),
        );
    }
}

#[async_trait]
impl Rpc for BadWire {
    async fn call(&self, store: StoreId, request: KvRequest) -> Result<Reply, RpcError> {
        let lost = || {
            self.lost.fetch_add(1, Ordering::Relaxed);
            Err(RpcError::Lost(store, "on a bad wire".into()))
        };
        match self.roll(20) {
            0 => Err(RpcError::Unreachable(store, "a bad wire".into())),
            1 | 2 => {
                self.service.call(request).await;
                lost()
            }
            3 | 4 => {
                self.later(request);
                lost()
            }
            5 => {
                self.later(request.clone());
                Ok(self.service.call(request).await)
            }
            _ => Ok(self.service.call(request).await),
        }
    }

    fn local_store(&self) -> Option<StoreId> {
        None
    }
}

const ACCOUNTS: u64 = 9;
const START: i64 = 100;
const WORKERS: u64 = 6;
const TRANSFERS: u64 = 25;

fn account(n: u64) -> Bytes {
    Bytes::from(format!("{}account", ["a", "b", "c", "h", "i", "j", "t", "u", "v"][n as usize]))
}

fn receipt(worker: u64, n: u64) -> Bytes {
    Bytes::from(format!("{}receipt{worker}.{n:03}", ["a", "h", "t"][(n % 3) as usize]))
}

fn number(value: Option<Bytes>) -> i64 {
    value.and_then(|v| std::str::from_utf8(&v).ok()?.parse().ok()).expect("an account holds a number")
}

/// One attempt at a transfer within one region or over several.
async fn transfer(client: &Client, wire: &BadWire, receipt: Bytes) -> Result<(), Error> {
    let txn = client.begin().await?;
    let (from, to, amount) = (wire.roll(ACCOUNTS), wire.roll(ACCOUNTS), wire.roll(5) as i64);
    let have = number(txn.get(&account(from)).await?);
    let other = number(txn.get(&account(to)).await?);
    if from != to {
        txn.put(account(from), (have - amount).to_string())?;
        txn.put(account(to), (other + amount).to_string())?;
    }
    txn.insert(receipt, "done")?;
    txn.commit(CommitOptions::default()).await.map(|_| ())
}

async fn sum(txn: &Txn) -> Result<i64, Error> {
    let mut sum = 0;
    let mut scan = txn.scan(ScanOptions { page_bytes: 60, ..ScanOptions::default() });
    while let Some(page) = scan.next_page().await? {
        let balances = page.rows.into_iter().filter(|(key, _)| key.ends_with(b"account"));
        sum += balances.map(|(_, value)| number(Some(value))).sum::<i64>();
    }
    Ok(sum)
}

async fn run(seed: u64, plant: Plant) {
    let local = Local::start(&[Bytes::from("d"), Bytes::from("m")], None);
    let (service, clock) = (local.service.clone(), local.clock.clone());
    let wire = Arc::new(BadWire { service, clock, state: AtomicU64::new(seed), lost: AtomicU32::new(0) });
    let config = ClientConfig { seed, lock_ttl: Duration::from_millis(40), plant, ..ClientConfig::default() };
    let client = Client::with_config(wire.clone(), local.pd.clone(), local.clock.clone(), local.spawn.clone(), config);
    let setup = local.client.begin().await.unwrap();
    (0..ACCOUNTS).for_each(|n| setup.put(account(n), START.to_string()).unwrap());
    setup.commit(CommitOptions::default()).await.unwrap();

    let worker = |worker: u64| {
        let (client, wire) = (client.clone(), wire.clone());
        async move {
            let mut outcomes = Vec::new();
            for n in 0..TRANSFERS {
                let outcome = transfer(&client, &wire, receipt(worker, n)).await;
                outcomes.push((receipt(worker, n), outcome));
                let snapshot = client.begin().await.unwrap();
                assert_eq!(sum(&snapshot).await, Ok(ACCOUNTS as i64 * START), "seed {seed}");
            }
            outcomes
        }
    };
    let workers = (0..WORKERS).map(|n| tokio::runtime::Handle::current().spawn(worker(n)));
    let mut committed = 0;
    for outcomes in workers.collect::<Vec<_>>() {
        for (receipt, outcome) in outcomes.await.unwrap() {
            let there = local.client.get_latest(&receipt).await.unwrap().is_some();
            match outcome {
                Ok(()) => assert!(there, "seed {seed}: an acknowledged transfer is lost"),
                Err(Error::CommitUnknown(_)) => {}
                Err(error) => {
                    assert!(!there, "seed {seed}: a transfer that failed ({error}) was committed");
                    assert!(error.is_retryable(), "seed {seed}: {error}");
                }
            }
            committed += u32::from(there);
        }
    }
    assert!(committed > 10 && wire.lost.load(Ordering::Relaxed) > 100, "seed {seed} tested too little");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_wire_loses_no_money() {
    for seed in 1..=3 {
        run(seed, Plant::default()).await;
    }
}

#[cfg(feature = "planted-bugs")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_bugs_of_the_client_are_found() {
    use crate::planted::Planted;
    for bug in [Planted::DropSecondaryCommit, Planted::LostIsRefused] {
        let found = tokio::runtime::Handle::current().spawn(run(1, Plant::of(bug))).await;
        assert!(found.is_err_and(|e| e.is_panic()), "{bug:?} was not found");
    }
}
