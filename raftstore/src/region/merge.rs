//! Two neighbours become one: the source's range and data go over to the target, in place, on every store by itself.
//!
//! ```text
//!   source   ──PrepareMerge──► serves nobody ──(all its peers have that entry)──► asks the target ─┬─► taken over
//!              new epoch       no read, no write, no change                                        └─► RollbackMerge
//!   target   for exactly the epoch that the source was prepared for:
//!              CommitMerge   new range, new epoch, in one batch with the end of the source's replica
//!              or anything else that changes its epoch (AbandonMerge does nothing but that): never
//! ```
//!
//! Who decides is the target's log: of the epoch that the source was prepared for only one entry can make the next one.
//! So the source may serve again as soon as a replica of the target that was a peer then has another epoch and has not
//! taken the source over, or had one when it was itself merged into a third region. And the source can't be served twice:
//! its leader's lease ends where PrepareMerge is applied, and only then, as its leader, it asks.
//!
//! The target asks nobody for the source's log: all the source's peers have acknowledged all of it before CommitMerge is
//! proposed, on the very stores of the target. A replica of the target holds back CommitMerge, and what follows, until the
//! source's replica beside it has applied that far; that all of it is committed the entry itself proves. Who has CommitMerge
//! in its log is told that it is committed, and applies it before any snapshot.
//!
//! A source's replica that missed the end is told by the tombstones of the others. It ends at once, unless the target's
//! replica beside it has not come to CommitMerge yet: then it ends with that entry, or with the snapshot of the target that
//! takes the entry's place.

use prost::Message as _;
use proto::{Epoch, KeyRange, LogIndex, PD_REGION, Peer, PeerRole, Region, RegionId, Term, wire};
use raft::{RaftLog, eraftpb::Entry};
use tracing::{debug, info};

use super::{Replica, change::refused, log_storage::LogStorage, outbox::Outbox};
use crate::{
    api::{AdminError, PeerProgress},
    clock::Instant,
    config::Planted,
    effect::Ticket,
    keys::COMMAND_FORMAT,
    log::Position,
};

/// After so many election timeouts the source's leader wants it to end: the source serves nobody meanwhile.
const PATIENCE_ELECTIONS: u32 = 2;
/// Entries a peer may lack when a merge begins: a round trip's worth.
const LAG_ENTRIES: u64 = 128;
/// The context of entries that take over a source; others have none.
const COMMIT_CONTEXT: &[u8] = b"merge";

/// Where a region is in its merges: applied, on disk beside the region's state, and in its snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merges {
    /// It is a source that waits for its target.
    pub prepared: Option<Box<Prepared>>,
    /// The entry by which it took over the last source; index 0: never.
    pub absorbed: Position,
}

/// A source that waits for its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The target as it must be when it takes over.
    pub into: Region,
    /// The PrepareMerge.
    pub at: Position,
}

impl Merges {
    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        *self == Merges::default()
    }

    pub(crate) fn to_wire(&self) -> wire::MergeRecord {
        let at = self.prepared.as_ref().map(|p| p.at).unwrap_or_default();
        wire::MergeRecord {
            into: self.prepared.as_ref().map(|p| (&p.into).into()),
            index: at.index.0,
            term: at.term.0,
            absorbed_index: self.absorbed.index.0,
            absorbed_term: self.absorbed.term.0,
        }
    }

    pub(crate) fn from_wire(record: wire::MergeRecord) -> Result<Self, String> {
        let into = record.into.map(Region::try_from).transpose().map_err(|e| e.to_string())?;
        let position = |index, term| Position { index: LogIndex(index), term: Term(term) };
        let at = position(record.index, record.term);
        let absorbed = position(record.absorbed_index, record.absorbed_term);
        Ok(Merges { prepared: into.map(|into| Box::new(Prepared { into, at })), absorbed })
    }
}

/// What a replica knows beyond the record, and what it holds back.
#[derive(Default)]
pub(super) struct Merging {
    pub(super) record: Merges,
    /// Since this replica leads a source.
    ticks: u32,
    /// Ticks until the target may be asked again.
    pause: u32,
    /// It is known that the target never takes it over.
    never: bool,
    /// In which term a rollback was proposed.
    rollback: Option<Term>,
    held: Option<Held>,
    /// It is known that the region is no more: which one has taken it over, and that one's version since.
    merged_away: Option<(RegionId, u64)>,
}

/// Committed entries that wait until the source's replica here is as far as it must be. The first takes it over.
struct Held {
    entries: Vec<Entry>,
    change: wire::RegionChange,
    commit: wire::CommitMerge,
}

/// What a target that has come to a CommitMerge waits for.
#[derive(Debug, PartialEq)]
pub(crate) enum Gate {
    /// Entries before it are not applied yet.
    Closed,
    /// For nothing: the entry is refused, or makes no sense.
    Open,
    /// Until the source's replica here has applied this entry and is of this epoch.
    Source(RegionId, Position, Epoch),
}

impl Merging {
    /// Something else begins.
    pub(super) fn becomes(&mut self, record: Merges) {
        let (held, merged_away) = (self.held.take(), self.merged_away);
        *self = Merging { record, held, merged_away, ..Merging::default() };
    }

    /// Leadership came or went.
    pub(super) fn led_anew(&mut self) {
        (self.ticks, self.pause, self.rollback) = (0, 0, None);
    }

    pub(super) fn is_prepared(&self) -> bool {
        self.record.prepared.is_some()
    }

    pub(super) fn any(&self) -> bool {
        self.is_prepared() || self.held.is_some()
    }
}

/// Whether a region has left an epoch behind.
pub(crate) fn moved_on(now: Epoch, from: Epoch) -> bool {
    now.conf_ver > from.conf_ver || now.version > from.version
}

/// Why two regions can't be merged as they are.
pub(crate) fn check(source: &Region, into: &Region) -> Result<(), String> {
    if source.id == into.id {
        return Err(format!("{} can't be merged into itself", source.id));
    }
    if [source.id, into.id].contains(&PD_REGION) {
        return Err(format!("{PD_REGION} is PD's own and is never merged"));
    }
    if joined(&source.range, &into.range).is_none() {
        return Err(format!("{} and {} are no neighbours", source.id, into.id));
    }
    let only_voters = |region: &Region| region.peers.iter().all(|p| p.role == PeerRole::Voter);
    let same_store = |p: &Peer| into.peer_on(p.store).is_some();
    if !only_voters(source) || !only_voters(into) {
        return Err(format!("{} or {} has a peer that is no voter", source.id, into.id));
    }
    if source.peers.len() != into.peers.len() || !source.peers.iter().all(same_store) {
        return Err(format!("{} and {} are not on the same stores", source.id, into.id));
    }
    Ok(())
}

/// The range of two neighbours.
fn joined(a: &KeyRange, b: &KeyRange) -> Option<KeyRange> {
    let touch = |left: &KeyRange, right: &KeyRange| !left.end.is_empty() && left.end == right.start;
    if touch(a, b) {
        Some(KeyRange::new(a.start.clone(), b.end.clone()))
    } else if touch(b, a) {
        Some(KeyRange::new(b.start.clone(), a.end.clone()))
    } else {
        None
    }
}

/// The source once it is prepared, and once it was rolled back; the target once it was abandoned.
pub(crate) fn next_version(region: &Region) -> Region {
    let epoch = Epoch { version: region.epoch.version + 1, ..region.epoch };
    Region { epoch, ..region.clone() }
}

/// The target with the source in it: newer than both, so that whoever knows one of them is told. `None`: no neighbours.
pub(crate) fn union(target: &Region, source: &Region) -> Option<Region> {
    let range = joined(&target.range, &source.range)?;
    let version = target.epoch.version.max(source.epoch.version) + 1;
    Some(Region { range, epoch: Epoch { version, ..target.epoch }, ..target.clone() })
}

/// What an entry says that takes over a source; `None` of all others.
fn commit_of(entry: &Entry) -> Option<(wire::RegionChange, wire::CommitMerge)> {
    if entry.context != COMMIT_CONTEXT {
        return None;
    }
    let change = wire::Command::decode(entry.data.clone()).ok()?.change?;
    match &change.kind {
        Some(wire::region_change::Kind::CommitMerge(commit)) => Some((change.clone(), commit.clone())),
        _ => None,
    }
}

fn has_entry(log: &RaftLog<LogStorage>, at: Position) -> bool {
    log.last_index() >= at.index.0 && log.term(at.index.0).is_ok_and(|term| term == at.term.0)
}

impl Replica {
    /// As found on disk.
    pub(crate) fn restore_merges(&mut self, record: Merges) {
        self.changes.merging.becomes(record);
    }

    /// It is a source that waits for its target.
    pub(crate) fn prepared(&self) -> Option<&Prepared> {
        self.changes.merging.record.prepared.as_deref()
    }

    /// Whether it serves nobody, because it is a source.
    pub(super) fn is_silenced(&self) -> bool {
        self.changes.merging.is_prepared()
    }

    /// The same for reads; a planted bug forgets it.
    pub(super) fn refuses_reads(&self) -> bool {
        self.is_silenced() && !self.config.has(Planted::MergeSourceStillRead)
    }

    pub(super) fn begin_merge(
        &mut self,
        now: Instant,
        ticket: Ticket,
        into: Box<Region>,
        here: Option<&Region>,
        out: &mut Outbox,
    ) -> Result<(), AdminError> {
        self.check_quiet()?;
        check(&self.region, &into).map_err(refused)?;
        self.check_target_here(&into, here)?;
        if !self.has_just_woken() {
            self.check_all_there(now)?;
        }
        self.changes.merge_begins(ticket, into);
        self.drive_merge(now, here, out);
        Ok(())
    }

    fn check_target_here(&self, into: &Region, here: Option<&Region>) -> Result<(), AdminError> {
        match here {
            Some(here) if here.epoch == into.epoch && here.range == into.range => Ok(()),
            Some(here) => Err(refused(format!("{} is of epoch {} here, not of {}", here.id, here.epoch, into.epoch))),
            None => Err(refused(format!("{} has no replica on the store that leads {}", into.id, self.id()))),
        }
    }

    fn check_all_there(&self, now: Instant) -> Result<(), AdminError> {
        let last = self.node.raft.raft_log.last_index();
        let near = |p: &PeerProgress| p.active && !p.needs_snapshot && p.matched.0 + LAG_ENTRIES >= last;
        match self.progress(now).iter().find(|p| !near(p)) {
            Some(away) => {
                Err(refused(format!("{} of {} is away or lags: a merge needs all peers", away.peer, self.id())))
            }
            None => Ok(()),
        }
    }

    /// Proposes PrepareMerge once all peers are there. One that has just woken waits to hear of them.
    fn prepare(&mut self, now: Instant, into: &Region, here: Option<&Region>, out: &mut Outbox) {
        let there = self.check_all_there(now);
        if there.is_err() && self.has_just_woken() {
            return;
        }
        if let Err(error) = there.and_then(|()| self.check_target_here(into, here)) {
            return self.changes.merge_ends(Err(error), out);
        }
        self.propose_waiting(out);
        let kind = wire::region_change::Kind::PrepareMerge(wire::PrepareMerge { into: Some(into.into()) });
        // A refusal is tried again with the next turn.
        if let Ok(position) = self.propose_change(kind, Vec::new()) {
            info!(region = self.region.id.0, into = into.id.0, index = position.index.0, "a merge is proposed");
            self.changes.merge_is_proposed(position);
            self.node.skip_bcast_commit(false);
        }
    }

    /// Which region's replica here matters to it: that which it is to be merged into.
    pub(crate) fn merges_into(&self) -> Option<RegionId> {
        self.prepared().map(|p| p.into.id).or_else(|| self.changes.merge_waits().map(|into| into.id))
    }

    pub(super) fn propose_change(
        &mut self,
        kind: wire::region_change::Kind,
        context: Vec<u8>,
    ) -> raft::Result<Position> {
        let change =
            wire::RegionChange { epoch: Some(self.region.epoch.into()), term: self.term().0, kind: Some(kind) };
        let command = wire::Command { format: COMMAND_FORMAT, proposals: Vec::new(), change: Some(change) };
        self.node.propose(context, command.encode_to_vec())?;
        Ok(Position { index: LogIndex(self.node.raft.raft_log.last_index()), term: self.term() })
    }

    /// A tick passed for a source.
    pub(super) fn tick_merge(&mut self) {
        let merging = &mut self.changes.merging;
        merging.ticks += 1;
        merging.pause = merging.pause.saturating_sub(1);
    }

    /// Lets a source's leader go on: it prepares, asks the target, or rolls back. `target`: as its replica here has
    /// applied it.
    pub(crate) fn drive_merge(&mut self, now: Instant, target: Option<&Region>, out: &mut Outbox) {
        if let Some(into) = self.changes.merge_waits().cloned() {
            return self.prepare(now, &into, target, out);
        }
        let Some(prepared) = self.prepared().cloned() else { return };
        let term = self.term();
        if !self.leads() || !self.node.raft.apply_to_current_term() || self.changes.merging.rollback == Some(term) {
            return;
        }
        // Were it taken over, this replica would have gone with the same batch.
        let gone_on = target.is_some_and(|target| moved_on(target.epoch, prepared.into.epoch));
        if gone_on || self.changes.merging.never {
            let kind = wire::region_change::Kind::RollbackMerge(wire::RollbackMerge {});
            if self.propose_change(kind, Vec::new()).is_ok() {
                info!(region = self.region.id.0, into = prepared.into.id.0, "the merge can't happen any more");
                self.changes.merging.rollback = Some(term);
            }
            return;
        }
        let all_have_it = self.node.raft.prs().iter().all(|(_, p)| p.matched >= prepared.at.index.0);
        let merging = &mut self.changes.merging;
        let abandon = merging.ticks >= PATIENCE_ELECTIONS * self.config.election_ticks;
        if (all_have_it || abandon) && merging.pause == 0 {
            merging.pause = 1;
            self.ask_target(&prepared, abandon, out);
        }
    }

    fn ask_target(&self, prepared: &Prepared, abandon: bool, out: &mut Outbox) {
        let ask = wire::MergeAsk {
            source_id: self.region.id.0,
            source_epoch: Some(self.region.epoch.into()),
            target_epoch: Some(prepared.into.epoch.into()),
            abandon,
        };
        for &peer in &prepared.into.peers {
            let envelope = wire::RaftMessage {
                region_id: prepared.into.id.0,
                from: Some(self.peer.into()),
                to: Some(peer.into()),
                merge_ask: Some(ask),
                ..wire::RaftMessage::default()
            };
            out.messages.push((peer.store, envelope));
        }
    }

    /// A target's leader is asked by a source. `source`: the source's replica here, when it is prepared.
    pub(crate) fn asked_to_merge(&mut self, ask: wire::MergeAsk, source: Option<(&Region, &Prepared)>) {
        self.wake();
        if self.check_quiet().is_err() {
            return;
        }
        let kind = match source {
            _ if ask.abandon => wire::region_change::Kind::AbandonMerge(wire::AbandonMerge {}),
            Some((region, prepared)) if self.may_absorb(region, prepared, &ask) => {
                let Position { index, term } = prepared.at;
                let commit = wire::CommitMerge { source: Some(region.into()), index: index.0, term: term.0 };
                wire::region_change::Kind::CommitMerge(commit)
            }
            _ => return,
        };
        let context = if ask.abandon { Vec::new() } else { COMMIT_CONTEXT.to_vec() };
        if let Ok(position) = self.propose_change(kind, context) {
            let (region, source) = (self.region.id.0, ask.source_id);
            info!(region, source, index = position.index.0, abandon = ask.abandon, "a merge is to end");
            self.changes.absorption_begins(position);
            self.node.skip_bcast_commit(false);
        }
    }

    /// Whether the source's replica here says the same as the source's leader, and no peer of the target needs a snapshot:
    /// each has an entry of this term, before which no earlier leader can have had the log cut.
    fn may_absorb(&self, source: &Region, prepared: &Prepared, ask: &wire::MergeAsk) -> bool {
        let told = ask.source_epoch.map(Epoch::from);
        let fits = Some(source.epoch) == told
            && (prepared.into.id, prepared.into.epoch) == (self.region.id, self.region.epoch)
            && check(source, &self.region).is_ok();
        let raft = &self.node.raft;
        let kept_from = self.truncation.announced();
        let level = |matched: u64| {
            matched + LAG_ENTRIES >= raft.raft_log.last_index()
                && matched >= kept_from.0
                && raft.raft_log.term(matched).is_ok_and(|term| term == raft.term)
        };
        fits && raft.prs().iter().all(|(_, progress)| level(progress.matched))
    }

    /// The target says that it never takes over the source that was prepared in this epoch.
    pub(crate) fn never_merged(&mut self, source_epoch: Epoch) {
        self.changes.merging.never |= self.is_silenced() && self.region.epoch == source_epoch;
    }

    /// The region was taken over by another one, whose replica here does not know it yet.
    pub(crate) fn told_of_its_end(&mut self, into: RegionId, version: u64) {
        self.changes.merging.merged_away = Some((into, version));
    }

    /// Into which region it is known to have been merged, and that one's version since.
    pub(crate) fn merged_away(&self) -> Option<(RegionId, u64)> {
        self.changes.merging.merged_away
    }

    /// Whether a snapshot of a region that covers some of its keys is its end.
    pub(crate) fn ends_with(&self, target: &Region) -> bool {
        let into_it = |(into, version)| into == target.id && version <= target.epoch.version;
        self.merged_away().is_some_and(into_it)
    }

    /// Keeps back a CommitMerge among committed entries, and all that follows.
    pub(super) fn hold_back(&mut self, mut committed: Vec<Entry>, out: &mut Outbox) -> Vec<Entry> {
        if let Some(held) = &mut self.changes.merging.held {
            held.entries.extend(committed);
            return Vec::new();
        }
        let found = committed.iter().enumerate().find_map(|(i, entry)| Some((i, commit_of(entry)?)));
        let Some((at, (change, commit))) = found else { return committed };
        let entries = committed.split_off(at);
        self.changes.merging.held = Some(Held { entries, change, commit });
        out.gated.push(self.region.id);
        committed
    }

    /// What the CommitMerge that is held back waits for; `None`: there is none.
    pub(crate) fn gate(&self) -> Option<Gate> {
        let held = self.changes.merging.held.as_ref()?;
        let first = &held.entries[0];
        if self.applied.index.0 + 1 < first.index {
            return Some(Gate::Closed);
        }
        let applies = held.change.epoch.map(Epoch::from) == Some(self.region.epoch) && held.change.term == first.term;
        let source = held.commit.source.clone().and_then(|source| Region::try_from(source).ok());
        let at = Position { index: LogIndex(held.commit.index), term: Term(held.commit.term) };
        Some(match source {
            Some(source) if applies => Gate::Source(source.id, at, source.epoch),
            _ => Gate::Open,
        })
    }

    /// What was held back is applied.
    pub(crate) fn open_gate(&mut self, out: &mut Outbox) {
        let Some(Held { mut entries, .. }) = self.changes.merging.held.take() else { return };
        let rest = entries.split_off(1);
        out.apply(&self.region, entries);
        let rest = self.hold_back(rest, out);
        out.apply(&self.region, rest);
    }

    /// Whether the target here can take over this source now.
    pub(crate) fn can_be_absorbed(&self, at: Position, epoch: Epoch) -> bool {
        self.applied.index >= at.index && self.region.epoch == epoch && !self.snapshots.incoming()
    }

    /// An entry is known to be committed by other means than this region's leader. Whether that is news, and it is in
    /// the log here.
    pub(crate) fn commit_through(&mut self, at: Position) -> bool {
        let log = &mut self.node.raft.raft_log;
        let news = log.committed < at.index.0 && has_entry(log, at);
        if news {
            debug!(region = self.region.id.0, index = at.index.0, "a merge says what is committed");
            log.commit_to(at.index.0);
        }
        news
    }

    /// The last entry by which this region took over another one.
    pub(super) fn absorbed(&self) -> Position {
        self.changes.merging.record.absorbed
    }

    /// The leader says which entry was the last to take over another region: who has it in its log applies it, before
    /// it is offered a snapshot in its place.
    pub(super) fn told_of_merge(&mut self, absorbed: Position) {
        if absorbed.index > self.applied.index && self.is_initialised() {
            self.commit_through(absorbed);
        }
    }

    /// Before a snapshot is taken: a CommitMerge that it holds has to be applied here, if it is in the log here, since the
    /// source's replica goes with it. True: the snapshot has to wait.
    pub(super) fn merge_first(&mut self, absorbed: Position) -> bool {
        let ahead = self.is_initialised() && absorbed.index > self.applied.index;
        self.told_of_merge(absorbed);
        ahead && has_entry(&self.node.raft.raft_log, absorbed)
    }

    /// Whether a merge is, or may be, under way: nothing is cut that a peer lacks.
    pub(super) fn keeps_log_for_merge(&self) -> bool {
        self.is_silenced() || self.changes.absorbs() || !self.node.raft.apply_to_current_term()
    }

    /// The target has taken this region over, which ends with it.
    pub(crate) fn absorbed_by(&mut self, target: &Region, out: &mut Outbox) {
        let error = self.epoch_mismatch();
        // What is not applied by now comes after PrepareMerge, and never will be.
        self.proposals.refuse(&error, &mut out.replies);
        self.changes.merge_ends(Ok(vec![target.clone()]), out);
    }
}

#[cfg(test)]
mod tests {
    use proto::{PeerId, StoreId};

    use super::*;

    fn region(id: u64, start: &'static str, end: &'static str, version: u64) -> Region {
        let peer = |n| Peer { id: PeerId(id * 10 + n), store: StoreId(n), role: PeerRole::Voter };
        let epoch = Epoch { conf_ver: id, version };
        Region { id: RegionId(id), range: KeyRange::new(start, end), epoch, peers: (1..=3).map(peer).collect() }
    }

    #[test]
    fn neighbours_on_the_same_stores_become_one_newer_region() {
        let (left, right) = (region(7, "c", "g", 4), region(8, "g", "", 9));
        check(&left, &right).unwrap();
        check(&right, &left).unwrap();
        let merged = union(&left, &right).unwrap();
        assert_eq!((merged.id, merged.range.clone()), (RegionId(7), KeyRange::new("c", "")));
        assert_eq!((merged.epoch, merged.peers.clone()), (Epoch { conf_ver: 7, version: 10 }, left.peers.clone()));
        assert_eq!(union(&right, &left).unwrap().range, merged.range);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let (left, right) = (region(7, "c", "g", 4), region(8, "g", "m", 9));
        let why = |a: &Region, b: &Region| check(a, b).unwrap_err();
        assert!(why(&left, &left).contains("itself"));
        assert!(why(&left, &region(8, "h", "m", 9)).contains("neighbours"));
        assert!(why(&region(8, "g", "", 9), &region(7, "", "c", 4)).contains("neighbours"));
        assert!(why(&Region { id: PD_REGION, ..left.clone() }, &right).contains("PD's own"));
        let mut elsewhere = right.clone();
        elsewhere.peers[2].store = StoreId(4);
        assert!(why(&left, &elsewhere).contains("same stores"));
        let mut learning = right;
        learning.peers[2].role = PeerRole::Learner;
        assert!(why(&left, &learning).contains("no voter"));
    }

    #[test]
    fn the_record_survives() {
        let at = Position { index: LogIndex(7), term: Term(3) };
        let prepared = Some(Box::new(Prepared { into: region(8, "g", "m", 9), at }));
        for record in [Merges::default(), Merges { prepared, absorbed: at }] {
            assert_eq!(Merges::from_wire(record.to_wire()), Ok(record));
        }
    }
}
