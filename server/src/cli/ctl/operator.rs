//! `ctl operator`, `ctl scheduler`.

use anyhow::Context;
use clap::Subcommand;
use proto::wire::{CancelOperatorRequest, OperatorState, OperatorStatus, OperatorsRequest, SchedulersRequest};
use serde_json::json;

use super::{Client, said};
use crate::cli::output::{Output, Table};

#[derive(Debug, Subcommand)]
pub(super) enum OperatorVerb {
    /// What PD is doing.
    List {
        /// Also what it has done lately, the latest first.
        #[arg(long)]
        all: bool,
        /// Only with this region.
        #[arg(long, value_name = "ID")]
        region: Option<u64>,
    },
    /// One operator, running or ended.
    Show {
        /// Its id.
        id: u64,
    },
    /// Ends an operator; what its steps have done stays done.
    Cancel {
        /// Its id.
        id: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SchedulerVerb {
    /// All of them.
    List,
    /// Switches one on.
    Enable {
        /// Its name.
        name: String,
    },
    /// Switches one off, also for later PDs.
    Disable {
        /// Its name.
        name: String,
    },
}

pub(super) async fn run(client: &mut Client, verb: &OperatorVerb, output: Output) -> anyhow::Result<String> {
    match verb {
        OperatorVerb::List { all, region } => {
            let request = OperatorsRequest { id: 0, finished: *all, region_id: region.unwrap_or(0) };
            let found = client.list_operators(request).await.map_err(said)?.into_inner().operators;
            Ok(table(&found).render(output))
        }
        OperatorVerb::Show { id } => {
            let found = find(client, *id).await?;
            Ok(table(&[found]).render_one(output))
        }
        OperatorVerb::Cancel { id } => {
            let request = CancelOperatorRequest { id: *id };
            let ended = client.cancel_operator(request).await.map_err(said)?.into_inner().operator;
            Ok(table(&[ended.context("PD's answer names no operator")?]).render_one(output))
        }
    }
}

async fn find(client: &mut Client, id: u64) -> anyhow::Result<OperatorStatus> {
    let request = OperatorsRequest { id, finished: true, region_id: 0 };
    let found = client.list_operators(request).await.map_err(said)?.into_inner().operators;
    found.into_iter().next().with_context(|| format!("no operator {id}"))
}

/// Operators just planned.
pub(super) async fn show_ids(client: &mut Client, ids: &[u64], output: Output) -> anyhow::Result<String> {
    let mut found = Vec::new();
    for id in ids {
        found.push(find(client, *id).await?);
    }
    Ok(table(&found).render(output))
}

pub(super) fn table(operators: &[OperatorStatus]) -> Table {
    let mut table = Table::new(&["id", "region", "rule", "state", "age_ms", "done", "steps", "reason", "outcome"]);
    for op in operators {
        let state = OperatorState::try_from(op.state).unwrap_or(OperatorState::Running).as_str_name();
        let age = if op.ran_ms > 0 { op.ran_ms } else { op.age_ms };
        table.row(vec![
            json!(op.id),
            json!(op.region_id),
            json!(op.rule),
            json!(state.trim_start_matches("OPERATOR_STATE_").to_lowercase()),
            json!(age),
            json!(op.done),
            json!(op.steps),
            json!(op.reason),
            json!(op.outcome),
        ]);
    }
    table
}

pub(super) async fn run_scheduler(client: &mut Client, verb: &SchedulerVerb, output: Output) -> anyhow::Result<String> {
    let (name, enabled) = match verb {
        SchedulerVerb::List => (String::new(), false),
        SchedulerVerb::Enable { name } => (name.clone(), true),
        SchedulerVerb::Disable { name } => (name.clone(), false),
    };
    let list = client.schedulers(SchedulersRequest { name, enabled }).await.map_err(said)?.into_inner().schedulers;
    let mut table = Table::new(&["name", "enabled", "does"]);
    list.into_iter().for_each(|s| table.row(vec![json!(s.name), json!(s.enabled), json!(s.does)]));
    Ok(table.render(output))
}
