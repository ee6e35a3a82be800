//! The standard's view of tables and columns.

use super::table::{ColumnSpec, SystemTable, int4, text};
use crate::{
    catalog::{CatalogSnapshot, Identity, Table},
    types::{
        ColumnType, Datum,
        PgType::{self, Int4, Text},
    },
};

/// The database all schemas are in.
const DATABASE: &str = "postgres";

const TABLES: [ColumnSpec; 12] = [
    ("table_catalog", Text),
    ("table_schema", Text),
    ("table_name", Text),
    ("table_type", Text),
    ("self_referencing_column_name", Text),
    ("reference_generation", Text),
    ("user_defined_type_catalog", Text),
    ("user_defined_type_schema", Text),
    ("user_defined_type_name", Text),
    ("is_insertable_into", Text),
    ("is_typed", Text),
    ("commit_action", Text),
];

const COLUMNS: [ColumnSpec; 20] = [
    ("table_catalog", Text),
    ("table_schema", Text),
    ("table_name", Text),
    ("column_name", Text),
    ("ordinal_position", Int4),
    ("column_default", Text),
    ("is_nullable", Text),
    ("data_type", Text),
    ("character_maximum_length", Int4),
    ("character_octet_length", Int4),
    ("numeric_precision", Int4),
    ("numeric_precision_radix", Int4),
    ("numeric_scale", Int4),
    ("datetime_precision", Int4),
    ("udt_catalog", Text),
    ("udt_schema", Text),
    ("udt_name", Text),
    ("is_identity", Text),
    ("identity_generation", Text),
    ("is_updatable", Text),
];

const SCHEMATA: [ColumnSpec; 7] = [
    ("catalog_name", Text),
    ("schema_name", Text),
    ("schema_owner", Text),
    ("default_character_set_catalog", Text),
    ("default_character_set_schema", Text),
    ("default_character_set_name", Text),
    ("sql_path", Text),
];

const TABLE_CONSTRAINTS: [ColumnSpec; 9] = [
    ("constraint_catalog", Text),
    ("constraint_schema", Text),
    ("constraint_name", Text),
    ("table_catalog", Text),
    ("table_schema", Text),
    ("table_name", Text),
    ("constraint_type", Text),
    ("is_deferrable", Text),
    ("initially_deferred", Text),
];

const KEY_COLUMN_USAGE: [ColumnSpec; 9] = [
    ("constraint_catalog", Text),
    ("constraint_schema", Text),
    ("constraint_name", Text),
    ("table_catalog", Text),
    ("table_schema", Text),
    ("table_name", Text),
    ("column_name", Text),
    ("ordinal_position", Int4),
    ("position_in_unique_constraint", Int4),
];

/// One of the views of this file.
pub fn build(snapshot: &CatalogSnapshot, name: &str) -> Option<SystemTable> {
    Some(match name {
        "tables" => tables(snapshot),
        "columns" => columns(snapshot),
        "schemata" => schemata(),
        "table_constraints" => table_constraints(snapshot),
        "key_column_usage" => key_column_usage(snapshot),
        _ => return None,
    })
}

fn tables(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&TABLES);
    for table in snapshot.tables() {
        rows.push(&[
            ("table_catalog", text(DATABASE)),
            ("table_schema", text(&table.schema)),
            ("table_name", text(&table.name)),
            ("table_type", text("BASE TABLE")),
            ("is_insertable_into", text("YES")),
            ("is_typed", text("NO")),
        ]);
    }
    rows
}

fn columns(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&COLUMNS);
    for table in snapshot.tables() {
        for (number, (_, column)) in (1..).zip(table.visible()) {
            let pg_type = column.column_type.pg_type;
            let number_columns = numeric(column.column_type);
            rows.push(&[
                ("table_catalog", text(DATABASE)),
                ("table_schema", text(&table.schema)),
                ("table_name", text(&table.name)),
                ("column_name", text(&column.name)),
                ("ordinal_position", int4(number)),
                ("column_default", column.default.as_ref().map_or(Datum::Null, text)),
                ("is_nullable", text(if column.nullable { "YES" } else { "NO" })),
                ("data_type", text(pg_type.sql_name())),
                ("character_maximum_length", characters(column.column_type, 1)),
                ("character_octet_length", octets(column.column_type)),
                ("numeric_precision", number_columns.0),
                ("numeric_precision_radix", number_columns.1),
                ("numeric_scale", number_columns.2),
                ("datetime_precision", datetime(pg_type)),
                ("udt_catalog", text(DATABASE)),
                ("udt_schema", text("pg_catalog")),
                ("udt_name", text(pg_type.row().name)),
                ("is_identity", text(if column.identity.is_some() { "YES" } else { "NO" })),
                (
                    "identity_generation",
                    match column.identity {
                        None => Datum::Null,
                        Some(Identity::Always) => text("ALWAYS"),
                        Some(Identity::ByDefault) => text("BY DEFAULT"),
                    },
                ),
                ("is_updatable", text("YES")),
            ]);
        }
    }
    rows
}

fn characters(column_type: ColumnType, bytes: i32) -> Datum {
    column_type.max_characters().map_or(Datum::Null, |n| int4(n as i32 * bytes))
}

/// UTF-8 takes up to four bytes a character; text without a limit up to 1 GiB.
fn octets(column_type: ColumnType) -> Datum {
    match column_type.pg_type {
        PgType::Text | PgType::Varchar if column_type.max_characters().is_none() => int4(1 << 30),
        _ => characters(column_type, 4),
    }
}

/// Precision, radix and scale.
fn numeric(column_type: ColumnType) -> (Datum, Datum, Datum) {
    let bits = |precision: i32| (int4(precision), int4(2));
    let ((precision, radix), scale) = match column_type.pg_type {
        PgType::Int2 => (bits(16), int4(0)),
        PgType::Int4 => (bits(32), int4(0)),
        PgType::Int8 => (bits(64), int4(0)),
        PgType::Float4 => (bits(24), Datum::Null),
        PgType::Float8 => (bits(53), Datum::Null),
        PgType::Numeric => match column_type.precision_scale() {
            Some((precision, scale)) => ((int4(i32::from(precision)), int4(10)), int4(i32::from(scale))),
            None => ((Datum::Null, int4(10)), Datum::Null),
        },
        _ => ((Datum::Null, Datum::Null), Datum::Null),
    };
    (precision, radix, scale)
}

fn datetime(pg_type: PgType) -> Datum {
    match pg_type {
        PgType::Date => int4(0),
        PgType::Timestamp | PgType::TimestampTz => int4(6),
        _ => Datum::Null,
    }
}

fn schemata() -> SystemTable {
    let mut rows = SystemTable::new(&SCHEMATA);
    for name in ["information_schema", "pg_catalog", "public"] {
        rows.push(&[("catalog_name", text(DATABASE)), ("schema_name", text(name)), ("schema_owner", text("postgres"))]);
    }
    rows
}

/// The constraints of a table: name, type, positions of a key's columns.
fn keys(table: &Table) -> Vec<(&str, &'static str, Vec<usize>)> {
    let key = table.primary_key.iter().map(|name| (name.as_str(), "PRIMARY KEY", table.key.clone()));
    let unique = table.indexes.iter().filter(|index| index.constraint);
    let unique =
        unique.map(|index| (index.name.as_str(), "UNIQUE", index.columns.iter().map(|column| column.at).collect()));
    key.chain(unique).collect()
}

fn table_constraints(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&TABLE_CONSTRAINTS);
    for table in snapshot.tables() {
        for (name, kind, _) in keys(table) {
            rows.push(&[
                ("constraint_catalog", text(DATABASE)),
                ("constraint_schema", text(&table.schema)),
                ("constraint_name", text(name)),
                ("table_catalog", text(DATABASE)),
                ("table_schema", text(&table.schema)),
                ("table_name", text(&table.name)),
                ("constraint_type", text(kind)),
                ("is_deferrable", text("NO")),
                ("initially_deferred", text("NO")),
            ]);
        }
    }
    rows
}

fn key_column_usage(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&KEY_COLUMN_USAGE);
    for table in snapshot.tables() {
        for (name, _, columns) in keys(table) {
            for (number, at) in (1..).zip(columns) {
                rows.push(&[
                    ("constraint_catalog", text(DATABASE)),
                    ("constraint_schema", text(&table.schema)),
                    ("constraint_name", text(name)),
                    ("table_catalog", text(DATABASE)),
                    ("table_schema", text(&table.schema)),
                    ("table_name", text(&table.name)),
                    ("column_name", text(&table.columns[at].name)),
                    ("ordinal_position", int4(number)),
                ]);
            }
        }
    }
    rows
}
