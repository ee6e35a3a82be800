//! `flaredb workload`: makes load, writes down what its sessions saw, and says whether it can have been.
//!
//! ```text
//!   run ──► sessions ──► any of the servers of --dsn ──► notes ──► --history FILE ──► check
//!           loads::*     PostgreSQL as well               history::Transaction        history::check
//! ```
//!
//! A load decides what a transaction does (`loads`), a session how it ended (`session`), the drive goes on with another
//! server when one dies (`drive`). An outcome is a failure only when the server said so, or when nothing that could commit
//! had been sent; whatever else went wrong is unknown.

mod drive;
mod loads;
mod notes;
mod session;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use history::{History, Level, Promise, Verdict, Workload};

use self::{drive::Drive, notes::Notes};

/// Flags and verbs of `flaredb workload`.
#[derive(Args, Debug)]
pub struct WorkloadOptions {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes a workload's tables anew.
    Init(InitOptions),
    /// Makes the tables anew, runs a workload on them, and checks what its sessions saw.
    Run(RunOptions),
    /// Checks a recorded history.
    Check(CheckOptions),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Transfers between accounts: sums stay, nothing acknowledged is lost.
    Bank,
    /// Single rows written and read: each is linearizable.
    Register,
    /// Lists read and appended to: no forbidden cycles between transactions.
    Append,
    /// Pairs of which one must stay on call: needs SERIALIZABLE.
    WriteSkew,
    /// Values raced for: none is taken twice.
    Unique,
    /// A sequence: no value is drawn twice.
    Sequence,
}

impl Name {
    fn workload(self) -> Workload {
        match self {
            Name::Bank => Workload::Bank,
            Name::Register => Workload::Register,
            Name::Append => Workload::Append,
            Name::WriteSkew => Workload::WriteSkew,
            Name::Unique => Workload::Unique,
            Name::Sequence => Workload::Sequence,
        }
    }

    fn usual_isolation(self) -> Isolation {
        match self {
            Name::Append | Name::WriteSkew => Isolation::Serializable,
            _ => Isolation::ReadCommitted,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Isolation {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Isolation {
    fn level(self) -> Level {
        match self {
            Isolation::ReadCommitted => Level::ReadCommitted,
            Isolation::RepeatableRead => Level::RepeatableRead,
            Isolation::Serializable => Level::Serializable,
        }
    }
}

/// Where the servers are.
#[derive(Args, Debug)]
struct Servers {
    /// Servers of one database, repeated or separated by commas: HOST:PORT, or a connection string of libpq (without TLS).
    #[arg(long = "dsn", value_name = "DSN", value_delimiter = ',', default_value = "127.0.0.1:5433")]
    dsns: Vec<String>,
    /// What a transaction may take, in seconds; then its connection is given up.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

#[derive(Args, Debug)]
struct InitOptions {
    /// Which workload.
    name: Name,
    #[command(flatten)]
    servers: Servers,
}

/// More sessions than a server takes connections prove nothing more.
const SESSIONS_MAX: u64 = 1_000;

#[derive(Args, Debug)]
struct RunOptions {
    /// Which workload.
    name: Name,
    #[command(flatten)]
    servers: Servers,
    /// Sessions at one time.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=SESSIONS_MAX))]
    sessions: u64,
    /// For how long.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// The level of the transactions; append and write-skew run at serializable unless told otherwise, the others at
    /// read-committed.
    #[arg(long)]
    isolation: Option<Isolation>,
    /// Transactions a second of all sessions together; 0: as many as there can be.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Of the choices that the sessions make.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes the history there.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Goes on with the tables that `init` has just made, instead of making them anew.
    #[arg(long)]
    prepared: bool,
    /// Only records (with --history): the history is not kept in memory.
    #[arg(long, requires = "history")]
    no_check: bool,
}

#[derive(Args, Debug)]
struct CheckOptions {
    /// The history, and before it, if you like, the workload's name.
    #[arg(value_name = "[NAME] FILE", num_args = 1..=2, required = true)]
    file: Vec<PathBuf>,
    /// read-committed, repeatable-read, serializable or strict. Without it what `run` asks for: the level that the history
    /// was recorded at, in the order of real time.
    #[arg(long)]
    level: Option<Level>,
}

/// Runs a verb. An anomaly is an error.
pub fn run(options: WorkloadOptions) -> anyhow::Result<()> {
    match options.verb {
        Verb::Check(options) => check_file(&options),
        Verb::Init(options) => runtime()?.block_on(async {
            let load = loads::load(options.name.workload());
            Drive::new(&options.servers.dsns, Duration::from_secs(options.servers.timeout))?.init(load.as_ref()).await
        }),
        Verb::Run(options) => runtime()?.block_on(run_load(&options)),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn run_load(options: &RunOptions) -> anyhow::Result<()> {
    let load = loads::load(options.name.workload());
    let level = options.isolation.unwrap_or_else(|| options.name.usual_isolation()).level();
    let drive = Drive::new(&options.servers.dsns, Duration::from_secs(options.servers.timeout))?;
    let header = history::Header {
        format: history::FORMAT,
        workload: options.name.workload(),
        level,
        accounts: load.accounts(),
    };
    let notes = Notes::start(header, options.history.as_deref(), !options.no_check)?;
    if !options.prepared {
        drive.init(load.as_ref()).await?;
    }
    let pace =
        drive::Pace { sessions: options.sessions, seconds: options.seconds, rate: options.rate, seed: options.seed };
    let ended = drive.run(load.as_ref(), level, &pace, &notes).await;
    let tally = notes.tally();
    println!("{tally}");
    let recorded = notes.finish()?;
    ended?;
    match recorded {
        Some(history) => tell(&history::check(&history, usual_promise(level))?),
        None => Ok(()),
    }
}

/// SERIALIZABLE is strict here, and the levels below it follow real time too: PostgreSQL's do, and FlareDB's.
fn usual_promise(level: Level) -> Promise {
    Promise::in_real_time(if level == Level::Serializable { Level::Strict } else { level })
}

fn check_file(options: &CheckOptions) -> anyhow::Result<()> {
    let Some((file, names)) = options.file.split_last() else { bail!("check needs a FILE") };
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let history = History::parse(&text).with_context(|| file.display().to_string())?;
    if let Some(name) = names.first() {
        let named = name.to_str().and_then(|name| Name::from_str(name, false).ok());
        let named = named.with_context(|| format!("{} is no workload", name.display()))?;
        let is = history.header.workload;
        ensure!(named.workload() == is, "{} is a history of {is:?}", file.display());
    }
    let promise = options.level.map_or_else(|| usual_promise(history.header.level), Promise::plain);
    tell(&history::check(&history, promise)?)
}

fn tell(verdict: &Verdict) -> anyhow::Result<()> {
    print!("{verdict}");
    ensure!(verdict.is_valid(), "the history is not valid");
    Ok(())
}
