//! Accounts in several regions; money moves in transactions; judged by the ledger.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proto::{KeyRange, keyspace};
use rand::Rng;

use super::{Seat, Workload};
use crate::{
    check::ledger::{self, Ledger, Transfer},
    runtime::World,
};

const ACCOUNTS: u64 = 9;
const INITIAL: u64 = 100;
/// Accounts and records of this many tables: with the usual borders, in regions of their own.
const TABLES: u64 = 3;
/// Between two operations of a session.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Records read in one page at the end.
const PAGE_BYTES: u64 = 64 << 10;

#[derive(Default)]
struct Notes {
    stopped: bool,
    next_transfer: u64,
    ledger: Ledger,
}

/// The workload.
#[derive(Default)]
pub struct Bank(Mutex<Notes>);

impl Bank {
    async fn transfer(&self, client: &kv::Client, seat: &mut Seat) -> Result<(), kv::Error> {
        let from = seat.rng.random_range(0..ACCOUNTS);
        // Half of the transfers stay in one table: those commit in one round.
        let to = match seat.rng.random_bool(0.5) {
            true => (from + TABLES) % ACCOUNTS,
            false => (from + seat.rng.random_range(1..ACCOUNTS)) % ACCOUNTS,
        };
        let txn = client.begin().await?;
        let source = balance(txn.get(&account_key(from)).await?);
        let target = balance(txn.get(&account_key(to)).await?);
        if source == 0 {
            return Ok(());
        }
        let amount = seat.rng.random_range(1..=source);
        let id = {
            let mut notes = self.0.lock();
            notes.next_transfer += 1;
            let id = notes.next_transfer;
            // Until it is known better: the session may die at any point from here on.
            notes.ledger.unknown.insert(id);
            id
        };
        txn.put(account_key(from), number(source - amount))?;
        txn.put(account_key(to), number(target + amount))?;
        txn.insert(record_key(id, from), record(&Transfer { from, to, amount }))?;
        let committed = txn.commit(kv::CommitOptions::default()).await;
        let mut notes = self.0.lock();
        match &committed {
            Ok(_) => {
                notes.ledger.unknown.remove(&id);
                notes.ledger.acknowledged.insert(id);
                seat.world.count("transfers", 1);
            }
            Err(kv::Error::CommitUnknown(_)) => seat.world.count("commits of unknown outcome", 1),
            Err(error) => {
                notes.ledger.unknown.remove(&id);
                notes.ledger.refused.insert(id);
                seat.world
                    .count(if error.is_retryable() { "transfers in conflict" } else { "transfers not possible" }, 1);
            }
        }
        committed.map(|_| ())
    }

    /// Reads every account by itself, in a seeded order, with time passing in between.
    async fn audit(&self, client: &kv::Client, seat: &mut Seat) -> Result<(), kv::Error> {
        let txn = client.begin().await?;
        let start = seat.rng.random_range(0..ACCOUNTS);
        let mut balances = BTreeMap::new();
        for i in 0..ACCOUNTS {
            let account = (start + i) % ACCOUNTS;
            if let Some(value) = txn.get(&account_key(account)).await? {
                balances.insert(account, balance(Some(value)));
            }
        }
        seat.world.count("snapshots of the bank", 1);
        if let Err(reason) = ledger::check_snapshot(&balances, ACCOUNTS, INITIAL) {
            seat.world.fail(format!("bank at {:?}: {reason}", txn.start_ts()));
        }
        Ok(())
    }
}

impl Workload<kv::Client> for Bank {
    fn prepare(self: Arc<Self>, client: kv::Client) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move { open_accounts(&client).await.map_err(|e| e.to_string()) })
    }

    fn session(self: Arc<Self>, client: kv::Client, mut seat: Seat) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while !self.0.lock().stopped {
                // Errors are noted where they happen; the next attempt comes anyway.
                let _ = match seat.rng.random_bool(0.6) {
                    true => self.transfer(&client, &mut seat).await,
                    false => self.audit(&client, &mut seat).await,
                };
                let pause = seat.rng.random_range(Duration::ZERO..PAUSE_MAX);
                seat.world.sleep(seat.owner, pause).await;
            }
        })
    }

    fn stop(&self) {
        self.0.lock().stopped = true;
    }

    fn judge(
        self: Arc<Self>,
        client: kv::Client,
        world: World,
    ) -> BoxFuture<'static, Result<Result<(), String>, String>> {
        Box::pin(async move {
            let acknowledged = self.0.lock().ledger.acknowledged.clone();
            let (balances, records) = read_all(&client).await.map_err(|e| e.to_string())?;
            world.count("operations judged", records.len() as u64);
            // The last transfers may have ended while this read: those need not be in its snapshot.
            let end = &self.0.lock().ledger;
            let unknown = end.unknown.union(&end.acknowledged).copied().collect();
            let ledger = Ledger { acknowledged, refused: end.refused.clone(), unknown };
            let verdict = ledger::check_snapshot(&balances, ACCOUNTS, INITIAL)
                .and_then(|()| ledger::check_end(&ledger, &records, &balances, INITIAL));
            Ok(verdict)
        })
    }
}

async fn open_accounts(client: &kv::Client) -> Result<(), kv::Error> {
    let txn = client.begin().await?;
    for account in 0..ACCOUNTS {
        txn.put(account_key(account), number(INITIAL))?;
    }
    txn.commit(kv::CommitOptions::default()).await.map(|_| ())
}

/// Balances and records of one snapshot.
async fn read_all(client: &kv::Client) -> Result<(BTreeMap<u64, u64>, BTreeMap<u64, Transfer>), kv::Error> {
    let txn = client.begin().await?;
    let mut balances = BTreeMap::new();
    for account in 0..ACCOUNTS {
        if let Some(value) = txn.get(&account_key(account)).await? {
            balances.insert(account, balance(Some(value)));
        }
    }
    let mut records = BTreeMap::new();
    for table in 0..TABLES {
        let range = record_range(table);
        let mut scan = txn.scan(kv::ScanOptions { range, page_bytes: PAGE_BYTES, ..Default::default() });
        while let Some(page) = scan.next_page().await? {
            records.extend(page.rows.iter().map(|(key, value)| (record_id(key), read_record(value))));
        }
    }
    Ok((balances, records))
}

fn number(n: u64) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

fn balance(value: Option<Bytes>) -> u64 {
    // A missing account is found by the number of accounts.
    value.map_or(0, |v| u64::from_be_bytes(v.as_ref().try_into().expect("a balance has eight bytes")))
}

fn table(of: u64) -> u32 {
    keyspace::FIRST_USER_TABLE + (of % TABLES) as u32
}

fn account_key(account: u64) -> Bytes {
    let mut key = keyspace::index_prefix(keyspace::SQL_KEYSPACE, table(account), 1).to_vec();
    key.extend(account.to_be_bytes());
    key.into()
}

/// A transfer's record lies beside the account that paid.
fn record_key(id: u64, from: u64) -> Bytes {
    let mut key = keyspace::index_prefix(keyspace::SQL_KEYSPACE, table(from), 2).to_vec();
    key.extend(id.to_be_bytes());
    key.into()
}

fn record_range(of: u64) -> KeyRange {
    keyspace::index_range(keyspace::SQL_KEYSPACE, table(of), 2)
}

fn record_id(key: &[u8]) -> u64 {
    u64::from_be_bytes(key[keyspace::PREFIX_LEN..].try_into().expect("a record's key ends with its id"))
}

fn record(transfer: &Transfer) -> Bytes {
    [transfer.from, transfer.to, transfer.amount].iter().flat_map(|n| n.to_be_bytes()).collect()
}

fn read_record(value: &[u8]) -> Transfer {
    let at = |i: usize| u64::from_be_bytes(value[i * 8..i * 8 + 8].try_into().expect("three numbers"));
    Transfer { from: at(0), to: at(1), amount: at(2) }
}
