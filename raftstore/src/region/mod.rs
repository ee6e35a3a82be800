//! One replica: raft-rs, and around it what raft-rs leaves to its user. PURE: events in, effects out.
//!
//! ```text
//!            Received  Propose  Read  Tick  Persisted  Applied
//!                │        │      │     │        │         │
//!                ▼        ▼      ▼     ▼        ▼         ▼
//!   message ► RawNode ◄ propose  read  election lease   truncate
//!                │                                               collect()
//!                ▼ ready
//!   messages now · log changes · messages held until they are synced · committed entries · answers
//! ```
//!
//! The one impurity is raft-rs's own: it reads old entries through `LogStorage` when it wants them.
//!
//! The region itself changes too, by entries: `split`, `membership` say how, `change` lets them through one at a time;
//! `merge` makes two of them one; `hibernate` is for those that nobody uses; `resolved` is about reading the past from
//! followers; `handover` gives leadership to a chosen peer. `snapshot` and `catch_up` are about peers whose log does not reach.
//!
//! Not here: who else lives on the store ([`crate::store`]), how entries change the state ([`crate::apply`]), clocks
//! and threads.

pub(crate) mod acquaintance;
pub(crate) mod catch_up;
mod change;
pub(crate) mod election;
mod handover;
mod hibernate;
pub(crate) mod lease;
pub(crate) mod log_storage;
pub(crate) mod membership;
pub mod merge;
pub(crate) mod message;
pub(crate) mod outbox;
pub(crate) mod propose;
pub(crate) mod read;
pub mod resolved;
pub(crate) mod snapshot;
pub(crate) mod split;
pub(crate) mod truncate;
pub(crate) mod view;

use std::sync::Arc;

use bytes::Bytes;
use proto::{Epoch, KeyRange, LogIndex, Peer, PeerRole, Region, RegionId, StoreId, Term, wire, wire::RegionError};
use raft::{Config, RawNode, StateRole, eraftpb::MessageType};
use tracing::{debug, info, warn};

use crate::{
    api::Target,
    clock::Instant,
    config::{PROPOSAL_BYTES_AT_MOST, Planted, StoreConfig},
    effect::{Answer, EntryOutcome, ProposeRequest, Seen, Ticket},
    keys::INITIAL,
    log::Position,
    region::{
        acquaintance::Acquaintances,
        change::Changes,
        election::{Election, Standing},
        hibernate::Hibernation,
        lease::Lease,
        log_storage::LogStorage,
        outbox::Outbox,
        propose::Proposals,
        read::Reads,
        snapshot::Snapshots,
        truncate::Truncation,
    },
};
pub(crate) use catch_up::is_newer as snapshot_is_newer;
pub use view::{ReplicaView, Role};

/// Bytes of entries in one append message. A lost one costs this much again.
const APPEND_BYTES_AT_MOST: u64 = 256 << 10;
/// Append messages on the way to one peer: with the above 32 MiB to a peer that catches up.
const APPENDS_IN_FLIGHT: usize = 128;
/// Bytes of committed entries handed to the applier at once, so that one region does not hold up the others.
const APPLY_BYTES_AT_ONCE: u64 = 4 << 20;
/// How long a refused proposer should wait, ms: about one round of log sync and apply.
const BUSY_BACKOFF_MS: u64 = 20;
/// How many election timeouts a snapshot is kept after its last use: so long a peer may be silent and still be there.
const SNAPSHOT_LINGERS_ELECTIONS: u32 = 3;

/// The live object of one region on one store.
pub(crate) struct Replica {
    config: Arc<StoreConfig>,
    region: Arc<Region>,
    peer: Peer,
    node: RawNode<LogStorage>,
    election: Election,
    lease: Lease,
    proposals: Proposals,
    reads: Reads,
    changes: Changes,
    acquaintances: Acquaintances,
    truncation: Truncation,
    snapshots: Snapshots,
    applied: Position,
    hibernation: Hibernation,
    writes: Writes,
}

/// What is under way.
#[derive(Default)]
struct Writes {
    /// Number of the last ready that waits for a log write.
    held: u64,
    /// Number of the last one known written.
    persisted: u64,
    /// Number of the last ready with another term or vote.
    voted: u64,
    /// Entries up to here were handed to the applier.
    applying: LogIndex,
}

impl Replica {
    /// A replica as found at boot. `applied` is what the state engine holds.
    pub(crate) fn new(
        config: Arc<StoreConfig>,
        region: Arc<Region>,
        peer: Peer,
        storage: LogStorage,
        applied: Position,
    ) -> raft::Result<Self> {
        let election_tick = config.election_ticks as usize;
        let raft_config = Config {
            id: peer.id.0,
            election_tick,
            heartbeat_tick: config.heartbeat_ticks as usize,
            applied: applied.index.0,
            max_size_per_msg: APPEND_BYTES_AT_MOST,
            max_inflight_msgs: APPENDS_IN_FLIGHT,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            // Followers hear of a commit with the next append or heartbeat; nobody reads from them.
            skip_bcast_commit: true,
            max_committed_size_per_ready: APPLY_BYTES_AT_ONCE,
            ..Config::default()
        };
        let truncation = Truncation::new(config.log, storage.truncated(), applied.index);
        let node = RawNode::new(&raft_config, storage, &crate::raft_logger::logger(region.id, peer))?;
        let seed = config.seed ^ region.id.0.rotate_left(32) ^ peer.id.0;
        // It never heard of a leader: INITIAL's term, or none in a replica that waits for its first snapshot.
        let unled = node.raft.term <= INITIAL.term.0;
        let fresh = unled || config.has(Planted::VoteAfterRestart);
        // A learner beside it may have been demoted while it led, and its lease rest on this voter's acknowledgement.
        let alone = region.peers.len() == 1;
        // Only of the regions that the cluster began with: whoever leads the region that this one was split off may
        // still hold a lease that covers it.
        let founded = region.epoch == Epoch { conf_ver: 1, version: 1 };
        let preferred = founded && region.peers.first().is_some_and(|first| first.id == peer.id);
        let mut replica = Replica {
            election: Election::new(config.election_ticks, seed, fresh || alone, unled && preferred),
            lease: Lease::new(config.lease()),
            proposals: Proposals::default(),
            reads: Reads::default(),
            changes: Changes::default(),
            acquaintances: Acquaintances::default(),
            truncation,
            snapshots: Snapshots::new(region.id, config.election_ticks * SNAPSHOT_LINGERS_ELECTIONS),
            applied,
            hibernation: Hibernation::default(),
            writes: Writes { applying: applied.index, ..Writes::default() },
            config,
            region,
            peer,
            node,
        };
        replica.set_election_timeout();
        if alone {
            // Nobody to wait for. Fails only while a membership change is not applied.
            let _ = replica.node.campaign();
        }
        Ok(replica)
    }

    /// A replica of which a leader has spoken, before its first snapshot: it knows nothing of the region.
    pub(crate) fn uninitialised(
        config: Arc<StoreConfig>,
        id: RegionId,
        peer: Peer,
        from: Peer,
        storage: LogStorage,
    ) -> raft::Result<Self> {
        let nothing = KeyRange::new(vec![0], vec![0]);
        let peer = Peer { role: PeerRole::Learner, ..peer };
        let region = Region { id, range: nothing, epoch: Epoch::default(), peers: vec![peer, from] };
        Replica::new(config, Arc::new(region), peer, storage, Position::default())
    }

    /// Whether it knows its region; otherwise it waits for a snapshot.
    pub(crate) fn is_initialised(&self) -> bool {
        self.region.epoch != Epoch::default()
    }

    pub(crate) fn id(&self) -> RegionId {
        self.region.id
    }

    /// This store's membership.
    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    fn term(&self) -> Term {
        Term(self.node.raft.term)
    }

    pub(crate) fn leads(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn leader(&self) -> Option<Peer> {
        self.region.peer(self.node.raft.leader_id.into())
    }

    fn not_leader(&self) -> RegionError {
        let transferee = self.node.raft.lead_transferee.and_then(|id| self.region.peer(id.into()));
        let leader = transferee.or_else(|| self.leader()).filter(|leader| leader.id != self.peer.id);
        RegionError::not_leader(self.region.id, leader, self.term())
    }

    /// A tick passed. Whether there may be something to collect: an idle follower costs next to nothing.
    pub(crate) fn tick(&mut self, now: Instant, out: &mut Outbox) -> bool {
        self.election.tick();
        if self.snapshots.tick(&mut out.snapshots) {
            self.node.mut_store().offer(None);
        }
        if !self.may_stand() {
            return false;
        }
        let active = self.node.tick()
            || self.alone()
            || self.proposals.any()
            || self.reads.len() > 0
            || self.changes.any()
            || membership::is_joint(&self.region);
        self.tick_merge();
        let (role, leader_known) = (self.node.raft.state, self.leader().is_some());
        if self.election.stands_eagerly(self.term(), role, leader_known) {
            // Fails only while a membership change is not applied.
            let _ = self.node.campaign();
        }
        self.notice_changes(now, out);
        self.proposals.tick(&mut out.replies);
        let timed_out = RegionError::not_leader(self.region.id, None, self.term());
        self.reads.tick(&timed_out, &mut out.replies);
        self.tick_handover(out);
        self.resign_as_learner(now);
        self.ask_who_leads(out);
        self.tick_idle();
        active || self.is_asleep() || self.node.has_ready()
    }

    /// Whether no other voter has to be asked.
    pub(super) fn alone(&self) -> bool {
        is_only_voter(&self.region, self.peer)
    }

    /// A message for this replica arrived.
    pub(crate) fn receive(&mut self, now: Instant, envelope: &wire::RaftMessage, out: &mut Outbox) {
        if let Err(reason) = self.try_receive(now, envelope) {
            warn!(
                region = self.region.id.0, peer = self.peer.id.0, term = self.term().0,
                from = envelope.from.map(|p| p.id), reason = %reason, "a Raft message was dropped"
            );
        }
        self.notice_changes(now, out);
    }

    fn try_receive(&mut self, now: Instant, envelope: &wire::RaftMessage) -> Result<(), message::Refused> {
        let mut message = message::decode(envelope)?;
        if message.to != self.peer.id.0 {
            return Err(message::Refused("it is for another peer"));
        }
        let from = self.sender(&message, envelope)?;
        message::check_against_log(&message, self.node.store().truncated(), self.node.raft.raft_log.last_index())?;
        let kind = message.get_msg_type();
        self.refuse_in_frame(&message)?;
        let asks_for_vote = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        if asks_for_vote && (self.election.silent() || !self.is_initialised()) {
            // Without data there is no log either, and a vote that is not remembered could be given twice.
            debug!(region = self.region.id.0, from = from.id.0, "no vote without data, or right after the restart");
            return Ok(());
        }
        let current = message.term == self.node.raft.term;
        if matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot) {
            self.hibernation.heard();
        }
        if current {
            self.disturbed_by(envelope, kind, from.id);
        } else {
            self.wake();
        }
        let role = self.node.raft.state;
        match kind {
            MessageType::MsgHeartbeat if message.term >= self.node.raft.term => {
                self.truncation.dispensable(LogIndex(envelope.replicated));
                let (index, term) = (LogIndex(envelope.absorbed_index), Term(envelope.absorbed_term));
                self.told_of_merge(Position { index, term });
            }
            MessageType::MsgTimeoutNow if !current || message.from != self.node.raft.leader_id => {
                // Its campaign would pass the voters' check of the leader's lease.
                return Err(message::Refused("only the leader hands over"));
            }
            MessageType::MsgTimeoutNow if !self.may_stand() => {
                return Err(message::Refused("it hands over to a replica that is taking a snapshot"));
            }
            MessageType::MsgHeartbeatResponse => {
                if let Some((sent, context)) = lease::unstamp(message.take_context()) {
                    let committed = LogIndex(self.node.raft.raft_log.committed);
                    let frozen = self.changes.splits_between(self.applied.index, committed);
                    if current && self.leads() && !frozen {
                        self.lease.acknowledge(from.id, sent, now);
                    }
                    message.context = context;
                }
            }
            MessageType::MsgRequestVoteResponse if current && message.reject && role == StateRole::Candidate => {
                // Who answers is alive and has voted for another: not a whole timeout, but its turn is waited for.
                let raft = &mut self.node.raft;
                raft.election_elapsed = raft.election_elapsed.max(self.config.election_ticks as usize);
            }
            _ => {}
        }
        let commit = message.commit;
        // Errors are about peers that are no members (any more): nothing to do.
        self.node.step(message).unwrap_or_default();
        if kind == MessageType::MsgHeartbeat && current && envelope.sleeps {
            self.sleep_if_level(now, commit);
        }
        Ok(())
    }

    /// Somebody wants operations replicated.
    pub(crate) fn propose(&mut self, request: ProposeRequest, out: &mut Outbox) {
        self.wake();
        if let Err(refusal) = self.check_proposal(&request) {
            propose::answer(&mut out.replies, request.ticket, Err(refusal.into()));
            return;
        }
        let proposal = wire::Proposal { epoch: Some(self.region.epoch.into()), term: self.term().0, ops: request.ops };
        self.proposals.push(request.ticket, proposal, request.bytes);
    }

    fn check_proposal(&self, request: &ProposeRequest) -> Result<(), RegionError> {
        self.check_target(&request.target)?;
        if self.node.raft.lead_transferee.is_some() {
            return Err(self.not_leader());
        }
        if self.is_silenced() {
            return Err(RegionError::merging(self.region.id));
        }
        if request.bytes > PROPOSAL_BYTES_AT_MOST {
            let message =
                format!("a batch of {} bytes is above the {PROPOSAL_BYTES_AT_MOST} a proposal may have", request.bytes);
            return Err(RegionError { kind: None, message });
        }
        if !self.config.has(Planted::StaleEpoch) {
            crate::apply::check_keys(&self.region, &request.ops)?;
        }
        if !self.proposals.has_room(request.bytes, &self.config.limits) {
            return Err(RegionError::server_busy("the region's queue of proposals", BUSY_BACKOFF_MS));
        }
        Ok(())
    }

    fn check_target(&self, target: &Target) -> Result<(), RegionError> {
        if !self.leads() || target.term.is_some_and(|term| term != self.term()) {
            return Err(self.not_leader());
        }
        if target.epoch != self.region.epoch && !self.config.has(Planted::StaleEpoch) {
            return Err(self.epoch_mismatch());
        }
        if self.refuses_reads() {
            return Err(RegionError::merging(self.region.id));
        }
        Ok(())
    }

    /// Somebody wants to read what is committed by now.
    pub(crate) fn read(&mut self, ticket: Ticket, target: &Target, out: &mut Outbox) {
        self.wake();
        let refusal = match self.check_target(target) {
            Err(refusal) => refusal,
            Ok(()) if self.reads.len() >= self.config.limits.inbox_requests => {
                RegionError::server_busy("the region's queue of reads", BUSY_BACKOFF_MS)
            }
            Ok(()) => return self.reads.push(ticket, self.config.election_ticks),
        };
        out.replies.push((ticket, Answer::Readable(Err(refusal))));
    }

    /// Stand for election now, unless a restart forbids it.
    pub(crate) fn campaign(&mut self, now: Instant, out: &mut Outbox) {
        self.wake();
        if !self.election.silent() && self.may_stand() {
            // Fails only while a membership change is not applied.
            let _ = self.node.campaign();
            self.notice_changes(now, out);
        }
    }

    /// Split off from a region that is led here, it is to be led here, too. Nobody has led it, so there is no need to ask
    /// first whether there is a leader: as after a hand-over.
    pub(crate) fn stand_at_birth(&mut self, now: Instant, out: &mut Outbox) {
        let own = self.peer.id.0;
        let mut message = raft::eraftpb::Message { to: own, from: own, ..Default::default() };
        message.set_msg_type(MessageType::MsgTimeoutNow);
        // Fails only while a membership change is not applied.
        let _ = self.node.step(message);
        self.notice_changes(now, out);
    }

    /// Messages to a store were lost: go back to probing what its peer has.
    pub(crate) fn unreachable(&mut self, store: StoreId) -> bool {
        match self.region.peer_on(store) {
            Some(peer) if self.leads() => {
                self.node.report_unreachable(peer.id.0);
                true
            }
            _ => false,
        }
    }

    /// Log changes up to this ready are written.
    pub(crate) fn persisted(&mut self, number: u64) {
        self.writes.persisted = self.writes.persisted.max(number);
        self.node.on_persist_ready(number);
        self.snapshot_persisted(number);
    }

    /// Committed entries were applied.
    pub(crate) fn applied(&mut self, position: Position, outcomes: Vec<EntryOutcome>, out: &mut Outbox) {
        assert!(
            self.applied.index < position.index,
            "region {}: applied goes from {:?} to {position:?}",
            self.region.id.0,
            self.applied,
        );
        self.applied = position;
        for mut outcome in outcomes {
            if let Some(change) = outcome.change.take() {
                self.region_changed(outcome.position, change, out);
            }
            for refusal in outcome.proposals.iter_mut().filter_map(|p| p.as_mut().err()) {
                if matches!(refusal.kind, Some(wire::region_error::Kind::EpochMismatch(_))) {
                    // The applier knows the region as it was at the entry, not what was split off it.
                    *refusal = self.epoch_mismatch();
                }
            }
            self.proposals.applied(outcome, &mut out.replies);
        }
        self.node.advance_apply_to(position.index.0);
        self.reads.applied(self.applied.index, &mut out.replies);
        self.node.mut_store().shrink_cache(position.index);
    }

    /// The replica is no peer any more, or its successor takes its place: whoever waits is told.
    pub(crate) fn end(&mut self, out: &mut Outbox) {
        let error = RegionError::region_not_found(self.region.id);
        let doubt = "the replica was removed from its store on the way";
        self.proposals.end(&error, doubt, &mut out.replies);
        self.reads.fail(&error, &mut out.replies);
        self.changes.end(&error, doubt, &mut out.replies);
        self.snapshots.close(&mut out.snapshots);
    }

    /// The state engine was synced when this much was applied.
    pub(crate) fn engine_synced(&mut self, applied: LogIndex) {
        self.truncation.synced(applied);
    }

    /// Whether a sync of the state engine would make more of it durable.
    pub(crate) fn wants_engine_sync(&self) -> bool {
        self.truncation.lacks(self.applied.index)
    }

    /// How far the state engine has applied.
    pub(crate) fn applied_index(&self) -> LogIndex {
        self.applied.index
    }

    /// After anything that may have changed role or term.
    fn notice_changes(&mut self, now: Instant, out: &mut Outbox) {
        self.set_election_timeout();
        let led = (self.leads(), self.term());
        if led == self.election.led {
            return;
        }
        if self.election.led.0 {
            warn!(
                region = self.region.id.0,
                peer = self.peer.id.0,
                term = led.1.0,
                led_in = self.election.led.1.0,
                leader = self.leader().map(|l| l.id.0),
                "leadership lost: a higher term was seen or no quorum answers"
            );
            let error = self.not_leader();
            self.proposals.leadership_lost(&error, self.config.election_ticks, &mut out.replies);
            self.reads.fail(&error, &mut out.replies);
            self.changes.leadership_lost(self.config.election_ticks, &mut out.replies);
            self.node.skip_bcast_commit(true);
        }
        if led.0 {
            info!(region = self.region.id.0, peer = self.peer.id.0, term = led.1.0, "elected leader");
            self.lease.start(led.1, now);
        }
        self.election.led = led;
        self.changes.merging.led_anew();
    }

    fn set_election_timeout(&mut self) {
        let (role, leader) = (self.node.raft.state, self.leader().map(|leader| leader.id));
        let timeout = self.election.timeout(&self.region, self.peer.id, Standing { term: self.term(), role, leader });
        self.node.raft.set_randomized_election_timeout(timeout);
    }

    /// Turns what has come in into effects. To be called once after the events of a turn.
    pub(crate) fn collect(&mut self, now: Instant, out: &mut Outbox) {
        self.notice_changes(now, out);
        self.propose_waiting(out);
        self.drive_membership(now, out);
        self.drive_handover(now, out);
        if self.reads.has_waiting() && self.leads() && self.node.raft.commit_to_current_term() {
            let context = self.reads.start_round(self.config.election_ticks);
            self.node.read_index(context);
        }
        if self.waits_for_snapshot(out) {
            return;
        }
        while self.node.has_ready() {
            self.take_ready(now, out);
        }
        self.reads.applied(self.applied.index, &mut out.replies);
        self.cut_log(out);
        self.order_snapshot(out);
    }

    fn propose_waiting(&mut self, out: &mut Outbox) {
        while self.proposals.has_waiting() {
            let Some(mut entry) = self.proposals.next_entry(self.term()) else { return };
            match self.node.propose(Vec::new(), std::mem::take(&mut entry.data)) {
                Ok(()) => {
                    let index = LogIndex(self.node.raft.raft_log.last_index());
                    self.proposals.proposed(entry, Position { index, term: self.term() });
                }
                Err(e) => {
                    debug!(region = self.region.id.0, term = self.term().0, error = %e, "Raft dropped a proposal");
                    self.proposals.dropped(entry, &self.not_leader(), &mut out.replies);
                }
            }
        }
    }

    fn take_ready(&mut self, now: Instant, out: &mut Outbox) {
        let mut ready = self.node.ready();
        let number = ready.number();
        for state in ready.take_read_states() {
            self.reads.confirmed(&state.request_ctx, LogIndex(state.index));
        }
        let entries = ready.take_entries();
        if !ready.snapshot().is_empty() {
            self.restart_log(number);
        }
        self.truncation.appended(&entries);
        let storage = self.node.mut_store();
        // Readable before advance_append_async, although not written yet.
        storage.append(&entries);
        if let Some(hard_state) = ready.hs() {
            let known = storage.hard_state();
            if (hard_state.term, hard_state.vote) != (known.term, known.vote) {
                self.writes.voted = number;
            }
            storage.set_hard_state(hard_state.clone());
        }
        if ready.must_sync() {
            // A ready that only moves the commit index waits for the next one: the apply state knows it too.
            let mut hard_state = storage.hard_state().clone();
            if self.config.has(Planted::ForgetVote) {
                hard_state.vote = 0;
            }
            out.log(self.region.id, entries, hard_state);
        }
        let (snapshots, messages) =
            ready.take_messages().into_iter().partition(|m| m.get_msg_type() == MessageType::MsgSnapshot);
        let mut promises = ready.take_persisted_messages();
        // A leader replicates while it writes, but not before its term is written: a sole voter elects itself at once, and
        // after a crash would lead in the same term again, with other entries.
        match self.writes.voted > self.writes.persisted {
            true => promises.splice(..0, messages).for_each(drop),
            false => out.messages.extend(self.envelopes(messages, now)),
        }
        if self.config.has(Planted::AckBeforeSync) {
            let early = |m: &raft::eraftpb::Message| {
                matches!(m.get_msg_type(), MessageType::MsgAppendResponse | MessageType::MsgRequestVoteResponse)
            };
            let (now_already, later) = promises.into_iter().partition(early);
            out.messages.extend(self.envelopes(now_already, now));
            promises = later;
        }
        let promises = self.envelopes(promises, now);
        let committed = ready.take_committed_entries();
        self.writes.applying = committed.last().map_or(self.writes.applying, |last| LogIndex(last.index));
        let committed = self.hold_back(committed, out);
        out.apply(&self.region, committed);
        let wait = ready.must_sync() || self.writes.held > self.writes.persisted;
        self.node.advance_append_async(ready);
        if wait {
            self.writes.held = number;
            out.hold(self.region.id, number, promises);
        } else {
            out.messages.extend(promises);
            self.persisted(number);
        }
        let send = |message| self.send_snapshot(message, now, out);
        Vec::into_iter(snapshots).for_each(send);
    }

    fn envelopes(&mut self, messages: Vec<raft::eraftpb::Message>, now: Instant) -> Vec<(StoreId, wire::RaftMessage)> {
        messages.into_iter().filter_map(|message| self.envelope(message, now)).collect()
    }

    fn envelope(&mut self, mut message: raft::eraftpb::Message, now: Instant) -> Option<(StoreId, wire::RaftMessage)> {
        let to = self.region.peer(message.to.into()).or_else(|| self.acquaintances.peer(message.to.into()))?;
        let mut replicated = 0;
        let kind = message.get_msg_type();
        match kind {
            MessageType::MsgHeartbeat => {
                message.context = lease::stamp(now, &message.context);
                replicated = self.dispensable().0;
            }
            MessageType::MsgTimeoutNow if !self.config.has(Planted::TransferKeepsLease) => {
                self.lease.end_for_this_term();
            }
            _ => {}
        }
        let unheard = self.leads() && self.node.raft.prs().get(message.to).is_some_and(|p| p.matched == 0);
        let bytes = protobuf::Message::write_to_bytes(&message).expect("raft-rs's messages are complete");
        let envelope = wire::RaftMessage {
            region_id: self.region.id.0,
            from: Some(self.peer.into()),
            to: Some(to.into()),
            epoch: Some(self.region.epoch.into()),
            message: Bytes::from(bytes),
            replicated,
            sleeps: self.says_sleep(kind),
            range: unheard.then(|| (&self.region.range).into()),
            absorbed_index: if kind == MessageType::MsgHeartbeat { self.absorbed().index.0 } else { 0 },
            absorbed_term: if kind == MessageType::MsgHeartbeat { self.absorbed().term.0 } else { 0 },
            ..wire::RaftMessage::default()
        };
        Some((to.store, envelope))
    }

    fn cut_log(&mut self, out: &mut Outbox) {
        if self.leads() {
            self.truncation.dispensable(self.dispensable());
        }
        let unsafe_end = self.config.has(Planted::TruncateUnsynced).then_some(self.applied.index);
        let last = self.node.store().last().index;
        let Some(index) = self.truncation.due(last, unsafe_end) else { return };
        let at = match raft::Storage::term(self.node.store(), index.0) {
            Ok(term) => Position { index, term: Term(term) },
            Err(e) => {
                warn!(region = self.region.id.0, index = index.0, error = %e, "the log is not cut: no term");
                return;
            }
        };
        debug!(region = self.region.id.0, peer = self.peer.id.0, index = at.index.0, "the log is cut");
        self.node.mut_store().truncate(at);
        self.truncation.cut(at.index);
        out.truncate(self.region.id, at);
    }

    /// Of a leader that alone serves the region of this epoch right now: what it has applied.
    pub(crate) fn resolves(&self, now: Instant, epoch: Epoch) -> Option<LogIndex> {
        let merging = self.refuses_reads() && !self.config.has(Planted::ResolveMerging);
        let until = self.lease.until(&self.region, self.peer.id, self.term(), now);
        let alone = self.knows_all_before() && !merging && until.is_some_and(|until| now < until);
        (alone && self.region.epoch == epoch).then_some(self.applied.index)
    }

    /// Whether it leads and has applied an entry of its own term: nothing that was committed before is unknown to it.
    fn knows_all_before(&self) -> bool {
        self.leads() && self.node.raft.apply_to_current_term()
    }

    /// What readers and PD see of this replica.
    pub(crate) fn seen(&self, now: Instant) -> Seen {
        let raft = &self.node.raft;
        let serves = self.knows_all_before() && !self.refuses_reads();
        let until = if serves { self.lease.until(&self.region, self.peer.id, self.term(), now) } else { None };
        let view = ReplicaView {
            region: self.region.clone(),
            split_off: self.changes.split_off().clone(),
            peer: self.peer,
            role: Role::from(raft.state),
            term: self.term(),
            leader: self.leader(),
            serves,
            merging: self.refuses_reads(),
            merged_away: self.merged_away().is_some(),
            lease_until: until,
            asleep: self.is_asleep(),
            restorations: self.snapshots.restorations(),
        };
        let progress = if self.leads() { self.progress(now) } else { Vec::new() };
        Seen { view, applied: self.applied.index, committed: LogIndex(raft.raft_log.committed), progress }
    }
}

/// Whether no other voter has to be asked.
fn is_only_voter(region: &Region, peer: Peer) -> bool {
    let mut voters = region.peers.iter().filter(|p| p.role != PeerRole::Learner);
    voters.next().is_some_and(|only| only.id == peer.id) && voters.next().is_none()
}
