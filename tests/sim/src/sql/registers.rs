//! Registers as rows, each in a table of its own, written in every way SQL has. Half of them are read by a secondary index too.

use async_trait::async_trait;
use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use sql::SqlError;

use super::{Connection, SqlClient, connection::is_unknown};
use crate::workload::register::{KEYS, ReadWay, Registers, WriteOutcome};

/// The row of every register's table.
const ROW: i64 = 1;

/// The statements of one register's table.
struct Statements {
    create: &'static str,
    insert: &'static str,
    update: &'static str,
    delete: &'static str,
    select: &'static str,
    range: &'static str,
}

/// For each register its table, whether its value is unique, and what a range that is read says: of the key, or of the index.
macro_rules! statements {
    ($(($table:literal, $unique:literal, $range:literal)),*) => {
        [$(Statements {
            create: concat!(
                "CREATE TABLE IF NOT EXISTS ", $table, " (id bigint PRIMARY KEY, v bigint NOT NULL", $unique, ")"
            ),
            insert: concat!("INSERT INTO ", $table, " (id, v) VALUES ($1, $2)"),
            update: concat!("UPDATE ", $table, " SET v = $2 WHERE id = $1"),
            delete: concat!("DELETE FROM ", $table, " WHERE id = $1"),
            select: concat!("SELECT v FROM ", $table, " WHERE id = $1"),
            range: concat!("SELECT v FROM ", $table, " WHERE ", $range),
        }),*]
    };
}

const TABLES: [Statements; KEYS] = statements!(
    ("register_0", "", "id >= $1 AND id <= $1"),
    ("register_1", " UNIQUE", "v >= $1 AND v < 1000000000000"),
    ("register_2", "", "id >= $1 AND id <= $1"),
    ("register_3", " UNIQUE", "v >= $1 AND v < 1000000000000")
);

impl Connection {
    /// Writes in one of four ways; `false`: there was no row to update.
    async fn write_register(&mut self, register: usize, value: i64) -> Result<bool, SqlError> {
        let statements = &TABLES[register];
        match value % 4 {
            // A statement of its own, prepared and not.
            0 | 1 => Ok(self.run(statements.update, &[ROW, value]).await?.changed() > 0),
            2 => {
                let text = statements.update.replace("$2", &value.to_string()).replace("$1", &ROW.to_string());
                Ok(self.query(&text).await?.changed() > 0)
            }
            // A transaction.
            _ => {
                let replaced = self.replace(statements, value).await;
                if replaced.is_err() {
                    self.give_up().await;
                    return replaced;
                }
                self.commit().await?;
                Ok(true)
            }
        }
    }

    async fn replace(&mut self, statements: &Statements, value: i64) -> Result<bool, SqlError> {
        self.query("BEGIN").await?;
        self.run(statements.delete, &[ROW]).await?;
        self.run(statements.insert, &[ROW, value]).await?;
        Ok(true)
    }

    async fn read_register(&mut self, register: usize, way: ReadWay) -> Result<u64, SqlError> {
        let statements = &TABLES[register];
        let answer = match way {
            // One key, one statement: the newest value, without a snapshot.
            ReadWay::Latest => self.run(statements.select, &[ROW]).await?,
            ReadWay::Snapshot => {
                self.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
                let answer = self.run(statements.range, &[ROW]).await;
                self.query("ROLLBACK").await?;
                answer?
            }
        };
        Ok(answer.rows.first().map_or(0, |row| row[0] as u64))
    }
}

#[async_trait]
impl Registers for SqlClient {
    fn border(_: usize, rng: &mut ChaCha8Rng) -> Option<Bytes> {
        Some(super::border(rng))
    }

    async fn write(&mut self, register: usize, value: u64) -> WriteOutcome {
        let done = async {
            let connection = self.connection()?;
            match connection.write_register(register, value as i64).await? {
                true => Ok(()),
                // The first write of all; somebody else's may come in between and refuse it.
                false => connection.run(TABLES[register].insert, &[ROW, value as i64]).await.map(|_| ()),
            }
        };
        match done.await {
            Ok(()) => WriteOutcome::Done,
            Err(error) if is_unknown(&error) => WriteOutcome::Unknown,
            Err(error) => {
                tracing::debug!(register, value, %error, "a write was refused");
                WriteOutcome::Refused
            }
        }
    }

    async fn read(&mut self, register: usize, way: ReadWay) -> Option<u64> {
        let read = match self.connection() {
            Ok(connection) => connection.read_register(register, way).await,
            Err(error) => Err(error),
        };
        read.inspect_err(|error| tracing::debug!(register, %error, "a read was refused")).ok()
    }

    async fn ready(&mut self) -> bool {
        for (register, statements) in TABLES.iter().enumerate() {
            let made = match self.connection() {
                Ok(connection) => connection.query(statements.create).await,
                Err(error) => Err(error),
            };
            if let Err(error) = made {
                tracing::debug!(register, %error, "a table was not made");
                return false;
            }
            if self.read(register, ReadWay::Snapshot).await.is_none() {
                return false;
            }
        }
        true
    }
}
