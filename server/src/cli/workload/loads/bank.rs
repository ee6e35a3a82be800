//! Transfers between accounts that lie in several regions, each with a record of its own.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use history::{Accounts, Operation, Transfer};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio_postgres::Error;

use super::{super::session::Attempt, DISORDERLY, Load};

const ACCOUNTS: Accounts = Accounts { count: 40, initial: 1_000 };
const AMOUNT_MAX: i64 = 10;

const BALANCES: &str = "SELECT balance FROM workload_accounts ORDER BY id";
const LEDGER: &str = "SELECT id, source, target, amount FROM workload_transfers";
const TAKE: &str = "UPDATE workload_accounts SET balance = balance - $2 WHERE id = $1";
const GIVE: &str = "UPDATE workload_accounts SET balance = balance + $2 WHERE id = $1";
const RECORD: &str = "INSERT INTO workload_transfers (id, source, target, amount) VALUES ($1, $2, $3, $4)";

/// The load.
#[derive(Default)]
pub(super) struct Bank(AtomicU64);

impl Bank {
    async fn transfer(&self, attempt: &mut Attempt<'_>, chance: &mut ChaCha8Rng) -> Result<(), Error> {
        let from = chance.random_range(0..ACCOUNTS.count);
        let to = (from + chance.random_range(1..ACCOUNTS.count)) % ACCOUNTS.count;
        let transfer = Transfer {
            id: self.0.fetch_add(1, Ordering::Relaxed),
            from,
            to,
            amount: chance.random_range(1..=AMOUNT_MAX),
        };
        attempt.operations.push(Operation::Transfer(transfer));
        let (id, source, target) = (transfer.id as i64, from as i64, to as i64);
        attempt.begin(false).await?;
        let mut halves = [(TAKE, source), (GIVE, target)];
        if !chance.random_ratio(1, DISORDERLY) {
            halves.sort_by_key(|&(_, account)| account);
        }
        for (half, account) in halves {
            attempt.ask(half, &[&account, &transfer.amount]).await?;
        }
        attempt.ask(RECORD, &[&id, &source, &target, &transfer.amount]).await?;
        match chance.random_ratio(1, 20) {
            true => attempt.give_up().await,
            false => attempt.commit().await,
        }
    }
}

fn balances(rows: &[tokio_postgres::Row]) -> Result<Operation, Error> {
    Ok(Operation::Balances(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?))
}

#[async_trait]
impl Load for Bank {
    fn tables(&self) -> Vec<String> {
        let rows: Vec<_> = (0..ACCOUNTS.count).map(|id| format!("({id}, {})", ACCOUNTS.initial)).collect();
        vec![
            "DROP TABLE IF EXISTS workload_accounts".into(),
            "DROP TABLE IF EXISTS workload_transfers".into(),
            "CREATE TABLE workload_accounts (id bigint PRIMARY KEY, balance bigint NOT NULL)".into(),
            "CREATE TABLE workload_transfers (id bigint PRIMARY KEY, source bigint NOT NULL, target bigint NOT NULL, \
             amount bigint NOT NULL)"
                .into(),
            format!("INSERT INTO workload_accounts VALUES {}", rows.join(", ")),
        ]
    }

    fn borders(&self) -> Vec<String> {
        vec!["ALTER TABLE workload_accounts SPLIT AT VALUES (10), (20), (30)".into()]
    }

    fn accounts(&self) -> Option<Accounts> {
        Some(ACCOUNTS)
    }

    async fn step(&self, attempt: &mut Attempt<'_>, chance: &mut ChaCha8Rng) -> Result<(), Error> {
        if !chance.random_ratio(1, 5) {
            return self.transfer(attempt, chance).await;
        }
        let rows = match chance.random_bool(0.5) {
            true => attempt.alone(BALANCES, &[]).await?,
            false => {
                attempt.begin(true).await?;
                let rows = attempt.ask(BALANCES, &[]).await?;
                attempt.commit().await?;
                rows
            }
        };
        attempt.operations.push(balances(&rows)?);
        Ok(())
    }

    async fn look(&self, attempt: &mut Attempt<'_>) -> Result<(), Error> {
        attempt.begin_snapshot().await?;
        let mut ledger = Vec::new();
        for row in attempt.ask(LEDGER, &[]).await? {
            let number = |at: usize| row.try_get::<_, i64>(at);
            let (id, from, to, amount) = (number(0)?, number(1)?, number(2)?, number(3)?);
            ledger.push(Transfer { id: id as u64, from: from as u64, to: to as u64, amount });
        }
        attempt.operations.push(Operation::Ledger(ledger));
        let rows = attempt.ask(BALANCES, &[]).await?;
        attempt.operations.push(balances(&rows)?);
        attempt.commit().await
    }
}
