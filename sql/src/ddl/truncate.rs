//! TRUNCATE: the table goes on under a new, empty storage id.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{Truncate, TruncateIdentityOption};

use super::{Pending, sequence};
use crate::{
    catalog::store,
    error::{SqlError, SqlResult},
    name::RelationName,
};

/// Truncates tables in `pending`.
pub async fn truncate(client: &kv::Client, pending: &mut Pending, truncate: &Truncate) -> SqlResult<()> {
    if truncate.partitions.is_some() {
        return Err(SqlError::syntax("syntax error in TRUNCATE"));
    }
    let mut tables = Vec::with_capacity(truncate.table_names.len());
    for target in &truncate.table_names {
        let name = RelationName::new(&target.name)?;
        tables.push(pending.catalog.resolve(name.schema.as_deref(), &name.name)?.clone());
    }
    for table in tables {
        let mut new = (*table).clone();
        new.storage_id = store::allocate_ids(client, 1).await?;
        new.version += 1;
        pending.replace_storage(table.storage_id, Arc::new(new));
        if matches!(truncate.identity, Some(TruncateIdentityOption::Restart)) {
            sequence::restart_owned(client, pending, table.id).await?;
        }
    }
    Ok(())
}
