//! Golden scripts of sessions over a local kv layer. `> select 1` runs in session 1, `> 2: select 1` in session 2. A statement
//! that waits for another session prints `[waits]`, and its result when it is done; `> 2: result` waits for that.
//! `UPDATE_GOLDENFILES=1 cargo test -p sql --test session` rewrites them.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use goldenscript::{Command, Runner};
use sql::{Gateway, Session, SqlError, Step};
use test_each_file::test_each_path;
use tokio::task::JoinHandle;

test_each_path! { in "sql/testscripts/session" => script }
// The same where transactions keep nothing in memory.
test_each_path! { in "sql/testscripts/session" as spilling => spilling_script }

fn script(path: &std::path::Path) {
    run(path, support::local);
}

fn spilling_script(path: &std::path::Path) {
    // What has spilled is locked before COMMIT: a parent that is not committed is waited for, and of two transactions that have read what
    // the other writes the first to commit gives way.
    let earlier = ["foreign_key_races", "serializable"];
    if !earlier.iter().any(|name| path.ends_with(name)) {
        run(path, support::spilling);
    }
}

fn run(path: &std::path::Path, local: fn() -> kv::local::Local) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut sessions = Sessions::start(&runtime, local);
    goldenscript::run(&mut sessions, path).expect("the script runs");
}

/// How long a statement may take that does not wait for another session.
const PATIENCE: Duration = Duration::from_secs(20);

struct Sessions<'a> {
    runtime: &'a tokio::runtime::Runtime,
    local: kv::local::Local,
    gateway: Arc<Gateway>,
    sessions: BTreeMap<u32, Slot>,
}

enum Slot {
    Idle(Box<Session>),
    /// Its statement waits for a row lock.
    Waiting(JoinHandle<(Box<Session>, String)>),
}

impl<'a> Sessions<'a> {
    fn start(runtime: &'a tokio::runtime::Runtime, local: fn() -> kv::local::Local) -> Self {
        let local = runtime.block_on(async { local() });
        let gateway = runtime.block_on(support::gateway(&local));
        Sessions { runtime, local, gateway, sessions: BTreeMap::new() }
    }

    /// Runs a statement until it is done or waits for another session; then tells what has become of those that waited.
    async fn step(&mut self, id: u32, sql: &str, data: Option<&str>) -> String {
        let mut out = String::new();
        match self.sessions.remove(&id) {
            Some(Slot::Waiting(task)) if sql == "result" => {
                let done = tokio::time::timeout(PATIENCE, task).await;
                let (session, output) = done.expect("it is done in time").expect("it does not panic");
                out.push_str(&output);
                self.sessions.insert(id, Slot::Idle(session));
            }
            Some(Slot::Waiting(_)) => panic!("session {id} still waits"),
            slot => {
                let mut session = match slot {
                    Some(Slot::Idle(session)) => session,
                    _ => Box::new(support::connect(&self.gateway)),
                };
                let (sql, data) = (sql.to_owned(), data.map(str::to_owned));
                let task = self.runtime.spawn(async move {
                    let output = simple(&mut session, &sql, data.as_deref()).await;
                    (session, output)
                });
                self.sessions.insert(id, Slot::Waiting(task));
            }
        }
        let before = tokio::time::Instant::now();
        while self.unsettled() {
            assert!(before.elapsed() < PATIENCE, "neither done nor waiting");
            tokio::task::yield_now().await;
        }
        self.finished(id, &mut out).await;
        out
    }

    /// Somebody is neither done nor waits for a row lock. What a statement leaves to the background is given time to happen.
    fn unsettled(&self) -> bool {
        let waiting = self.sessions.values().filter(|slot| matches!(slot, Slot::Waiting(task) if !task.is_finished()));
        let waiters: BTreeSet<_> = self.local.service.row_waits().into_iter().map(|wait| wait.waiter).collect();
        waiting.count() != waiters.len()
    }

    async fn finished(&mut self, id: u32, out: &mut String) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        while self.unsettled() {
            tokio::task::yield_now().await;
        }
        let ids: Vec<u32> = self.sessions.keys().copied().collect();
        // The one that ran first, then those it has let go on.
        for other in std::iter::once(id).chain(ids.into_iter().filter(|other| *other != id)) {
            match self.sessions.remove(&other) {
                Some(Slot::Waiting(task)) if task.is_finished() => {
                    let (session, output) = task.await.expect("it does not panic");
                    for line in output.lines() {
                        let name = if other == id { String::new() } else { format!("{other}: ") };
                        writeln!(out, "{name}{line}").expect("a String takes everything");
                    }
                    self.sessions.insert(other, Slot::Idle(session));
                }
                Some(slot) => {
                    if other == id && matches!(slot, Slot::Waiting(_)) {
                        out.push_str("[waits]\n");
                    }
                    self.sessions.insert(other, slot);
                }
                None => {}
            }
        }
    }
}

impl Runner for Sessions<'_> {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        let line = command.name.as_str();
        let (id, sql) = match line.split_once(": ") {
            Some((id, sql)) if id.parse::<u32>().is_ok() => (id.parse()?, sql),
            _ => (1, line),
        };
        let (sql, data) = sql.split_once(" <<< ").map_or((sql, None), |(sql, data)| (sql, Some(data)));
        Ok(self.runtime.block_on(self.step(id, sql, data)))
    }
}

/// A timestamp without what stands behind it.
fn name_of(word: &str) -> String {
    let digit = |letter: char| letter.is_ascii_digit() || letter == '.';
    if !word.starts_with(|letter: char| letter.is_ascii_digit()) {
        return String::new();
    }
    word.trim_end_matches(|letter| !digit(letter)).trim_end_matches('.').to_owned()
}

fn failure(error: &SqlError) -> String {
    let mut out = format!("{} {}: {}", error.severity.as_str(), error.sqlstate, error.message);
    for (name, text) in [("DETAIL", &error.detail), ("HINT", &error.hint), ("CONTEXT", &error.place)] {
        if let Some(text) = text {
            write!(out, "\n{name}: {text}").expect("a String takes everything");
        }
    }
    // Transactions are named by timestamps.
    let names: BTreeSet<String> = out.split_whitespace().filter(|word| word.contains('.')).map(name_of).collect();
    for (at, name) in names.iter().filter(|name| name.len() > 10).enumerate() {
        out = out.replace(name, &format!("T{}", at + 1));
    }
    if let Some(position) = error.position {
        write!(out, "\nPOSITION: {position}").expect("a String takes everything");
    }
    out
}

/// Runs a Query message and prints what a client would see.
async fn simple(session: &mut Session, sql: &str, data: Option<&str>) -> String {
    let mut out = String::new();
    let mut result = session.simple(sql).await;
    while result.is_ok() {
        let step = session.next().await;
        for notice in session.take_notices() {
            writeln!(out, "{}", failure(&notice)).expect("a String takes everything");
        }
        match step {
            Ok(None) => break,
            Ok(Some(Step::CopyIn(_))) => {
                let data = data.unwrap_or_default().replace("\\t", "\t").replace("\\n", "\n");
                result = session.copy_data(Bytes::from(data)).await;
                if result.is_ok() {
                    result = session.copy_done().await;
                }
            }
            Ok(Some(step)) => show(step, &mut out),
            Err(error) => result = Err(error),
        }
    }
    if let Err(error) = result {
        writeln!(out, "{}", failure(&error)).expect("a String takes everything");
    }
    match session.status() {
        sql::TransactionStatus::Idle => {}
        status => writeln!(out, "[{status:?}]").expect("a String takes everything"),
    }
    out
}

fn show(step: Step, out: &mut String) {
    let mut line = |text: String| writeln!(out, "{text}").expect("a String takes everything");
    match step {
        Step::Fields(fields) => {
            let column = |field: &sql::Field| format!("{} {}", field.name, field.column_type.sql_name());
            line(fields.iter().map(column).collect::<Vec<_>>().join(" | "));
        }
        Step::Rows(batch) => {
            for row in 0..batch.len() {
                let mut bytes = BytesMut::new();
                batch.encode_row(row, &[], &mut bytes).expect("the row has a text form");
                line(columns(&bytes).join(" | "));
            }
        }
        Step::Done(tag) => line(tag),
        Step::CopyData(data) => line(String::from_utf8_lossy(&data).trim_end().to_owned()),
        other => line(format!("{other:?}")),
    }
}

/// A DataRow's body as text.
fn columns(mut bytes: &[u8]) -> Vec<String> {
    use bytes::Buf;
    let count = bytes.get_i16();
    (0..count)
        .map(|_| match bytes.get_i32() {
            -1 => "NULL".to_owned(),
            len => String::from_utf8(bytes.copy_to_bytes(len as usize).to_vec()).expect("text is UTF-8"),
        })
        .collect()
}
