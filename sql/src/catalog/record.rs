//! Descriptors as bytes: the values of the system tables. PURE.
//!
//! Protobuf records behind a version byte, so that fields can be added.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use super::{
    descriptor::{CheckDescriptor, ColumnDescriptor, Identity, IndexColumn, IndexDescriptor, Table, TableDescriptor},
    foreign_key::{Deferral, ForeignKeyRecord},
    sequence::{Options, Owner, Sequence, SequenceDescriptor},
};
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
    #[prost(uint32, tag = "8")]
    sequence: u32,
    #[prost(uint32, tag = "9")]
    identity: u32,
}

/// In [`ColumnRecord::identity`]; 0 is no identity column.
const ALWAYS: u32 = 1;
const BY_DEFAULT: u32 = 2;

#[derive(Clone, PartialEq, Message)]
struct SequenceRecord {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(uint32, tag = "2")]
    value_id: u32,
    #[prost(string, tag = "3")]
    schema: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(uint64, tag = "5")]
    version: u64,
    #[prost(uint32, tag = "6")]
    type_oid: u32,
    #[prost(sint64, tag = "7")]
    start: i64,
    #[prost(sint64, tag = "8")]
    increment: i64,
    #[prost(sint64, tag = "9")]
    min: i64,
    #[prost(sint64, tag = "10")]
    max: i64,
    #[prost(sint64, tag = "11")]
    cache: i64,
    #[prost(bool, tag = "12")]
    cycle: bool,
    #[prost(sint64, tag = "13")]
    first: i64,
    #[prost(uint32, tag = "14")]
    owner_table: u32,
    #[prost(uint32, tag = "15")]
    owner_column: u32,
}

/// Tag 10 was a time until which writes were refused.
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
    #[prost(message, repeated, tag = "11")]
    indexes: Vec<IndexRecord>,
    #[prost(message, repeated, tag = "12")]
    checks: Vec<CheckRecord>,
    #[prost(message, repeated, tag = "13")]
    foreign_keys: Vec<ForeignKeyRecord>,
    #[prost(uint32, repeated, tag = "14")]
    referrers: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct CheckRecord {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    expr: String,
}

#[derive(Clone, PartialEq, Message)]
struct IndexRecord {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "3")]
    columns: Vec<IndexColumnRecord>,
    #[prost(bool, tag = "4")]
    unique: bool,
    #[prost(bool, tag = "5")]
    nulls_distinct: bool,
    #[prost(bool, tag = "6")]
    constraint: bool,
    #[prost(bool, tag = "7")]
    public: bool,
    #[prost(bool, tag = "8")]
    primary: bool,
    #[prost(uint32, tag = "9")]
    deferral: u32,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct IndexColumnRecord {
    #[prost(uint32, tag = "1")]
    at: u32,
    #[prost(bool, tag = "2")]
    descending: bool,
    #[prost(bool, tag = "3")]
    nulls_first: bool,
}

impl From<&IndexDescriptor> for IndexRecord {
    fn from(index: &IndexDescriptor) -> Self {
        let column = |column: &IndexColumn| IndexColumnRecord {
            at: column.at as u32,
            descending: column.descending,
            nulls_first: column.nulls_first,
        };
        IndexRecord {
            id: index.id,
            name: index.name.clone(),
            columns: index.columns.iter().map(column).collect(),
            unique: index.unique,
            nulls_distinct: index.nulls_distinct,
            constraint: index.constraint,
            public: index.public,
            primary: index.primary,
            deferral: index.deferral.number(),
        }
    }
}

impl TryFrom<IndexRecord> for IndexDescriptor {
    type Error = SqlError;
    fn try_from(index: IndexRecord) -> SqlResult<Self> {
        let column = |column: IndexColumnRecord| IndexColumn {
            at: column.at as usize,
            descending: column.descending,
            nulls_first: column.nulls_first,
        };
        let deferral = Deferral::numbered(index.deferral);
        Ok(IndexDescriptor {
            deferral: deferral.ok_or_else(|| corrupt(format!("index {} is checked at an unknown time", index.name)))?,
            id: index.id,
            name: index.name,
            columns: index.columns.into_iter().map(column).collect(),
            unique: index.unique,
            nulls_distinct: index.nulls_distinct,
            constraint: index.constraint,
            primary: index.primary,
            public: index.public,
        })
    }
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
        sequence: column.sequence.unwrap_or(0),
        identity: match column.identity {
            None => 0,
            Some(Identity::Always) => ALWAYS,
            Some(Identity::ByDefault) => BY_DEFAULT,
        },
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
        indexes: table.indexes.iter().map(IndexRecord::from).collect(),
        checks: table
            .checks
            .iter()
            .cloned()
            .map(|CheckDescriptor { id, name, expr }| CheckRecord { id, name, expr })
            .collect(),
        foreign_keys: table.foreign_keys.iter().map(ForeignKeyRecord::from).collect(),
        referrers: table.referrers.clone(),
    };
    versioned(&record)
}

fn versioned(record: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + record.encoded_len());
    out.put_u8(VERSION);
    record.encode(&mut out).expect("a BytesMut grows");
    out.freeze()
}

fn corrupt(why: impl Into<String>) -> SqlError {
    SqlError::new(SqlState::DATA_CORRUPTED, format!("a descriptor does not decode: {}", why.into()))
}

fn record_of<R: Message + Default>(bytes: &[u8]) -> SqlResult<R> {
    let (version, body) = bytes.split_first().ok_or_else(|| corrupt("it is empty"))?;
    if *version != VERSION {
        return Err(corrupt(format!("its format is {version}, this build knows {VERSION}")));
    }
    R::decode(body).map_err(|e| corrupt(e.to_string()))
}

/// A sequence's descriptor as bytes.
pub fn encode_sequence(sequence: &SequenceDescriptor) -> Bytes {
    let options = sequence.options;
    versioned(&SequenceRecord {
        id: sequence.id,
        value_id: sequence.value_id,
        schema: sequence.schema.clone(),
        name: sequence.name.clone(),
        version: sequence.version,
        type_oid: sequence.pg_type.oid(),
        start: options.start,
        increment: options.increment,
        min: options.min,
        max: options.max,
        cache: options.cache,
        cycle: options.cycle,
        first: sequence.first,
        owner_table: sequence.owner.map_or(0, |owner| owner.table),
        owner_column: sequence.owner.map_or(0, |owner| owner.column),
    })
}

/// The reverse; XX001 for bytes that are no descriptor of this version.
pub fn decode_sequence(bytes: &[u8]) -> SqlResult<Sequence> {
    let record: SequenceRecord = record_of(bytes)?;
    let pg_type = PgType::from_oid(record.type_oid).filter(|pg_type| pg_type.is_integer());
    if record.increment == 0 || record.cache < 1 || record.min > record.max {
        return Err(corrupt(format!("sequence {} can have no values", record.name)));
    }
    Ok(Arc::new(SequenceDescriptor {
        id: record.id,
        value_id: record.value_id,
        schema: record.schema,
        name: record.name,
        version: record.version,
        pg_type: pg_type.ok_or_else(|| corrupt(format!("a sequence has type oid {}", record.type_oid)))?,
        options: Options {
            start: record.start,
            increment: record.increment,
            min: record.min,
            max: record.max,
            cache: record.cache,
            cycle: record.cycle,
        },
        first: record.first,
        owner: (record.owner_table != 0).then_some(Owner { table: record.owner_table, column: record.owner_column }),
        published: true,
    }))
}

/// The reverse of [`encode`]; XX001 for bytes that are no descriptor of this version.
pub fn decode(bytes: &[u8]) -> SqlResult<Table> {
    let record: TableRecord = record_of(bytes)?;
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
            sequence: (column.sequence != 0).then_some(column.sequence),
            identity: match column.identity {
                ALWAYS => Some(Identity::Always),
                BY_DEFAULT => Some(Identity::ByDefault),
                _ => None,
            },
        })
    };
    let columns: Vec<ColumnDescriptor> = record.columns.into_iter().map(column).collect::<SqlResult<_>>()?;
    let key: Vec<usize> = record.key.into_iter().map(|at| at as usize).collect();
    if key.is_empty() || key.iter().any(|at| *at >= columns.len()) {
        return Err(corrupt("its key names no column"));
    }
    let indexes = record.indexes.into_iter().map(IndexDescriptor::try_from).collect::<SqlResult<Vec<_>>>()?;
    let unknown = |index: &IndexDescriptor| index.columns.iter().any(|column| column.at >= columns.len());
    if indexes.iter().any(|index| index.columns.is_empty() || unknown(index)) {
        return Err(corrupt("an index names no column"));
    }
    let foreign_keys =
        record.foreign_keys.into_iter().map(|key| key.decoded(columns.len())).collect::<SqlResult<_>>()?;
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
        indexes,
        checks: record
            .checks
            .into_iter()
            .map(|CheckRecord { id, name, expr }| CheckDescriptor { id, name, expr })
            .collect(),
        foreign_keys,
        referrers: record.referrers,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::foreign_key::{Action, ForeignKeyDescriptor};

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
                sequence: Some(101),
                identity: Some(Identity::ByDefault),
            }],
            key: vec![0],
            primary_key: Some("t_pkey".into()),
            next_column_id: 2,
            indexes: vec![IndexDescriptor {
                id: 103,
                name: "t_k_idx".into(),
                columns: vec![IndexColumn { at: 0, descending: true, nulls_first: true }],
                unique: true,
                nulls_distinct: true,
                constraint: true,
                primary: true,
                deferral: Deferral::Immediate,
                public: true,
            }],
            checks: vec![CheckDescriptor { id: 104, name: "t_k_check".into(), expr: "k > 0".into() }],
            foreign_keys: vec![ForeignKeyDescriptor {
                id: 105,
                name: "t_k_fkey".into(),
                columns: vec![0],
                parent: 90,
                referenced: vec![1],
                index: 91,
                match_full: true,
                on_update: Action::SetDefault,
                on_delete: Action::Cascade,
                deferral: Deferral::Deferred,
                validated: false,
            }],
            referrers: vec![100, 107],
        };
        let bytes = encode(&table);
        assert_eq!(*decode(&bytes).unwrap(), table);
        assert!(decode(&bytes[..bytes.len() - 3]).is_err());
        assert!(decode(b"").is_err() && decode(&[9]).is_err());
    }

    #[test]
    fn sequences_come_back() {
        let sequence = SequenceDescriptor {
            id: 101,
            value_id: 102,
            schema: "public".into(),
            name: "s".into(),
            version: 2,
            pg_type: PgType::Int2,
            options: Options { start: -3, increment: -2, min: i64::MIN, max: -1, cache: 7, cycle: true },
            first: -5,
            owner: Some(Owner { table: 100, column: 1 }),
            published: true,
        };
        assert_eq!(*decode_sequence(&encode_sequence(&sequence)).unwrap(), sequence);
        assert!(decode_sequence(b"").is_err() && decode_sequence(&[VERSION]).is_err());
    }
}
