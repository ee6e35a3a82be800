//! Regions that nobody uses cost nothing: their replicas neither tick nor speak.
//!
//! ```text
//!  leader    idle for long, every peer has everything ─► marks its heartbeats ─► all have agreed ─► sleeps
//!  follower  a marked heartbeat, and it has everything too ─► sleeps, and says so in its answer
//!  both      wake with any other message and with any request
//!  follower  wakes when its leader's store falls silent or was restarted ([`crate::store`] hears of it)
//!  leader    wakes when no quorum of its voters' stores is heard of
//! ```
//!
//! A sleeping leader has no lease for long: nobody acknowledges heartbeats, so it runs out, and the next reader, who
//! asks the quorum, wakes the region. A sleeping voter votes for nobody earlier than it would have awake: its election
//! timer stands still, and goes on from what has really passed.

use std::collections::BTreeSet;

use proto::{PD_REGION, PeerId, StoreId, wire};
use raft::eraftpb::MessageType;
use tracing::{debug, info};

use super::{Replica, membership};
use crate::clock::Instant;

/// Election timeouts without anything to do before a leader wants to sleep.
const IDLE_ELECTIONS: u32 = 2;

/// Whether a replica sleeps, and how near it is to it.
#[derive(Default)]
pub(super) struct Hibernation {
    asleep: bool,
    /// When the leader last said that it wants to sleep, if it has said nothing since: real time, because this replica's
    /// ticks stood still.
    quiet_since: Option<Instant>,
    idle_ticks: u32,
    /// Followers that sleep already.
    agreed: BTreeSet<PeerId>,
    /// A leader has just woken: for so many ticks more, a peer's silence says nothing.
    grace_ticks: u32,
}

impl Hibernation {
    /// It is not idle any more.
    fn end(&mut self) {
        let (quiet_since, grace_ticks) = (self.quiet_since, self.grace_ticks);
        *self = Hibernation { quiet_since, grace_ticks, ..Hibernation::default() };
    }

    /// A leader speaks.
    pub(super) fn heard(&mut self) {
        self.quiet_since = None;
    }
}

impl Replica {
    /// Whether it sleeps: then it needs no ticks.
    pub(crate) fn is_asleep(&self) -> bool {
        self.hibernation.asleep
    }

    /// Something happens.
    pub(super) fn wake(&mut self) {
        if self.is_asleep() && self.leads() {
            // Peers get time to answer before their silence counts; that they did before the sleep counts no more.
            self.node.raft.election_elapsed = 0;
            self.hibernation.grace_ticks = self.config.election_ticks;
            for peer in self.region.peers.iter().filter(|p| p.id != self.peer.id) {
                if let Some(progress) = self.node.raft.mut_prs().get_mut(peer.id.0) {
                    progress.recent_active = false;
                }
            }
        }
        self.hibernation.end();
    }

    /// Whether this leader has just woken, and does not know yet who is alive.
    pub(super) fn has_just_woken(&self) -> bool {
        self.hibernation.grace_ticks > 0
    }

    /// Nothing is under way, and nothing is missing here.
    fn is_idle(&self) -> bool {
        let log = &self.node.raft.raft_log;
        let (last, applied) = (log.last_index(), self.applied.index.0);
        let settled = log.committed == last && applied == last && self.writes.held <= self.writes.persisted;
        let asked = self.proposals.any() || self.reads.len() > 0 || self.changes.any();
        let changing = membership::is_joint(&self.region) || self.node.raft.lead_transferee.is_some();
        settled
            && !asked
            && !changing
            && self.snapshots.is_idle()
            && self.is_initialised()
            // PD's timestamps are served under its lease.
            && self.region.id != PD_REGION
    }

    /// Whether every peer has all of the log.
    fn all_are_level(&self) -> bool {
        let last = self.node.raft.raft_log.last_index();
        self.node.raft.prs().iter().all(|(_, progress)| progress.matched == last)
    }

    /// A leader's tick: it falls asleep when everybody else has.
    pub(super) fn tick_idle(&mut self) {
        self.hibernation.grace_ticks = self.hibernation.grace_ticks.saturating_sub(1);
        if !self.config.hibernates || !self.leads() || !self.is_idle() || !self.all_are_level() {
            self.hibernation.end();
            return;
        }
        self.hibernation.idle_ticks += 1;
        let others = self.region.peers.iter().filter(|p| p.id != self.peer.id);
        if self.wants_sleep() && others.clone().all(|p| self.hibernation.agreed.contains(&p.id)) {
            debug!(region = self.region.id.0, peer = self.peer.id.0, "the leader falls asleep");
            self.hibernation.asleep = true;
        }
    }

    fn wants_sleep(&self) -> bool {
        self.hibernation.idle_ticks >= IDLE_ELECTIONS * self.config.election_ticks
    }

    /// Whether a message to a peer says that this replica sleeps, or wants to.
    pub(super) fn says_sleep(&self, kind: MessageType) -> bool {
        match kind {
            MessageType::MsgHeartbeat => self.leads() && self.wants_sleep(),
            MessageType::MsgHeartbeatResponse => self.is_asleep(),
            _ => false,
        }
    }

    /// Before a message of the present term is stepped: whether it lets this replica sleep on, or wakes it.
    pub(super) fn disturbed_by(&mut self, envelope: &wire::RaftMessage, kind: MessageType, from: PeerId) {
        match kind {
            MessageType::MsgHeartbeatResponse if self.leads() => {
                match envelope.sleeps {
                    true => drop(self.hibernation.agreed.insert(from)),
                    // It did not hear, or was woken.
                    false if self.is_asleep() => self.wake(),
                    false => drop(self.hibernation.agreed.remove(&from)),
                }
            }
            MessageType::MsgHeartbeat if envelope.sleeps => {}
            _ => self.wake(),
        }
    }

    /// After a marked heartbeat of the leader was stepped: sleeps, when nothing is missing.
    pub(super) fn sleep_if_level(&mut self, now: Instant, commit: u64) {
        let follows = !self.leads() && self.node.raft.leader_id != raft::INVALID_ID && !self.election.silent();
        let level = self.node.raft.raft_log.last_index() == commit && self.is_idle();
        if self.config.hibernates && follows && level {
            self.hibernation.asleep = true;
            self.hibernation.quiet_since = Some(now);
        } else {
            self.wake();
        }
    }

    /// A store fell silent or was restarted; `lives` tells which others are heard of. Whether this replica has to do with
    /// it: a follower whose leader was there goes on as if it had never slept, also when another voter's candidacy has
    /// woken it already; a leader that hears of no quorum finds out whether it still leads, and whether it is still a peer.
    pub(crate) fn lost_store(&mut self, now: Instant, store: StoreId, lives: impl Fn(StoreId) -> bool) -> bool {
        let Some(leader) = self.leader() else { return false };
        if self.leads() {
            let voters: Vec<_> =
                membership::voters_to_be(&self.region.peers).filter_map(|p| self.region.peer(p)).collect();
            let living = voters.iter().filter(|p| p.id == self.peer.id || lives(p.store)).count();
            if !self.is_asleep() || living > voters.len() / 2 {
                return false;
            }
            info!(region = self.region.id.0, peer = self.peer.id.0, living, "woken: most voters' stores are lost");
            self.wake();
            return true;
        }
        let Some(since) = self.hibernation.quiet_since.filter(|_| leader.store == store) else { return false };
        info!(region = self.region.id.0, peer = self.peer.id.0, store = store.0, "woken: the leader's store is lost");
        let quiet = now.since(since).as_nanos() / self.config.tick.as_nanos().max(1);
        // Not beyond one timeout: its turn comes behind that.
        let quiet = usize::try_from(quiet).unwrap_or(usize::MAX).min(self.config.election_ticks as usize);
        self.node.raft.election_elapsed = self.node.raft.election_elapsed.max(quiet);
        self.wake();
        true
    }
}
