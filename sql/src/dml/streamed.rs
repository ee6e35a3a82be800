//! INSERT … SELECT, UPDATE and DELETE of any number of rows: they are changed while more are still read.
//!
//! ```text
//!   source ─► the first chunk ─► the source has ended: its rows are changed, as few rows always are
//!                └─► there is more: what the transaction wrote before is spilled, and the source reads on without what it
//!                    writes from now on ─► chunk ─► lock, change, make room ─► chunk ─► …
//! ```
//!
//! When a locked row of a later chunk has changed since the snapshot, the changes are taken back, and everything is looked for again
//! at a newer one; where rows were spilled they stay locked.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use datafusion::{common::tree_node::TreeNode, logical_expr::LogicalPlan};
use kv::{RowLockMode, Savepoint, Txn};

use super::{
    Target,
    foreign::Later,
    general::{Changed, add_changed, add_new},
    locking::{MAX_ROUNDS, changed_since, restless},
    target::Change as RowChange,
};
use crate::{
    error::{SqlError, SqlResult, SqlState},
    query::{Planned, Rows, RunValues},
    reader::Reader,
    work::Work,
};

/// Rows of a chunk at most.
const CHUNK_ROWS: usize = 8192;
/// And bytes of them, as they come from the source.
const CHUNK_BYTES: usize = 4 << 20;
/// Rows that one statement with a join changes at most: it remembers which it has changed, some 20 bytes each.
const MAX_JOINED: usize = 5_000_000;

/// A statement that changes rows.
pub(super) struct Streamed<'a> {
    pub(super) planned: &'a Planned,
    pub(super) work: &'a Work<'a>,
    pub(super) values: &'a RunValues<'a>,
    pub(super) target: &'a Target,
}

/// Where a statement's rows come from, chunk by chunk.
struct Source {
    rows: Rows,
    reader: Reader,
    /// There was a chunk, and more are to come.
    detached: bool,
}

impl Source {
    /// The next batches, about a chunk of them; none at the end. Before the second chunk is read nothing may be written.
    async fn chunk(&mut self) -> SqlResult<(Vec<RecordBatch>, bool)> {
        let (mut batches, mut rows, mut bytes) = (Vec::new(), 0, 0);
        while rows < CHUNK_ROWS && bytes < CHUNK_BYTES {
            let Some(batch) = self.rows.next_batch().await? else { return Ok((batches, true)) };
            rows += batch.num_rows();
            bytes += batch.get_array_memory_size();
            batches.push(batch);
        }
        if !self.detached {
            self.reader.detach().await?;
            self.detached = true;
        }
        Ok((batches, false))
    }
}

impl Streamed<'_> {
    async fn source(&self, reader: &Reader) -> SqlResult<Source> {
        let reader = reader.as_statement();
        let rows = self.planned.plan.start(reader.clone(), self.values).await?;
        Ok(Source { rows, reader, detached: false })
    }

    fn txn(&self) -> &Txn {
        self.work.reader.txn(self.target.table.storage_id)
    }

    /// INSERT.
    pub(super) async fn insert(&self) -> SqlResult<Changed> {
        let (target, work) = (self.target, self.work);
        let certainty = work.certainty(target.table.storage_id);
        let mut source = self.source(&work.reader).await?;
        let (mut count, mut later) = (0, Later::default());
        loop {
            let (batches, last) = source.chunk().await?;
            let mut rows = Vec::new();
            for batch in &batches {
                add_new(batch, target, work, &mut rows).await?;
            }
            target.insert(self.txn(), &rows, certainty).await?;
            work.settle_some(&target.table, Some(&rows), &mut later).await?;
            count += rows.len();
            if last {
                work.settle_some(&target.table, None, &mut later).await?;
                return Ok(Changed { count, returned: None });
            }
        }
    }

    /// UPDATE of the `assigned` columns, or DELETE.
    pub(super) async fn modify(&self, assigned: Option<&[usize]>) -> SqlResult<Changed> {
        let locks = self.work.locking(self.target.table.storage_id).is_some();
        let place = locks.then(|| self.txn().savepoint());
        let mut reader = self.work.reader.clone();
        for _ in 0..MAX_ROUNDS {
            if let Some(count) = self.modify_once(&reader, assigned, place.as_ref()).await? {
                return Ok(Changed { count, returned: None });
            }
            reader = reader.at_fresh_snapshot();
        }
        Err(restless())
    }

    /// `None`: a row has changed since the snapshot, and everything written was taken back.
    async fn modify_once(
        &self,
        reader: &Reader,
        assigned: Option<&[usize]>,
        place: Option<&Savepoint>,
    ) -> SqlResult<Option<usize>> {
        let (target, work) = (self.target, self.work);
        let storage_id = target.table.storage_id;
        let certainty = work.certainty(storage_id);
        let mode = match assigned {
            Some(assigned) => target.update_lock(assigned.iter().copied()),
            None => RowLockMode::Update,
        };
        let mut source = self.source(reader).await?;
        let (mut count, mut seen) = (0, Seen::new(self.planned.plan.logical())?);
        loop {
            let (batches, last) = source.chunk().await?;
            let mut changes: Vec<RowChange> = Vec::new();
            for batch in &batches {
                add_changed(batch, target, assigned.unwrap_or(&[]), |key| seen.is_new(key), &mut changes)?;
            }
            seen.check()?;
            if let Some(locking) = work.locking(storage_id) {
                let keys: Vec<Bytes> = changes.iter().map(|change| change.old_key.clone()).collect();
                let txn = reader.txn(storage_id);
                let locked = locking.lock(txn, &keys, mode, false).await?;
                if changed_since(txn, &locked).await? {
                    if let (Some(place), true) = (place, count > 0) {
                        self.txn().roll_back_to(place).await?;
                    }
                    return Ok(None);
                }
            }
            match assigned {
                Some(_) => target.update(self.txn(), &changes, certainty, work.plant).await?,
                None => target.delete(self.txn(), &changes, certainty).await?,
            }
            count += changes.len();
            if last {
                return Ok(Some(count));
            }
        }
    }
}

/// Which rows a statement has changed already: one that joins several others comes several times.
struct Seen {
    /// 128 bits of each key, under secrets of this run; `None` when no row can come twice.
    keys: Option<HashSet<u128>>,
    secrets: [RandomState; 2],
}

impl Seen {
    fn new(plan: &LogicalPlan) -> SqlResult<Self> {
        let several = |plan: &LogicalPlan| {
            Ok(!matches!(plan, LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::TableScan(_)))
        };
        let joins = plan.exists(several).map_err(|error| SqlError::internal(error.to_string()))?;
        Ok(Seen { keys: joins.then(HashSet::new), secrets: [RandomState::new(), RandomState::new()] })
    }

    fn is_new(&mut self, key: &Bytes) -> bool {
        let Some(keys) = &mut self.keys else { return true };
        let [high, low] = [0, 1].map(|at: usize| u128::from(self.secrets[at].hash_one(key)));
        keys.insert(high << 64 | low)
    }

    fn check(&self) -> SqlResult<()> {
        match self.keys.as_ref().is_some_and(|keys| keys.len() > MAX_JOINED) {
            true => {
                let message = format!("a statement with a join changes at most {MAX_JOINED} rows");
                Err(SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message))
            }
            false => Ok(()),
        }
    }
}
