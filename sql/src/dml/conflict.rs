//! Rows of an INSERT that meet rows with their key: ON CONFLICT.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{Array, AsArray},
    datatypes::Schema,
    record_batch::RecordBatch,
};
use bytes::Bytes;
use kv::{RowLockMode, Txn};

use super::{Certainty, Target, target::Change};
use crate::{
    error::{SqlError, SqlResult, SqlState},
    query::{Conflict, Rows},
    types::{
        Datum,
        arrow::{ColumnBuilder, datum_at},
    },
};

/// A statement's rows, told apart by whether their key exists.
#[derive(Default)]
pub struct Met {
    fresh: Vec<(usize, Vec<Datum>)>,
    pairs: Vec<Pair>,
}

/// Looks the keys of `rows` up. What ON CONFLICT DO NOTHING leaves out is left out.
pub async fn meet(
    target: &Target,
    conflict: &Conflict,
    txn: &Txn,
    rows: Vec<Vec<Datum>>,
    certainty: Certainty<'_>,
) -> SqlResult<Met> {
    rows.iter().try_for_each(|row| target.check_not_null(row))?;
    let keys = rows.iter().map(|row| target.codec.key(row)).collect::<SqlResult<Vec<Bytes>>>()?;
    let found = existing_rows(txn, &keys, conflict, certainty).await?;
    let (mut met, mut seen) = (Met::default(), HashSet::new());
    for (at, ((row, key), there)) in rows.into_iter().zip(keys).zip(found).enumerate() {
        let again = !seen.insert(key.clone());
        match (conflict, there) {
            (Conflict::Nothing, None) if !again => met.fresh.push((at, row)),
            (Conflict::Nothing, _) => {}
            (Conflict::Update(_), _) if again => return Err(twice()),
            (Conflict::Update(_), None) => met.fresh.push((at, row)),
            (Conflict::Update(_), Some(value)) => {
                let old = target.codec.decode(&key, &value)?;
                met.pairs.push(Pair { at, key, old, excluded: row });
            }
        }
    }
    Ok(met)
}

/// The rows under `keys`, and no others may come there from now on. DO NOTHING leaves rows that are there to others.
async fn existing_rows(
    txn: &Txn,
    keys: &[Bytes],
    conflict: &Conflict,
    certainty: Certainty<'_>,
) -> SqlResult<Vec<Option<Bytes>>> {
    let Certainty::Locked(locking) = certainty else { return Ok(txn.get_many(keys).await?) };
    let mut found = match conflict {
        Conflict::Nothing => txn.get_many(keys).await?,
        Conflict::Update(_) => vec![None; keys.len()],
    };
    let missing: Vec<usize> = (0..keys.len()).filter(|at| found[*at].is_none()).collect();
    let asked: Vec<Bytes> = missing.iter().map(|at| keys[*at].clone()).collect();
    let rows = locking.lock(txn, &asked, RowLockMode::NoKeyUpdate, true).await?;
    for (at, row) in missing.into_iter().zip(rows) {
        found[at] = row.value;
    }
    Ok(found)
}

/// What is to be written.
pub struct Resolved {
    fresh: Vec<(usize, Vec<Datum>)>,
    changes: Vec<(usize, Change)>,
}

impl Met {
    /// Computes DO UPDATE's changes; `source` holds its expressions.
    pub fn resolve(self, source: &Rows, target: &Target, conflict: &Conflict) -> SqlResult<Resolved> {
        let changes = match conflict {
            Conflict::Update(update) if !self.pairs.is_empty() => {
                changed(source, target, &update.assigned, self.pairs)?
            }
            _ => Vec::new(),
        };
        Ok(Resolved { fresh: self.fresh, changes })
    }
}

impl Resolved {
    /// Writes all of it. The rows that were inserted or changed come back, in the statement's order.
    pub async fn write(mut self, target: &Target, txn: &Txn, certainty: Certainty<'_>) -> SqlResult<Vec<Vec<Datum>>> {
        for (_, row) in &self.fresh {
            // Without locks a key that another transaction inserts meanwhile is a conflict of writers: the statement runs again.
            txn.put(target.codec.key(row)?, target.codec.value(row)?)?;
        }
        let (places, changes): (Vec<usize>, Vec<Change>) = self.changes.into_iter().unzip();
        target.update(txn, &changes, if_unlocked_read(certainty)).await?;
        self.fresh.extend(places.into_iter().zip(changes.into_iter().map(|change| change.row)));
        self.fresh.sort_by_key(|(at, _)| *at);
        Ok(self.fresh.into_iter().map(|(_, row)| row).collect())
    }
}

/// A key that a row moves to is looked up here, whatever the commit would say.
fn if_unlocked_read(certainty: Certainty<'_>) -> Certainty<'_> {
    match certainty {
        Certainty::AtCommit => Certainty::Read,
        other => other,
    }
}

/// 21000: which of two new values would a row get?
fn twice() -> SqlError {
    SqlError::new(SqlState::CARDINALITY_VIOLATION, "ON CONFLICT DO UPDATE command cannot affect row a second time")
        .with_hint(
            "Ensure that no rows proposed for insertion within the same command have duplicate constrained values.",
        )
}

/// A row that is there, and the one that was to be inserted.
struct Pair {
    /// Its place among the statement's rows.
    at: usize,
    key: Bytes,
    old: Vec<Datum>,
    excluded: Vec<Datum>,
}

/// What DO UPDATE makes of the rows that are there; those its WHERE lets alone are left out.
fn changed(source: &Rows, target: &Target, assigned: &[usize], pairs: Vec<Pair>) -> SqlResult<Vec<(usize, Change)>> {
    let values = source.conflict(&both(target, &pairs)?)?;
    let (values, condition) = values.split_at(assigned.len());
    let condition = condition.first().ok_or_else(|| SqlError::internal("DO UPDATE lost its condition"))?.as_boolean();
    let mut changes = Vec::with_capacity(pairs.len());
    for (at, pair) in pairs.into_iter().enumerate() {
        if condition.is_null(at) || !condition.value(at) {
            continue;
        }
        let mut row = pair.old;
        for (value, position) in values.iter().zip(assigned) {
            row[*position] = target.table.columns[*position].column_type.fit(datum_at(value, at)?)?;
        }
        changes.push((pair.at, Change { old_key: pair.key, row }));
    }
    Ok(changes)
}

/// The pairs as one batch: all columns of the old rows, then of the others.
fn both(target: &Target, pairs: &[Pair]) -> SqlResult<RecordBatch> {
    let positions: Vec<usize> = (0..target.table.columns.len()).collect();
    let row = crate::query::scan::schema_of(&target.table, &positions);
    let fields = row.fields().iter().chain(row.fields()).map(|field| field.as_ref().clone());
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let mut arrays = Vec::with_capacity(2 * positions.len());
    for side in [|pair: &Pair| &pair.old, |pair: &Pair| &pair.excluded] as [fn(&Pair) -> &Vec<Datum>; 2] {
        for (at, column) in target.table.columns.iter().enumerate() {
            let mut builder = ColumnBuilder::new(column.column_type, pairs.len());
            pairs.iter().try_for_each(|pair| builder.push(&side(pair)[at]))?;
            arrays.push(builder.finish());
        }
    }
    RecordBatch::try_new(schema, arrays).map_err(|error| SqlError::internal(error.to_string()))
}
