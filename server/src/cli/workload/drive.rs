//! Sessions that go on, with one server or another, until time is up; then a last look.

use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::join_all;
use history::{Level, Outcome, Transaction};
use kv::Clock;
use raftstore::{Instant, MonotonicClock};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio_postgres::{Config, Error};

use super::{
    loads::Load,
    notes::Notes,
    session::{Attempt, Session, parse_dsn},
};
use crate::clock::{SystemClock, Tasks};

/// Between two tries to connect, when no server answers.
const CONNECT_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Servers that are all away may take so long to come back, before and after the load.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much load, for how long.
pub(super) struct Pace {
    pub(super) sessions: u64,
    pub(super) seconds: u64,
    /// Transactions a second; 0: no limit.
    pub(super) rate: u64,
    pub(super) seed: u64,
}

/// The servers.
pub(super) struct Drive {
    servers: Vec<Config>,
    timeout: Duration,
    started: Instant,
    tasks: Tasks,
}

/// How a step ended.
enum End {
    /// With this outcome.
    Answered(Outcome),
    /// With this outcome, and the connection is of no use any more.
    Broken(Outcome),
}

impl Drive {
    pub(super) fn new(dsns: &[String], timeout: Duration) -> anyhow::Result<Drive> {
        let servers = dsns.iter().map(|dsn| parse_dsn(dsn)).collect::<anyhow::Result<_>>()?;
        Ok(Drive { servers, timeout, started: SystemClock.now(), tasks: Tasks::default() })
    }

    fn now(&self) -> Duration {
        SystemClock.now().since(self.started)
    }

    fn now_ns(&self) -> u64 {
        // 2^64 nanoseconds are 584 years.
        self.now().as_nanos() as u64
    }

    /// Makes the load's tables anew.
    pub(super) async fn init(&self, load: &dyn Load) -> anyhow::Result<()> {
        let session = self.connected().await?;
        for statement in load.tables() {
            session.batch(&statement).await.with_context(|| statement.clone())?;
        }
        let version: String =
            session.ask("SELECT version()", &[]).await?.first().map_or(Ok(String::new()), |row| row.try_get(0))?;
        if version.contains("FlareDB") {
            for statement in load.borders() {
                session.batch(&statement).await.with_context(|| statement.clone())?;
            }
        }
        Ok(())
    }

    /// A connection to any server, as soon as one answers.
    async fn connected(&self) -> anyhow::Result<Session> {
        let since = self.now();
        loop {
            let mut last = None;
            for server in &self.servers {
                match self.open(server).await {
                    Ok(session) => return Ok(session),
                    Err(error) => last = Some(error),
                }
            }
            let Some(last) = last else { bail!("no --dsn was given") };
            if self.now() - since > PATIENCE {
                bail!("no server of --dsn takes connections: {last}");
            }
            SystemClock.sleep(CONNECT_AGAIN_AFTER).await;
        }
    }

    /// A connection to one server. One that is paused takes connections and says nothing.
    async fn open(&self, server: &Config) -> Result<Session, String> {
        let opened = tokio::time::timeout(self.timeout, Session::connect(server, &self.tasks)).await;
        opened.map_err(|_| "no answer in time".to_owned())?.map_err(|error| said(&error))
    }

    async fn open_at(&self, server: &Config, level: Level) -> Result<Session, String> {
        let session = self.open(server).await?;
        let set = tokio::time::timeout(self.timeout, session.usual_level(level)).await;
        set.map_err(|_| "no answer in time".to_owned())?.map_err(|error| said(&error))?;
        Ok(session)
    }

    /// All sessions to their end, and the last look.
    pub(super) async fn run(&self, load: &dyn Load, level: Level, pace: &Pace, notes: &Notes) -> anyhow::Result<()> {
        let until = self.now() + Duration::from_secs(pace.seconds);
        let sessions = (0..pace.sessions).map(|seat| self.session(load, level, pace, seat, until, notes));
        let numbers = join_all(sessions).await;
        if notes.tally().committed == 0 {
            bail!("no transaction was committed: there is nothing to check");
        }
        let number = numbers.into_iter().max().unwrap_or(0) + 1;
        self.look(load, number, notes).await
    }

    /// One session after the other in one seat; the number of the last.
    async fn session(
        &self,
        load: &dyn Load,
        level: Level,
        pace: &Pace,
        seat: u64,
        until: Duration,
        notes: &Notes,
    ) -> u64 {
        let mut chance = ChaCha8Rng::seed_from_u64(pace.seed.wrapping_mul(SEATS_APART).wrapping_add(seat));
        let mut number = seat;
        let mut server = seat as usize % self.servers.len();
        let mut session: Option<Session> = None;
        while self.now() < until {
            let Some(open) = &session else {
                match self.open_at(&self.servers[server], level).await {
                    Ok(open) => session = Some(open),
                    Err(error) => {
                        notes.error(&format!("connecting: {error}"));
                        server = (server + 1) % self.servers.len();
                        SystemClock.sleep(CONNECT_AGAIN_AFTER).await;
                    }
                }
                continue;
            };
            let mut attempt = Attempt::new(open);
            let invoked_ns = self.now_ns();
            let end = {
                let step = load.step(&mut attempt, &mut chance);
                tokio::time::timeout(self.timeout, step).await
            };
            let end = self.end(open, &attempt, end, notes).await;
            let (End::Answered(outcome) | End::Broken(outcome)) = end;
            let operations = attempt.operations;
            let returned_ns = self.now_ns();
            notes.add(Transaction { session: number, invoked_ns, returned_ns, outcome, operations });
            if matches!(end, End::Broken(_)) || outcome == Outcome::Unknown {
                session = None;
                number += pace.sessions;
                server = (server + 1) % self.servers.len();
            }
            self.rest(pace, &mut chance).await;
        }
        number
    }

    async fn end(
        &self,
        session: &Session,
        attempt: &Attempt<'_>,
        end: Result<Result<(), Error>, tokio::time::error::Elapsed>,
        notes: &Notes,
    ) -> End {
        let error = match end {
            Ok(Ok(())) => return End::Answered(attempt.outcome(None)),
            Err(_) => {
                notes.error("no answer in time");
                return End::Broken(attempt.outcome(None));
            }
            Ok(Err(error)) => error,
        };
        notes.error(&said(&error));
        let outcome = attempt.outcome(Some(&error));
        // A transaction that failed is still open.
        let cleared = tokio::time::timeout(self.timeout, session.batch("ROLLBACK")).await;
        match cleared {
            Ok(Ok(())) if !session.is_closed() => End::Answered(outcome),
            _ => End::Broken(outcome),
        }
    }

    async fn rest(&self, pace: &Pace, chance: &mut ChaCha8Rng) {
        if pace.rate > 0 {
            let mean = Duration::from_secs(pace.sessions) / pace.rate.try_into().unwrap_or(u32::MAX);
            SystemClock.sleep(mean.mul_f64(chance.random_range(0.5..1.5))).await;
        }
    }

    /// What is there in the end, as soon as somebody tells.
    async fn look(&self, load: &dyn Load, number: u64, notes: &Notes) -> anyhow::Result<()> {
        let since = self.now();
        loop {
            let session = self.connected().await?;
            let mut attempt = Attempt::new(&session);
            let invoked_ns = self.now_ns();
            let looked = tokio::time::timeout(PATIENCE, load.look(&mut attempt)).await;
            let error = match looked {
                Ok(Ok(())) => {
                    let (outcome, operations) = (attempt.outcome(None), attempt.operations);
                    let returned_ns = self.now_ns();
                    notes.add(Transaction { session: number, invoked_ns, returned_ns, outcome, operations });
                    return Ok(());
                }
                Ok(Err(error)) => said(&error),
                Err(_) => "no answer in time".to_owned(),
            };
            notes.error(&error);
            if self.now() - since > PATIENCE {
                bail!("nobody tells what is there in the end: {error}");
            }
            SystemClock.sleep(CONNECT_AGAIN_AFTER).await;
        }
    }
}

/// Seats of neighbouring seeds make other choices.
const SEATS_APART: u64 = 0x9e37_79b9_7f4a_7c15;

/// An error in a few words: many of one kind are counted together.
fn said(error: &Error) -> String {
    match error.as_db_error() {
        // Numbers of rows and transactions differ from one to the next.
        Some(error) => format!("{} {}", error.code().code(), error.message().replace(|c: char| c.is_ascii_digit(), "")),
        None => error.to_string(),
    }
}
