//! ALTER TABLE … ADD, DROP and VALIDATE CONSTRAINT.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::TableConstraint;
use kv::Txn;

use super::{
    Pending,
    check::{self, Check},
    foreign_key, index, primary_key, validate,
};
use crate::{
    catalog::{Table, TableDescriptor, descriptor::PRIMARY_INDEX, store, store::rows_of},
    error::{Severity, SqlError, SqlResult, SqlState},
    gateway::Gateway,
    name::folded,
};

/// The transaction that a change of the schema is part of.
pub struct Alone {
    /// It consists of this statement.
    pub single: bool,
    /// If it has begun.
    pub txn: Option<Txn>,
}

impl Alone {
    /// 0A000 when the transaction has changed rows of a table that others know: what is about to be made or checked is made from
    /// rows that are committed.
    pub fn unwritten(&self, tables: &[&TableDescriptor], what: &str) -> SqlResult<()> {
        let written = |table: &&&TableDescriptor| {
            let range = rows_of(table.storage_id);
            self.txn.as_ref().is_some_and(|txn| txn.may_have_written(&range))
        };
        match tables.iter().find(written) {
            None => Ok(()),
            Some(table) => {
                let message = format!("{what} behind changes of rows of \"{}\" in one transaction", table.name);
                Err(SqlError::unsupported(message).with_hint("Say it before them, or in a transaction of its own."))
            }
        }
    }
}

/// ADD CONSTRAINT.
pub async fn add(
    gateway: &Arc<Gateway>,
    pending: &mut Pending,
    table: &Table,
    constraint: &TableConstraint,
    (not_valid, alone): (bool, &Alone),
) -> SqlResult<()> {
    match constraint {
        TableConstraint::PrimaryKey(primary) => primary_key::add(gateway, pending, table, primary, alone).await,
        TableConstraint::Unique(unique) => index::add_unique(gateway, pending, table, unique, alone).await,
        TableConstraint::ForeignKey(key) => {
            let said = foreign_key::read(key, None, None)?;
            foreign_key::add(gateway, pending, table, &said, (not_valid, alone)).await
        }
        TableConstraint::Check(_) if not_valid => Err(SqlError::unsupported("a CHECK constraint NOT VALID")),
        TableConstraint::Check(said) => {
            let said = check::Said { name: said.name.as_ref().map(folded), expr: (*said.expr).clone() };
            add_check(gateway, pending, table, said, alone).await
        }
        _ => Err(SqlError::unsupported("this table constraint")),
    }
}

async fn add_check(
    gateway: &Arc<Gateway>,
    pending: &mut Pending,
    table: &Table,
    said: check::Said,
    alone: &Alone,
) -> SqlResult<()> {
    let id = store::allocate_ids(gateway.client(), 1).await?;
    let taken: Vec<String> = names_of(table);
    let described = check::described(&pending.catalog, table, said, id, &taken)?;
    alone.unwritten(&[table], "a CHECK constraint")?;
    validate::check(gateway, table, &Check::new(table, &described)).await?;
    let mut new = foreign_key::next(table);
    new.checks.push(described);
    new.checks.sort_by(|a, b| a.name.cmp(&b.name));
    pending.put(Arc::new(new));
    Ok(())
}

fn names_of(table: &TableDescriptor) -> Vec<String> {
    let checks = table.checks.iter().map(|check| &check.name);
    let keys = table.foreign_keys.iter().map(|key| &key.name);
    let indexes = table.indexes.iter().filter(|index| index.constraint).map(|index| &index.name);
    checks.chain(keys).chain(indexes).chain(&table.primary_key).cloned().collect()
}

fn unknown(table: &TableDescriptor, name: &str) -> String {
    format!("constraint \"{name}\" of relation \"{}\" does not exist", table.name)
}

/// VALIDATE CONSTRAINT. Whoever writes keeps the constraint already, so nobody is held.
pub async fn validate(gateway: &Gateway, pending: &mut Pending, table: &Table, name: &str) -> SqlResult<()> {
    let Some(key) = table.foreign_keys.iter().find(|key| key.name == name) else {
        if table.checks.iter().any(|check| check.name == name) {
            return Ok(());
        }
        if table.has_constraint(name) {
            let message = format!(
                "constraint \"{name}\" of relation \"{}\" is not a foreign key or check constraint",
                table.name
            );
            return Err(SqlError::new(SqlState::WRONG_OBJECT_TYPE, message));
        }
        return Err(SqlError::new(SqlState::UNDEFINED_OBJECT, unknown(table, name)));
    };
    if key.validated {
        return Ok(());
    }
    let parent = pending.catalog.by_id(key.parent).cloned();
    let parent = parent.ok_or_else(|| SqlError::internal(format!("constraint {name} has lost its table")))?;
    validate::foreign_key(gateway, table, &parent, key).await?;
    let mut new = TableDescriptor { version: table.version + 1, ..(**table).clone() };
    new.foreign_keys.iter_mut().filter(|known| known.name == name).for_each(|known| known.validated = true);
    pending.put(Arc::new(new));
    Ok(())
}

/// How DROP CONSTRAINT was said.
#[derive(Clone, Copy, Debug)]
pub struct Dropping {
    /// IF EXISTS.
    pub if_exists: bool,
    /// CASCADE.
    pub cascade: bool,
}

/// DROP CONSTRAINT, with notices. 2BP01 for a unique one that foreign keys lean on, unless they may go, too.
pub fn drop(pending: &mut Pending, table: &Table, (name, how): (&str, Dropping)) -> SqlResult<Vec<SqlError>> {
    if let Some(key) = table.foreign_keys.iter().find(|key| key.name == name) {
        foreign_key::remove(pending, table.id, &[key.id]);
        return Ok(Vec::new());
    }
    if table.checks.iter().any(|check| check.name == name) {
        let mut new = TableDescriptor { version: table.version + 1, ..(**table).clone() };
        new.checks.retain(|check| check.name != name);
        pending.put(Arc::new(new));
        return Ok(Vec::new());
    }
    if table.primary_key.as_deref() == Some(name) {
        leaning(pending, table, PRIMARY_INDEX, name, how.cascade)?;
        return Err(SqlError::unsupported("ALTER TABLE … DROP CONSTRAINT of a primary key"));
    }
    let Some(index) = table.indexes.iter().find(|index| index.constraint && index.name == name) else {
        let message = unknown(table, name);
        if how.if_exists {
            let message = format!("{message}, skipping");
            return Ok(vec![SqlError::notice(Severity::Notice, SqlState::SUCCESS, message)]);
        }
        return Err(SqlError::new(SqlState::UNDEFINED_OBJECT, message));
    };
    let keys = leaning(pending, table, index.id, name, how.cascade)?;
    index::remove(pending, table, index.id);
    Ok(drop_keys(pending, keys))
}

/// Foreign keys that lean on an index; 2BP01 when there are some and they may not go.
fn leaning(
    pending: &Pending,
    table: &TableDescriptor,
    index: u32,
    name: &str,
    cascade: bool,
) -> SqlResult<Vec<(Table, u32, String)>> {
    let keys = foreign_key::on_table(&pending.catalog, table, Some(index));
    if keys.is_empty() || cascade {
        return Ok(keys);
    }
    Err(depended_on(&format!("constraint {name} on table {}", table.name), &keys, &format!("index {name}")))
}

/// 2BP01 for something that foreign keys depend on.
pub fn depended_on(what: &str, keys: &[(Table, u32, String)], on: &str) -> SqlError {
    let line =
        |(child, _, name): &(Table, u32, String)| format!("constraint {name} on table {} depends on {on}", child.name);
    let message = format!("cannot drop {what} because other objects depend on it");
    SqlError::new(SqlState::DEPENDENT_OBJECTS_STILL_EXIST, message)
        .with_detail(keys.iter().map(line).collect::<Vec<_>>().join("\n"))
        .with_hint("Use DROP ... CASCADE to drop the dependent objects too.")
}

/// Takes foreign keys away with what they depend on; says so.
pub fn drop_keys(pending: &mut Pending, keys: Vec<(Table, u32, String)>) -> Vec<SqlError> {
    let lines: Vec<String> =
        keys.iter().map(|(child, _, name)| format!("constraint {name} on table {}", child.name)).collect();
    for (child, key, _) in &keys {
        foreign_key::remove(pending, child.id, &[*key]);
    }
    let notice = |message| SqlError::notice(Severity::Notice, SqlState::SUCCESS, message);
    match lines.as_slice() {
        [] => Vec::new(),
        [one] => vec![notice(format!("drop cascades to {one}"))],
        many => {
            let detail: Vec<String> = many.iter().map(|line| format!("drop cascades to {line}")).collect();
            vec![notice(format!("drop cascades to {} other objects", many.len())).with_detail(detail.join("\n"))]
        }
    }
}
