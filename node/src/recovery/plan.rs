//! From what the surviving stores hold and who is lost to which replica each region goes on with.
//!
//! Of the surviving replicas of a region that lost its quorum the one with the newest log wins, as in an election: whatever
//! was committed and is on any survivor is in it. Everything that makes the result doubtful is refused: a store nobody
//! accounts for, a late survivor of whose keys newer regions leave parts.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    KeyRange, Peer, PeerRole, Region, StoreId,
    wire::{RecoveryPlan, RecoverySite, RecoverySurvey, ReplicaRemains, Rescue},
};

/// Format of surveys and plans that this version writes and reads.
pub const FORMAT: u32 = 1;
/// Changes of the membership that the lost stores may have made without a survivor: far above what a region sees in days.
const CONF_VERS_SKIPPED: u64 = 100_000;
/// Elections that the lost stores may have held among themselves.
const TERMS_SKIPPED: u64 = 100_000;

/// A region's replicas on the surveyed stores.
struct Known<'a> {
    /// As the replica with the newest epoch knows it.
    region: Region,
    replicas: Vec<(StoreId, &'a ReplicaRemains, Region)>,
}

/// What is wanted besides the surveys.
pub struct Wishes<'a> {
    /// Stores that never come back.
    pub lost: &'a [StoreId],
    /// Regions that stay as they are, whatever has become of them.
    pub leave: &'a [u64],
    /// Random.
    pub plan_id: u64,
}

/// Makes the plan, or says why there is none.
pub fn make(surveys: &[RecoverySurvey], wishes: &Wishes<'_>) -> Result<RecoveryPlan, String> {
    let lost: BTreeSet<StoreId> = wishes.lost.iter().copied().collect();
    check_stores(surveys, &lost)?;
    let regions = by_region(surveys)?;
    let mut rescues = Vec::new();
    let mut left_alone = 0;
    for known in regions.values().filter(|k| !wishes.leave.contains(&k.region.id.0)) {
        match has_quorum(&known.region, &lost) {
            true => left_alone += 1,
            false => rescues.push(rescue(known, &lost)?),
        }
    }
    if rescues.is_empty() {
        return Err(format!(
            "nothing to recover: each of the {left_alone} regions still has a quorum without the stores named lost; \
             start the nodes, PD repairs the rest"
        ));
    }
    let kept: Vec<_> = regions.values().filter(|k| !wishes.leave.contains(&k.region.id.0)).collect();
    rescues.iter_mut().try_for_each(|rescue| narrow(&kept, rescue))?;
    let all = || surveys.iter().flat_map(|s| &s.replicas);
    let conf_vers = all().filter_map(|r| r.region.as_ref()?.epoch).map(|e| e.conf_ver);
    Ok(RecoveryPlan {
        format: FORMAT,
        cluster_id: surveys[0].cluster_id,
        plan_id: wishes.plan_id,
        lost_stores: lost.iter().map(|s| s.0).collect(),
        sites: surveys.iter().map(site).collect(),
        holes: holes(kept.iter().map(|k| &k.region.range)).iter().map(Into::into).collect(),
        left_alone,
        conf_ver_floor: conf_vers.max().unwrap_or(0) + CONF_VERS_SKIPPED,
        term_floor: all().map(|r| r.term.max(r.last_term)).max().unwrap_or(0) + TERMS_SKIPPED,
        largest_id: largest_id(surveys),
        known_regions: regions.keys().copied().collect(),
        rescues,
    })
}

fn site(survey: &RecoverySurvey) -> RecoverySite {
    RecoverySite { store_id: survey.store_id, uuid: survey.uuid.clone(), boot_id: survey.boot_id }
}

fn names<'a>(stores: impl IntoIterator<Item = &'a StoreId>) -> String {
    stores.into_iter().map(|s| s.0.to_string()).collect::<Vec<_>>().join(", ")
}

/// Every store is either surveyed or lost, and of this cluster.
fn check_stores(surveys: &[RecoverySurvey], lost: &BTreeSet<StoreId>) -> Result<(), String> {
    let Some(first) = surveys.first() else { return Err("no survey: at least one store must be left".into()) };
    let mut surveyed = BTreeSet::new();
    for survey in surveys {
        if survey.format != FORMAT {
            return Err(format!("a survey of format {}, this program knows {FORMAT}", survey.format));
        }
        if survey.cluster_id != first.cluster_id {
            return Err(format!("surveys of two clusters: {:x} and {:x}", first.cluster_id, survey.cluster_id));
        }
        if !surveyed.insert(StoreId(survey.store_id)) {
            return Err(format!("store {} is surveyed twice", survey.store_id));
        }
    }
    let known: BTreeSet<_> = surveys.iter().flat_map(|s| &s.known_stores).map(|id| StoreId(*id)).collect();
    let unknown: Vec<_> = lost.iter().filter(|s| !known.contains(s)).collect();
    if !unknown.is_empty() {
        return Err(format!("no surveyed store has heard of store {}: known are {}", names(unknown), names(&known)));
    }
    if lost.is_empty() {
        return Err(format!("which stores are lost? Known are {}", names(&known)));
    }
    let both: Vec<_> = lost.intersection(&surveyed).collect();
    if !both.is_empty() {
        return Err(format!("store {} is named lost and surveyed: it is here", names(both)));
    }
    let missing: Vec<_> = known.iter().filter(|s| !lost.contains(s) && !surveyed.contains(s)).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "store {} is neither surveyed nor named lost: its replicas may be the better ones, or a quorum",
            names(missing)
        )),
    }
}

fn by_region(surveys: &[RecoverySurvey]) -> Result<BTreeMap<u64, Known<'_>>, String> {
    let mut regions = BTreeMap::<u64, Known<'_>>::new();
    for survey in surveys {
        let store = StoreId(survey.store_id);
        for remains in &survey.replicas {
            let region = remains.region.clone().ok_or("a survey with a replica of no region")?;
            let region = Region::try_from(region).map_err(|e| format!("survey of store {}: {e}", store.0))?;
            let known =
                regions.entry(region.id.0).or_insert_with(|| Known { region: region.clone(), replicas: Vec::new() });
            if (region.epoch.version, region.epoch.conf_ver) > (known.region.epoch.version, known.region.epoch.conf_ver)
            {
                known.region = region.clone();
            }
            known.replicas.push((store, remains, region));
        }
    }
    Ok(regions)
}

/// Whether enough voters are left, of both sets while there are two.
pub(super) fn has_quorum(region: &Region, lost: &BTreeSet<StoreId>) -> bool {
    let enough = |votes: &dyn Fn(&&Peer) -> bool| {
        let all = region.peers.iter().filter(votes).count();
        let left = region.peers.iter().filter(votes).filter(|p| !lost.contains(&p.store)).count();
        left > all / 2
    };
    let incoming = |p: &&Peer| matches!(p.role, PeerRole::Voter | PeerRole::IncomingVoter);
    let outgoing = |p: &&Peer| matches!(p.role, PeerRole::Voter | PeerRole::DemotingVoter);
    let joint = region.peers.iter().any(|p| matches!(p.role, PeerRole::IncomingVoter | PeerRole::DemotingVoter));
    enough(&incoming) && (!joint || enough(&outgoing))
}

fn rescue(known: &Known<'_>, lost: &BTreeSet<StoreId>) -> Result<Rescue, String> {
    let id = known.region.id.0;
    let usable = |(store, remains, region): &&(StoreId, &ReplicaRemains, Region)| {
        !remains.taking_snapshot && !lost.contains(store) && region.peer_on(*store).is_some()
    };
    let newest = |(store, remains, region): &&(StoreId, &ReplicaRemains, Region)| {
        let votes = region.peer_on(*store).is_some_and(|p| p.role != PeerRole::Learner);
        (remains.last_term, remains.last_index, remains.applied_index, votes, std::cmp::Reverse(*store))
    };
    let Some((store, remains, region)) = known.replicas.iter().filter(usable).max_by_key(newest) else {
        return Err(format!(
            "region {id} lost its quorum, and none of its replicas that are left can go on (a snapshot is half taken, or \
             the store is no member any more): start those stores once, or leave the region out (--leave {id})"
        ));
    };
    let peer = region.peer_on(*store).ok_or("a replica without a peer")?;
    let others = known.replicas.iter().map(|(other, ..)| other.0).filter(|other| *other != store.0);
    Ok(Rescue {
        region: Some(region.into()),
        store_id: store.0,
        peer_id: peer.id.0,
        applied_index: remains.applied_index,
        last_index: remains.last_index,
        given_up: others.collect(),
        ..Rescue::default()
    })
}

/// A region that goes on must not hold keys of another one. Where its survivor has not heard of a split or merge, it keeps
/// what newer regions leave of it.
fn narrow(regions: &[&Known<'_>], rescue: &mut Rescue) -> Result<(), String> {
    let Some(region) = rescue.region.clone().and_then(|r| Region::try_from(r).ok()) else { return Ok(()) };
    let mut keeps = vec![region.range.clone()];
    for other in regions.iter().map(|k| &k.region).filter(|other| other.id != region.id) {
        let Some(common) = other.range.intersect(&region.range) else { continue };
        if other.epoch.version <= region.epoch.version {
            // The other one is told to keep less, if it goes on; if it lives on, two regions say that they are the newer.
            continue;
        }
        rescue.version_floor = rescue.version_floor.max(other.epoch.version);
        keeps = keeps.iter().flat_map(|range| without(range, &common)).collect();
    }
    match &keeps[..] {
        [all] if *all == region.range => Ok(()),
        [one] => {
            rescue.keeps = Some(one.into());
            Ok(())
        }
        parts => Err(format!(
            "region {} on store {} has not heard of a split or merge, and newer regions leave {} parts of it: leave it \
             out (--leave {})",
            region.id.0,
            rescue.store_id,
            parts.len(),
            region.id.0
        )),
    }
}

/// What is left of a range.
fn without(range: &KeyRange, cut: &KeyRange) -> Vec<KeyRange> {
    let Some(cut) = range.intersect(cut) else { return vec![range.clone()] };
    let before = (range.start < cut.start).then(|| KeyRange::new(range.start.clone(), cut.start.clone()));
    let goes_on = !cut.end.is_empty() && (range.end.is_empty() || cut.end < range.end);
    let after = goes_on.then(|| KeyRange::new(cut.end.clone(), range.end.clone()));
    before.into_iter().chain(after).collect()
}

fn holes<'a>(ranges: impl Iterator<Item = &'a KeyRange>) -> Vec<KeyRange> {
    let mut sorted: Vec<_> = ranges.collect();
    sorted.sort_by(|a, b| a.start.cmp(&b.start));
    let (mut holes, mut next) = (Vec::new(), Some(bytes::Bytes::new()));
    for range in sorted {
        let Some(from) = &next else { break };
        if range.start > *from {
            holes.push(KeyRange::new(from.clone(), range.start.clone()));
        }
        next = match range.end.is_empty() {
            true => None,
            false => Some(range.end.clone().max(from.clone())),
        };
    }
    holes.extend(next.map(|from| KeyRange::new(from, bytes::Bytes::new())));
    holes
}

fn largest_id(surveys: &[RecoverySurvey]) -> u64 {
    let regions = surveys.iter().flat_map(|s| &s.replicas).filter_map(|r| r.region.as_ref());
    let ids = regions.flat_map(|r| r.peers.iter().map(|p| p.id.max(p.store_id)).chain([r.id]));
    ids.chain(surveys.iter().flat_map(|s| s.known_stores.iter().copied())).max().unwrap_or(0)
}
