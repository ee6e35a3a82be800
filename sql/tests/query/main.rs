//! Queries from text to rows over `kv::local`: golden scripts in `testscripts/query`.

mod harness;

use std::{error::Error, path::Path};

use goldenscript::{Argument, Command, Context, Runner};
use harness::Harness;
use test_each_file::test_each_path;

test_each_path! { in "sql/testscripts/query" as scripts => run_script }

fn run_script(path: &Path) {
    goldenscript::run(&mut ScriptRunner::new(), path).expect("the script's output is as written");
}

/// Runs the commands of a golden script.
///
/// ```text
/// sql "CREATE TABLE …"     makes a table
/// sql "INSERT …"           writes rows
/// sql "SELECT …"           prints columns with their types, then rows
/// sql "UPDATE/DELETE …"    prints the rows of the statement's source: nothing is written
/// explain "…"              prints EXPLAIN
/// runs                     prints how often the planner and the physical planner ran since the last time
/// ```
struct ScriptRunner {
    runtime: tokio::runtime::Runtime,
    harness: Harness,
}

impl ScriptRunner {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let harness = runtime.block_on(Harness::new());
        ScriptRunner { runtime, harness }
    }
}

impl Runner for ScriptRunner {
    type Command = Command;

    fn run(&mut self, command: &Command, _context: &Context) -> Result<String, Box<dyn Error>> {
        let argument = command.args.first().map(text_of).unwrap_or_default();
        let parameters: Vec<String> = command.args.iter().skip(1).map(text_of).collect();
        let result = self.runtime.block_on(async {
            match command.name.as_str() {
                "sql" => self.harness.sql(&argument, &parameters).await,
                "explain" => self.harness.explain(&argument, &parameters).await,
                "runs" => Ok(self.harness.runs()),
                other => panic!("there is no command {other}"),
            }
        });
        Ok(result.unwrap_or_else(|error| format!("ERROR {}: {}\n", error.sqlstate, error.message)))
    }
}

/// `key=value` is one text here: statements hold equal signs.
fn text_of(argument: &Argument) -> String {
    match argument {
        Argument::Positional(value) => value.clone(),
        Argument::KeyValue(key, value) => format!("{key}={value}"),
        other => other.to_string(),
    }
}
