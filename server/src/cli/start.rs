//! `flaredb start`: one node until it is told to end.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::{NodeSettings, StartOptions},
    logging::{self, LogOptions},
    process::Server,
};

/// Threads' stacks: deep statements recurse in the planner, and unoptimised builds have large frames.
const STACK_BYTES: usize = 8 << 20;

/// Flags of `flaredb start`.
#[derive(Args, Debug)]
pub struct StartCommand {
    #[command(flatten)]
    options: StartOptions,
    /// Settings from a file: TOML, the flags' names as keys. Unknown keys are refused.
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    #[command(flatten)]
    log: LogOptions,
}

/// Runs the node to its end.
pub fn run(command: StartCommand) -> anyhow::Result<()> {
    logging::start(&command.log)?;
    let settings = command.options.over_file(command.config.as_deref())?.settle()?;
    runtime()?.block_on(one_node(settings))
}

/// The runtime of sockets and sessions. As many threads as cores: what computes is in their tasks.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        // Between them and the store loop a commit changes threads several times.
        .on_thread_start(raftstore::driver::shorten_slices)
        .build()
}

async fn one_node(settings: NodeSettings) -> anyhow::Result<()> {
    let mut ending = Ending::listen()?;
    let server = Server::open(settings).await?;
    tokio::select! {
        started = server.start() => started?,
        () = ending.asked() => {
            server.drain().await;
            return Ok(());
        }
        reason = server.node.must_end() => anyhow::bail!(reason),
    }
    let reason = tokio::select! {
        () = ending.asked() => None,
        reason = server.node.must_end() => Some(reason),
    };
    // Sessions are told either way.
    server.drain().await;
    reason.map_or(Ok(()), |reason| Err(anyhow::anyhow!(reason)))
}

/// SIGTERM and SIGINT.
pub struct Ending {
    term: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Ending {
    /// From now on the signals don't kill the process.
    pub fn listen() -> std::io::Result<Ending> {
        Ok(Ending { term: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }
    /// Completes when one came.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
