//! Pairs: whoever leaves looks first whether the other one stays.

use async_trait::async_trait;
use history::Operation;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio_postgres::Error;

use super::{super::session::Attempt, Load};

/// Few, so that both of one pair are asked for at once.
const PAIRS: i64 = 6;

const LOOK: &str = "SELECT who, on_call FROM workload_on_call WHERE pair = $1";
const LOOK_AT_ALL: &str = "SELECT pair, who, on_call FROM workload_on_call";
const SET: &str = "UPDATE workload_on_call SET on_call = $3 WHERE pair = $1 AND who = $2";

/// The load.
pub(super) struct WriteSkew;

#[async_trait]
impl Load for WriteSkew {
    fn tables(&self) -> Vec<String> {
        let rows: Vec<_> = (0..PAIRS).map(|pair| format!("({pair}, 0, true), ({pair}, 1, true)")).collect();
        vec![
            "DROP TABLE IF EXISTS workload_on_call".into(),
            "CREATE TABLE workload_on_call (pair bigint, who bigint, on_call boolean NOT NULL, PRIMARY KEY (pair, who))"
                .into(),
            format!("INSERT INTO workload_on_call VALUES {}", rows.join(", ")),
        ]
    }

    fn borders(&self) -> Vec<String> {
        // Through the middle of pairs: the two of one lie in two regions.
        vec!["ALTER TABLE workload_on_call SPLIT AT VALUES (0, 1), (2, 0), (3, 1)".into()]
    }

    async fn step(&self, attempt: &mut Attempt<'_>, chance: &mut ChaCha8Rng) -> Result<(), Error> {
        let pair = chance.random_range(0..PAIRS);
        attempt.begin(false).await?;
        let mut on = [false, false];
        for row in attempt.ask(LOOK, &[&pair]).await? {
            let who: i64 = row.try_get(0)?;
            on[usize::from(who == 1)] = row.try_get(1)?;
        }
        attempt.operations.push(Operation::Pair(pair as u64, on));
        let mut set: Vec<(i64, bool)> = Vec::new();
        match on {
            [true, true] => set.push((chance.random_range(0..2), false)),
            [false, true] => set.push((0, true)),
            [true, false] => set.push((1, true)),
            // It is told by the checker; here it is only mended.
            [false, false] => set.extend([(0, true), (1, true)]),
        }
        for (who, is_on) in set {
            attempt.operations.push(Operation::OnCall(pair as u64, who as u8, is_on));
            attempt.ask(SET, &[&pair, &who, &is_on]).await?;
        }
        attempt.commit().await
    }

    async fn look(&self, attempt: &mut Attempt<'_>) -> Result<(), Error> {
        let mut pairs = [[false; 2]; PAIRS as usize];
        for row in attempt.alone(LOOK_AT_ALL, &[]).await? {
            let (pair, who): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            if let Some(on) = pairs.get_mut(pair as usize) {
                on[usize::from(who == 1)] = row.try_get(2)?;
            }
        }
        attempt.operations.extend((0..).zip(pairs).map(|(pair, on)| Operation::Pair(pair, on)));
        Ok(())
    }
}
