//! Rows of an INSERT that meet rows with their key: ON CONFLICT.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{Array, AsArray},
    datatypes::Schema,
    record_batch::RecordBatch,
};
use bytes::Bytes;
use kv::{RowLockMode, Txn};

use super::{
    Certainty, Target, foreign,
    locking::{MAX_ROUNDS, RowLocking, changed_since, restless},
    target::Change,
};
use crate::{
    codec::Entry,
    error::{SqlError, SqlResult, SqlState},
    planted::Plant,
    query::{Arbiters, Conflict, Rows},
    types::{
        Datum,
        arrow::{ColumnBuilder, datum_at},
    },
};

/// A statement's rows, told apart by whether one is there that they meet.
#[derive(Default)]
pub struct Met {
    fresh: Vec<(usize, Vec<Datum>)>,
    pairs: Vec<Pair>,
}

/// By what one row may meet others, and the row that it meets.
#[derive(Default)]
struct Meeting {
    keys: Vec<Bytes>,
    there: Option<(Bytes, Bytes)>,
}

/// Looks the rows up by the conflict's arbiters. What DO NOTHING leaves out is left out.
pub async fn meet(
    target: &Target,
    conflict: &Conflict,
    txn: &Txn,
    rows: Vec<Vec<Datum>>,
    certainty: Certainty<'_>,
) -> SqlResult<Met> {
    rows.iter().try_for_each(|row| target.check_row(row))?;
    let meetings = settled(target, conflict, txn, &rows, certainty).await?;
    let (mut met, mut seen) = (Met::default(), HashSet::new());
    for (at, (row, Meeting { keys, there })) in rows.into_iter().zip(meetings).enumerate() {
        let again = keys.iter().any(|key| seen.contains(key));
        match (&conflict.update, there) {
            (None, there) if again || there.is_some() => continue,
            (Some(_), _) if again => return Err(twice()),
            (_, None) => met.fresh.push((at, row)),
            (_, Some((key, value))) => {
                let old = target.codec.decode(&key, &value)?;
                met.pairs.push(Pair { at, key, old, excluded: row });
            }
        }
        seen.extend(keys);
    }
    Ok(met)
}

/// Which rows are met. Locked, they are as they are now, and no others may come under the arbiters' keys from now on; DO NOTHING leaves
/// rows that are there to others.
async fn settled(
    target: &Target,
    conflict: &Conflict,
    txn: &Txn,
    rows: &[Vec<Datum>],
    certainty: Certainty<'_>,
) -> SqlResult<Vec<Meeting>> {
    let mut reading = txn.clone();
    for _ in 0..MAX_ROUNDS {
        let meetings = look_up(target, &conflict.arbiters, &reading, rows).await?;
        let Certainty::Locked(locking) = certainty else { return Ok(meetings) };
        if hold(&reading, locking, &meetings, conflict.update.is_some()).await? {
            return Ok(meetings);
        }
        reading = txn.at_fresh_snapshot();
    }
    Err(restless())
}

/// Locks what was found and what was not; `false` when some of it has changed since. Rows come before entries, as they do where
/// rows are changed, so that two statements do not wait for each other.
async fn hold(txn: &Txn, locking: &RowLocking, meetings: &[Meeting], update: bool) -> SqlResult<bool> {
    let there = meetings.iter().filter_map(|meeting| meeting.there.as_ref());
    let rows: Vec<Bytes> = there.filter(|_| update).map(|(key, _)| key.clone()).collect();
    let locked = locking.lock(txn, &rows, RowLockMode::NoKeyUpdate, false).await?;
    if changed_since(txn, &locked).await? {
        return Ok(false);
    }
    let free = meetings.iter().filter(|meeting| update || meeting.there.is_none());
    let keys: Vec<Bytes> = free.flat_map(|meeting| meeting.keys.iter().cloned()).collect();
    let locked = locking.lock(txn, &keys, RowLockMode::NoKeyUpdate, true).await?;
    Ok(!changed_since(txn, &locked).await?)
}

async fn look_up(target: &Target, by: &Arbiters, txn: &Txn, rows: &[Vec<Datum>]) -> SqlResult<Vec<Meeting>> {
    let mut meetings: Vec<Meeting> = rows.iter().map(|_| Meeting::default()).collect();
    let keys = rows.iter().map(|row| target.codec.key(row)).collect::<SqlResult<Vec<Bytes>>>()?;
    if by.key {
        let found = txn.get_many(&keys).await?;
        for ((meeting, key), value) in meetings.iter_mut().zip(&keys).zip(found) {
            meeting.there = value.map(|value| (key.clone(), value));
            meeting.keys.push(key.clone());
        }
    }
    for index in target.indexes.iter().filter(|index| by.indexes.contains(&index.descriptor.id)) {
        let entries = rows.iter().zip(&keys).map(|(row, key)| index.entry(row, key));
        let entries = entries.collect::<SqlResult<Vec<Entry>>>()?;
        // With a NULL among its values a row meets nobody.
        let places: Vec<usize> = (0..rows.len()).filter(|at| entries[*at].unique).collect();
        let found = txn.get_many(&places.iter().map(|at| entries[*at].key.clone()).collect::<Vec<_>>()).await?;
        let (mut asked, mut theirs) = (Vec::new(), Vec::new());
        for (at, value) in places.iter().zip(found) {
            meetings[*at].keys.push(entries[*at].key.clone());
            if let Some(value) = value.filter(|_| meetings[*at].there.is_none()) {
                asked.push(*at);
                theirs.push(index.row_key(&entries[*at].key, &value)?);
            }
        }
        for ((at, key), value) in asked.into_iter().zip(&theirs).zip(txn.get_many(&theirs).await?) {
            let value = value.ok_or_else(|| index.dangling())?;
            meetings[at].there = Some((key.clone(), value));
        }
    }
    Ok(meetings)
}

/// What is to be written.
pub struct Resolved {
    fresh: Vec<(usize, Vec<Datum>)>,
    changes: Vec<(usize, Change)>,
}

impl Met {
    /// Computes DO UPDATE's changes; `source` holds its expressions.
    pub fn resolve(self, source: &Rows, target: &Target, conflict: &Conflict) -> SqlResult<Resolved> {
        let changes = match &conflict.update {
            Some(update) if !self.pairs.is_empty() => changed(source, target, &update.assigned, self.pairs)?,
            _ => Vec::new(),
        };
        Ok(Resolved { fresh: self.fresh, changes })
    }
}

impl Resolved {
    /// The rows before and after.
    pub fn pairs(&self) -> Vec<foreign::Pair> {
        let pair = |old, row: &Vec<Datum>| foreign::Pair { old, new: Some(row.clone()) };
        let fresh = self.fresh.iter().map(|(_, row)| pair(None, row));
        let changed = |(_, change): &(usize, Change)| pair(Some(change.old.clone()), &change.row);
        fresh.chain(self.changes.iter().map(changed)).collect()
    }

    /// Writes all of it. The rows that were inserted or changed come back, in the statement's order.
    pub async fn write(
        mut self,
        target: &Target,
        conflict: &Conflict,
        txn: &Txn,
        certainty: Certainty<'_>,
        plant: Plant,
    ) -> SqlResult<Vec<Vec<Datum>>> {
        let certainty = if_unlocked_read(certainty);
        self.write_fresh(target, &conflict.arbiters, txn, certainty).await?;
        let (places, changes): (Vec<usize>, Vec<Change>) = self.changes.into_iter().unzip();
        target.update(txn, &changes, certainty, plant).await?;
        self.fresh.extend(places.into_iter().zip(changes.into_iter().map(|change| change.row)));
        self.fresh.sort_by_key(|(at, _)| *at);
        Ok(self.fresh.into_iter().map(|(_, row)| row).collect())
    }

    /// Without locks, what another transaction inserts meanwhile under an arbiter's key is a conflict of writers: the statement runs again.
    async fn write_fresh(&self, target: &Target, by: &Arbiters, txn: &Txn, certainty: Certainty<'_>) -> SqlResult<()> {
        let rows: Vec<Vec<Datum>> = self.fresh.iter().map(|(_, row)| row.clone()).collect();
        let keys = rows.iter().map(|row| target.codec.key(row)).collect::<SqlResult<Vec<Bytes>>>()?;
        if !by.key {
            target.check_new(txn, &keys, &rows, certainty).await?;
        }
        target.insert_entries(txn, keys.iter().zip(&rows), certainty, &by.indexes).await?;
        for (at, (key, row)) in keys.into_iter().zip(&rows).enumerate() {
            target.make_room_at(txn, at).await?;
            let value = target.codec.value(row)?;
            if by.key {
                txn.put(key, value)?;
            } else {
                target.put_new(txn, key, value, row)?;
            }
        }
        Ok(())
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
        let old = target.kept(&pair.old);
        let mut row = pair.old;
        for (value, position) in values.iter().zip(assigned) {
            row[*position] = target.table.columns[*position].column_type.fit(datum_at(value, at)?)?;
        }
        changes.push((pair.at, Change { old_key: pair.key, old, row }));
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
