//! What PD says, as rows.

use std::collections::BTreeMap;

use proto::{
    KeyRange, keyspace,
    wire::{OperatorState, PeerRole, RegionStatus, StoreState},
};

use super::{
    View, locks,
    sessions::{self, Owners},
};
use crate::{
    catalog::Table,
    error::SqlError,
    query::{
        catalog::table::{SystemTable, text, truth},
        explain::{index_of, shown_border},
    },
    types::Datum,
};

/// Regions of one request to PD.
const PAGE: u32 = 1_000;

pub(super) fn number(value: u64) -> Datum {
    Datum::Int8(i64::try_from(value).unwrap_or(i64::MAX))
}

fn optional(value: Option<u64>) -> Datum {
    value.map_or(Datum::Null, number)
}

/// The rows of a view, now.
pub(super) async fn fetch(view: View, client: &kv::Client, tables: &[Table]) -> Result<SystemTable, SqlError> {
    let pd = &**client.pd();
    let mut rows = SystemTable::new(view.columns());
    match view {
        View::Regions => {
            let operators = pd.operators(false).await?;
            let busy: BTreeMap<u64, u64> = operators.iter().map(|op| (op.region_id, op.id)).collect();
            for status in all_regions(pd).await? {
                region(&mut rows, &status, tables, &busy);
            }
        }
        View::RegionPeers => all_regions(pd).await?.iter().for_each(|status| peers(&mut rows, status)),
        View::Stores => stores(&mut rows, pd).await?,
        View::Operators => operators(&mut rows, pd).await?,
        View::Locks | View::PgLocks | View::Transactions | View::PgStatActivity => {
            let (gateways, locks) = (client.gateways().await?, client.row_locks().await?);
            let (mut sessions, mut uses) = (Vec::new(), Vec::new());
            for (store, gateway) in gateways {
                sessions.extend(gateway.sessions.into_iter().map(|session| (store, session)));
                uses.extend(gateway.uses);
            }
            let owners = Owners::of(&sessions);
            match view {
                View::Locks => locks.iter().for_each(|(s, lock)| locks::lock(&mut rows, *s, lock, tables, &owners)),
                View::PgLocks => {
                    locks.iter().for_each(|(_, lock)| locks::pg_lock(&mut rows, lock, tables, &owners));
                    uses.iter().for_each(|used| locks::pg_table_lock(&mut rows, used));
                }
                View::Transactions => sessions::transactions(&mut rows, &sessions, &locks),
                _ => sessions::activity(&mut rows, &sessions, &locks),
            }
        }
    }
    Ok(rows)
}

async fn all_regions(pd: &dyn kv::Pd) -> Result<Vec<RegionStatus>, SqlError> {
    let (mut all, mut range) = (Vec::new(), KeyRange::default());
    loop {
        let page = pd.regions(&range, PAGE).await?;
        let full = page.len() == PAGE as usize;
        let end = page.last().and_then(|s| Some(s.region.as_ref()?.range.as_ref()?.end_key.clone()));
        all.extend(page);
        match end {
            Some(end) if full && !end.is_empty() => range.start = end,
            _ => return Ok(all),
        }
    }
}

fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The table whose rows begin at or around a key.
pub(super) fn table_at<'a>(tables: &'a [Table], key: &[u8]) -> Option<&'a Table> {
    let head: [u8; 8] = key.get(..8)?.try_into().ok()?;
    let (space, storage) = head.split_at(4);
    let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap_or_default());
    let (space, storage) = (word(space), word(storage));
    tables.iter().find(|t| space == keyspace::SQL_KEYSPACE && t.storage_id == storage)
}

pub(super) fn pretty(tables: &[Table], key: &[u8]) -> Datum {
    match table_at(tables, key) {
        Some(table) if key.len() > keyspace::PREFIX_LEN => text(shown_border(table, key)),
        Some(table) => text(format!("start of {}", table.shown_name())),
        None => Datum::Null,
    }
}

fn region(rows: &mut SystemTable, status: &RegionStatus, tables: &[Table], busy: &BTreeMap<u64, u64>) {
    let region = status.region.clone().unwrap_or_default();
    let (range, epoch) = (region.range.unwrap_or_default(), region.epoch.unwrap_or_default());
    let load = status.load.unwrap_or_default();
    let table = table_at(tables, &range.start_key);
    // All that lie in it, in the order of their keys.
    let whole = KeyRange::from(range.clone());
    let inside = |t: &&Table| keyspace::table_range(keyspace::SQL_KEYSPACE, t.storage_id).intersect(&whole).is_some();
    let mut here: Vec<_> = tables.iter().filter(inside).collect();
    here.sort_by_key(|t| t.storage_id);
    let names: Vec<_> = here.into_iter().map(|t| t.shown_name()).collect();
    let index = table.filter(|_| range.start_key.len() >= keyspace::PREFIX_LEN).and_then(|t| {
        let secondary = index_of(t, &range.start_key).map(|index| index.name.clone());
        secondary.or_else(|| t.primary_key.clone())
    });
    rows.push(&[
        ("region_id", number(region.id)),
        ("start_key", text(hex(&range.start_key))),
        ("end_key", text(hex(&range.end_key))),
        ("table_schema", table.map_or(Datum::Null, |t| text(&t.schema))),
        ("table_name", table.map_or(Datum::Null, |t| text(&t.name))),
        ("table_names", text(names.join(","))),
        ("index_name", index.map_or(Datum::Null, text)),
        ("start_pretty", pretty(tables, &range.start_key)),
        ("end_pretty", pretty(tables, &range.end_key)),
        ("conf_version", number(epoch.conf_ver)),
        ("version", number(epoch.version)),
        ("leader_store", optional(status.leader.map(|l| l.store_id))),
        ("term", number(status.term)),
        ("applied_index", number(status.applied_index)),
        ("committed_index", number(status.committed_index)),
        ("approximate_bytes", number(status.approximate_bytes)),
        ("approximate_rows", number(status.approximate_keys)),
        ("reads_per_s", number(load.reads_per_s)),
        ("writes_per_s", number(load.writes_per_s)),
        ("operator_id", optional(busy.get(&region.id).copied())),
    ]);
}

fn peers(rows: &mut SystemTable, status: &RegionStatus) {
    for peer in status.region.iter().flat_map(|r| &r.peers) {
        let leads = status.leader.is_some_and(|l| l.id == peer.id);
        let progress = status.progress.iter().find(|p| p.peer_id == peer.id);
        let role = match peer.role() {
            PeerRole::Voter => "voter",
            PeerRole::Learner => "learner",
            PeerRole::IncomingVoter => "incoming voter",
            PeerRole::DemotingVoter => "demoting voter",
        };
        let behind = progress.map(|p| status.committed_index.saturating_sub(p.matched));
        rows.push(&[
            ("region_id", number(status.region.as_ref().map_or(0, |r| r.id))),
            ("peer_id", number(peer.id)),
            ("store_id", number(peer.store_id)),
            ("role", text(role)),
            ("is_leader", truth(leads)),
            ("is_active", if leads { truth(true) } else { progress.map_or(Datum::Null, |p| truth(p.active)) }),
            ("entries_behind", if leads { number(0) } else { optional(behind) }),
            ("needs_snapshot", truth(progress.is_some_and(|p| p.needs_snapshot))),
        ]);
    }
}

async fn stores(rows: &mut SystemTable, pd: &dyn kv::Pd) -> Result<(), SqlError> {
    for status in pd.stores().await? {
        let store = status.store.unwrap_or_default();
        let load = status.load.unwrap_or_default();
        let state = StoreState::try_from(store.state).unwrap_or(StoreState::Up).as_str_name();
        let labels: BTreeMap<_, _> = store.labels.iter().collect();
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        rows.push(&[
            ("store_id", number(store.id)),
            ("address", text(&store.address)),
            ("sql_address", text(&store.sql_address)),
            ("http_address", text(&store.http_address)),
            ("state", text(state.trim_start_matches("STORE_STATE_").to_lowercase())),
            ("labels", text(labels.join(","))),
            ("replicas", number(status.regions)),
            ("leaders", number(status.leaders)),
            ("capacity_bytes", number(status.capacity_bytes)),
            ("available_bytes", number(status.available_bytes)),
            ("silent_ms", number(status.silent_ms)),
            ("reads_per_s", number(load.reads_per_s)),
            ("writes_per_s", number(load.writes_per_s)),
        ]);
    }
    Ok(())
}

async fn operators(rows: &mut SystemTable, pd: &dyn kv::Pd) -> Result<(), SqlError> {
    for op in pd.operators(true).await? {
        let state = OperatorState::try_from(op.state).unwrap_or(OperatorState::Running).as_str_name();
        rows.push(&[
            ("operator_id", number(op.id)),
            ("region_id", number(op.region_id)),
            ("rule", text(&op.rule)),
            ("state", text(state.trim_start_matches("OPERATOR_STATE_").to_lowercase())),
            ("reason", text(&op.reason)),
            ("steps", text(op.steps.join("; "))),
            ("steps_done", number(u64::from(op.done))),
            ("outcome", text(&op.outcome)),
            ("age_ms", number(op.age_ms)),
            ("ran_ms", number(op.ran_ms)),
        ]);
    }
    Ok(())
}
