//! DROP TABLE.

use datafusion::sql::sqlparser::ast::ObjectName;

use super::Pending;
use crate::{
    error::{Severity, SqlError, SqlResult, SqlState},
    name::RelationName,
};

/// Drops tables in `pending`; notices for those that are missing under IF EXISTS.
pub fn drop_tables(pending: &mut Pending, names: &[ObjectName], if_exists: bool) -> SqlResult<Vec<SqlError>> {
    let mut notices = Vec::new();
    for name in names {
        let name = RelationName::new(name)?;
        let schema = name.schema.as_deref();
        let found = pending.catalog.resolve(schema, &name.name).cloned();
        match found {
            Ok(table) => pending.drop(&table),
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
    Ok(notices)
}
