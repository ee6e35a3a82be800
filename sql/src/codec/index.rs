//! Entries of secondary indexes, and what keys of either kind begin with. PURE.
//!
//! ```text
//!   key    keyspace ‖ storage id ‖ index id ‖ the index's columns ‖ the row key's columns      others may have the same values
//!          keyspace ‖ storage id ‖ index id ‖ the index's columns                              none may
//!   value  version u8                          and in the second case the row key's columns
//! ```
//!
//! Entries of a unique index are of the second form, but for rows with a NULL where NULLs are distinct, and but for an index whose
//! constraint may be deferred: rows may have the same values for a while. Columns that may be NULL have a byte more than in a
//! primary key (see [`super::key`]).
//!
//! ```text
//!   guard  keyspace ‖ storage id ‖ index id ‖ 03 ‖ the index's columns     beside the entries of an index that may be deferred: never has
//!                                                                          a value, is locked by who looks how many rows have these
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use proto::{
    KeyRange,
    keyspace::{PREFIX_LEN, SQL_KEYSPACE, index_prefix, index_range},
};

use super::{
    key::{self, KeyColumn},
    table::bounded,
};
use crate::{
    catalog::{
        TableDescriptor,
        descriptor::{IndexColumn, IndexDescriptor, PRIMARY_INDEX},
    },
    error::{SqlError, SqlResult, SqlState},
    types::Datum,
};

/// The format of an entry's value.
const VERSION: u8 = 1;
/// What a guard has before its columns, of which the first begins with another byte.
const GUARD: u8 = 3;

/// What the keys of an index consist of, up to where the row key may follow.
#[derive(Clone, Debug)]
pub struct KeyForm {
    storage_id: u32,
    index: u32,
    columns: Vec<(usize, KeyColumn)>,
}

impl KeyForm {
    /// The primary key's, or the row id's.
    pub fn primary(table: &TableDescriptor) -> Self {
        let column = |at: &usize| (*at, KeyColumn::primary(table.columns[*at].column_type.pg_type));
        KeyForm { storage_id: table.storage_id, index: PRIMARY_INDEX, columns: table.key.iter().map(column).collect() }
    }

    /// A secondary index's.
    pub fn secondary(table: &TableDescriptor, index: &IndexDescriptor) -> Self {
        let column = |column: &IndexColumn| {
            let IndexColumn { at, descending, nulls_first } = *column;
            let pg_type = table.columns[at].column_type.pg_type;
            // A column's NOT NULL may change, and its keys must not.
            (at, KeyColumn { pg_type, nullable: true, descending, nulls_first })
        };
        KeyForm { storage_id: table.storage_id, index: index.id, columns: index.columns.iter().map(column).collect() }
    }

    /// Its columns: positions in the table's, and how they are encoded.
    pub fn columns(&self) -> &[(usize, KeyColumn)] {
        &self.columns
    }
    /// Position in the table of the column at a place of the key.
    pub fn position(&self, place: usize) -> usize {
        self.columns[place].0
    }
    /// It is the table's own.
    pub fn is_primary(&self) -> bool {
        self.index == PRIMARY_INDEX
    }
    /// What follows in a key, or in a guard, from the first column's value on.
    pub fn values_in<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        match key.get(PREFIX_LEN..).unwrap_or_default() {
            [GUARD, values @ ..] if !self.is_primary() => values,
            values => values,
        }
    }
    /// All keys.
    pub fn range(&self) -> KeyRange {
        index_range(SQL_KEYSPACE, self.storage_id, self.index)
    }

    /// The key, or the beginning of keys, with these values of the first columns. 54000 when it is too long.
    pub fn key_of(&self, values: &[Datum]) -> SqlResult<Bytes> {
        let mut out = BytesMut::from(&index_prefix(SQL_KEYSPACE, self.storage_id, self.index)[..]);
        for (value, (_, column)) in values.iter().zip(&self.columns) {
            key::encode(value, *column, &mut out);
        }
        bounded(out)
    }
}

/// An index's entry for one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// No other row may have this key.
    pub unique: bool,
}

/// Makes and reads the entries of one index.
#[derive(Clone, Debug)]
pub struct IndexCodec {
    /// The index.
    pub descriptor: IndexDescriptor,
    form: KeyForm,
}

impl IndexCodec {
    /// For an index of a table.
    pub fn new(table: &TableDescriptor, index: &IndexDescriptor) -> Self {
        IndexCodec { form: KeyForm::secondary(table, index), descriptor: index.clone() }
    }

    /// What its keys begin with.
    pub fn form(&self) -> &KeyForm {
        &self.form
    }

    /// The entry of a row under `row_key`. 54000 when its key is too long.
    pub fn entry(&self, row: &[Datum], row_key: &[u8]) -> SqlResult<Entry> {
        let mut key = BytesMut::from(&index_prefix(SQL_KEYSPACE, self.form.storage_id, self.form.index)[..]);
        let mut null = false;
        for (at, column) in &self.form.columns {
            null |= row[*at].is_null();
            key::encode(&row[*at], *column, &mut key);
        }
        let unique = self.descriptor.is_strict() && !(null && self.descriptor.nulls_distinct);
        let suffix = row_key.get(PREFIX_LEN..).unwrap_or_default();
        let mut value = BytesMut::with_capacity(1 + suffix.len());
        value.put_u8(VERSION);
        if unique { &mut value } else { &mut key }.put_slice(suffix);
        Ok(Entry { key: bounded(key)?, value: value.freeze(), unique })
    }

    /// The guard of the values that `key` ends with, as [`KeyForm::key_of`] writes them. 54000 when it is too long.
    pub fn guard(&self, key: &[u8]) -> SqlResult<Bytes> {
        let (prefix, values) = key.split_at(PREFIX_LEN.min(key.len()));
        let mut guard = BytesMut::with_capacity(key.len() + 1);
        guard.put_slice(prefix);
        guard.put_u8(GUARD);
        guard.put_slice(values);
        bounded(guard)
    }

    /// The key of the row that an entry is of; XX001 for what is no entry.
    pub fn row_key(&self, key: &[u8], value: &[u8]) -> SqlResult<Bytes> {
        let (version, suffix) = value.split_first().ok_or_else(|| corrupt("it is empty"))?;
        if *version != VERSION {
            return Err(corrupt(&format!("its format is {version}, this build knows {VERSION}")));
        }
        let mut rest = suffix;
        if rest.is_empty() {
            rest = key.get(PREFIX_LEN..).unwrap_or_default();
            for (_, column) in &self.form.columns {
                key::decode(&mut rest, *column)?;
            }
        }
        let mut row = BytesMut::from(&index_prefix(SQL_KEYSPACE, self.form.storage_id, PRIMARY_INDEX)[..]);
        row.put_slice(rest);
        Ok(row.freeze())
    }

    /// XX001 for an entry whose row is not there.
    pub fn dangling(&self) -> SqlError {
        let name = &self.descriptor.name;
        SqlError::new(SqlState::DATA_CORRUPTED, format!("index \"{name}\" has an entry without a row"))
    }

    /// The values of its columns, in the index's order.
    pub fn values(&self, key: &[u8]) -> SqlResult<Vec<Datum>> {
        let mut rest = key.get(PREFIX_LEN..).unwrap_or_default();
        self.form.columns.iter().map(|(_, column)| key::decode(&mut rest, *column)).collect()
    }
}

fn corrupt(what: &str) -> SqlError {
    SqlError::new(SqlState::DATA_CORRUPTED, format!("an index entry does not decode: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{ColumnDescriptor, foreign_key::Deferral},
        codec::TableCodec,
        types::PgType,
    };

    fn table(unique: bool) -> TableDescriptor {
        let index = IndexDescriptor {
            id: 7,
            name: "i".into(),
            columns: vec![
                IndexColumn { at: 1, descending: true, nulls_first: true },
                IndexColumn { at: 2, descending: false, nulls_first: false },
            ],
            unique,
            nulls_distinct: true,
            constraint: false,
            primary: false,
            deferral: Deferral::Never,
            public: true,
        };
        let column = |id: u32, pg_type: PgType| ColumnDescriptor::new(id, format!("c{id}"), pg_type.plain());
        let columns = vec![column(1, PgType::Int8), column(2, PgType::Int4), column(3, PgType::Text)];
        TableDescriptor { storage_id: 101, indexes: vec![index], ..TableDescriptor::new(100, "t", columns, vec![0]) }
    }

    #[test]
    fn entries_lead_to_their_rows() {
        for unique in [false, true] {
            let table = table(unique);
            let (rows, index) = (TableCodec::new(&table), IndexCodec::new(&table, &table.indexes[0]));
            for values in [[Datum::Int4(5), Datum::text("x")], [Datum::Null, Datum::text("")]] {
                let row = [vec![Datum::Int8(-3)], values.to_vec()].concat();
                let key = rows.key(&row).unwrap();
                let entry = index.entry(&row, &key).unwrap();
                assert_eq!(entry.unique, unique && !values[0].is_null());
                assert_eq!(index.row_key(&entry.key, &entry.value).unwrap(), key);
                assert_eq!(index.values(&entry.key).unwrap(), values);
                assert!(index.form().range().contains(&entry.key) && !table.rows().contains(&entry.key));
                assert!(entry.key.starts_with(&index.form().key_of(&values[..1]).unwrap()));
                // The guard is no beginning of an entry, and lies in the index.
                let all = index.form().key_of(&values).unwrap();
                let guard = index.guard(&all).unwrap();
                assert!(index.form().range().contains(&guard) && guard > entry.key && !entry.key.starts_with(&guard));
                assert!(index.values(&guard).is_err() && guard.ends_with(&all[PREFIX_LEN..]));
            }
            assert!(index.row_key(b"", b"").is_err() && index.row_key(b"x", &[VERSION]).is_err());
        }
    }
}
