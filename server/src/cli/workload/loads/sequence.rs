//! Values drawn from a sequence that hands them out in portions, by transactions that commit and by some that don't.

use async_trait::async_trait;
use history::Operation;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio_postgres::Error;

use super::{super::session::Attempt, Load};

/// Draws of one transaction.
const DRAWS_MAX: usize = 3;

const DRAW: &str = "SELECT nextval('workload_sequence')";

/// The load.
pub(super) struct Sequence;

fn drawn(rows: &[tokio_postgres::Row]) -> Result<Option<Operation>, Error> {
    rows.first().map(|row| row.try_get(0).map(Operation::Drawn)).transpose()
}

#[async_trait]
impl Load for Sequence {
    fn tables(&self) -> Vec<String> {
        vec!["DROP SEQUENCE IF EXISTS workload_sequence".into(), "CREATE SEQUENCE workload_sequence CACHE 16".into()]
    }

    async fn step(&self, attempt: &mut Attempt<'_>, chance: &mut ChaCha8Rng) -> Result<(), Error> {
        if chance.random_bool(0.5) {
            let rows = attempt.alone(DRAW, &[]).await?;
            attempt.operations.extend(drawn(&rows)?);
            return Ok(());
        }
        attempt.begin(false).await?;
        for _ in 0..chance.random_range(1..=DRAWS_MAX) {
            let rows = attempt.ask(DRAW, &[]).await?;
            attempt.operations.extend(drawn(&rows)?);
        }
        match chance.random_bool(0.5) {
            true => attempt.give_up().await,
            false => attempt.commit().await,
        }
    }

    async fn look(&self, attempt: &mut Attempt<'_>) -> Result<(), Error> {
        let rows = attempt.alone(DRAW, &[]).await?;
        attempt.operations.extend(drawn(&rows)?);
        Ok(())
    }
}
