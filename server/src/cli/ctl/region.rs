//! `ctl region`.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::{Args, Subcommand};
use proto::{
    keyspace,
    wire::{
        FindRegionRequest, FindRegionResponse, FindTableRequest, KeyRange, MergeRegionRequest, MoveLeaderRequest,
        MovePeerRequest, OperatorStatus, PlanRequest, RegionEpoch, RegionStatus, ScanRegionsRequest,
        SplitRegionRequest, plan_request::Kind,
    },
};
use raftstore::MonotonicClock;
use serde_json::{Value, json};

use super::{Client, Patience, ended, hex, leader, operator, said, verify};
use crate::{
    cli::output::{Output, Table},
    clock::SystemClock,
};

/// Regions of one answer; the list is fetched page by page.
const REGIONS_PAGE: u32 = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum RegionVerb {
    /// Regions, in key order.
    List(Filter),
    /// One region: who replicates it, how far they are, what it has to do, what PD does with it.
    Show {
        /// Its id.
        id: Option<u64>,
        /// The region that holds this key (hex) instead.
        #[arg(long, value_name = "HEX", conflicts_with = "id", required_unless_present = "id")]
        key: Option<String>,
    },
    /// Cuts a region, at keys or at half of its size.
    Split {
        /// Its id; with --key it may be left out.
        id: Option<u64>,
        /// Where (hex); several times for several new regions.
        #[arg(long, value_name = "HEX", conflicts_with = "at_half")]
        key: Vec<String>,
        /// Where its data halves.
        #[arg(long, requires = "id")]
        at_half: bool,
        #[command(flatten)]
        change: Change,
    },
    /// Merges a region into a neighbour, whose id stays.
    Merge {
        /// The region that ends.
        id: u64,
        /// The one that gets its range.
        into: u64,
        #[command(flatten)]
        change: Change,
    },
    /// Moves a replica from one store to another.
    Move {
        /// The region's id.
        id: u64,
        /// The store that has the replica.
        #[arg(long, value_name = "STORE")]
        from: u64,
        /// The store that gets it.
        #[arg(long, value_name = "STORE")]
        to: u64,
        #[command(flatten)]
        change: Change,
    },
    /// Compares what the replicas of a region hold, at one entry of its log; fails when they differ.
    Verify {
        /// Its id.
        id: Option<u64>,
        /// Every region, one after another.
        #[arg(long, conflicts_with = "id", required_unless_present = "id")]
        all: bool,
        #[command(flatten)]
        patience: Patience,
    },
    /// Moves a region's leadership.
    TransferLeader {
        /// The region's id.
        id: u64,
        /// The store that shall lead it.
        store: u64,
        #[command(flatten)]
        change: Change,
    },
}

/// Which regions.
#[derive(Args, Debug)]
pub(super) struct Filter {
    /// Of this SQL table: NAME or SCHEMA.NAME, or the number it has in keys.
    #[arg(long, value_name = "NAME", conflicts_with = "key")]
    table: Option<String>,
    /// The one that holds this key (hex).
    #[arg(long, value_name = "HEX")]
    key: Option<String>,
    /// With a replica on this store.
    #[arg(long, value_name = "ID")]
    store: Option<u64>,
    /// The busiest first.
    #[arg(long, conflicts_with = "size")]
    hot: bool,
    /// The largest first.
    #[arg(long)]
    size: bool,
    /// So many at most.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// How a change is made.
#[derive(Args, Clone, Debug)]
pub(super) struct Change {
    /// Only if the region has this epoch (as `region show` prints it).
    #[arg(long, value_name = "CONF/VERSION")]
    epoch: Option<String>,
    #[command(flatten)]
    patience: Patience,
}

pub(super) async fn run(client: &mut Client, verb: &RegionVerb, output: Output) -> anyhow::Result<String> {
    let (region, kind, change) = match verb {
        RegionVerb::List(filter) => return list(client, filter, output).await,
        RegionVerb::Show { id, key } => {
            let found = find(client, id.unwrap_or(0), key.as_deref()).await?;
            return show(&found, output);
        }
        RegionVerb::Verify { id, patience, .. } => return verify::run(client, *id, *patience, output).await,
        RegionVerb::Split { id, key, at_half, change } => {
            ensure!(*at_half || !key.is_empty(), "where? --key HEX or --at-half");
            let keys = key.iter().map(|text| unhex(text)).collect::<anyhow::Result<Vec<_>>>()?;
            let region_id = id.unwrap_or(0);
            (*id, Kind::Split(SplitRegionRequest { region_id, keys }), change)
        }
        RegionVerb::Merge { id, into, change } => {
            (Some(*into), Kind::Merge(MergeRegionRequest { region_id: *id, into_region_id: *into }), change)
        }
        RegionVerb::Move { id, from, to, change } => {
            let request = MovePeerRequest { region_id: *id, from_store: *from, to_store: *to };
            (Some(*id), Kind::Move(request), change)
        }
        RegionVerb::TransferLeader { id, store, change } => {
            let request = MoveLeaderRequest { region_id: *id, to_store: *store };
            (Some(*id), Kind::TransferLeader(request), change)
        }
    };
    let epoch = change.epoch.as_deref().map(parse_epoch).transpose()?;
    if change.patience.no_wait {
        let planned = client.plan(PlanRequest { kind: Some(kind), epoch }).await.map_err(said)?.into_inner();
        return operator::show_ids(client, &planned.operator_ids, output).await;
    }
    let done = carried_out(client, kind, epoch, change.patience).await?;
    match region {
        Some(id) => show(&find(client, id, None).await?, output),
        None => Ok(operator::table(&done).render(output)),
    }
}

/// Has PD make a change and waits for it. Operators are the memory of one PD: the next one is asked again, where that does
/// no harm.
async fn carried_out(
    client: &mut Client,
    kind: Kind,
    mut epoch: Option<RegionEpoch>,
    patience: Patience,
) -> anyhow::Result<Vec<OperatorStatus>> {
    // In half again, or a region that is no more: not the same as before.
    let once = match &kind {
        Kind::Split(split) => split.keys.is_empty(),
        Kind::Merge(_) => true,
        Kind::Move(_) | Kind::TransferLeader(_) => false,
    };
    let started = SystemClock.now();
    loop {
        let request = PlanRequest { kind: Some(kind.clone()), epoch };
        let planned = client.plan(request).await.map_err(said)?.into_inner();
        if let Some(done) = ended(client, &planned.operator_ids, patience).await? {
            return Ok(done);
        }
        if once || SystemClock.now().since(started) >= patience.limit() {
            bail!("PD has changed, and the new one does not know the operator: look at the region");
        }
        // It may have done its part, and the epoch with it.
        epoch = None;
    }
}

async fn list(client: &mut Client, filter: &Filter, output: Output) -> anyhow::Result<String> {
    let mut range = KeyRange::default();
    if let Some(table) = &filter.table {
        range = match table.parse() {
            Ok(number) => (&keyspace::table_range(keyspace::SQL_KEYSPACE, number)).into(),
            Err(_) => {
                let request = FindTableRequest { name: table.clone() };
                client.find_table(request).await.map_err(said)?.into_inner().range.unwrap_or_default()
            }
        };
    }
    let mut regions = match &filter.key {
        Some(key) => vec![find(client, 0, Some(key)).await?.region.unwrap_or_default()],
        None => scan(client, range).await?,
    };
    let on = |r: &RegionStatus, store| r.region.iter().flat_map(|r| &r.peers).any(|p| p.store_id == store);
    regions.retain(|r| filter.store.is_none_or(|store| on(r, store)));
    if filter.hot {
        regions.sort_by_key(|r| std::cmp::Reverse(requests(r)));
    }
    if filter.size {
        regions.sort_by_key(|r| std::cmp::Reverse(r.approximate_bytes));
    }
    regions.truncate(filter.limit.unwrap_or(usize::MAX));
    let mut table = regions_table();
    regions.iter().for_each(|region| table.row(region_row(region)));
    Ok(table.render(output))
}

pub(super) async fn scan(client: &mut Client, mut range: KeyRange) -> anyhow::Result<Vec<RegionStatus>> {
    let mut regions = Vec::new();
    loop {
        let request = ScanRegionsRequest { range: Some(range.clone()), limit: REGIONS_PAGE };
        let page = client.list_regions(request).await.map_err(said)?.into_inner().regions;
        let (full, end) = (page.len() == REGIONS_PAGE as usize, page.last().and_then(end_of));
        regions.extend(page);
        match end {
            Some(end) if full && !end.is_empty() => range.start_key = end,
            _ => return Ok(regions),
        }
    }
}

fn end_of(status: &RegionStatus) -> Option<Bytes> {
    Some(status.region.as_ref()?.range.as_ref()?.end_key.clone())
}

async fn find(client: &mut Client, region_id: u64, key: Option<&str>) -> anyhow::Result<FindRegionResponse> {
    let key = key.map(unhex).transpose()?.unwrap_or_default();
    let found = client.find_region(FindRegionRequest { region_id, key }).await.map_err(said)?.into_inner();
    match (&found.region, region_id) {
        (Some(_), _) => Ok(found),
        (None, 0) => bail!("no leader has reported the region of this key yet"),
        (None, id) => bail!("no region {id}"),
    }
}

fn regions_table() -> Table {
    Table::new(&[
        "id",
        "start",
        "end",
        "epoch",
        "leader_store",
        "term",
        "peers",
        "applied",
        "committed",
        "bytes",
        "requests_per_s",
    ])
}

fn peers(status: &RegionStatus) -> Value {
    let peers = status.region.iter().flat_map(|r| &r.peers);
    let role = |role: i32| match role {
        0 => "",
        1 => " learner",
        2 => " incoming",
        _ => " outgoing",
    };
    json!(peers.map(|p| format!("{}@s{}{}", p.id, p.store_id, role(p.role))).collect::<Vec<_>>())
}

fn requests(status: &RegionStatus) -> u64 {
    status.load.as_ref().map_or(0, |l| l.reads_per_s + l.writes_per_s)
}

fn region_row(status: &RegionStatus) -> Vec<Value> {
    let region = status.region.clone().unwrap_or_default();
    let (range, epoch) = (region.range.unwrap_or_default(), region.epoch.unwrap_or_default());
    vec![
        json!(region.id),
        json!(hex(&range.start_key)),
        json!(hex(&range.end_key)),
        json!(format!("{}/{}", epoch.conf_ver, epoch.version)),
        leader(status.leader.as_ref()),
        json!(status.term),
        peers(status),
        json!(status.applied_index),
        json!(status.committed_index),
        json!(status.approximate_bytes),
        json!(requests(status)),
    ]
}

fn show(found: &FindRegionResponse, output: Output) -> anyhow::Result<String> {
    let status = found.region.as_ref().context("no such region")?;
    let mut table = Table::new(&[
        "id",
        "start",
        "end",
        "epoch",
        "leader_store",
        "term",
        "peers",
        "applied",
        "committed",
        "bytes",
        "keys",
        "reads_per_s",
        "writes_per_s",
        "read_bytes_per_s",
        "write_bytes_per_s",
        "behind",
        "down",
        "operator",
    ]);
    let load = status.load.unwrap_or_default();
    let mut row = region_row(status);
    row.pop();
    let behind = status.progress.iter().filter(|p| p.matched < status.committed_index).map(|p| {
        let snapshot = if p.needs_snapshot { ", needs a snapshot" } else { "" };
        format!("{}: {} entries{snapshot}", p.peer_id, status.committed_index - p.matched)
    });
    let down = status.progress.iter().filter(|p| !p.active).map(|p| p.peer_id);
    row.extend([
        json!(status.approximate_keys),
        json!(load.reads_per_s),
        json!(load.writes_per_s),
        json!(load.read_bytes_per_s),
        json!(load.write_bytes_per_s),
        json!(behind.collect::<Vec<_>>()),
        json!(down.collect::<Vec<_>>()),
        found.operator.as_ref().map_or(Value::Null, |op| json!(format!("{} {}: {}", op.id, op.rule, op.reason))),
    ]);
    table.row(row);
    Ok(table.render_one(output))
}

fn parse_epoch(text: &str) -> anyhow::Result<RegionEpoch> {
    let parsed = text.split_once('/').and_then(|(c, v)| Some((c.parse().ok()?, v.parse().ok()?)));
    let (conf_ver, version) = parsed.with_context(|| format!("--epoch {text:?} is not CONF/VERSION"))?;
    Ok(RegionEpoch { conf_ver, version })
}

fn unhex(text: &str) -> anyhow::Result<Bytes> {
    let digits = text.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    // The parser of numbers would take a sign too.
    let is_byte = |pair: &[u8]| pair.len() == 2 && pair.iter().all(u8::is_ascii_hexdigit);
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(|pair| byte(pair).filter(|_| is_byte(pair))).collect();
    Ok(bytes.with_context(|| format!("key {text:?} is not hexadecimal, two digits a byte"))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hexadecimal() {
        assert_eq!(unhex("00ff10").expect("hex"), Bytes::from_static(&[0, 255, 16]));
        for bad in ["0", "zz", "+1", "0x10", "ä"] {
            assert!(unhex(bad).is_err(), "{bad}");
        }
        assert!(parse_epoch("3").is_err() && parse_epoch("3/x").is_err());
    }
}
