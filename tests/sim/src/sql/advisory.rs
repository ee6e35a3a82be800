//! Advisory locks of sessions on all nodes: who has one is alone with it, or with those who share it, until it gives it up, its
//! session is gone, or it has to know that it lost it.
//!
//! The rows that SQL has for them go through DataFusion and stay out (see the module's essay); what the functions call is called.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::keyspace;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use sql::{
    SqlError, SqlState,
    advisory::{Advisory, Ask, Name, Scope},
};

use super::{Connection, Deeds, SqlClient};
use crate::{
    runtime::{Owner, World},
    workload::Seat,
};

/// Few, so that they are contended.
const NAMES: i64 = 2;
/// How long a lock is held: long enough for a leader to go.
const HELD_MAX: Duration = Duration::from_secs(3);
/// Some are held longer than a lease runs: who has one is cut off, and has to notice.
const HELD_LONG: Duration = Duration::from_secs(20);
/// How long somebody waits for a lock before it does something else.
const PATIENCE: Duration = Duration::from_secs(5);

/// The workload's.
#[derive(Default)]
pub struct AdvisoryLocks {
    inside: Mutex<Vec<Inside>>,
}

/// A session that has a lock, as far as it knows.
struct Inside {
    name: i64,
    shared: bool,
    locks: Arc<Advisory>,
    /// Gone with the session's task: its node has crashed.
    life: Weak<()>,
}

impl Inside {
    /// It may go on as if the lock were its own.
    fn believes(&self) -> bool {
        self.life.strong_count() > 0 && !self.locks.are_lost()
    }
}

impl AdvisoryLocks {
    /// A session has got a lock: nobody else may believe to have it.
    fn enter(&self, world: &World, life: &Arc<()>, ask: &Ask, name: i64, locks: &Arc<Advisory>) {
        let mut inside = self.inside.lock();
        inside.retain(|other| other.life.strong_count() > 0);
        let against = |other: &&Inside| other.name == name && !(other.shared && ask.shared);
        if inside.iter().filter(against).any(Inside::believes) {
            world.fail(format!("two sessions have advisory lock {name}"));
        }
        let (locks, life) = (Arc::clone(locks), Arc::downgrade(life));
        inside.push(Inside { name, shared: ask.shared, locks, life });
    }

    fn leave(&self, life: &Arc<()>) {
        let life = Arc::downgrade(life);
        self.inside.lock().retain(|other| !other.life.ptr_eq(&life));
    }

    async fn hold(&self, connection: &mut Connection, seat: &mut Seat) -> Result<&'static str, SqlError> {
        let locks = Arc::clone(connection.session().backend().advisory());
        locks.check()?;
        locks.set_timeout(Some(PATIENCE));
        let name = seat.rng.random_range(0..NAMES);
        let (shared, wait) = (seat.rng.random_bool(0.3), seat.rng.random_bool(0.7));
        let ask = Ask { name: Name::One(name), shared, scope: Scope::Session, wait, label: Bytes::new() };
        if !locks.take(ask.clone()).await? {
            return Ok("advisory locks of somebody else");
        }
        let life = Arc::new(());
        self.enter(&seat.world, &life, &ask, name, &locks);
        let held = match seat.rng.random_bool(0.5) {
            true => HELD_LONG,
            false => seat.rng.random_range(Duration::ZERO..HELD_MAX),
        };
        seat.world.sleep(seat.owner, held).await;
        let kept = locks.check();
        self.leave(&life);
        kept?;
        if !locks.unlock(ask.name, ask.shared).await {
            seat.world.fail(format!("advisory lock {name} was not held by its holder"));
        }
        Ok("advisory locks held")
    }
}

impl Deeds for AdvisoryLocks {
    // Whoever is refused at once comes back a little later.
    const PAUSE_MAX: Duration = Duration::from_millis(100);

    async fn prepare(&self, client: &mut SqlClient) -> Result<(), SqlError> {
        client.connection().map(|_| ())
    }

    async fn perform(&self, client: &mut SqlClient, seat: &mut Seat) -> Result<&'static str, SqlError> {
        let done = match client.connection() {
            Ok(connection) => self.hold(connection, seat).await,
            Err(error) => Err(error),
        };
        if done.as_ref().is_err_and(|error| error.sqlstate != SqlState::LOCK_NOT_AVAILABLE) {
            client.hang_up();
        }
        done
    }

    fn refusal(error: &SqlError) -> &'static str {
        match error.sqlstate {
            SqlState::LOCK_NOT_AVAILABLE => "advisory locks not waited for longer",
            SqlState::ADMIN_SHUTDOWN => "advisory locks lost with a lease",
            _ => "advisory locks not to be had",
        }
    }

    fn border(rng: &mut ChaCha8Rng) -> Bytes {
        let name = Name::One(rng.random_range(0..NAMES));
        if rng.random() { name.queue() } else { name.holders() }
    }

    async fn judge(&self, client: &mut SqlClient, world: &World) -> Result<Result<(), String>, SqlError> {
        // The last ones give up what they have.
        world.sleep(Owner::Harness, PATIENCE + HELD_LONG).await;
        let connection = client.connection()?;
        let locks = Arc::clone(connection.session().backend().advisory());
        // Whatever became of its holders, every lock can be had again.
        for name in 0..NAMES {
            let (name, scope) = (Name::One(name), Scope::Session);
            locks.take(Ask { name, shared: false, scope, wait: true, label: Bytes::new() }).await?;
        }
        locks.unlock_all().await;
        let records = keyspace::index_range(keyspace::SQL_KEYSPACE, sql::advisory::name::TABLE, 0);
        let left = connection.left_in(records).await?;
        Ok(if left == 0 { Ok(()) } else { Err(format!("{left} records of advisory locks are left")) })
    }
}
