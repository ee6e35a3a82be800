//! Transactions that keep each other off by row locks, and by nothing else.
//!
//! Each pair of purses may together be taken down to nothing and no further. Who takes locks the pair's guard row, which is never
//! written, and the purse that pays; the other purse is only read. Two that take from both purses of a pair at once
//! have no write in common: a guard that two of them hold, or that one lost and still trusts, shows as a debt. And what was
//! given and taken must be there at the end: a purse that is written under a lock that went shows in the sum.
//!
//! ```text
//!   guard 1 ─ purse 1 left: 3 ─ purse 1 right: 2      take 4 from the left: −1 and 2 are together not below 0
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use kv::{Client, CommitOptions, Error, OnLocked, RowLock, RowLockMode, Txn};
use parking_lot::Mutex;
use proto::keyspace;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Seat, Workload};
use crate::runtime::{Owner, World};

/// Few, so that they are contended.
const PAIRS: u64 = 2;
/// What is taken or given at once at most.
const AMOUNT_MAX: i64 = 9;
/// How long a transaction thinks while it holds the guard: long enough for a leader to go in between.
const THOUGHT_MAX: Duration = Duration::from_millis(500);
/// How long a session waits for a guard before it does something else.
const PATIENCE: Duration = Duration::from_secs(5);

/// The workload.
#[derive(Default)]
pub struct Guard {
    stopped: AtomicBool,
    accounts: Mutex<[Account; PAIRS as usize]>,
}

/// What a pair should hold.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// All that is known to have happened.
    sum: i64,
    /// Taken, and given, without an answer so far.
    unknown: (i64, i64),
}

impl Guard {
    /// A change of a pair begins: until it is known better, nobody knows whether it happens.
    fn begin(&self, pair: u64, change: i64) {
        let account = &mut self.accounts.lock()[pair as usize];
        account.unknown.0 += change.min(0);
        account.unknown.1 += change.max(0);
    }

    /// How it ended.
    fn end(&self, pair: u64, change: i64, result: &Result<(), Error>) {
        if let Err(Error::CommitUnknown(_)) = result {
            return;
        }
        let account = &mut self.accounts.lock()[pair as usize];
        account.unknown.0 -= change.min(0);
        account.unknown.1 -= change.max(0);
        account.sum += if result.is_ok() { change } else { 0 };
    }

    async fn commit(&self, txn: &Txn, pair: u64, change: i64) -> Result<(), Error> {
        self.begin(pair, change);
        let result = txn.commit(CommitOptions::default()).await.map(|_| ());
        self.end(pair, change, &result);
        result
    }
}

#[derive(Clone, Copy)]
enum Side {
    Left = 1,
    Right = 2,
}

/// Guards and the two sides lie in tables of their own: with the usual borders, in regions of their own.
fn key(table: u32, pair: u64) -> Bytes {
    let mut key = keyspace::index_prefix(keyspace::SQL_KEYSPACE, keyspace::FIRST_USER_TABLE + table, 1).to_vec();
    key.extend(pair.to_be_bytes());
    key.into()
}

fn amount(value: Option<Bytes>) -> i64 {
    // A purse that is gone shows in the next sum.
    value.and_then(|value| value[..].try_into().ok()).map_or(i64::MIN / 4, i64::from_be_bytes)
}

fn stored(amount: i64) -> Bytes {
    Bytes::copy_from_slice(&amount.to_be_bytes())
}

fn lock(mode: RowLockMode) -> RowLock {
    RowLock { mode, on_locked: OnLocked::WaitFor(PATIENCE), absent: false, label: Bytes::new() }
}

async fn locked(txn: &Txn, key: Bytes, mode: RowLockMode) -> Result<i64, Error> {
    let rows = txn.lock_rows(&[key], &lock(mode)).await?;
    Ok(amount(rows.into_iter().next().and_then(|row| row.value)))
}

/// Whether there was enough.
async fn take(guard: &Guard, client: &Client, seat: &mut Seat, pair: u64) -> Result<bool, Error> {
    let txn = client.begin().await?;
    let (own, other) = if seat.rng.random() { (Side::Left, Side::Right) } else { (Side::Right, Side::Left) };
    locked(&txn, key(0, pair), RowLockMode::Update).await?;
    let there = locked(&txn, key(own as u32, pair), RowLockMode::NoKeyUpdate).await?;
    let beside = amount(txn.at_fresh_snapshot().get(&key(other as u32, pair)).await?);
    // Often all of it: then whoever else believes to have the guard makes a debt.
    let wanted = match seat.rng.random_bool(0.6) {
        true => (there + beside).max(1),
        false => seat.rng.random_range(1..=AMOUNT_MAX),
    };
    let thought = seat.rng.random_range(Duration::ZERO..THOUGHT_MAX);
    seat.world.sleep(seat.owner, thought).await;
    if there + beside < wanted {
        txn.rollback();
        return Ok(false);
    }
    txn.put(key(own as u32, pair), stored(there - wanted))?;
    guard.commit(&txn, pair, -wanted).await.map(|()| true)
}

async fn give(guard: &Guard, client: &Client, seat: &mut Seat, pair: u64) -> Result<(), Error> {
    let txn = client.begin().await?;
    let side = if seat.rng.random() { Side::Left } else { Side::Right };
    // Giving breaks nothing. Givers with the guard do not keep each other off, but takers.
    if seat.rng.random_bool(0.3) {
        locked(&txn, key(0, pair), RowLockMode::KeyShare).await?;
    }
    let there = locked(&txn, key(side as u32, pair), RowLockMode::NoKeyUpdate).await?;
    let given = seat.rng.random_range(1..=AMOUNT_MAX);
    let thought = seat.rng.random_range(Duration::ZERO..THOUGHT_MAX);
    seat.world.sleep(seat.owner, thought).await;
    txn.put(key(side as u32, pair), stored(there + given))?;
    guard.commit(&txn, pair, given).await
}

async fn sum(client: &Client, pair: u64) -> Result<i64, Error> {
    let keys = [key(Side::Left as u32, pair), key(Side::Right as u32, pair)];
    let found = client.begin().await?.get_many(&keys).await?;
    Ok(found.into_iter().map(amount).sum())
}

fn check(world: &World, pair: u64, sum: i64) {
    if sum < 0 {
        world.fail(format!("pair {pair} has {sum}: two have taken from it at once"));
    }
}

impl Workload<Client> for Guard {
    fn prepare(self: Arc<Self>, client: Client) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move {
            let written = async {
                let txn = client.begin().await?;
                for pair in 0..PAIRS {
                    [0, 1, 2].into_iter().try_for_each(|table| txn.put(key(table, pair), stored(0)))?;
                }
                txn.commit(CommitOptions::default()).await
            };
            written.await.map(|_| ()).map_err(|error: Error| error.to_string())
        })
    }

    fn session(self: Arc<Self>, client: Client, mut seat: Seat) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while !self.stopped.load(Ordering::Relaxed) {
                let pair = seat.rng.random_range(0..PAIRS);
                let (what, error) = match seat.rng.random_range(0..10) {
                    0..5 => match take(&self, &client, &mut seat, pair).await {
                        Ok(true) => ("taken under a guard", None),
                        Ok(false) => ("too little under a guard", None),
                        Err(error) => ("", Some(error)),
                    },
                    5..8 => ("given beside a guard", give(&self, &client, &mut seat, pair).await.err()),
                    _ => match sum(&client, pair).await {
                        Ok(sum) => {
                            check(&seat.world, pair, sum);
                            ("guarded pairs read", None)
                        }
                        Err(error) => ("", Some(error)),
                    },
                };
                match error {
                    None => seat.world.count(what, 1),
                    Some(Error::Deadlock(_)) => seat.world.count("deadlocks", 1),
                    Some(Error::LockTimeout) => seat.world.count("row locks not waited for longer", 1),
                    Some(Error::Conflict { .. }) => seat.world.count("row locks lost", 1),
                    Some(_) => seat.world.count("guarded transactions refused or unknown", 1),
                }
            }
        })
    }

    fn border(&self, rng: &mut ChaCha8Rng) -> Option<Bytes> {
        Some(key(rng.random_range(0..3), rng.random_range(0..PAIRS)))
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn judge(self: Arc<Self>, client: Client, world: World) -> BoxFuture<'static, Result<Result<(), String>, String>> {
        Box::pin(async move {
            // Nobody begins any more; the last ones end.
            world.sleep(Owner::Harness, PATIENCE + THOUGHT_MAX * 4).await;
            for pair in 0..PAIRS {
                let Account { sum: known, unknown } = self.accounts.lock()[pair as usize];
                let sum = sum(&client, pair).await.map_err(|error| error.to_string())?;
                check(&world, pair, sum);
                if sum < known + unknown.0 || sum > known + unknown.1 {
                    return Ok(Err(format!("pair {pair} has {sum}, should have {known}, give or take {unknown:?}")));
                }
            }
            // Whatever became of its owners, every row can be locked again.
            let txn = client.begin().await.map_err(|error| error.to_string())?;
            for pair in 0..PAIRS {
                locked(&txn, key(0, pair), RowLockMode::Update).await.map_err(|error| error.to_string())?;
            }
            txn.rollback();
            Ok(Ok(()))
        })
    }
}
