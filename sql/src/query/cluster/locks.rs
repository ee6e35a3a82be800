//! Row locks as rows: ours, and in PostgreSQL's words.

use proto::{
    StoreId, Timestamp,
    wire::{RowLockMode, RowLockStatus, TableUse},
};

use super::{
    rows::{number, pretty, table_at},
    sessions::Owners,
};
use crate::{
    advisory::Name,
    catalog::Table,
    query::catalog::{
        oids,
        table::{ColumnSpec, SystemTable, int2, int4, oid, text, truth},
    },
    table_locks::{Modes, record::table_of_queue},
    types::{
        Datum,
        PgType::{Bool, Int2, Int4, Int8, Oid, Text, TimestampTz},
    },
};

/// Of `flaredb.locks`.
pub(super) const COLUMNS: &[ColumnSpec] = &[
    ("transaction", Text),
    ("pid", Int4),
    ("store_id", Int8),
    ("table_schema", Text),
    ("table_name", Text),
    ("row", Text),
    ("mode", Text),
    ("granted", Bool),
    ("waits_for", Text),
    ("statement", Text),
];

/// Of `pg_locks`; what PostgreSQL says of pages and virtual transactions is NULL.
pub(super) const PG_COLUMNS: &[ColumnSpec] = &[
    ("locktype", Text),
    ("database", Oid),
    ("relation", Oid),
    ("page", Int4),
    ("tuple", Int2),
    ("virtualxid", Text),
    ("transactionid", Oid),
    ("classid", Oid),
    ("objid", Oid),
    ("objsubid", Int2),
    ("virtualtransaction", Text),
    ("pid", Int4),
    ("mode", Text),
    ("granted", Bool),
    ("fastpath", Bool),
    ("waitstart", TimestampTz),
];

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
pub(super) fn lock(rows: &mut SystemTable, store: StoreId, lock: &RowLockStatus, tables: &[Table], owners: &Owners) {
    let table = match table_of_queue(&lock.key) {
        Some(id) => tables.iter().find(|table| table.id == id),
        None => table_at(tables, &lock.key),
    };
    let named = |of: fn(&Table) -> &str| table.map_or(Datum::Null, |table| text(of(table)));
    let row = match (Name::of_queue(&lock.key), table_of_queue(&lock.key)) {
        (Some(Name::One(key)), _) => text(format!("advisory lock {key}")),
        (Some(Name::Two(first, second)), _) => text(format!("advisory lock {first}, {second}")),
        (None, Some(_)) => text("table lock"),
        (None, None) => pretty(tables, &lock.key),
    };
    let waits_for: Vec<String> = lock.waits_for.iter().map(|holder| name(*holder)).collect();
    rows.push(&[
        ("transaction", text(name(lock.owner))),
        ("pid", owners.pid(lock.owner)),
        ("store_id", number(store.0)),
        ("table_schema", named(|table| &table.schema)),
        ("table_name", named(|table| &table.name)),
        ("row", row),
        ("mode", text(mode(lock))),
        ("granted", truth(lock.granted)),
        ("waits_for", if waits_for.is_empty() { Datum::Null } else { text(waits_for.join(", ")) }),
        ("statement", text(String::from_utf8_lossy(&lock.label))),
    ]);
}

/// The same for an advisory lock.
fn advisory(rows: &mut SystemTable, lock: &RowLockStatus, locked: Name, owners: &Owners) {
    let (class, object, kind) = locked.ids();
    rows.push(&[
        ("locktype", text("advisory")),
        ("database", oid(oids::DATABASE)),
        ("classid", oid(class)),
        ("objid", oid(object)),
        ("objsubid", int2(kind)),
        ("virtualtransaction", text(name(lock.owner))),
        ("pid", owners.pid(lock.owner)),
        ("mode", text(if lock.mode() == RowLockMode::Share { "ShareLock" } else { "ExclusiveLock" })),
        ("granted", truth(lock.granted)),
        ("fastpath", truth(false)),
    ]);
}

/// Rows of `pg_locks` for what a session has of a table, or waits for.
pub(super) fn pg_table_lock(rows: &mut SystemTable, used: &TableUse) {
    let transaction = if used.transaction == 0 { Datum::Null } else { text(name(used.transaction)) };
    for mode in Modes::from_bits(used.modes as u8).iter() {
        rows.push(&[
            ("locktype", text("relation")),
            ("database", oid(oids::DATABASE)),
            ("relation", oid(used.table)),
            ("virtualtransaction", transaction.clone()),
            ("pid", int4(used.pid as i32)),
            ("mode", text(mode.pg_name())),
            ("granted", truth(!used.waits)),
            // Granted by the session's own gateway, without a word to anybody.
            ("fastpath", truth(!mode.is_strong() && !used.waits)),
        ]);
    }
}

/// A row of `pg_locks`.
pub(super) fn pg_lock(rows: &mut SystemTable, lock: &RowLockStatus, tables: &[Table], owners: &Owners) {
    /// PostgreSQL names its modes of tables, not of rows: the ones that `SELECT … FOR` takes of a tuple.
    fn tuple_mode(mode: RowLockMode) -> &'static str {
        match mode {
            RowLockMode::KeyShare => "AccessShareLock",
            RowLockMode::Share => "RowShareLock",
            RowLockMode::NoKeyUpdate => "ExclusiveLock",
            RowLockMode::Update => "AccessExclusiveLock",
        }
    }
    if let Some(name) = Name::of_queue(&lock.key) {
        return advisory(rows, lock, name, owners);
    }
    if table_of_queue(&lock.key).is_some() {
        // A place in a queue; the sessions say what it is for.
        return;
    }
    let relation = table_at(tables, &lock.key).map_or(Datum::Null, |table| Datum::Oid(table.id));
    rows.push(&[
        ("locktype", text("tuple")),
        ("relation", relation),
        ("virtualtransaction", text(name(lock.owner))),
        ("pid", owners.pid(lock.owner)),
        ("mode", text(tuple_mode(lock.mode()))),
        ("granted", truth(lock.granted)),
        ("fastpath", truth(false)),
    ]);
}
