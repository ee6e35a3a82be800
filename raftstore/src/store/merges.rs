//! What the replicas of a merge's source and target have to do with each other, beside each other on one store.
//!
//! ```text
//!   source's leader ──MergeAsk──► every peer of the target       who leads it proposes; who has left the epoch behind says
//!                   ◄─MergeVerdict─                              what became of the source; so does the tombstone of a
//!                                                                target that was merged away itself
//!   target's replica at a CommitMerge ──► waits for the source's replica here, tells it what is committed
//!                                     ──► applied: the source's replica ends; synced: its log goes
//!   source's replica that missed it   ──asks for votes──► a tombstone ──MergeVerdict──► it ends; if the target's replica
//!                                                         here has still to take it over, with that entry, or with the
//!                                                         target's snapshot (`snapshots`)
//! ```

use std::sync::Arc;

use proto::{Epoch, Peer, Region, RegionId, wire};
use raft::eraftpb::MessageType;
use tracing::info;

use super::StoreCore;
use crate::{
    clock::Instant,
    config::Planted,
    keys::Tombstone,
    log::RegionLog,
    region::{
        Replica,
        merge::{Gate, moved_on},
        message,
        outbox::{Outbox, Removal},
        snapshot::EndingReplica,
    },
};

impl StoreCore {
    /// What a region is to be merged into, as its replica here has applied it.
    pub(super) fn merge_target(&self, source: RegionId) -> Option<Arc<Region>> {
        let into = self.replicas.get(&source)?.merges_into()?;
        self.replicas.get(&into).filter(|target| target.is_initialised()).map(|target| target.region().clone())
    }

    /// Lets those go on that wait for a source which is as far by now.
    pub(super) fn open_gates(&mut self, out: &mut Outbox) {
        for id in std::mem::take(&mut self.gated) {
            let Some(gate) = self.replicas.get(&id).and_then(|target| target.gate()) else { continue };
            let opens = match gate {
                Gate::Closed => false,
                Gate::Open => true,
                Gate::Source(source, at, epoch) => match self.replicas.get_mut(&source) {
                    Some(replica) if replica.can_be_absorbed(at, epoch) => true,
                    Some(replica) => {
                        if replica.commit_through(at) {
                            self.dirty.insert(source);
                        }
                        false
                    }
                    // The applier will say that something is wrong.
                    None => true,
                },
            };
            if opens && let Some(target) = self.replicas.get_mut(&id) {
                target.open_gate(out);
                self.gated.extend(out.gated.drain(..));
            } else {
                self.gated.insert(id);
            }
        }
    }

    /// A target has taken over a source, whose replica is no more. Its log stays until that is durable: a crash may take the
    /// state back to before.
    pub(super) fn absorb(&mut self, target: &Arc<Region>, source: RegionId, out: &mut Outbox) {
        if self.silence(source, target, out).is_none() {
            return;
        }
        if self.config.has(Planted::MergePurgesUnsynced) {
            out.begin_log(source, RegionLog { removed: true, ..RegionLog::default() });
        } else {
            self.absent.absorbed.push(source);
        }
    }

    /// A source's replica is one no more; its state is, until the target's takes its place.
    pub(super) fn silence(&mut self, source: RegionId, target: &Region, out: &mut Outbox) -> Option<EndingReplica> {
        let mut replica = self.replicas.remove(&source)?;
        let peer = replica.peer();
        info!(store = self.config.store.0, region = source.0, peer = peer.id.0, into = target.id.0, "merged away");
        replica.absorbed_by(target, out);
        replica.end(out);
        let merged = replica.merged_away().unwrap_or((target.id, target.epoch.version));
        let tombstone = Tombstone { peer: peer.id, epoch: replica.region().epoch, merged: Some(merged) };
        self.writes.forget(source);
        self.absent.tombstones.insert(source, tombstone);
        self.dirty.remove(&source);
        out.gone.push(source);
        out.merged.push((source, target.id));
        Some(EndingReplica { region: replica.region().clone(), tombstone })
    }

    /// What had been taken over when the state engine was synced is so durably: the logs of the sources may go.
    pub(super) fn purge_absorbed(&mut self, out: &mut Outbox) {
        for source in std::mem::take(&mut self.absent.syncing) {
            out.begin_log(source, RegionLog { removed: true, ..RegionLog::default() });
        }
    }

    /// Messages about merges that are for this very store.
    pub(super) fn talk_to_itself(&mut self, now: Instant, out: &mut Outbox) {
        let own = self.config.store;
        let (here, away): (Vec<_>, Vec<_>) = std::mem::take(&mut out.messages).into_iter().partition(|m| m.0 == own);
        out.messages = away;
        for (_, envelope) in here {
            self.received(now, envelope, out);
        }
    }

    /// A question or an answer.
    pub(super) fn about_a_merge(&mut self, envelope: &wire::RaftMessage, out: &mut Outbox) {
        let peer = |p: Option<wire::Peer>| p.and_then(|p| Peer::try_from(p).ok());
        let (Some(from), Some(to)) = (peer(envelope.from), peer(envelope.to)) else { return };
        let region = RegionId(envelope.region_id);
        if let Some(ask) = envelope.merge_ask {
            self.merge_asked(region, from, to, ask, out);
        } else if let Some(verdict) = envelope.merge_verdict {
            self.merge_judged(region, to, verdict, out);
        }
    }

    fn merge_asked(&mut self, target: RegionId, from: Peer, to: Peer, ask: wire::MergeAsk, out: &mut Outbox) {
        let source = RegionId(ask.source_id);
        let buried = self.absent.tombstones.get(&source).and_then(|buried| buried.merged);
        let absorbed = buried.filter(|(into, _)| *into == target);
        let then = ask.target_epoch.map(Epoch::from).unwrap_or_default();
        let here = self.replicas.get(&target).filter(|replica| replica.peer().id == to.id);
        let gone_on = here.is_some_and(|replica| moved_on(replica.region().epoch, then))
            || (buried.is_none() && self.ended_behind(target, to, then));
        if gone_on || absorbed.is_some() {
            let verdict = wire::MergeVerdict {
                source_epoch: ask.source_epoch,
                target_id: target.0,
                absorbed: absorbed.is_some(),
                target_version: absorbed.map(|(_, version)| version).unwrap_or_default(),
            };
            return judge(source, to, from, verdict, out);
        }
        let prepared = self.replicas.get(&source).and_then(|s| Some((s.region().clone(), s.prepared()?.clone())));
        if let Some(replica) = self.replica(target).filter(|replica| replica.peer().id == to.id)
            && replica.leads()
            && replica.region().epoch == then
        {
            replica.asked_to_merge(ask, prepared.as_ref().map(|(region, prepared)| (&**region, prepared)));
        }
    }

    /// A target's replica that was here has left the epoch behind and then been merged into another region. Had its region taken
    /// over a source, that one's replica here would have ended before it, and have a tombstone.
    fn ended_behind(&self, target: RegionId, own: Peer, then: Epoch) -> bool {
        let ended =
            |buried: &Tombstone| buried.peer == own.id && buried.merged.is_some() && moved_on(buried.epoch, then);
        self.absent.tombstones.get(&target).is_some_and(ended)
    }

    fn merge_judged(&mut self, source: RegionId, to: Peer, verdict: wire::MergeVerdict, out: &mut Outbox) {
        let epoch = verdict.source_epoch.map(Epoch::from).unwrap_or_default();
        let Some(replica) = self.replica(source).filter(|replica| replica.peer().id == to.id) else { return };
        if !verdict.absorbed {
            return replica.never_merged(epoch);
        }
        if moved_on(replica.region().epoch, epoch) {
            return;
        }
        // One that knows its region was a peer already when the source was taken over, or came after.
        let target = RegionId(verdict.target_id);
        let merged = (target, verdict.target_version);
        let lacks_it = |target: &Replica| target.is_initialised() && target.region().epoch.version < merged.1;
        if self.replicas.get(&target).is_some_and(lacks_it) {
            self.replicas.entry(source).and_modify(|replica| replica.told_of_its_end(merged.0, merged.1));
            return;
        }
        let reason = "its region was merged into another one";
        out.removed.push(Removal { region: source, epoch, reason, merged: Some(merged) });
    }

    /// A replica whose region is no more asks for votes, or whether it is still a peer.
    pub(super) fn answer_orphan(&self, region: RegionId, from: Peer, envelope: &wire::RaftMessage, out: &mut Outbox) {
        let Some(buried) = self.absent.tombstones.get(&region) else { return };
        let (Some((into, version)), Some(own)) = (buried.merged, envelope.to.and_then(|p| Peer::try_from(p).ok()))
        else {
            return;
        };
        let stands = || {
            let kind = message::decode(envelope).map(|m| m.get_msg_type());
            matches!(kind, Ok(MessageType::MsgRequestVote | MessageType::MsgRequestPreVote))
        };
        if envelope.asks || stands() {
            let verdict = wire::MergeVerdict {
                source_epoch: Some(buried.epoch.into()),
                target_id: into.0,
                absorbed: true,
                target_version: version,
            };
            judge(region, own, from, verdict, out);
        }
    }
}

fn judge(source: RegionId, own: Peer, to: Peer, verdict: wire::MergeVerdict, out: &mut Outbox) {
    let envelope = wire::RaftMessage {
        region_id: source.0,
        from: Some(own.into()),
        to: Some(to.into()),
        merge_verdict: Some(verdict),
        ..wire::RaftMessage::default()
    };
    out.messages.push((to.store, envelope));
}
