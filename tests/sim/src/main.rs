//! `flaredb-sim`: replays one seed, or runs many.

use std::process::{Command, ExitCode};

use sim::{
    cluster::{BUGS, Bug, Settings},
    coverage::Coverage,
    run::{KINDS, Kind, Report, run},
};

const USAGE: &str = "usage: flaredb-sim --seed N | --seeds A..B   [--kind NAME] [--bug NAME] [--repeat N]
  --seed N       one seed, twice; RUST_LOG=sim=debug shows the faults, sim=trace every event
  --seeds A..B   seeds A up to, but not including, B, each twice
  --repeat N     only each Nth seed twice, to see that its trace repeats
  --kind NAME    one of stores, register, bank, moving, space, guard, append, appendsnapshot, appendcommitted, past,
                 large; with SQL in the build (feature sql) sqlregister, sqlbank, schema, family, advisory, indexed, seats";

struct Arguments {
    seeds: std::ops::Range<u64>,
    kinds: Vec<Kind>,
    settings: Settings,
    repeat: u64,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .without_time()
        .with_writer(std::io::stderr)
        .init();
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(reason) => {
            eprintln!("{reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut coverage = Coverage::default();
    let mut failed = 0;
    for seed in arguments.seeds.clone() {
        for &kind in &arguments.kinds {
            let again = seed % arguments.repeat == 0;
            match judge(seed, kind, &arguments.settings, again) {
                Ok(report) => {
                    println!("seed {seed} {kind:?}: ok, {} events, trace {:016x}", report.events, report.hash);
                    coverage.merge(&report.coverage);
                }
                Err(reason) => {
                    failed += 1;
                    println!(
                        "seed {seed} {kind:?} at commit {}: {reason}\n  replay: ./dev sim --seed {seed} --kind {kind:?}",
                        commit()
                    );
                }
            }
        }
    }
    println!("covered: {coverage}");
    println!("{} seeds, {failed} failures", arguments.seeds.end - arguments.seeds.start);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn judge(seed: u64, kind: Kind, settings: &Settings, again: bool) -> Result<Report, String> {
    let first = run(seed, kind, settings);
    first.verdict.clone()?;
    if !again {
        return Ok(first);
    }
    let second = run(seed, kind, settings);
    if first.hash != second.hash {
        return Err(format!("the trace does not repeat: {:016x}, then {:016x}", first.hash, second.hash));
    }
    Ok(first)
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments { seeds: 1..2, kinds: KINDS.to_vec(), settings: Settings::default(), repeat: 1 };
    let mut arguments = arguments.peekable();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{name} {value}: {e}"));
        match name.as_str() {
            "--seed" => parsed.seeds = number(&value)?..number(&value)? + 1,
            "--seeds" => {
                let (from, to) = value.split_once("..").ok_or(format!("--seeds {value}: not of the form A..B"))?;
                parsed.seeds = number(from)?..number(to)?;
            }
            "--repeat" => parsed.repeat = number(&value)?.max(1),
            "--bug" => parsed.settings.bug = bug(&value)?,
            "--kind" => {
                let wanted = KINDS.iter().find(|kind| format!("{kind:?}").eq_ignore_ascii_case(&value));
                parsed.kinds = vec![*wanted.ok_or(format!("no kind {value} in this build; there are {KINDS:?}"))?];
            }
            _ => return Err(format!("what is {name}?")),
        }
    }
    Ok(parsed)
}

/// A bug by name, e.g. `Store(ForgetVote)`.
fn bug(name: &str) -> Result<Bug, String> {
    let found = BUGS.iter().find(|bug| format!("{bug:?}").eq_ignore_ascii_case(name));
    found.copied().ok_or(format!("no bug {name} in this build; there are {BUGS:?}"))
}

/// Seed and commit together name a failure.
fn commit() -> String {
    let out = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    out.map_or("unknown".into(), |out| String::from_utf8_lossy(&out.stdout).trim().to_string())
}
