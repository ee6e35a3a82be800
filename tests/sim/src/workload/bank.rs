//! Accounts in several regions; money moves in transactions; judged by the ledger. Beside it counters that single
//! operations increase, judged by what those saw.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proto::{KeyRange, keyspace};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Seat, Workload};
use crate::{
    check::{
        counter::{self, Increment},
        ledger::{self, Ledger, Transfer},
    },
    runtime::World,
};

/// Accounts of the bank, from 0.
pub const ACCOUNTS: u64 = 9;
/// What each holds at the start.
pub const INITIAL: u64 = 100;
/// Accounts and records of this many tables: with the usual borders, in regions of their own.
pub const TABLES: u64 = 3;
/// Counters, one in each table.
pub const COUNTERS: u64 = TABLES;
/// Most that one transfer moves: a few of them empty an account.
const AMOUNT_MAX: u64 = INITIAL / 2;
/// Part of the readers that take their time, and how long: old versions are collected meanwhile.
const SLOW_READERS: f64 = 0.04;
const SLOW_MAX: Duration = Duration::from_secs(12);
/// Between two operations of a session.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Records read in one page at the end.
const PAGE_BYTES: u64 = 64 << 10;

/// Something to wait for.
pub type Pause = BoxFuture<'static, ()>;

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// Acknowledged.
    Done(T),
    /// Certainly not done, now or later; somebody else was faster.
    Conflict,
    /// Certainly not done, now or later.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// Balances by account, records of transfers by id, and counters by number.
pub type Books = (BTreeMap<u64, u64>, BTreeMap<u64, Transfer>, BTreeMap<u64, u64>);

/// A bank's doors.
#[async_trait]
pub trait Accounts: Clone + Send + 'static {
    /// Makes all accounts with [`INITIAL`] each, and the counters with 0; may be repeated while nobody else is there.
    async fn open(&mut self) -> Result<(), String>;
    /// Moves money and leaves a record, in one transaction. Refused when the payer has not enough.
    async fn transfer(&mut self, id: u64, transfer: Transfer) -> Outcome<()>;
    /// All balances of one snapshot, account `first` read first; in the midst, where there is one, it takes a `pause`. `None`: no
    /// answer.
    async fn balances(&mut self, first: u64, pause: Pause) -> Option<BTreeMap<u64, u64>>;
    /// Adds one to a counter; what it is afterwards.
    async fn increment(&mut self, counter: u64) -> Outcome<u64>;
    /// Everything, of one snapshot.
    async fn books(&mut self) -> Result<Books, String>;
    /// A key among accounts and records where a region may be cut; `None`: leave them whole.
    fn border(_: &mut ChaCha8Rng) -> Option<Bytes> {
        None
    }
}

#[derive(Default)]
struct Notes {
    stopped: bool,
    next_transfer: u64,
    ledger: Ledger,
    increments: BTreeMap<u64, Vec<Increment>>,
}

/// The workload.
#[derive(Default)]
pub struct Bank(Mutex<Notes>);

impl Bank {
    async fn transfer(&self, client: &mut impl Accounts, seat: &mut Seat) {
        let from = seat.rng.random_range(0..ACCOUNTS);
        // Half of the transfers stay in one table: those commit in one round.
        let to = match seat.rng.random_bool(0.5) {
            true => (from + TABLES) % ACCOUNTS,
            false => (from + seat.rng.random_range(1..ACCOUNTS)) % ACCOUNTS,
        };
        let amount = seat.rng.random_range(1..=AMOUNT_MAX);
        let id = {
            let mut notes = self.0.lock();
            notes.next_transfer += 1;
            let id = notes.next_transfer;
            // Until it is known better: the session may die at any point from here on.
            notes.ledger.unknown.insert(id);
            id
        };
        let outcome = client.transfer(id, Transfer { from, to, amount }).await;
        let mut notes = self.0.lock();
        match outcome {
            Outcome::Unknown => return seat.world.count("commits of unknown outcome", 1),
            Outcome::Done(()) => seat.world.count("transfers", 1),
            Outcome::Conflict => seat.world.count("transfers in conflict", 1),
            Outcome::Refused => seat.world.count("transfers not possible", 1),
        }
        notes.ledger.unknown.remove(&id);
        match outcome {
            Outcome::Done(()) => notes.ledger.acknowledged.insert(id),
            _ => notes.ledger.refused.insert(id),
        };
    }

    /// Reads every account, in a seeded order, with time passing in between.
    async fn audit(&self, client: &mut impl Accounts, seat: &mut Seat) {
        let first = seat.rng.random_range(0..ACCOUNTS);
        let slow = seat.rng.random_bool(SLOW_READERS);
        let pause = if slow { seat.rng.random_range(Duration::ZERO..SLOW_MAX) } else { Duration::ZERO };
        let pause = Box::pin(seat.world.sleep(seat.owner, pause));
        let Some(balances) = client.balances(first, pause).await else { return };
        seat.world.count("snapshots of the bank", 1);
        seat.world.count("slow snapshots of the bank", u64::from(slow));
        if let Err(reason) = ledger::check_snapshot(&balances, ACCOUNTS, INITIAL) {
            seat.world.fail(format!("bank, read from account {first} on: {reason}"));
        }
    }

    async fn increment(&self, client: &mut impl Accounts, seat: &mut Seat) {
        let counter = seat.rng.random_range(0..COUNTERS);
        let at = {
            let mut notes = self.0.lock();
            let increments = notes.increments.entry(counter).or_default();
            increments.push(Increment { called: seat.world.now(), answered: None });
            increments.len() - 1
        };
        let outcome = client.increment(counter).await;
        let mut notes = self.0.lock();
        let increments = notes.increments.entry(counter).or_default();
        match outcome {
            Outcome::Done(value) => {
                seat.world.count("increments", 1);
                increments[at].answered = Some(Ok((seat.world.now(), value)));
            }
            Outcome::Unknown => seat.world.count("increments of unknown outcome", 1),
            Outcome::Conflict | Outcome::Refused => increments[at].answered = Some(Err(())),
        }
    }

    /// `books` were read after `asked`.
    fn verdict(&self, ledger: &Ledger, books: &Books, asked: Duration) -> Result<(), String> {
        let (balances, records, counters) = books;
        ledger::check_snapshot(balances, ACCOUNTS, INITIAL)?;
        ledger::check_end(ledger, records, balances, INITIAL)?;
        let notes = self.0.lock();
        for (number, end) in counters {
            let increments = notes.increments.get(number).into_iter().flatten();
            // The last ones may have ended while this read: those need not be counted.
            let known = |one: &Increment| match one.answered {
                Some(Ok((at, _))) if at >= asked => Increment { answered: None, ..*one },
                _ => *one,
            };
            let increments: Vec<Increment> = increments.map(known).collect();
            counter::check(&increments, *end).map_err(|reason| format!("counter {number}: {reason}"))?;
        }
        match counters.len() as u64 {
            COUNTERS => Ok(()),
            found => Err(format!("{found} counters, should be {COUNTERS}")),
        }
    }
}

impl<C: Accounts> Workload<C> for Bank {
    fn prepare(self: Arc<Self>, mut client: C) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move { client.open().await })
    }

    fn session(self: Arc<Self>, mut client: C, mut seat: Seat) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while !self.0.lock().stopped {
                match seat.rng.random_range(0..10) {
                    0..5 => self.transfer(&mut client, &mut seat).await,
                    5..8 => self.audit(&mut client, &mut seat).await,
                    _ => self.increment(&mut client, &mut seat).await,
                }
                let pause = seat.rng.random_range(Duration::ZERO..PAUSE_MAX);
                seat.world.sleep(seat.owner, pause).await;
            }
        })
    }

    fn border(&self, rng: &mut ChaCha8Rng) -> Option<Bytes> {
        C::border(rng)
    }

    fn stop(&self) {
        self.0.lock().stopped = true;
    }

    fn judge(self: Arc<Self>, mut client: C, world: World) -> BoxFuture<'static, Result<Result<(), String>, String>> {
        Box::pin(async move {
            let (asked, acknowledged) = (world.now(), self.0.lock().ledger.acknowledged.clone());
            let books = client.books().await?;
            world.count("operations judged", books.1.len() as u64);
            // The last transfers may have ended while this read: those need not be in its snapshot.
            let ledger = {
                let end = &self.0.lock().ledger;
                let unknown = end.unknown.union(&end.acknowledged).copied().collect();
                Ledger { acknowledged, refused: end.refused.clone(), unknown }
            };
            Ok(self.verdict(&ledger, &books, asked))
        })
    }
}

#[async_trait]
impl Accounts for kv::Client {
    fn border(rng: &mut ChaCha8Rng) -> Option<Bytes> {
        let (index, id) = if rng.random() { (1, rng.random_range(0..ACCOUNTS)) } else { (2, rng.random_range(0..200)) };
        Some(key(rng.random_range(0..TABLES), index, id))
    }

    async fn open(&mut self) -> Result<(), String> {
        let done = async {
            let txn = self.begin().await?;
            for account in 0..ACCOUNTS {
                txn.put(account_key(account), number(INITIAL))?;
            }
            for counter in 0..COUNTERS {
                txn.put(counter_key(counter, 0), number(0))?;
            }
            txn.commit(kv::CommitOptions::default()).await
        };
        done.await.map(|_| ()).map_err(|e: kv::Error| e.to_string())
    }

    async fn transfer(&mut self, id: u64, transfer: Transfer) -> Outcome<()> {
        let Transfer { from, to, amount } = transfer;
        let done = async {
            let txn = self.begin().await?;
            let source = balance(txn.get(&account_key(from)).await?);
            let target = balance(txn.get(&account_key(to)).await?);
            if source < amount {
                return Ok(false);
            }
            txn.put(account_key(from), number(source - amount))?;
            txn.put(account_key(to), number(target + amount))?;
            txn.insert(record_key(id, from), record(&transfer))?;
            txn.commit(kv::CommitOptions::default()).await.map(|_| true)
        };
        match done.await {
            Ok(true) => Outcome::Done(()),
            Ok(false) => Outcome::Refused,
            Err(error) => failed(&error),
        }
    }

    async fn balances(&mut self, first: u64, pause: Pause) -> Option<BTreeMap<u64, u64>> {
        balances(&self.begin().await.ok()?, first, pause).await.ok()
    }

    async fn increment(&mut self, counter: u64) -> Outcome<u64> {
        let done = async {
            let txn = self.begin().await?;
            let value = counted(&txn, counter).await?.unwrap_or_default() + 1;
            txn.delete(counter_key(counter, value - 1))?;
            txn.put(counter_key(counter, value), number(value))?;
            txn.commit(kv::CommitOptions::default()).await.map(|_| value)
        };
        match done.await {
            Ok(value) => Outcome::Done(value),
            Err(error) => failed(&error),
        }
    }

    async fn books(&mut self) -> Result<Books, String> {
        read_all(self).await.map_err(|e| e.to_string())
    }
}

pub(super) fn failed<T>(error: &kv::Error) -> Outcome<T> {
    match error {
        kv::Error::CommitUnknown(_) => Outcome::Unknown,
        error if error.is_retryable() => Outcome::Conflict,
        _ => Outcome::Refused,
    }
}

pub(super) async fn balances(txn: &kv::Txn, first: u64, pause: Pause) -> Result<BTreeMap<u64, u64>, kv::Error> {
    let mut balances = BTreeMap::new();
    let mut pause = Some(pause);
    for account in (0..ACCOUNTS).map(|i| (first + i) % ACCOUNTS) {
        if balances.len() as u64 > ACCOUNTS / 2
            && let Some(pause) = pause.take()
        {
            pause.await;
        }
        if let Some(value) = txn.get(&account_key(account)).await? {
            balances.insert(account, balance(Some(value)));
        }
    }
    Ok(balances)
}

/// Balances, records and counters of one snapshot.
pub(super) async fn read_all(client: &kv::Client) -> Result<Books, kv::Error> {
    let txn = client.begin().await?;
    let mut counters = BTreeMap::new();
    let mut records = BTreeMap::new();
    for table in 0..TABLES {
        let range = index_range(table, 2);
        let mut scan = txn.scan(kv::ScanOptions { range, page_bytes: PAGE_BYTES, ..Default::default() });
        while let Some(page) = scan.next_page().await? {
            records.extend(page.rows.iter().map(|(key, value)| (record_id(key), read_record(value))));
        }
        if let Some(value) = counted(&txn, table).await? {
            counters.insert(table, value);
        }
    }
    Ok((balances(&txn, 0, Box::pin(std::future::ready(()))).await?, records, counters))
}

pub(super) fn number(n: u64) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// A balance; 0 for none.
pub(super) fn balance(value: Option<Bytes>) -> u64 {
    // A missing account is found by the number of accounts.
    value.map_or(0, |v| u64::from_be_bytes(v.as_ref().try_into().expect("a balance has eight bytes")))
}

fn key(table: u64, index: u32, id: u64) -> Bytes {
    let table = keyspace::FIRST_USER_TABLE + (table % TABLES) as u32;
    let mut key = keyspace::index_prefix(keyspace::SQL_KEYSPACE, table, index).to_vec();
    key.extend(id.to_be_bytes());
    key.into()
}

/// Where an account stands.
pub(super) fn account_key(account: u64) -> Bytes {
    key(account, 1, account)
}

/// A transfer's record lies beside the account that paid.
pub(super) fn record_key(id: u64, from: u64) -> Bytes {
    key(from, 2, id)
}

/// A counter stands under another key each time, so that there is something to delete.
pub(super) fn counter_key(counter: u64, value: u64) -> Bytes {
    key(counter, 3, value)
}

/// A counter's value. Should an old one be seen beside the newest, it is the old one.
pub(super) async fn counted(txn: &kv::Txn, counter: u64) -> Result<Option<u64>, kv::Error> {
    let range = index_range(counter, 3);
    let mut scan = txn.scan(kv::ScanOptions { range, page_bytes: PAGE_BYTES, ..Default::default() });
    let mut lowest = None;
    while let Some(page) = scan.next_page().await? {
        let values = page.rows.into_iter().map(|(_, value)| balance(Some(value)));
        lowest = lowest.into_iter().chain(values).min();
    }
    Ok(lowest)
}

/// An index of the table that `of` is in.
pub(super) fn index_range(of: u64, index: u32) -> KeyRange {
    keyspace::index_range(keyspace::SQL_KEYSPACE, keyspace::FIRST_USER_TABLE + (of % TABLES) as u32, index)
}

/// The number that a key ends with.
pub(super) fn record_id(key: &[u8]) -> u64 {
    u64::from_be_bytes(key[keyspace::PREFIX_LEN..].try_into().expect("a record's key ends with its id"))
}

pub(super) fn record(transfer: &Transfer) -> Bytes {
    [transfer.from, transfer.to, transfer.amount].iter().flat_map(|n| n.to_be_bytes()).collect()
}

fn read_record(value: &[u8]) -> Transfer {
    let at = |i: usize| u64::from_be_bytes(value[i * 8..i * 8 + 8].try_into().expect("three numbers"));
    Transfer { from: at(0), to: at(1), amount: at(2) }
}
