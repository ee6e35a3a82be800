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

    /// Its columns, as DataFusion has them.
    pub fn schema(&self) -> Arc<Schema> {
        let fields = self.columns.iter().map(|(name, pg_type)| mapping::field(name, pg_type.plain(), true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// Its rows.
    pub fn batch(&self) -> Result<RecordBatch> {
        let mut builders: Vec<ColumnBuilder> =
            self.columns.iter().map(|(_, pg_type)| ColumnBuilder::new(pg_type.plain(), self.rows.len())).collect();
        for row in &self.rows {
            for (builder, datum) in builders.iter_mut().zip(row) {
                builder.push(datum).map_err(external)?;
            }
        }
        let arrays = builders.iter_mut().map(ColumnBuilder::finish).collect();
        Ok(RecordBatch::try_new(self.schema(), arrays)?)
    }

    /// As DataFusion reads it.
    pub fn provider(self) -> Result<Arc<dyn TableProvider>> {
        let batch = self.batch()?;
        Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
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
/// bigint
pub fn int8(value: i64) -> Datum {
    Datum::Int8(value)
}
/// integer
pub fn int4(value: i32) -> Datum {
    Datum::Int4(value)
}
