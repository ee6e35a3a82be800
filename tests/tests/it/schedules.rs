//! Sessions that get in each other's way: the files of tests/schedules against FlareDB, and against PostgreSQL, which is right.
//!
//! ```text
//!   a> UPDATE t SET v = 1 WHERE k = 1      session a says this
//!     1                                    and is told that one row was changed
//!   b> UPDATE t SET v = 2 WHERE k = 1
//!     waits                                for another session
//!   a> COMMIT
//!     0
//!     b: 1                                 which lets b go on
//!   circle a b: b> UPDATE …                with this they would wait for each other for ever: one of them is told 40P01, all are
//!                                          rolled back
//! ```
//!
//! Answers are rows (`1 | x`) and a count, or an SQLSTATE. Where FlareDB is meant to differ the line says
//! `flaredb: …` beside PostgreSQL's `postgresql: …`, and prose above it why. A file that starts with `only postgresql` waits for
//! something FlareDB does not have yet. `UPDATE_GOLDENFILES=1` writes PostgreSQL's answers into the files.
//!
//! Whether a session waits is asked, not guessed: PostgreSQL says who blocks whom (`pg_blocking_pids`); in FlareDB a row of
//! `flaredb.locks` is not granted, and the transactions it waits for are open. A moment that lies between is not believed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tests::{cluster::Cluster, postgres::Postgres, source, wait};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, SimpleQueryMessage};

/// A statement that is neither done nor waits after so long hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often in a row all that are not done must wait, before that is believed: a lock that was given up takes a moment to be
/// somebody else's.
const SURE: usize = 4;
/// What the files make, children before parents.
const TABLES: [&str; 3] = ["c", "p", "t"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flaredb_behaves_as_the_schedules_say() {
    let cluster = Cluster::start_ready(3).await;
    // Sessions of several gateways: locks are nobody's private affair.
    let nodes = cluster.nodes();
    run_all("flaredb", async |at: usize| nodes[at % nodes.len()].connect().await.expect("a connection")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_behaves_as_the_schedules_say() {
    let server = Postgres::start();
    run_all("postgresql", async |_| server.connect().await.expect("a connection")).await;
}

fn files() -> Vec<PathBuf> {
    let folder = std::fs::read_dir(source::root().join("tests/schedules")).expect("tests/schedules is readable");
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "there are files in tests/schedules");
    files
}

/// All files on one engine; [`TABLES`] are gone after each.
async fn run_all(engine: &'static str, connect: impl AsyncFn(usize) -> Client) {
    let update = engine == "postgresql" && std::env::var_os("UPDATE_GOLDENFILES").is_some();
    let mut failures = Vec::new();
    for file in files() {
        let text = std::fs::read_to_string(&file).expect("the file is readable");
        if engine != "postgresql" && text.starts_with("only postgresql") {
            continue;
        }
        let monitor = connect(0).await;
        let mut stage = Stage { monitor, engine, sessions: BTreeMap::new(), connect: &connect };
        let mut written = String::new();
        for block in blocks(&text) {
            let Some(step) = &block.step else {
                written.push_str(&block.text);
                continue;
            };
            let answer = stage.perform(step).await;
            let line = written.lines().count() + 1;
            match block.differs() {
                true => written.push_str(&block.text),
                false => writeln!(written, "{step}\n{answer}").expect("a String takes everything"),
            }
            let expected = block.expected(engine);
            if !update && answer.trim_end() != expected.trim_end() {
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                failures.push(format!("{name}:{line}: {step}\nexpected:\n{expected}\nanswered:\n{answer}"));
            }
        }
        if update {
            std::fs::write(&file, written).expect("the file can be written");
        }
        stage.clear().await;
    }
    assert!(failures.is_empty(), "{} answers of {engine} differ:\n\n{}", failures.len(), failures.join("\n\n"));
}

/// What lines begin with that one engine alone answers.
const ENGINES: [&str; 2] = ["flaredb: ", "postgresql: "];

/// Prose, or a step with its answers.
struct Block {
    text: String,
    step: Option<String>,
}

impl Block {
    fn answers(&self) -> impl Iterator<Item = &str> {
        self.text.lines().skip(1)
    }
    fn differs(&self) -> bool {
        self.answers().any(|line| ENGINES.iter().any(|engine| line.trim_start().starts_with(engine)))
    }
    /// The answer of one engine.
    fn expected(&self, engine: &str) -> String {
        let mut expected = String::new();
        for line in self.answers() {
            let said = ENGINES.iter().find_map(|name| {
                let rest = line.trim_start().strip_prefix(name)?;
                Some((name.trim_end_matches(": "), rest))
            });
            match said {
                Some((name, rest)) if name == engine => writeln!(expected, "  {rest}"),
                Some(_) => Ok(()),
                None => writeln!(expected, "{line}"),
            }
            .expect("a String takes everything");
        }
        expected
    }
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for line in text.lines() {
        let is_step = line.starts_with("circle ") || line.split_once("> ").is_some_and(|(name, _)| is_name(name));
        match blocks.last_mut() {
            Some(block) if line.starts_with("  ") && block.step.is_some() => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            _ => blocks.push(Block { text: format!("{line}\n"), step: is_step.then(|| line.to_owned()) }),
        }
    }
    blocks
}

fn is_name(name: &str) -> bool {
    name.len() == 1 && name.bytes().all(|byte| byte.is_ascii_lowercase())
}

struct Stage<'a, F> {
    monitor: Client,
    engine: &'static str,
    sessions: BTreeMap<String, Session>,
    connect: &'a F,
}

struct Session {
    client: Arc<Client>,
    pid: i32,
    running: Option<JoinHandle<String>>,
}

impl<F: AsyncFn(usize) -> Client> Stage<'_, F> {
    /// What a step prints, two blanks before each line.
    async fn perform(&mut self, step: &str) -> String {
        if let Some((names, last)) = step.strip_prefix("circle ").and_then(|circle| circle.split_once(": ")) {
            self.begin(last).await;
            return self.circle(names).await;
        }
        let name = self.begin(step).await;
        self.settle().await;
        self.collect(name).await
    }

    /// Has a session say something; its name.
    async fn begin<'s>(&mut self, step: &'s str) -> &'s str {
        let (name, sql) = step.split_once("> ").expect("a step is NAME> SQL");
        if !self.sessions.contains_key(name) {
            let client = Arc::new((self.connect)(self.sessions.len()).await);
            let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("a process id").get(0);
            self.sessions.insert(name.to_owned(), Session { client, pid, running: None });
        }
        let session = self.sessions.get_mut(name).expect("it was made");
        assert!(session.running.is_none(), "session {name} still waits and can't do: {step}");
        let (client, sql) = (Arc::clone(&session.client), sql.to_owned());
        let task = async move { answer(&client, &sql).await };
        session.running = Some(tokio::runtime::Handle::current().spawn(task));
        name
    }

    /// Process ids of those who are not done.
    fn unfinished(&self) -> BTreeSet<i32> {
        let open = |session: &&Session| session.running.as_ref().is_some_and(|task| !task.is_finished());
        self.sessions.values().filter(open).map(|session| session.pid).collect()
    }

    /// Until everybody is done or waits for a lock.
    async fn settle(&mut self) {
        let (mut sure, mut pace) = (0, wait::Pace::start());
        let settled = async {
            while sure < SURE {
                let waiting = self.waiting().await;
                let unfinished = self.unfinished();
                if unfinished.is_empty() {
                    return;
                }
                sure = if unfinished.is_subset(&waiting) { sure + 1 } else { 0 };
                pace.next().await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, settled).await;
        assert!(waited.is_ok(), "everybody is done or waits, but {:?}", self.unfinished());
    }

    /// Process ids of those who wait for a lock that somebody has.
    async fn waiting(&self) -> BTreeSet<i32> {
        let rows = async |sql: &str| self.monitor.query(sql, &[]).await.expect("the locks are listed");
        if self.engine == "postgresql" {
            let blocked = "SELECT pid FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0";
            return rows(blocked).await.iter().map(|row| row.get(0)).collect();
        }
        let open = rows("SELECT backend_xid FROM pg_stat_activity WHERE backend_xid IS NOT NULL").await;
        // Advisory locks are held by a transaction of their own.
        let known = rows("SELECT DISTINCT transaction FROM flaredb.locks WHERE pid IS NOT NULL").await;
        let open: BTreeSet<String> = open.iter().chain(&known).map(|row| row.get(0)).collect();
        let wanted = rows("SELECT pid, waits_for FROM flaredb.locks WHERE NOT granted AND pid IS NOT NULL").await;
        let really = wanted.iter().filter(|row| {
            let holders: Option<&str> = row.get(1);
            holders.is_some_and(|holders| holders.split(", ").all(|holder| open.contains(holder)))
        });
        really.map(|row| row.get(0)).collect()
    }

    /// What is known now of `first` and then of the others.
    async fn collect(&mut self, first: &str) -> String {
        let mut out = String::new();
        let mut names: Vec<String> = self.sessions.keys().cloned().collect();
        names.sort_by_key(|name| name != first);
        for name in names {
            let session = self.sessions.get_mut(&name).expect("it is known");
            let label = if name == first { String::new() } else { format!("{name}: ") };
            match session.running.take_if(|task| task.is_finished()) {
                Some(task) => {
                    for line in task.await.expect("it does not panic").lines() {
                        writeln!(out, "  {label}{line}").expect("a String takes everything");
                    }
                }
                None if name == first && session.running.is_some() => out.push_str("  waits\n"),
                None => {}
            }
        }
        out.truncate(out.trim_end().len());
        out
    }

    /// Sessions that wait for each other: one is told, and is rolled back, and so are the others when they have what they wanted.
    /// Which one is told differs; how many, and that the others go on, does not.
    async fn circle(&mut self, names: &str) -> String {
        let (mut told, mut others) = (0, 0);
        let mut left: Vec<&str> = names.split(' ').collect();
        while !left.is_empty() {
            let pids: BTreeSet<i32> = left.iter().map(|name| self.sessions[*name].pid).collect();
            wait::until("the circle is broken", PATIENCE, || async {
                anyhow::ensure!(!pids.is_subset(&self.unfinished()), "all of {left:?} wait");
                Ok(())
            })
            .await;
            for name in std::mem::take(&mut left) {
                let session = self.sessions.get_mut(name).expect("it is known");
                let Some(task) = session.running.take_if(|task| task.is_finished()) else {
                    left.push(name);
                    continue;
                };
                match task.await.expect("it does not panic") == "40P01" {
                    true => told += 1,
                    false => others += 1,
                }
                session.client.simple_query("ROLLBACK").await.expect("it can be rolled back");
            }
        }
        format!("  40P01 for {told}, {others} went on")
    }

    /// The next file starts without tables.
    async fn clear(mut self) {
        for session in std::mem::take(&mut self.sessions).into_values() {
            assert!(session.running.is_none(), "a session still waits at the end of the file");
            session.client.simple_query("ROLLBACK").await.expect("it can be rolled back");
        }
        for table in TABLES {
            self.monitor.simple_query(&format!("DROP TABLE IF EXISTS {table}")).await.expect("the table is dropped");
        }
    }
}

async fn answer(client: &Client, sql: &str) -> String {
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(error) => return error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()),
    };
    let mut out = String::new();
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => {
                let values: Vec<&str> = (0..row.len()).map(|at| row.get(at).unwrap_or("NULL")).collect();
                writeln!(out, "{}", values.join(" | ")).expect("a String takes everything");
            }
            SimpleQueryMessage::CommandComplete(count) => {
                writeln!(out, "{count}").expect("a String takes everything");
            }
            _ => {}
        }
    }
    out.truncate(out.trim_end().len());
    out
}
