//! Keys and values to Arrow batches.

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};
use bytes::Bytes;

use super::schema_of;
use crate::{
    catalog::TableDescriptor,
    codec::TableCodec,
    error::{SqlError, SqlResult},
    types::{ColumnType, Datum, arrow::ColumnBuilder},
};

/// Which columns of which rows: made once for a scan.
#[derive(Debug)]
pub struct RowShape {
    codec: TableCodec,
    /// Positions in the descriptor, in the order of the output.
    columns: Vec<usize>,
    types: Vec<ColumnType>,
    wanted: Vec<bool>,
    schema: SchemaRef,
}

impl RowShape {
    /// `columns` are positions in the table's columns.
    pub fn new(table: &TableDescriptor, columns: Vec<usize>) -> Self {
        let mut wanted = vec![false; table.columns.len()];
        columns.iter().for_each(|at| wanted[*at] = true);
        RowShape {
            codec: TableCodec::new(table),
            types: columns.iter().map(|at| table.columns[*at].column_type).collect(),
            schema: Arc::new(schema_of(table, &columns)),
            wanted,
            columns,
        }
    }

    /// Of the batches.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Starts a batch.
    pub fn builder(self: &Arc<Self>) -> RowBuilder {
        RowBuilder {
            builders: self.types.iter().map(|column_type| ColumnBuilder::new(*column_type, 0)).collect(),
            row: vec![Datum::Null; self.wanted.len()],
            rows: 0,
            shape: Arc::clone(self),
        }
    }
}

/// Collects rows into a batch.
pub struct RowBuilder {
    shape: Arc<RowShape>,
    builders: Vec<ColumnBuilder>,
    row: Vec<Datum>,
    rows: usize,
}

impl RowBuilder {
    /// Decodes a row and appends it; XX001 when it does not decode.
    pub fn push(&mut self, key: &[u8], value: &Bytes) -> SqlResult<()> {
        self.rows += 1;
        if self.builders.is_empty() {
            return Ok(());
        }
        self.row.fill(Datum::Null);
        self.shape.codec.decode_into(key, value, Some(&self.shape.wanted), &mut self.row)?;
        for (builder, at) in self.builders.iter_mut().zip(&self.shape.columns) {
            builder.push(&self.row[*at])?;
        }
        Ok(())
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The batch.
    pub fn finish(mut self) -> SqlResult<RecordBatch> {
        let columns = self.builders.iter_mut().map(ColumnBuilder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.shape.schema), columns, &options)
            .map_err(|error| SqlError::internal(error.to_string()))
    }
}
