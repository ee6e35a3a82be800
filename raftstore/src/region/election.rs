//! When a replica stands for election, and when it may vote.
//!
//! ```text
//!  silence for one timeout ─► │ rank 0 │  gap  │ rank 1 │  gap  │ rank 2 │      in ticks; 1 to 1.6 timeouts,
//!                                                                                  with five voters up to 1.9
//! ```
//!
//! Voters that stand at once refuse each other, and raft-rs lets them wait a whole timeout more. Drawn at random, one
//! election of seven collided so, and of a thousand regions whose store died the last needed a third attempt. So each voter
//! has a turn of its own: its rank in an order that every replica computes alike from region and term. Another region,
//! or term, has another order: leaders spread, and who can't win is not first again. Where replicas disagree on the
//! members or the dead leader for a while, turns may coincide; then a candidate that was refused waits only for its turn.

use proto::{Epoch, Peer, PeerId, PeerRole, Region, Term};
use raft::StateRole;

use crate::keys::INITIAL;

/// Of an election timeout: in so many tenths of it all voters have their turn, unless two ticks for each take longer.
const SPREAD_TENTHS: u32 = 6;

/// What a replica's turn depends on.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Standing {
    pub(super) term: Term,
    pub(super) role: StateRole,
    /// Who leads in the term; its turn is nobody's once it is dead.
    pub(super) leader: Option<PeerId>,
}

/// One replica's election timeout, its silence after a restart, its haste in a new cluster.
pub(super) struct Election {
    ticks: u32,
    /// Seeded: equal runs repeat.
    random: u64,
    timeout: usize,
    drawn_for: Option<(Standing, Epoch)>,
    /// Ticks during which no vote is granted and no candidacy begins.
    silent_ticks: u32,
    /// Nobody has ever led, and this replica was chosen to do so first: it stands at every tick.
    eager: bool,
    /// Leadership as last noticed: (leads, term).
    pub(super) led: (bool, Term),
}

impl Election {
    /// `fresh`: the replica has never heard of any leader, so it can't have acknowledged a lease.
    pub(super) fn new(ticks: u32, seed: u64, fresh: bool, eager: bool) -> Self {
        let silent_ticks = if fresh { 0 } else { ticks };
        let led = (false, Term::default());
        Election { ticks, random: seed, timeout: 0, drawn_for: None, silent_ticks, eager, led }
    }

    /// A tick passed.
    pub(super) fn tick(&mut self) {
        self.silent_ticks = self.silent_ticks.saturating_sub(1);
    }

    /// Whether this replica restarted less than an election timeout ago: before the crash it may have
    /// acknowledged the heartbeat on which a leader's lease rests, and does not know.
    pub(super) fn silent(&self) -> bool {
        self.silent_ticks > 0
    }

    /// Whether to stand for election although no timeout has passed: raft-rs is asked again while nobody answers.
    pub(super) fn stands_eagerly(&mut self, term: Term, role: StateRole, leader_known: bool) -> bool {
        self.eager &= term <= INITIAL.term && !leader_known;
        self.eager && matches!(role, StateRole::Follower | StateRole::PreCandidate)
    }

    /// Ticks until a replica stands: one election timeout and its turn. raft-rs would draw it from the thread's own
    /// generator: turns would collide, and no run would repeat.
    pub(super) fn timeout(&mut self, region: &Region, own: PeerId, standing: Standing) -> usize {
        if self.drawn_for != Some((standing, region.epoch)) {
            self.drawn_for = Some((standing, region.epoch));
            self.random = mix(self.random.wrapping_add(standing.term.0));
            let turn = turn(region, own, standing, self.ticks, self.random);
            // raft-rs accepts less than two timeouts.
            self.timeout = (self.ticks + 1 + turn).min(2 * self.ticks - 1) as usize;
        }
        self.timeout
    }
}

/// Ticks from the end of the election timeout to a voter's turn. Two voters' are at least two ticks apart, as long as
/// there is room: stores tick at different moments.
fn turn(region: &Region, own: PeerId, standing: Standing, ticks: u32, random: u64) -> u32 {
    let place = |peer: PeerId| mix(mix(region.id.0 ^ standing.term.0.rotate_left(32)) ^ peer.0);
    let may_stand = |peer: &&Peer| peer.role != PeerRole::Learner && Some(peer.id) != standing.leader;
    let voters = || region.peers.iter().filter(may_stand).map(|peer| peer.id);
    let rank = voters().filter(|peer| (place(*peer), peer.0) < (place(own), own.0)).count() as u32;
    let voters = voters().count().max(1) as u32;
    let gap = (ticks * SPREAD_TENTHS / 10).div_ceil(voters);
    // Not all of rank 0 in one tick: a store may hold thousands.
    let within = random % u64::from(gap.saturating_sub(1).max(1));
    rank * gap + within as u32
}

/// splitmix64's finisher: every bit of the result depends on every bit of the input.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto::{KeyRange, RegionId, StoreId};

    use super::*;

    const TICKS: u32 = 10;

    fn region(id: u64, voters: u64) -> Region {
        let peer = |n| Peer { id: PeerId(id * 100 + n), store: StoreId(n), role: PeerRole::Voter };
        let epoch = Epoch { conf_ver: 1, version: 1 };
        Region { id: RegionId(id), range: KeyRange::default(), epoch, peers: (1..=voters).map(peer).collect() }
    }

    /// The timeouts of all voters but the leader.
    fn timeouts(region: &Region, term: u64, leader: Option<PeerId>, ticks: u32) -> Vec<usize> {
        let standing = Standing { term: Term(term), role: StateRole::Follower, leader };
        let others = region.peers.iter().filter(|peer| Some(peer.id) != leader);
        let timeout =
            |peer: &Peer| Election::new(ticks, peer.id.0 ^ term, true, false).timeout(region, peer.id, standing);
        others.map(timeout).collect()
    }

    #[test]
    fn voters_that_know_the_same_stand_two_ticks_apart() {
        for (id, voters) in [(1, 3), (7, 3), (10_001, 3), (2, 5), (3, 4)] {
            let region = region(id, voters);
            for term in 6..200 {
                for leader in [None, Some(region.peers[(term % voters) as usize].id)] {
                    let mut turns = timeouts(&region, term, leader, TICKS);
                    turns.sort_unstable();
                    assert!(turns.windows(2).all(|two| two[1] - two[0] >= 2), "{voters} voters: {turns:?}");
                    assert!(turns[0] > TICKS as usize && turns[turns.len() - 1] < 2 * TICKS as usize, "{turns:?}");
                }
            }
        }
    }

    #[test]
    fn every_timeout_is_one_that_raft_accepts() {
        for (ticks, voters) in [(2, 3), (3, 3), (10, 7), (10, 32)] {
            for term in 1..50 {
                let turns = timeouts(&region(9, voters), term, None, ticks);
                assert!(turns.iter().all(|turn| (ticks as usize..2 * ticks as usize).contains(turn)), "{turns:?}");
            }
        }
    }

    #[test]
    fn of_many_regions_each_store_is_first_for_its_part() {
        let mut first = BTreeMap::new();
        for id in 1..=1000 {
            let region = region(id, 3);
            let leader = region.peers[2].id;
            let turns = timeouts(&region, 8, Some(leader), TICKS);
            *first.entry(turns[0] < turns[1]).or_insert(0) += 1;
        }
        assert!(first.values().all(|part| (400..=600).contains(part)), "{first:?}");
    }

    #[test]
    fn a_timeout_holds_until_what_it_depends_on_changes() {
        let region = region(4, 3);
        let mut election = Election::new(TICKS, 1, true, false);
        let mut draw = |term, role| {
            election.timeout(&region, region.peers[0].id, Standing { term: Term(term), role, leader: None })
        };
        let drawn = draw(7, StateRole::Follower);
        assert!((0..100).all(|_| draw(7, StateRole::Follower) == drawn));
        assert!((8..40).any(|term| draw(term, StateRole::Follower) != drawn));
    }

    #[test]
    fn silence_lasts_one_election_timeout() {
        let mut election = Election::new(3, 1, false, false);
        for _ in 0..3 {
            assert!(election.silent());
            election.tick();
        }
        assert!(!election.silent());
        assert!(!Election::new(3, 1, true, false).silent());
    }
}
