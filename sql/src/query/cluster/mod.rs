//! The schema `flaredb`: the cluster as tables, as PD knows it when the statement runs.
//!
//! ```text
//!   flaredb.regions        a row a region: borders (decoded too), table and index, leader, size, load, what PD does with it
//!   flaredb.region_peers   a row a replica: store, role, how far behind
//!   flaredb.stores         a row a store
//!   flaredb.operators      what PD is doing, and has done lately
//!   flaredb.locks          a row for each row lock that is held or waited for (pg_locks has the same, in PostgreSQL's words)
//!   flaredb.transactions   a row for each transaction that a session of any node has open (pg_stat_activity has the sessions)
//! ```
//!
//! Unlike the system tables of `catalog` they are not part of a catalog snapshot: their rows are fetched by the leaf of the
//! physical plan, so a cached plan shows the present.

mod locks;
mod provider;
mod rows;
mod sessions;

use std::sync::Arc;

use datafusion::catalog::TableProvider;

use crate::{catalog::CatalogSnapshot, query::catalog::table::ColumnSpec, types::PgType};

/// The schema.
pub const FLAREDB: &str = "flaredb";

/// One of its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Regions,
    RegionPeers,
    Stores,
    Operators,
    Locks,
    Transactions,
    PgLocks,
    PgStatActivity,
}

use PgType::{Bool, Int8, Text};

impl View {
    fn named(name: &str) -> Option<View> {
        Some(match name {
            "regions" => View::Regions,
            "region_peers" => View::RegionPeers,
            "stores" => View::Stores,
            "operators" => View::Operators,
            "locks" => View::Locks,
            "transactions" => View::Transactions,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            View::Regions => "regions",
            View::RegionPeers => "region_peers",
            View::Stores => "stores",
            View::Operators => "operators",
            View::Locks => "locks",
            View::Transactions => "transactions",
            View::PgLocks => "pg_locks",
            View::PgStatActivity => "pg_stat_activity",
        }
    }

    fn columns(self) -> &'static [ColumnSpec] {
        match self {
            View::Regions => &[
                ("region_id", Int8),
                ("start_key", Text),
                ("end_key", Text),
                ("table_schema", Text),
                ("table_name", Text),
                ("table_names", Text),
                ("index_name", Text),
                ("start_pretty", Text),
                ("end_pretty", Text),
                ("conf_version", Int8),
                ("version", Int8),
                ("leader_store", Int8),
                ("term", Int8),
                ("applied_index", Int8),
                ("committed_index", Int8),
                ("approximate_bytes", Int8),
                ("approximate_rows", Int8),
                ("reads_per_s", Int8),
                ("writes_per_s", Int8),
                ("operator_id", Int8),
            ],
            View::RegionPeers => &[
                ("region_id", Int8),
                ("peer_id", Int8),
                ("store_id", Int8),
                ("role", Text),
                ("is_leader", Bool),
                ("is_active", Bool),
                ("entries_behind", Int8),
                ("needs_snapshot", Bool),
            ],
            View::Stores => &[
                ("store_id", Int8),
                ("address", Text),
                ("sql_address", Text),
                ("http_address", Text),
                ("state", Text),
                ("labels", Text),
                ("replicas", Int8),
                ("leaders", Int8),
                ("capacity_bytes", Int8),
                ("available_bytes", Int8),
                ("silent_ms", Int8),
                ("reads_per_s", Int8),
                ("writes_per_s", Int8),
            ],
            View::Operators => &[
                ("operator_id", Int8),
                ("region_id", Int8),
                ("rule", Text),
                ("state", Text),
                ("reason", Text),
                ("steps", Text),
                ("steps_done", Int8),
                ("outcome", Text),
                ("age_ms", Int8),
                ("ran_ms", Int8),
            ],
            View::Locks => locks::COLUMNS,
            View::Transactions => sessions::TRANSACTIONS,
            View::PgLocks => locks::PG_COLUMNS,
            View::PgStatActivity => sessions::ACTIVITY,
        }
    }
}

/// PostgreSQL's table of that name in `pg_catalog`, if it is one about sessions of all nodes.
pub fn postgres_table(snapshot: &CatalogSnapshot, name: &str) -> Option<Arc<dyn TableProvider>> {
    let view = match name {
        "pg_locks" => View::PgLocks,
        "pg_stat_activity" => View::PgStatActivity,
        _ => return None,
    };
    Some(Arc::new(provider::ClusterTable::new(view, snapshot)))
}

/// The table of that name in the schema `flaredb`.
pub fn table(snapshot: &CatalogSnapshot, name: &str) -> Option<Arc<dyn TableProvider>> {
    let view = View::named(name)?;
    Some(Arc::new(provider::ClusterTable::new(view, snapshot)))
}
