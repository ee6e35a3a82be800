//! The files of tests/slt against FlareDB, and against PostgreSQL, which is right.
//!
//! With `UPDATE_GOLDENFILES=1` the run against PostgreSQL writes its answers into the files: a new statement needs no more than
//! `query T` above it.

use std::{path::PathBuf, time::Duration};

use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Record, Runner};
use tests::{cluster::Cluster, postgres::Postgres, source};
use tokio_postgres::{Client, SimpleQueryMessage};

/// Failures of one file that are shown.
const MAX_SHOWN: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flaredb_answers_as_the_files_say() {
    let cluster = Cluster::start_ready(3).await;
    let node = &cluster.nodes()[0];
    run_all("flaredb", async || node.connect().await.expect("a connection")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_answers_as_the_files_say() {
    let server = Postgres::start();
    run_all("postgresql", async || server.connect().await.expect("a connection")).await;
}

fn files() -> Vec<PathBuf> {
    let folder = std::fs::read_dir(source::root().join("tests/slt")).expect("tests/slt is readable");
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "slt"));
    files.sort();
    assert!(!files.is_empty(), "there are files in tests/slt");
    files
}

async fn run_all(engine: &'static str, connect: impl AsyncFn() -> Client) {
    let mut failures = Vec::new();
    for file in files() {
        // Named connections of a file would each want a client of their own.
        let client = connect().await;
        let mut clients = vec![Server { client, engine }];
        let mut runner = Runner::new(|| std::future::ready(Ok(clients.pop().expect("one connection a file"))));
        runner.add_label(engine);
        if engine == "postgresql" && std::env::var_os("UPDATE_GOLDENFILES").is_some() {
            let updated = runner.update_test_file(
                &file,
                " ",
                sqllogictest::default_validator,
                sqllogictest::default_normalizer,
                sqllogictest::default_column_validator,
            );
            updated.await.expect("the file can be written");
        } else {
            failures.extend(run_file(&mut runner, &file).await);
        }
        drop_tables(&connect().await).await;
    }
    let shown: Vec<&str> = failures.iter().take(MAX_SHOWN).map(String::as_str).collect();
    assert!(failures.is_empty(), "{} answers of {engine} differ:\n\n{}", failures.len(), shown.join("\n\n"));
}

/// All records, also behind one that fails.
async fn run_file<M>(runner: &mut Runner<Server, M>, file: &PathBuf) -> Vec<String>
where
    M: sqllogictest::MakeConnection<Conn = Server>,
{
    let records: Vec<Record<DefaultColumnType>> = sqllogictest::parse_file(file).expect("the file is sqllogictest's");
    let mut failures = Vec::new();
    for record in records {
        if let Err(error) = runner.run_async(record).await {
            failures.push(format!("{}: {}", error.location(), error.kind().display(false)));
        }
    }
    failures
}

/// Files start without tables.
async fn drop_tables(client: &Client) {
    let rows = client
        .query(
            "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind = 'r' AND n.nspname = 'public'",
            &[],
        )
        .await
        .expect("the tables are listed");
    for row in rows {
        client
            .simple_query(&format!("DROP TABLE {} CASCADE", row.get::<_, &str>(0)))
            .await
            .expect("a table is dropped");
    }
}

struct Server {
    client: Client,
    engine: &'static str,
}

impl Server {
    async fn answer(&self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Refused> {
        let (mut rows, mut columns, mut count) = (Vec::new(), None, 0);
        for message in self.client.simple_query(sql).await.map_err(Refused)? {
            match message {
                SimpleQueryMessage::RowDescription(description) => columns = Some(description.len()),
                SimpleQueryMessage::Row(row) => rows.push((0..row.len()).map(|at| shown(row.get(at))).collect()),
                SimpleQueryMessage::CommandComplete(rows) => count = rows,
                _ => {}
            }
        }
        Ok(match columns {
            Some(columns) => DBOutput::Rows { types: vec![DefaultColumnType::Text; columns], rows },
            None => DBOutput::StatementComplete(count),
        })
    }
}

/// An error with its message.
#[derive(Debug)]
struct Refused(tokio_postgres::Error);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_db_error() {
            Some(error) => write!(f, "{} {}", error.code().code(), error.message()),
            None => self.0.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}

fn shown(value: Option<&str>) -> String {
    match value {
        None => "NULL".to_owned(),
        Some("") => "(empty)".to_owned(),
        Some(text) => text.to_owned(),
    }
}

#[async_trait::async_trait]
impl AsyncDB for Server {
    type Error = Refused;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Refused> {
        let first = self.answer(sql).await?;
        // A second time the plan comes from the cache.
        if matches!(first, DBOutput::Rows { .. }) && sql.trim_start().to_ascii_uppercase().starts_with("SELECT") {
            return self.answer(sql).await;
        }
        Ok(first)
    }
    async fn shutdown(&mut self) {}
    fn engine_name(&self) -> &str {
        self.engine
    }
    async fn sleep(duration: Duration) {
        panic!("a file asks for a retry after {duration:?}: nothing in it may depend on time");
    }
    fn error_sql_state(error: &Refused) -> Option<String> {
        error.0.code().map(|state| state.code().to_owned())
    }
}
