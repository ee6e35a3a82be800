//! Checks: a child has its parent, a key that is gone has no children. Those of unique values come this way, too ([`crate::dml::unique`]).

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{Gone, Integrity, at, converted, name_of, types_of};
use crate::{
    catalog::{ForeignKeyDescriptor, Table, TableDescriptor, foreign_key::names},
    codec::TableCodec,
    dml::{target::shown, unique::all_distinct},
    error::{SqlError, SqlResult, SqlState},
    types::Datum,
};

/// Something to be found out about a constraint.
#[derive(Clone, Debug)]
pub(in crate::dml) struct Check {
    /// The table with the constraint.
    pub child: u32,
    /// The constraint's id.
    pub key: u32,
    /// About what.
    pub subject: Subject,
}

/// What a check is about.
#[derive(Clone, Debug)]
pub(in crate::dml) enum Subject {
    /// A row of the child, if it still has these values, has its parent.
    Row {
        /// The row's key.
        row_key: Bytes,
        /// Of the constraint's columns.
        values: Vec<Datum>,
    },
    /// A key that the parent had: it has it again, or no child has these values.
    Parent {
        /// Of the referenced columns.
        values: Vec<Datum>,
    },
    /// Not more than one row has these values of a unique constraint's columns.
    Value {
        /// In the order of its index.
        values: Vec<Datum>,
    },
    /// The same of all values that there are.
    AllValues,
}

impl Check {
    pub(super) fn parent(child: &Table, key: &ForeignKeyDescriptor, values: Vec<Datum>) -> Self {
        Check { child: child.id, key: key.id, subject: Subject::Parent { values } }
    }
}

/// What one constraint is asked.
#[derive(Default)]
struct Questions {
    rows: Vec<(Bytes, Vec<Datum>)>,
    parents: Vec<Vec<Datum>>,
    values: Vec<Vec<Datum>>,
    all_values: bool,
}

impl Integrity<'_> {
    /// Runs checks. What concerns constraints that are gone is forgotten.
    pub(super) async fn check(&self, checks: Vec<Check>) -> SqlResult<()> {
        let mut questions: BTreeMap<(u32, u32), Questions> = BTreeMap::new();
        for Check { child, key, subject } in checks {
            let about = questions.entry((key, child)).or_default();
            match subject {
                Subject::Row { row_key, values } => about.rows.push((row_key, values)),
                Subject::Parent { values } => about.parents.push(values),
                Subject::Value { values } => about.values.push(values),
                Subject::AllValues => about.all_values = true,
            }
        }
        for ((key, child), Questions { rows, parents, values, all_values }) in questions {
            let Some(child) = self.links.catalog.by_id(child) else { continue };
            if let Some(index) = child.indexes.iter().find(|index| index.id == key) {
                match all_values {
                    true => all_distinct(self.reader.txn(child.storage_id), child, index).await?,
                    false => self.check_unique(child, index, &values).await?,
                }
                continue;
            }
            let Some(key) = child.foreign_keys.iter().find(|known| known.id == key) else { continue };
            let Some(parent) = self.links.catalog.by_id(key.parent) else { continue };
            self.check_rows(child, parent, key, rows).await?;
            self.check_parents(child, parent, key, parents).await?;
        }
        Ok(())
    }

    async fn check_rows(
        &self,
        child: &Table,
        parent: &Table,
        key: &ForeignKeyDescriptor,
        rows: Vec<(Bytes, Vec<Datum>)>,
    ) -> SqlResult<()> {
        let types = types_of(parent, &key.referenced);
        // Equal values are asked for once; what no parent can have is missing without a question.
        let mut wanted: BTreeMap<Bytes, (Vec<Datum>, Vec<usize>)> = BTreeMap::new();
        let mut failed: Vec<usize> = Vec::new();
        for (place, (_, values)) in rows.iter().enumerate() {
            if values.iter().any(Datum::is_null) {
                failed.push(place);
                continue;
            }
            match converted(values, &types, self.settings)? {
                Some(values) => {
                    let asked = wanted.entry(name_of(&values, &types));
                    asked.or_insert_with(|| (values, Vec::new())).1.push(place);
                }
                None => failed.push(place),
            }
        }
        let (keys, places): (Vec<Vec<Datum>>, Vec<Vec<usize>>) = wanted.into_values().unzip();
        let missing = self.missing(parent, key, &keys).await?;
        let missing = places.into_iter().zip(missing).filter(|(_, missing)| *missing);
        failed.extend(missing.flat_map(|(places, _)| places));
        failed.sort_unstable();
        for place in failed {
            let (row_key, values) = &rows[place];
            if self.still_there(child, key, row_key, values).await? {
                return Err(orphan(child, parent, key, values));
            }
        }
        Ok(())
    }

    /// A row has these values; another check is about others that it has got since.
    async fn still_there(
        &self,
        child: &Table,
        key: &ForeignKeyDescriptor,
        row_key: &Bytes,
        values: &[Datum],
    ) -> SqlResult<bool> {
        let Some(value) = self.reader.txn(child.storage_id).get(row_key).await? else { return Ok(false) };
        let row = TableCodec::new(child).decode(row_key, &value)?;
        Ok(at(&row, &key.columns) == values)
    }

    async fn check_parents(
        &self,
        child: &Table,
        parent: &Table,
        key: &ForeignKeyDescriptor,
        gone: Vec<Vec<Datum>>,
    ) -> SqlResult<()> {
        if gone.is_empty() {
            return Ok(());
        }
        let again = self.present(parent, key, &gone).await?;
        let gone: Vec<Vec<Datum>> =
            gone.into_iter().zip(again).filter(|(_, again)| !again).map(|(values, _)| values).collect();
        self.refuse_children(child, parent, key, &gone).await
    }

    /// RESTRICT: also when the parent has got the key again.
    pub(super) async fn restrict(
        &self,
        parent: &Table,
        child: &Table,
        key: &ForeignKeyDescriptor,
        gone: &[Gone],
    ) -> SqlResult<()> {
        let gone: Vec<Vec<Datum>> = gone.iter().map(|gone| gone.old.clone()).collect();
        self.refuse_children(child, parent, key, &gone).await
    }

    async fn refuse_children(
        &self,
        child: &Table,
        parent: &Table,
        key: &ForeignKeyDescriptor,
        gone: &[Vec<Datum>],
    ) -> SqlResult<()> {
        match self.a_child(child, key, gone).await? {
            None => Ok(()),
            Some(row) => {
                let types = types_of(parent, &key.referenced);
                let values = converted(&at(&row, &key.columns), &types, self.settings)?;
                Err(referenced(child, parent, key, &values.unwrap_or_default()))
            }
        }
    }
}

fn violation(child: &TableDescriptor, key: &ForeignKeyDescriptor, message: String, detail: String) -> SqlError {
    SqlError::new(SqlState::FOREIGN_KEY_VIOLATION, message)
        .with_detail(detail)
        .with_table(&child.schema, &child.name)
        .with_constraint(&key.name)
}

fn listed(table: &TableDescriptor, columns: &[usize], values: &[Datum]) -> String {
    let values: Vec<String> = columns.iter().zip(values).map(|(at, v)| shown(v, &table.columns[*at])).collect();
    format!("Key ({})=({})", names(table, columns), values.join(", "))
}

/// 23503 for a row without a parent.
pub fn orphan(
    child: &Arc<TableDescriptor>,
    parent: &TableDescriptor,
    key: &ForeignKeyDescriptor,
    values: &[Datum],
) -> SqlError {
    let message =
        format!("insert or update on table \"{}\" violates foreign key constraint \"{}\"", child.name, key.name);
    let detail = match values.iter().any(Datum::is_null) {
        true => "MATCH FULL does not allow mixing of null and nonnull key values.".to_owned(),
        false => format!("{} is not present in table \"{}\".", listed(child, &key.columns, values), parent.name),
    };
    violation(child, key, message, detail)
}

/// 23503 for a key that is gone and has children.
fn referenced(
    child: &TableDescriptor,
    parent: &TableDescriptor,
    key: &ForeignKeyDescriptor,
    values: &[Datum],
) -> SqlError {
    let message = format!(
        "update or delete on table \"{}\" violates foreign key constraint \"{}\" on table \"{}\"",
        parent.name, key.name, child.name
    );
    let detail =
        format!("{} is still referenced from table \"{}\".", listed(parent, &key.referenced, values), child.name);
    violation(child, key, message, detail)
}
