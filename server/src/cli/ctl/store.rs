//! `ctl store`.

use anyhow::{bail, ensure};
use clap::Subcommand;
use kv::Clock;
use proto::wire::{GetStoresRequest, StoreChange, StoreChangeRequest, StoreChangeResponse, StoreState, StoreStatus};
use raftstore::MonotonicClock;
use serde_json::json;

use super::{Client, LOOK_AGAIN_AFTER, Patience, said};
use crate::{
    cli::output::{Output, Table},
    clock::SystemClock,
};

#[derive(Debug, Subcommand)]
pub(super) enum StoreVerb {
    /// All stores.
    List,
    /// One store.
    Show {
        /// Its id.
        id: u64,
    },
    /// Moves all leaderships and replicas off a store; it stays a member, and can be used again with `up`.
    Drain {
        /// Its id.
        id: u64,
        #[command(flatten)]
        patience: Patience,
    },
    /// Takes a drain back.
    Up {
        /// Its id.
        id: u64,
    },
    /// Drains a store and takes it out of the cluster for good. Its node can be stopped afterwards.
    Remove {
        /// Its id.
        id: u64,
        #[command(flatten)]
        patience: Patience,
    },
}

pub(super) async fn run(client: &mut Client, verb: &StoreVerb, output: Output) -> anyhow::Result<String> {
    let changed = match verb {
        StoreVerb::List => {
            let stores = client.list_stores(GetStoresRequest {}).await.map_err(said)?.into_inner().stores;
            return Ok(stores_table(&stores).render(output));
        }
        StoreVerb::Show { id } => {
            let mut all = client.list_stores(GetStoresRequest {}).await.map_err(said)?.into_inner().stores;
            all.retain(|s| s.store.as_ref().is_some_and(|s| s.id == *id));
            ensure!(!all.is_empty(), "no store {id}");
            return Ok(stores_table(&all).render_one(output));
        }
        StoreVerb::Up { id } => change(client, *id, StoreChange::Up).await?,
        StoreVerb::Drain { id, patience } => drain(client, *id, *patience).await?,
        StoreVerb::Remove { id, patience } => {
            let drained = match state_of(client, *id).await? {
                StoreState::Removed => change(client, *id, StoreChange::None).await?,
                _ => drain(client, *id, *patience).await?,
            };
            match drained.replicas {
                0 => change(client, *id, StoreChange::Remove).await?,
                _ => drained,
            }
        }
    };
    let stores: Vec<_> = changed.store.into_iter().collect();
    ensure!(!stores.is_empty(), "PD's answer names no store");
    Ok(stores_table(&stores).render_one(output))
}

async fn change(client: &mut Client, store_id: u64, change: StoreChange) -> anyhow::Result<StoreChangeResponse> {
    let request = StoreChangeRequest { store_id, change: change as i32 };
    Ok(client.change_store(request).await.map_err(said)?.into_inner())
}

async fn state_of(client: &mut Client, id: u64) -> anyhow::Result<StoreState> {
    let now = change(client, id, StoreChange::None).await?;
    let state = now.store.and_then(|s| s.store).map_or(0, |s| s.state);
    Ok(StoreState::try_from(state).unwrap_or(StoreState::Up))
}

async fn drain(client: &mut Client, id: u64, patience: Patience) -> anyhow::Result<StoreChangeResponse> {
    let started = SystemClock.now();
    // What PD refuses it refuses at once; later it may only be elsewhere.
    let mut now = Ok(change(client, id, StoreChange::Drain).await?);
    loop {
        let left = match now {
            Ok(now) => match (now.replicas, now.store.as_ref().map_or(0, |s| s.leaders)) {
                (0, 0) => return Ok(now),
                _ if patience.no_wait => return Ok(now),
                (replicas, leaders) => format!("{replicas} replicas and {leaders} leaderships are left"),
            },
            Err(error) => format!("{error:#}"),
        };
        if SystemClock.now().since(started) >= patience.limit() {
            bail!("store {id} is not empty after {} s: {left}", patience.timeout);
        }
        SystemClock.sleep(LOOK_AGAIN_AFTER).await;
        now = change(client, id, StoreChange::None).await;
    }
}

fn stores_table(stores: &[StoreStatus]) -> Table {
    let mut table = Table::new(&[
        "id",
        "address",
        "state",
        "regions",
        "leaders",
        "silent_ms",
        "sql",
        "http",
        "available_bytes",
        "labels",
        "requests_per_s",
        "slow_score",
        "snapshots_sent",
        "snapshots_received",
        "snapshots_running",
    ]);
    for status in stores {
        let store = status.store.clone().unwrap_or_default();
        let snapshots = status.snapshots.unwrap_or_default();
        let state = StoreState::try_from(store.state).unwrap_or(StoreState::Up).as_str_name();
        let mut labels: Vec<_> = store.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        labels.sort_unstable();
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
            json!(labels),
            json!(status.load.as_ref().map_or(0, |l| l.reads_per_s + l.writes_per_s)),
            json!(status.slow_score),
            json!(snapshots.sent),
            json!(snapshots.received),
            json!(snapshots.sending + snapshots.receiving),
        ]);
    }
    table
}
