//! Columns and types: pg_attribute, pg_attrdef, pg_type.

use super::{
    oids,
    table::{ColumnSpec, SystemTable, int2, int4, oid, text, truth},
};
use crate::{
    catalog::{CatalogSnapshot, ColumnDescriptor, Identity, TableDescriptor},
    types::{
        PgType::{self, Bool, Char, Int2, Int4, Name, Oid, Text},
        TYPES, TypeRow,
    },
};

const PG_ATTRIBUTE: [ColumnSpec; 25] = [
    ("attrelid", Oid),
    ("attname", Name),
    ("atttypid", Oid),
    ("attstattarget", Int4),
    ("attlen", Int2),
    ("attnum", Int2),
    ("attndims", Int4),
    ("attcacheoff", Int4),
    ("atttypmod", Int4),
    ("attbyval", Bool),
    ("attalign", Char),
    ("attstorage", Char),
    ("attcompression", Char),
    ("attnotnull", Bool),
    ("atthasdef", Bool),
    ("atthasmissing", Bool),
    ("attidentity", Char),
    ("attgenerated", Char),
    ("attisdropped", Bool),
    ("attislocal", Bool),
    ("attinhcount", Int4),
    ("attcollation", Oid),
    ("attacl", Text),
    ("attoptions", Text),
    ("attfdwoptions", Text),
];

const PG_ATTRDEF: [ColumnSpec; 4] = [("oid", Oid), ("adrelid", Oid), ("adnum", Int2), ("adbin", Text)];

const PG_TYPE: [ColumnSpec; 24] = [
    ("oid", Oid),
    ("typname", Name),
    ("typnamespace", Oid),
    ("typowner", Oid),
    ("typlen", Int2),
    ("typbyval", Bool),
    ("typtype", Char),
    ("typcategory", Char),
    ("typispreferred", Bool),
    ("typisdefined", Bool),
    ("typdelim", Char),
    ("typrelid", Oid),
    ("typsubscript", Text),
    ("typelem", Oid),
    ("typarray", Oid),
    ("typinput", Text),
    ("typoutput", Text),
    ("typreceive", Text),
    ("typsend", Text),
    ("typnotnull", Bool),
    ("typbasetype", Oid),
    ("typtypmod", Int4),
    ("typndims", Int4),
    ("typcollation", Oid),
];

/// One of the tables of this file.
pub fn build(snapshot: &CatalogSnapshot, name: &str) -> Option<SystemTable> {
    Some(match name {
        "pg_attribute" => pg_attribute(snapshot),
        "pg_attrdef" => pg_attrdef(snapshot),
        "pg_type" => pg_type(),
        _ => return None,
    })
}

fn collation_of(pg_type: PgType) -> u32 {
    match pg_type {
        PgType::Text | PgType::Varchar | PgType::Bpchar => oids::DEFAULT_COLLATION,
        PgType::Name => oids::C_COLLATION,
        _ => 0,
    }
}

fn push_attribute(rows: &mut SystemTable, relation: u32, number: u32, column: &ColumnDescriptor) {
    let row = column.column_type.pg_type.row();
    rows.push(&[
        ("attrelid", oid(relation)),
        ("attname", text(&column.name)),
        ("atttypid", oid(row.oid)),
        ("attstattarget", int4(-1)),
        ("attlen", int2(row.len)),
        ("attnum", int2(number as i16)),
        ("attndims", int4(0)),
        ("attcacheoff", int4(-1)),
        ("atttypmod", int4(column.column_type.type_mod)),
        ("attbyval", truth(by_value(row))),
        ("attalign", text(alignment(row))),
        ("attstorage", text(if row.len < 0 { "x" } else { "p" })),
        ("attcompression", text("")),
        ("attnotnull", truth(!column.nullable)),
        ("atthasdef", truth(column.default.is_some())),
        ("atthasmissing", truth(false)),
        ("attidentity", text(identity(column))),
        ("attgenerated", text("")),
        ("attisdropped", truth(false)),
        ("attislocal", truth(true)),
        ("attinhcount", int4(0)),
        ("attcollation", oid(collation_of(row.pg_type))),
    ]);
}

fn identity(column: &ColumnDescriptor) -> &'static str {
    match column.identity {
        None => "",
        Some(Identity::Always) => "a",
        Some(Identity::ByDefault) => "d",
    }
}

fn by_value(row: &TypeRow) -> bool {
    (1..=8).contains(&row.len)
}

fn alignment(row: &TypeRow) -> &'static str {
    match row.len {
        1 | 16 | 64 => "c",
        2 => "s",
        8 => "d",
        _ => "i",
    }
}

fn pg_attribute(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_ATTRIBUTE);
    for table in snapshot.tables() {
        for (_, column) in table.visible() {
            push_attribute(&mut rows, table.id, column.id, column);
        }
        if table.primary_key.is_some() {
            for (number, column) in key_columns(table) {
                push_attribute(&mut rows, oids::primary_index(table), number, column);
            }
        }
        for index in &table.indexes {
            for (number, column) in (1..).zip(&index.columns) {
                push_attribute(&mut rows, index.id, number, &table.columns[column.at]);
            }
        }
    }
    rows
}

/// The columns of a primary key's index, numbered from 1.
fn key_columns(table: &TableDescriptor) -> impl Iterator<Item = (u32, &ColumnDescriptor)> {
    (1..).zip(table.key.iter().map(|at| &table.columns[*at]))
}

fn pg_attrdef(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_ATTRDEF);
    for table in snapshot.tables() {
        for (_, column) in table.visible() {
            let Some(default) = &column.default else { continue };
            rows.push(&[
                ("oid", oid(oids::default(table, column.id))),
                ("adrelid", oid(table.id)),
                ("adnum", int2(column.id as i16)),
                ("adbin", text(default)),
            ]);
        }
    }
    rows
}

/// The base types and their array types.
fn pg_type() -> SystemTable {
    let mut rows = SystemTable::new(&PG_TYPE);
    for row in &TYPES {
        push_type(&mut rows, row, None);
        if row.array_oid != 0 {
            push_type(&mut rows, row, Some(row.oid));
        }
    }
    rows
}

/// A type, or with `element` the array type of it.
fn push_type(rows: &mut SystemTable, row: &TypeRow, element: Option<u32>) {
    let array = element.is_some();
    let name = if array { format!("_{}", row.name) } else { row.name.to_owned() };
    let function = |suffix: &str| text(if array { format!("array_{suffix}") } else { format!("{}{suffix}", row.name) });
    rows.push(&[
        ("oid", oid(if array { row.array_oid } else { row.oid })),
        ("typname", text(name)),
        ("typnamespace", oid(oids::PG_CATALOG_NAMESPACE)),
        ("typowner", oid(oids::OWNER)),
        ("typlen", int2(if array { -1 } else { row.len })),
        ("typbyval", truth(!array && by_value(row))),
        ("typtype", text(if row.category == 'P' { "p" } else { "b" })),
        ("typcategory", text(if array { "A".to_owned() } else { row.category.to_string() })),
        ("typispreferred", truth(matches!(row.pg_type, Bool | Text | Oid | PgType::Float8 | PgType::TimestampTz))),
        ("typisdefined", truth(true)),
        ("typdelim", text(",")),
        ("typrelid", oid(0)),
        ("typsubscript", text(if array { "array_subscript_handler" } else { "-" })),
        ("typelem", oid(element.unwrap_or(0))),
        ("typarray", oid(if array { 0 } else { row.array_oid })),
        ("typinput", function("in")),
        ("typoutput", function("out")),
        ("typreceive", function("recv")),
        ("typsend", function("send")),
        ("typnotnull", truth(false)),
        ("typbasetype", oid(0)),
        ("typtypmod", int4(-1)),
        ("typndims", int4(0)),
        ("typcollation", oid(collation_of(row.pg_type))),
    ]);
}
