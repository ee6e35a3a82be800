//! Messages between replicas that see the membership differently.
//!
//! ```text
//!   the sender is          what it sends is                what happens
//!   a peer                 anything                        Raft takes it
//!   none, epoch is newer   anything                        Raft takes it: we have not applied yet what made it a peer
//!   none, epoch is older   a request for votes, a question it is told the region as it is now, and destroys itself
//!   none, without data     a question                      the same, but only by a leader that has applied all before its term
//!   none, epoch is older   anything else                   dropped
//! ```
//!
//! A peer's epoch is one in which it was a member, so whoever is ahead of it and does not know it has seen it removed. A replica
//! without data has no epoch: who does not know it may not have applied yet what made it a peer.
//!
//! A replica that hears of no leader for long asks the peers it knows of; those that know better answer. So one that was
//! away while it was removed finds out, and pre-vote keeps it from disturbing anybody before. Those that sleep wake.

use std::collections::VecDeque;

use bytes::Bytes;
use proto::{Epoch, Peer, PeerId, Region, wire};
use raft::{
    StateRole,
    eraftpb::{Message, MessageType},
};
use tracing::debug;

use super::{
    Replica, message,
    outbox::{Outbox, Removal},
};

/// How many senders that are no peers yet are remembered: more than one change of the membership brings.
const REMEMBERED: usize = 16;
/// Without a leader for so many election timeouts, a replica asks whether it is still a peer.
const ASKS_AFTER_TIMEOUTS: u32 = 5;

/// Senders that this replica does not know as peers yet, newest last, and how long no leader was heard of.
#[derive(Default)]
pub(super) struct Acquaintances {
    peers: VecDeque<Peer>,
    lonely_ticks: u32,
}

impl Acquaintances {
    pub(super) fn peer(&self, id: PeerId) -> Option<Peer> {
        self.peers.iter().copied().find(|p| p.id == id)
    }

    fn remember(&mut self, peer: Peer) {
        self.peers.retain(|p| p.id != peer.id);
        self.peers.push_back(peer);
        if self.peers.len() > REMEMBERED {
            self.peers.pop_front();
        }
    }
}

/// What an envelope says of its sender.
fn sender_of(envelope: &wire::RaftMessage) -> Result<(Peer, Epoch), message::Refused> {
    let from = envelope.from.and_then(|p| Peer::try_from(p).ok()).ok_or(message::Refused("it names no sender"))?;
    Ok((from, envelope.epoch.map(Epoch::from).unwrap_or_default()))
}

impl Replica {
    /// Who sent a message, if Raft may take it.
    pub(super) fn sender(&mut self, message: &Message, envelope: &wire::RaftMessage) -> Result<Peer, message::Refused> {
        if let Some(peer) = self.region.peer(message.from.into()) {
            return Ok(peer);
        }
        let (from, epoch) = sender_of(envelope)?;
        if from.id.0 != message.from {
            return Err(message::Refused("its sender is not the one who wrote it"));
        }
        if epoch.conf_ver <= self.region.epoch.conf_ver {
            return Err(message::Refused("its sender is no peer"));
        }
        self.acquaintances.remember(from);
        Ok(from)
    }

    /// Tells a sender that is no peer any more, when it stands for election or asks. True: that was all to do.
    pub(crate) fn answer_stranger(&mut self, envelope: &wire::RaftMessage, out: &mut Outbox) -> bool {
        let Ok((from, epoch)) = sender_of(envelope) else { return envelope.asks };
        let behind = match epoch.conf_ver {
            0 => self.knows_all_before(),
            conf_ver => conf_ver < self.region.epoch.conf_ver,
        };
        let stale = self.is_initialised() && self.region.peer(from.id).is_none() && behind;
        let stands = || {
            let kind = message::decode(envelope).map(|m| m.get_msg_type());
            matches!(kind, Ok(MessageType::MsgRequestVote | MessageType::MsgRequestPreVote))
        };
        if stale && (envelope.asks || stands()) {
            debug!(region = self.region.id.0, from = from.id.0, "a replica that is no peer any more is told so");
            let answer = wire::RaftMessage {
                region_id: self.region.id.0,
                from: Some(self.peer.into()),
                to: Some(from.into()),
                epoch: Some(self.region.epoch.into()),
                gone: Some((&*self.region).into()),
                ..wire::RaftMessage::default()
            };
            out.messages.push((from.store, answer));
            return true;
        }
        if envelope.asks && self.region.peer(from.id).is_some() {
            // It may be a learner, which stands for nothing: whoever sleeps finds out whether there is a leader.
            self.wake();
        }
        envelope.asks
    }

    /// Somebody says what the region is now, without this peer.
    pub(crate) fn told_of_removal(&self, now: Region, out: &mut Outbox) {
        let newer = now.id == self.region.id && now.epoch.conf_ver > self.region.epoch.conf_ver;
        if newer && now.peer(self.peer.id).is_none() {
            let reason = "another replica says that it is no peer any more";
            out.removed.push(Removal { region: self.region.id, epoch: now.epoch, reason, merged: None });
        }
    }

    /// Called once a tick.
    pub(super) fn ask_who_leads(&mut self, out: &mut Outbox) {
        let raft = &self.node.raft;
        let recent = raft.election_elapsed < self.config.election_ticks as usize;
        let hears = raft.state == StateRole::Follower && raft.leader_id != raft::INVALID_ID && recent;
        if raft.state == StateRole::Leader || hears {
            self.acquaintances.lonely_ticks = 0;
            return;
        }
        self.acquaintances.lonely_ticks += 1;
        if self.acquaintances.lonely_ticks < ASKS_AFTER_TIMEOUTS * self.config.election_ticks {
            return;
        }
        self.acquaintances.lonely_ticks = 0;
        for &peer in self.region.peers.iter().chain(&self.acquaintances.peers).filter(|p| p.id != self.peer.id) {
            let question = wire::RaftMessage {
                region_id: self.region.id.0,
                from: Some(self.peer.into()),
                to: Some(peer.into()),
                epoch: Some(self.region.epoch.into()),
                message: Bytes::new(),
                asks: true,
                ..wire::RaftMessage::default()
            };
            out.messages.push((peer.store, question));
        }
    }
}
