//! Changes of the schema.
//!
//! ```text
//!   statement ──▶ Pending: a private catalog, and what the commit will write to the system tables
//!   COMMIT    ──▶ one kv transaction: descriptors + catalog version + the session's other writes
//!             ──▶ PD publishes the version; every gateway acknowledges it, or its lease runs out
//!             ──▶ storage ids nobody reads any more are deleted
//! ```
//!
//! What a statement changes it locks first, as PostgreSQL does (`locks`, [`crate::table_locks`]): transactions that use the table have ended,
//! and those to come wait until the change is published, or is not made.
//!
//! A table that is filled in bulk (TRUNCATE, COPY into a new table, ADD PRIMARY KEY) gets a storage id that no published
//! descriptor names yet: its rows are committed in batches, and become visible when the descriptor is.
//!
//! ROLLBACK TO takes up what had been changed at the savepoint, and gives up the table locks since (`restore`).

pub mod borders;
pub mod check;
pub mod column;
pub mod constraint;
pub mod create_table;
pub mod default;
pub mod drop_table;
pub mod foreign_key;
pub mod index;
pub mod locks;
pub mod primary_key;
pub mod restore;
pub mod sequence;
pub mod truncate;
pub mod validate;

use std::{collections::BTreeMap, sync::Arc};

use crate::catalog::{CatalogSnapshot, Sequence, Table, store::Changes};

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
    /// Indexes, by storage and index id, that only this transaction knows, of tables that others know: their entries are there.
    pub unpublished_indexes: Vec<(u32, u32)>,
    /// How often each of the storage ids that only this transaction knows has been written to.
    fills: BTreeMap<u32, u64>,
    created: Vec<u32>,
    created_sequences: Vec<u32>,
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
            unpublished_indexes: Vec::new(),
            fills: BTreeMap::new(),
            created: Vec::new(),
            created_sequences: Vec::new(),
        }
    }
    /// Others have changed tables that this transaction has not locked.
    pub fn rebase(&mut self, base: &CatalogSnapshot) {
        if base.version == self.base_version {
            return;
        }
        let mut catalog = base.clone();
        catalog.private = true;
        self.changes.dropped.iter().for_each(|table| drop(catalog.remove(table.id)));
        self.changes.put.iter().for_each(|table| catalog.put(Arc::clone(table)));
        self.changes.dropped_sequences.iter().for_each(|sequence| drop(catalog.remove_sequence(*sequence)));
        self.changes.put_sequences.iter().for_each(|sequence| catalog.put_sequence(Arc::clone(sequence)));
        (self.base_version, self.catalog) = (base.version, Arc::new(catalog));
    }
    /// A new table.
    pub fn create(&mut self, table: Table) {
        self.created.push(table.id);
        self.unpublished.push(table.storage_id);
        self.put(table);
    }
    /// A table's new descriptor.
    pub fn put(&mut self, table: Table) {
        self.expect(table.id);
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
        self.expect(table.id);
        Arc::make_mut(&mut self.catalog).remove(table.id);
        self.changes.put.retain(|known| known.id != table.id);
        if !self.created.contains(&table.id) {
            self.changes.dropped.push(Arc::clone(table));
        }
        self.discard(table.storage_id);
        for sequence in self.owned_sequences(table.id) {
            self.drop_sequence(&sequence);
        }
    }
    /// A new sequence.
    pub fn create_sequence(&mut self, sequence: Sequence) {
        self.created_sequences.push(sequence.id);
        Arc::make_mut(&mut self.catalog).put_sequence(Arc::clone(&sequence));
        self.changes.put_sequences.push(sequence);
    }
    /// A sequence's new descriptor.
    pub fn put_sequence(&mut self, old: &Sequence, new: Sequence) {
        if old.value_id != new.value_id {
            self.changes.ended_values.push(old.value_id);
        }
        Arc::make_mut(&mut self.catalog).put_sequence(Arc::clone(&new));
        self.changes.put_sequences.retain(|known| known.id != new.id);
        self.changes.put_sequences.push(new);
    }
    /// A sequence is gone.
    pub fn drop_sequence(&mut self, sequence: &Sequence) {
        Arc::make_mut(&mut self.catalog).remove_sequence(sequence.id);
        self.changes.put_sequences.retain(|known| known.id != sequence.id);
        self.changes.ended_values.push(sequence.value_id);
        if !self.created_sequences.contains(&sequence.id) {
            self.changes.dropped_sequences.push(sequence.id);
        }
    }
    /// The sequences that columns of a table own.
    pub fn owned_sequences(&self, table: u32) -> Vec<Sequence> {
        let owned = |sequence: &&Sequence| sequence.owner.is_some_and(|owner| owner.table == table);
        self.catalog.sequences().filter(owned).cloned().collect()
    }
    /// A table is changed for the first time.
    fn expect(&mut self, table: u32) {
        if let (Some(known), false) = (self.catalog.by_id(table), self.created.contains(&table)) {
            self.changes.expected.entry(table).or_insert(known.version);
        }
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
