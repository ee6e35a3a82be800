//! All descriptors as of one catalog version. PURE.

use std::{collections::BTreeMap, sync::Arc};

use proto::Timestamp;

use super::descriptor::{PUBLIC_SCHEMA, Table};
use crate::error::{SqlError, SqlResult};

/// All descriptors as of one catalog version. Statements are planned against one; it never changes.
#[derive(Clone, Debug, Default)]
pub struct CatalogSnapshot {
    /// The catalog's version; plans are cached under it.
    pub version: u64,
    /// Seen only by a transaction that has changed it: plans made for it are not shared.
    pub private: bool,
    tables: BTreeMap<(String, String), Table>,
    by_id: BTreeMap<u32, Table>,
    /// Tables that changed while this gateway ran: transactions with an older snapshot can't read them.
    usable_from: BTreeMap<u32, Timestamp>,
}

impl CatalogSnapshot {
    /// From the descriptors.
    pub fn new(version: u64, tables: impl IntoIterator<Item = Table>) -> Self {
        let mut snapshot = CatalogSnapshot { version, ..Default::default() };
        for table in tables {
            snapshot.put(table);
        }
        snapshot
    }
    /// What plans say they were made for: a private catalog has the version of the one it grew from, which must not be
    /// taken for it when the transaction has ended.
    pub fn plan_version(&self) -> u64 {
        if self.private { u64::MAX } else { self.version }
    }
    /// A table of any schema.
    pub fn table(&self, schema: &str, name: &str) -> Option<&Table> {
        self.tables.get(&(schema.to_owned(), name.to_owned()))
    }
    /// A table by name, in `public` when no schema is said; 42P01 when there is none.
    pub fn resolve(&self, schema: Option<&str>, name: &str) -> SqlResult<&Table> {
        self.table(schema.unwrap_or(PUBLIC_SCHEMA), name).ok_or_else(|| match schema {
            Some(schema) => SqlError::undefined_table(&format!("{schema}.{name}")),
            None => SqlError::undefined_table(name),
        })
    }
    /// A table by its id.
    pub fn by_id(&self, id: u32) -> Option<&Table> {
        self.by_id.get(&id)
    }
    /// All tables, by schema and name.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.tables.values()
    }
    /// Adds or replaces a table.
    pub fn put(&mut self, table: Table) {
        self.remove(table.id);
        self.by_id.insert(table.id, Arc::clone(&table));
        self.tables.insert((table.schema.clone(), table.name.clone()), table);
    }
    /// Takes a table out.
    pub fn remove(&mut self, id: u32) -> Option<Table> {
        let table = self.by_id.remove(&id)?;
        self.tables.remove(&(table.schema.clone(), table.name.clone()));
        Some(table)
    }
    /// Ids of tables that are not the same in `newer`: changed, dropped.
    pub fn changed_in(&self, newer: &CatalogSnapshot) -> Vec<u32> {
        let same = |table: &Table| newer.by_id(table.id).is_some_and(|other| other.version == table.version);
        self.by_id.values().filter(|table| !same(table)).map(|table| table.id).collect()
    }
    /// Notes that `changed` tables can only be read at `ts` or later.
    pub fn set_usable_from(&mut self, older: &CatalogSnapshot, changed: &[u32], ts: Timestamp) {
        self.usable_from = older.usable_from.clone();
        self.usable_from.extend(changed.iter().map(|id| (*id, ts)));
    }
    /// The first timestamp at which a table's rows are where its descriptor says.
    pub fn usable_from(&self, table: u32) -> Timestamp {
        self.usable_from.get(&table).copied().unwrap_or(Timestamp::ZERO)
    }
}
