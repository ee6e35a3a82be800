//! How the space of user keys is cut up.
//!
//! ```text
//! key := keyspace u32 BE ‖ table u32 BE ‖ index u32 BE ‖ …
//!
//! keyspace 0   PD's own small state; all of it is region 1, which never splits or merges
//! keyspace 1   SQL: table ids below FIRST_USER_TABLE are system tables, index 0 is a table's rows
//! keyspace 2   names of the public KV service's namespaces
//! keyspace 100…  those namespaces; their ids are drawn as those of tables are
//! ```
//!
//! Everything behind the prefix is the owner's, as long as its encoding is prefix-free: no key may be a
//! proper prefix of another one, because `kv` appends a timestamp. PD sees table borders as opaque prefixes.

use bytes::{BufMut, Bytes, BytesMut};

use crate::KeyRange;

/// PD's keyspace: exactly region 1.
pub const PD_KEYSPACE: u32 = 0;
/// The keyspace of SQL tables.
pub const SQL_KEYSPACE: u32 = 1;
/// The keyspace in which the public KV service records its namespaces.
pub const NAMESPACES_KEYSPACE: u32 = 2;
/// Table ids below are system tables (the catalog).
pub const FIRST_USER_TABLE: u32 = 100;
/// Length of keyspace ‖ table ‖ index.
pub const PREFIX_LEN: usize = 12;

/// `keyspace ‖ table ‖ index`: where an index of a table starts.
pub fn index_prefix(keyspace: u32, table: u32, index: u32) -> Bytes {
    let mut key = BytesMut::with_capacity(PREFIX_LEN);
    key.put_u32(keyspace);
    key.put_u32(table);
    key.put_u32(index);
    key.freeze()
}

/// `keyspace ‖ table`: a table's border, and a good place to cut regions.
pub fn table_prefix(keyspace: u32, table: u32) -> Bytes {
    let mut key = BytesMut::with_capacity(8);
    key.put_u32(keyspace);
    key.put_u32(table);
    key.freeze()
}

/// All keys of an index.
pub fn index_range(keyspace: u32, table: u32, index: u32) -> KeyRange {
    let end = match index.checked_add(1) {
        Some(next) => index_prefix(keyspace, table, next),
        None => table_range(keyspace, table).end,
    };
    KeyRange::new(index_prefix(keyspace, table, index), end)
}

/// All keys of a table.
pub fn table_range(keyspace: u32, table: u32) -> KeyRange {
    let end = match table.checked_add(1) {
        Some(next) => table_prefix(keyspace, next),
        None => keyspace_range(keyspace).end,
    };
    KeyRange::new(table_prefix(keyspace, table), end)
}

/// All keys of a keyspace. The range of keyspace 0 starts at the empty key.
pub fn keyspace_range(keyspace: u32) -> KeyRange {
    let border = |k: u32| if k == 0 { Bytes::new() } else { Bytes::copy_from_slice(&k.to_be_bytes()) };
    KeyRange::new(border(keyspace), keyspace.checked_add(1).map(border).unwrap_or_default())
}

/// Takes `keyspace ‖ table ‖ index` off a key; `None` when it is too short.
pub fn split_prefix(key: &[u8]) -> Option<(u32, u32, u32, &[u8])> {
    let (prefix, rest) = key.split_at_checked(PREFIX_LEN)?;
    let word = |at: usize| u32::from_be_bytes(prefix[at..at + 4].try_into().expect("four bytes"));
    Some((word(0), word(4), word(8), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_nest() {
        let sql = keyspace_range(SQL_KEYSPACE);
        assert!(sql.covers(&table_range(SQL_KEYSPACE, u32::MAX)));
        assert!(table_range(1, 5).covers(&index_range(1, 5, u32::MAX)));
        assert!(!keyspace_range(PD_KEYSPACE).contains(&index_prefix(1, 0, 0)));
        assert_eq!(split_prefix(&index_prefix(1, 2, 3)), Some((1, 2, 3, &[][..])));
        assert_eq!(split_prefix(b"short"), None);
    }
}
