//! What a driver is to a server: statements as text and as prepared ones, answers as numbers.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use proto::KeyRange;
use sql::{Gateway, Session, SqlError, SqlState, Startup, Step, types::Format};

use crate::runtime::World;

/// What a statement gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// CommandComplete's.
    pub tag: String,
    /// The rows; workloads use columns of numbers only.
    pub rows: Vec<Vec<i64>>,
}

impl Answer {
    /// How many rows an UPDATE, INSERT or DELETE changed.
    pub fn changed(&self) -> u64 {
        self.tag.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or_default()
    }
}

/// A gateway, and at most one connection to it. A clone is another client of the gateway, with a connection of its own.
pub struct SqlClient {
    gateway: Arc<Gateway>,
    client: kv::Client,
    world: World,
    connection: Option<Box<Connection>>,
}

impl Clone for SqlClient {
    fn clone(&self) -> Self {
        SqlClient::new(self.gateway.clone(), self.client.clone(), self.world.clone())
    }
}

impl SqlClient {
    /// A client that has not connected yet.
    pub fn new(gateway: Arc<Gateway>, client: kv::Client, world: World) -> Self {
        SqlClient { gateway, client, world, connection: None }
    }

    /// The run.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Its transactions.
    pub fn kv(&self) -> &kv::Client {
        &self.client
    }

    /// The session ends; the next use connects again.
    pub fn hang_up(&mut self) {
        self.connection = None;
    }

    /// The connection, made when there is none.
    pub fn connection(&mut self) -> Result<&mut Connection, SqlError> {
        if self.connection.is_none() {
            let startup = Startup { user: "postgres".into(), database: "postgres".into(), ..Startup::default() };
            let session = self.gateway.connect(startup)?;
            let (gateway, client, world) = (self.gateway.clone(), self.client.clone(), self.world.clone());
            let prepared = BTreeMap::new();
            self.connection = Some(Box::new(Connection { session, gateway, client, world, prepared, warned: false }));
        }
        Ok(self.connection.as_mut().expect("made just now"))
    }
}

/// A session and what a driver knows of it.
pub struct Connection {
    session: Session,
    gateway: Arc<Gateway>,
    client: kv::Client,
    world: World,
    /// Names of prepared statements by their text.
    prepared: BTreeMap<&'static str, String>,
    /// The last statement came with a warning.
    warned: bool,
}

impl Connection {
    /// The session itself.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Keys with a value in a range, now.
    pub async fn left_in(&mut self, range: KeyRange) -> Result<usize, kv::Error> {
        let txn = self.client.begin().await?;
        let mut scan = txn.scan(kv::ScanOptions { range, ..Default::default() });
        let mut left = 0;
        while let Some(page) = scan.next_page().await? {
            left += page.rows.len();
        }
        Ok(left)
    }

    /// A Query message.
    pub async fn query(&mut self, sql: &str) -> Result<Answer, SqlError> {
        self.warned = false;
        self.session.simple(sql).await?;
        let answer = self.drain().await;
        self.by_key_plan(sql);
        answer
    }

    /// Bind, Execute and Sync of a statement, which is prepared when it is run for the first time.
    pub async fn run(&mut self, sql: &'static str, params: &[i64]) -> Result<Answer, SqlError> {
        self.warned = false;
        let answer = self.execute(sql, params).await;
        // Sync comes whatever happened; after an error outside of a block it rolls back.
        let synced = self.session.sync().await;
        self.by_key_plan(sql);
        let answer = answer?;
        synced.map(|()| answer)
    }

    async fn execute(&mut self, sql: &'static str, params: &[i64]) -> Result<Answer, SqlError> {
        let name = match self.prepared.get(sql) {
            Some(name) => name.clone(),
            None => {
                let name = format!("s{}", self.prepared.len());
                self.session.parse(&name, sql, &[]).await?;
                self.prepared.insert(sql, name.clone());
                name
            }
        };
        let params = params.iter().map(|param| Some(Bytes::from(param.to_string()))).collect();
        self.session.bind("", &name, &[Format::Text], params, &[Format::Binary]).await?;
        self.session.execute("", 0, true).await?;
        self.drain().await
    }

    async fn drain(&mut self) -> Result<Answer, SqlError> {
        let mut answer = Answer::default();
        while let Some(step) = self.session.next().await? {
            match step {
                Step::Rows(batch) => {
                    for row in 0..batch.len() {
                        let numbers = (0..batch.width()).map(|column| {
                            let datum = batch.datum(row, column)?;
                            datum.as_i64().ok_or_else(|| SqlError::internal("a workload asked for what is no number"))
                        });
                        answer.rows.push(numbers.collect::<Result<_, _>>()?);
                    }
                }
                Step::Done(tag) => answer.tag = tag,
                _ => {}
            }
        }
        self.warned = !self.session.take_notices().is_empty();
        Ok(answer)
    }

    /// The last statement's answer came with a warning or a notice.
    pub fn was_warned(&self) -> bool {
        self.warned
    }

    /// COMMIT; what was meant to be committed and was rolled back instead is an error.
    pub async fn commit(&mut self) -> Result<(), SqlError> {
        let answer = self.query("COMMIT").await?;
        match answer.tag.as_str() {
            "COMMIT" => Ok(()),
            other => Err(SqlError::serialization(format!("COMMIT was answered with {other}"))),
        }
    }

    /// Ends a transaction in which a statement failed.
    pub async fn give_up(&mut self) {
        if let Err(error) = self.query("ROLLBACK").await {
            self.world.fail(format!("ROLLBACK was refused: {error}"));
        }
    }

    /// What goes through DataFusion does not repeat (see the module's essay).
    fn by_key_plan(&self, sql: &str) {
        if self.gateway.general_plans() > 0 {
            self.world.fail(format!("a statement of a workload has no key plan: {sql}"));
        }
    }
}

/// The outcome of the statement's commit is not known.
pub(super) fn is_unknown(error: &SqlError) -> bool {
    error.sqlstate == SqlState::STATEMENT_COMPLETION_UNKNOWN || error.sqlstate.0 == "08007"
}
