//! The standard's view of tables and columns.

use super::table::{ColumnSpec, SystemTable, int4, text};
use crate::{
    catalog::{
        CatalogSnapshot, ForeignKeyDescriptor, Identity, Table, descriptor::IndexDescriptor, foreign_key::Deferral,
    },
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

const REFERENTIAL_CONSTRAINTS: [ColumnSpec; 9] = [
    ("constraint_catalog", Text),
    ("constraint_schema", Text),
    ("constraint_name", Text),
    ("unique_constraint_catalog", Text),
    ("unique_constraint_schema", Text),
    ("unique_constraint_name", Text),
    ("match_option", Text),
    ("update_rule", Text),
    ("delete_rule", Text),
];

const CONSTRAINT_COLUMN_USAGE: [ColumnSpec; 7] = [
    ("table_catalog", Text),
    ("table_schema", Text),
    ("table_name", Text),
    ("column_name", Text),
    ("constraint_catalog", Text),
    ("constraint_schema", Text),
    ("constraint_name", Text),
];

/// One of the views of this file.
pub fn build(snapshot: &CatalogSnapshot, name: &str) -> Option<SystemTable> {
    Some(match name {
        "tables" => tables(snapshot),
        "columns" => columns(snapshot),
        "schemata" => schemata(),
        "table_constraints" => table_constraints(snapshot),
        "key_column_usage" => key_column_usage(snapshot),
        "referential_constraints" => referential_constraints(snapshot),
        "constraint_column_usage" => constraint_column_usage(snapshot),
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

/// A constraint of a table on some of its columns.
struct Constraint<'a> {
    name: &'a str,
    kind: &'static str,
    columns: Vec<usize>,
    deferral: Deferral,
    foreign: Option<&'a ForeignKeyDescriptor>,
}

fn constraints(table: &Table) -> Vec<Constraint<'_>> {
    let plain = |name, kind, columns, deferral| Constraint { name, kind, columns, deferral, foreign: None };
    let key = table.primary_key.iter();
    let key = key.map(|name| plain(name.as_str(), "PRIMARY KEY", table.key.clone(), Deferral::Never));
    let unique = table.indexes.iter().filter(|index| index.constraint);
    let columns = |index: &IndexDescriptor| index.columns.iter().map(|column| column.at).collect();
    let kind = |index: &IndexDescriptor| if index.primary { "PRIMARY KEY" } else { "UNIQUE" };
    let unique = unique.map(|index| plain(index.name.as_str(), kind(index), columns(index), index.deferral));
    let foreign = table.foreign_keys.iter().map(|key| Constraint {
        name: &key.name,
        kind: "FOREIGN KEY",
        columns: key.columns.clone(),
        deferral: key.deferral,
        foreign: Some(key),
    });
    key.chain(unique).chain(foreign).collect()
}

fn yes(truth: bool) -> Datum {
    text(if truth { "YES" } else { "NO" })
}

/// The unique constraint that a foreign key leans on: its name, and its columns. An index without a constraint has no name here.
fn leant_on<'a>(parent: &'a Table, key: &ForeignKeyDescriptor) -> (Option<&'a str>, Vec<usize>) {
    match parent.indexes.iter().find(|index| index.id == key.index) {
        Some(index) => {
            let name = index.constraint.then_some(index.name.as_str());
            (name, index.columns.iter().map(|column| column.at).collect())
        }
        None => (parent.primary_key.as_deref(), parent.key.clone()),
    }
}

fn referential_constraints(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&REFERENTIAL_CONSTRAINTS);
    for (table, key) in snapshot.tables().flat_map(|table| table.foreign_keys.iter().map(move |key| (table, key))) {
        let Some(parent) = snapshot.by_id(key.parent) else { continue };
        let (unique, _) = leant_on(parent, key);
        let of_unique = |value: &str| unique.map_or(Datum::Null, |_| text(value));
        rows.push(&[
            ("constraint_catalog", text(DATABASE)),
            ("constraint_schema", text(&table.schema)),
            ("constraint_name", text(&key.name)),
            ("unique_constraint_catalog", of_unique(DATABASE)),
            ("unique_constraint_schema", of_unique(&parent.schema)),
            ("unique_constraint_name", unique.map_or(Datum::Null, text)),
            ("match_option", text(if key.match_full { "FULL" } else { "NONE" })),
            ("update_rule", text(key.on_update.words())),
            ("delete_rule", text(key.on_delete.words())),
        ]);
    }
    rows
}

/// For a foreign key the columns that it references.
fn constraint_column_usage(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&CONSTRAINT_COLUMN_USAGE);
    for table in snapshot.tables() {
        for Constraint { name, columns, foreign, .. } in constraints(table) {
            let (used, columns) = match foreign {
                None => (Some(table), columns),
                Some(key) => (snapshot.by_id(key.parent), key.referenced.clone()),
            };
            let Some(used) = used else { continue };
            for at in columns {
                rows.push(&[
                    ("table_catalog", text(DATABASE)),
                    ("table_schema", text(&used.schema)),
                    ("table_name", text(&used.name)),
                    ("column_name", text(&used.columns[at].name)),
                    ("constraint_catalog", text(DATABASE)),
                    ("constraint_schema", text(&table.schema)),
                    ("constraint_name", text(name)),
                ]);
            }
        }
    }
    rows
}

fn table_constraints(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&TABLE_CONSTRAINTS);
    for table in snapshot.tables() {
        for Constraint { name, kind, deferral, .. } in constraints(table) {
            rows.push(&[
                ("constraint_catalog", text(DATABASE)),
                ("constraint_schema", text(&table.schema)),
                ("constraint_name", text(name)),
                ("table_catalog", text(DATABASE)),
                ("table_schema", text(&table.schema)),
                ("table_name", text(&table.name)),
                ("constraint_type", text(kind)),
                ("is_deferrable", yes(deferral != Deferral::Never)),
                ("initially_deferred", yes(deferral == Deferral::Deferred)),
            ]);
        }
    }
    rows
}

fn key_column_usage(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&KEY_COLUMN_USAGE);
    for table in snapshot.tables() {
        for Constraint { name, columns, foreign, .. } in constraints(table) {
            let parent = foreign.and_then(|key| Some((key, snapshot.by_id(key.parent)?)));
            let unique = parent.map(|(key, parent)| (key, leant_on(parent, key).1));
            for (place, at) in columns.into_iter().enumerate() {
                let number = place as i32 + 1;
                let in_unique = unique
                    .as_ref()
                    .and_then(|(key, columns)| columns.iter().position(|column| *column == key.referenced[place]));
                rows.push(&[
                    ("constraint_catalog", text(DATABASE)),
                    ("constraint_schema", text(&table.schema)),
                    ("constraint_name", text(name)),
                    ("table_catalog", text(DATABASE)),
                    ("table_schema", text(&table.schema)),
                    ("table_name", text(&table.name)),
                    ("column_name", text(&table.columns[at].name)),
                    ("ordinal_position", int4(number)),
                    ("position_in_unique_constraint", in_unique.map_or(Datum::Null, |at| int4(at as i32 + 1))),
                ]);
            }
        }
    }
    rows
}
