//! Rows that are found by an index, which goes and is built anew while others write: by whatever schema a transaction writes, what it
//! commits is found by key and by index.
//!
//! ```text
//!   item (id, shelf, v) ◄── item_shelf (shelf)     always there, so that statements have key plans
//!                       ◄── item_v (shelf, v)      built in a transaction that drops the one before, alone, or CONCURRENTLY
//! ```
//!
//! A builder waits for whoever uses the table, and not for a gateway that was silent past its lease: what such a gateway's transactions
//! have written they wrote by the old schema, and it must not be committed. So some transactions are open for longer than a
//! lease, and nodes are away for as long. Under CONCURRENTLY writers go on, and those that were there before the index are refused.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use sql::{SqlError, SqlState};

use super::{Connection, Deeds, SqlClient, connection::is_unknown};
use crate::{
    cluster::nodes::HASTY_GC,
    runtime::{Owner, World},
    workload::Seat,
};

/// Enough that writers seldom meet.
const ITEMS: i64 = 40;
/// How long programs think in a transaction.
const THOUGHT_MAX: Duration = Duration::from_millis(1_200);
/// How long people do: longer than a catalog lease, and than a node is away.
const LONG_THOUGHT: std::ops::Range<Duration> = Duration::from_secs(12)..Duration::from_secs(20);
/// Between two builds; one that takes longer than the second is not waited for.
const BUILD_PAUSE: std::ops::Range<Duration> = Duration::from_secs(2)..Duration::from_secs(5);
const BUILD_MAX: Duration = Duration::from_secs(6);
/// Values stay below it.
const VALUES_MAX: i64 = 1 << 40;

const CREATE: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS item (id bigint PRIMARY KEY, shelf bigint NOT NULL, v bigint NOT NULL)",
    "CREATE INDEX IF NOT EXISTS item_shelf ON item (shelf)",
    "CREATE INDEX IF NOT EXISTS item_v ON item (shelf, v)",
];
const INDEX: &str = "CREATE INDEX item_v ON item (shelf, v)";
const INDEX_CONCURRENTLY: &str = "CREATE INDEX CONCURRENTLY item_v ON item (shelf, v)";
const NO_INDEX: &str = "DROP INDEX IF EXISTS item_v";
const ADD: &str = "INSERT INTO item VALUES ($1, 0, $2)";
const CHANGE: &str = "UPDATE item SET v = $2 WHERE id = $1";
const REMOVE: &str = "DELETE FROM item WHERE id = $1";
const BY_KEY: &str = "SELECT id, v FROM item WHERE id >= $1 AND id < $2";
const BY_INDEX: &str = "SELECT id, v FROM item WHERE shelf = 0 AND v >= $1 AND v < $2";

/// Old versions are kept for longer than transactions of a node that is away are open: their writes would be refused because of their age.
const RETENTION_MS: u64 = 60_000;

/// What PD strives for: transactions may take their time. It moves nothing by itself.
pub fn long_memory() -> node::Rules {
    let mut rules =
        node::Rules { gc: node::GcRules { retention_ms: RETENTION_MS, ..HASTY_GC }, ..node::Rules::default() };
    rules.limits.operators = 0;
    rules
}

/// How the index is built anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// With the end of the old one in one transaction.
    Together,
    /// Behind it.
    Apart,
    /// Behind it, while others write.
    Concurrently,
}

const WAYS: [Way; 3] = [Way::Together, Way::Apart, Way::Concurrently];

/// One write: the statement, its parameters and how many it has.
type Write = (&'static str, [i64; 2], usize);

/// Rows as (id, v).
type Items = BTreeSet<Vec<i64>>;

/// The workload's.
#[derive(Default)]
pub struct Indexed {
    last_value: AtomicI64,
    /// When somebody builds next: mostly one at a time, since all others wait for it.
    next_build: Mutex<Duration>,
}

impl Connection {
    async fn write_items(&mut self, writes: &[Write], thought: impl Future<Output = ()>) -> Result<(), SqlError> {
        let written = self.write_open(writes).await;
        thought.await;
        if written.is_err() {
            self.give_up().await;
            return written;
        }
        self.commit().await
    }

    async fn write_open(&mut self, writes: &[Write]) -> Result<(), SqlError> {
        self.query("BEGIN").await?;
        for (statement, params, count) in writes {
            self.run(statement, &params[..*count]).await?;
        }
        Ok(())
    }

    async fn build(&mut self, way: Way) -> Result<(), SqlError> {
        if way == Way::Together {
            let built = self.build_open().await;
            if built.is_err() {
                self.give_up().await;
                return built;
            }
            return self.commit().await;
        }
        self.query(NO_INDEX).await?;
        self.query(if way == Way::Apart { INDEX } else { INDEX_CONCURRENTLY }).await.map(|_| ())
    }

    async fn build_open(&mut self) -> Result<(), SqlError> {
        for statement in ["BEGIN", NO_INDEX, INDEX] {
            self.query(statement).await?;
        }
        Ok(())
    }

    /// What is found by key, and what by index, in one snapshot.
    async fn items(&mut self) -> Result<[Items; 2], SqlError> {
        self.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let seen = async {
            let by_key = self.run(BY_KEY, &[0, ITEMS]).await?.rows;
            let by_index = self.run(BY_INDEX, &[0, VALUES_MAX]).await?.rows;
            Ok([by_key, by_index].map(|rows| rows.into_iter().collect()))
        };
        let seen = seen.await;
        self.query("ROLLBACK").await?;
        seen
    }
}

async fn look(client: &mut SqlClient, world: &World) -> Result<(), SqlError> {
    match client.connection()?.items().await {
        Ok([by_key, by_index]) if by_key != by_index => {
            let (missing, wrong) = (by_key.difference(&by_index), by_index.difference(&by_key));
            let (missing, wrong): (Vec<_>, Vec<_>) = (missing.collect(), wrong.collect());
            world.fail(format!("items {missing:?} are not found by the index, and {wrong:?} only by it"));
            Ok(())
        }
        Err(error) if error.sqlstate == SqlState::DATA_CORRUPTED => {
            world.fail(error.to_string());
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

impl Indexed {
    fn add(&self, rng: &mut ChaCha8Rng) -> Write {
        (ADD, [rng.random_range(0..ITEMS), self.value()], 2)
    }

    fn value(&self) -> i64 {
        self.last_value.fetch_add(1, Ordering::Relaxed)
    }

    fn write(&self, rng: &mut ChaCha8Rng) -> Write {
        let id = rng.random_range(0..ITEMS);
        match rng.random_bool(0.2) {
            true => (REMOVE, [id, 0], 1),
            false => (CHANGE, [id, self.value()], 2),
        }
    }

    fn is_time_to_build(&self, now: Duration) -> bool {
        let mut next = self.next_build.lock();
        let is_time = now >= *next;
        if is_time {
            *next = now + BUILD_MAX;
        }
        is_time
    }
}

impl Deeds for Indexed {
    const PAUSE_MAX: Duration = Duration::from_millis(150);

    async fn prepare(&self, client: &mut SqlClient) -> Result<(), SqlError> {
        let world = client.world().clone();
        for statement in CREATE {
            client.connection()?.query(statement).await?;
        }
        look(client, &world).await
    }

    async fn perform(&self, client: &mut SqlClient, seat: &mut Seat) -> Result<&'static str, SqlError> {
        if self.is_time_to_build(seat.world.now()) {
            let way = WAYS[seat.rng.random_range(0..WAYS.len())];
            tracing::debug!(now = ?seat.world.now(), owner = ?seat.owner, ?way, "builds");
            let built = client.connection()?.build(way).await;
            *self.next_build.lock() = seat.world.now() + seat.rng.random_range(BUILD_PAUSE);
            built?;
            return Ok(if way == Way::Concurrently { "indexes built concurrently" } else { "indexes built" });
        }
        match seat.rng.random_range(0..24) {
            0..8 => look(client, &seat.world).await.map(|()| "looks by key and by index"),
            8..12 => {
                let (statement, params, count) = match seat.rng.random_bool(0.3) {
                    true => self.add(&mut seat.rng),
                    false => self.write(&mut seat.rng),
                };
                client.connection()?.run(statement, &params[..count]).await?;
                Ok("items written")
            }
            _ => {
                let mut writes: Vec<Write> =
                    (0..seat.rng.random_range(1..=3)).map(|_| self.write(&mut seat.rng)).collect();
                // One is replaced, whether it is there or not.
                let (_, new, _) = self.add(&mut seat.rng);
                writes.extend([(REMOVE, [new[0], 0], 1), (ADD, new, 2)]);
                let long = seat.rng.random_bool(0.015);
                let thought = if long { LONG_THOUGHT } else { Duration::ZERO..THOUGHT_MAX };
                let thought = seat.rng.random_range(thought);
                client.connection()?.write_items(&writes, seat.world.sleep(seat.owner, thought)).await?;
                Ok(if long { "items written with long thought" } else { "items written in transactions" })
            }
        }
    }

    fn refusal(error: &SqlError) -> &'static str {
        match error.sqlstate {
            SqlState::DEADLOCK_DETECTED => "deadlocks",
            SqlState::UNIQUE_VIOLATION => "items that were there",
            _ if is_unknown(error) => "commits of unknown outcome",
            _ if error.is_retryable() => "refused for a change of the schema",
            _ => "refused",
        }
    }

    async fn judge(&self, client: &mut SqlClient, world: &World) -> Result<Result<(), String>, SqlError> {
        // The last ones end.
        world.sleep(Owner::Harness, LONG_THOUGHT.end).await;
        look(client, world).await.map(Ok)
    }
}
