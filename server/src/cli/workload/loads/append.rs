//! Lists, a row each, found by their key, by a unique index, and by a range of that index.

use async_trait::async_trait;
use history::Operation;
use parking_lot::Mutex;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio_postgres::Error;

use super::{super::session::Attempt, DISORDERLY, Load};

/// Lists in use at one time: few, so that they are contended.
const IN_USE: usize = 6;
/// A list that was appended to so often is replaced by a new one.
const LENGTH_MAX: usize = 48;
/// Steps of one transaction.
const STEPS_MAX: usize = 4;
/// Neighbours by number lie far apart by key, in several regions.
const STRIPES: i64 = 16;
const STRIPE: i64 = 1_000_000;

const READ: &str = "SELECT list FROM workload_append WHERE k = $1";
const READ_BY_INDEX: &str = "SELECT list FROM workload_append WHERE n = $1";
const READ_RANGE: &str = "SELECT n, list FROM workload_append WHERE n >= $1 AND n <= $2";
const READ_ALL: &str = "SELECT n, list FROM workload_append";
const APPEND: &str = "INSERT INTO workload_append (k, n, list) VALUES ($1, $2, $3) \
                      ON CONFLICT (k) DO UPDATE SET list = workload_append.list || ' ' || excluded.list";

struct Lists {
    /// Number, and how many appends were tried.
    in_use: Vec<(i64, usize)>,
    next: i64,
    value: u64,
}

/// The load.
pub(super) struct Append(Mutex<Lists>);

impl Default for Append {
    fn default() -> Append {
        let in_use: Vec<_> = (0..IN_USE as i64).map(|n| (n, 0)).collect();
        Append(Mutex::new(Lists { in_use, next: IN_USE as i64, value: 0 }))
    }
}

enum Step {
    Append(i64, u64),
    Read(i64),
    ReadByIndex(i64),
    ReadRange(i64, i64),
}

impl Step {
    fn first(&self) -> i64 {
        match *self {
            Step::Append(n, _) | Step::Read(n) | Step::ReadByIndex(n) | Step::ReadRange(n, _) => n,
        }
    }
}

impl Append {
    fn choose(&self, chance: &mut ChaCha8Rng) -> Vec<Step> {
        let lists = &mut *self.0.lock();
        let count = chance.random_range(1..=STEPS_MAX);
        let steps = (0..count).map(|_| {
            let at = chance.random_range(0..IN_USE);
            let n = lists.in_use[at].0;
            match chance.random_range(0..8) {
                0..4 => {
                    lists.value += 1;
                    lists.in_use[at].1 += 1;
                    if lists.in_use[at].1 == LENGTH_MAX {
                        lists.in_use[at] = (lists.next, 0);
                        lists.next += 1;
                    }
                    Step::Append(n, lists.value)
                }
                4 | 5 => Step::Read(n),
                6 => Step::ReadByIndex(n),
                _ => Step::ReadRange(n, n + 2),
            }
        });
        let mut steps: Vec<Step> = steps.collect();
        if !chance.random_ratio(1, DISORDERLY) {
            steps.sort_by_key(Step::first);
        }
        steps
    }
}

fn key(n: i64) -> i64 {
    n % STRIPES * STRIPE + n / STRIPES
}

/// What is no number was written by nobody: the checker finds it.
fn values(list: &str) -> Vec<u64> {
    list.split(' ').map(|value| value.parse().unwrap_or(u64::MAX)).collect()
}

async fn perform(attempt: &mut Attempt<'_>, step: &Step, alone: bool) -> Result<(), Error> {
    let list = |rows: &[tokio_postgres::Row]| rows.first().map_or(Ok(Vec::new()), |row| Ok(values(row.try_get(0)?)));
    match *step {
        Step::Append(n, value) => {
            attempt.operations.push(Operation::Append(n as u64, value));
            let text = value.to_string();
            match alone {
                true => attempt.alone(APPEND, &[&key(n), &n, &text]).await?,
                false => attempt.ask(APPEND, &[&key(n), &n, &text]).await?,
            };
        }
        Step::Read(n) => {
            let rows = match alone {
                true => attempt.alone(READ, &[&key(n)]).await?,
                false => attempt.ask(READ, &[&key(n)]).await?,
            };
            attempt.operations.push(Operation::List(n as u64, list(&rows)?));
        }
        Step::ReadByIndex(n) => {
            let rows = match alone {
                true => attempt.alone(READ_BY_INDEX, &[&n]).await?,
                false => attempt.ask(READ_BY_INDEX, &[&n]).await?,
            };
            attempt.operations.push(Operation::List(n as u64, list(&rows)?));
        }
        Step::ReadRange(first, last) => {
            let rows = match alone {
                true => attempt.alone(READ_RANGE, &[&first, &last]).await?,
                false => attempt.ask(READ_RANGE, &[&first, &last]).await?,
            };
            push_lists(attempt, &rows, first..=last)?;
        }
    }
    Ok(())
}

/// Each list of the range, those that are not there as well.
fn push_lists(
    attempt: &mut Attempt<'_>,
    rows: &[tokio_postgres::Row],
    range: std::ops::RangeInclusive<i64>,
) -> Result<(), Error> {
    let mut found = std::collections::BTreeMap::new();
    for row in rows {
        found.insert(row.try_get::<_, i64>(0)?, values(row.try_get(1)?));
    }
    let lists = range.map(|n| Operation::List(n as u64, found.remove(&n).unwrap_or_default()));
    attempt.operations.extend(lists);
    Ok(())
}

#[async_trait]
impl Load for Append {
    fn tables(&self) -> Vec<String> {
        vec![
            "DROP TABLE IF EXISTS workload_append".into(),
            "CREATE TABLE workload_append (k bigint PRIMARY KEY, n bigint NOT NULL UNIQUE, list text NOT NULL)".into(),
        ]
    }

    fn borders(&self) -> Vec<String> {
        let borders: Vec<_> = [4, 8, 12].map(|stripe| format!("({})", stripe * STRIPE)).into();
        vec![format!("ALTER TABLE workload_append SPLIT AT VALUES {}", borders.join(", "))]
    }

    async fn step(&self, attempt: &mut Attempt<'_>, chance: &mut ChaCha8Rng) -> Result<(), Error> {
        let steps = self.choose(chance);
        if let [step] = &steps[..]
            && chance.random_bool(0.5)
        {
            return perform(attempt, step, true).await;
        }
        let writes = steps.iter().any(|step| matches!(step, Step::Append(..)));
        attempt.begin(!writes && chance.random_bool(0.5)).await?;
        for step in &steps {
            perform(attempt, step, false).await?;
        }
        attempt.commit().await
    }

    async fn look(&self, attempt: &mut Attempt<'_>) -> Result<(), Error> {
        let last = self.0.lock().next - 1;
        let rows = attempt.alone(READ_ALL, &[]).await?;
        push_lists(attempt, &rows, 0..=last)
    }
}
