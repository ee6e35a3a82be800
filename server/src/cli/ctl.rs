//! `flaredb ctl`: asks any node about the cluster.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use kv::Clock;
use proto::wire::{
    ClusterStatusRequest, ClusterStatusResponse, GetStoresRequest, KeyRange, Peer, RegionStatus, ScanRegionsRequest,
    ShowRegionRequest, StoreState, StoreStatus, TransferLeaderRequest,
};
use raftstore::MonotonicClock;
use serde_json::{Value, json};
use tonic::{Code, transport::Channel};

use super::output::{Output, Table};
use crate::{
    clock::SystemClock,
    rpc::{MESSAGE_BYTES_MAX, channels::endpoint, stubs::admin_client::AdminClient},
};

/// A node that does not answer in this time is reported as such.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A replica that has not caught up by then is not going to.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(10);

/// Between looks of `wait-ready`.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Regions of one answer; the list is fetched page by page.
const REGIONS_PAGE: u32 = 1000;

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
    Cluster(ClusterVerb),
    /// Ranges of keys and who replicates them.
    #[command(subcommand)]
    Region(RegionVerb),
    /// Nodes' stores.
    #[command(subcommand)]
    Store(StoreVerb),
    /// The placement driver.
    #[command(subcommand)]
    Pd(PdVerb),
    /// What PD is doing to regions (comes with the regions issue).
    #[command(external_subcommand)]
    Later(Vec<String>),
}
#[derive(Debug, Subcommand)]
enum ClusterVerb {
    /// Who is there, who leads, is everything served.
    Status,
    /// Returns when every founder and every region's leader has reported.
    WaitReady {
        /// Gives up after so many seconds.
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
}
#[derive(Debug, Subcommand)]
enum RegionVerb {
    /// All regions in key order.
    List,
    /// One region.
    Show {
        /// Its id.
        id: u64,
    },
    /// Moves a region's leadership, and waits until it has moved.
    TransferLeader {
        /// The region's id.
        id: u64,
        /// The store that shall lead it.
        store: u64,
    },
    #[command(external_subcommand)]
    Later(Vec<String>),
}
#[derive(Debug, Subcommand)]
enum StoreVerb {
    /// All stores.
    List,
    /// One store.
    Show {
        /// Its id.
        id: u64,
    },
    #[command(external_subcommand)]
    Later(Vec<String>),
}
#[derive(Debug, Subcommand)]
enum PdVerb {
    /// Who is PD.
    Leader,
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
        Verb::Cluster(ClusterVerb::Status) => cluster_status(&mut client, output).await,
        Verb::Cluster(ClusterVerb::WaitReady { timeout }) => {
            wait_ready(&mut client, Duration::from_secs(*timeout), output).await
        }
        Verb::Region(RegionVerb::List) => region_list(&mut client, output).await,
        Verb::Region(RegionVerb::Show { id }) => region_show(&mut client, *id, output).await,
        Verb::Region(RegionVerb::TransferLeader { id, store }) => {
            transfer_leader(&mut client, *id, *store, output).await
        }
        Verb::Store(StoreVerb::List) => Ok(stores_table(&stores(&mut client).await?).render(output)),
        Verb::Store(StoreVerb::Show { id }) => store_show(&mut client, *id, output).await,
        Verb::Pd(PdVerb::Leader) => pd_leader(&mut client, output).await,
        Verb::Region(RegionVerb::Later(words)) => bail!("region {}: not there yet", words.join(" ")),
        Verb::Store(StoreVerb::Later(words)) => bail!("store {}: not there yet", words.join(" ")),
        Verb::Later(words) => bail!("{}: no such command, or not there yet; see flaredb ctl --help", words.join(" ")),
    };
    result.with_context(|| format!("asking {}", options.endpoint))
}

async fn status(client: &mut Client) -> anyhow::Result<ClusterStatusResponse> {
    Ok(client.cluster_status(ClusterStatusRequest {}).await.map_err(said)?.into_inner())
}
async fn stores(client: &mut Client) -> anyhow::Result<Vec<StoreStatus>> {
    Ok(client.list_stores(GetStoresRequest {}).await.map_err(said)?.into_inner().stores)
}

async fn cluster_status(client: &mut Client, output: Output) -> anyhow::Result<String> {
    let s = status(client).await?;
    let mut table = Table::new(&[
        "cluster_id",
        "ready",
        "stores",
        "regions",
        "regions_without_leader",
        "pd_leader_store",
        "pd_term",
        "last_timestamp",
    ]);
    table.row(vec![
        json!(format!("{:016x}", s.cluster_id)),
        json!(s.ready),
        json!(s.stores.len()),
        json!(s.regions),
        json!(s.regions_without_leader),
        leader(s.pd_leader.as_ref()),
        json!(s.pd_term),
        json!(s.last_timestamp),
    ]);
    Ok(table.render_one(output))
}

async fn wait_ready(client: &mut Client, patience: Duration, output: Output) -> anyhow::Result<String> {
    let started = SystemClock.now();
    let mut why;
    loop {
        why = match status(client).await {
            Ok(s) if s.ready => {
                let mut table = Table::new(&["ready", "regions", "stores"]);
                table.row(vec![json!(true), json!(s.regions), json!(s.stores.len())]);
                return Ok(table.render_one(output));
            }
            Ok(s) => format!("{} of {} regions have no leader", s.regions_without_leader, s.regions),
            Err(error) => format!("{error:#}"),
        };
        if SystemClock.now().since(started) >= patience {
            bail!("not ready after {} s: {why}", patience.as_secs());
        }
        SystemClock.sleep(LOOK_AGAIN_AFTER).await;
    }
}

async fn region_list(client: &mut Client, output: Output) -> anyhow::Result<String> {
    let mut table = regions_table();
    let mut range = KeyRange::default();
    loop {
        let request = ScanRegionsRequest { range: Some(range.clone()), limit: REGIONS_PAGE };
        let page = client.list_regions(request).await.map_err(said)?.into_inner().regions;
        page.iter().for_each(|region| table.row(region_row(region)));
        let end = page.last().and_then(|r| r.region.as_ref()?.range.as_ref()).map(|r| r.end_key.clone());
        match end {
            Some(end) if !end.is_empty() && page.len() == REGIONS_PAGE as usize => range.start_key = end,
            _ => return Ok(table.render(output)),
        }
    }
}

async fn region_show(client: &mut Client, id: u64, output: Output) -> anyhow::Result<String> {
    let region = client.show_region(ShowRegionRequest { region_id: id }).await.map_err(said)?.into_inner().region;
    let mut table = regions_table();
    table.row(region_row(&region.with_context(|| format!("no region {id}"))?));
    Ok(table.render_one(output))
}

async fn transfer_leader(client: &mut Client, id: u64, store: u64, output: Output) -> anyhow::Result<String> {
    let started = SystemClock.now();
    loop {
        let region = client.show_region(ShowRegionRequest { region_id: id }).await.map_err(said)?.into_inner().region;
        let region = region.with_context(|| format!("no region {id}"))?;
        if region.leader.is_some_and(|peer| peer.store_id == store) {
            let mut table = regions_table();
            table.row(region_row(&region));
            return Ok(table.render_one(output));
        }
        let request = TransferLeaderRequest { region_id: id, to_store: store, forwarded: false };
        match client.transfer_leader(request).await {
            Err(status) if status.code() != Code::Unavailable => return Err(said(status)),
            _ if SystemClock.now().since(started) >= TRANSFER_TIMEOUT => {
                bail!("region {id} is not led by store {store} after {} s", TRANSFER_TIMEOUT.as_secs())
            }
            _ => SystemClock.sleep(LOOK_AGAIN_AFTER).await,
        }
    }
}

async fn store_show(client: &mut Client, id: u64, output: Output) -> anyhow::Result<String> {
    let mut all = stores(client).await?;
    all.retain(|s| s.store.as_ref().is_some_and(|s| s.id == id));
    anyhow::ensure!(!all.is_empty(), "no store {id}");
    Ok(stores_table(&all).render_one(output))
}

async fn pd_leader(client: &mut Client, output: Output) -> anyhow::Result<String> {
    let s = status(client).await?;
    let peer = s.pd_leader.context("no PD leader is known")?;
    let of_leader = s.stores.iter().filter_map(|s| s.store.as_ref()).find(|store| store.id == peer.store_id);
    let mut table = Table::new(&["store", "peer", "term", "address"]);
    table.row(vec![
        json!(peer.store_id),
        json!(peer.id),
        json!(s.pd_term),
        json!(of_leader.map(|store| store.address.as_str())),
    ]);
    Ok(table.render_one(output))
}

fn regions_table() -> Table {
    Table::new(&["id", "start", "end", "epoch", "leader_store", "term", "peers", "applied", "committed", "bytes"])
}
fn region_row(status: &RegionStatus) -> Vec<Value> {
    let region = status.region.clone().unwrap_or_default();
    let (range, epoch) = (region.range.unwrap_or_default(), region.epoch.unwrap_or_default());
    let peers = region.peers.iter().map(|p| format!("{}@s{}", p.id, p.store_id));
    vec![
        json!(region.id),
        json!(hex(&range.start_key)),
        json!(hex(&range.end_key)),
        json!(format!("{}/{}", epoch.conf_ver, epoch.version)),
        leader(status.leader.as_ref()),
        json!(status.term),
        json!(peers.collect::<Vec<_>>()),
        json!(status.applied_index),
        json!(status.committed_index),
        json!(status.approximate_bytes),
    ]
}

fn stores_table(stores: &[StoreStatus]) -> Table {
    let mut table =
        Table::new(&["id", "address", "state", "regions", "leaders", "silent_ms", "sql", "http", "available_bytes"]);
    for status in stores {
        let store = status.store.clone().unwrap_or_default();
        let state = StoreState::try_from(store.state).unwrap_or(StoreState::Up).as_str_name();
        table.row(vec![
            json!(store.id),
            json!(store.address),
            json!(state.trim_start_matches("STORE_STATE_").to_lowercase()),
            json!(status.regions),
            json!(status.leaders),
            json!(status.silent_ms),
            json!(store.sql_address),
            json!(store.http_address),
            json!(status.available_bytes),
        ]);
    }
    table
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
