//! DROP TABLE.

use datafusion::sql::sqlparser::ast::ObjectName;

use super::{Pending, constraint, foreign_key};
use crate::{
    error::{Severity, SqlError, SqlResult, SqlState},
    name::RelationName,
};

/// Drops tables in `pending`; notices for those that are missing under IF EXISTS, and for foreign keys of other tables that go with
/// them under CASCADE. 2BP01 for a table that others reference.
pub fn drop_tables(
    pending: &mut Pending,
    names: &[ObjectName],
    if_exists: bool,
    cascade: bool,
) -> SqlResult<Vec<SqlError>> {
    let (mut notices, mut tables) = (Vec::new(), Vec::new());
    for name in names {
        let name = RelationName::new(name)?;
        let schema = name.schema.as_deref();
        match pending.catalog.resolve(schema, &name.name).cloned() {
            Ok(table) => tables.push(table),
            Err(_) if if_exists => {
                let message = format!("table \"{}\" does not exist, skipping", name.name);
                notices.push(SqlError::notice(Severity::Notice, SqlState::SUCCESS, message));
            }
            Err(_) => {
                return Err(SqlError::new(
                    SqlState::UNDEFINED_TABLE,
                    format!("table \"{}\" does not exist", name.shown()),
                ));
            }
        }
    }
    for table in &tables {
        let mut keys = foreign_key::on_table(&pending.catalog, table, None);
        keys.retain(|(child, _, _)| !tables.iter().any(|dropped| dropped.id == child.id));
        if !keys.is_empty() && !cascade {
            let what = format!("table {}", table.name);
            return Err(constraint::depended_on(&what, &keys, &what));
        }
        notices.extend(constraint::drop_keys(pending, keys));
    }
    for table in tables {
        // Its parents forget it, its descriptor may have changed with those of others.
        let keys: Vec<u32> = table.foreign_keys.iter().map(|key| key.id).collect();
        if !keys.is_empty() {
            foreign_key::remove(pending, table.id, &keys);
        }
        if let Some(table) = pending.catalog.by_id(table.id).cloned() {
            pending.drop(&table);
        }
    }
    Ok(notices)
}
