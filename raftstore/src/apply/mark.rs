//! Marks: what was applied so far becomes visible, and a view of it is taken, before anything that follows.

use std::sync::Arc;

use proto::{Cf, Region};

use super::Round;
use crate::{
    Applier,
    engine::{EngineError, WriteBatch, WriteOp},
    keys::{self, ApplyState},
    log::Position,
    verify::{Marked, WAITING_AT_MOST},
};

impl Applier {
    /// Views taken at marks since the last call, for whoever hashes them.
    pub fn take_marked(&self) -> Vec<Marked> {
        std::mem::take(&mut *self.marked.lock())
    }
}

impl Round<'_> {
    /// Takes views for the marks of the entry at `position`, all of which is applied.
    pub(super) fn views(&mut self, region: &Arc<Region>, position: Position) -> Result<(), EngineError> {
        if self.marks.is_empty() {
            return Ok(());
        }
        if !self.marks_early {
            self.write_so_far(region, position)?;
        }
        let snapshot = self.engine.snapshot();
        for id in std::mem::take(&mut self.marks) {
            // Who applies but never takes them (a replay at boot) does not pile views up.
            if self.marked.len() < WAITING_AT_MOST {
                self.marked.push(Marked { id, region: region.clone(), position, snapshot: snapshot.clone() });
            }
        }
        Ok(())
    }

    /// What was applied up to `position` becomes visible: with how far it is, as at the end of a round.
    fn write_so_far(&mut self, region: &Region, position: Position) -> Result<(), EngineError> {
        let state = ApplyState { applied: position, commit: position.index };
        self.ops.push(WriteOp::Put(Cf::Meta, keys::apply_key(region.id), keys::encode_apply(state)));
        self.engine.write(WriteBatch { ops: std::mem::take(&mut self.ops) })?;
        // From here on moves see what was written.
        self.before = Default::default();
        self.pending.clear();
        self.seen = 0;
        Ok(())
    }
}
