//! Entries that change the region itself. Both halves of a split and how far the parent has applied are in one batch.

use std::sync::Arc;

use prost::Message;
use proto::{
    Cf, Peer, Region,
    wire::{self, RegionError, region_change::Kind},
};
use raft::eraftpb::Entry;
use tracing::info;

use super::{Round, corrupt, destroy::clearing};
use crate::{
    effect::RegionChange,
    engine::{EngineError, WriteOp},
    keys::{self, ApplyState, INITIAL},
    log::Position,
    region::{membership, message, split},
};

/// What an entry made of the region, or the refusal that is the same on all replicas.
pub(super) type Changed = Result<RegionChange, RegionError>;

impl Round<'_> {
    pub(super) fn change(
        &mut self,
        region: &mut Arc<Region>,
        position: Position,
        change: wire::RegionChange,
    ) -> Result<Changed, EngineError> {
        let kind = change.kind.ok_or_else(|| corrupt(region, position, "a change that this version does not know"))?;
        if let Err(refusal) = self.check(region, position, change.epoch, change.term) {
            return Ok(Err(refusal));
        }
        match kind {
            Kind::Split(split) => self.split(region, position, split),
            Kind::PrepareMerge(prepare) => self.prepare_merge(region, position, prepare),
            Kind::CommitMerge(commit) => self.commit_merge(region, position, commit),
            Kind::AbandonMerge(_) => Ok(self.abandon_merge(region, position)),
            Kind::RollbackMerge(_) => self.rollback_merge(region, position),
        }
    }

    fn split(
        &mut self,
        region: &mut Arc<Region>,
        position: Position,
        split: wire::Split,
    ) -> Result<Changed, EngineError> {
        let planned = match split::plan(region, &split::from_wire(split)) {
            Ok(planned) => planned,
            Err(message) => return Ok(Err(RegionError { kind: None, message })),
        };
        let regions: Vec<_> = planned.into_iter().map(Arc::new).collect();
        let mut born = Vec::new();
        for new in &regions[1..] {
            if self.gives_birth(new, position)? {
                born.push(new.id);
            }
        }
        self.becomes(region, regions[0].clone());
        info!(region = region.id.0, index = position.index.0, new = ?regions[1..].iter().map(|r| r.id.0).collect::<Vec<_>>(), "split");
        Ok(Ok(RegionChange::Split { regions, born }))
    }

    /// The first records of a new region, unless its replica here has been destroyed already: then it was split off
    /// elsewhere, had its membership changed, and this store comes late; what it holds of it belongs to nobody.
    fn gives_birth(&mut self, new: &Region, position: Position) -> Result<bool, EngineError> {
        let peer = new.peer_on(self.store);
        let before = self.before.get_or_init(|| self.engine.snapshot());
        if before.get(Cf::Meta, &keys::region_key(new.id))?.is_some() {
            return Err(corrupt(new, position, "it is split off here and exists already"));
        }
        if peer.is_none() || before.get(Cf::Meta, &keys::tombstone_key(new.id))?.is_some() {
            self.ops.extend(clearing(new));
            return Ok(false);
        }
        let apply = ApplyState { applied: INITIAL, commit: INITIAL.index };
        self.ops.push(WriteOp::Put(Cf::Meta, keys::region_key(new.id), keys::encode_region(new)));
        self.ops.push(WriteOp::Put(Cf::Meta, keys::apply_key(new.id), keys::encode_apply(apply)));
        Ok(true)
    }

    pub(super) fn membership(
        &mut self,
        region: &mut Arc<Region>,
        position: Position,
        entry: &Entry,
    ) -> Result<Changed, EngineError> {
        let change = message::conf_change(&entry.data).map_err(|e| corrupt(region, position, e))?;
        let context = wire::Membership::decode(entry.context.clone()).map_err(|e| corrupt(region, position, e))?;
        if let Err(refusal) = self.check(region, position, context.epoch, context.term) {
            return Ok(Err(refusal));
        }
        let peers = context.peers.into_iter().map(Peer::try_from).collect::<Result<Vec<_>, _>>();
        let peers = peers.map_err(|e| corrupt(region, position, e))?;
        let now = Arc::new(membership::with_peers(region, peers));
        self.becomes(region, now.clone());
        info!(region = now.id.0, index = position.index.0, epoch = %now.epoch, peers = ?now.peers, "the membership changes");
        Ok(Ok(RegionChange::Peers { region: now, change }))
    }

    /// From here on the region is another one.
    pub(super) fn becomes(&mut self, region: &mut Arc<Region>, now: Arc<Region>) {
        self.ops.push(WriteOp::Put(Cf::Meta, keys::region_key(now.id), keys::encode_region(&now)));
        self.ahead.insert(now.id, now.clone());
        *region = now;
    }
}

#[cfg(test)]
mod tests {
    use proto::{Epoch, KeyRange, PeerId, PeerRole, RegionId, StoreId};
    use raft::eraftpb::EntryType;

    use super::*;
    use crate::{
        Applier, NewRegion, StoreConfig,
        effect::{Applied, ApplyTask, ApplyWork, EntryOutcome},
        engine::{Engine, memory::MemoryEngine},
        keys::{COMMAND_FORMAT, Tombstone},
    };

    const STORE: StoreId = StoreId(1);

    struct Bed {
        engine: Arc<MemoryEngine>,
        applier: Applier,
    }

    impl Bed {
        fn new() -> Self {
            let engine = Arc::new(MemoryEngine::new());
            let applier = Applier::new(engine.clone(), &StoreConfig::new(STORE, 1));
            Bed { engine, applier }
        }
        fn put(&self, cf: Cf, key: &[u8], value: &[u8]) {
            let put = WriteOp::Put(cf, key.to_vec().into(), value.to_vec().into());
            self.engine.write(crate::engine::WriteBatch { ops: vec![put] }).unwrap();
        }
        fn has(&self, cf: Cf, key: &[u8]) -> bool {
            self.engine.snapshot().get(cf, key).unwrap().is_some()
        }
        fn stored(&self, region: u64) -> Option<Region> {
            let value = self.engine.snapshot().get(Cf::Meta, &keys::region_key(RegionId(region))).unwrap()?;
            Some(keys::decode_region(&value).unwrap())
        }
        /// Applies entries that the core sends with the region as it was at first.
        fn apply(&self, entries: Vec<Entry>) -> Vec<EntryOutcome> {
            let task = ApplyTask { region: Arc::new(region()), work: ApplyWork::Entries(entries) };
            match self.applier.run(vec![task]).unwrap().remove(0) {
                Applied::Entries { outcomes, .. } => outcomes,
                other => panic!("{other:?}"),
            }
        }
    }

    fn region() -> Region {
        let peer = |id| Peer { id: PeerId(id), store: StoreId(id), role: PeerRole::Voter };
        Region {
            id: RegionId(2),
            range: KeyRange::new("b", "m"),
            epoch: Epoch { conf_ver: 1, version: 3 },
            peers: vec![peer(1), peer(2)],
        }
    }

    fn split(index: u64, epoch: Epoch, start: &'static str, id: u64) -> Entry {
        let new =
            NewRegion { start: start.into(), id: RegionId(id), peers: vec![PeerId(id * 10), PeerId(id * 10 + 1)] };
        let kind = Some(Kind::Split(split::to_wire(&[new])));
        let change = Some(wire::RegionChange { epoch: Some(epoch.into()), term: 6, kind });
        let command = wire::Command { format: COMMAND_FORMAT, proposals: vec![], change };
        Entry { index, term: 6, data: command.encode_to_vec().into(), ..Entry::default() }
    }

    fn put(index: u64, epoch: Epoch, key: &'static str) -> Entry {
        let mut batch = proto::Batch::default();
        batch.put(Cf::Data, key.into(), "1".into());
        let proposals = vec![wire::Proposal { epoch: Some(epoch.into()), term: 6, ops: batch.ops }];
        let command = wire::Command { format: COMMAND_FORMAT, proposals, change: None };
        Entry { index, term: 6, data: command.encode_to_vec().into(), ..Entry::default() }
    }

    #[test]
    fn both_halves_of_a_split_are_there_at_once_and_the_next_entry_knows() {
        let (bed, before) = (Bed::new(), region().epoch);
        let after = Epoch { version: before.version + 1, ..before };
        let outcomes = bed.apply(vec![split(6, before, "g", 7), put(7, before, "c"), put(8, after, "c")]);
        assert!(matches!(&outcomes[0].change, Some(Ok(RegionChange::Split { born, .. })) if *born == [RegionId(7)]));
        assert_eq!((outcomes[1].proposals[0].is_ok(), outcomes[2].proposals[0].is_ok()), (false, true));
        assert_eq!(bed.stored(2).unwrap().range, KeyRange::new("b", "g"));
        assert_eq!(bed.stored(7).unwrap().range, KeyRange::new("g", "m"));
        let apply = bed.engine.snapshot().get(Cf::Meta, &keys::apply_key(RegionId(7))).unwrap().unwrap();
        assert_eq!(keys::decode_apply(&apply).unwrap().applied, INITIAL);
        // The core may not have heard yet: its next task says what the region was.
        let outcomes = bed.apply(vec![put(9, after, "h"), split(10, before, "d", 8)]);
        assert!(outcomes[0].proposals[0].is_err(), "outside by now");
        assert!(matches!(outcomes[1].change, Some(Err(_))), "of an epoch that is over");
    }

    #[test]
    fn what_was_destroyed_here_is_not_born_again() {
        let bed = Bed::new();
        let tombstone = Tombstone { peer: PeerId(70), epoch: Epoch { conf_ver: 5, version: 4 }, merged: None };
        bed.put(Cf::Meta, &keys::tombstone_key(RegionId(7)), &keys::encode_tombstone(tombstone));
        bed.put(Cf::Data, b"c", b"1");
        bed.put(Cf::Data, b"h", b"1");
        let outcomes = bed.apply(vec![split(6, region().epoch, "g", 7)]);
        assert!(matches!(&outcomes[0].change, Some(Ok(RegionChange::Split { born, .. })) if born.is_empty()));
        assert_eq!((bed.stored(7), bed.has(Cf::Data, b"h"), bed.has(Cf::Data, b"c")), (None, false, true));
    }

    #[test]
    fn a_membership_comes_with_its_epoch_and_a_replica_goes_with_its_data() {
        let bed = Bed::new();
        let peers: Vec<Peer> = region().peers.into_iter().filter(|p| p.id == PeerId(2)).collect();
        let context = wire::Membership {
            epoch: Some(region().epoch.into()),
            term: 6,
            peers: peers.into_iter().map(Into::into).collect(),
        };
        let mut entry = Entry { index: 6, term: 6, context: context.encode_to_vec().into(), ..Entry::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        let outcomes = bed.apply(vec![entry.clone()]);
        assert!(matches!(&outcomes[0].change, Some(Ok(RegionChange::Peers { .. }))));
        assert_eq!(bed.stored(2).unwrap().epoch, Epoch { conf_ver: 2, version: 3 });
        entry.index = 7;
        assert!(matches!(bed.apply(vec![entry])[0].change, Some(Err(_))), "its epoch is over");
        bed.put(Cf::Lock, b"c", b"1");
        let tombstone = Tombstone { peer: PeerId(1), epoch: Epoch { conf_ver: 2, version: 3 }, merged: None };
        let task = ApplyTask { region: Arc::new(region()), work: ApplyWork::Destroy(tombstone) };
        assert_eq!(bed.applier.run(vec![task]).unwrap(), [Applied::Destroyed(RegionId(2))]);
        assert_eq!((bed.stored(2), bed.has(Cf::Lock, b"c")), (None, false));
        assert!(bed.has(Cf::Meta, &keys::tombstone_key(RegionId(2))));
    }
}
