//! Changes of the region itself, from request to answer: splits, memberships, hand-overs. One at a time.
//!
//! What is decided here is only whether to propose; the region changes when the entry is applied ([`crate::apply`]), and
//! what was applied comes back through [`Replica::region_changed`].

use std::{collections::VecDeque, sync::Arc};

use prost::Message;
use proto::{LogIndex, PeerId, PeerRole, Region, StoreId, wire, wire::RegionError};
use raft::{ProgressState, eraftpb::ConfChangeV2};
use tracing::{debug, info};

use super::{
    Replica,
    handover::{Handover, LAG_ENTRIES, Stage},
    membership::{self, Step},
    merge::{Merging, Prepared},
    outbox::{Outbox, Removal},
    propose::Replies,
    split, view,
};
use crate::{
    api::{AdminError, NewRegion, PeerChange, PeerProgress},
    clock::Instant,
    config::Planted,
    effect::{AdminChange, AdminRequest, Answer, MergeStep, RegionChange, Ticket},
    log::Position,
};

/// A learner becomes a voter when it lacks at most so many entries: about what is appended in a round trip or two under load.
const CAUGHT_UP_ENTRIES: u64 = 1024;

/// What is under way, and what the last split took off.
#[derive(Default)]
pub(super) struct Changes {
    under_way: Option<UnderWay>,
    handover: Option<Handover>,
    split_off: Arc<[Arc<Region>]>,
    pub(super) merging: Merging,
}

enum UnderWay {
    Split {
        ticket: Ticket,
        position: Position,
    },
    Peers {
        ticket: Ticket,
        steps: VecDeque<Step>,
    },
    /// As the source; until it is taken over or rolled back. Not proposed while it is not known who is there.
    Merge {
        ticket: Ticket,
        into: Box<Region>,
        position: Option<Position>,
    },
    /// As the target, which nobody waits for.
    Absorb {
        position: Position,
    },
}

impl UnderWay {
    fn ticket(&self) -> Option<Ticket> {
        match self {
            UnderWay::Split { ticket, .. } | UnderWay::Peers { ticket, .. } | UnderWay::Merge { ticket, .. } => {
                Some(*ticket)
            }
            UnderWay::Absorb { .. } => None,
        }
    }

    /// The entry that is waited for.
    fn position(&self) -> Option<Position> {
        match self {
            UnderWay::Split { position, .. } | UnderWay::Absorb { position } => Some(*position),
            UnderWay::Merge { position, .. } => *position,
            UnderWay::Peers { .. } => None,
        }
    }
}

fn answer(replies: &mut Replies, ticket: Ticket, result: Result<Vec<Region>, AdminError>) {
    replies.push((ticket, Answer::Admin(result)));
}

pub(super) fn refused(why: impl Into<String>) -> AdminError {
    AdminError::Refused(why.into())
}

impl Changes {
    pub(super) fn split_off(&self) -> &Arc<[Arc<Region>]> {
        &self.split_off
    }

    /// Whether a split may be committed that is not applied: then a lease must not be renewed, since another store may
    /// soon lead the right part.
    pub(super) fn splits_between(&self, applied: LogIndex, committed: LogIndex) -> bool {
        let position = match &self.under_way {
            Some(UnderWay::Split { position, .. }) => Some(*position),
            Some(UnderWay::Merge { position, .. }) => *position,
            _ => None,
        };
        position.is_some_and(|position| applied < position.index && position.index <= committed)
    }

    pub(super) fn merge_begins(&mut self, ticket: Ticket, into: Box<Region>) {
        self.under_way = Some(UnderWay::Merge { ticket, into, position: None });
    }

    /// The target of a merge that is not proposed yet.
    pub(super) fn merge_waits(&self) -> Option<&Region> {
        match &self.under_way {
            Some(UnderWay::Merge { into, position: None, .. }) => Some(into),
            _ => None,
        }
    }

    pub(super) fn merge_is_proposed(&mut self, at: Position) {
        if let Some(UnderWay::Merge { position, .. }) = &mut self.under_way {
            *position = Some(at);
        }
    }

    /// Whoever waits for a merge of this region gets an answer.
    pub(super) fn merge_ends(&mut self, result: Result<Vec<Region>, AdminError>, out: &mut Outbox) {
        if let Some(UnderWay::Merge { ticket, .. }) = self.under_way {
            self.under_way = None;
            answer(&mut out.replies, ticket, result);
        }
    }

    pub(super) fn absorption_begins(&mut self, position: Position) {
        self.under_way = Some(UnderWay::Absorb { position });
    }

    /// Whether an entry is on its way that ends a merge into this region.
    pub(super) fn absorbs(&self) -> bool {
        matches!(self.under_way, Some(UnderWay::Absorb { .. }))
    }

    /// This replica leads no more: what was proposed may still be carried out.
    pub(super) fn leadership_lost(&mut self, doubt_ticks: u32, replies: &mut Replies) {
        if let Some(ticket) = self.under_way.take().and_then(|change| change.ticket()) {
            answer(replies, ticket, Err(AdminError::Unknown("leadership was lost on the way".into())));
        }
        if let Some(handover) = &mut self.handover {
            handover.stage = Stage::Resigned;
            handover.ticks_left = doubt_ticks;
        }
    }

    /// The replica goes.
    pub(super) fn end(&mut self, error: &RegionError, doubt: &str, replies: &mut Replies) {
        if let Some(ticket) = self.under_way.take().and_then(|change| change.ticket()) {
            answer(replies, ticket, Err(AdminError::Unknown(doubt.into())));
        }
        if let Some(handover) = self.handover.take() {
            answer(replies, handover.ticket, Err(error.clone().into()));
        }
    }

    pub(super) fn any(&self) -> bool {
        self.under_way.is_some() || self.handover.is_some() || self.merging.any()
    }
}

impl Replica {
    /// Somebody wants the region changed. `neighbour`: of a merge, the target as its replica here is.
    pub(crate) fn admin(&mut self, now: Instant, request: AdminRequest, neighbour: Option<&Region>, out: &mut Outbox) {
        self.wake();
        let AdminRequest { ticket, target, change } = request;
        let begun = self.check_target(&target).map_err(AdminError::from).and_then(|()| match change {
            AdminChange::Split(at) => self.begin_split(ticket, &at, out),
            AdminChange::Peers(changes) => self.begin_peers(now, ticket, &changes),
            AdminChange::Transfer(to) => self.begin_handover(ticket, to),
            AdminChange::Merge(into) => self.begin_merge(now, ticket, into, neighbour, out),
        });
        if let Err(error) = begun {
            debug!(region = self.region.id.0, peer = self.peer.id.0, %error, "a change of the region is refused");
            answer(&mut out.replies, ticket, Err(error));
        }
        self.notice_changes(now, out);
    }

    /// Whether the region can be changed at all right now.
    pub(super) fn check_quiet(&self) -> Result<(), AdminError> {
        let (id, raft) = (self.region.id, &self.node.raft);
        if self.changes.merging.any() {
            return Err(refused(format!("{id} is being merged")));
        }
        if !raft.apply_to_current_term() {
            return Err(refused(format!("{id}: its leader is new and does not know yet what its predecessor did")));
        }
        if self.changes.handover.is_some() || raft.lead_transferee.is_some() {
            return Err(refused(format!("the leadership of {id} is being handed over")));
        }
        if self.changes.under_way.is_some() || raft.has_pending_conf() || membership::is_joint(&self.region) {
            return Err(refused(format!("another change of {id} is under way")));
        }
        Ok(())
    }

    fn begin_split(&mut self, ticket: Ticket, at: &[NewRegion], out: &mut Outbox) -> Result<(), AdminError> {
        self.check_quiet()?;
        split::plan(&self.region, at).map_err(AdminError::Refused)?;
        // What waits was accepted before and knows the old borders: it goes first.
        self.propose_waiting(out);
        let kind = wire::region_change::Kind::Split(split::to_wire(at));
        let position = self.propose_change(kind, Vec::new()).map_err(|_| self.not_leader())?;
        info!(region = self.region.id.0, index = position.index.0, parts = at.len() + 1, "a split is proposed");
        self.changes.under_way = Some(UnderWay::Split { ticket, position });
        // Followers hear of its commit at once: the new regions have no quorum before.
        self.node.skip_bcast_commit(false);
        Ok(())
    }

    fn begin_peers(&mut self, now: Instant, ticket: Ticket, changes: &[PeerChange]) -> Result<(), AdminError> {
        self.check_quiet()?;
        let steps = membership::steps(&self.region, self.peer.id, changes).map_err(AdminError::Refused)?;
        let voters_change = steps.iter().find(|step| step.is_joint());
        if let Some(step) = voters_change {
            self.check_promoted(now, step)?;
            if !self.has_just_woken() {
                self.check_living(now, step)?;
            }
        }
        info!(region = self.region.id.0, epoch = %self.region.epoch, ?changes, "a change of the membership begins");
        self.changes.under_way = Some(UnderWay::Peers { ticket, steps });
        Ok(())
    }

    /// Whether new voters have what old ones have.
    fn check_promoted(&self, now: Instant, step: &Step) -> Result<(), AdminError> {
        let id = self.region.id;
        let progress = self.progress(now);
        let of = |peer: PeerId| progress.iter().find(|p| p.peer == peer);
        let last = self.node.raft.raft_log.last_index();
        for promoted in step.promoted() {
            // A short log lacks few entries to who has nothing at all, too.
            if of(promoted).is_none_or(|p| p.needs_snapshot) {
                return Err(refused(format!("{promoted} of {id} has no data yet: a learner becomes a voter with it")));
            }
            let lacks = of(promoted).map_or(last, |p| last - p.matched.0);
            if lacks > CAUGHT_UP_ENTRIES {
                return Err(refused(format!(
                    "{promoted} lacks {lacks} entries of {id}: a learner becomes a voter when it lacks at most \
                     {CAUGHT_UP_ENTRIES}"
                )));
            }
        }
        Ok(())
    }

    /// Whether the voters can decide anything, right after the change.
    fn check_living(&self, now: Instant, step: &Step) -> Result<(), AdminError> {
        let (id, progress) = (self.region.id, self.progress(now));
        let of = |peer: PeerId| progress.iter().find(|p| p.peer == peer);
        let peers = step.peers_after(&self.region);
        let voters: Vec<_> = membership::voters_to_be(&peers).collect();
        // One that waits for a snapshot may have no data at all: then it grants no votes either.
        let counts = |p: &PeerProgress| p.active && !p.needs_snapshot;
        let alive = voters.iter().filter(|&&voter| of(voter).is_some_and(counts)).count();
        if alive <= voters.len() / 2 && !self.config.has(Planted::RemoveBelowQuorum) {
            let (voters, needed) = (voters.len(), voters.len() / 2 + 1);
            return Err(refused(format!(
                "{id} would have {voters} voters of which {alive} answer and have its data: {needed} are needed"
            )));
        }
        Ok(())
    }

    /// Proposes the next step of a change of the membership, once the last one is applied. Also ends a joint state that
    /// an earlier leader has left behind.
    pub(super) fn drive_membership(&mut self, now: Instant, out: &mut Outbox) {
        if !self.leads() || !self.node.raft.apply_to_current_term() || self.node.raft.has_pending_conf() {
            return;
        }
        if self.is_silenced() {
            return;
        }
        if membership::is_joint(&self.region) {
            let peers = membership::peers_after_leaving(&self.region);
            self.propose_membership(peers, ConfChangeV2::default());
            return;
        }
        let Some(UnderWay::Peers { steps, .. }) = &self.changes.under_way else { return };
        let Some(step) = steps.front().cloned() else {
            return self.end_membership(Ok(vec![Region::clone(&self.region)]), out);
        };
        if step.is_joint() {
            let living = self.check_living(now, &step);
            if living.is_err() && self.has_just_woken() {
                // They are asked with the next heartbeat.
                return;
            }
            if let Err(error) = self.check_promoted(now, &step).and(living) {
                return self.end_membership(Err(error), out);
            }
        }
        if self.propose_membership(step.peers_after(&self.region), step.conf_change())
            && let Some(UnderWay::Peers { steps, .. }) = &mut self.changes.under_way
        {
            steps.pop_front();
        }
    }

    /// Whether Raft took it.
    fn propose_membership(&mut self, peers: Vec<proto::Peer>, change: ConfChangeV2) -> bool {
        let context = wire::Membership {
            epoch: Some(self.region.epoch.into()),
            term: self.term().0,
            peers: peers.into_iter().map(Into::into).collect(),
        };
        // Proposing also sends it, so that nobody waits for a heartbeat. A refusal (leadership is being handed over, the
        // log's tail is full) is tried again with the next turn.
        let proposed = self.node.propose_conf_change(context.encode_to_vec(), change);
        if let Err(error) = &proposed {
            debug!(region = self.region.id.0, term = self.term().0, %error, "Raft dropped a change of the membership");
        }
        proposed.is_ok()
    }

    fn end_membership(&mut self, result: Result<Vec<Region>, AdminError>, out: &mut Outbox) {
        if let Some(UnderWay::Peers { ticket, .. }) = self.changes.under_way {
            self.changes.under_way = None;
            answer(&mut out.replies, ticket, result);
        }
    }

    /// An entry has changed the region, or was refused when it was applied.
    pub(super) fn region_changed(
        &mut self,
        position: Position,
        change: Result<RegionChange, RegionError>,
        out: &mut Outbox,
    ) {
        match change {
            Ok(RegionChange::Split { regions, .. }) => {
                self.becomes(regions[0].clone());
                self.changes.split_off = regions[1..].into();
                let all = regions.iter().map(|r| Region::clone(r)).collect();
                self.answer_change(position, Ok(all), out);
            }
            Ok(RegionChange::Merge { region, step }) => self.merge_goes_on(position, region, step, out),
            Ok(RegionChange::Peers { region, change }) => {
                let applied = self.node.apply_conf_change(&change).expect("what is committed is a step from here");
                let expected = membership::conf_state(&region);
                assert!(
                    membership::same(&applied, &expected),
                    "{}: Raft goes by {applied:?}, the region says {expected:?}",
                    region.id
                );
                if region.peer(self.peer.id).is_none() {
                    let reason = "an entry ended its membership";
                    out.removed.push(Removal { region: region.id, epoch: region.epoch, reason, merged: None });
                }
                self.becomes(region);
            }
            Err(error) => {
                self.answer_change(position, Err(error.clone().into()), out);
                if let Some(UnderWay::Peers { steps, .. }) = &self.changes.under_way
                    && !membership::is_joint(&self.region)
                {
                    debug!(region = self.region.id.0, steps = steps.len(), %error, "a change of the membership was refused");
                    self.end_membership(Err(error.into()), out);
                }
            }
        }
    }

    /// The entry at a place in the log was applied: whoever waits for the change there gets an answer.
    fn answer_change(&mut self, at: Position, result: Result<Vec<Region>, AdminError>, out: &mut Outbox) {
        let Some(position) = self.changes.under_way.as_ref().and_then(UnderWay::position) else { return };
        if position.index != at.index {
            return;
        }
        self.node.skip_bcast_commit(true);
        let result = if position.term == at.term { result } else { Err(RegionError::stale_command().into()) };
        if let Some(ticket) = self.changes.under_way.take().and_then(|change| change.ticket()) {
            answer(&mut out.replies, ticket, result);
        }
    }

    fn merge_goes_on(&mut self, position: Position, region: Arc<Region>, step: MergeStep, out: &mut Outbox) {
        let mut record = self.changes.merging.record.clone();
        match step {
            MergeStep::Prepared { into } => {
                record.prepared = Some(Box::new(Prepared { into, at: position }));
                self.becomes(region);
                self.changes.merging.becomes(record);
                // What was asked before is answered with what is not known any more: who serves the keys.
                let error = self.epoch_mismatch();
                self.reads.fail(&error, &mut out.replies);
                self.node.skip_bcast_commit(true);
            }
            MergeStep::RolledBack => {
                record.prepared = None;
                self.becomes(region);
                self.changes.merging.becomes(record);
                let why = "the target had changed, or too few peers were there in time: all is as before";
                self.changes.merge_ends(Err(refused(why)), out);
            }
            MergeStep::Absorbed { .. } => {
                record.absorbed = position;
                self.becomes(region.clone());
                self.changes.merging.becomes(record);
                self.answer_change(position, Ok(Vec::new()), out);
            }
            MergeStep::Abandoned => {
                self.becomes(region);
                self.answer_change(position, Ok(Vec::new()), out);
            }
        }
    }

    /// The region is another one from now on.
    pub(super) fn becomes(&mut self, region: Arc<Region>) {
        if let Some(peer) = region.peer(self.peer.id) {
            self.peer = peer;
        }
        if region.epoch.version != self.region.epoch.version {
            self.snapshots.outdate();
            self.node.mut_store().offer(None);
        }
        self.region = region;
    }

    /// "Your picture of the region is another one", with what takes its place.
    pub(super) fn epoch_mismatch(&self) -> RegionError {
        view::epoch_mismatch(&self.region, &self.changes.split_off)
    }

    fn begin_handover(&mut self, ticket: Ticket, store: StoreId) -> Result<(), AdminError> {
        let id = self.region.id;
        self.check_quiet()?;
        let peer = self.region.peer_on(store).ok_or_else(|| refused(format!("{id} has no peer on {store}")))?;
        if peer.id == self.peer.id {
            return Err(refused(format!("{store} leads {id} already")));
        }
        if peer.role != PeerRole::Voter {
            return Err(refused(format!("{} on {store} is no voter of {id}", peer.id)));
        }
        info!(
            region = id.0,
            peer = self.peer.id.0,
            term = self.term().0,
            to = peer.id.0,
            "leadership is to be handed over"
        );
        let ticks_left = self.config.election_ticks;
        self.changes.handover = Some(Handover { ticket, to: peer.id, store, ticks_left, stage: Stage::CatchingUp });
        Ok(())
    }

    /// Lets a hand-over go on as far as it can.
    pub(super) fn drive_handover(&mut self, now: Instant, out: &mut Outbox) {
        let Some(handover) = &self.changes.handover else { return };
        let (to, store) = (handover.to, handover.store);
        match handover.stage {
            Stage::CatchingUp => {
                let last = self.node.raft.raft_log.last_index();
                // A peer that is as far and does not answer would leave the region without proposals for nothing.
                let near = |p: &PeerProgress| p.peer == to && p.active && last - p.matched.0 <= LAG_ENTRIES;
                if self.progress(now).iter().any(near) {
                    self.node.transfer_leader(to.0);
                    self.changes.handover.iter_mut().for_each(|h| h.stage = Stage::HandedToRaft);
                }
            }
            Stage::HandedToRaft => {
                if self.leads() && self.node.raft.lead_transferee.is_none() {
                    self.end_handover(Err(refused(format!("{to} on {store} did not take over in time"))), out);
                }
            }
            Stage::Resigned => {
                if self.leader().is_some_and(|leader| leader.id != self.peer.id) {
                    self.end_handover(Ok(Vec::new()), out);
                }
            }
        }
    }

    /// Time passes for a hand-over.
    pub(super) fn tick_handover(&mut self, out: &mut Outbox) {
        let Some(handover) = &mut self.changes.handover else { return };
        handover.ticks_left = handover.ticks_left.saturating_sub(1);
        if handover.ticks_left > 0 {
            return;
        }
        let (to, store) = (handover.to, handover.store);
        match handover.stage {
            Stage::CatchingUp => {
                self.end_handover(Err(refused(format!("{to} on {store} does not answer or does not catch up"))), out)
            }
            // Raft gives up by itself, within an election timeout.
            Stage::HandedToRaft => {}
            Stage::Resigned => {
                let why = "this store leads no more, and does not know yet who does";
                self.end_handover(Err(AdminError::Unknown(why.into())), out);
            }
        }
    }

    fn end_handover(&mut self, result: Result<Vec<Region>, AdminError>, out: &mut Outbox) {
        if let Some(handover) = self.changes.handover.take() {
            answer(&mut out.replies, handover.ticket, result);
        }
    }

    /// Whoever is elected while its demotion is under way leads as a learner afterwards. Were it to lose its quorum it could
    /// not stand again, so it gives its office to a voter.
    pub(super) fn resign_as_learner(&mut self, now: Instant) {
        let is_learner = self.leads() && self.peer.role == PeerRole::Learner;
        if !is_learner || self.node.raft.lead_transferee.is_some() || self.changes.under_way.is_some() {
            return;
        }
        let last = self.node.raft.raft_log.last_index();
        let votes = |p: &PeerProgress| self.region.peer(p.peer).is_some_and(|peer| peer.role == PeerRole::Voter);
        let able = |p: &PeerProgress| votes(p) && p.active && last - p.matched.0 <= LAG_ENTRIES;
        if let Some(heir) = self.progress(now).into_iter().filter(able).max_by_key(|p| p.matched) {
            info!(region = self.region.id.0, peer = self.peer.id.0, to = heir.peer.0, "a learner that leads resigns");
            self.node.transfer_leader(heir.peer.0);
        }
    }

    /// How far every peer is, as this leader knows.
    pub(super) fn progress(&self, now: Instant) -> Vec<PeerProgress> {
        let cut = self.node.store().truncated().index.0;
        let peers = self.node.raft.prs().iter().map(|(&id, progress)| {
            let peer = PeerId(id);
            PeerProgress {
                peer,
                matched: LogIndex(progress.matched),
                active: peer == self.peer.id
                    || progress.recent_active
                    || self.lease.heard_within(peer, now, self.config.election_timeout()),
                needs_snapshot: progress.state == ProgressState::Snapshot || progress.matched < cut,
            }
        });
        let mut peers: Vec<_> = peers.collect();
        peers.sort_unstable_by_key(|p| p.peer);
        peers
    }
}
