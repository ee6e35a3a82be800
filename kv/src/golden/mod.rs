//! Golden scripts: a scenario in prose with commands, and what they print. `UPDATE_GOLDENFILES=1` rewrites them.

mod committer;
mod deadlock;
mod latch;
mod region_map;
mod row_locks;
mod txn;

use std::{error::Error, str::FromStr};

use goldenscript::{ArgumentConsumer, Command, Runner};
use test_each_file::test_each_path;

type Outcome = Result<String, Box<dyn Error>>;

test_each_path! { in "kv/testscripts/mvcc" as mvcc => |path: &std::path::Path| run(&mut txn::Script::default(), path) }
test_each_path! { in "kv/testscripts/txn" as transactions => |path: &std::path::Path| run(&mut txn::Script::default(), path) }
test_each_path! { in "kv/testscripts/latch" as latches => |path: &std::path::Path| run(&mut latch::Script::default(), path) }
test_each_path! { in "kv/testscripts/row_locks" as rows => |path: &std::path::Path| {
    run(&mut row_locks::Script::default(), path)
} }
test_each_path! { in "kv/testscripts/deadlock" as deadlocks => |path: &std::path::Path| {
    run(&mut deadlock::Script::default(), path)
} }
test_each_path! { in "kv/testscripts/region_map" as regions => |path: &std::path::Path| {
    run(&mut region_map::Script::default(), path)
} }
test_each_path! { in "kv/testscripts/committer" as commits => |path: &std::path::Path| {
    run(&mut committer::Script::default(), path)
} }

/// A script's commands by name.
trait Script {
    fn command(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome;
}

struct Adapter<'a, S>(&'a mut S);

impl<S: Script> Runner for Adapter<'_, S> {
    type Command = Command;
    fn run(&mut self, command: &Command, _: &goldenscript::Context) -> Outcome {
        let mut args = command.consume_args();
        let output = self.0.command(&command.name, &mut args)?;
        args.reject_next()?;
        Ok(output)
    }
}

fn run(script: &mut impl Script, path: &std::path::Path) {
    goldenscript::run(&mut Adapter(script), path).expect("the script runs");
}

fn next<T: FromStr>(args: &mut ArgumentConsumer<'_>, what: &str) -> Result<T, Box<dyn Error>> {
    let text = args.next_pos().ok_or_else(|| format!("{what} is missing"))?;
    text.parse().map_err(|_| format!("{text} is no {what}").into())
}

fn key<T: FromStr + Default>(args: &mut ArgumentConsumer<'_>, key: &str) -> Result<T, Box<dyn Error>> {
    let Some(text) = args.take_key(key) else { return Ok(T::default()) };
    text.parse().map_err(|_| format!("{key}={text} is not understood").into())
}

fn rest(args: &mut ArgumentConsumer<'_>) -> Vec<String> {
    std::iter::from_fn(|| args.next_pos().map(String::from)).collect()
}
