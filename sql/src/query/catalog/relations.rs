//! What is in schemas: pg_class, pg_tables, pg_index, pg_constraint.

use super::{
    functions, oids,
    table::{ColumnSpec, SystemTable, int2, int4, oid, text, truth},
};
use crate::{
    catalog::{
        CatalogSnapshot, ForeignKeyDescriptor, TableDescriptor,
        descriptor::{IndexColumn, PRIMARY_INDEX},
        foreign_key::Deferral,
    },
    types::{
        Datum,
        PgType::{Bool, Char, Float4, Int2, Int4, Name, Oid, Text},
    },
};

const PG_CLASS: [ColumnSpec; 33] = [
    ("oid", Oid),
    ("relname", Name),
    ("relnamespace", Oid),
    ("reltype", Oid),
    ("reloftype", Oid),
    ("relowner", Oid),
    ("relam", Oid),
    ("relfilenode", Oid),
    ("reltablespace", Oid),
    ("relpages", Int4),
    ("reltuples", Float4),
    ("relallvisible", Int4),
    ("reltoastrelid", Oid),
    ("relhasindex", Bool),
    ("relisshared", Bool),
    ("relpersistence", Char),
    ("relkind", Char),
    ("relnatts", Int2),
    ("relchecks", Int2),
    ("relhasrules", Bool),
    ("relhastriggers", Bool),
    ("relhassubclass", Bool),
    ("relrowsecurity", Bool),
    ("relforcerowsecurity", Bool),
    ("relispopulated", Bool),
    ("relreplident", Char),
    ("relispartition", Bool),
    ("relrewrite", Oid),
    ("relfrozenxid", Text),
    ("relminmxid", Text),
    ("relacl", Text),
    ("reloptions", Text),
    ("relpartbound", Text),
];

const PG_INDEX: [ColumnSpec; 20] = [
    ("indexrelid", Oid),
    ("indrelid", Oid),
    ("indnatts", Int2),
    ("indnkeyatts", Int2),
    ("indisunique", Bool),
    ("indnullsnotdistinct", Bool),
    ("indisprimary", Bool),
    ("indisexclusion", Bool),
    ("indimmediate", Bool),
    ("indisclustered", Bool),
    ("indisvalid", Bool),
    ("indcheckxmin", Bool),
    ("indisready", Bool),
    ("indislive", Bool),
    ("indisreplident", Bool),
    ("indkey", Text),
    ("indcollation", Text),
    ("indoption", Text),
    ("indexprs", Text),
    ("indpred", Text),
];

const PG_CONSTRAINT: [ColumnSpec; 20] = [
    ("oid", Oid),
    ("conname", Name),
    ("connamespace", Oid),
    ("contype", Char),
    ("condeferrable", Bool),
    ("condeferred", Bool),
    ("convalidated", Bool),
    ("conrelid", Oid),
    ("contypid", Oid),
    ("conindid", Oid),
    ("conparentid", Oid),
    ("confrelid", Oid),
    ("confupdtype", Char),
    ("confdeltype", Char),
    ("confmatchtype", Char),
    ("coninhcount", Int4),
    ("conislocal", Bool),
    ("connoinherit", Bool),
    ("conkey", Text),
    ("confkey", Text),
];

const PG_TABLES: [ColumnSpec; 8] = [
    ("schemaname", Name),
    ("tablename", Name),
    ("tableowner", Name),
    ("tablespace", Name),
    ("hasindexes", Bool),
    ("hasrules", Bool),
    ("hastriggers", Bool),
    ("rowsecurity", Bool),
];

const PG_INDEXES: [ColumnSpec; 5] =
    [("schemaname", Name), ("tablename", Name), ("indexname", Name), ("tablespace", Name), ("indexdef", Text)];

/// One of the tables of this file.
pub fn build(snapshot: &CatalogSnapshot, name: &str) -> Option<SystemTable> {
    Some(match name {
        "pg_class" => pg_class(snapshot),
        "pg_index" => pg_index(snapshot),
        "pg_constraint" => pg_constraint(snapshot),
        "pg_indexes" => pg_indexes(snapshot),
        "pg_tables" => pg_tables(snapshot),
        _ => return None,
    })
}

fn namespace_of(table: &TableDescriptor) -> u32 {
    oids::namespace(&table.schema).unwrap_or(oids::PUBLIC_NAMESPACE)
}

/// What is checked of a relation's rows.
#[derive(Default)]
struct Checks {
    /// CHECK constraints.
    checks: usize,
    /// Foreign keys, of it or on it: PostgreSQL keeps them by triggers.
    linked: bool,
}

/// Tables, indexes, sequences.
fn pg_class(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_CLASS);
    let mut push =
        |id: u32, name: &str, namespace: u32, kind: &str, am: u32, columns: usize, indexed: bool, checks: Checks| {
            rows.push(&[
                ("oid", oid(id)),
                ("relname", text(name)),
                ("relnamespace", oid(namespace)),
                ("reltype", oid(0)),
                ("reloftype", oid(0)),
                ("relowner", oid(oids::OWNER)),
                ("relam", oid(am)),
                ("relfilenode", oid(id)),
                ("reltablespace", oid(0)),
                ("relpages", int4(0)),
                ("reltuples", Datum::Float4(-1.0)),
                ("relallvisible", int4(0)),
                ("reltoastrelid", oid(0)),
                ("relhasindex", truth(indexed)),
                ("relisshared", truth(false)),
                ("relpersistence", text("p")),
                ("relkind", text(kind)),
                ("relnatts", int2(columns as i16)),
                ("relchecks", int2(checks.checks as i16)),
                ("relhasrules", truth(false)),
                ("relhastriggers", truth(checks.linked)),
                ("relhassubclass", truth(false)),
                ("relrowsecurity", truth(false)),
                ("relforcerowsecurity", truth(false)),
                ("relispopulated", truth(true)),
                ("relreplident", text("d")),
                ("relispartition", truth(false)),
                ("relrewrite", oid(0)),
                ("relfrozenxid", text("0")),
                ("relminmxid", text("0")),
            ]);
        };
    for table in snapshot.tables() {
        let columns = table.visible().count();
        let namespace = namespace_of(table);
        let indexed = table.primary_key.is_some() || !table.indexes.is_empty();
        let checks = Checks { checks: table.checks.len(), linked: table.is_linked() || table.checks_new_rows() };
        push(table.id, &table.name, namespace, "r", oids::HEAP, columns, indexed, checks);
        if let Some(key) = &table.primary_key {
            push(
                oids::primary_index(table),
                key,
                namespace,
                "i",
                oids::BTREE,
                table.key.len(),
                false,
                Checks::default(),
            );
        }
        for index in &table.indexes {
            push(index.id, &index.name, namespace, "i", oids::BTREE, index.columns.len(), false, Checks::default());
        }
    }
    for sequence in snapshot.sequences() {
        let namespace = oids::namespace(&sequence.schema).unwrap_or(oids::PUBLIC_NAMESPACE);
        // last_value, log_cnt, is_called, as PostgreSQL counts them.
        push(sequence.id, &sequence.name, namespace, "S", 0, 3, false, Checks::default());
    }
    rows
}

/// Column numbers as an int2vector is written.
fn numbers(table: &TableDescriptor, positions: impl Iterator<Item = usize>) -> String {
    let ids: Vec<String> = positions.map(|at| table.columns[at].id.to_string()).collect();
    ids.join(" ")
}

/// What pg_index says about an index, the primary key's or another.
struct IndexRow {
    id: u32,
    primary: bool,
    unique: bool,
    nulls_distinct: bool,
    immediate: bool,
    valid: bool,
    positions: Vec<usize>,
    options: Vec<u8>,
}

/// 1 for DESC, 2 for NULLS FIRST, as in PostgreSQL.
fn option_bits(column: &IndexColumn) -> u8 {
    u8::from(column.descending) + 2 * u8::from(column.nulls_first)
}

fn index_rows(table: &TableDescriptor) -> Vec<IndexRow> {
    let primary = table.primary_key.iter().map(|_| IndexRow {
        id: oids::primary_index(table),
        primary: true,
        unique: true,
        nulls_distinct: true,
        immediate: true,
        valid: true,
        positions: table.key.clone(),
        options: vec![0; table.key.len()],
    });
    let secondary = table.indexes.iter().map(|index| IndexRow {
        id: index.id,
        primary: index.primary,
        unique: index.unique,
        nulls_distinct: index.nulls_distinct,
        immediate: !index.is_deferrable(),
        valid: index.public,
        positions: index.columns.iter().map(|column| column.at).collect(),
        options: index.columns.iter().map(option_bits).collect(),
    });
    primary.chain(secondary).collect()
}

fn pg_index(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_INDEX);
    for (table, index) in snapshot.tables().flat_map(|table| index_rows(table).into_iter().map(move |row| (table, row)))
    {
        let width = index.positions.len();
        let options: Vec<String> = index.options.iter().map(ToString::to_string).collect();
        rows.push(&[
            ("indexrelid", oid(index.id)),
            ("indrelid", oid(table.id)),
            ("indnatts", int2(width as i16)),
            ("indnkeyatts", int2(width as i16)),
            ("indisunique", truth(index.unique)),
            ("indnullsnotdistinct", truth(!index.nulls_distinct)),
            ("indisprimary", truth(index.primary)),
            ("indisexclusion", truth(false)),
            ("indimmediate", truth(index.immediate)),
            ("indisclustered", truth(false)),
            ("indisvalid", truth(index.valid)),
            ("indcheckxmin", truth(false)),
            ("indisready", truth(true)),
            ("indislive", truth(true)),
            ("indisreplident", truth(false)),
            ("indkey", text(numbers(table, index.positions.into_iter()))),
            ("indcollation", text(vec!["0"; width].join(" "))),
            ("indoption", text(options.join(" "))),
        ]);
    }
    rows
}

fn pg_constraint(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_CONSTRAINT);
    let mut push = |table: &TableDescriptor, id: u32, name: &str, (kind, deferral), index: u32, columns: String| {
        rows.push(&[
            ("oid", oid(id)),
            ("conname", text(name)),
            ("connamespace", oid(namespace_of(table))),
            ("contype", text(kind)),
            ("condeferrable", truth(deferral != Deferral::Never)),
            ("condeferred", truth(deferral == Deferral::Deferred)),
            ("convalidated", truth(true)),
            ("conrelid", oid(table.id)),
            ("contypid", oid(0)),
            ("conindid", oid(index)),
            ("conparentid", oid(0)),
            ("confrelid", oid(0)),
            ("confupdtype", text(" ")),
            ("confdeltype", text(" ")),
            ("confmatchtype", text(" ")),
            ("coninhcount", int4(0)),
            ("conislocal", truth(true)),
            ("connoinherit", truth(true)),
            ("conkey", text(format!("{{{}}}", columns.replace(' ', ",")))),
        ]);
    };
    for table in snapshot.tables() {
        if let Some(name) = &table.primary_key {
            let columns = numbers(table, table.key.iter().copied());
            let how = ("p", Deferral::Never);
            push(table, oids::primary_constraint(table), name, how, oids::primary_index(table), columns);
        }
        for index in table.indexes.iter().filter(|index| index.constraint) {
            let columns = numbers(table, index.columns.iter().map(|column| column.at));
            let how = (if index.primary { "p" } else { "u" }, index.deferral);
            push(table, oids::unique_constraint(index), &index.name, how, index.id, columns);
        }
        for check in &table.checks {
            push(table, check.id, &check.name, ("c", Deferral::Never), 0, String::new());
        }
    }
    for table in snapshot.tables() {
        for key in &table.foreign_keys {
            push_foreign_key(&mut rows, snapshot, table, key);
        }
    }
    rows
}

fn push_foreign_key(
    rows: &mut SystemTable,
    snapshot: &CatalogSnapshot,
    table: &TableDescriptor,
    key: &ForeignKeyDescriptor,
) {
    let Some(parent) = snapshot.by_id(key.parent) else { return };
    let index = if key.index == PRIMARY_INDEX { oids::primary_index(parent) } else { key.index };
    let array = |table: &TableDescriptor, positions: &[usize]| {
        text(format!("{{{}}}", numbers(table, positions.iter().copied()).replace(' ', ",")))
    };
    rows.push(&[
        ("oid", oid(key.id)),
        ("conname", text(&key.name)),
        ("connamespace", oid(namespace_of(table))),
        ("contype", text("f")),
        ("condeferrable", truth(key.is_deferrable())),
        ("condeferred", truth(key.deferral == Deferral::Deferred)),
        ("convalidated", truth(key.validated)),
        ("conrelid", oid(table.id)),
        ("contypid", oid(0)),
        ("conindid", oid(index)),
        ("conparentid", oid(0)),
        ("confrelid", oid(parent.id)),
        ("confupdtype", text(key.on_update.letter())),
        ("confdeltype", text(key.on_delete.letter())),
        ("confmatchtype", text(if key.match_full { "f" } else { "s" })),
        ("coninhcount", int4(0)),
        ("conislocal", truth(true)),
        ("connoinherit", truth(true)),
        ("conkey", array(table, &key.columns)),
        ("confkey", array(parent, &key.referenced)),
    ]);
}

fn pg_indexes(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_INDEXES);
    for table in snapshot.tables() {
        let primary = table.primary_key.iter().map(|name| (name, functions::primary_index_definition(table)));
        let secondary = table.indexes.iter().map(|index| (&index.name, functions::index_definition(table, index)));
        for (name, definition) in primary.chain(secondary) {
            rows.push(&[
                ("schemaname", text(&table.schema)),
                ("tablename", text(&table.name)),
                ("indexname", text(name)),
                ("indexdef", text(definition)),
            ]);
        }
    }
    rows
}

fn pg_tables(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_TABLES);
    for table in snapshot.tables() {
        rows.push(&[
            ("schemaname", text(&table.schema)),
            ("tablename", text(&table.name)),
            ("tableowner", text("postgres")),
            ("hasindexes", truth(table.primary_key.is_some() || !table.indexes.is_empty())),
            ("hasrules", truth(false)),
            ("hastriggers", truth(table.is_linked() || table.checks_new_rows())),
            ("rowsecurity", truth(false)),
        ]);
    }
    rows
}
