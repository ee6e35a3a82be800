//! Who the peers of a region are, from request to steps.
//!
//! ```text
//!   request        AddLearner(p4)       Promote(p4), Remove(p1)
//!   steps          add p4               enter joint: p4 incoming, p1 demoting → leave → remove p1 (a learner by now)
//!   conf_ver       +1                   +2                                      +2      +1
//! ```
//!
//! Changes of voters go through a joint state, in which majorities of the old and of the new voters count; the leader ends
//! it as soon as it is applied. raft-rs could do that by itself, but a leader that is elected in the middle would not.
//! A voter is not removed in one step: it becomes a learner first, so that roles alone say what the joint state is.
//!
//! At most one step is under way: raft-rs turns a second one silently into an empty entry, so it is not asked.

use std::collections::{BTreeSet, VecDeque};

use proto::{Epoch, Peer, PeerId, PeerRole, Region, StoreId};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

use crate::api::PeerChange;

/// Peers of a region at most: more than any placement asks for, few enough for one message.
const PEERS_AT_MOST: usize = 32;

/// One entry's worth: a single change of learners, or changes of voters that enter a joint state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step(Vec<PeerChange>);

fn is_joint_role(role: PeerRole) -> bool {
    matches!(role, PeerRole::IncomingVoter | PeerRole::DemotingVoter)
}

/// Whether two sets of voters decide together.
pub(crate) fn is_joint(region: &Region) -> bool {
    region.peers.iter().any(|p| is_joint_role(p.role))
}

/// The voters once no joint state is left.
pub(crate) fn voters_to_be(peers: &[Peer]) -> impl Iterator<Item = PeerId> {
    peers.iter().filter(|p| matches!(p.role, PeerRole::Voter | PeerRole::IncomingVoter)).map(|p| p.id)
}

/// A request as steps, or why it makes no sense. `leader` is the peer that is asked.
pub(crate) fn steps(region: &Region, leader: PeerId, changes: &[PeerChange]) -> Result<VecDeque<Step>, String> {
    let (mut adds, mut joint, mut removals) = (VecDeque::new(), Vec::new(), Vec::new());
    let mut named = BTreeSet::new();
    for &change in changes {
        let id = match change {
            PeerChange::AddLearner(peer) => peer.id,
            PeerChange::Promote(id) | PeerChange::Demote(id) | PeerChange::Remove(id) => id,
        };
        if !named.insert(id) {
            return Err(format!("{id} is named twice"));
        }
        let known = region.peer(id);
        let is_voter = known.is_some_and(|p| p.role == PeerRole::Voter);
        match change {
            PeerChange::AddLearner(peer) => {
                check_addition(region, peer)?;
                adds.push_back(Step(vec![change]));
            }
            _ if known.is_none() => return Err(format!("{id} is no peer of {}", region.id)),
            PeerChange::Demote(_) | PeerChange::Remove(_) if id == leader => {
                return Err(format!("{id} leads {}: hand its leadership over first", region.id));
            }
            PeerChange::Promote(_) if is_voter => return Err(format!("{id} is a voter already")),
            PeerChange::Demote(_) if !is_voter => return Err(format!("{id} is a learner already")),
            PeerChange::Remove(_) => {
                if is_voter {
                    joint.push(PeerChange::Demote(id));
                }
                removals.push(Step(vec![change]));
            }
            PeerChange::Promote(_) | PeerChange::Demote(_) => joint.push(change),
        }
    }
    let stores: BTreeSet<StoreId> = changes.iter().filter_map(added_store).collect();
    if stores.len() < adds.len() {
        return Err("two peers are to be added on one store".into());
    }
    if named.is_empty() || region.peers.len() + adds.len() > PEERS_AT_MOST {
        return Err(format!("a change names 1 peer or more, and leaves {PEERS_AT_MOST} at most"));
    }
    let mut steps = adds;
    if !joint.is_empty() {
        steps.push_back(Step(joint));
    }
    steps.extend(removals);
    Ok(steps)
}

fn added_store(change: &PeerChange) -> Option<StoreId> {
    match change {
        PeerChange::AddLearner(peer) => Some(peer.store),
        _ => None,
    }
}

fn check_addition(region: &Region, peer: Peer) -> Result<(), String> {
    if peer.role != PeerRole::Learner || peer.id.0 == 0 || peer.store.0 == 0 {
        return Err(format!("{} on {} is not a learner with ids: peers begin as learners", peer.id, peer.store));
    }
    if region.peer(peer.id).is_some() {
        return Err(format!("{} is a peer of {} already", peer.id, region.id));
    }
    match region.peer_on(peer.store) {
        Some(other) => Err(format!("{} has a peer on {} already: {}", region.id, peer.store, other.id)),
        None => Ok(()),
    }
}

impl Step {
    /// Whether voters change.
    pub(crate) fn is_joint(&self) -> bool {
        self.0.iter().any(|c| matches!(c, PeerChange::Promote(_) | PeerChange::Demote(_)))
    }

    /// Those that become voters.
    pub(crate) fn promoted(&self) -> impl Iterator<Item = PeerId> {
        self.0.iter().filter_map(|c| match c {
            PeerChange::Promote(id) => Some(*id),
            _ => None,
        })
    }

    /// Who the peers are after it.
    pub(crate) fn peers_after(&self, region: &Region) -> Vec<Peer> {
        let mut peers = region.peers.clone();
        for change in &self.0 {
            match *change {
                PeerChange::AddLearner(peer) => peers.push(peer),
                PeerChange::Remove(id) => peers.retain(|p| p.id != id),
                PeerChange::Promote(id) => set_role(&mut peers, id, PeerRole::IncomingVoter),
                PeerChange::Demote(id) => set_role(&mut peers, id, PeerRole::DemotingVoter),
            }
        }
        peers
    }

    /// As raft-rs takes it.
    pub(crate) fn conf_change(&self) -> ConfChangeV2 {
        let mut all = ConfChangeV2::default();
        if self.is_joint() {
            all.set_transition(ConfChangeTransition::Explicit);
        }
        for change in &self.0 {
            let (kind, id) = match *change {
                PeerChange::AddLearner(peer) => (ConfChangeType::AddLearnerNode, peer.id),
                PeerChange::Demote(id) => (ConfChangeType::AddLearnerNode, id),
                PeerChange::Promote(id) => (ConfChangeType::AddNode, id),
                PeerChange::Remove(id) => (ConfChangeType::RemoveNode, id),
            };
            let mut single = ConfChangeSingle { node_id: id.0, ..ConfChangeSingle::default() };
            single.set_change_type(kind);
            all.mut_changes().push(single);
        }
        all
    }
}

fn set_role(peers: &mut [Peer], id: PeerId, role: PeerRole) {
    peers.iter_mut().filter(|p| p.id == id).for_each(|p| p.role = role);
}

/// Who the peers are when the joint state has ended.
pub(crate) fn peers_after_leaving(region: &Region) -> Vec<Peer> {
    let settled = |role| match role {
        PeerRole::IncomingVoter => PeerRole::Voter,
        PeerRole::DemotingVoter => PeerRole::Learner,
        role => role,
    };
    region.peers.iter().map(|&peer| Peer { role: settled(peer.role), ..peer }).collect()
}

/// The region with other peers. Its conf_ver grows by the number of peers that came, went or changed their role.
pub(crate) fn with_peers(region: &Region, peers: Vec<Peer>) -> Region {
    let came_or_changed = peers.iter().filter(|p| region.peer(p.id) != Some(**p)).count();
    let went = region.peers.iter().filter(|p| !peers.iter().any(|q| q.id == p.id)).count();
    let steps = (came_or_changed + went).max(1) as u64;
    let epoch = Epoch { conf_ver: region.epoch.conf_ver + steps, ..region.epoch };
    Region { peers, epoch, ..region.clone() }
}

/// The membership as raft-rs takes it.
pub(crate) fn conf_state(region: &Region) -> ConfState {
    let of = |roles: &[PeerRole]| region.peers.iter().filter(|p| roles.contains(&p.role)).map(|p| p.id.0).collect();
    ConfState {
        voters: of(&[PeerRole::Voter, PeerRole::IncomingVoter]),
        learners: of(&[PeerRole::Learner]),
        voters_outgoing: if is_joint(region) { of(&[PeerRole::Voter, PeerRole::DemotingVoter]) } else { Vec::new() },
        learners_next: of(&[PeerRole::DemotingVoter]),
        ..ConfState::default()
    }
}

/// Whether two memberships are the same; the order says nothing.
pub(crate) fn same(a: &ConfState, b: &ConfState) -> bool {
    let sorted = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
    let all = |state: &ConfState| {
        [&state.voters, &state.learners, &state.voters_outgoing, &state.learners_next].map(|ids| sorted(ids))
    };
    all(a) == all(b) && a.auto_leave == b.auto_leave
}

#[cfg(test)]
mod tests {
    use proto::{KeyRange, RegionId};

    use super::*;

    fn peer(id: u64, role: PeerRole) -> Peer {
        Peer { id: PeerId(id), store: StoreId(id), role }
    }

    fn region(roles: &[PeerRole]) -> Region {
        Region {
            id: RegionId(2),
            range: KeyRange::default(),
            epoch: Epoch { conf_ver: 1, version: 1 },
            peers: (1..).zip(roles).map(|(id, &role)| peer(id, role)).collect(),
        }
    }

    const THREE: [PeerRole; 3] = [PeerRole::Voter; 3];

    #[test]
    fn a_swap_is_a_joint_state_and_then_a_removal() {
        let before = region(&[PeerRole::Voter, PeerRole::Voter, PeerRole::Voter, PeerRole::Learner]);
        let changes = [PeerChange::Promote(PeerId(4)), PeerChange::Remove(PeerId(3))];
        let mut steps = steps(&before, PeerId(1), &changes).unwrap();
        let joint = steps.pop_front().unwrap();
        assert!(joint.is_joint() && joint.promoted().eq([PeerId(4)]));
        let during = with_peers(&before, joint.peers_after(&before));
        assert_eq!(during.epoch.conf_ver, 3);
        assert_eq!(voters_to_be(&during.peers).collect::<Vec<_>>(), [PeerId(1), PeerId(2), PeerId(4)]);
        let state = conf_state(&during);
        assert_eq!((state.voters, state.voters_outgoing, state.learners_next), (vec![1, 2, 4], vec![1, 2, 3], vec![3]));
        let left = with_peers(&during, peers_after_leaving(&during));
        assert_eq!((left.epoch.conf_ver, left.peers[2].role), (5, PeerRole::Learner));
        let removal = steps.pop_front().unwrap();
        assert!(!removal.is_joint() && steps.is_empty());
        let after = with_peers(&left, removal.peers_after(&left));
        assert_eq!((after.epoch.conf_ver, after.peers.len()), (6, 3));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |changes: &[PeerChange]| steps(&region(&THREE), PeerId(1), changes).unwrap_err();
        let add = |id, store| PeerChange::AddLearner(Peer { store: StoreId(store), ..peer(id, PeerRole::Learner) });
        assert!(refused(&[]).contains("1 peer or more"));
        assert!(refused(&[PeerChange::Remove(PeerId(1))]).contains("hand its leadership over"));
        assert!(refused(&[PeerChange::Demote(PeerId(1))]).contains("hand its leadership over"));
        assert!(refused(&[PeerChange::Promote(PeerId(2))]).contains("a voter already"));
        assert!(refused(&[PeerChange::Remove(PeerId(9))]).contains("no peer"));
        assert!(refused(&[PeerChange::Demote(PeerId(2)), PeerChange::Remove(PeerId(2))]).contains("twice"));
        assert!(refused(&[add(4, 3)]).contains("has a peer on s3"));
        assert!(refused(&[add(4, 4), add(5, 4)]).contains("on one store"));
        assert!(refused(&[PeerChange::AddLearner(peer(4, PeerRole::Voter))]).contains("begin as learners"));
    }
}
