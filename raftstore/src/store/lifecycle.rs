//! Replicas that come and go while the store runs.
//!
//! ```text
//!   come   split off here              region state and apply state are in the parent's apply batch, which is synced;
//!                                      only then does it speak, and its log begin
//!          a leader speaks to a peer   nothing on disk until its first snapshot; only when no other replica here
//!          that is not here            covers the range, or the split that makes room for it is still to be applied
//!   go     removed by an entry, told   the replica ends at once; after what is being applied the state goes, the
//!          so, or replaced             tombstone is synced, and then the log goes
//!          merged into another         its data stays where it is (`merges`), or is the target's snapshot's (`snapshots`)
//! ```
//!
//! Of the regions that a split makes only that of the parent's leader stands for election at once: on other stores the
//! parent's lease may still be served. Votes that are asked for before the split is applied here wait for it.

use std::{collections::BTreeMap, sync::Arc};

use proto::{Epoch, LogIndex, Peer, Region, RegionId, StoreId, wire};
use raft::eraftpb::{ConfState, HardState, MessageType};
use tracing::{debug, info};

use super::StoreCore;
use crate::{
    clock::Instant,
    effect::{ApplyTask, ApplyWork, EntryOutcome, MergeStep, RegionChange},
    keys::{INITIAL, Tombstone},
    log::{LogState, RegionLog},
    region::{
        Replica,
        log_storage::{LogStorage, cache_share},
        membership, message,
        outbox::{Outbox, Removal},
        snapshot::EndingReplica,
    },
};

/// Requests for votes that wait for a split. Beyond it they are dropped, and asked again.
const WAITING_AT_MOST: usize = 1024;

/// Replicas that are not here: any more, or yet.
#[derive(Default)]
pub(super) struct Absent {
    /// Of replicas that were destroyed; a few dozen bytes each, kept as long as the store lives.
    pub(super) tombstones: BTreeMap<RegionId, Tombstone>,
    /// Of replicas that have ended and whose state is being removed: their ranges are not free yet.
    pub(super) dying: BTreeMap<RegionId, Arc<Region>>,
    /// Regions that others have taken over since the state was last synced, and before: their logs are still here.
    pub(super) absorbed: Vec<RegionId>,
    /// Those of them that a sync under way makes so durably.
    pub(super) syncing: Vec<RegionId>,
    /// Requests for votes in regions that are not split off here yet, with the ticks they wait, by region and sender.
    waiting: BTreeMap<(RegionId, u64), (u32, wire::RaftMessage)>,
}

impl Absent {
    pub(super) fn new(tombstones: BTreeMap<RegionId, Tombstone>) -> Self {
        Absent { tombstones, ..Absent::default() }
    }

    /// Time passes for what waits.
    pub(super) fn tick(&mut self) {
        self.waiting.retain(|_, (ticks, _)| {
            *ticks = ticks.saturating_sub(1);
            *ticks > 0
        });
    }

    /// The last request of each candidate waits an election timeout: by then it would ask again.
    fn wait(&mut self, region: RegionId, from: u64, ticks: u32, envelope: wire::RaftMessage) {
        if self.waiting.len() < WAITING_AT_MOST || self.waiting.contains_key(&(region, from)) {
            self.waiting.insert((region, from), (ticks, envelope));
        }
    }

    fn take_waiting(&mut self, region: RegionId) -> Vec<wire::RaftMessage> {
        let of_region = self.waiting.extract_if((region, 0)..=(region, u64::MAX), |_, _| true);
        of_region.map(|(_, (_, envelope))| envelope).collect()
    }
}

impl StoreCore {
    /// A message for a region; the replica may not be here.
    pub(super) fn received(&mut self, now: Instant, mut envelope: wire::RaftMessage, out: &mut Outbox) {
        if let Some(beat) = envelope.beat {
            return self.heard_beat(now, beat);
        }
        if let Some(resolved) = envelope.resolved {
            return self.heard_resolved(&resolved, out);
        }
        if envelope.merge_ask.is_some() || envelope.merge_verdict.is_some() {
            return self.about_a_merge(&envelope, out);
        }
        let region = RegionId(envelope.region_id);
        // Who does not beat could fall silent unnoticed.
        envelope.sleeps &= envelope.from.is_some_and(|from| self.beats.lives(StoreId(from.store_id)));
        let to = envelope.to.and_then(|p| Peer::try_from(p).ok());
        let Some(replica) = self.replicas.get_mut(&region) else {
            return self.received_by_nobody(now, region, to, envelope, out);
        };
        self.dirty.insert(region);
        let (epoch, own) = (envelope.epoch.map(Epoch::from).unwrap_or_default(), replica.peer().id);
        // Peer ids are never used again: this store was removed and added anew. A replica without data does not know
        // since when it is a peer; ids grow.
        let newer = match replica.is_initialised() {
            true => epoch.conf_ver > replica.region().epoch.conf_ver,
            false => to.is_some_and(|to| to.id > own),
        };
        if newer && to.is_some_and(|to| to.id != own) {
            let reason = "another peer takes its place on this store";
            return out.removed.push(Removal { region, epoch, reason, merged: None });
        }
        if let Some(gone) = &envelope.gone {
            // The store may have been added anew since the one who is told so asked.
            if let (Ok(gone), true) = (Region::try_from(gone.clone()), to.is_some_and(|to| to.id == own)) {
                replica.told_of_removal(gone, out);
            }
        } else if !replica.answer_stranger(&envelope, out) {
            replica.receive(now, &envelope, out);
        }
    }

    fn received_by_nobody(
        &mut self,
        now: Instant,
        region: RegionId,
        to: Option<Peer>,
        envelope: wire::RaftMessage,
        out: &mut Outbox,
    ) {
        let for_us = to.filter(|to| to.store == self.config.store);
        let (Some(to), Some(from)) = (for_us, envelope.from.and_then(|p| Peer::try_from(p).ok())) else { return };
        let epoch = envelope.epoch.map(Epoch::from).unwrap_or_default();
        // Whoever is a peer in an epoch in which the buried one was none came after it.
        let late = |buried: &Tombstone| {
            buried.merged.is_some() || to.id == buried.peer || epoch.conf_ver < buried.epoch.conf_ver
        };
        self.answer_orphan(region, from, &envelope, out);
        if self.absent.dying.contains_key(&region) || self.absent.tombstones.get(&region).is_some_and(late) {
            return debug!(region = region.0, peer = to.id.0, "a Raft message for a replica that was destroyed");
        }
        let Ok(message) = message::decode(&envelope) else { return };
        match message.get_msg_type() {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                self.absent.wait(region, message.from, self.config.election_ticks, envelope);
            }
            MessageType::MsgAppend | MessageType::MsgHeartbeat => {
                let Some(range) = envelope.range.clone() else { return };
                if let Some(other) = self.covered_by(&range.into(), &[]) {
                    return debug!(region = region.0, covered_by = other.0, "a new replica has to wait for room");
                }
                info!(store = self.config.store.0, region = region.0, peer = to.id.0, "a replica without data begins");
                self.begin_uninitialised(region, to, from);
                if let Some(replica) = self.replicas.get_mut(&region) {
                    replica.receive(now, &envelope, out);
                }
            }
            _ => {}
        }
    }

    /// A replica here, one that takes a snapshot, or one that is being removed, whose range is not free; none of the
    /// regions `but`. Two snapshots may come at once: of a region before a split, and of what was split off.
    pub(super) fn covered_by(&self, range: &proto::KeyRange, but: &[RegionId]) -> Option<RegionId> {
        let held = self.replicas.values().map(|replica| &**replica.region());
        let arriving = self.replicas.values().filter_map(Replica::arriving);
        let alive = held.chain(arriving).filter(|region| !but.contains(&region.id));
        let overlaps = |region: &&Region| !region.range.is_empty() && region.range.intersect(range).is_some();
        alive.chain(self.absent.dying.values().map(|region| &**region)).find(overlaps).map(|region| region.id)
    }

    fn begin_uninitialised(&mut self, region: RegionId, to: Peer, from: Peer) {
        let state = LogState::default();
        let cache_bytes = cache_share(self.replicas.len());
        let nobody = ConfState::default();
        let storage = LogStorage::new(region, self.log.clone(), state, LogIndex(0), nobody, cache_bytes);
        let replica = Replica::uninitialised(self.config.clone(), region, to, from, storage);
        self.replicas.insert(region, replica.expect("no membership at all is one for Raft"));
        self.dirty.insert(region);
    }

    /// A task has changed regions: replicas that it made begin to live.
    pub(super) fn follow_changes(
        &mut self,
        now: Instant,
        parent: RegionId,
        outcomes: &[EntryOutcome],
        out: &mut Outbox,
    ) {
        let stands = self.replicas.get(&parent).is_some_and(|parent| parent.leads());
        for outcome in outcomes {
            match &outcome.change {
                Some(Ok(RegionChange::Split { regions, born })) => {
                    for region in regions.iter().filter(|r| born.contains(&r.id)) {
                        self.give_birth(now, region.clone(), stands, out);
                    }
                }
                Some(Ok(RegionChange::Merge { region, step: MergeStep::Absorbed { source } })) => {
                    self.absorb(region, *source, out);
                }
                _ => {}
            }
        }
    }

    fn give_birth(&mut self, now: Instant, region: Arc<Region>, stands: bool, out: &mut Outbox) {
        let id = region.id;
        let peer = region.peer_on(self.config.store).expect("a region is born where it has a peer");
        out.begin_log(id, first_records());
        let conf_state = membership::conf_state(&region);
        let cache_bytes = cache_share(self.replicas.len());
        let storage = LogStorage::new(id, self.log.clone(), first_log(), INITIAL.index, conf_state, cache_bytes);
        let replica = Replica::new(self.config.clone(), region, peer, storage, INITIAL);
        let mut replica = replica.expect("the membership of a region is one for Raft");
        for envelope in self.absent.take_waiting(id) {
            replica.receive(now, &envelope, out);
        }
        if stands {
            replica.stand_at_birth(now, out);
        }
        self.replicas.insert(id, replica);
        self.dirty.insert(id);
    }

    /// Ends replicas that are no peers any more.
    pub(super) fn bury(&mut self, out: &mut Outbox) {
        for Removal { region, epoch, reason, merged } in std::mem::take(&mut out.removed) {
            if self.replicas.get(&region).is_some_and(Replica::is_taking_snapshot) {
                self.snapshots.defer(Removal { region, epoch, reason, merged });
                continue;
            }
            let Some(mut replica) = self.replicas.remove(&region) else { continue };
            let peer = replica.peer();
            info!(store = self.config.store.0, region = region.0, peer = peer.id.0, reason, "a replica is destroyed");
            for EndingReplica { region, tombstone } in replica.abandon_ending() {
                out.apply.push(ApplyTask { region, work: ApplyWork::Destroy(tombstone) });
            }
            replica.end(out);
            let tombstone = Tombstone { peer: peer.id, epoch: epoch.max(replica.region().epoch), merged };
            // What it still has to say or write concerns nobody; what is being applied ends first.
            self.writes.forget(region);
            self.absent.dying.insert(region, replica.region().clone());
            self.absent.tombstones.insert(region, tombstone);
            let work = ApplyWork::Destroy(tombstone);
            out.apply.push(ApplyTask { region: replica.region().clone(), work });
            out.gone.push(region);
        }
    }

    /// The state of a replica is gone for good: its log may go.
    pub(super) fn destroyed(&mut self, region: RegionId, out: &mut Outbox) {
        self.absent.dying.remove(&region);
        out.begin_log(region, RegionLog { removed: true, ..RegionLog::default() });
    }
}

/// The log of a region that was just split off.
fn first_log() -> LogState {
    LogState { hard_state: first_hard_state(), truncated: INITIAL, last: INITIAL }
}

fn first_hard_state() -> HardState {
    HardState { term: INITIAL.term.0, commit: INITIAL.index.0, ..HardState::default() }
}

/// The first records of a region's log.
pub(super) fn first_records() -> RegionLog {
    RegionLog { hard_state: Some(first_hard_state()), truncated: Some(INITIAL), removed: true, ..RegionLog::default() }
}
