//! The system tables: where descriptors live, as rows that transactions read and write.
//!
//! ```text
//!   table 1  descriptors   table id u32              → descriptor (record.rs)
//!   table 2  names         schema text ‖ name text   → table id u32         unique: written with kv's insert
//!   table 3  counters      counter u32               → u64                  0 catalog version, 1 next id
//!   table 4  garbage       storage id u32            → whose                    rows nobody reads, see `garbage`
//!   table 5  sequences     sequence id u32           → descriptor (record.rs)
//!   table 6  values        value id u32              → called u8 ‖ last i64  changed in transactions of their own
//!   table 7  dropped       storage id u32 ‖ index id u32 → whose                 entries of dropped indexes, see `garbage`
//!   table 8  advisory      lock name                 → its holders              see `crate::advisory`
//!   table 9  notifications  number                   → channel and payload      see `crate::notify`
//! ```
//!
//! Every DDL transaction reads and writes the catalog version: two of them conflict, and one loses with 40001.
//! Ids come from a transaction of their own: an id that a DDL took and did not publish is never used again.

use bytes::{BufMut, Bytes, BytesMut};
use kv::{Client, CommitOptions, Floor, ScanOptions, Txn};
use proto::{
    KeyRange, Timestamp,
    keyspace::{FIRST_USER_TABLE, SQL_KEYSPACE, index_prefix, index_range},
};

use super::{
    CatalogSnapshot, Sequence, Table, garbage, record,
    sequence::{Block, Value},
};
use crate::{
    codec::key::{self, KeyColumn},
    error::{SqlError, SqlResult, SqlState},
    types::{Datum, PgType},
};

const DESCRIPTORS: u32 = 1;
const NAMES: u32 = 2;
const COUNTERS: u32 = 3;
pub(super) const GARBAGE: u32 = 4;
const SEQUENCES: u32 = 5;
const SEQUENCE_VALUES: u32 = 6;
pub(super) const DROPPED_INDEXES: u32 = 7;

const CATALOG_VERSION: u32 = 0;
const NEXT_ID: u32 = 1;

/// How often a transaction on a counter is tried: each conflict means that another one got through.
const COUNTER_ATTEMPTS: usize = 200;

pub(super) fn id_key(table: u32, id: u32) -> Bytes {
    let mut key = BytesMut::from(&index_prefix(SQL_KEYSPACE, table, 0)[..]);
    key.put_u32(id);
    key.freeze()
}

fn name_key(schema: &str, name: &str) -> Bytes {
    let mut out = BytesMut::from(&index_prefix(SQL_KEYSPACE, NAMES, 0)[..]);
    for part in [schema, name] {
        key::encode(&Datum::text(part), KeyColumn::primary(PgType::Text), &mut out);
    }
    out.freeze()
}

pub(super) fn corrupt(what: &str) -> SqlError {
    SqlError::new(SqlState::DATA_CORRUPTED, format!("the system catalog is damaged: {what}"))
}

pub(super) fn number<const N: usize>(bytes: &[u8], what: &str) -> SqlResult<[u8; N]> {
    bytes.try_into().map_err(|_| corrupt(what))
}

async fn counter(txn: &Txn, id: u32) -> SqlResult<Option<u64>> {
    match txn.get(&id_key(COUNTERS, id)).await? {
        Some(bytes) => Ok(Some(u64::from_be_bytes(number(&bytes, "a counter")?))),
        None => Ok(None),
    }
}

fn set_counter(txn: &Txn, id: u32, value: u64) -> SqlResult<()> {
    Ok(txn.put(id_key(COUNTERS, id), value.to_be_bytes().to_vec())?)
}

pub(super) async fn commit(txn: &Txn) -> Result<Timestamp, kv::Error> {
    txn.commit(CommitOptions { floor: Floor::StartTs, max_commit_ts: None }).await
}

/// Makes the counters when there are none. Several gateways may do it at once: one gets through, the others find it done.
pub async fn bootstrap(client: &Client) -> SqlResult<()> {
    for _ in 0..COUNTER_ATTEMPTS {
        let txn = client.begin().await?;
        if counter(&txn, CATALOG_VERSION).await?.is_some() {
            return Ok(());
        }
        txn.insert(id_key(COUNTERS, CATALOG_VERSION), 1u64.to_be_bytes().to_vec())?;
        txn.insert(id_key(COUNTERS, NEXT_ID), u64::from(FIRST_USER_TABLE).to_be_bytes().to_vec())?;
        match commit(&txn).await {
            Ok(_) => return Ok(()),
            Err(e) if e.is_retryable() || matches!(e, kv::Error::AlreadyExists { .. }) => {}
            // Unknown: the next round sees whether it happened.
            Err(kv::Error::CommitUnknown(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(SqlError::unavailable("the system catalog could not be made: every attempt met another one"))
}

/// `count` consecutive table ids that nobody else gets; the first of them. Dense, so that tables meet the founding regions' borders.
pub async fn allocate_ids(client: &Client, count: u32) -> SqlResult<u32> {
    for _ in 0..COUNTER_ATTEMPTS {
        let txn = client.begin().await?;
        let next = counter(&txn, NEXT_ID).await?.ok_or_else(|| corrupt("no id counter"))?;
        let first = u32::try_from(next).map_err(|_| corrupt("table ids are used up"))?;
        set_counter(&txn, NEXT_ID, next + u64::from(count))?;
        match commit(&txn).await {
            Ok(_) => return Ok(first),
            Err(e) if e.is_retryable() || matches!(e, kv::Error::CommitUnknown(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(SqlError::serialization("Table ids are being taken by too many statements at once."))
}

/// The catalog as the transaction sees it.
pub async fn load(txn: &Txn) -> SqlResult<CatalogSnapshot> {
    let version = version(txn).await?;
    let mut tables = Vec::new();
    let mut scan = txn.scan(ScanOptions { range: index_range(SQL_KEYSPACE, DESCRIPTORS, 0), ..Default::default() });
    while let Some(page) = scan.next_page().await? {
        for (_, value) in page.rows {
            tables.push(record::decode(&value)?);
        }
    }
    let mut catalog = CatalogSnapshot::new(version, tables);
    let mut scan = txn.scan(ScanOptions { range: index_range(SQL_KEYSPACE, SEQUENCES, 0), ..Default::default() });
    while let Some(page) = scan.next_page().await? {
        for (_, value) in page.rows {
            catalog.put_sequence(record::decode_sequence(&value)?);
        }
    }
    Ok(catalog)
}

/// The catalog at a time of the past; empty before there was one.
pub async fn load_past(txn: &Txn) -> SqlResult<CatalogSnapshot> {
    match counter(txn, CATALOG_VERSION).await? {
        Some(_) => load(txn).await,
        None => Ok(CatalogSnapshot::default()),
    }
}

/// The catalog's version.
pub async fn version(txn: &Txn) -> SqlResult<u64> {
    counter(txn, CATALOG_VERSION).await?.ok_or_else(|| corrupt("no version"))
}

/// What a DDL transaction does to the catalog, beside the rows of its tables.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// New tables, and tables with a new descriptor.
    pub put: Vec<Table>,
    /// Dropped tables.
    pub dropped: Vec<Table>,
    /// Storage ids whose rows nobody reads once the change is published.
    pub garbage: Vec<u32>,
    /// Storage and index ids of dropped indexes of tables that stay.
    pub dropped_indexes: Vec<(u32, u32)>,
    /// New sequences, and sequences with a new descriptor.
    pub put_sequences: Vec<Sequence>,
    /// Dropped sequences.
    pub dropped_sequences: Vec<u32>,
    /// Value ids nobody goes on with.
    pub ended_values: Vec<u32>,
}

impl Changes {
    /// Nothing.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty()
            && self.dropped.is_empty()
            && self.garbage.is_empty()
            && self.put_sequences.is_empty()
            && self.dropped_sequences.is_empty()
    }
}

/// Writes `changes`, which were made to the catalog of version `base`, in `txn` and returns the version they will have. 40001
/// when the catalog has changed since, 42P07 when a new table's name is taken. `owner` is the gateway that deletes what is garbage then.
pub async fn write(txn: &Txn, owner: u64, base: u64, changes: &Changes) -> SqlResult<u64> {
    let version = version(txn).await? + 1;
    if version != base + 1 {
        return Err(SqlError::serialization("Another session changed the schema at the same time."));
    }
    set_counter(txn, CATALOG_VERSION, version)?;
    for table in &changes.dropped {
        txn.delete(id_key(DESCRIPTORS, table.id))?;
        txn.delete(name_key(&table.schema, &table.name))?;
    }
    for table in &changes.put {
        let name = name_key(&table.schema, &table.name);
        match txn.get(&name).await? {
            Some(id) if u32::from_be_bytes(number(&id, "a name")?) == table.id => {}
            Some(_) => return Err(duplicate_relation(&table.name)),
            None => txn.put(name, table.id.to_be_bytes().to_vec())?,
        }
        txn.put(id_key(DESCRIPTORS, table.id), record::encode(table))?;
    }
    for sequence in &changes.put_sequences {
        txn.put(id_key(SEQUENCES, sequence.id), record::encode_sequence(sequence))?;
    }
    for id in &changes.dropped_sequences {
        txn.delete(id_key(SEQUENCES, *id))?;
    }
    for value_id in &changes.ended_values {
        txn.delete(id_key(SEQUENCE_VALUES, *value_id))?;
    }
    garbage::put(txn, owner, changes)?;
    Ok(version)
}

/// A sequence as it is now: as the store has it, or as the caller's transaction has changed it. 42P01 when it is gone.
async fn newest(txn: &Txn, known: &Sequence) -> SqlResult<Sequence> {
    match txn.get(&id_key(SEQUENCES, known.id)).await? {
        Some(bytes) => {
            let stored = record::decode_sequence(&bytes)?;
            Ok(if known.version > stored.version { Sequence::clone(known) } else { stored })
        }
        None if !known.published => Ok(Sequence::clone(known)),
        None => Err(SqlError::undefined_table(&known.name)),
    }
}

/// Where a sequence stands.
pub async fn sequence_value(txn: &Txn, sequence: &Sequence) -> SqlResult<Value> {
    let Some(bytes) = txn.get(&id_key(SEQUENCE_VALUES, sequence.value_id)).await? else {
        return Ok(sequence.beginning());
    };
    let [called, last @ ..] = number::<9>(&bytes, "a sequence's value")?;
    Ok(Value { last: i64::from_be_bytes(last), called: called != 0 })
}

fn put_value(txn: &Txn, sequence: &Sequence, value: Value) -> SqlResult<()> {
    let mut bytes = BytesMut::with_capacity(9);
    bytes.put_u8(value.called.into());
    bytes.put_i64(value.last);
    Ok(txn.put(id_key(SEQUENCE_VALUES, sequence.value_id), bytes.freeze())?)
}

/// Takes up to `wanted` values of a sequence, at least one; nobody else gets them, whatever happens to the caller. 2200H at its limit.
pub async fn reserve(client: &Client, sequence: &Sequence, wanted: u64) -> SqlResult<Block> {
    for _ in 0..COUNTER_ATTEMPTS {
        let txn = client.begin().await?;
        let sequence = newest(&txn, sequence).await?;
        let (block, value) = sequence.advance(sequence_value(&txn, &sequence).await?, wanted)?;
        put_value(&txn, &sequence, value)?;
        match commit(&txn).await {
            Ok(_) => return Ok(block),
            // Unknown: values that may have been taken are given to nobody.
            Err(e) if e.is_retryable() || matches!(e, kv::Error::CommitUnknown(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(SqlError::serialization("Values of a sequence are being taken by too many nodes at once."))
}

/// Says where a sequence stands.
pub async fn set_value(client: &Client, sequence: &Sequence, last: i64, called: bool) -> SqlResult<()> {
    for _ in 0..COUNTER_ATTEMPTS {
        let txn = client.begin().await?;
        let sequence = newest(&txn, sequence).await?;
        put_value(&txn, &sequence, Value { last, called })?;
        match commit(&txn).await {
            Ok(_) => return Ok(()),
            Err(e) if e.is_retryable() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(SqlError::serialization("Values of a sequence are being taken by too many nodes at once."))
}

/// 42P07.
pub fn duplicate_relation(name: &str) -> SqlError {
    SqlError::new(SqlState::DUPLICATE_TABLE, format!("relation \"{name}\" already exists"))
}

/// All keys of a storage id.
pub fn rows_of(storage_id: u32) -> KeyRange {
    proto::keyspace::table_range(SQL_KEYSPACE, storage_id)
}
