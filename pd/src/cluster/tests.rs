//! The picture against a cluster that really splits and moves its leaders, whose reports come late, twice and in any order.

use proptest::prelude::*;
use proto::{Epoch, Peer, PeerId, PeerRole, Term};

use super::*;

/// What happens to the real regions.
#[derive(Clone, Debug)]
enum Change {
    /// A region (by position) is cut at a key, if it lies inside.
    Split(usize, u8),
    /// A region gets another leader.
    Lead(usize, u64),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), 1..255u8).prop_map(|(r, k)| Change::Split(r, k)),
        (any::<usize>(), 1..4u64).prop_map(|(r, s)| Change::Lead(r, s)),
    ]
}

fn peer(store: u64) -> Peer {
    Peer { id: PeerId(store), store: StoreId(store), role: PeerRole::Voter }
}

/// Plays the changes: every region as it is reported after each, and as all are in the end.
fn play(changes: Vec<Change>) -> (Vec<RegionStatus>, Vec<RegionView>) {
    let first = Region {
        id: RegionId(1),
        range: KeyRange::default(),
        epoch: Epoch { conf_ver: 1, version: 1 },
        peers: (1..4).map(peer).collect(),
    };
    let view = |region, leader, term| RegionView {
        leader: Some(peer(leader)),
        term: Term(term),
        ..RegionView::founded(region)
    };
    let mut regions = vec![view(first, 1, 1)];
    let mut reports = vec![RegionStatus::from(&regions[0])];
    for change in changes {
        match change {
            Change::Lead(at, store) => {
                let at = at % regions.len();
                let region = &mut regions[at];
                *region = view(region.region.clone(), store, region.term.0 + 1);
                reports.push((&*region).into());
            }
            Change::Split(at, key) => {
                let (at, next_id, key) = (at % regions.len(), regions.len() as u64 + 1, vec![key]);
                let parent = &mut regions[at].region;
                if parent.range.start >= key || !parent.range.contains(&key) {
                    continue;
                }
                parent.epoch.version += 1;
                let end = std::mem::replace(&mut parent.range.end, key.clone().into());
                let child = Region { id: RegionId(next_id), range: KeyRange::new(key, end), ..parent.clone() };
                reports.push((&regions[at]).into());
                regions.push(view(child, 2, 1));
                reports.push(regions.last().expect("pushed").into());
            }
        }
    }
    (reports, regions)
}

proptest! {
    #[test]
    fn late_and_repeated_reports_lead_to_the_truth(
        changes in prop::collection::vec(change(), 0..40),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..120),
        last in any::<prop::sample::Index>(),
    ) {
        let (reports, mut truth) = play(changes);
        let mut cluster = Cluster::default();
        for index in order {
            cluster.observe_region(Now::default(), index.get(&reports).clone());
            check_picture(&cluster)?;
        }
        // In the end every leader reports, starting anywhere; twice, since a parent's old picture may hide a child.
        let start = last.index(truth.len());
        for at in (0..truth.len() * 2).map(|i| (start + i) % truth.len()) {
            cluster.observe_region(Now::default(), (&truth[at]).into());
        }
        check_picture(&cluster)?;
        truth.sort_by(|a, b| a.region.range.start.cmp(&b.region.range.start));
        let seen: Vec<_> = cluster.regions(&KeyRange::default(), 0).into_iter().cloned().collect();
        prop_assert_eq!(seen, truth);
        prop_assert!(cluster.covers_all_keys());
    }
}

/// No two regions overlap, and both maps tell the same.
fn check_picture(cluster: &Cluster) -> Result<(), TestCaseError> {
    prop_assert_eq!(cluster.by_start.len(), cluster.regions.len());
    let mut border: Option<&Bytes> = None;
    for (start, id) in &cluster.by_start {
        let range = &cluster.regions[id].region.range;
        prop_assert_eq!(&range.start, start);
        prop_assert!(border.is_none_or(|end| !end.is_empty() && end <= start), "{} overlaps", id);
        border = Some(&range.end);
        prop_assert_eq!(cluster.region_of(start).map(|v| v.region.id), Some(*id));
    }
    Ok(())
}
