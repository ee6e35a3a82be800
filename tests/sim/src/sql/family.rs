//! Parents that go while children come, in tables with foreign keys: nobody ever sees a child without its parent.
//!
//! ```text
//!   parent (id, v) ◄── kid (id, parent)       found by reading all kids
//!                  ◄── heir (id, parent)      ON DELETE CASCADE, by an index
//!                  ◄── late (id, parent)      checked at COMMIT
//! ```

use std::{collections::BTreeSet, time::Duration};

use rand::Rng;
use sql::{SqlError, SqlState};

use super::{Connection, Deeds, SqlClient, connection::is_unknown};
use crate::{runtime::World, workload::Seat};

/// Few, so that they are contended.
const PARENTS: i64 = 6;
/// Children of each table.
const CHILDREN: i64 = 16;
/// How long a transaction thinks before it commits: long enough for a leader to go in between.
const THOUGHT_MAX: Duration = Duration::from_millis(1500);

const CREATE: [&str; 5] = [
    "CREATE TABLE IF NOT EXISTS parent (id bigint PRIMARY KEY, v bigint NOT NULL)",
    "CREATE TABLE IF NOT EXISTS kid (id bigint PRIMARY KEY, parent bigint NOT NULL REFERENCES parent)",
    "CREATE TABLE IF NOT EXISTS heir (id bigint PRIMARY KEY, parent bigint NOT NULL REFERENCES parent ON DELETE CASCADE)",
    "CREATE INDEX IF NOT EXISTS heir_parent ON heir (parent)",
    "CREATE TABLE IF NOT EXISTS late (id bigint PRIMARY KEY,
        parent bigint NOT NULL REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
];
const ADD_PARENT: &str = "INSERT INTO parent VALUES ($1, 0)";
const DROP_PARENT: &str = "DELETE FROM parent WHERE id = $1";
const TOUCH_PARENT: &str = "UPDATE parent SET v = v + 1 WHERE id = $1";
const LOCK_PARENT: &str = "SELECT v FROM parent WHERE id = $1 FOR UPDATE";
const PARENTS_SEEN: &str = "SELECT id FROM parent WHERE id >= $1 AND id < $2";

/// The statements of one table of children.
struct Statements {
    name: &'static str,
    add: &'static str,
    change: &'static str,
    drop: &'static str,
    seen: &'static str,
}

macro_rules! statements {
    ($($table:literal),*) => {
        [$(Statements {
            name: $table,
            add: concat!("INSERT INTO ", $table, " VALUES ($1, $2)"),
            change: concat!("UPDATE ", $table, " SET parent = $2 WHERE id = $1"),
            drop: concat!("DELETE FROM ", $table, " WHERE id = $1"),
            seen: concat!("SELECT id, parent FROM ", $table, " WHERE id >= $1 AND id < $2"),
        }),*]
    };
}

const CHILD: [Statements; 3] = statements!("kid", "heir", "late");
const LATE: usize = 2;

/// The workload's.
#[derive(Default)]
pub struct Family;

/// What a session does next.
#[derive(Clone, Copy)]
enum Deed {
    /// A statement of its own, with its parameters.
    One(&'static str, &'static str, [i64; 2], usize),
    /// Several in a transaction.
    Many(&'static str, [(&'static str, [i64; 2], usize); 2]),
    /// All kids go at once.
    Truncate,
    /// Everything is looked at.
    Look,
}

fn next(rng: &mut impl Rng) -> Deed {
    let (parent, other) = (rng.random_range(0..PARENTS), rng.random_range(0..PARENTS));
    let (child, table) = (rng.random_range(0..CHILDREN), &CHILD[rng.random_range(0..CHILD.len())]);
    match rng.random_range(0..40) {
        0..5 => Deed::One("children added", table.add, [child, parent], 2),
        5..11 => {
            let touch = if rng.random() { (TOUCH_PARENT, [parent, 0], 1) } else { (table.drop, [child + 1, 0], 1) };
            Deed::Many("children added in transactions", [(table.add, [child, parent], 2), touch])
        }
        11..14 => Deed::One("children given to others", table.change, [child, parent], 2),
        14..18 => Deed::One("children removed", table.drop, [child, 0], 1),
        18..23 => Deed::One("parents removed", DROP_PARENT, [parent, 0], 1),
        23..26 => {
            let removed = [(DROP_PARENT, [parent, 0], 1), (TOUCH_PARENT, [other, 0], 1)];
            Deed::Many("parents removed in transactions", removed)
        }
        26..32 => Deed::One("parents added", ADD_PARENT, [parent, 0], 1),
        32..34 => {
            let first = (CHILD[LATE].add, [child, parent], 2);
            Deed::Many("children before their parents", [first, (ADD_PARENT, [parent, 0], 1)])
        }
        34 if rng.random_bool(0.2) => Deed::Truncate,
        _ => Deed::Look,
    }
}

impl Connection {
    async fn make_family(&mut self) -> Result<(), SqlError> {
        for statement in CREATE {
            self.query(statement).await?;
        }
        for parent in 0..PARENTS {
            match self.run(ADD_PARENT, &[parent]).await {
                // An earlier attempt got so far.
                Err(error) if error.sqlstate == SqlState::UNIQUE_VIOLATION => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    async fn many(
        &mut self,
        statements: &[(&'static str, [i64; 2], usize)],
        thought: impl Future<Output = ()>,
    ) -> Result<(), SqlError> {
        let done = self.many_open(statements).await;
        if done.is_err() {
            self.give_up().await;
            return done;
        }
        thought.await;
        self.commit().await
    }

    async fn many_open(&mut self, statements: &[(&'static str, [i64; 2], usize)]) -> Result<(), SqlError> {
        self.query("BEGIN").await?;
        for (statement, params, count) in statements {
            self.run(statement, &params[..*count]).await?;
        }
        Ok(())
    }

    /// A child without its parent, in one snapshot.
    async fn orphan(&mut self) -> Result<Option<String>, SqlError> {
        self.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let found = self.orphan_open().await;
        self.query("ROLLBACK").await?;
        found
    }

    async fn orphan_open(&mut self) -> Result<Option<String>, SqlError> {
        let parents = self.run(PARENTS_SEEN, &[0, PARENTS]).await?.rows;
        let parents: BTreeSet<i64> = parents.iter().map(|row| row[0]).collect();
        for table in &CHILD {
            let rows = self.run(table.seen, &[0, CHILDREN + 1]).await?.rows;
            if let Some(row) = rows.iter().find(|row| !parents.contains(&row[1])) {
                return Ok(Some(format!("{} {} has no parent {}; there are {parents:?}", table.name, row[0], row[1])));
            }
        }
        Ok(None)
    }

    async fn lock_parents(&mut self) -> Result<(), SqlError> {
        for parent in 0..PARENTS {
            self.run(LOCK_PARENT, &[parent]).await?;
        }
        Ok(())
    }
}

async fn look(client: &mut SqlClient, world: &World) -> Result<(), SqlError> {
    if let Some(orphan) = client.connection()?.orphan().await? {
        world.fail(orphan);
    }
    Ok(())
}

async fn perform(client: &mut SqlClient, seat: &mut Seat, deed: Deed) -> Result<&'static str, SqlError> {
    let thought = seat.rng.random_range(Duration::ZERO..THOUGHT_MAX);
    match deed {
        Deed::One(what, statement, params, count) => {
            client.connection()?.run(statement, &params[..count]).await?;
            Ok(what)
        }
        Deed::Many(what, statements) => {
            client.connection()?.many(&statements, seat.world.sleep(seat.owner, thought)).await?;
            Ok(what)
        }
        Deed::Truncate => client.connection()?.query("TRUNCATE kid").await.map(|_| "kids truncated"),
        Deed::Look => look(client, &seat.world).await.map(|()| "families seen"),
    }
}

impl Deeds for Family {
    const PAUSE_MAX: Duration = Duration::from_millis(120);

    async fn prepare(&self, client: &mut SqlClient) -> Result<(), SqlError> {
        client.connection()?.make_family().await
    }

    async fn perform(&self, client: &mut SqlClient, seat: &mut Seat) -> Result<&'static str, SqlError> {
        let deed = next(&mut seat.rng);
        perform(client, seat, deed).await
    }

    fn refusal(error: &SqlError) -> &'static str {
        match error.sqlstate {
            SqlState::FOREIGN_KEY_VIOLATION if error.message.starts_with("insert") => "orphans refused",
            SqlState::FOREIGN_KEY_VIOLATION => "parents kept by their children",
            SqlState::DEADLOCK_DETECTED => "deadlocks",
            _ if is_unknown(error) => "commits of unknown outcome",
            _ if error.is_retryable() => "family transactions in conflict",
            _ => "family transactions refused",
        }
    }

    async fn judge(&self, client: &mut SqlClient, world: &World) -> Result<Result<(), String>, SqlError> {
        look(client, world).await?;
        // Whatever became of their owners, all rows can be locked again.
        client.connection()?.lock_parents().await.map(Ok)
    }
}
