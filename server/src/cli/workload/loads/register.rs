//! Single rows, written and read by statements of their own and by transactions of one statement.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use history::Operation;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio_postgres::Error;

use super::{super::session::Attempt, Load};

/// Few, so that they are contended.
const REGISTERS: i64 = 8;

const WRITE: &str = "INSERT INTO workload_register (k, v) VALUES ($1, $2) ON CONFLICT (k) DO UPDATE SET v = excluded.v";
const UPDATE: &str = "UPDATE workload_register SET v = $2 WHERE k = $1";
const READ: &str = "SELECT v FROM workload_register WHERE k = $1";

/// The load.
#[derive(Default)]
pub(super) struct Register(AtomicU64);

fn seen(k: i64, rows: &[tokio_postgres::Row]) -> Result<Operation, Error> {
    let value: Option<i64> = rows.first().map_or(Ok(None), |row| row.try_get(0))?;
    Ok(Operation::Read(k as u64, value.map(|v| v as u64)))
}

#[async_trait]
impl Load for Register {
    fn tables(&self) -> Vec<String> {
        let rows: Vec<_> = (0..REGISTERS / 2).map(|k| format!("({k}, NULL)")).collect();
        vec![
            "DROP TABLE IF EXISTS workload_register".into(),
            "CREATE TABLE workload_register (k bigint PRIMARY KEY, v bigint)".into(),
            // Half of them are there, half of them the first write makes.
            format!("INSERT INTO workload_register VALUES {}", rows.join(", ")),
        ]
    }

    fn borders(&self) -> Vec<String> {
        vec!["ALTER TABLE workload_register SPLIT AT VALUES (2), (4), (6)".into()]
    }

    async fn step(&self, attempt: &mut Attempt<'_>, chance: &mut ChaCha8Rng) -> Result<(), Error> {
        let k = chance.random_range(0..REGISTERS);
        let in_transaction = chance.random_ratio(1, 4);
        if chance.random_bool(0.5) {
            let value = self.0.fetch_add(1, Ordering::Relaxed) as i64 + 1;
            let write = if k < REGISTERS / 2 && chance.random_bool(0.5) { UPDATE } else { WRITE };
            attempt.operations.push(Operation::Write(k as u64, value as u64));
            if !in_transaction {
                attempt.alone(write, &[&k, &value]).await?;
                return Ok(());
            }
            attempt.begin(false).await?;
            attempt.ask(write, &[&k, &value]).await?;
            return attempt.commit().await;
        }
        let rows = match in_transaction {
            false => attempt.alone(READ, &[&k]).await?,
            true => {
                attempt.begin(chance.random_bool(0.5)).await?;
                let rows = attempt.ask(READ, &[&k]).await?;
                attempt.commit().await?;
                rows
            }
        };
        attempt.operations.push(seen(k, &rows)?);
        Ok(())
    }

    async fn look(&self, attempt: &mut Attempt<'_>) -> Result<(), Error> {
        for k in 0..REGISTERS {
            let rows = attempt.alone(READ, &[&k]).await?;
            attempt.operations.push(seen(k, &rows)?);
        }
        Ok(())
    }
}
