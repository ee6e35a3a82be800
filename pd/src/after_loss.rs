//! What PD's records must become when region 1 goes on with a replica that may lack the last of them (unsafe recovery).
//!
//! What the lost stores had handed out and this replica does not know of must never be handed out again: ids and
//! timestamps are moved ahead. The lost stores are removed for good: should one come back, it is refused.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use proto::{
    StoreId,
    keyspace::FIRST_USER_TABLE,
    wire::{self, StoreState},
};

use crate::{MetaError, MetaWrite, ids::Sequence, keys, tso::WINDOW_MS};

/// Ids left out: far more than are drawn between two entries that a replica may lack, and 2,000 recoveries' worth of
/// table ids (u32).
pub const IDS_SKIPPED: u64 = 1 << 20;

/// What has to be written. `durable`: PD's records as the replica has them; `largest_id`: of any store, region or peer that
/// was seen anywhere; `wall_ms`: now, Unix milliseconds.
pub fn writes(
    durable: &BTreeMap<Bytes, Bytes>,
    lost: &[StoreId],
    largest_id: u64,
    wall_ms: u64,
) -> Result<Vec<MetaWrite>, MetaError> {
    let number = |key: &Bytes| match durable.get(key) {
        None => Ok(0),
        Some(value) => keys::decode_u64(value).ok_or_else(|| corrupt(key, format!("{} bytes, not 8", value.len()))),
    };
    let (callers, cluster) = (keys::next_id(Sequence::Callers), keys::next_id(Sequence::Cluster));
    let next_caller = number(&callers)?.max(FIRST_USER_TABLE.into()).saturating_add(IDS_SKIPPED);
    let next_cluster = number(&cluster)?.max(largest_id).saturating_add(IDS_SKIPPED);
    // The lost PD followed a wall clock, a window ahead at most.
    let bound = number(&keys::window())?.max(wall_ms).saturating_add(WINDOW_MS);
    let mut writes = vec![
        (callers, Some(keys::encode_u64(next_caller))),
        (cluster, Some(keys::encode_u64(next_cluster))),
        (keys::window(), Some(keys::encode_u64(bound))),
    ];
    for &store in lost {
        let key = keys::store(store);
        if let Some(value) = durable.get(&key) {
            let known = wire::Store::decode(value.clone()).map_err(|e| corrupt(&key, e.to_string()))?;
            let removed = wire::Store { state: StoreState::Removed as i32, ..known };
            writes.push((key, Some(removed.encode_to_vec().into())));
        }
    }
    Ok(writes)
}

fn corrupt(key: &Bytes, reason: String) -> MetaError {
    MetaError::Corrupt { key: key.clone(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_handed_out_is_left_out_and_the_lost_are_removed() {
        let store = |id| wire::Store { id, address: format!("n{id}:1"), ..wire::Store::default() };
        let mut durable: BTreeMap<Bytes, Bytes> =
            [1, 2].map(|id| (keys::store(StoreId(id)), store(id).encode_to_vec().into())).into();
        durable.insert(keys::next_id(Sequence::Callers), keys::encode_u64(500));
        durable.insert(keys::next_id(Sequence::Cluster), keys::encode_u64(40));
        durable.insert(keys::window(), keys::encode_u64(1_000));
        let writes: BTreeMap<_, _> =
            writes(&durable, &[StoreId(2), StoreId(9)], 77, 9_000).unwrap().into_iter().collect();
        let number = |key| keys::decode_u64(writes[&key].as_ref().unwrap()).unwrap();
        assert_eq!(number(keys::next_id(Sequence::Callers)), 500 + IDS_SKIPPED);
        assert_eq!(number(keys::next_id(Sequence::Cluster)), 77 + IDS_SKIPPED);
        assert_eq!(number(keys::window()), 9_000 + WINDOW_MS);
        let removed = wire::Store::decode(writes[&keys::store(StoreId(2))].clone().unwrap()).unwrap();
        assert_eq!((removed.state(), removed.address.as_str()), (StoreState::Removed, "n2:1"));
        assert_eq!(writes.len(), 4, "store 1 stays, store 9 was never there");
        durable.insert(keys::window(), Bytes::from_static(b"xx"));
        assert!(super::writes(&durable, &[], 0, 0).is_err());
    }
}
