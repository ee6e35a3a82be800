//! One connection, one transaction at a time, and how each ended.

use std::collections::HashMap;

use anyhow::Context;
use history::{Level, Operation, Outcome};
use parking_lot::Mutex;
use tokio_postgres::{Client, Config, Error, NoTls, Row, Statement, types::ToSql};

use crate::clock::Tasks;

/// A server that does not take a connection in this time is passed over.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Errors of a commit, or of a statement that is a transaction by itself, after which certainly nothing was committed. All
/// others may have come too late. By their beginnings: a class is two characters.
const CERTAIN: &[&str] = &["0A", "22", "23", "25", "40001", "40P01", "42", "55"];

/// `HOST:PORT`, or anything that libpq takes.
pub(super) fn parse_dsn(dsn: &str) -> anyhow::Result<Config> {
    let mut config: Config = match dsn.rsplit_once(':') {
        Some((host, port)) if !dsn.contains("://") && !dsn.contains('=') => {
            let port = port.parse().with_context(|| format!("--dsn {dsn:?}: HOST:PORT is wanted"))?;
            let mut config = Config::new();
            config.host(host.trim_matches(['[', ']'])).port(port);
            config
        }
        _ => dsn.parse().with_context(|| format!("--dsn {dsn:?} is neither HOST:PORT nor a connection string"))?,
    };
    if config.get_user().is_none() {
        config.user("postgres");
    }
    if config.get_dbname().is_none() {
        config.dbname("postgres");
    }
    config.connect_timeout(CONNECT_TIMEOUT).application_name("flaredb workload");
    Ok(config)
}

/// A connection with its prepared statements.
pub(super) struct Session {
    client: Client,
    statements: Mutex<HashMap<&'static str, Statement>>,
}

impl Session {
    pub(super) async fn connect(config: &Config, tasks: &Tasks) -> Result<Session, Error> {
        let (client, connection) = config.connect(NoTls).await?;
        tasks.run("connection of the workload", async move {
            // How it ended is told to whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Session { client, statements: Mutex::default() })
    }

    /// Statements that are transactions by themselves run at this level too.
    pub(super) async fn usual_level(&self, level: Level) -> Result<(), Error> {
        let name = match level {
            Level::ReadCommitted => "READ COMMITTED",
            Level::RepeatableRead => "REPEATABLE READ",
            Level::Serializable | Level::Strict => "SERIALIZABLE",
        };
        self.batch(&format!("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {name}")).await
    }

    pub(super) async fn batch(&self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await
    }

    pub(super) async fn ask(&self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let known = self.statements.lock().get(sql).cloned();
        let statement = match known {
            Some(statement) => statement,
            None => {
                let statement = self.client.prepare(sql).await?;
                self.statements.lock().insert(sql, statement.clone());
                statement
            }
        };
        self.client.query(&statement, values).await
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

/// How far a transaction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was sent that could commit.
    Open,
    /// The answer decides.
    Deciding,
    /// The answer was there.
    Committed,
    /// Rolled back on purpose.
    GivenUp,
}

/// One transaction, and what it wrote and saw so far.
pub(super) struct Attempt<'a> {
    session: &'a Session,
    phase: Phase,
    pub(super) operations: Vec<Operation>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(session: &'a Session) -> Attempt<'a> {
        Attempt { session, phase: Phase::Open, operations: Vec::new() }
    }

    /// Begins at the session's level.
    pub(super) async fn begin(&mut self, read_only: bool) -> Result<(), Error> {
        let sql = if read_only { "BEGIN READ ONLY" } else { "BEGIN" };
        self.session.batch(sql).await
    }

    /// Begins so that all of it is one snapshot.
    pub(super) async fn begin_snapshot(&mut self) -> Result<(), Error> {
        self.session.batch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
    }

    /// A statement inside.
    pub(super) async fn ask(&self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.session.ask(sql, values).await
    }

    /// A statement that is the whole transaction.
    pub(super) async fn alone(&mut self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.phase = Phase::Deciding;
        let rows = self.session.ask(sql, values).await?;
        self.phase = Phase::Committed;
        Ok(rows)
    }

    pub(super) async fn commit(&mut self) -> Result<(), Error> {
        self.phase = Phase::Deciding;
        self.session.batch("COMMIT").await?;
        self.phase = Phase::Committed;
        Ok(())
    }

    pub(super) async fn give_up(&mut self) -> Result<(), Error> {
        self.phase = Phase::GivenUp;
        self.session.batch("ROLLBACK").await
    }

    /// How it ended, by the error it ended with; `None` for an error: no answer in time.
    pub(super) fn outcome(&self, error: Option<&Error>) -> Outcome {
        let certain = || {
            let code = error.and_then(Error::code).map_or("", |code| code.code());
            CERTAIN.iter().any(|beginning| code.starts_with(beginning))
        };
        match self.phase {
            Phase::Committed => Outcome::Ok,
            Phase::Open | Phase::GivenUp => Outcome::Fail,
            Phase::Deciding if certain() => Outcome::Fail,
            Phase::Deciding => Outcome::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dsns_are_addresses_or_connection_strings() {
        for good in ["127.0.0.1:5433", "[::1]:5433", "postgresql://me@h:1/db", "host=h port=1"] {
            parse_dsn(good).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        for bad in ["", "h", "h:x", "host=h port=x"] {
            assert!(parse_dsn(bad).is_err() || bad.is_empty(), "{bad}");
        }
    }
}
