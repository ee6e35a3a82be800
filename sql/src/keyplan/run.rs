//! Running key plans.

use std::{future::Future, sync::Arc};

use bytes::{Bytes, BytesMut};
use kv::{LockedRow, RowLockMode, Scan, ScanOptions, Txn};
use proto::KeyRange;

use super::{
    Access, InsertPlan, KeyPlan, ModifyPlan, ReadPlan, Selection,
    access::{Bound, KeyDatum, KeyValue},
    by_index::{self, IndexRead},
};
use crate::{
    catalog::Sequence,
    codec::TableCodec,
    dml::{Pair, Projection, Target, target::Change},
    error::{SqlError, SqlResult, SqlState},
    eval::{Env, Scalar},
    query::scan::bounds::Spans,
    statement::row_lock::RowLockClause,
    types::{Datum, FormatSettings},
    work::Work,
};

/// Rows of a result, flat.
#[derive(Debug, Default)]
pub struct Rows {
    /// How many rows were read or written.
    pub count: usize,
    /// The values given back, row after row.
    pub datums: Vec<Datum>,
}

/// What a read gives: a few rows, or a scan that streams.
pub enum Read {
    /// Points.
    Rows(Rows),
    /// A range.
    Range(Box<RangeScan>),
    /// Rows by a secondary index.
    Index(Box<IndexRead>),
}

/// The keys of a statement's points, without those no row can have.
fn point_keys(points: &[Vec<KeyValue>], codec: &TableCodec, env: &Env<'_>) -> SqlResult<Vec<Bytes>> {
    let mut keys = Vec::with_capacity(points.len());
    'points: for point in points {
        let mut values = Vec::with_capacity(point.len());
        for value in point {
            match value.eval(env)? {
                KeyDatum::Value(datum) => values.push(datum),
                KeyDatum::Nothing => continue 'points,
            }
        }
        let key = codec.key_of(&values)?;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// The keys of the rows at a statement's points, which may be those of a unique index. The row that has a value now is meant, and
/// looked at again when it is locked; another row that gets the value meanwhile is not, as in PostgreSQL.
async fn row_keys(
    points: &[Vec<KeyValue>],
    selection: &Selection,
    target: &Target,
    txn: &Txn,
    env: &Env<'_>,
) -> SqlResult<Vec<Bytes>> {
    match selection.index {
        None => point_keys(points, &target.codec, env),
        Some(place) => by_index::rows_at(points, &target.indexes[place], txn, env).await,
    }
}

/// The one key of a read that asks for one point: such a read needs no snapshot.
pub fn single_key(plan: &ReadPlan, env: &Env<'_>) -> SqlResult<Option<Vec<Bytes>>> {
    match &plan.selection.access {
        Access::Points(points) if points.len() == 1 && plan.limit.is_none() && plan.selection.index.is_none() => {
            Ok(Some(point_keys(points, &plan.target.codec, env)?))
        }
        _ => Ok(None),
    }
}

/// The keys that a run touches, for EXPLAIN; `None` when they are row ids that are not dealt out yet.
pub fn spans(plan: &KeyPlan, env: &Env<'_>) -> SqlResult<Option<Spans>> {
    let codec = &plan.target().codec;
    let selection = match plan {
        KeyPlan::Read(plan) => &plan.selection,
        KeyPlan::Modify(plan) => &plan.selection,
        KeyPlan::Insert(insert) => {
            let key = &insert.target.table.key;
            // Row ids and values of sequences are not dealt out yet.
            if insert.target.table.row_id().is_some() || !insert.draws.is_empty() {
                return Ok(None);
            }
            let key_of = |row: &Vec<Scalar>| {
                codec.key_of(&key.iter().map(|at| row[*at].eval(env)).collect::<SqlResult<Vec<Datum>>>()?)
            };
            return Ok(Some(Spans::Points(insert.rows.iter().map(key_of).collect::<SqlResult<_>>()?)));
        }
    };
    if let Some(index) = plan.index() {
        return by_index::spans(&selection.access, index.form(), env).map(Some);
    }
    Ok(Some(match &selection.access {
        Access::Points(points) => Spans::Points(point_keys(points, codec, env)?),
        Access::Range { prefix, low, high } => {
            Spans::Ranges(key_range(codec, prefix, low.as_ref(), high.as_ref(), env)?.into_iter().collect())
        }
    }))
}

/// Appends the projection of a stored row, if the filter lets it through.
pub fn project(plan: &ReadPlan, key: &[u8], value: &Bytes, env: &Env<'_>, out: &mut Rows) -> SqlResult<()> {
    let mut row = vec![Datum::Null; plan.wanted.len()];
    plan.target.codec.decode_into(key, value, Some(&plan.wanted), &mut row)?;
    let env = Env { row: &row, ..*env };
    if passes(&plan.selection, &env)? {
        plan.projection.eval(&env, &mut out.datums)?;
        out.count += 1;
    }
    Ok(())
}

fn passes(selection: &Selection, env: &Env<'_>) -> SqlResult<bool> {
    match &selection.filter {
        Some(filter) => Ok(filter.truth(env)? == Some(true)),
        None => Ok(true),
    }
}

fn limit(plan: &ReadPlan, env: &Env<'_>) -> SqlResult<Option<u64>> {
    let Some(limit) = &plan.limit else { return Ok(None) };
    match limit.eval(env)? {
        Datum::Null => Ok(None),
        datum => match datum.as_i64().map(u64::try_from) {
            Some(Ok(limit)) => Ok(Some(limit)),
            _ => Err(SqlError::new(SqlState("2201W"), "LIMIT must not be negative")),
        },
    }
}

/// Runs a read at the transaction's snapshot.
pub async fn read(plan: &Arc<KeyPlan>, work: &Work<'_>) -> SqlResult<Read> {
    let KeyPlan::Read(read) = &**plan else { return Err(SqlError::internal("a writing plan was run as a read")) };
    let env = work.env(&[]);
    let limit = limit(read, &env)?;
    let txn = work.reader.txn(read.target.table.storage_id);
    if let (Some(lock), Access::Points(points)) = (&read.lock, &read.selection.access) {
        let keys = row_keys(points, &read.selection, &read.target, txn, &env).await?;
        return Ok(Read::Rows(lock_points(read, lock, work, txn, keys).await?));
    }
    if plan.index().is_some() {
        let scan = by_index::IndexRead::new(plan, work, limit)?;
        return Ok(Read::Index(Box::new(scan)));
    }
    match &read.selection.access {
        Access::Points(points) => {
            let keys = point_keys(points, &read.target.codec, &env)?;
            let values = match keys.as_slice() {
                _ if limit == Some(0) => Vec::new(),
                [] => Vec::new(),
                [one] => vec![txn.get_alone(one).await?],
                many => txn.get_many(many).await?,
            };
            let mut rows = Rows::default();
            for (key, value) in keys.iter().zip(values) {
                if let Some(value) = value {
                    project(read, key, &value, &env, &mut rows)?;
                }
            }
            Ok(Read::Rows(rows))
        }
        Access::Range { prefix, low, high } => {
            let range = key_range(&read.target.codec, prefix, low.as_ref(), high.as_ref(), &env)?;
            let Some(range) = range.filter(|_| limit != Some(0)) else { return Ok(Read::Rows(Rows::default())) };
            let options =
                ScanOptions { range, limit: limit.unwrap_or(0), reverse: read.reverse, ..ScanOptions::default() };
            Ok(Read::Range(Box::new(RangeScan {
                plan: Arc::clone(plan),
                scan: txn.scan(options),
                params: work.params.to_vec(),
                now_us: work.now_us,
                settings: work.settings.clone(),
            })))
        }
    }
}

/// Points that are locked before they are read.
async fn lock_points(
    plan: &ReadPlan,
    clause: &RowLockClause,
    work: &Work<'_>,
    txn: &Txn,
    keys: Vec<Bytes>,
) -> SqlResult<Rows> {
    let locking = work.locking.as_ref().ok_or_else(|| SqlError::internal("a statement without a way to lock rows"))?;
    let lock = |keys: Vec<Bytes>| async move {
        let table = &plan.target.table;
        let rows = locking.lock_as(txn, table, &keys, clause.mode, clause.on_locked).await?;
        Ok(keys.into_iter().zip(rows).collect())
    };
    let found = locked_rows(&plan.target, &plan.selection, work, txn, keys, lock).await?;
    let mut rows = Rows { count: found.len(), datums: Vec::new() };
    for (_, row) in &found {
        plan.projection.eval(&work.env(row), &mut rows.datums)?;
    }
    Ok(rows)
}

/// The keys between the bounds; `None` for no keys at all.
fn key_range(
    codec: &TableCodec,
    prefix: &[KeyValue],
    low: Option<&Bound>,
    high: Option<&Bound>,
    env: &Env<'_>,
) -> SqlResult<Option<KeyRange>> {
    let mut values = Vec::with_capacity(prefix.len() + 1);
    for value in prefix {
        match value.eval(env)? {
            KeyDatum::Value(datum) => values.push(datum),
            KeyDatum::Nothing => return Ok(None),
        }
    }
    let mut border = |bound: &Bound| -> SqlResult<Option<Bytes>> {
        let KeyDatum::Value(datum) = bound.value.eval(env)? else { return Ok(None) };
        values.push(datum);
        let key = codec.key_of(&values);
        values.pop();
        key.map(Some)
    };
    let start = match low {
        None => None,
        Some(bound) => match border(bound)? {
            None => return Ok(None),
            Some(key) => Some(if bound.inclusive { key } else { behind(&key) }),
        },
    };
    let end = match high {
        None => None,
        Some(bound) => match border(bound)? {
            None => return Ok(None),
            Some(key) => Some(if bound.inclusive { behind(&key) } else { key }),
        },
    };
    let whole = codec.key_of(&values)?;
    let range = KeyRange::new(start.unwrap_or_else(|| whole.clone()), end.unwrap_or_else(|| behind(&whole)));
    Ok((range.start < range.end).then_some(range))
}

/// The first key behind all that begin with `prefix`.
fn behind(prefix: &[u8]) -> Bytes {
    let mut end = BytesMut::from(prefix);
    while let Some(last) = end.last_mut() {
        if *last == u8::MAX {
            end.truncate(end.len() - 1);
        } else {
            *last += 1;
            break;
        }
    }
    end.freeze()
}

/// A range under way.
pub struct RangeScan {
    plan: Arc<KeyPlan>,
    scan: Scan,
    params: Vec<Datum>,
    now_us: i64,
    settings: FormatSettings,
}

impl RangeScan {
    /// The next rows; `None` at the end.
    pub async fn next(&mut self) -> SqlResult<Option<Rows>> {
        let Some(page) = self.scan.next_page().await? else { return Ok(None) };
        let KeyPlan::Read(plan) = &*self.plan else { return Ok(None) };
        let mut rows = Rows::default();
        let env = Env { row: &[], params: &self.params, now_us: self.now_us, settings: &self.settings };
        for (key, value) in &page.rows {
            project(plan, key, value, &env, &mut rows)?;
        }
        Ok(Some(rows))
    }
}

/// Runs a write: rows go into the transaction's buffer; RETURNING's values come back.
pub async fn write(plan: &KeyPlan, work: &Work<'_>) -> SqlResult<Rows> {
    match plan {
        KeyPlan::Insert(plan) => insert(plan, work).await,
        KeyPlan::Modify(plan) => modify(plan, work).await,
        KeyPlan::Read(_) => Err(SqlError::internal("a reading plan was run as a write")),
    }
}

async fn insert(plan: &InsertPlan, work: &Work<'_>) -> SqlResult<Rows> {
    let row_id = plan.target.table.row_id();
    let mut rows = Vec::with_capacity(plan.rows.len());
    let drawn = draw(plan, work).await?;
    for (at, scalars) in plan.rows.iter().enumerate() {
        let env = work.env(drawn.get(at).map_or(&[], Vec::as_slice));
        let mut row = scalars.iter().map(|scalar| scalar.eval(&env)).collect::<SqlResult<Vec<Datum>>>()?;
        if let Some(at) = row_id {
            row[at] = Datum::Int8(work.row_ids.next().await?);
        }
        rows.push(row);
    }
    let txn = work.reader.txn(plan.target.table.storage_id);
    plan.target.insert(txn, &rows, work.certainty(plan.target.table.storage_id)).await?;
    work.settle(&plan.target.table, || Pair::inserted(&rows)).await?;
    give_back(plan.returning.as_ref(), &rows, work)
}

/// What the rows draw from sequences: of each sequence all values at once.
async fn draw(plan: &InsertPlan, work: &Work<'_>) -> SqlResult<Vec<Vec<Datum>>> {
    let mut drawn: Vec<Vec<Datum>> = plan.draws.iter().map(|row| vec![Datum::Null; row.len()]).collect();
    let mut sequences: Vec<&Sequence> = Vec::new();
    for sequence in plan.draws.iter().flatten() {
        if !sequences.iter().any(|known| known.id == sequence.id) {
            sequences.push(sequence);
        }
    }
    for sequence in sequences {
        let places: Vec<(usize, usize)> = plan
            .draws
            .iter()
            .enumerate()
            .flat_map(|(at, row)| row.iter().enumerate().map(move |(place, sequence)| (at, place, sequence.id)))
            .filter(|(_, _, id)| *id == sequence.id)
            .map(|(at, place, _)| (at, place))
            .collect();
        for ((at, place), value) in places.iter().zip(work.sequences.next(sequence, places.len()).await?) {
            drawn[*at][*place] = Datum::Int8(value);
        }
    }
    Ok(drawn)
}

fn give_back(returning: Option<&Projection>, rows: &[Vec<Datum>], work: &Work<'_>) -> SqlResult<Rows> {
    let mut out = Rows { count: rows.len(), datums: Vec::new() };
    if let Some(returning) = returning {
        for row in rows {
            returning.eval(&work.env(row), &mut out.datums)?;
        }
    }
    Ok(out)
}

async fn modify(plan: &ModifyPlan, work: &Work<'_>) -> SqlResult<Rows> {
    let target = &plan.target;
    let txn = work.reader.txn(target.table.storage_id);
    let mut changes = Vec::new();
    for (key, row) in chosen(plan, work, txn).await? {
        let old = if plan.assignments.is_some() { target.kept(&row) } else { Vec::new() };
        let row = match &plan.assignments {
            None => row,
            Some(assignments) => {
                let env = work.env(&row);
                let values: Vec<Datum> =
                    assignments.iter().map(|(_, scalar)| scalar.eval(&env)).collect::<SqlResult<_>>()?;
                let mut new = row;
                for ((at, _), value) in assignments.iter().zip(values) {
                    new[*at] = value;
                }
                new
            }
        };
        changes.push(Change { old_key: key, old, row });
    }
    if plan.assignments.is_some() {
        target.update(txn, &changes, work.certainty(target.table.storage_id), work.plant).await?;
        work.settle(&target.table, || Pair::updated(&changes)).await?;
    } else {
        target.delete(txn, &changes, work.certainty(target.table.storage_id)).await?;
        work.settle(&target.table, || Pair::deleted(&changes)).await?;
    }
    let rows: Vec<Vec<Datum>> = changes.into_iter().map(|change| change.row).collect();
    give_back(plan.returning.as_ref(), &rows, work)
}

/// The rows that are to be changed, locked where that is wanted.
async fn chosen(plan: &ModifyPlan, work: &Work<'_>, txn: &Txn) -> SqlResult<Vec<(Bytes, Vec<Datum>)>> {
    let Access::Points(points) = &plan.selection.access else {
        return Err(SqlError::internal("a range was compiled into a write"));
    };
    let keys = row_keys(points, &plan.selection, &plan.target, txn, &work.env(&[])).await?;
    let Some(locking) = work.locking(plan.target.table.storage_id) else {
        return seen_rows(&plan.target, &plan.selection, work, txn, keys).await;
    };
    let mode = match &plan.assignments {
        None => RowLockMode::Update,
        Some(assignments) => plan.target.update_lock(assignments.iter().map(|(at, _)| *at)),
    };
    let lock = |keys: Vec<Bytes>| async move {
        let rows = locking.lock(txn, &keys, mode, false).await?;
        Ok(keys.into_iter().zip(rows).collect())
    };
    locked_rows(&plan.target, &plan.selection, work, txn, keys, lock).await
}

/// The rows that the snapshot has under `keys`, as far as the filter lets them through.
async fn seen_rows(
    target: &Target,
    selection: &Selection,
    work: &Work<'_>,
    txn: &Txn,
    keys: Vec<Bytes>,
) -> SqlResult<Vec<(Bytes, Vec<Datum>)>> {
    let values = match keys.as_slice() {
        [] => Vec::new(),
        [one] => vec![txn.get(one).await?],
        many => txn.get_many(many).await?,
    };
    let mut rows = Vec::with_capacity(keys.len());
    for (key, value) in keys.into_iter().zip(values) {
        let Some(value) = value else { continue };
        let row = target.codec.decode(&key, &value)?;
        if passes(selection, &work.env(&row))? {
            rows.push((key, row));
        }
    }
    Ok(rows)
}

/// The rows under `keys` that the filter lets through, locked by `lock`, as they are now. In a transaction with one snapshot, and
/// where a filter says more than the keys, only rows of the snapshot are locked: others are not waited for.
async fn locked_rows<L>(
    target: &Target,
    selection: &Selection,
    work: &Work<'_>,
    txn: &Txn,
    mut keys: Vec<Bytes>,
    lock: impl FnOnce(Vec<Bytes>) -> L,
) -> SqlResult<Vec<(Bytes, Vec<Datum>)>>
where
    L: Future<Output = SqlResult<Vec<(Bytes, LockedRow)>>>,
{
    let one_snapshot = work.locking.as_ref().is_some_and(|l| l.isolation.keeps_snapshot());
    if one_snapshot || selection.filter.is_some() {
        let seen = seen_rows(target, selection, work, txn, keys).await?;
        keys = seen.into_iter().map(|(key, _)| key).collect();
    }
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let place = txn.lock_place();
    let (mut rows, mut unwanted) = (Vec::with_capacity(keys.len()), Vec::new());
    for (key, locked) in lock(keys).await? {
        let Some(value) = locked.value.filter(|_| !locked.skipped) else { continue };
        let row = target.codec.decode(&key, &value)?;
        match passes(selection, &work.env(&row))? {
            true => rows.push((key, row)),
            false => unwanted.push(key),
        }
    }
    if !unwanted.is_empty() {
        txn.unlock_rows(&unwanted, place);
    }
    Ok(rows)
}
