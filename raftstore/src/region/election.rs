//! When a replica stands for election, and when it may vote.

use proto::Term;
use raft::StateRole;

use crate::keys::INITIAL;

/// The seeded jitter of one replica's election timeout, its silence after a restart, its haste in a new cluster.
pub(super) struct Election {
    ticks: u32,
    random: u64,
    /// Drawn for the current role and term.
    timeout: usize,
    drawn_for: Option<(Term, StateRole)>,
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

    /// The timeout for a role and term: above one election timeout and up to 1.6 of it. Wide enough that three voters
    /// seldom collide, narrow enough for a quick fail-over. raft-rs would draw it from the thread's own generator, and
    /// no run would repeat.
    pub(super) fn timeout(&mut self, term: Term, role: StateRole) -> usize {
        if self.drawn_for != Some((term, role)) {
            self.drawn_for = Some((term, role));
            self.timeout = self.draw(term);
        }
        self.timeout
    }

    fn draw(&mut self, term: Term) -> usize {
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_add(term.0);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let spread = u64::from(self.ticks) * 6 / 10 + 1;
        (u64::from(self.ticks) + 1 + z % spread) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_above_one_and_repeat_with_the_seed() {
        let draws = |seed| {
            let mut election = Election::new(10, seed, true, false);
            (0..100).map(|term| election.timeout(Term(term), StateRole::Follower)).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        assert!(draws(1).iter().all(|d| (11..=17).contains(d)));
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
