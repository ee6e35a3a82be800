//! The bank in SQL: accounts, records and counters are rows of three tables.
//!
//! ```text
//!   bank_0, bank_1, bank_2 (kind, id, value, payer, payee), key (kind, id)
//!     kind 1  account   value: its balance
//!     kind 2  record    value: the amount; beside the account that paid
//!     kind 3  counter   value: how often it was increased
//! ```

use std::collections::BTreeMap;

use async_trait::async_trait;
use sql::{SqlError, SqlState};

use super::{Connection, SqlClient, connection::is_unknown};
use crate::{
    check::ledger::Transfer,
    workload::bank::{ACCOUNTS, Accounts, Books, COUNTERS, INITIAL, Outcome, Pause, TABLES},
};

/// The statements of one table.
struct Statements {
    create: &'static str,
    open: &'static str,
    pay: &'static str,
    earn: &'static str,
    record: &'static str,
    increment: &'static str,
    balances: &'static str,
    records: &'static str,
    counters: &'static str,
}

macro_rules! statements {
    ($($table:literal),*) => {
        [$(Statements {
            create: concat!(
                "CREATE TABLE IF NOT EXISTS ", $table,
                " (kind int, id bigint, value bigint NOT NULL, payer bigint, payee bigint, PRIMARY KEY (kind, id))"
            ),
            open: concat!("INSERT INTO ", $table, " (kind, id, value) VALUES ($1, $2, $3)"),
            pay: concat!(
                "UPDATE ", $table, " SET value = value - $1 WHERE kind = 1 AND id = $2 AND value >= $1 RETURNING value"
            ),
            earn: concat!("UPDATE ", $table, " SET value = value + $1 WHERE kind = 1 AND id = $2"),
            record: concat!("INSERT INTO ", $table, " VALUES (2, $1, $2, $3, $4)"),
            increment: concat!("UPDATE ", $table, " SET value = value + 1 WHERE kind = 3 AND id = $1 RETURNING value"),
            balances: concat!("SELECT id, value FROM ", $table, " WHERE kind = 1"),
            records: concat!("SELECT id, payer, payee, value FROM ", $table, " WHERE kind = 2 ORDER BY id"),
            counters: concat!("SELECT id, value FROM ", $table, " WHERE kind = 3"),
        }),*]
    };
}

const BANK: [Statements; TABLES as usize] = statements!("bank_0", "bank_1", "bank_2");
const ACCOUNT: i64 = 1;
const COUNTER: i64 = 3;

fn of(id: u64) -> &'static Statements {
    &BANK[(id % TABLES) as usize]
}

/// `Ok(None)`: not enough money.
type Moved = Result<Option<()>, SqlError>;

impl Connection {
    async fn open_bank(&mut self) -> Result<(), SqlError> {
        for statements in &BANK {
            self.query(statements.create).await?;
        }
        let accounts = (0..ACCOUNTS).map(|id| (ACCOUNT, id, INITIAL));
        for (kind, id, value) in accounts.chain((0..COUNTERS).map(|id| (COUNTER, id, 0))) {
            match self.run(of(id).open, &[kind, id as i64, value as i64]).await {
                // An earlier attempt got so far.
                Err(error) if error.sqlstate == SqlState::UNIQUE_VIOLATION => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    async fn pay(&mut self, id: u64, transfer: Transfer) -> Moved {
        let Transfer { from, to, amount } = transfer;
        self.query("BEGIN").await?;
        let paid = self.run(of(from).pay, &[amount as i64, from as i64]).await?;
        if paid.rows.is_empty() {
            return Ok(None);
        }
        // Every other one as text with its values in it.
        match id % 2 {
            0 => self.run(of(to).earn, &[amount as i64, to as i64]).await?,
            _ => {
                let text = of(to).earn.replace("$1", &amount.to_string()).replace("$2", &to.to_string());
                self.query(&text).await?
            }
        };
        self.run(of(from).record, &[id as i64, amount as i64, from as i64, to as i64]).await?;
        Ok(Some(()))
    }

    async fn transfer(&mut self, id: u64, transfer: Transfer) -> Moved {
        let moved = self.pay(id, transfer).await;
        match moved {
            Ok(Some(())) => self.commit().await.map(Some),
            other => {
                self.give_up().await;
                other
            }
        }
    }

    /// Rows of all tables in one snapshot, beginning with table `first`.
    async fn snapshot(&mut self, first: u64, wanted: &[fn(&Statements) -> &'static str]) -> Result<Tables, SqlError> {
        self.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let rows = self.read_tables(first, wanted).await;
        self.query("ROLLBACK").await?;
        rows
    }

    async fn read_tables(
        &mut self,
        first: u64,
        wanted: &[fn(&Statements) -> &'static str],
    ) -> Result<Tables, SqlError> {
        let mut all = Vec::with_capacity(wanted.len());
        for statement in wanted {
            let mut rows = Vec::new();
            for table in 0..TABLES {
                rows.extend(self.run(statement(of(first + table)), &[]).await?.rows);
            }
            all.push(rows);
        }
        Ok(all)
    }
}

/// Rows of all tables, for each statement that was asked.
type Tables = Vec<Vec<Vec<i64>>>;

fn pairs(rows: &[Vec<i64>]) -> BTreeMap<u64, u64> {
    rows.iter().map(|row| (row[0] as u64, row[1] as u64)).collect()
}

fn transfers(rows: &[Vec<i64>]) -> BTreeMap<u64, Transfer> {
    let transfer = |row: &Vec<i64>| Transfer { from: row[1] as u64, to: row[2] as u64, amount: row[3] as u64 };
    rows.iter().map(|row| (row[0] as u64, transfer(row))).collect()
}

fn failed<T>(error: &SqlError) -> Outcome<T> {
    match error {
        error if is_unknown(error) => Outcome::Unknown,
        error if error.is_retryable() => Outcome::Conflict,
        _ => Outcome::Refused,
    }
}

#[async_trait]
impl Accounts for SqlClient {
    async fn open(&mut self) -> Result<(), String> {
        let opened = match self.connection() {
            Ok(connection) => connection.open_bank().await,
            Err(error) => Err(error),
        };
        opened.map_err(|error| error.to_string())
    }

    async fn transfer(&mut self, id: u64, transfer: Transfer) -> Outcome<()> {
        let moved = match self.connection() {
            Ok(connection) => connection.transfer(id, transfer).await,
            Err(error) => Err(error),
        };
        match moved {
            Ok(Some(())) => Outcome::Done(()),
            Ok(None) => Outcome::Refused,
            Err(error) => failed(&error),
        }
    }

    async fn balances(&mut self, first: u64, _: Pause) -> Option<BTreeMap<u64, u64>> {
        let read = self.connection().ok()?.snapshot(first, &[|table| table.balances]).await;
        read.ok().map(|tables| pairs(&tables[0]))
    }

    async fn increment(&mut self, counter: u64) -> Outcome<u64> {
        let increased = match self.connection() {
            Ok(connection) => connection.run(of(counter).increment, &[counter as i64]).await,
            Err(error) => Err(error),
        };
        match increased {
            Ok(answer) => match answer.rows.first() {
                Some(row) => Outcome::Done(row[0] as u64),
                None => {
                    self.world().fail(format!("counter {counter} is gone"));
                    Outcome::Refused
                }
            },
            Err(error) => failed(&error),
        }
    }

    async fn books(&mut self) -> Result<Books, String> {
        let connection = self.connection().map_err(|error| error.to_string())?;
        let wanted: [fn(&Statements) -> &'static str; 3] =
            [|table| table.balances, |table| table.records, |table| table.counters];
        let tables = connection.snapshot(0, &wanted).await.map_err(|error| error.to_string())?;
        Ok((pairs(&tables[0]), transfers(&tables[1]), pairs(&tables[2])))
    }
}
