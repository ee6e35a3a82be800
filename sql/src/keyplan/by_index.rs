//! Key plans that go by a secondary index: entries first, then the rows they lead to, some at a time.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use kv::{Scan, ScanOptions, Txn};
use proto::KeyRange;

use super::{
    Access, KeyPlan, ReadPlan,
    access::{Bound, KeyDatum, KeyValue},
    run::{Rows, project},
};
use crate::{
    codec::{IndexCodec, KeyForm},
    error::{SqlError, SqlResult},
    eval::Env,
    query::scan::{
        bounds::{Fitted, Spans, prefix_end, range},
        by_index::may_be_gone,
    },
    types::{Datum, FormatSettings},
    work::Work,
};

/// Rows fetched at a time.
const ROWS_AT_ONCE: usize = 256;
/// The same for a read with a LIMIT: a few more than it asks for, since some may not pass.
const SPARE_ROWS: usize = 8;

/// The values of key columns; `None` when no row can have them.
fn values(of: &[KeyValue], env: &Env<'_>) -> SqlResult<Option<Vec<Datum>>> {
    let mut values = Vec::with_capacity(of.len() + 1);
    for value in of {
        match value.eval(env)? {
            KeyDatum::Value(datum) => values.push(datum),
            KeyDatum::Nothing => return Ok(None),
        }
    }
    Ok(Some(values))
}

fn points(points: &[Vec<KeyValue>], form: &KeyForm, env: &Env<'_>) -> SqlResult<Vec<Bytes>> {
    let mut keys = Vec::with_capacity(points.len());
    for point in points {
        if let Some(values) = values(point, env)? {
            keys.push(form.key_of(&values)?);
        }
    }
    Ok(keys)
}

fn ranges(
    prefix: &[KeyValue],
    (low, high): (Option<&Bound>, Option<&Bound>),
    form: &KeyForm,
    env: &Env<'_>,
) -> SqlResult<Option<KeyRange>> {
    let Some(values) = values(prefix, env)? else { return Ok(None) };
    let start = form.key_of(&values)?;
    let Some((_, column)) = form.columns().get(values.len()) else {
        return Ok(Some(KeyRange::new(start.clone(), prefix_end(&start))));
    };
    let side = |bound: Option<&Bound>| -> SqlResult<Option<(Fitted, bool)>> {
        let Some(bound) = bound else { return Ok(None) };
        Ok(Some(match bound.value.eval(env)? {
            KeyDatum::Value(datum) => (Fitted::Value(datum), bound.inclusive),
            KeyDatum::Nothing => (Fitted::Nothing, bound.inclusive),
        }))
    };
    Ok(range(&start, &side(low)?, &side(high)?, *column))
}

/// The keys of the index that a run reads.
pub fn spans(access: &Access, form: &KeyForm, env: &Env<'_>) -> SqlResult<Spans> {
    Ok(match access {
        Access::Points(of) => Spans::Points(points(of, form, env)?),
        Access::Range { prefix, low, high } => {
            Spans::Ranges(ranges(prefix, (low.as_ref(), high.as_ref()), form, env)?.into_iter().collect())
        }
    })
}

/// The keys of the rows at points of a unique index.
pub async fn rows_at(of: &[Vec<KeyValue>], index: &IndexCodec, txn: &Txn, env: &Env<'_>) -> SqlResult<Vec<Bytes>> {
    let keys = points(of, index.form(), env)?;
    let found = match keys.as_slice() {
        [] => Vec::new(),
        [one] => vec![txn.get(one).await?],
        many => txn.get_many(many).await?,
    };
    let there = keys.iter().zip(found).filter_map(|(key, value)| Some((key, value?)));
    there.map(|(key, value)| index.row_key(key, &value)).collect()
}

/// A read under way.
pub struct IndexRead {
    plan: Arc<KeyPlan>,
    txn: Txn,
    /// Points that have not been looked up, or the scan of a range's entries.
    entries: Entries,
    /// Keys of rows that have not been fetched.
    keys: VecDeque<Bytes>,
    /// Rows that may still be given; `None` for all.
    left: Option<usize>,
    params: Vec<Datum>,
    now_us: i64,
    settings: FormatSettings,
}

enum Entries {
    Points(Vec<Bytes>),
    Range(Box<Scan>),
    End,
}

impl IndexRead {
    /// Starts one.
    pub fn new(plan: &Arc<KeyPlan>, work: &Work<'_>, limit: Option<u64>) -> SqlResult<Self> {
        let (read, index) = parts(plan)?;
        let txn = work.reader.txn(read.target.table.storage_id).clone();
        let entries = match spans(&read.selection.access, index.form(), &work.env(&[]))? {
            _ if limit == Some(0) => Entries::End,
            Spans::Points(points) => Entries::Points(points),
            Spans::Ranges(ranges) => match ranges.into_iter().next() {
                Some(range) => {
                    let options = ScanOptions { range, reverse: read.reverse, ..ScanOptions::default() };
                    Entries::Range(Box::new(txn.scan(options)))
                }
                None => Entries::End,
            },
        };
        Ok(IndexRead {
            plan: Arc::clone(plan),
            txn,
            entries,
            keys: VecDeque::new(),
            left: limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
            params: work.params.to_vec(),
            now_us: work.now_us,
            settings: work.settings.clone(),
        })
    }

    /// The next rows; `None` at the end.
    pub async fn next(&mut self) -> SqlResult<Option<Rows>> {
        if self.left == Some(0) || (self.keys.is_empty() && !self.more_keys().await?) {
            return Ok(None);
        }
        let count = self.left.map_or(ROWS_AT_ONCE, |left| left.saturating_add(SPARE_ROWS).min(ROWS_AT_ONCE));
        let keys: Vec<Bytes> = self.keys.drain(..count.min(self.keys.len())).collect();
        let found = match keys.as_slice() {
            [one] => vec![self.txn.get(one).await?],
            many => self.txn.get_many(many).await?,
        };
        let (read, _) = parts(&self.plan)?;
        let env = Env { row: &[], params: &self.params, now_us: self.now_us, settings: &self.settings };
        let mut rows = Rows::default();
        for (key, value) in keys.iter().zip(found) {
            if self.left.is_some_and(|left| rows.count == left) {
                break;
            }
            match value {
                Some(value) => project(read, key, &value, &env, &mut rows)?,
                None => may_be_gone(&self.txn)?,
            }
        }
        self.left = self.left.map(|left| left - rows.count);
        Ok(Some(rows))
    }

    /// Gets keys of rows; `false` when there are no more.
    async fn more_keys(&mut self) -> SqlResult<bool> {
        let plan = Arc::clone(&self.plan);
        let (_, index) = parts(&plan)?;
        while self.keys.is_empty() {
            match &mut self.entries {
                Entries::End => return Ok(false),
                Entries::Points(points) => {
                    let points = std::mem::take(points);
                    self.entries = Entries::End;
                    let found = match points.as_slice() {
                        [one] => vec![self.txn.get(one).await?],
                        many => self.txn.get_many(many).await?,
                    };
                    for (key, value) in points.iter().zip(found) {
                        if let Some(value) = value {
                            self.keys.push_back(index.row_key(key, &value)?);
                        }
                    }
                }
                Entries::Range(scan) => match scan.next_page().await? {
                    None => self.entries = Entries::End,
                    Some(page) => {
                        for (key, value) in &page.rows {
                            self.keys.push_back(index.row_key(key, value)?);
                        }
                    }
                },
            }
        }
        Ok(true)
    }
}

fn parts(plan: &KeyPlan) -> SqlResult<(&ReadPlan, &IndexCodec)> {
    match (plan, plan.index()) {
        (KeyPlan::Read(read), Some(index)) => Ok((read, index)),
        _ => Err(SqlError::internal("a plan without an index was run by one")),
    }
}
