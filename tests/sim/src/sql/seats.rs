//! Rows whose values must not be shared, by constraints that are checked late: nobody ever sees two with one value.
//!
//! ```text
//!   seat (id, v, w)     v UNIQUE DEFERRABLE                         checked when a statement ends, or put off by SET CONSTRAINTS
//!                       w UNIQUE DEFERRABLE INITIALLY DEFERRED      checked at COMMIT
//! ```

use std::{collections::BTreeSet, time::Duration};

use rand::Rng;
use sql::SqlError;

use super::{Connection, Deeds, SqlClient, connection::is_unknown};
use crate::{runtime::World, workload::Seat};

/// Rows, and more values than they have: many are free, and each is wanted often.
const ROWS: i64 = 10;
const VALUES: i64 = 14;
/// How long a transaction thinks before it commits: long enough for a leader to go in between.
const THOUGHT_MAX: Duration = Duration::from_millis(1500);

const CREATE: &str = "CREATE TABLE IF NOT EXISTS seat (id bigint PRIMARY KEY, v bigint NOT NULL UNIQUE DEFERRABLE,
    w bigint NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED)";
const ADD: &str = "INSERT INTO seat VALUES ($1, $2, $3)";
const REMOVE: &str = "DELETE FROM seat WHERE id = $1";
const MOVE: [&str; 2] = ["UPDATE seat SET v = $2 WHERE id = $1", "UPDATE seat SET w = $2 WHERE id = $1"];
const SEEN: &str = "SELECT id, v, w FROM seat WHERE id >= $1 AND id < $2";
const LOCK: &str = "SELECT v FROM seat WHERE id = $1 FOR UPDATE";

/// The workload's.
#[derive(Default)]
pub struct Seats;

/// A statement with its parameters.
type Step = (&'static str, Vec<i64>);

/// What a session does next.
enum Deed {
    /// A statement of its own.
    One(&'static str, Step),
    /// Several in a transaction, in this mode.
    Many(&'static str, &'static str, Vec<Step>),
    /// Everything is looked at.
    Look,
}

fn next(rng: &mut impl Rng) -> Deed {
    let [a, b] = [0; 2].map(|_| rng.random_range(0..ROWS));
    let [x, y, z] = [0; 3].map(|_| rng.random_range(0..VALUES));
    let column = rng.random_range(0..MOVE.len());
    let mode = match rng.random_range(0..4) {
        0 => "BEGIN ISOLATION LEVEL REPEATABLE READ",
        1 => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        _ => "BEGIN",
    };
    match rng.random_range(0..30) {
        0..6 => Deed::One("seats added", (ADD, vec![a, x, y])),
        6..9 => Deed::One("seats removed", (REMOVE, vec![a])),
        9..14 => Deed::One("seats moved", (MOVE[column], vec![a, x])),
        14..18 => {
            Deed::Many("seats added in transactions", mode, vec![(ADD, vec![a, x, y]), (MOVE[column], vec![b, z])])
        }
        // Where they share a value for a while.
        18..23 => Deed::Many(
            "seats that trade",
            mode,
            vec![(MOVE[1], vec![a, x]), (MOVE[1], vec![b, x]), (MOVE[1], vec![a, y])],
        ),
        23..26 => Deed::Many("seats made anew", mode, vec![(REMOVE, vec![a]), (ADD, vec![a, x, y])]),
        _ => Deed::Look,
    }
}

impl Connection {
    async fn seats_changed(&mut self, mode: &str, steps: &[Step], put_off: bool) -> Result<(), SqlError> {
        self.query(mode).await?;
        if put_off {
            self.query("SET CONSTRAINTS ALL DEFERRED").await?;
        }
        for (statement, params) in steps {
            self.run(statement, params).await?;
        }
        Ok(())
    }

    /// Two rows that share a value, in one snapshot.
    async fn shared_seat(&mut self) -> Result<Option<String>, SqlError> {
        self.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let rows = self.run(SEEN, &[0, ROWS]).await;
        self.query("ROLLBACK").await?;
        let rows = rows?.rows;
        let shared = |at: usize| {
            let mut seen = BTreeSet::new();
            rows.iter().any(|row| !seen.insert(row[at]))
        };
        Ok((shared(1) || shared(2)).then(|| format!("two seats share a value: (id, v, w) are {rows:?}")))
    }
}

async fn look(client: &mut SqlClient, world: &World) -> Result<(), SqlError> {
    if let Some(shared) = client.connection()?.shared_seat().await? {
        world.fail(shared);
    }
    Ok(())
}

async fn perform(client: &mut SqlClient, seat: &mut Seat, deed: Deed) -> Result<&'static str, SqlError> {
    let (thought, put_off) = (seat.rng.random_range(Duration::ZERO..THOUGHT_MAX), seat.rng.random());
    match deed {
        Deed::One(what, (statement, params)) => {
            client.connection()?.run(statement, &params).await?;
            Ok(what)
        }
        Deed::Many(what, mode, steps) => {
            let connection = client.connection()?;
            if let Err(error) = connection.seats_changed(mode, &steps, put_off).await {
                connection.give_up().await;
                return Err(error);
            }
            seat.world.sleep(seat.owner, thought).await;
            connection.commit().await?;
            Ok(what)
        }
        Deed::Look => look(client, &seat.world).await.map(|()| "seats seen"),
    }
}

impl Deeds for Seats {
    const PAUSE_MAX: Duration = Duration::from_millis(120);

    async fn prepare(&self, client: &mut SqlClient) -> Result<(), SqlError> {
        client.connection()?.query(CREATE).await.map(|_| ())
    }

    async fn perform(&self, client: &mut SqlClient, seat: &mut Seat) -> Result<&'static str, SqlError> {
        let deed = next(&mut seat.rng);
        perform(client, seat, deed).await
    }

    fn refusal(error: &SqlError) -> &'static str {
        let shared = error.object.constraint.as_deref().is_some_and(|name| name != "seat_pkey");
        match error.sqlstate {
            sql::SqlState::UNIQUE_VIOLATION if shared => "shared values refused",
            sql::SqlState::DEADLOCK_DETECTED => "deadlocks",
            _ if is_unknown(error) => "commits of unknown outcome",
            _ if error.is_retryable() => "seats in conflict",
            _ => "seats refused",
        }
    }

    async fn judge(&self, client: &mut SqlClient, world: &World) -> Result<Result<(), String>, SqlError> {
        look(client, world).await?;
        // Whatever became of their owners, all rows can be locked again.
        for id in 0..ROWS {
            client.connection()?.run(LOCK, &[id]).await?;
        }
        Ok(Ok(()))
    }
}
