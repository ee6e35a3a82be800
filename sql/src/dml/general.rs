//! INSERT, UPDATE and DELETE whose rows come from a query.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    datatypes::{Field as ArrowField, Schema},
    record_batch::{RecordBatch, RecordBatchOptions},
};

use bytes::Bytes;
use kv::RowLockMode;

use super::{
    Pair, Target,
    locking::{MAX_ROUNDS, changed_since, restless},
    streamed::Streamed,
    target::Change as RowChange,
};
use crate::{
    error::{SqlError, SqlResult, SqlState},
    query::{Change, Planned, Rows, RunValues},
    types::{
        Datum,
        arrow::{ColumnBuilder, datum_at},
    },
    work::Work,
};

/// Most rows one statement changes when they are held until it ends: for RETURNING, ON CONFLICT, or foreign keys.
const MAX_ROWS: usize = 1_000_000;

/// What a statement did.
pub struct Changed {
    /// Rows written.
    pub count: usize,
    /// RETURNING's rows.
    pub returned: Option<RecordBatch>,
}

/// Runs a DML statement: its source's rows go into the transaction's buffer.
pub async fn run(planned: &Planned, work: &Work<'_>, values: &RunValues<'_>) -> SqlResult<Changed> {
    let change = planned.plan.change().ok_or_else(|| SqlError::internal("a query was run as a change"))?;
    let target = Target::new(Arc::clone(change.table()));
    let txn = work.reader.txn(target.table.storage_id);
    if work.links.is_some() {
        txn.guard_spills();
    }
    let streamed = Streamed { planned, work, values, target: &target };
    match change {
        Change::Insert { conflict: None, returning: None, .. } => streamed.insert().await,
        Change::Update { assigned, returning: None, .. } if work.links.is_none() => {
            streamed.modify(Some(assigned)).await
        }
        Change::Delete { returning: None, .. } if work.links.is_none() => streamed.modify(None).await,
        _ => run_at_once(change, streamed).await,
    }
}

/// Where all rows are wanted before any is written, or afterwards.
async fn run_at_once(change: &Change, streamed: Streamed<'_>) -> SqlResult<Changed> {
    let Streamed { planned, work, values, target } = streamed;
    let certainty = work.certainty(target.table.storage_id);
    let txn = work.reader.txn(target.table.storage_id);
    let (source, rows) = match change {
        Change::Insert { conflict, .. } => {
            let mut source = planned.plan.start(work.reader.clone(), values).await?;
            let rows = new_rows(&mut source, target, work).await?;
            let rows = match conflict {
                Some(conflict) => {
                    let met = super::conflict::meet(target, conflict, txn, rows, certainty).await?;
                    let resolved = met.resolve(&source, target, conflict)?;
                    let pairs = work.links.as_ref().map(|_| resolved.pairs());
                    let rows = resolved.write(target, conflict, txn, certainty, work.plant).await?;
                    work.settle(&target.table, || pairs.unwrap_or_default()).await?;
                    rows
                }
                None => {
                    target.insert(txn, &rows, certainty).await?;
                    work.settle(&target.table, || Pair::inserted(&rows)).await?;
                    rows
                }
            };
            (source, rows)
        }
        Change::Update { assigned, .. } => {
            let mode = target.update_lock(assigned.iter().copied());
            let (source, changes) = found_rows(planned, work, values, target, assigned, mode).await?;
            target.update(txn, &changes, certainty, work.plant).await?;
            work.settle(&target.table, || Pair::updated(&changes)).await?;
            (source, changes.into_iter().map(|change| change.row).collect())
        }
        Change::Delete { .. } => {
            let (source, gone) = found_rows(planned, work, values, target, &[], RowLockMode::Update).await?;
            target.delete(txn, &gone, certainty).await?;
            work.settle(&target.table, || Pair::deleted(&gone)).await?;
            (source, gone.into_iter().map(|change| change.row).collect())
        }
    };
    let returned = match change.returning() {
        Some(_) => Some(give_back(&source, target, &rows)?),
        None => None,
    };
    Ok(Changed { count: rows.len(), returned })
}

/// The rows that a statement changes, with what they become; locked where that is wanted. When one of them has changed since
/// the snapshot, everything is looked for again at a newer one.
async fn found_rows(
    planned: &Planned,
    work: &Work<'_>,
    values: &RunValues<'_>,
    target: &Target,
    assigned: &[usize],
    mode: RowLockMode,
) -> SqlResult<(Rows, Vec<RowChange>)> {
    let storage_id = target.table.storage_id;
    let mut reader = work.reader.clone();
    for _ in 0..MAX_ROUNDS {
        let mut source = planned.plan.start(reader.clone(), values).await?;
        let changes = changed_rows(&mut source, target, assigned).await?;
        let Some(locking) = work.locking(storage_id) else { return Ok((source, changes)) };
        let keys: Vec<Bytes> = changes.iter().map(|change| change.old_key.clone()).collect();
        let txn = reader.txn(storage_id);
        let locked = locking.lock(txn, &keys, mode, false).await?;
        if !changed_since(txn, &locked).await? {
            return Ok((source, changes));
        }
        reader = reader.at_fresh_snapshot();
    }
    Err(restless())
}

pub(super) fn too_many() -> SqlError {
    SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("a statement changes at most {MAX_ROWS} rows"))
        .with_hint("Change them in several statements, or load them with COPY into a new table.")
}

/// All rows of the source before any is written: a statement does not see its own changes.
async fn new_rows(source: &mut Rows, target: &Target, work: &Work<'_>) -> SqlResult<Vec<Vec<Datum>>> {
    let mut rows = Vec::new();
    while let Some(batch) = source.next_batch().await? {
        if rows.len() + batch.num_rows() > MAX_ROWS {
            return Err(too_many());
        }
        add_new(&batch, target, work, &mut rows).await?;
    }
    Ok(rows)
}

/// Adds the rows of a batch, with what the table adds to them.
pub(super) async fn add_new(
    batch: &RecordBatch,
    target: &Target,
    work: &Work<'_>,
    rows: &mut Vec<Vec<Datum>>,
) -> SqlResult<()> {
    let visible: Vec<usize> = target.table.visible().map(|(at, _)| at).collect();
    let row_id = target.table.row_id();
    for at in 0..batch.num_rows() {
        let mut row = vec![Datum::Null; target.table.columns.len()];
        for (column, position) in batch.columns().iter().zip(&visible) {
            row[*position] = fitted(datum_at(column, at)?, target, *position)?;
        }
        if let Some(position) = row_id {
            row[position] = Datum::Int8(work.row_ids.next().await?);
        }
        rows.push(row);
    }
    Ok(())
}

/// Arrow knows no `varchar(n)`: what the column's modifier wants is done here.
fn fitted(datum: Datum, target: &Target, position: usize) -> SqlResult<Datum> {
    target.table.columns[position].column_type.fit(datum)
}

/// Old rows with their keys, and the new values that stand behind them put in. A row that joins several others is taken once.
async fn changed_rows(source: &mut Rows, target: &Target, assigned: &[usize]) -> SqlResult<Vec<RowChange>> {
    let mut changes = Vec::new();
    let mut seen = HashSet::new();
    while let Some(batch) = source.next_batch().await? {
        if changes.len() + batch.num_rows() > MAX_ROWS {
            return Err(too_many());
        }
        add_changed(&batch, target, assigned, |key| seen.insert(key.clone()), &mut changes)?;
    }
    Ok(changes)
}

/// Adds the changes of a batch, of those rows that `wanted` says.
pub(super) fn add_changed(
    batch: &RecordBatch,
    target: &Target,
    assigned: &[usize],
    mut wanted: impl FnMut(&Bytes) -> bool,
    changes: &mut Vec<RowChange>,
) -> SqlResult<()> {
    let width = target.table.columns.len();
    for at in 0..batch.num_rows() {
        let columns = batch.columns()[..width].iter();
        let mut row = columns.map(|column| datum_at(column, at)).collect::<SqlResult<Vec<Datum>>>()?;
        let old_key = target.codec.key(&row)?;
        if !wanted(&old_key) {
            continue;
        }
        let old = if assigned.is_empty() { Vec::new() } else { target.kept(&row) };
        for (column, position) in batch.columns()[width..].iter().zip(assigned) {
            row[*position] = fitted(datum_at(column, at)?, target, *position)?;
        }
        changes.push(RowChange { old_key, old, row });
    }
    Ok(())
}

fn give_back(source: &Rows, target: &Target, rows: &[Vec<Datum>]) -> SqlResult<RecordBatch> {
    let positions: Vec<usize> = (0..target.table.columns.len()).collect();
    let schema = Arc::new(crate::query::scan::schema_of(&target.table, &positions));
    let mut arrays = Vec::with_capacity(positions.len());
    for (at, column) in target.table.columns.iter().enumerate() {
        let mut builder = ColumnBuilder::new(column.column_type, rows.len());
        rows.iter().try_for_each(|row| builder.push(&row[at]))?;
        arrays.push(builder.finish());
    }
    let internal = |error: arrow::error::ArrowError| SqlError::internal(error.to_string());
    // NULLs in columns that forbid them were refused before.
    let whole = RecordBatch::try_new(schema, arrays).map_err(internal)?;
    let columns = source.returning(&whole)?;
    let fields: Vec<ArrowField> =
        columns.iter().map(|column| ArrowField::new("", column.data_type().clone(), true)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options).map_err(internal)
}
