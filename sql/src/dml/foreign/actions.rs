//! CASCADE, SET NULL, SET DEFAULT: children go with their parents, or are changed.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv::RowLockMode;

use super::{Gone, Integrity, Pair, at, converted, name_of, types_of};
use crate::{
    catalog::{ForeignKeyDescriptor, Table, foreign_key::Action},
    dml::{Certainty, Target, target::Change},
    error::{SqlError, SqlResult},
    eval::{Env, cast},
    keyplan::compile::default_scalar,
    types::Datum,
};

impl Integrity<'_> {
    /// Does to the children of keys what their constraint says; what has become of them.
    pub(super) async fn carry_out(
        &self,
        child: &Table,
        key: &ForeignKeyDescriptor,
        action: Action,
        gone: &[Gone],
    ) -> SqlResult<Vec<Pair>> {
        let target = Target::new(Table::clone(child));
        let deleting = action == Action::Cascade && gone.iter().all(|gone| gone.new.is_none());
        let mode = if deleting { RowLockMode::Update } else { target.update_lock(key.columns.iter().copied()) };
        let keys: Vec<Vec<Datum>> = gone.iter().map(|gone| gone.old.clone()).collect();
        let found = self.locked_children(&target, key, &keys, mode).await?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let txn = self.reader.txn(child.storage_id);
        let certainty = match self.reader.is_unpublished(child.storage_id) {
            true => Certainty::Read,
            false => Certainty::Locked(&self.links.locking),
        };
        if deleting {
            let gone = found.into_iter().map(|found| Change { old_key: found.key, old: Vec::new(), row: found.row });
            let gone: Vec<Change> = gone.collect();
            target.delete(txn, &gone, certainty).await?;
            return Ok(Pair::deleted(&gone));
        }
        let fresh = self.fresh_values(child, key, action, gone)?;
        let types = types_of(child, &key.columns);
        let mut changes = Vec::with_capacity(found.len());
        for found in found {
            let name = name_of(&at(&found.row, &key.columns), &types);
            let values = fresh.get(&name).ok_or_else(|| SqlError::internal("a child of no key was found"))?;
            let (old, mut row) = (found.row.clone(), found.row);
            for (at, value) in key.columns.iter().zip(values) {
                row[*at] = value.clone();
            }
            changes.push(Change { old_key: found.key, old, row });
        }
        target.update(txn, &changes, certainty, self.plant).await?;
        Ok(Pair::updated(&changes))
    }

    /// What the constraint's columns become, by the name of what they were.
    fn fresh_values(
        &self,
        child: &Table,
        key: &ForeignKeyDescriptor,
        action: Action,
        gone: &[Gone],
    ) -> SqlResult<BTreeMap<Bytes, Vec<Datum>>> {
        let types = types_of(child, &key.columns);
        let mut fresh = BTreeMap::new();
        for Gone { old, new, .. } in gone {
            let Some(old) = converted(old, &types, self.settings)? else { continue };
            let values = match (action, new) {
                (Action::Cascade, Some(new)) => self.assigned(child, key, new)?,
                (Action::SetDefault, _) => self.defaults(child, key)?,
                _ => vec![Datum::Null; types.len()],
            };
            fresh.insert(name_of(&old, &types), values);
        }
        Ok(fresh)
    }

    fn assigned(&self, child: &Table, key: &ForeignKeyDescriptor, values: &[Datum]) -> SqlResult<Vec<Datum>> {
        let column = |(at, value): (&usize, &Datum)| {
            cast::cast(value.clone(), child.columns[*at].column_type, false, self.settings)
        };
        key.columns.iter().zip(values).map(column).collect()
    }

    /// 0A000 for a default that is drawn from a sequence.
    fn defaults(&self, child: &Table, key: &ForeignKeyDescriptor) -> SqlResult<Vec<Datum>> {
        let env = Env { row: &[], params: &[], now_us: self.now_us, settings: self.settings };
        let default = |at: &usize| match child.columns[*at].sequence {
            Some(_) => Err(SqlError::unsupported("SET DEFAULT of a column that a sequence fills")),
            None => default_scalar(child, *at)?.eval(&env),
        };
        key.columns.iter().map(default).collect()
    }
}
