//! `flaredb ctl`: asks any node about the cluster, and PD, through that node, to change it.
//!
//! What changes something waits for the outcome (`--no-wait` prints the operators instead), and may be said twice.

mod cluster;
mod operator;
mod region;
mod store;
mod unsafe_recover;
mod verify;

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use kv::Clock;
use proto::wire::{OperatorState, OperatorStatus, OperatorsRequest, Peer};
use raftstore::MonotonicClock;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::output::Output;
use crate::{
    clock::SystemClock,
    rpc::{MESSAGE_BYTES_MAX, channels::endpoint, stubs::admin_client::AdminClient},
};

/// A node that does not answer in this time is reported as such.
const CALL_TIMEOUT: Duration = Duration::from_secs(12);

/// Between looks at what is waited for.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Before the first look at an operator: about what a split or a hand-over takes. Then twice as long each time.
const LOOK_FIRST_AFTER: Duration = Duration::from_millis(10);

/// Flags and verbs of `flaredb ctl`.
#[derive(Args, Debug)]
pub struct CtlOptions {
    /// Any node's gRPC address.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:26257", global = true)]
    endpoint: String,
    /// For people or for programs.
    #[arg(long, value_enum, default_value_t, global = true)]
    output: Output,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The cluster as a whole.
    #[command(subcommand)]
    Cluster(cluster::ClusterVerb),
    /// Ranges of keys and who replicates them.
    #[command(subcommand)]
    Region(region::RegionVerb),
    /// Nodes' stores.
    #[command(subcommand)]
    Store(store::StoreVerb),
    /// What PD is doing to regions.
    #[command(subcommand)]
    Operator(operator::OperatorVerb),
    /// What PD does by itself to improve the cluster.
    #[command(subcommand)]
    Scheduler(operator::SchedulerVerb),
    /// The placement driver.
    #[command(subcommand)]
    Pd(cluster::PdVerb),
    /// Regions that lost their quorum for good go on with what is left. Offline; loses data.
    #[command(subcommand)]
    UnsafeRecover(unsafe_recover::UnsafeRecoverVerb),
}

/// How long a change is waited for.
#[derive(Args, Clone, Copy, Debug)]
struct Patience {
    /// Return when the change is planned.
    #[arg(long)]
    no_wait: bool,
    /// Gives up after so many seconds; the change goes on.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

impl Patience {
    fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

type Client = AdminClient<Channel>;

/// Runs a verb and prints its answer.
pub fn run(options: CtlOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    print!("{}", runtime.block_on(answer(&options))?);
    Ok(())
}

async fn answer(options: &CtlOptions) -> anyhow::Result<String> {
    let channel = endpoint(&options.endpoint)
        .with_context(|| format!("--endpoint {:?} is not HOST:PORT", options.endpoint))?
        .timeout(CALL_TIMEOUT)
        .connect_lazy();
    let mut client = AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let output = options.output;
    let result = match &options.verb {
        Verb::Cluster(verb) => cluster::run(&mut client, verb, output).await,
        Verb::Region(verb) => region::run(&mut client, verb, output).await,
        Verb::Store(verb) => store::run(&mut client, verb, output).await,
        Verb::Operator(verb) => operator::run(&mut client, verb, output).await,
        Verb::Scheduler(verb) => operator::run_scheduler(&mut client, verb, output).await,
        Verb::Pd(verb) => cluster::run_pd(&mut client, verb, output).await,
        // Asks nobody.
        Verb::UnsafeRecover(verb) => return unsafe_recover::run(verb, output),
    };
    result.with_context(|| format!("asking {}", options.endpoint))
}

/// Waits until the operators have ended; an error when one did not succeed. `None`: PD has changed, and the new one does
/// not know them.
async fn ended(client: &mut Client, ids: &[u64], patience: Patience) -> anyhow::Result<Option<Vec<OperatorStatus>>> {
    let started = SystemClock.now();
    let mut done = Vec::new();
    for &id in ids {
        match one_ended(client, id, started, patience).await? {
            Some(status) => done.push(status),
            None => return Ok(None),
        }
    }
    Ok(Some(done))
}

async fn one_ended(
    client: &mut Client,
    id: u64,
    started: raftstore::Instant,
    patience: Patience,
) -> anyhow::Result<Option<OperatorStatus>> {
    let mut pause = LOOK_FIRST_AFTER;
    loop {
        let request = OperatorsRequest { id, finished: true, region_id: 0 };
        // PD may be elsewhere from one call to the next: the next one finds it.
        let asked = client.list_operators(request).await.map(|r| r.into_inner().operators.into_iter().next());
        let state = |s: &OperatorStatus| OperatorState::try_from(s.state).unwrap_or(OperatorState::Running);
        let trouble = match asked {
            Ok(Some(status)) if state(&status) == OperatorState::Done => return Ok(Some(status)),
            Ok(Some(status)) if state(&status) != OperatorState::Running => {
                let ended = state(&status).as_str_name().trim_start_matches("OPERATOR_STATE_").to_lowercase();
                anyhow::bail!("operator {id} on region {} {ended}: {}", status.region_id, status.outcome)
            }
            Ok(Some(status)) => {
                let next = status.steps.get(status.done as usize).cloned().unwrap_or_default();
                let why = if status.outcome.is_empty() { String::new() } else { format!(" ({})", status.outcome) };
                format!("it is at: {next}{why}")
            }
            // Operators are the memory of one PD.
            Ok(None) => return Ok(None),
            Err(status) => said(status).to_string(),
        };
        if SystemClock.now().since(started) >= patience.limit() {
            anyhow::bail!("operator {id} still runs after {} s: {trouble}", patience.timeout);
        }
        SystemClock.sleep(pause).await;
        pause = LOOK_AGAIN_AFTER.min(pause * 2);
    }
}

fn leader(peer: Option<&Peer>) -> Value {
    peer.filter(|p| p.store_id != 0).map_or(Value::Null, |p| json!(p.store_id))
}
fn hex(key: &[u8]) -> String {
    key.iter().map(|b| format!("{b:02x}")).collect()
}
/// A status as one line for people.
fn said(status: tonic::Status) -> anyhow::Error {
    let unreachable = crate::rpc::channels::was_never_sent(&status);
    match unreachable {
        true => anyhow::anyhow!("no node answers there ({})", status.message()),
        false => anyhow::anyhow!("{}", status.message()),
    }
}
