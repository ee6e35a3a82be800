//! Lists to which transactions append while they read others; judged by the cycles that their reads show.
//!
//! A transaction does two to four things with a few lists in several regions, with pauses in between: it reads one, alone or by a
//! scan, or reads it and puts a value at its end. Values are unique, so each read tells which appends it has seen. A list that has
//! become long is left behind for a new one, which is read before it is there.
//!
//! At SERIALIZABLE all of it must be as if each transaction had happened at one instant between its beginning and its end, and one that only
//! reads must never be refused. At REPEATABLE READ write skew is allowed. At READ COMMITTED, where every read has a snapshot of its own and
//! rows are locked before they are changed, so is everything but circles of writes and of what was seen.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use history::{FORMAT, Header, History, Level, Operation, Outcome, Promise, Transaction};
use kv::{Client, CommitOptions, Error, OnLocked, RowLock, RowLockMode, ScanOptions, Txn};
use parking_lot::Mutex;
use proto::{KeyRange, keyspace};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Seat, Workload};
use crate::runtime::World;

/// Lists in use at a time. Few, so that they are contended.
const LISTS: usize = 5;
/// Lists lie in this many tables: with the usual borders, in regions of their own.
const TABLES: u64 = 3;
/// Appends that are tried on a list before it is left behind: the checker keeps every read of it.
const LONG: u64 = 40;
/// Things a transaction does.
const OPERATIONS: std::ops::RangeInclusive<usize> = 2..=4;
/// Between two of them, so that transactions overlap.
const THOUGHT_MAX: Duration = Duration::from_millis(40);
/// Between two transactions of a session.
const PAUSE_MAX: Duration = Duration::from_millis(60);
/// How long a row lock is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The workload.
pub struct Append {
    level: Level,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    stopped: bool,
    sessions: u64,
    next_value: u64,
    /// Which list is in use at each place, and how many appends were tried.
    lists: [(u64, u64); LISTS],
    transactions: Vec<Transaction>,
}

impl Append {
    /// With transactions at this level; [`Level::Strict`] is SERIALIZABLE.
    pub fn new(level: Level) -> Self {
        Append { level, notes: Mutex::default() }
    }

    fn new_session(&self) -> u64 {
        let mut notes = self.notes.lock();
        notes.sessions += 1;
        notes.sessions
    }

    /// A list in use; if it is `for_append`, with a new value.
    fn pick(&self, rng: &mut ChaCha8Rng, for_append: bool) -> (u64, u64) {
        let mut notes = self.notes.lock();
        let at = rng.random_range(0..LISTS);
        let list = notes.lists[at].0 * LISTS as u64 + at as u64;
        if !for_append {
            return (list, 0);
        }
        notes.next_value += 1;
        notes.lists[at].1 += 1;
        if notes.lists[at].1 >= LONG {
            notes.lists[at] = (notes.lists[at].0 + 1, 0);
        }
        (list, notes.next_value)
    }

    async fn transaction(&self, client: &Client, seat: &mut Seat, session: u64) -> Result<(), Error> {
        let invoked_ns = nanos(&seat.world);
        let read_only = seat.rng.random_bool(0.2);
        let txn = match self.level {
            Level::Strict | Level::Serializable => client.begin_serializable().await?,
            Level::RepeatableRead | Level::ReadCommitted => client.begin().await?,
        };
        let mut operations = Vec::new();
        for _ in 0..seat.rng.random_range(OPERATIONS) {
            let append = !read_only && seat.rng.random_bool(0.5);
            let (list, value) = self.pick(&mut seat.rng, append);
            let done = match append {
                true => self.append(&txn, list, value, &mut operations).await,
                false => self.read(&txn, list, seat.rng.random_bool(0.3), &mut operations).await,
            };
            if let Err(error) = done {
                txn.rollback();
                return Err(error);
            }
            let thought = seat.rng.random_range(Duration::ZERO..THOUGHT_MAX);
            seat.world.sleep(seat.owner, thought).await;
        }
        let at = {
            let mut notes = self.notes.lock();
            // Until it is known better: the session may die at any point from here on.
            let outcome = Outcome::Unknown;
            notes.transactions.push(Transaction { session, invoked_ns, returned_ns: invoked_ns, outcome, operations });
            notes.transactions.len() - 1
        };
        let result = txn.commit(CommitOptions::default()).await.map(|_| ());
        if read_only && let Err(error) = &result {
            seat.world.fail(format!("a transaction that only reads was refused: {error}"));
        }
        let noted = &mut self.notes.lock().transactions[at];
        noted.returned_ns = nanos(&seat.world);
        noted.outcome = match &result {
            Ok(()) => Outcome::Ok,
            Err(Error::CommitUnknown(_)) => Outcome::Unknown,
            Err(_) => Outcome::Fail,
        };
        result
    }

    /// What the next thing of a transaction reads from.
    fn view(&self, txn: &Txn) -> Txn {
        if self.level == Level::ReadCommitted { txn.at_fresh_snapshot() } else { txn.clone() }
    }

    async fn read(&self, txn: &Txn, list: u64, by_scan: bool, done: &mut Vec<Operation>) -> Result<(), Error> {
        let (txn, key) = (self.view(txn), key(list));
        let value = match by_scan {
            false => txn.get(&key).await?,
            true => {
                let range = KeyRange::new(key, self::key(list + LISTS as u64));
                let mut scan = txn.scan(ScanOptions { range, ..ScanOptions::default() });
                let mut found = None;
                while let Some(page) = scan.next_page().await? {
                    found = found.or(page.rows.into_iter().next().map(|(_, value)| value));
                }
                found
            }
        };
        done.push(Operation::List(list, values(value)));
        Ok(())
    }

    async fn append(&self, txn: &Txn, list: u64, value: u64, done: &mut Vec<Operation>) -> Result<(), Error> {
        let key = key(list);
        let before = match self.level {
            Level::ReadCommitted => {
                let on_locked = OnLocked::WaitFor(PATIENCE);
                let lock = RowLock { mode: RowLockMode::NoKeyUpdate, on_locked, absent: true, label: Bytes::new() };
                txn.lock_rows(std::slice::from_ref(&key), &lock).await?.into_iter().next().and_then(|row| row.value)
            }
            _ => txn.get(&key).await?,
        };
        let mut list_bytes = before.as_deref().unwrap_or_default().to_vec();
        list_bytes.extend(value.to_be_bytes());
        txn.put(key, list_bytes)?;
        done.push(Operation::List(list, values(before)));
        done.push(Operation::Append(list, value));
        Ok(())
    }

    fn verdict(&self, world: &World) -> Result<(), String> {
        let transactions = self.notes.lock().transactions.clone();
        world.count("transactions judged", transactions.len() as u64);
        let header = Header { format: FORMAT, workload: history::Workload::Append, level: self.level, accounts: None };
        let verdict = history::check(&History { header, transactions }, Promise::in_real_time(self.level));
        match verdict {
            Ok(verdict) if verdict.is_valid() => Ok(()),
            Ok(verdict) => Err(verdict.to_string()),
            Err(malformed) => Err(malformed.to_string()),
        }
    }
}

fn nanos(world: &World) -> u64 {
    world.now().as_nanos() as u64
}

/// Lists that were in use at one place lie side by side.
fn key(list: u64) -> Bytes {
    let (place, life) = (list % LISTS as u64, list / LISTS as u64);
    let table = keyspace::FIRST_USER_TABLE + (place % TABLES) as u32;
    let mut key = keyspace::index_prefix(keyspace::SQL_KEYSPACE, table, 1).to_vec();
    key.extend(place.to_be_bytes());
    key.extend(life.to_be_bytes());
    key.into()
}

fn values(value: Option<Bytes>) -> Vec<u64> {
    let value = value.unwrap_or_default();
    value.chunks(8).map(|chunk| chunk.try_into().map_or(u64::MAX, u64::from_be_bytes)).collect()
}

fn told(result: &Result<(), Error>) -> &'static str {
    match result {
        Ok(()) => "lists read and appended to",
        Err(Error::ReadConflict { .. }) => "transactions whose reads were out of date",
        Err(Error::Conflict { .. }) => "lists appended to by somebody else",
        Err(Error::CommitUnknown(_)) => "commits of unknown outcome",
        Err(_) => "transactions refused",
    }
}

impl Workload<Client> for Append {
    fn prepare(self: Arc<Self>, client: Client) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move {
            let keys: Vec<Bytes> = (0..LISTS as u64).map(key).collect();
            let txn = client.begin().await.map_err(|error| error.to_string())?;
            txn.get_many(&keys).await.map(|_| ()).map_err(|error| error.to_string())
        })
    }

    fn session(self: Arc<Self>, client: Client, mut seat: Seat) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut session = self.new_session();
            while !self.notes.lock().stopped {
                let result = self.transaction(&client, &mut seat, session).await;
                seat.world.count(told(&result), 1);
                if let Err(Error::CommitUnknown(_)) = result {
                    // What it did may still happen, whenever.
                    session = self.new_session();
                }
                let pause = seat.rng.random_range(Duration::ZERO..PAUSE_MAX);
                seat.world.sleep(seat.owner, pause).await;
            }
        })
    }

    fn border(&self, rng: &mut ChaCha8Rng) -> Option<Bytes> {
        Some(key(rng.random_range(0..LISTS as u64 * 8)))
    }

    fn stop(&self) {
        self.notes.lock().stopped = true;
    }

    fn judge(self: Arc<Self>, client: Client, world: World) -> BoxFuture<'static, Result<Result<(), String>, String>> {
        Box::pin(async move {
            // A last look: what was acknowledged must still be there.
            let lives = self.notes.lock().lists.iter().map(|(life, _)| life + 1).max().unwrap_or_default();
            let lists: Vec<u64> = (0..lives * LISTS as u64).collect();
            let invoked_ns = nanos(&world);
            let txn = client.begin().await.map_err(|error| error.to_string())?;
            let keys: Vec<Bytes> = lists.iter().map(|list| key(*list)).collect();
            let found = txn.get_many(&keys).await.map_err(|error| error.to_string())?;
            let operations =
                lists.into_iter().zip(found).map(|(list, value)| Operation::List(list, values(value))).collect();
            let (session, returned_ns) = (self.new_session(), nanos(&world));
            let look = Transaction { session, invoked_ns, returned_ns, outcome: Outcome::Ok, operations };
            self.notes.lock().transactions.push(look);
            Ok(self.verdict(&world))
        })
    }
}
