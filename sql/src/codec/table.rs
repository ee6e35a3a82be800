//! Rows of one table to keys and values and back. PURE.

use bytes::{BufMut, Bytes, BytesMut};
use proto::keyspace::{PREFIX_LEN, SQL_KEYSPACE};

use super::{key, key::KeyColumn, row};
use crate::{
    catalog::{TableDescriptor, descriptor::PRIMARY_INDEX},
    error::{SqlError, SqlResult, SqlState},
    types::{Datum, PgType},
};

/// A column as the codec sees it.
#[derive(Clone, Copy, Debug)]
struct Column {
    id: u32,
    pg_type: PgType,
    scale: Option<u8>,
    /// Read from the key, not from the value.
    in_key: bool,
}

/// Encodes and decodes the rows of one version of a table. Rows are slices of datums in the descriptor's column order.
#[derive(Clone, Debug)]
pub struct TableCodec {
    storage_id: u32,
    columns: Vec<Column>,
    key: Vec<(usize, KeyColumn)>,
    /// Positions of the columns in the value, by column id.
    by_id: Vec<usize>,
}

impl TableCodec {
    /// For a table.
    pub fn new(table: &TableDescriptor) -> Self {
        let column = |(at, column): (usize, &crate::catalog::ColumnDescriptor)| {
            let pg_type = column.column_type.pg_type;
            // −0 and 0 share a key, so the key does not give floats back exactly.
            let exact = !matches!(pg_type, PgType::Float4 | PgType::Float8);
            let scale = column.column_type.precision_scale().map(|(_, scale)| scale);
            Column { id: column.id, pg_type, scale, in_key: exact && table.key.contains(&at) }
        };
        let columns: Vec<Column> = table.columns.iter().enumerate().map(column).collect();
        let key = table.key.iter().map(|at| (*at, KeyColumn::primary(columns[*at].pg_type))).collect();
        let mut by_id: Vec<usize> = (0..columns.len()).filter(|at| !columns[*at].in_key).collect();
        by_id.sort_by_key(|at| columns[*at].id);
        TableCodec { storage_id: table.storage_id, columns, key, by_id }
    }

    fn prefix(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(PREFIX_LEN + self.key.len() * 9);
        out.put_u32(SQL_KEYSPACE);
        out.put_u32(self.storage_id);
        out.put_u32(PRIMARY_INDEX);
        out
    }

    /// The key of a row, which must have no NULL in its key columns. 54000 when it is too long.
    pub fn key(&self, row: &[Datum]) -> SqlResult<Bytes> {
        let mut out = self.prefix();
        for (at, column) in &self.key {
            key::encode(&row[*at], *column, &mut out);
        }
        bounded(out)
    }

    /// The key, or the beginning of keys, with these values of the first key columns.
    pub fn key_of(&self, values: &[Datum]) -> SqlResult<Bytes> {
        let mut out = self.prefix();
        for (value, (_, column)) in values.iter().zip(&self.key) {
            key::encode(value, *column, &mut out);
        }
        bounded(out)
    }

    /// The value of a row. 54000 when it is too long.
    pub fn value(&self, row: &[Datum]) -> SqlResult<Bytes> {
        let mut out = BytesMut::with_capacity(16 + row.len() * 8);
        row::start(&mut out);
        for at in &self.by_id {
            row::push(self.columns[*at].id, &row[*at], &mut out);
        }
        if out.len() > row::MAX_ROW_BYTES {
            return Err(SqlError::new(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!("row is too big: size {}, maximum size {}", out.len(), row::MAX_ROW_BYTES),
            ));
        }
        Ok(out.freeze())
    }

    /// The whole row.
    pub fn decode(&self, key: &[u8], value: &Bytes) -> SqlResult<Vec<Datum>> {
        let mut row = vec![Datum::Null; self.columns.len()];
        self.decode_into(key, value, None, &mut row)?;
        Ok(row)
    }

    /// Decodes into `row` (one datum for each column of the table, NULL before); columns that `wanted` leaves out stay as they are.
    pub fn decode_into(&self, key: &[u8], value: &Bytes, wanted: Option<&[bool]>, row: &mut [Datum]) -> SqlResult<()> {
        let is_wanted = |at: usize| wanted.is_none_or(|wanted| wanted[at]);
        if self.key.iter().any(|(at, _)| is_wanted(*at)) {
            self.decode_key_into(key, is_wanted, row)?;
        }
        let mut fields = row::Fields::new(value)?;
        let mut expected = self.by_id.iter().copied().peekable();
        while let Some(header) = fields.next_header()? {
            while expected.next_if(|at| self.columns[*at].id < header.column_id).is_some() {}
            match expected.next_if(|at| self.columns[*at].id == header.column_id) {
                Some(at) if is_wanted(at) => row[at] = fields.datum(&header, self.columns[at].pg_type)?,
                _ => fields.skip(&header)?,
            }
        }
        Ok(())
    }

    /// A row of which only the key's columns are known; the others are NULL.
    pub fn decode_key(&self, key: &[u8]) -> SqlResult<Vec<Datum>> {
        let mut row = vec![Datum::Null; self.columns.len()];
        self.decode_key_into(key, |_| true, &mut row)?;
        Ok(row)
    }

    fn decode_key_into(&self, key: &[u8], is_wanted: impl Fn(usize) -> bool, row: &mut [Datum]) -> SqlResult<()> {
        let mut rest = key.get(PREFIX_LEN..).unwrap_or_default();
        for (at, column) in &self.key {
            let datum = key::decode(&mut rest, *column)?;
            if is_wanted(*at) {
                row[*at] = self.rescaled(*at, datum)?;
            }
        }
        Ok(())
    }

    /// Keys hold numerics without their trailing zeros.
    fn rescaled(&self, at: usize, datum: Datum) -> SqlResult<Datum> {
        match (datum, self.columns[at].scale) {
            (Datum::Numeric(value), Some(scale)) => value.rescale(scale).map(Datum::Numeric),
            (datum, _) => Ok(datum),
        }
    }
}

/// 54000 for a key that is too long.
pub(super) fn bounded(key: BytesMut) -> SqlResult<Bytes> {
    if key.len() > key::MAX_KEY_BYTES {
        return Err(SqlError::new(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("key is too long: size {}, maximum size {}", key.len(), key::MAX_KEY_BYTES),
        ));
    }
    Ok(key.freeze())
}
