//! `ctl region verify`.

use anyhow::{bail, ensure};
use kv::Clock;
use proto::{
    keyspace,
    wire::{KeyRange, Region, ReplicaDifference, VerifyOutcome, VerifyRegionRequest, VerifyRegionResponse},
};
use raftstore::MonotonicClock;
use serde_json::{Value, json};

use super::{Client, LOOK_AGAIN_AFTER, Patience, hex, region, said};
use crate::{
    cli::output::{Output, Table},
    clock::SystemClock,
};

/// How long one answer may wait.
const WAIT_MS: u64 = 2_000;

/// Compares the replicas of one region or of all; an error when any differ, or not all have answered.
pub(super) async fn run(
    client: &mut Client,
    id: Option<u64>,
    patience: Patience,
    output: Output,
) -> anyhow::Result<String> {
    let ids: Vec<u64> = match id {
        Some(id) => vec![id],
        None => {
            region::scan(client, KeyRange::default()).await?.into_iter().filter_map(|r| Some(r.region?.id)).collect()
        }
    };
    let mut table = Table::new(&["region", "outcome", "epoch", "index", "records", "stores", "silent", "differences"]);
    let mut bad = 0;
    for id in &ids {
        let answer = ended(client, *id, patience).await?;
        bad += usize::from(answer.outcome() != VerifyOutcome::Equal);
        table.row(row(*id, &answer));
    }
    let text = table.render(output);
    // Programs and people get the answer; the shell gets the failure.
    if bad > 0 {
        print!("{text}");
        bail!("{bad} of {} regions are not known to be equal on all their stores", ids.len());
    }
    Ok(text)
}

async fn ended(client: &mut Client, region_id: u64, patience: Patience) -> anyhow::Result<VerifyRegionResponse> {
    ensure!(!patience.no_wait, "a comparison has no outcome before it is waited for");
    let started = SystemClock.now();
    let mut request = VerifyRegionRequest { region_id, mark: 0, wait_ms: WAIT_MS };
    loop {
        let answer = client.verify_region(request).await.map_err(said)?.into_inner();
        if answer.ended || SystemClock.now().since(started) >= patience.limit() {
            return Ok(answer);
        }
        request.mark = answer.mark;
        SystemClock.sleep(LOOK_AGAIN_AFTER).await;
    }
}

fn row(id: u64, answer: &VerifyRegionResponse) -> Vec<Value> {
    let Region { epoch, .. } = answer.region.clone().unwrap_or_default();
    let epoch = epoch.unwrap_or_default();
    let outcome = answer.outcome().as_str_name().trim_start_matches("VERIFY_OUTCOME_").to_lowercase();
    let (heard, silent): (Vec<_>, Vec<_>) = answer.replicas.iter().partition(|r| r.answered);
    vec![
        json!(id),
        json!(outcome),
        json!(format!("{}/{}", epoch.conf_ver, epoch.version)),
        json!(answer.index),
        json!(heard.iter().map(|r| r.records).max()),
        json!(heard.iter().map(|r| format!("s{}", r.store_id)).collect::<Vec<_>>()),
        json!(silent.iter().map(|r| format!("s{}: {}", r.store_id, r.trouble)).collect::<Vec<_>>()),
        json!(answer.differences.iter().flat_map(difference).collect::<Vec<_>>()),
    ]
}

fn difference(found: &ReplicaDifference) -> Vec<String> {
    let who = format!("s{} differs from s{}", found.store_id, found.than_store_id);
    let of_region = (!found.region.is_empty()).then(|| format!("{who}: the region is {}", found.region));
    let ranges = found.ranges.iter().map(|r| format!("{who} in {} .. {}", place(&r.start_key), place(&r.end_key)));
    of_region.into_iter().chain(ranges).collect()
}

/// A border with the table and index it lies in (0: the table's rows), as far as it says so.
fn place(key: &[u8]) -> String {
    match keyspace::split_prefix(key) {
        Some((keyspace::SQL_KEYSPACE, table, index, rest)) => {
            format!("{} (table {table} index {index} key {})", hex(key), hex(rest))
        }
        _ if key.is_empty() => "the end".into(),
        _ => hex(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_named_by_table_and_index() {
        let mut key = keyspace::index_prefix(keyspace::SQL_KEYSPACE, 103, 2).to_vec();
        key.push(0x80);
        let ranges = vec![KeyRange { start_key: key.into(), end_key: Default::default() }];
        let found = ReplicaDifference { store_id: 3, than_store_id: 1, ranges, ..Default::default() };
        let said = "s3 differs from s1 in 00000001000000670000000280 (table 103 index 2 key 80) .. the end";
        assert_eq!(difference(&found), [said]);
    }
}
