//! Where PD's durable state lives in region 1.
//!
//! ```text
//! key  := 00000000 (PD's keyspace) ‖ kind u32 BE ‖ id u64 BE
//!
//! kind 1  id 0         the timestamp window: u64 BE, milliseconds; every timestamp handed out is below it
//! kind 2  id 0         next id for callers of AllocIds: u64 BE
//! kind 2  id 1         next id for stores, regions and peers: u64 BE
//! kind 3  id 0         published catalog version: u64 BE
//! kind 4  id store id  a store: wire::Store
//! kind 5  id 0         what people have set: wire::PdSettings
//! kind 6  id 0         the GC safe point: u64 BE, a timestamp; older snapshots are refused
//! ```
//!
//! All keys have one length, so none is a prefix of another.

use bytes::{BufMut, Bytes, BytesMut};
use proto::{KeyRange, StoreId, keyspace};

/// Of every key.
const LEN: usize = 16;
const KIND_WINDOW: u32 = 1;
const KIND_IDS: u32 = 2;
const KIND_CATALOG: u32 = 3;
const KIND_STORE: u32 = 4;
const KIND_SETTINGS: u32 = 5;
const KIND_SAFE_POINT: u32 = 6;

fn key(kind: u32, id: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(LEN);
    key.put_u32(keyspace::PD_KEYSPACE);
    key.put_u32(kind);
    key.put_u64(id);
    key.freeze()
}

/// The timestamp window's upper bound.
pub fn window() -> Bytes {
    key(KIND_WINDOW, 0)
}
/// The next id of a sequence.
pub fn next_id(sequence: crate::ids::Sequence) -> Bytes {
    key(KIND_IDS, sequence as u64)
}
/// The published catalog version.
pub fn catalog_version() -> Bytes {
    key(KIND_CATALOG, 0)
}
/// A store's record.
pub fn store(id: StoreId) -> Bytes {
    key(KIND_STORE, id.0)
}
/// What people have set.
pub fn settings() -> Bytes {
    key(KIND_SETTINGS, 0)
}
/// The GC safe point.
pub fn safe_point() -> Bytes {
    key(KIND_SAFE_POINT, 0)
}
/// Everything PD keeps.
pub fn all() -> KeyRange {
    keyspace::keyspace_range(keyspace::PD_KEYSPACE)
}
/// Whether the key is a store's record.
pub fn is_store(key: &[u8]) -> bool {
    key.len() == LEN && key[4..8] == KIND_STORE.to_be_bytes()
}

/// A counter's value.
pub fn encode_u64(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}
/// Reads a counter; `None` when it is not eight bytes.
pub fn decode_u64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}
