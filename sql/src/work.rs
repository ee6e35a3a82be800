//! What a statement works with while it runs.

use std::{ops::Range, sync::Arc};

use parking_lot::Mutex;

use crate::{
    catalog::Table,
    dml::{Certainty, Integrity, Links, Pair, RowLocking, foreign::Later},
    error::SqlResult,
    eval::Env,
    planted::Plant,
    reader::Reader,
    sequence::Sequences,
    types::{Datum, FormatSettings},
};

/// One statement's surroundings.
pub struct Work<'a> {
    /// Reads, and buffers writes.
    pub reader: Reader,
    /// The parameters.
    pub params: &'a [Datum],
    /// When the transaction began, in microseconds since 1970 UTC.
    pub now_us: i64,
    /// Of the session.
    pub settings: &'a FormatSettings,
    /// The transaction goes on after this statement: constraint errors are wanted now, not at its commit.
    pub eager: bool,
    /// How rows are locked before they are changed. `None`: what has changed meanwhile is left to the commit, which follows.
    pub locking: Option<RowLocking>,
    /// What keeps foreign keys and deferrable constraints; `None` where the statement touches none.
    pub links: Option<Links>,
    /// For tables without a primary key.
    pub row_ids: &'a RowIds,
    /// The session's sequences.
    pub sequences: &'a Arc<Sequences>,
    /// The gateway's bug, if a test has planted one.
    pub plant: Plant,
}

impl Work<'_> {
    /// How rows of a table are locked. Those of a table that only this transaction knows need no locks.
    pub fn locking(&self, storage_id: u32) -> Option<&RowLocking> {
        self.locking.as_ref().filter(|_| !self.reader.is_unpublished(storage_id))
    }
    /// How the statement makes sure of the rows it writes.
    pub fn certainty(&self, storage_id: u32) -> Certainty<'_> {
        match self.locking(storage_id) {
            Some(locking) => Certainty::Locked(locking),
            None if self.eager => Certainty::Read,
            None => Certainty::AtCommit,
        }
    }
    /// Keeps constraints after rows of a table were written; `pairs` says which, and is not asked where there are none.
    pub async fn settle(&self, table: &Table, pairs: impl FnOnce() -> Vec<Pair>) -> SqlResult<()> {
        let Some(links) = &self.links else { return Ok(()) };
        let Work { reader, now_us, settings, plant, .. } = self;
        let integrity = Integrity { reader, links, now_us: *now_us, settings, plant: *plant };
        integrity.settle(table, pairs()).await
    }
    /// The same for new rows of which more are to come, in the same statement; with `None` all have come.
    pub async fn settle_some(&self, table: &Table, rows: Option<&[Vec<Datum>]>, later: &mut Later) -> SqlResult<()> {
        let Some(links) = &self.links else { return Ok(()) };
        let Work { reader, now_us, settings, plant, .. } = self;
        let integrity = Integrity { reader, links, now_us: *now_us, settings, plant: *plant };
        match rows {
            Some(rows) => integrity.settle_some(table, rows, later).await,
            None => integrity.settle_rest(table, std::mem::take(later)).await,
        }
    }
    /// For expressions over a row.
    pub fn env<'b>(&'b self, row: &'b [Datum]) -> Env<'b> {
        Env { row, params: self.params, now_us: self.now_us, settings: self.settings }
    }
}

/// Row ids a gateway takes from PD at a time: one call for many rows, and few lost when it stops.
const ROW_ID_BLOCK: u32 = 10_000;

/// Hands out hidden row ids, unique in the cluster.
pub struct RowIds {
    pd: Arc<dyn kv::Pd>,
    block: Mutex<Range<i64>>,
    refill: tokio::sync::Mutex<()>,
}

impl RowIds {
    /// From PD's ids.
    pub fn new(pd: Arc<dyn kv::Pd>) -> Self {
        RowIds { pd, block: Mutex::new(0..0), refill: tokio::sync::Mutex::new(()) }
    }
    fn take(&self) -> Option<i64> {
        self.block.lock().next()
    }
    /// The next id.
    pub async fn next(&self) -> SqlResult<i64> {
        loop {
            if let Some(id) = self.take() {
                return Ok(id);
            }
            let _refill = self.refill.lock().await;
            if let Some(id) = self.take() {
                return Ok(id);
            }
            let first = self.pd.alloc_ids(ROW_ID_BLOCK).await? as i64;
            *self.block.lock() = first..first + i64::from(ROW_ID_BLOCK);
        }
    }
}
