//! Descriptors as bytes: the values of the system tables. PURE.
//!
//! Protobuf records behind a version byte, so that fields can be added.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use super::descriptor::{ColumnDescriptor, Table, TableDescriptor};
use crate::{
    error::{SqlError, SqlResult, SqlState},
    types::{ColumnType, PgType},
};

const VERSION: u8 = 1;

#[derive(Clone, PartialEq, Message)]
struct ColumnRecord {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint32, tag = "3")]
    type_oid: u32,
    #[prost(sint32, tag = "4")]
    type_mod: i32,
    #[prost(bool, tag = "5")]
    nullable: bool,
    #[prost(string, optional, tag = "6")]
    default: Option<String>,
    #[prost(bool, tag = "7")]
    hidden: bool,
}

#[derive(Clone, PartialEq, Message)]
struct TableRecord {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(uint32, tag = "2")]
    storage_id: u32,
    #[prost(string, tag = "3")]
    schema: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(uint64, tag = "5")]
    version: u64,
    #[prost(message, repeated, tag = "6")]
    columns: Vec<ColumnRecord>,
    #[prost(uint32, repeated, tag = "7")]
    key: Vec<u32>,
    #[prost(string, optional, tag = "8")]
    primary_key: Option<String>,
    #[prost(uint32, tag = "9")]
    next_column_id: u32,
    #[prost(uint64, tag = "10")]
    writes_fenced_until: u64,
}

/// A descriptor's bytes.
pub fn encode(table: &TableDescriptor) -> Bytes {
    let column = |column: &ColumnDescriptor| ColumnRecord {
        id: column.id,
        name: column.name.clone(),
        type_oid: column.column_type.pg_type.oid(),
        type_mod: column.column_type.type_mod,
        nullable: column.nullable,
        default: column.default.clone(),
        hidden: column.hidden,
    };
    let record = TableRecord {
        id: table.id,
        storage_id: table.storage_id,
        schema: table.schema.clone(),
        name: table.name.clone(),
        version: table.version,
        columns: table.columns.iter().map(column).collect(),
        key: table.key.iter().map(|at| *at as u32).collect(),
        primary_key: table.primary_key.clone(),
        next_column_id: table.next_column_id,
        writes_fenced_until: table.writes_fenced_until,
    };
    let mut out = BytesMut::with_capacity(1 + record.encoded_len());
    out.put_u8(VERSION);
    record.encode(&mut out).expect("a BytesMut grows");
    out.freeze()
}

/// The reverse; XX001 for bytes that are no descriptor of this version.
pub fn decode(bytes: &[u8]) -> SqlResult<Table> {
    let corrupt =
        |why: String| SqlError::new(SqlState::DATA_CORRUPTED, format!("a table descriptor does not decode: {why}"));
    let (version, body) = bytes.split_first().ok_or_else(|| corrupt("it is empty".into()))?;
    if *version != VERSION {
        return Err(corrupt(format!("its format is {version}, this build knows {VERSION}")));
    }
    let record = TableRecord::decode(body).map_err(|e| corrupt(e.to_string()))?;
    let column = |column: ColumnRecord| {
        let pg_type = PgType::from_oid(column.type_oid)
            .ok_or_else(|| corrupt(format!("column {} has type oid {}", column.name, column.type_oid)))?;
        Ok(ColumnDescriptor {
            id: column.id,
            name: column.name,
            column_type: ColumnType { pg_type, type_mod: column.type_mod },
            nullable: column.nullable,
            default: column.default,
            hidden: column.hidden,
        })
    };
    let columns: Vec<ColumnDescriptor> = record.columns.into_iter().map(column).collect::<SqlResult<_>>()?;
    let key: Vec<usize> = record.key.into_iter().map(|at| at as usize).collect();
    if key.is_empty() || key.iter().any(|at| *at >= columns.len()) {
        return Err(corrupt("its key names no column".into()));
    }
    Ok(Arc::new(TableDescriptor {
        id: record.id,
        storage_id: record.storage_id,
        schema: record.schema,
        name: record.name,
        version: record.version,
        columns,
        key,
        primary_key: record.primary_key,
        next_column_id: record.next_column_id,
        writes_fenced_until: record.writes_fenced_until,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_come_back() {
        let table = TableDescriptor {
            id: 100,
            storage_id: 105,
            schema: "public".into(),
            name: "t".into(),
            version: 3,
            columns: vec![ColumnDescriptor {
                id: 1,
                name: "k".into(),
                column_type: ColumnType::numeric(8, 2).unwrap(),
                nullable: false,
                default: Some("1 + 1".into()),
                hidden: false,
            }],
            key: vec![0],
            primary_key: Some("t_pkey".into()),
            next_column_id: 2,
            writes_fenced_until: 9,
        };
        let bytes = encode(&table);
        assert_eq!(*decode(&bytes).unwrap(), table);
        assert!(decode(&bytes[..bytes.len() - 3]).is_err());
        assert!(decode(b"").is_err() && decode(&[9]).is_err());
    }
}
