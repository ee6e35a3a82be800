//! The command line: one binary is a laptop database, a node of a cluster, and the tool to look at it.

mod ctl;
mod demo;
mod output;
mod start;
mod workload;

use clap::{Parser, Subcommand};

pub use self::{ctl::CtlOptions, demo::DemoOptions, start::StartCommand, workload::WorkloadOptions};

/// A PostgreSQL-wire, distributed SQL database.
#[derive(Debug, Parser)]
#[command(name = "flaredb", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A whole cluster in one process, to try things out.
    Demo(DemoOptions),
    /// One node of a cluster.
    Start(Box<StartCommand>),
    /// Looks at a running cluster.
    Ctl(CtlOptions),
    /// Load generators with built-in history checks.
    Workload(WorkloadOptions),
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Demo(options) => demo::run(options),
        Command::Start(command) => start::run(*command),
        Command::Ctl(options) => ctl::run(options),
        Command::Workload(options) => workload::run(options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_contract_of_the_design_parses() {
        for line in [
            "flaredb demo",
            "flaredb demo --nodes 3 --data-dir d --sql-listen 127.0.0.1:5433",
            "flaredb start --data-dir d --listen h:1 --sql-listen h:2 --http-listen h:3 --join h:1,i:1 --advertise h:1 --insecure --config f",
            "flaredb start --data-dir d --join h:1 --certs-dir c --log info --log-format json",
            "flaredb ctl --endpoint h:1 cluster status --output json",
            "flaredb ctl --endpoint h:1 --output table cluster wait-ready",
            "flaredb ctl --endpoint h:1 region list",
            "flaredb ctl --endpoint h:1 region show 2",
            "flaredb ctl --endpoint h:1 region split 2 --key x",
            "flaredb ctl --endpoint h:1 region verify --all",
            "flaredb ctl --endpoint h:1 store list",
            "flaredb ctl --endpoint h:1 pd leader",
            "flaredb workload init bank --dsn h:1,i:1 --dsn host=h",
            "flaredb workload run append --dsn h:1 --sessions 4 --seconds 5 --isolation repeatable-read --rate 10 --history f",
            "flaredb workload check f --level strict",
            "flaredb workload check write-skew f",
            "flaredb ctl unsafe-recover survey --data-dir d --out f",
            "flaredb ctl unsafe-recover plan --lost 2,3 --out p f g",
            "flaredb ctl unsafe-recover apply --data-dir d --plan p --yes",
        ] {
            if let Err(e) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {e}");
            }
        }
    }
}
