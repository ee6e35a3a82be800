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
type Changed = Result<RegionChange, RegionError>;

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
        let tombstone = before.get(Cf::Meta, &keys::tombstone_key(new.id))?;
        let tombstone = tombstone.map(|t| keys::decode_tombstone(&t)).transpose();
        let tombstone = tombstone.map_err(|e| EngineError::Corrupt(e.to_string()))?;
        let lives = peer.is_some_and(|peer| tombstone.is_none_or(|t| t.peer < peer.id));
        if !lives {
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
    fn becomes(&mut self, region: &mut Arc<Region>, now: Arc<Region>) {
        self.ops.push(WriteOp::Put(Cf::Meta, keys::region_key(now.id), keys::encode_region(&now)));
        self.ahead.insert(now.id, now.clone());
        *region = now;
    }
}
