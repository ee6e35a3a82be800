//! Values that several sessions ask for at once, one or two a transaction, in no order: one gets each.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use history::Operation;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio_postgres::Error;

use super::{super::session::Attempt, Load};

/// How many ask for one value, about.
const ASKERS: u64 = 3;

const INSERT: &str = "INSERT INTO workload_unique (id, value) VALUES ($1, $2)";
const ROWS: &str = "SELECT value FROM workload_unique";
const ROWS_BY_INDEX: &str = "SELECT value FROM workload_unique WHERE value >= 0 ORDER BY value";

/// The load.
#[derive(Default)]
pub(super) struct Unique(AtomicU64);

impl Unique {
    /// A row's id, which nobody else has, and its value, for which others ask too.
    fn wish(&self, chance: &mut ChaCha8Rng) -> (i64, i64) {
        let id = self.0.fetch_add(1, Ordering::Relaxed);
        (id as i64, (id / ASKERS + chance.random_range(0..ASKERS)) as i64)
    }
}

#[async_trait]
impl Load for Unique {
    fn tables(&self) -> Vec<String> {
        vec![
            "DROP TABLE IF EXISTS workload_unique".into(),
            "CREATE TABLE workload_unique (id bigint PRIMARY KEY, value bigint NOT NULL UNIQUE)".into(),
        ]
    }

    async fn step(&self, attempt: &mut Attempt<'_>, chance: &mut ChaCha8Rng) -> Result<(), Error> {
        let (id, value) = self.wish(chance);
        attempt.operations.push(Operation::Insert(value as u64));
        if chance.random_bool(0.5) {
            attempt.alone(INSERT, &[&id, &value]).await?;
            return Ok(());
        }
        attempt.begin(false).await?;
        attempt.ask(INSERT, &[&id, &value]).await?;
        let (id, other) = self.wish(chance);
        if other != value {
            attempt.operations.push(Operation::Insert(other as u64));
            attempt.ask(INSERT, &[&id, &other]).await?;
        }
        match chance.random_ratio(1, 10) {
            true => attempt.give_up().await,
            false => attempt.commit().await,
        }
    }

    async fn look(&self, attempt: &mut Attempt<'_>) -> Result<(), Error> {
        for rows in [ROWS, ROWS_BY_INDEX] {
            let rows = attempt.alone(rows, &[]).await?;
            let values = rows.iter().map(|row| row.try_get::<_, i64>(0).map(|value| value as u64));
            attempt.operations.push(Operation::Rows(values.collect::<Result<_, _>>()?));
        }
        Ok(())
    }
}
