//! Changes of the schema.
//!
//! ```text
//!   statement ──▶ Pending: a private catalog, and what the commit will write to the system tables
//!   COMMIT    ──▶ one kv transaction: descriptors + catalog version + the session's other writes
//!             ──▶ PD publishes the version; every gateway acknowledges it, or its lease runs out
//!             ──▶ storage ids nobody reads any more are deleted
//! ```
//!
//! A table that is filled in bulk (TRUNCATE, COPY into a new table, ADD PRIMARY KEY) gets a storage id that no published
//! descriptor names yet: its rows are committed in batches, and become visible when the descriptor is.

pub mod borders;
pub mod create_table;
pub mod default;
pub mod drop_table;
pub mod primary_key;
pub mod truncate;

use std::sync::Arc;

use proto::Timestamp;

use crate::catalog::{CatalogSnapshot, Table, store::Changes};

/// What a transaction has changed of the schema.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The version of the catalog it started from.
    pub base_version: u64,
    /// The catalog as the transaction sees it.
    pub catalog: Arc<CatalogSnapshot>,
    /// What the commit writes.
    pub changes: Changes,
    /// Storage ids that only this transaction knows.
    pub unpublished: Vec<u32>,
    /// Storage ids that only this transaction knew and has done with. They are no change of the catalog: nobody else reads
    /// them, and a note that they are garbage was written when they were filled.
    pub discarded: Vec<u32>,
    /// The commit must be earlier, or writers that were held off are not held off any more.
    pub commit_before: Option<Timestamp>,
    created: Vec<u32>,
}

impl Pending {
    /// Nothing changed yet.
    pub fn new(base: &CatalogSnapshot) -> Self {
        let mut catalog = base.clone();
        catalog.private = true;
        Pending {
            base_version: base.version,
            catalog: Arc::new(catalog),
            changes: Changes::default(),
            unpublished: Vec::new(),
            discarded: Vec::new(),
            commit_before: None,
            created: Vec::new(),
        }
    }
    /// A new table.
    pub fn create(&mut self, table: Table) {
        self.created.push(table.id);
        self.unpublished.push(table.storage_id);
        self.put(table);
    }
    /// A table's new descriptor.
    pub fn put(&mut self, table: Table) {
        Arc::make_mut(&mut self.catalog).put(Arc::clone(&table));
        self.changes.put.retain(|known| known.id != table.id);
        self.changes.put.push(table);
    }
    /// A table's rows are elsewhere from now on: the old ones are garbage.
    pub fn replace_storage(&mut self, old: u32, table: Table) {
        self.discard(old);
        self.unpublished.push(table.storage_id);
        self.put(table);
    }
    /// A table is gone.
    pub fn drop(&mut self, table: &Table) {
        Arc::make_mut(&mut self.catalog).remove(table.id);
        self.changes.put.retain(|known| known.id != table.id);
        if !self.created.contains(&table.id) {
            self.changes.dropped.push(Arc::clone(table));
        }
        self.discard(table.storage_id);
    }
    fn discard(&mut self, storage_id: u32) {
        if self.unpublished.contains(&storage_id) {
            self.unpublished.retain(|known| *known != storage_id);
            self.discarded.push(storage_id);
        } else {
            self.changes.garbage.push(storage_id);
        }
    }
}
