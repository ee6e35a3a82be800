//! How a replica gives snapshots to peers, and takes one.

use std::sync::Arc;

use proto::{LogIndex, PeerId, RegionId, wire};
use raft::{
    SnapshotStatus, StateRole,
    eraftpb::{Message, MessageType},
};
use tracing::{info, warn};

use super::{
    Replica, membership,
    message::{self, Refused},
    outbox::Outbox,
    snapshot::{self, EndingReplica},
    truncate::{CATCHING_UP_TIMES, Truncation},
};
use crate::{
    clock::Instant,
    effect::{ArrivedSnapshot, SnapshotId},
    snapshot::{Content, MergedAway, Outcome, TakeTask},
};

/// Whether a replica that knows its region as `here` and has applied so much gets on by a snapshot; the reason if not.
pub(crate) fn is_newer(content: &Content, here: &proto::Region, applied: LogIndex) -> Result<(), String> {
    let (told, known) = (content.region.epoch, here.epoch);
    if told.conf_ver < known.conf_ver || told.version < known.version {
        return Err(format!("its epoch is {told}, this replica's is {known}"));
    }
    if content.position.index <= applied {
        return Err(format!("it ends at {}, this replica has applied {applied}", content.position.index));
    }
    Ok(())
}

impl Replica {
    /// raft-rs asked for a snapshot that it could not get.
    pub(super) fn order_snapshot(&mut self, out: &mut Outbox) {
        if self.node.store().take_wants_snapshot() && self.snapshots.wanted(self.applied.index, &mut out.snapshots) {
            self.node.mut_store().offer(None);
        }
    }

    /// A snapshot was made. The peer gets it when raft-rs asks again, with its next answer to a heartbeat.
    pub(crate) fn snapshot_made(&mut self, id: SnapshotId, made: Result<Content, String>, out: &mut Outbox) {
        let index = made.as_ref().ok().map(|content| content.position.index);
        if self.snapshots.made(id, index, &mut out.snapshots)
            && let Ok(content) = made
        {
            self.node.mut_store().offer(Some(content.to_raft()));
        }
    }

    /// Hands a MsgSnapshot to the transport that carries its files too.
    pub(super) fn send_snapshot(&mut self, message: Message, now: Instant, out: &mut Outbox) {
        let peer = PeerId(message.to);
        let sent = match self.envelope(message, now) {
            Some((to, envelope)) => self.snapshots.send(peer, to, envelope, &mut out.snapshots),
            None => false,
        };
        if !sent {
            self.node.report_snapshot(peer.0, SnapshotStatus::Failure);
        }
    }

    /// A transfer has ended.
    pub(crate) fn snapshot_sent(&mut self, id: SnapshotId, peer: PeerId, outcome: Outcome) {
        self.snapshots.sent(id, peer);
        let (region, to) = (self.region.id.0, peer.0);
        let status = match outcome {
            Ok(()) => {
                info!(region, to, "a snapshot has arrived");
                SnapshotStatus::Finish
            }
            Err(reason) => {
                warn!(region, to, reason, "a snapshot did not arrive");
                SnapshotStatus::Failure
            }
        };
        self.node.report_snapshot(peer.0, status);
    }

    /// The files of a snapshot are here: its message is stepped now. Whether it is accepted.
    pub(crate) fn snapshot_arrived(&mut self, now: Instant, arrived: ArrivedSnapshot, out: &mut Outbox) -> bool {
        self.wake();
        let content = self.accept_snapshot(&arrived.message);
        let is_accepted = content.is_ok();
        match content {
            Ok(content) => self.snapshots.accepted(content, arrived.folder),
            Err(reason) => {
                info!(region = self.region.id.0, peer = self.peer.id.0, reason, "a snapshot is not taken");
                out.snapshots.refuse(arrived.folder);
            }
        }
        self.notice_changes(now, out);
        is_accepted
    }

    fn accept_snapshot(&mut self, envelope: &wire::RaftMessage) -> Result<Content, String> {
        let (message, content) = message::decode_snapshot(envelope).map_err(|refused| refused.to_string())?;
        let own = content.region.peer(self.peer.id).filter(|own| own.store == self.peer.store);
        let sender = content.region.peer(PeerId(message.from)).or_else(|| self.region.peer(PeerId(message.from)));
        if message.to != self.peer.id.0 || own.is_none() || sender.is_none() {
            return Err("it is not between peers of its region".into());
        }
        is_newer(&content, &self.region, self.applied.index)?;
        if self.snapshots.incoming() {
            return Err("another one is being taken".into());
        }
        if self.is_silenced() && content.region.epoch.version == self.region.epoch.version {
            return Err("this replica waits for its end by a merge".into());
        }
        if self.gate().is_some() || self.merge_first(content.merges.absorbed) {
            return Err("this replica has a merge to apply first".into());
        }
        if self.leads() && message.term <= self.node.raft.term {
            return Err("this replica leads".into());
        }
        let index = content.position.index.0;
        self.node.step(message).map_err(|e| e.to_string())?;
        match self.node.snap() {
            Some(pending) if pending.get_metadata().index == index => Ok(content),
            _ => Err("the log can do without it".into()),
        }
    }

    /// Whether Raft's readies must wait for a snapshot that is being taken. First for what this replica has under way:
    /// neither log writes nor applying may come after the driver has begun.
    pub(super) fn waits_for_snapshot(&mut self, out: &mut Outbox) -> bool {
        let still = self.applied.index == self.writes.applying && self.writes.held <= self.writes.persisted;
        let (raft, own) = (self.node.raft.hard_state(), &self.region);
        let task = |content: Content, folder, ending: &[EndingReplica]| {
            let away = |e: &EndingReplica| MergedAway { region: e.region.id, tombstone: e.tombstone };
            let ranges = [&own.range, &content.region.range].into_iter().chain(ending.iter().map(|e| &e.region.range));
            TakeTask {
                hard_state: snapshot::hard_state(&raft, content.position),
                cleared: ranges.cloned().collect(),
                merged_away: ending.iter().map(away).collect(),
                content,
                folder,
            }
        };
        self.snapshots.blocks(still, task, &mut out.snapshots)
    }

    /// The state is the snapshot's; which replicas have ended with it.
    pub(crate) fn snapshot_taken(&mut self) -> Vec<RegionId> {
        self.snapshots.taken()
    }

    /// Replicas beside it end with the snapshot that it has accepted.
    pub(crate) fn end_with_snapshot(&mut self, ending: Vec<EndingReplica>) {
        self.snapshots.end_with(ending);
    }

    /// Those that wait for their end with a snapshot that will not come: this replica goes.
    pub(crate) fn abandon_ending(&mut self) -> Vec<EndingReplica> {
        self.snapshots.abandon_ending()
    }

    /// Whether nobody changes its state: all that was handed to the applier is applied, and no snapshot is coming.
    pub(crate) fn is_still(&self) -> bool {
        self.applied.index == self.writes.applying && !self.snapshots.incoming()
    }

    /// raft-rs's ready is about the snapshot that is the state now: the log begins behind it.
    pub(super) fn restart_log(&mut self, number: u64) {
        let Content { position, region, merges, .. } = self.snapshots.ready(number);
        info!(
            region = region.id.0,
            peer = self.peer.id.0,
            index = position.index.0,
            epoch = %region.epoch,
            "a snapshot was taken"
        );
        self.node.mut_store().restart(position, membership::conf_state(&region));
        self.truncation = Truncation::new(self.config.log, position, position.index);
        self.peer = region.peer(self.peer.id).unwrap_or(self.peer);
        self.region = Arc::new(region);
        self.restore_merges(merges);
    }

    /// Log writes up to this ready are durable: raft-rs may hear now that the snapshot is applied.
    pub(super) fn snapshot_persisted(&mut self, number: u64) {
        if let Some(position) = self.snapshots.persisted(number) {
            (self.applied, self.writes.applying) = (position, position.index);
            self.node.advance_apply_to(position.index.0);
        }
    }

    /// Up to where no peer will be sent the log any more, as the leader sees it.
    pub(super) fn dispensable(&self) -> LogIndex {
        let progress = self.node.raft.prs();
        let least = |active_only: bool| {
            let counts = |id: u64, active: bool| !active_only || active || id == self.peer.id.0;
            let matched = progress.iter().filter(|(id, p)| counts(**id, p.recent_active)).map(|(_, p)| p.matched);
            LogIndex(matched.min().unwrap_or(0))
        };
        if self.keeps_log_for_merge() {
            return least(false);
        }
        let last = self.node.store().last().index;
        let needed = least(true).min(self.snapshots.log_needed_from().unwrap_or(last));
        let away = self.truncation.excess(last, 1).map(|middle| middle.min(needed));
        let anyone = self.truncation.excess(last, CATCHING_UP_TIMES);
        [Some(least(false)), away, anyone].into_iter().flatten().max().unwrap_or_default()
    }

    /// Snapshots come with their files, not in a frame; but one that brings nothing new is merely answered by raft-rs with
    /// what this replica has, and needs none.
    pub(super) fn refuse_in_frame(&self, message: &Message) -> Result<(), Refused> {
        if message.get_msg_type() != MessageType::MsgSnapshot {
            return Ok(());
        }
        let (at, log) = (message.get_snapshot().get_metadata(), &self.node.raft.raft_log);
        let is_known = at.index < log.committed || log.match_term(at.index, at.term);
        match at.index <= self.applied.index.0 && is_known {
            true => Ok(()),
            false => Err(Refused("a snapshot without its files")),
        }
    }

    /// What its region will be when the snapshot that it takes is its state.
    pub(crate) fn arriving(&self) -> Option<&proto::Region> {
        self.snapshots.arriving()
    }

    /// Whether the driver is changing its state: until that is done it can't be destroyed.
    pub(crate) fn is_taking_snapshot(&self) -> bool {
        self.snapshots.busy()
    }

    /// Whether it may stand for election: not before its state is there; and a sole voter, who elects itself at once, not on
    /// entries that are still on their way to its disk (raft-rs panics).
    pub(super) fn may_stand(&self) -> bool {
        let log = &self.node.raft.raft_log;
        let durable = !self.alone() || log.last_index() == log.persisted;
        (!self.snapshots.incoming() && durable) || self.node.raft.state == StateRole::Leader
    }
}
