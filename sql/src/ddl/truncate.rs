//! TRUNCATE: the table goes on under a new, empty storage id.

use std::{collections::BTreeSet, sync::Arc};

use datafusion::sql::sqlparser::ast::{CascadeOption, Truncate, TruncateIdentityOption};

use super::{Pending, foreign_key, sequence};
use crate::{
    catalog::{Table, store},
    error::{Severity, SqlError, SqlResult, SqlState},
    gateway::Gateway,
    name::RelationName,
};

/// Truncates tables in `pending`, with notices for those that follow under CASCADE.
pub async fn truncate(gateway: &Arc<Gateway>, pending: &mut Pending, truncate: &Truncate) -> SqlResult<Vec<SqlError>> {
    if truncate.partitions.is_some() {
        return Err(SqlError::syntax("syntax error in TRUNCATE"));
    }
    let mut tables: Vec<Table> = Vec::with_capacity(truncate.table_names.len());
    for target in &truncate.table_names {
        let name = RelationName::new(&target.name)?;
        let table = pending.catalog.resolve(name.schema.as_deref(), &name.name)?;
        if !tables.iter().any(|known| known.id == table.id) {
            tables.push(Arc::clone(table));
        }
    }
    let notices = followers(pending, &mut tables, matches!(truncate.cascade, Some(CascadeOption::Cascade)))?;
    let client = gateway.client();
    for table in tables {
        let mut new = foreign_key::next(&table);
        new.storage_id = store::allocate_ids(client, 1).await?;
        pending.replace_storage(table.storage_id, Arc::new(new));
        if matches!(truncate.identity, Some(TruncateIdentityOption::Restart)) {
            sequence::restart_owned(client, pending, table.id).await?;
        }
    }
    Ok(notices)
}

/// Adds the tables that reference those that are truncated. 0A000 when they may not follow.
fn followers(pending: &Pending, tables: &mut Vec<Table>, cascade: bool) -> SqlResult<Vec<SqlError>> {
    let mut notices = Vec::new();
    let mut known: BTreeSet<u32> = tables.iter().map(|table| table.id).collect();
    let mut at = 0;
    while let Some(table) = tables.get(at).cloned() {
        at += 1;
        for (child, _, _) in foreign_key::on_table(&pending.catalog, &table, None) {
            if !known.insert(child.id) {
                continue;
            }
            if !cascade {
                let message = "cannot truncate a table referenced in a foreign key constraint";
                let (child, parent) = (&child.name, &table.name);
                return Err(SqlError::new(SqlState::FEATURE_NOT_SUPPORTED, message)
                    .with_detail(format!("Table \"{child}\" references \"{parent}\"."))
                    .with_hint(format!("Truncate table \"{child}\" at the same time, or use TRUNCATE ... CASCADE.")));
            }
            let message = format!("truncate cascades to table \"{}\"", child.name);
            notices.push(SqlError::notice(Severity::Notice, SqlState::SUCCESS, message));
            tables.push(child);
        }
    }
    Ok(notices)
}
