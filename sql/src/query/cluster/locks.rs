//! Row locks as rows: ours, and in PostgreSQL's words.

use proto::{
    StoreId, Timestamp,
    wire::{RowLockMode, RowLockStatus},
};

use super::rows::{number, pretty, table_at};
use crate::{
    catalog::Table,
    query::catalog::table::{SystemTable, text, truth},
    types::Datum,
};

fn mode(lock: &RowLockStatus) -> &'static str {
    match lock.mode() {
        RowLockMode::KeyShare => "FOR KEY SHARE",
        RowLockMode::Share => "FOR SHARE",
        RowLockMode::NoKeyUpdate => "FOR NO KEY UPDATE",
        RowLockMode::Update => "FOR UPDATE",
    }
}

fn name(transaction: u64) -> String {
    Timestamp(transaction).to_string()
}

/// A row of `flaredb.locks`.
pub(super) fn lock(rows: &mut SystemTable, store: StoreId, lock: &RowLockStatus, tables: &[Table]) {
    let table = table_at(tables, &lock.key);
    let named = |of: fn(&Table) -> &str| table.map_or(Datum::Null, |table| text(of(table)));
    let waits_for: Vec<String> = lock.waits_for.iter().map(|holder| name(*holder)).collect();
    rows.push(&[
        ("transaction", text(name(lock.owner))),
        ("store_id", number(store.0)),
        ("table_schema", named(|table| &table.schema)),
        ("table_name", named(|table| &table.name)),
        ("row", pretty(tables, &lock.key)),
        ("mode", text(mode(lock))),
        ("granted", truth(lock.granted)),
        ("waits_for", if waits_for.is_empty() { Datum::Null } else { text(waits_for.join(", ")) }),
        ("statement", text(String::from_utf8_lossy(&lock.label))),
    ]);
}

/// A row of `pg_locks`. Processes are none of a cluster's: `pid` is a number that the locks of one transaction share.
pub(super) fn pg_lock(rows: &mut SystemTable, lock: &RowLockStatus, tables: &[Table]) {
    /// PostgreSQL names its modes of tables, not of rows: the ones that `SELECT … FOR` takes of a tuple.
    fn tuple_mode(mode: RowLockMode) -> &'static str {
        match mode {
            RowLockMode::KeyShare => "AccessShareLock",
            RowLockMode::Share => "RowShareLock",
            RowLockMode::NoKeyUpdate => "ExclusiveLock",
            RowLockMode::Update => "AccessExclusiveLock",
        }
    }
    let pid = (lock.owner ^ (lock.owner >> 31)) & 0x7fff_ffff;
    let relation = table_at(tables, &lock.key).map_or(Datum::Null, |table| Datum::Oid(table.id));
    rows.push(&[
        ("locktype", text("tuple")),
        ("relation", relation),
        ("virtualtransaction", text(name(lock.owner))),
        ("pid", Datum::Int4(pid as i32)),
        ("mode", text(tuple_mode(lock.mode()))),
        ("granted", truth(lock.granted)),
        ("fastpath", truth(false)),
    ]);
}
