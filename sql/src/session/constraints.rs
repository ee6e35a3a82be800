//! Constraints that are checked later: SET CONSTRAINTS, and the checks at COMMIT.

use std::sync::Arc;

use super::{Session, TransactionStatus, portal::Running, run::guarded};
use crate::{
    catalog::CatalogSnapshot,
    dml::{Integrity, Links},
    error::{Severity, SqlError, SqlResult, SqlState},
    name::RelationName,
    statement::ConstraintsStatement,
};

impl Session {
    /// What a statement needs to keep foreign keys and deferrable constraints.
    pub(super) fn links(&mut self, sql: &str) -> SqlResult<Links> {
        let locking = self.locking(sql)?;
        let catalog = self.snapshot();
        Ok(Links { catalog, locking, deferred: Arc::clone(&self.open(false)?.deferred) })
    }

    /// SET CONSTRAINTS. What becomes immediate is checked now.
    pub(super) async fn set_constraints(&mut self, statement: &ConstraintsStatement) -> SqlResult<Running> {
        let ids = match &statement.names {
            None => None,
            Some(names) => {
                let catalog = self.snapshot();
                let mut ids = Vec::with_capacity(names.len());
                for name in names {
                    ids.extend(deferrable(&catalog, &RelationName::new(name)?)?);
                }
                Some(ids)
            }
        };
        if self.transaction.status() == TransactionStatus::Idle {
            let message = "SET CONSTRAINTS can only be used in transaction blocks";
            self.notices.push(SqlError::notice(Severity::Warning, SqlState::NO_ACTIVE_SQL_TRANSACTION, message));
            return Ok(Running::done("SET CONSTRAINTS"));
        }
        {
            let mut deferred = self.open(false)?.deferred.lock();
            match ids {
                None => deferred.set_all(statement.deferred),
                Some(ids) => ids.into_iter().for_each(|id| deferred.set(id, statement.deferred)),
            }
        }
        if !statement.deferred {
            self.check_deferred("SET CONSTRAINTS", false).await?;
        }
        Ok(Running::done("SET CONSTRAINTS"))
    }

    /// Runs checks that were put off: those that are due, or all at COMMIT.
    pub(super) async fn check_deferred(&mut self, sql: &str, all: bool) -> SqlResult<()> {
        if self.transaction.open().is_none_or(|open| open.deferred.lock().is_empty()) {
            return Ok(());
        }
        let links = self.links(sql)?;
        let now_us = self.open(false)?.now_us;
        let (reader, _) = self.reader().await?;
        let (settings, plant) = (self.settings.format.clone(), self.gateway.plant());
        let integrity = Integrity { reader: &reader, links: &links, now_us, settings: &settings, plant };
        match all {
            true => guarded(self, integrity.check_all()).await,
            false => guarded(self, integrity.check_due()).await,
        }
    }
}

/// The constraints of a name: in the first schema that has one. 42704 when there is none, 42809 when it cannot be deferred.
fn deferrable(catalog: &CatalogSnapshot, name: &RelationName) -> SqlResult<Vec<u32>> {
    let inside = |schema: &str| name.schema.as_deref().is_none_or(|said| said == schema);
    let tables = catalog.tables().filter(|table| inside(&table.schema) && table.has_constraint(&name.name));
    let (mut ids, mut known) = (Vec::new(), false);
    for table in tables {
        known = true;
        let key = table.foreign_keys.iter().find(|key| key.name == name.name);
        ids.extend(key.filter(|key| key.is_deferrable()).map(|key| key.id));
        let index = table.indexes.iter().find(|index| index.constraint && index.name == name.name);
        ids.extend(index.filter(|index| index.is_deferrable()).map(|index| index.id));
    }
    if !known {
        let message = format!("constraint \"{}\" does not exist", name.name);
        return Err(SqlError::new(SqlState::UNDEFINED_OBJECT, message));
    }
    if ids.is_empty() {
        let message = format!("constraint \"{}\" is not deferrable", name.name);
        return Err(SqlError::new(SqlState::WRONG_OBJECT_TYPE, message));
    }
    Ok(ids)
}
