//! The command line: one binary is a laptop database, a node of a cluster, and the tool to look at it.

mod ctl;
mod output;

use clap::{Parser, Subcommand};

pub use self::ctl::CtlOptions;

/// A PostgreSQL-wire, distributed SQL database.
#[derive(Debug, Parser)]
#[command(name = "flaredb", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Looks at a running cluster.
    Ctl(CtlOptions),
    /// Load generators with built-in history checks (come with the workloads issue).
    #[command(hide = true)]
    Workload {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Ctl(options) => ctl::run(options),
        Command::Workload { .. } => anyhow::bail!("workload: the load generators are not there yet; pgbench works"),
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
            "flaredb ctl --endpoint h:1 cluster status --output json",
            "flaredb ctl --endpoint h:1 --output table cluster wait-ready",
            "flaredb ctl --endpoint h:1 region list",
            "flaredb ctl --endpoint h:1 region show 2",
            "flaredb ctl --endpoint h:1 region split 2 --key x",
            "flaredb ctl --endpoint h:1 store list",
            "flaredb ctl --endpoint h:1 pd leader",
        ] {
            if let Err(e) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {e}");
            }
        }
    }
}
