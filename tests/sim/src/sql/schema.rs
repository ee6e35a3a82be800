//! Two tables that hold the same, filled by some sessions and emptied by others: TRUNCATE, or dropped and made anew; and
//! a journal of all that was added. Some lock both tables against writers and look at them twice.
//!
//! A transaction that looks at both must find the same in both, whatever schema change is under way: nobody writes or
//! reads one of them by the old catalog and the other by the new one. While they are locked nothing is committed in either. And
//! what every gateway is told is done, is done (`check::cleared`): nobody adds to a table that was emptied meanwhile, nobody
//! sees what was cleared away. Who reads from the nearest replica sees the same in both as well, of some seconds ago.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use sql::{SqlError, SqlState, catalog::garbage};

use super::{Connection, SqlClient, connection::is_unknown};
use crate::{
    check::cleared::{self, History, Look, Span},
    runtime::{Owner, World},
    workload::{Seat, Workload},
};

/// Between two operations of a session.
const PAUSE_MAX: Duration = Duration::from_millis(150);
/// A transaction that adds stays open for up to this, and longer when its statements take longer.
const THINK_MAX: Duration = Duration::from_millis(400);
/// Entries of the journal that a look reads: as many as are added in the longest exile.
const JOURNAL_READ: u64 = 600;
/// Within this, with room, garbage is deleted whose gateway is gone.
const GARBAGE_GOES: Duration = Duration::from_secs(300);
/// Between two looks for it.
const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// Elements stay below it.
const ELEMENTS_MAX: i64 = 1 << 40;

const CREATE: [&str; 2] = [
    "CREATE TABLE left_side (id bigint PRIMARY KEY, session bigint NOT NULL)",
    "CREATE TABLE right_side (id bigint PRIMARY KEY, session bigint NOT NULL)",
];
const CREATE_IF_MISSING: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS left_side (id bigint PRIMARY KEY, session bigint NOT NULL)",
    "CREATE TABLE IF NOT EXISTS right_side (id bigint PRIMARY KEY, session bigint NOT NULL)",
    "CREATE TABLE IF NOT EXISTS journal (id bigint PRIMARY KEY)",
];
const ADD: [&str; 3] = [
    "INSERT INTO left_side VALUES ($1, 0)",
    "INSERT INTO right_side VALUES ($1, 0)",
    "INSERT INTO journal VALUES ($1)",
];
const LOOK: [&str; 3] = [
    "SELECT id FROM left_side WHERE id >= $1 AND id < $2",
    "SELECT id FROM right_side WHERE id >= $1 AND id < $2",
    "SELECT id FROM journal WHERE id >= $1 AND id < $2",
];

/// How the tables are emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// One statement.
    Truncate,
    /// A transaction of two.
    TruncateEach,
    /// Other tables of the same names.
    MakeAnew,
    /// Emptied and filled in one transaction.
    Refill,
}

const WAYS: [Way; 4] = [Way::Truncate, Way::TruncateEach, Way::MakeAnew, Way::Refill];

#[derive(Default)]
struct Notes {
    stopped: bool,
    next_element: u64,
    history: History,
}

/// The workload.
#[derive(Default)]
pub struct Schema(Mutex<Notes>);

impl Connection {
    async fn add(&mut self, element: i64, think: impl Future<Output = ()>) -> Result<(), SqlError> {
        let added = self.add_open(element).await;
        think.await;
        if added.is_err() {
            self.give_up().await;
            return added;
        }
        self.commit().await
    }

    async fn add_open(&mut self, element: i64) -> Result<(), SqlError> {
        self.query("BEGIN").await?;
        for statement in ADD {
            self.run(statement, &[element]).await?;
        }
        Ok(())
    }

    /// What both tables hold, and the journal from an element on; `near`: or held some seconds ago.
    async fn look(&mut self, journal_from: u64, near: bool) -> Result<[BTreeSet<u64>; 3], SqlError> {
        self.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        if near {
            self.query("SET LOCAL flaredb.read_from = 'nearest'").await?;
        }
        let seen = self.look_open(journal_from).await;
        self.query("ROLLBACK").await?;
        seen
    }

    async fn look_open(&mut self, journal_from: u64) -> Result<[BTreeSet<u64>; 3], SqlError> {
        let mut all = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
        for ((statement, seen), from) in LOOK.into_iter().zip(&mut all).zip([0, 0, journal_from as i64]) {
            let rows = self.run(statement, &[from, ELEMENTS_MAX]).await?.rows;
            seen.extend(rows.iter().map(|row| row[0] as u64));
        }
        Ok(all)
    }

    /// What each table holds while both are locked, one statement after the other, and again after a while.
    async fn locked_look(&mut self, think: impl Future<Output = ()>) -> Result<[BTreeSet<u64>; 3], SqlError> {
        self.query("BEGIN").await?;
        let seen = async {
            self.query("LOCK TABLE left_side, right_side IN SHARE MODE").await?;
            let left = self.side(0).await?;
            think.await;
            Ok([left, self.side(1).await?, self.side(0).await?])
        };
        let seen = seen.await;
        self.query("ROLLBACK").await?;
        seen
    }

    async fn side(&mut self, side: usize) -> Result<BTreeSet<u64>, SqlError> {
        let rows = self.run(LOOK[side], &[0, ELEMENTS_MAX]).await?.rows;
        Ok(rows.iter().map(|row| row[0] as u64).collect())
    }

    async fn clear(&mut self, way: Way, element: i64) -> Result<(), SqlError> {
        if way == Way::Truncate {
            return self.query("TRUNCATE left_side, right_side").await.map(|_| ());
        }
        let cleared = self.clear_open(way, element).await;
        if cleared.is_err() {
            self.give_up().await;
            return cleared;
        }
        self.commit().await
    }

    async fn clear_open(&mut self, way: Way, element: i64) -> Result<(), SqlError> {
        self.query("BEGIN").await?;
        match way {
            Way::Truncate | Way::TruncateEach | Way::Refill => {
                self.query("TRUNCATE left_side").await?;
                self.query("TRUNCATE right_side").await?;
            }
            Way::MakeAnew => {
                self.query("DROP TABLE left_side, right_side").await?;
                for statement in CREATE {
                    self.query(statement).await?;
                }
            }
        }
        if way == Way::Refill {
            for statement in ADD {
                self.run(statement, &[element]).await?;
            }
        }
        Ok(())
    }
}

impl Schema {
    fn element(&self) -> u64 {
        let mut notes = self.0.lock();
        notes.next_element += 1;
        notes.next_element
    }

    async fn add(&self, connection: &mut Connection, seat: &mut Seat) {
        let (element, world) = (self.element(), &seat.world);
        // Half of them are programs, half people.
        let think = if seat.rng.random_bool(0.5) { THINK_MAX } else { Duration::from_millis(1) };
        let think = world.sleep(seat.owner, seat.rng.random_range(Duration::ZERO..think));
        // Until it is known better: the session may die at any point from here on.
        let span = Span { called: world.now(), answered: None };
        self.0.lock().history.added.insert(element, span);
        let added = connection.add(element as i64, think).await;
        let mut notes = self.0.lock();
        match added {
            Ok(()) => {
                tracing::trace!(now = ?world.now(), called = ?span.called, element, "added");
                world.count("elements added", 1);
                notes.history.added.insert(element, Span { answered: Some(world.now()), ..span });
            }
            Err(error) if is_unknown(&error) => world.count("commits of unknown outcome", 1),
            Err(error) => {
                refused(world, &error, &format!("adding {element}"));
                notes.history.refused.insert(element);
            }
        }
    }

    async fn look(&self, connection: &mut Connection, world: &World, near: bool) -> Option<()> {
        let called = world.now();
        let journal_from = self.0.lock().next_element.saturating_sub(JOURNAL_READ);
        let seen = connection.look(journal_from, near).await.inspect_err(|error| refused(world, error, "a look")).ok();
        let [left, right, journal] = seen?;
        if left != right {
            world.fail(format!("a snapshot holds {left:?} on the left and {right:?} on the right"));
        }
        if near {
            // What was done lately need not be in it.
            world.count("looks at both tables nearby", 1);
            return Some(());
        }
        world.count("looks at both tables", 1);
        let span = Span { called, answered: Some(world.now()) };
        self.0.lock().history.looks.push(Look { span, seen: left, journal, journal_from });
        Some(())
    }

    async fn locked_look(&self, connection: &mut Connection, seat: &mut Seat) {
        let world = &seat.world;
        let think = world.sleep(seat.owner, seat.rng.random_range(Duration::ZERO..THINK_MAX));
        match connection.locked_look(think).await {
            Ok([left, right, again]) if left != right || left != again => {
                world.fail(format!("locked tables hold {left:?}, {right:?}, and then {again:?}"));
            }
            Ok(_) => world.count("looks at locked tables", 1),
            Err(error) => refused(world, &error, "a look at locked tables"),
        }
    }

    async fn clear(&self, connection: &mut Connection, world: &World, way: Way) {
        let element = (way == Way::Refill).then(|| self.element());
        let span = Span { called: world.now(), answered: None };
        let at = {
            let mut notes = self.0.lock();
            notes.history.added.extend(element.map(|element| (element, span)));
            notes.history.cleared.push((span, element));
            notes.history.cleared.len() - 1
        };
        let cleared = connection.clear(way, element.unwrap_or_default() as i64).await;
        // Committed, and not every gateway has confirmed it: it may be seen late.
        let late = connection.was_warned();
        let mut notes = self.0.lock();
        match cleared {
            Ok(()) if late => world.count("schema changes not confirmed", 1),
            Ok(()) => {
                tracing::debug!(now = ?world.now(), called = ?span.called, ?way, ?element, "emptied");
                world.count("schema changes", 1);
                let span = Span { answered: Some(world.now()), ..span };
                notes.history.cleared[at].0 = span;
                notes.history.added.extend(element.map(|element| (element, span)));
            }
            Err(error) if is_unknown(&error) => world.count("schema changes of unknown outcome", 1),
            Err(error) => {
                refused(world, &error, &format!("{way:?} with {element:?}"));
                notes.history.refused.extend(element);
                // Its span is kept, with nothing in it.
                notes.history.cleared[at].0.called = Duration::MAX;
            }
        }
    }

    async fn work(&self, client: &mut SqlClient, seat: &mut Seat) {
        let Ok(connection) = client.connection() else { return };
        match seat.rng.random_range(0..20) {
            0 => {
                let way = WAYS[seat.rng.random_range(0..WAYS.len())];
                self.clear(connection, &seat.world, way).await;
            }
            1 => self.locked_look(connection, seat).await,
            2..12 => self.add(connection, seat).await,
            12..15 => drop(self.look(connection, &seat.world, true).await),
            _ => drop(self.look(connection, &seat.world, false).await),
        }
    }
}

/// Waits until nothing is left of what gateways that are gone were to delete; what it is, when it stays.
async fn garbage_left(client: &kv::Client, world: &World) -> Result<Option<String>, String> {
    let give_up = world.now() + GARBAGE_GOES;
    loop {
        let txn = client.begin().await.map_err(|error| error.to_string())?;
        let mut left = Vec::new();
        for note in garbage::notes(&txn).await.map_err(|error| error.to_string())? {
            if !client.pd().gateway_alive(note.owner).await.map_err(|error| error.to_string())? {
                left.push(note);
            }
        }
        match left.first() {
            None => return Ok(None),
            Some(note) if world.now() > give_up => return Ok(Some(format!("nobody deletes {note:?}"))),
            Some(_) => world.count("looks at garbage of gateways that are gone", 1),
        }
        world.sleep(Owner::Harness, LOOK_PAUSE).await;
    }
}

/// The tables are always there: whoever misses one sees half a change.
fn refused(world: &World, error: &SqlError, what: &str) {
    tracing::debug!(now = ?world.now(), %error, detail = error.detail, what, "refused");
    if error.sqlstate == SqlState::UNDEFINED_TABLE {
        world.fail(format!("{what} missed a table: {error}"));
    }
    world.count(if error.is_retryable() { "refused for a change of the schema" } else { "refused" }, 1);
}

impl Workload<SqlClient> for Schema {
    fn border(&self, rng: &mut ChaCha8Rng) -> Option<Bytes> {
        Some(super::border(rng))
    }

    fn prepare(self: Arc<Self>, mut client: SqlClient) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move {
            let connection = client.connection().map_err(|error| error.to_string())?;
            for statement in CREATE_IF_MISSING {
                connection.query(statement).await.map_err(|error| error.to_string())?;
            }
            connection.look(0, false).await.map(|_| ()).map_err(|error| error.to_string())
        })
    }

    fn session(self: Arc<Self>, mut client: SqlClient, mut seat: Seat) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while !self.0.lock().stopped {
                self.work(&mut client, &mut seat).await;
                let pause = seat.rng.random_range(Duration::ZERO..PAUSE_MAX);
                seat.world.sleep(seat.owner, pause).await;
            }
        })
    }

    fn stop(&self) {
        self.0.lock().stopped = true;
    }

    fn judge(
        self: Arc<Self>,
        mut client: SqlClient,
        world: World,
    ) -> BoxFuture<'static, Result<Result<(), String>, String>> {
        Box::pin(async move {
            let connection = client.connection().map_err(|error| error.to_string())?;
            self.look(connection, &world, false).await.ok_or("the tables do not answer")?;
            if let Some(left) = garbage_left(client.kv(), &world).await? {
                return Ok(Err(left));
            }
            let notes = self.0.lock();
            world.count("operations judged", notes.history.added.len() as u64 + notes.history.looks.len() as u64);
            Ok(cleared::check(&notes.history))
        })
    }
}
