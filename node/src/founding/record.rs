//! The founding record: who the cluster is, and its first regions.

use bytes::Bytes;
use proto::{
    Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId, keyspace,
    wire::{self, FoundingRecord},
};

/// Format of the records this version writes and reads.
pub const RECORD_FORMAT: u32 = 1;
/// Replicas of a region, if there are that many founders.
pub const REPLICAS: usize = 3;
/// User regions a cluster may be founded with; more come by splitting.
pub const MAX_USER_REGIONS: u32 = 10_000;

/// What a record says about one founder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    /// As in everybody's `--join`.
    pub address: String,
    /// Of its data directory.
    pub uuid: Bytes,
}

/// Makes the record. Founders become stores 1, 2, … in the given order; region 1 is PD's, and `user_regions`
/// share the rest, cut at the first user tables.
pub fn compose(cluster_id: u64, founders: &[Founder], user_regions: u32) -> FoundingRecord {
    assert!(!founders.is_empty() && (1..=MAX_USER_REGIONS).contains(&user_regions));
    let stores = founders.iter().zip(1..).map(|(f, id)| wire::Store {
        id,
        address: f.address.clone(),
        uuid: f.uuid.clone(),
        ..wire::Store::default()
    });
    let (mut next_peer, count) = (1, founders.len());
    let regions = ranges(user_regions).into_iter().zip(0..).map(|(range, index)| {
        // Turned by one from region to region, so that leaders and, with many founders, replicas spread.
        let peers = (0..count.min(REPLICAS)).map(|i| {
            let store = StoreId(((index + i) % count) as u64 + 1);
            next_peer += 1;
            Peer { id: PeerId(next_peer - 1), store, role: PeerRole::Voter }
        });
        let epoch = Epoch { conf_ver: 1, version: 1 };
        let region = Region { id: RegionId(index as u64 + 1), range, epoch, peers: peers.collect() };
        (&region).into()
    });
    FoundingRecord { format: RECORD_FORMAT, cluster_id, regions: regions.collect(), founders: stores.collect() }
}

/// Region 1's range, then the user regions': from keyspace 1 on, cut at tables 101, 102, …
fn ranges(user_regions: u32) -> Vec<KeyRange> {
    let pd = keyspace::keyspace_range(keyspace::PD_KEYSPACE);
    let cut = |i| keyspace::table_prefix(keyspace::SQL_KEYSPACE, keyspace::FIRST_USER_TABLE + i);
    let mut borders = vec![pd.end.clone()];
    borders.extend((1..user_regions).map(cut));
    borders.push(Bytes::new());
    let user = borders.windows(2).map(|w| KeyRange::new(w[0].clone(), w[1].clone()));
    std::iter::once(pd.clone()).chain(user).collect()
}

/// The store id a record gives to the directory with this UUID.
pub fn store_of(record: &FoundingRecord, uuid: &[u8]) -> Option<StoreId> {
    record.founders.iter().find(|f| f.uuid == uuid).map(|f| StoreId(f.id))
}

/// Reads a record's regions, and refuses one that this version can't found a cluster with.
pub fn regions(record: &FoundingRecord) -> Result<Vec<Region>, String> {
    if record.format != RECORD_FORMAT {
        return Err(format!("founding record of format {}, this program knows {RECORD_FORMAT}", record.format));
    }
    if record.cluster_id == 0 || record.founders.is_empty() {
        return Err("founding record without a cluster id or founders".into());
    }
    let regions: Result<Vec<_>, _> = record.regions.iter().cloned().map(Region::try_from).collect();
    let regions = regions.map_err(|e| format!("founding record: {e}"))?;
    let known = |p: &Peer| record.founders.iter().any(|f| f.id == p.store.0);
    match regions.first() {
        Some(first) if first.id == proto::PD_REGION => {}
        _ => return Err("founding record without region 1".into()),
    }
    if !regions.iter().flat_map(|r| &r.peers).all(known) {
        return Err("founding record with a peer on a store it does not name".into());
    }
    Ok(regions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founders(n: u8) -> Vec<Founder> {
        (1..=n).map(|i| Founder { address: format!("n{i}:1"), uuid: Bytes::copy_from_slice(&[i; 16]) }).collect()
    }

    #[test]
    fn regions_cover_all_keys_and_are_cut_at_tables() {
        let record = compose(7, &founders(3), 3);
        let regions = regions(&record).expect("valid");
        assert_eq!(regions.len(), 4);
        assert_eq!(regions[0].range, keyspace::keyspace_range(0));
        for pair in regions.windows(2) {
            assert_eq!(pair[0].range.end, pair[1].range.start);
        }
        assert!(regions[1].range.contains(&keyspace::table_prefix(1, 100)));
        assert!(regions[2].range.contains(&keyspace::index_prefix(1, 101, 0)));
        assert!(regions[3].range.contains(&keyspace::index_prefix(1, 5_000, 0)));
        assert!(regions[3].range.end.is_empty());
        let mut peers: Vec<_> = regions.iter().flat_map(|r| r.peers.iter().map(|p| p.id.0)).collect();
        peers.sort_unstable();
        assert_eq!(peers, (1..=12).collect::<Vec<_>>());
    }

    #[test]
    fn many_founders_share_the_replicas_and_one_founds_alone() {
        let five = regions(&compose(7, &founders(5), 4)).expect("valid");
        assert!(five.iter().all(|r| r.peers.len() == REPLICAS));
        assert_eq!(five[4].peers.iter().map(|p| p.store.0).collect::<Vec<_>>(), [5, 1, 2]);
        assert!(regions(&compose(7, &founders(1), 1)).expect("valid").iter().all(|r| r.peers.len() == 1));
    }

    #[test]
    fn bad_records_are_refused() {
        let good = compose(7, &founders(3), 1);
        assert!(regions(&FoundingRecord { format: 9, ..good.clone() }).is_err());
        assert!(regions(&FoundingRecord { founders: good.founders[..2].to_vec(), ..good.clone() }).is_err());
        assert!(regions(&FoundingRecord { regions: vec![], ..good }).is_err());
    }
}
