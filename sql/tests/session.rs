//! Golden scripts of sessions over a local kv layer. `> select 1` runs in session 1, `> 2: select 1` in session 2.
//! `UPDATE_GOLDENFILES=1 cargo test -p sql --test session` rewrites them.

mod support;

use std::{collections::BTreeMap, error::Error, fmt::Write, sync::Arc};

use bytes::{Bytes, BytesMut};
use goldenscript::{Command, Runner};
use sql::{Gateway, Session, SqlError, Step};
use test_each_file::test_each_path;

test_each_path! { in "sql/testscripts/session" => script }

fn script(path: &std::path::Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut sessions = Sessions::start(&runtime);
    goldenscript::run(&mut sessions, path).expect("the script runs");
}

struct Sessions<'a> {
    runtime: &'a tokio::runtime::Runtime,
    gateway: Arc<Gateway>,
    sessions: BTreeMap<u32, Session>,
}

impl<'a> Sessions<'a> {
    fn start(runtime: &'a tokio::runtime::Runtime) -> Self {
        let gateway = runtime.block_on(async { support::gateway(&support::local()).await });
        Sessions { runtime, gateway, sessions: BTreeMap::new() }
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
        let session = self.sessions.entry(id).or_insert_with(|| support::connect(&self.gateway));
        Ok(self.runtime.block_on(simple(session, sql, data)))
    }
}

fn failure(error: &SqlError) -> String {
    let mut out = format!("{} {}: {}", error.severity.as_str(), error.sqlstate, error.message);
    for (name, text) in [("DETAIL", &error.detail), ("HINT", &error.hint), ("CONTEXT", &error.place)] {
        if let Some(text) = text {
            write!(out, "\n{name}: {text}").expect("a String takes everything");
        }
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
