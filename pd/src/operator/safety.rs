//! Would a step leave fewer live voters than a quorum? Asked when a plan is admitted and again before each step leaves.

use proto::{Peer, PeerRole, StoreId};

use super::Step;
use crate::cluster::RegionView;

/// Why the step must not be taken now, if so. `live`: the store has been heard of lately.
pub fn objection(step: &Step, view: &RegionView, live: &dyn Fn(StoreId) -> bool) -> Option<String> {
    match step {
        Step::AddLearner { store, .. } => (!live(*store)).then(|| format!("{store} is not there")),
        Step::Joint { promote, demote } => joint(promote, demote, view, live),
        Step::Remove { store } => match view.region.peer_on(*store).map(|p| p.role) {
            Some(PeerRole::Learner) | None => None,
            Some(_) => Some(format!("the peer on {store} votes: it must be demoted first")),
        },
        Step::TransferLeader { to } => match view.region.peer_on(*to) {
            None => Some(format!("no peer on {to}")),
            Some(p) if !matches!(p.role, PeerRole::Voter | PeerRole::IncomingVoter) => {
                Some(format!("the peer on {to} does not vote"))
            }
            Some(p) if !is_live(view, &p, live) => Some(format!("the peer on {to} does not answer")),
            Some(_) => None,
        },
        Step::Split { .. } | Step::Merge { .. } => None,
    }
}

/// Whether the peer counts: its store reports, its leader hears it, and it does not wait for a snapshot (without data it
/// grants no votes).
pub fn is_live(view: &RegionView, peer: &Peer, live: &dyn Fn(StoreId) -> bool) -> bool {
    live(peer.store) && view.progress_of(peer.id).is_none_or(|p| p.active && !p.needs_snapshot)
}

fn joint(promote: &[StoreId], demote: &[StoreId], view: &RegionView, live: &dyn Fn(StoreId) -> bool) -> Option<String> {
    if let Some(leader) = view.leader.filter(|l| demote.contains(&l.store)) {
        return Some(format!("{} leads: the leadership must move first", leader.store));
    }
    for store in promote {
        match view.region.peer_on(*store) {
            None => return Some(format!("no peer on {store}")),
            Some(p) if p.role == PeerRole::Learner && !view.is_caught_up(&p) => {
                return Some(format!("the learner on {store} has not caught up"));
            }
            Some(_) => {}
        }
    }
    let votes = |p: &&Peer| matches!(p.role, PeerRole::Voter | PeerRole::IncomingVoter);
    let after = |p: &&Peer| (votes(p) && !demote.contains(&p.store)) || promote.contains(&p.store);
    let peers = &view.region.peers;
    below_quorum("as it is", peers.iter().filter(votes), view, live)
        .or_else(|| below_quorum("as it would be", peers.iter().filter(after), view, live))
}

fn below_quorum<'a>(
    when: &str,
    voters: impl Iterator<Item = &'a Peer>,
    view: &RegionView,
    live: &dyn Fn(StoreId) -> bool,
) -> Option<String> {
    let (mut all, mut alive) = (0, 0);
    for peer in voters {
        all += 1;
        alive += usize::from(is_live(view, peer, live));
    }
    let quorum = all / 2 + 1;
    (alive < quorum).then(|| format!("{alive} of {all} voters {when} are alive, a quorum is {quorum}"))
}

/// What `Planted::RemovalBelowQuorum` adds to a round of planning.
#[cfg(feature = "planted-bugs")]
pub(crate) fn removals_below_quorum(now: crate::Now, cluster: &crate::Cluster) -> Vec<super::Plan> {
    let removal = |view: &RegionView| {
        let dead = view.voters().any(|p| !cluster.is_live(now, p.store));
        let alive = |p: &&Peer| cluster.is_live(now, p.store) && !view.is_led_by(p.store);
        let store = view.voters().find(alive).filter(|_| dead && view.leader.is_some() && !view.is_joint())?.store;
        let steps = vec![Step::Joint { promote: vec![], demote: vec![store] }, Step::Remove { store }];
        Some(crate::placement::plan(view, super::Kind::Repair, "planted", steps, "planted".into()))
    };
    cluster.views().filter_map(removal).collect()
}
