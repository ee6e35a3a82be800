//! pg_catalog and information_schema: PostgreSQL's system tables as views of the catalog snapshot and the type table.
//!
//! Built in memory when a statement that names one is planned; plans are cached under the catalog's version, so
//! what they show is as old as the plan's snapshot, which is the statement's own. What PostgreSQL has and we lack (triggers,
//! policies, publications, …) is an empty table with PostgreSQL's columns, so that the questions of psql and drivers have an answer.

pub mod columns;
pub mod empty;
pub mod functions;
pub mod information_schema;
pub mod objects;
pub mod oids;
pub mod relations;
pub mod sequences;
pub mod table;

use std::sync::Arc;

use datafusion::catalog::TableProvider;

use crate::{
    catalog::CatalogSnapshot,
    query::{cluster, failure},
};

/// The schema of PostgreSQL's system tables.
pub const PG_CATALOG: &str = "pg_catalog";
/// The standard's schema.
pub const INFORMATION_SCHEMA: &str = "information_schema";

/// The system table of that name; without a schema `pg_catalog` is searched, as PostgreSQL does first.
pub fn virtual_table(snapshot: &CatalogSnapshot, schema: Option<&str>, name: &str) -> Option<Arc<dyn TableProvider>> {
    if matches!(schema, None | Some(PG_CATALOG))
        && let Some(table) = cluster::postgres_table(snapshot, name)
    {
        return Some(table);
    }
    let built = match schema {
        None | Some(PG_CATALOG) => relations::build(snapshot, name)
            .or_else(|| columns::build(snapshot, name))
            .or_else(|| objects::build(snapshot, name))
            .or_else(|| sequences::build(snapshot, name))
            .or_else(|| empty::build(name)),
        Some(INFORMATION_SCHEMA) => information_schema::build(snapshot, name),
        Some(cluster::FLAREDB) => return cluster::table(snapshot, name),
        Some(_) => None,
    }?;
    match built.provider() {
        Ok(provider) => Some(provider),
        Err(error) => {
            tracing::error!(table = name, error = %failure::from_datafusion(error), "a system table could not be built");
            None
        }
    }
}
