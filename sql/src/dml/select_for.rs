//! SELECT … FOR UPDATE and its kin: rows leave when their table's rows are locked.
//!
//! Rows are locked in the query's order, no more of them than LIMIT wants. When a locked row has changed since the snapshot
//! the whole query is run again at a newer one, and the locks are kept; PostgreSQL would look at that row alone.

use std::sync::Arc;

use arrow::{array::UInt64Array, compute, record_batch::RecordBatch};
use bytes::Bytes;
use kv::OnLocked;

use super::locking::{MAX_ROUNDS, RowLocking, changed_since, restless};
use crate::{
    Reader,
    codec::TableCodec,
    error::{SqlError, SqlResult, SqlState},
    query::{LockedTable, QueryPlan, RowLocks, Rows, RunValues},
    types::{Datum, arrow::datum_at},
    work::Work,
};

/// Most rows one statement locks this way; they are held until it ends.
const MAX_ROWS: usize = 1_000_000;
/// Rows that are locked in one go when nothing says how many are wanted.
const CHUNK: usize = 1024;

/// Runs the locking queries inside a statement, one after the other. The statement itself reads what they have seen, or what is
/// newer.
pub async fn run_all(
    plans: &[Arc<QueryPlan>],
    work: &mut Work<'_>,
    values: &RunValues<'_>,
) -> SqlResult<Vec<Vec<RecordBatch>>> {
    let mut all = Vec::with_capacity(plans.len());
    for plan in plans {
        let (rows, reader) = run(plan, work, values).await?;
        work.reader = reader;
        all.push(rows);
    }
    Ok(all)
}

/// Runs the query; its rows, as the client gets them, and what they were read through.
pub async fn run(
    plan: &Arc<QueryPlan>,
    work: &Work<'_>,
    values: &RunValues<'_>,
) -> SqlResult<(Vec<RecordBatch>, Reader)> {
    let locks = plan.locks().ok_or_else(|| SqlError::internal("a query that locks nothing"))?;
    let locking = work.locking.as_ref().ok_or_else(|| SqlError::internal("a statement without a way to lock rows"))?;
    let mut reader = work.reader.clone();
    for _ in 0..MAX_ROUNDS {
        let mut source = plan.start(reader.clone(), values).await?;
        let round = Round { locks, locking, reader: &reader };
        if let Some(rows) = round.run(&mut source).await? {
            return Ok((rows, reader));
        }
        reader = reader.at_fresh_snapshot();
    }
    Err(restless())
}

/// One run of the query.
struct Round<'a> {
    locks: &'a RowLocks,
    locking: &'a RowLocking,
    reader: &'a Reader,
}

impl Round<'_> {
    /// `None`: a row has changed since the snapshot.
    async fn run(&self, source: &mut Rows) -> SqlResult<Option<Vec<RecordBatch>>> {
        let (mut out, mut passed, mut kept) = (Vec::new(), 0_usize, 0_usize);
        while let Some(batch) = source.next_batch().await? {
            if batch.num_rows() == 0 {
                continue;
            }
            let (limit, offset) = (self.number(&batch, self.locks.limit)?, self.number(&batch, self.locks.offset)?);
            let offset = offset.unwrap_or(0);
            let mut at = 0;
            while at < batch.num_rows() && limit.is_none_or(|limit| kept < limit) {
                let wanted = limit.map_or(CHUNK, |limit| (limit - kept).saturating_add(offset - passed.min(offset)));
                let rows = at..batch.num_rows().min(at.saturating_add(wanted));
                at = rows.end;
                let Some(mut locked) = self.lock(&batch, rows).await? else { return Ok(None) };
                let skipped = locked.len().min(offset - passed.min(offset));
                passed += skipped;
                locked.drain(..skipped);
                kept += locked.len();
                if kept > MAX_ROWS {
                    let message = format!("a statement locks at most {MAX_ROWS} rows");
                    return Err(SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message));
                }
                out.push(self.visible(&batch, locked)?);
            }
            if limit.is_some_and(|limit| kept >= limit) {
                break;
            }
        }
        Ok(Some(out))
    }

    /// LIMIT's or OFFSET's number, which stands in every row.
    fn number(&self, batch: &RecordBatch, column: Option<usize>) -> SqlResult<Option<usize>> {
        let Some(column) = column else { return Ok(None) };
        match datum_at(batch.column(column), 0)? {
            Datum::Null => Ok(None),
            datum => match datum.as_i64().map(usize::try_from) {
                Some(Ok(number)) => Ok(Some(number)),
                _ if Some(column) == self.locks.limit => {
                    Err(SqlError::new(SqlState("2201W"), "LIMIT must not be negative"))
                }
                _ => Err(SqlError::new(SqlState("2201X"), "OFFSET must not be negative")),
            },
        }
    }

    /// Those of `rows` that are locked now, by their place in the batch.
    async fn lock(&self, batch: &RecordBatch, rows: std::ops::Range<usize>) -> SqlResult<Option<Vec<usize>>> {
        let mut left: Vec<usize> = rows.collect();
        for locked in &self.locks.tables {
            let keys = keys(batch, locked, &left)?;
            // The null side of an outer join has no row to lock.
            let asked: Vec<Bytes> = keys.iter().flatten().cloned().collect();
            let txn = self.reader.txn(locked.table.storage_id);
            let found = self.locking.lock_as(txn, &locked.table, &asked, locked.mode, locked.on_locked).await?;
            if changed_since(txn, &found).await? {
                return Ok(None);
            }
            let mut found = found.into_iter();
            let mut keep = keys.iter().map(|key| key.is_none() || found.next().is_some_and(|row| !row.skipped));
            left.retain(|_| keep.next().unwrap_or(false));
            debug_assert!(locked.on_locked == OnLocked::Skip || left.len() == keys.len());
        }
        Ok(Some(left))
    }

    fn visible(&self, batch: &RecordBatch, rows: Vec<usize>) -> SqlResult<RecordBatch> {
        let internal = |error: arrow::error::ArrowError| SqlError::internal(error.to_string());
        let columns: Vec<usize> = (0..self.locks.visible).collect();
        let rows = UInt64Array::from_iter_values(rows.into_iter().map(|at| at as u64));
        compute::take_record_batch(&batch.project(&columns).map_err(internal)?, &rows).map_err(internal)
    }
}

/// The keys of a table's rows in some rows of the query.
fn keys(batch: &RecordBatch, locked: &LockedTable, rows: &[usize]) -> SqlResult<Vec<Option<Bytes>>> {
    let codec = TableCodec::new(&locked.table);
    let key = |at: &usize| {
        let values = locked.key.iter().map(|column| datum_at(batch.column(*column), *at));
        let values = values.collect::<SqlResult<Vec<Datum>>>()?;
        match values.iter().any(Datum::is_null) {
            true => Ok(None),
            false => codec.key_of(&values).map(Some),
        }
    };
    rows.iter().map(key).collect()
}
