//! `ctl cluster`, `ctl pd`.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use kv::Clock;
use proto::wire::{ClusterStatusRequest, ClusterStatusResponse};
use raftstore::MonotonicClock;
use serde_json::json;

use super::{Client, LOOK_AGAIN_AFTER, leader, said};
use crate::{
    cli::output::{Output, Table},
    clock::SystemClock,
};

#[derive(Debug, Subcommand)]
pub(super) enum ClusterVerb {
    /// Who is there, who leads, is everything served.
    Status,
    /// Returns when every founder and every region's leader has reported, and the node asked serves SQL.
    WaitReady {
        /// Gives up after so many seconds.
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum PdVerb {
    /// Who is PD.
    Leader,
}

pub(super) async fn run(client: &mut Client, verb: &ClusterVerb, output: Output) -> anyhow::Result<String> {
    match verb {
        ClusterVerb::Status => cluster_status(client, output).await,
        ClusterVerb::WaitReady { timeout } => wait_ready(client, Duration::from_secs(*timeout), output).await,
    }
}

pub(super) async fn run_pd(client: &mut Client, verb: &PdVerb, output: Output) -> anyhow::Result<String> {
    match verb {
        PdVerb::Leader => pd_leader(client, output).await,
    }
}

async fn status(client: &mut Client) -> anyhow::Result<ClusterStatusResponse> {
    Ok(client.cluster_status(ClusterStatusRequest {}).await.map_err(said)?.into_inner())
}

async fn cluster_status(client: &mut Client, output: Output) -> anyhow::Result<String> {
    let s = status(client).await?;
    let mut table = Table::new(&[
        "cluster_id",
        "ready",
        "serves_sql",
        "stores",
        "regions",
        "regions_without_leader",
        "pd_leader_store",
        "pd_term",
        "last_timestamp",
        "gc_safe_point",
    ]);
    table.row(vec![
        json!(format!("{:016x}", s.cluster_id)),
        json!(s.ready),
        json!(s.serves_sql),
        json!(s.stores.len()),
        json!(s.regions),
        json!(s.regions_without_leader),
        leader(s.pd_leader.as_ref()),
        json!(s.pd_term),
        json!(s.last_timestamp),
        json!(s.safe_point.map_or(0, |safe_point| safe_point.refuse_below)),
    ]);
    Ok(table.render_one(output))
}

async fn wait_ready(client: &mut Client, patience: Duration, output: Output) -> anyhow::Result<String> {
    let started = SystemClock.now();
    let mut why;
    loop {
        why = match status(client).await {
            Ok(s) if s.ready && s.serves_sql => {
                let mut table = Table::new(&["ready", "regions", "stores"]);
                table.row(vec![json!(true), json!(s.regions), json!(s.stores.len())]);
                return Ok(table.render_one(output));
            }
            Ok(s) if s.ready => "this node does not serve SQL yet".to_owned(),
            Ok(s) => format!("{} of {} regions have no leader", s.regions_without_leader, s.regions),
            Err(error) => format!("{error:#}"),
        };
        if SystemClock.now().since(started) >= patience {
            bail!("not ready after {} s: {why}", patience.as_secs());
        }
        SystemClock.sleep(LOOK_AGAIN_AFTER).await;
    }
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
