//! Sequences and what hangs on columns: pg_sequence, pg_sequences, pg_depend.

use super::{
    oids,
    table::{ColumnSpec, SystemTable, int4, int8, oid, text, truth},
};
use crate::{
    catalog::{CatalogSnapshot, SequenceDescriptor, TableDescriptor},
    types::PgType::{Bool, Char, Int4, Int8, Name, Oid, Text},
};

const PG_SEQUENCE: [ColumnSpec; 8] = [
    ("seqrelid", Oid),
    ("seqtypid", Oid),
    ("seqstart", Int8),
    ("seqincrement", Int8),
    ("seqmax", Int8),
    ("seqmin", Int8),
    ("seqcache", Int8),
    ("seqcycle", Bool),
];

const PG_SEQUENCES: [ColumnSpec; 11] = [
    ("schemaname", Name),
    ("sequencename", Name),
    ("sequenceowner", Name),
    ("data_type", Text),
    ("start_value", Int8),
    ("min_value", Int8),
    ("max_value", Int8),
    ("increment_by", Int8),
    ("cycle", Bool),
    ("cache_size", Int8),
    ("last_value", Int8),
];

const PG_DEPEND: [ColumnSpec; 7] = [
    ("classid", Oid),
    ("objid", Oid),
    ("objsubid", Int4),
    ("refclassid", Oid),
    ("refobjid", Oid),
    ("refobjsubid", Int4),
    ("deptype", Char),
];

/// One of the tables of this file.
pub fn build(snapshot: &CatalogSnapshot, name: &str) -> Option<SystemTable> {
    Some(match name {
        "pg_sequence" => pg_sequence(snapshot),
        "pg_sequences" => pg_sequences(snapshot),
        "pg_depend" => pg_depend(snapshot),
        _ => return None,
    })
}

fn pg_sequence(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_SEQUENCE);
    for sequence in snapshot.sequences() {
        let options = sequence.options;
        rows.push(&[
            ("seqrelid", oid(sequence.id)),
            ("seqtypid", oid(sequence.pg_type.oid())),
            ("seqstart", int8(options.start)),
            ("seqincrement", int8(options.increment)),
            ("seqmax", int8(options.max)),
            ("seqmin", int8(options.min)),
            ("seqcache", int8(options.cache)),
            ("seqcycle", truth(options.cycle)),
        ]);
    }
    rows
}

/// `last_value` is NULL: the catalog does not know it.
fn pg_sequences(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_SEQUENCES);
    for sequence in snapshot.sequences() {
        let options = sequence.options;
        rows.push(&[
            ("schemaname", text(&sequence.schema)),
            ("sequencename", text(&sequence.name)),
            ("sequenceowner", text("postgres")),
            ("data_type", text(sequence.pg_type.sql_name())),
            ("start_value", int8(options.start)),
            ("min_value", int8(options.min)),
            ("max_value", int8(options.max)),
            ("increment_by", int8(options.increment)),
            ("cycle", truth(options.cycle)),
            ("cache_size", int8(options.cache)),
        ]);
    }
    rows
}

/// Whose column a sequence goes with: `i` for an identity column's, `a` for others.
fn pg_depend(snapshot: &CatalogSnapshot) -> SystemTable {
    let mut rows = SystemTable::new(&PG_DEPEND);
    for sequence in snapshot.sequences() {
        let Some(owner) = sequence.owner else { continue };
        let Some(table) = snapshot.by_id(owner.table) else { continue };
        rows.push(&[
            ("classid", oid(oids::PG_CLASS)),
            ("objid", oid(sequence.id)),
            ("objsubid", int4(0)),
            ("refclassid", oid(oids::PG_CLASS)),
            ("refobjid", oid(owner.table)),
            ("refobjsubid", int4(owner.column as i32)),
            ("deptype", text(if is_identity(table, sequence) { "i" } else { "a" })),
        ]);
    }
    rows
}

fn is_identity(table: &TableDescriptor, sequence: &SequenceDescriptor) -> bool {
    table.columns.iter().any(|column| column.sequence == Some(sequence.id) && column.identity.is_some())
}
