//! Entries by which two regions become one. The target's new range, the end of the source's replica and how far the target
//! has applied are in one batch; the source's log stays until that is synced.

use std::sync::Arc;

use bytes::Bytes;
use proto::{Cf, LogIndex, Region, Term, wire, wire::RegionError};
use tracing::info;

use super::{Round, burial, corrupt, region_change::Changed};
use crate::{
    effect::{MergeStep, RegionChange},
    engine::{EngineError, WriteOp},
    keys::{self, Tombstone},
    log::Position,
    region::merge::{self, Merges, Prepared},
};

impl Round<'_> {
    /// The region begins to wait for its target, and serves nobody.
    pub(super) fn prepare_merge(
        &mut self,
        region: &mut Arc<Region>,
        position: Position,
        prepare: wire::PrepareMerge,
    ) -> Result<Changed, EngineError> {
        let into = prepare.into.ok_or_else(|| corrupt(region, position, "a merge without a target"))?;
        let into = Region::try_from(into).map_err(|e| corrupt(region, position, e))?;
        if let Err(message) = merge::check(region, &into) {
            return Ok(Err(RegionError { kind: None, message }));
        }
        let record = self.merges(region)?;
        let prepared = Some(Box::new(Prepared { into: into.clone(), at: position }));
        self.remember(region, Merges { prepared, ..record });
        let now = Arc::new(merge::next_version(region));
        self.becomes(region, now.clone());
        info!(region = now.id.0, index = position.index.0, epoch = %now.epoch, into = into.id.0, "prepared to be merged");
        Ok(Ok(RegionChange::Merge { region: now, step: MergeStep::Prepared { into } }))
    }

    /// The target never takes the region over: it serves again.
    pub(super) fn rollback_merge(
        &mut self,
        region: &mut Arc<Region>,
        position: Position,
    ) -> Result<Changed, EngineError> {
        let record = self.merges(region)?;
        if record.prepared.is_none() {
            return Err(corrupt(region, position, "a merge is rolled back that was not prepared"));
        }
        self.remember(region, Merges { prepared: None, ..record });
        let now = Arc::new(merge::next_version(region));
        self.becomes(region, now.clone());
        info!(region = now.id.0, index = position.index.0, epoch = %now.epoch, "a merge is rolled back");
        Ok(Ok(RegionChange::Merge { region: now, step: MergeStep::RolledBack }))
    }

    /// Nothing that was prepared for this epoch happens any more.
    pub(super) fn abandon_merge(&mut self, region: &mut Arc<Region>, position: Position) -> Changed {
        let now = Arc::new(merge::next_version(region));
        self.becomes(region, now.clone());
        info!(region = now.id.0, index = position.index.0, epoch = %now.epoch, "a merge into it is abandoned");
        Ok(RegionChange::Merge { region: now, step: MergeStep::Abandoned })
    }

    /// The region takes over its neighbour, whose replica here is no more.
    pub(super) fn commit_merge(
        &mut self,
        region: &mut Arc<Region>,
        position: Position,
        commit: wire::CommitMerge,
    ) -> Result<Changed, EngineError> {
        let source = commit.source.ok_or_else(|| corrupt(region, position, "a merge without a source"))?;
        let source = Region::try_from(source).map_err(|e| corrupt(region, position, e))?;
        let prepared = Position { index: LogIndex(commit.index), term: Term(commit.term) };
        self.check_source(region, position, &source, prepared)?;
        let now =
            merge::union(region, &source).ok_or_else(|| corrupt(region, position, "a merge with no neighbour"))?;
        let now = Arc::new(now);
        let peer = source.peer_on(self.store).ok_or_else(|| corrupt(region, position, "the source was never here"))?;
        let merged = Some((now.id, now.epoch.version));
        let tombstone = Tombstone { peer: peer.id, epoch: source.epoch, merged };
        self.ops.extend(burial(source.id, tombstone));
        self.ahead.remove(&source.id);
        self.absorbed.insert(source.id);
        let record = self.merges(region)?;
        self.remember(region, Merges { absorbed: position, ..record });
        self.becomes(region, now.clone());
        info!(region = now.id.0, index = position.index.0, epoch = %now.epoch, source = source.id.0, "merged");
        Ok(Ok(RegionChange::Merge { region: now, step: MergeStep::Absorbed { source: source.id } }))
    }

    /// The source's replica here has applied what it was prepared by, and nothing has happened to it since.
    fn check_source(
        &mut self,
        region: &Region,
        position: Position,
        source: &Region,
        prepared: Position,
    ) -> Result<(), EngineError> {
        let wrong = |what: &str| corrupt(region, position, format!("it takes over {}, {what}", source.id));
        let here = self.stored(keys::region_key(source.id))?.ok_or_else(|| wrong("which is not here"))?;
        let here = keys::decode_region(&here).map_err(|e| wrong(&e.to_string()))?;
        if here != *source {
            return Err(wrong(&format!("which is of epoch {} here, not of {}", here.epoch, source.epoch)));
        }
        let apply = self.stored(keys::apply_key(source.id))?.ok_or_else(|| wrong("which has no apply state"))?;
        let apply = keys::decode_apply(&apply).map_err(|e| wrong(&e.to_string()))?;
        let record = self.merges(source)?.prepared;
        let fits = record.is_some_and(|p| p.at == prepared && (p.into.id, p.into.epoch) == (region.id, region.epoch));
        match apply.applied.index >= prepared.index && fits {
            true => Ok(()),
            false => Err(wrong("which was not prepared for it")),
        }
    }

    fn merges(&mut self, region: &Region) -> Result<Merges, EngineError> {
        let value = self.stored(keys::merges_key(region.id))?;
        let record = value.map(|v| keys::decode_merges(&v)).transpose();
        Ok(record.map_err(|e| EngineError::Corrupt(e.to_string()))?.unwrap_or_default())
    }

    fn remember(&mut self, region: &Region, record: Merges) {
        let key = keys::merges_key(region.id);
        self.ops.push(match record.is_empty() {
            true => WriteOp::Delete(Cf::Meta, key),
            false => WriteOp::Put(Cf::Meta, key, keys::encode_merges(&record)),
        });
    }

    /// A record as of this round.
    fn stored(&mut self, key: Bytes) -> Result<Option<Bytes>, EngineError> {
        self.value(&(Cf::Meta, key))
    }
}
