//! What a session hands to the protocol: fields, rows, tags.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    error::SqlResult,
    types::{ColumnType, Datum, Format, FormatSettings, arrow::datum_at, binary, text},
};

/// A column of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// The table it is a plain column of; 0 otherwise.
    pub table_oid: u32,
    /// The column's number in that table, from 1; 0 otherwise.
    pub column_id: i16,
    /// Type and modifier.
    pub column_type: ColumnType,
    /// How the portal wants it; text where no portal is bound yet.
    pub format: Format,
}

impl Field {
    /// A column that belongs to no table.
    pub fn computed(name: impl Into<String>, column_type: impl Into<ColumnType>) -> Self {
        Field { name: name.into(), table_oid: 0, column_id: 0, column_type: column_type.into(), format: Format::Text }
    }
    /// PostgreSQL's oid of the type.
    pub fn type_oid(&self) -> u32 {
        self.column_type.pg_type.oid()
    }
    /// `pg_type.typlen`.
    pub fn type_len(&self) -> i16 {
        self.column_type.pg_type.row().len
    }
    /// `atttypmod`.
    pub fn type_mod(&self) -> i32 {
        self.column_type.type_mod
    }
}

/// What CopyInResponse and CopyOutResponse say; the overall format is always text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFormat {
    /// How many columns; each is text.
    pub columns: i16,
}

/// The next thing the client should see.
#[derive(Debug)]
pub enum Step {
    /// RowDescription; only in the simple protocol.
    Fields(Arc<[Field]>),
    /// DataRows.
    Rows(RowBatch),
    /// PortalSuspended: `max_rows` were sent and there may be more.
    Suspended,
    /// CommandComplete with this tag.
    Done(String),
    /// EmptyQueryResponse.
    Empty,
    /// CopyInResponse. The protocol now feeds `Session::copy_data`, `copy_done` or `copy_fail`, then asks for the next step.
    CopyIn(CopyFormat),
    /// CopyOutResponse; [`Step::CopyData`] follow, then [`Step::CopyEnd`].
    CopyOut(CopyFormat),
    /// CopyData: whole lines.
    CopyData(Bytes),
    /// CopyDone; [`Step::Done`] follows.
    CopyEnd,
}

/// Types and settings all rows of a result share.
#[derive(Debug)]
pub struct RowShape {
    /// Of the columns.
    pub types: Vec<ColumnType>,
    /// Of the session, as of the statement's start.
    pub settings: FormatSettings,
}

#[derive(Debug)]
enum RowData {
    /// Row after row.
    Datums(Vec<Datum>),
    Arrow(RecordBatch),
}

/// Some rows of a result.
#[derive(Debug)]
pub struct RowBatch {
    shape: Arc<RowShape>,
    rows: usize,
    data: RowData,
}

impl RowBatch {
    /// `rows` rows of datums, row after row.
    pub fn from_datums(shape: Arc<RowShape>, rows: usize, datums: Vec<Datum>) -> Self {
        debug_assert_eq!(datums.len(), rows * shape.types.len());
        RowBatch { shape, rows, data: RowData::Datums(datums) }
    }
    /// An Arrow batch.
    pub fn from_arrow(shape: Arc<RowShape>, batch: RecordBatch) -> Self {
        RowBatch { shape, rows: batch.num_rows(), data: RowData::Arrow(batch) }
    }
    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows
    }
    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }
    /// How many columns.
    pub fn width(&self) -> usize {
        self.shape.types.len()
    }
    /// The rows from `at` on, taken off: `self` keeps the ones before.
    pub fn split_off(&mut self, at: usize) -> RowBatch {
        let at = at.min(self.rows);
        let rest = self.rows - at;
        self.rows = at;
        let data = match &mut self.data {
            RowData::Datums(datums) => RowData::Datums(datums.split_off(at * self.shape.types.len())),
            RowData::Arrow(batch) => {
                let tail = batch.slice(at, rest);
                *batch = batch.slice(0, at);
                RowData::Arrow(tail)
            }
        };
        RowBatch { shape: Arc::clone(&self.shape), rows: rest, data }
    }
    /// Value of a row (below [`RowBatch::len`]) and column.
    pub fn datum(&self, row: usize, column: usize) -> SqlResult<Datum> {
        match &self.data {
            RowData::Datums(datums) => Ok(datums[row * self.shape.types.len() + column].clone()),
            RowData::Arrow(batch) => datum_at(batch.column(column), row),
        }
    }
    /// Appends a DataRow's body (column count, then length and bytes of every column) for a row below [`RowBatch::len`].
    /// `formats` is empty (all text), of one element (for all columns) or of one for each.
    pub fn encode_row(&self, row: usize, formats: &[Format], out: &mut BytesMut) -> SqlResult<()> {
        let width = self.shape.types.len();
        out.put_i16(width as i16);
        let mut scratch = String::new();
        for column in 0..width {
            let format = match formats {
                [] => Format::Text,
                [one] => *one,
                each => each[column],
            };
            match &self.data {
                RowData::Datums(datums) => {
                    self.encode(&datums[row * width + column], column, format, &mut scratch, out);
                }
                RowData::Arrow(batch) => {
                    let datum = datum_at(batch.column(column), row)?;
                    self.encode(&datum, column, format, &mut scratch, out);
                }
            }
        }
        Ok(())
    }
    fn encode(&self, datum: &Datum, column: usize, format: Format, scratch: &mut String, out: &mut BytesMut) {
        let column_type = self.shape.types[column];
        if datum.is_null() {
            out.put_i32(-1);
        } else if format == Format::Text {
            scratch.clear();
            text::format(datum, column_type, &self.shape.settings, scratch);
            out.put_i32(scratch.len() as i32);
            out.put_slice(scratch.as_bytes());
        } else {
            let at = out.len();
            out.put_i32(0);
            binary::send(datum, column_type, &self.shape.settings, out);
            let len = (out.len() - at - 4) as i32;
            out[at..at + 4].copy_from_slice(&len.to_be_bytes());
        }
    }
}
