//! What comes out of a split: the region keeps its id and the left part, new regions get the rest.
//!
//! ```text
//!   before   r2@1/3  ├───────────────────────────────────────┤
//!   split at g (r7), p (r8)
//!   after    r2@1/5  ├──────────┤ r7@1/5 ├────────┤ r8@1/5 ├──┤
//! ```
//!
//! Data stays where it is, on every store by itself, when the entry is applied there. The leader asks [`plan`] before it
//! proposes and every replica when it applies: with the epoch equal, all get the same answer.

use std::collections::BTreeSet;

use proto::{Epoch, KeyRange, Peer, PeerId, Region, RegionId, wire};

use crate::api::NewRegion;

/// Regions made by one entry at most: their first records go into one batch of the state engine.
const NEW_REGIONS_AT_MOST: usize = 1024;

/// All regions after the split, in key order, or why it is none.
pub(crate) fn plan(region: &Region, at: &[NewRegion]) -> Result<Vec<Region>, String> {
    if at.is_empty() || at.len() > NEW_REGIONS_AT_MOST {
        return Err(format!("a split makes 1 to {NEW_REGIONS_AT_MOST} new regions, not {}", at.len()));
    }
    let mut used: BTreeSet<PeerId> = region.peers.iter().map(|p| p.id).collect();
    let mut regions = BTreeSet::from([region.id]);
    let mut below = &region.range.start;
    for new in at {
        if new.start <= *below || !region.range.contains(&new.start) {
            return Err(format!("the new region {} would not begin inside {}, after its neighbour", new.id, region.id));
        }
        if new.peers.len() != region.peers.len() {
            return Err(format!("{} has {} peers, {} are named", region.id, region.peers.len(), new.peers.len()));
        }
        let fresh = new.id.0 != 0 && regions.insert(new.id) && new.peers.iter().all(|p| p.0 != 0 && used.insert(*p));
        if !fresh {
            return Err(format!("an id of the new region {} is in use, named twice or 0", new.id));
        }
        below = &new.start;
    }
    // One step a new region, so that no part ever looks older than what it came from.
    let epoch = Epoch { version: region.epoch.version + at.len() as u64, ..region.epoch };
    let end_of = |i: usize| at.get(i).map_or(region.range.end.clone(), |next| next.start.clone());
    let mut all = vec![Region { range: KeyRange::new(region.range.start.clone(), end_of(0)), epoch, ..region.clone() }];
    all.extend(at.iter().enumerate().map(|(i, new)| Region {
        id: new.id,
        range: KeyRange::new(new.start.clone(), end_of(i + 1)),
        epoch,
        peers: region.peers.iter().zip(&new.peers).map(|(&peer, &id)| Peer { id, ..peer }).collect(),
    }));
    Ok(all)
}

pub(crate) fn to_wire(at: &[NewRegion]) -> wire::Split {
    let new = |new: &NewRegion| wire::NewRegion {
        start_key: new.start.clone(),
        region_id: new.id.0,
        peer_ids: new.peers.iter().map(|p| p.0).collect(),
    };
    wire::Split { regions: at.iter().map(new).collect() }
}

pub(crate) fn from_wire(split: wire::Split) -> Vec<NewRegion> {
    let new = |new: wire::NewRegion| NewRegion {
        start: new.start_key,
        id: RegionId(new.region_id),
        peers: new.peer_ids.into_iter().map(PeerId).collect(),
    };
    split.regions.into_iter().map(new).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::{PeerRole, StoreId};

    use super::*;

    fn parent() -> Region {
        let peer = |id, role| Peer { id: PeerId(id), store: StoreId(id), role };
        Region {
            id: RegionId(2),
            range: KeyRange::new("c", "x"),
            epoch: Epoch { conf_ver: 4, version: 3 },
            peers: vec![peer(1, PeerRole::Voter), peer(2, PeerRole::Learner)],
        }
    }

    fn new(start: &str, id: u64) -> NewRegion {
        let start = bytes::Bytes::copy_from_slice(start.as_bytes());
        NewRegion { start, id: RegionId(id), peers: vec![PeerId(id * 10), PeerId(id * 10 + 1)] }
    }

    #[test]
    fn the_parts_cover_the_whole_and_keep_stores_and_roles() {
        let all = plan(&parent(), &[new("g", 7), new("p", 8)]).unwrap();
        let parts: Vec<_> = all.iter().map(|r| (r.id.0, r.range.clone(), r.epoch.version)).collect();
        assert_eq!(
            parts,
            [(2, KeyRange::new("c", "g"), 5), (7, KeyRange::new("g", "p"), 5), (8, KeyRange::new("p", "x"), 5)]
        );
        assert_eq!(all[0].peers, parent().peers);
        let learner = Peer { id: PeerId(71), store: StoreId(2), role: PeerRole::Learner };
        assert_eq!(all[1].peers[1], learner);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |at: &[NewRegion]| plan(&parent(), at).unwrap_err();
        assert!(refused(&[]).contains("makes 1 to"));
        for bad in ["a", "c", "x", "z"] {
            assert!(refused(&[new(bad, 7)]).contains("inside"), "{bad}");
        }
        assert!(refused(&[new("g", 7), new("g", 8)]).contains("inside"));
        assert!(refused(&[new("g", 2)]).contains("in use"));
        assert!(refused(&[new("g", 7), new("p", 7)]).contains("in use"));
        assert!(refused(&[NewRegion { peers: vec![PeerId(1), PeerId(9)], ..new("g", 7) }]).contains("in use"));
        assert!(refused(&[NewRegion { peers: vec![PeerId(9)], ..new("g", 7) }]).contains("peers"));
    }

    proptest! {
        #[test]
        fn ranges_join_without_gap(mut starts in prop::collection::btree_set("[d-w]{1,3}", 1..8)) {
            starts.remove("c");
            let at: Vec<_> = starts.iter().enumerate().map(|(i, s)| new(s, i as u64 + 10)).collect();
            let all = plan(&parent(), &at).unwrap();
            prop_assert_eq!(from_wire(to_wire(&at)), at);
            prop_assert_eq!(&all[0].range.start, &parent().range.start);
            prop_assert_eq!(&all[all.len() - 1].range.end, &parent().range.end);
            prop_assert!(all.windows(2).all(|w| w[0].range.end == w[1].range.start && !w[0].range.is_empty()));
        }
    }
}
