//! What is in schemas: pg_class, pg_tables, pg_index, pg_constraint.

use super::{
    oids,
    table::{ColumnSpec, SystemTable, int2, int4, oid, text, truth},
};
use crate::{
    catalog::{CatalogSnapshot, TableDescriptor},
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

const PG_CONSTRAINT: [ColumnSpec; 17] = [
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

/// One of the tables of this file.
pub fn build(snapshot: &CatalogSnapshot, name: &str) -> Option<SystemTable> {
    Some(match name {
        "pg_class" => pg_class(snapshot),
        "pg_index" => pg_index(snapshot),
        "pg_constraint" => pg_constraint(snapshot),
        "pg_tables" => pg_tables(snapshot),
        _ => return None,
    })
}

fn namespace_of(table: &TableDescriptor) -> u32 {
    oids::namespace(&table.schema).unwrap_or(oids::PUBLIC_NAMESPACE)
}

/// Tables, and the indexes of primary keys.
fn pg_class(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_CLASS);
    let mut push = |id: u32, name: &str, namespace: u32, kind: &str, am: u32, columns: usize, indexed: bool| {
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
            ("relchecks", int2(0)),
            ("relhasrules", truth(false)),
            ("relhastriggers", truth(false)),
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
        push(table.id, &table.name, namespace, "r", oids::HEAP, columns, table.primary_key.is_some());
        if let Some(key) = &table.primary_key {
            push(oids::primary_index(table), key, namespace, "i", oids::BTREE, table.key.len(), false);
        }
    }
    rows
}

/// Column numbers as an int2vector is written.
fn numbers(table: &TableDescriptor) -> String {
    let ids: Vec<String> = table.key.iter().map(|at| table.columns[*at].id.to_string()).collect();
    ids.join(" ")
}

fn pg_index(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_INDEX);
    for table in snapshot.tables().filter(|table| table.primary_key.is_some()) {
        let zeros = vec!["0"; table.key.len()].join(" ");
        rows.push(&[
            ("indexrelid", oid(oids::primary_index(table))),
            ("indrelid", oid(table.id)),
            ("indnatts", int2(table.key.len() as i16)),
            ("indnkeyatts", int2(table.key.len() as i16)),
            ("indisunique", truth(true)),
            ("indnullsnotdistinct", truth(false)),
            ("indisprimary", truth(true)),
            ("indisexclusion", truth(false)),
            ("indimmediate", truth(true)),
            ("indisclustered", truth(false)),
            ("indisvalid", truth(true)),
            ("indcheckxmin", truth(false)),
            ("indisready", truth(true)),
            ("indislive", truth(true)),
            ("indisreplident", truth(false)),
            ("indkey", text(numbers(table))),
            ("indcollation", text(&zeros)),
            ("indoption", text(&zeros)),
        ]);
    }
    rows
}

fn pg_constraint(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_CONSTRAINT);
    for table in snapshot.tables() {
        let Some(name) = &table.primary_key else { continue };
        rows.push(&[
            ("oid", oid(oids::primary_constraint(table))),
            ("conname", text(name)),
            ("connamespace", oid(namespace_of(table))),
            ("contype", text("p")),
            ("condeferrable", truth(false)),
            ("condeferred", truth(false)),
            ("convalidated", truth(true)),
            ("conrelid", oid(table.id)),
            ("contypid", oid(0)),
            ("conindid", oid(oids::primary_index(table))),
            ("conparentid", oid(0)),
            ("confrelid", oid(0)),
            ("coninhcount", int4(0)),
            ("conislocal", truth(true)),
            ("connoinherit", truth(true)),
            ("conkey", text(format!("{{{}}}", numbers(table).replace(' ', ",")))),
        ]);
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
            ("hasindexes", truth(table.primary_key.is_some())),
            ("hasrules", truth(false)),
            ("hastriggers", truth(false)),
            ("rowsecurity", truth(false)),
        ]);
    }
    rows
}
