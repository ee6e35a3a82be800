//! Rows of a system table, made in memory.

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::Schema};
use datafusion::{
    catalog::{MemTable, TableProvider},
    common::Result,
};

use crate::{
    query::failure::external,
    types::{
        Datum, PgType,
        arrow::{self as mapping, ColumnBuilder},
    },
};

/// A column's name and type.
pub type ColumnSpec = (&'static str, PgType);

/// A system table: its columns and its rows.
#[derive(Debug)]
pub struct SystemTable {
    columns: Vec<ColumnSpec>,
    rows: Vec<Vec<Datum>>,
}

impl SystemTable {
    /// Without rows.
    pub fn new(columns: &[ColumnSpec]) -> Self {
        SystemTable { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with these values; columns that are not named are NULL.
    pub fn push(&mut self, values: &[(&str, Datum)]) {
        let value_of = |name: &str| {
            values.iter().find(|(named, _)| *named == name).map_or(Datum::Null, |(_, value)| value.clone())
        };
        debug_assert!(values.iter().all(|(named, _)| self.columns.iter().any(|(name, _)| name == named)));
        self.rows.push(self.columns.iter().map(|(name, _)| value_of(name)).collect());
    }

    /// As DataFusion reads it.
    pub fn provider(self) -> Result<Arc<dyn TableProvider>> {
        let fields = self.columns.iter().map(|(name, pg_type)| mapping::field(name, pg_type.plain(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let mut builders: Vec<ColumnBuilder> =
            self.columns.iter().map(|(_, pg_type)| ColumnBuilder::new(pg_type.plain(), self.rows.len())).collect();
        for row in &self.rows {
            for (builder, datum) in builders.iter_mut().zip(row) {
                builder.push(datum).map_err(external)?;
            }
        }
        let arrays = builders.iter_mut().map(ColumnBuilder::finish).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)?;
        Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
    }
}

/// text
pub fn text(value: impl AsRef<str>) -> Datum {
    Datum::text(value.as_ref())
}
/// oid
pub fn oid(value: u32) -> Datum {
    Datum::Oid(value)
}
/// boolean
pub fn truth(value: bool) -> Datum {
    Datum::Bool(value)
}
/// smallint
pub fn int2(value: i16) -> Datum {
    Datum::Int2(value)
}
/// integer
pub fn int4(value: i32) -> Datum {
    Datum::Int4(value)
}
