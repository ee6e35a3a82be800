//! All descriptors as of one catalog version. PURE.

use std::{collections::BTreeMap, sync::Arc};

use proto::Timestamp;

use super::{
    descriptor::{IndexDescriptor, PUBLIC_SCHEMA, Table, TableDescriptor},
    foreign_key::ForeignKeyDescriptor,
    sequence::Sequence,
};
use crate::{
    error::{SqlError, SqlResult, SqlState},
    table_locks::{Mode, Modes},
    types::text::MAX_NAME_BYTES,
};

/// All descriptors as of one catalog version. Statements are planned against one; it never changes.
#[derive(Clone, Debug, Default)]
pub struct CatalogSnapshot {
    /// The catalog's version; plans are cached under it.
    pub version: u64,
    /// Seen only by a transaction that has changed it: plans made for it are not shared.
    pub private: bool,
    tables: BTreeMap<(String, String), Table>,
    by_id: BTreeMap<u32, Table>,
    sequences: BTreeMap<u32, Sequence>,
    /// From then on this gateway knows of every change.
    known_from: Timestamp,
    /// Tables that were made while this gateway ran, and when it heard of them.
    made_by: BTreeMap<u32, Timestamp>,
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
    /// A sequence by its id.
    pub fn sequence(&self, id: u32) -> Option<&Sequence> {
        self.sequences.get(&id)
    }
    /// A sequence by name, in `public` when no schema is said; 42P01 when there is none, 42809 for another relation.
    pub fn resolve_sequence(&self, schema: Option<&str>, name: &str) -> SqlResult<&Sequence> {
        let inside = schema.unwrap_or(PUBLIC_SCHEMA);
        if let Some(found) = self.sequences.values().find(|known| known.schema == inside && known.name == name) {
            return Ok(found);
        }
        if self.has_relation(inside, name) {
            return Err(SqlError::new(SqlState::WRONG_OBJECT_TYPE, format!("\"{name}\" is not a sequence")));
        }
        Err(SqlError::undefined_table(&schema.map_or_else(|| name.to_owned(), |schema| format!("{schema}.{name}"))))
    }
    /// All sequences, by id.
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.values()
    }
    /// Adds or replaces a sequence.
    pub fn put_sequence(&mut self, sequence: Sequence) {
        self.sequences.insert(sequence.id, sequence);
    }
    /// Takes a sequence out.
    pub fn remove_sequence(&mut self, id: u32) -> Option<Sequence> {
        self.sequences.remove(&id)
    }
    /// A table, index or sequence has the name.
    pub fn has_relation(&self, schema: &str, name: &str) -> bool {
        self.table(schema, name).is_some()
            || self.sequences.values().any(|known| known.schema == schema && known.name == name)
            || self.tables.values().any(|table| table.schema == schema && table.has_index(name))
    }
    /// A name for something that belongs to columns of a table, as PostgreSQL makes one: `table_column_label`, with a number when it is
    /// taken; `taken` are names that are about to be.
    pub fn free_name(&self, schema: &str, parts: [&str; 2], label: &str, taken: &[String]) -> String {
        let free = |name: &String| !self.has_relation(schema, name) && !taken.contains(name);
        let name = |number: usize| {
            let suffix = if number == 0 { label.to_owned() } else { format!("{label}{number}") };
            object_name(parts, &suffix)
        };
        (0..).map(name).find(free).expect("numbers do not end")
    }
    /// The tables that a change of rows of one may reach by foreign keys, and how they are locked: its parents, whose rows are
    /// locked, and from child to child those that reference it, whose rows may be changed, with their parents. Itself first.
    pub fn reached_from(&self, table: u32) -> Vec<(u32, Mode)> {
        let (mut reached, mut written) = (vec![table], vec![table]);
        let mut at = 0;
        while let Some(table) = written.get(at).and_then(|id| self.by_id(*id)) {
            at += 1;
            for parent in table.foreign_keys.iter().map(|key| key.parent) {
                if !reached.contains(&parent) {
                    reached.push(parent);
                }
            }
            for child in &table.referrers {
                if !written.contains(child) {
                    written.push(*child);
                }
                if !reached.contains(child) {
                    reached.push(*child);
                }
            }
        }
        let mode = |id: u32| if written.contains(&id) { Mode::RowExclusive } else { Mode::RowShare };
        reached.into_iter().map(|id| (id, mode(id))).collect()
    }
    /// The tables that new rows of one reach: its parents. Itself first.
    pub fn reached_by_insert(&self, table: u32) -> Vec<(u32, Mode)> {
        let keys = self.by_id(table).into_iter().flat_map(|table| &table.foreign_keys);
        let mut reached = vec![(table, Mode::RowExclusive)];
        for parent in keys.map(|key| key.parent) {
            if !reached.iter().any(|(known, _)| *known == parent) {
                reached.push((parent, Mode::RowShare));
            }
        }
        reached
    }
    /// Takes a table out.
    pub fn remove(&mut self, id: u32) -> Option<Table> {
        let table = self.by_id.remove(&id)?;
        self.tables.remove(&(table.schema.clone(), table.name.clone()));
        Some(table)
    }
    /// Tables that are not the same in `newer`: changed, dropped.
    pub fn changed_in(&self, newer: &CatalogSnapshot) -> Vec<(u32, Change)> {
        let change = |table: &Table| match newer.by_id(table.id) {
            Some(other) if other.version == table.version => None,
            Some(other) => Some((table.id, Change::between(table, other))),
            None => Some((table.id, Change::Rows)),
        };
        self.by_id.values().filter_map(change).collect()
    }
    /// Notes that tables whose rows, or what rows are found by, have changed can only be read at `ts` or later; what was before the first
    /// catalog is not known at all.
    pub fn set_usable_from(&mut self, older: &CatalogSnapshot, changed: &[(u32, Change)], ts: Timestamp) {
        self.known_from = if older.known_from == Timestamp::ZERO { ts } else { older.known_from };
        self.made_by = older.made_by.clone();
        self.made_by.extend(self.by_id.keys().filter(|id| !older.by_id.contains_key(id)).map(|id| (*id, ts)));
        self.made_by.retain(|id, _| self.by_id.contains_key(id));
        self.usable_from = older.usable_from.clone();
        let indexed = |id: &u32| {
            let known = |index: &IndexDescriptor| {
                older.by_id(*id).is_some_and(|table| table.public_indexes().any(|known| known.id == index.id))
            };
            self.by_id(*id).is_some_and(|table| !table.public_indexes().all(known))
        };
        let anew = changed.iter().filter(|(id, change)| *change == Change::Rows || indexed(id));
        let anew: Vec<u32> = anew.map(|(id, _)| *id).collect();
        self.usable_from.extend(anew.into_iter().map(|id| (id, ts)));
    }
    /// The first timestamp at which a table's rows are where its descriptor says.
    pub fn usable_from(&self, table: u32) -> Timestamp {
        self.usable_from.get(&table).copied().unwrap_or(Timestamp::ZERO)
    }
    /// Whether all of these tables were at `ts` what they are here, as far as it is known.
    pub fn same_since(&self, tables: &[(u32, Mode)], ts: Timestamp) -> bool {
        let made = |table: &u32| self.made_by.get(table).is_none_or(|made| *made <= ts);
        self.known_from <= ts && tables.iter().all(|(table, _)| made(table) && self.usable_from(*table) <= ts)
    }
}

/// What a new descriptor means to those who use the table by the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing: an index may be read that was kept up before, a constraint is known to hold.
    Nothing,
    /// Who writes has to keep something else.
    Writes,
    /// Rows, or what they are found by, are elsewhere.
    Rows,
}

impl Change {
    fn between(old: &TableDescriptor, new: &TableDescriptor) -> Self {
        let found_by = |table: &TableDescriptor, by: u32| table.public_indexes().any(|index| index.id == by);
        let same_rows = old.storage_id == new.storage_id && old.columns == new.columns && old.key == new.key;
        if !same_rows || old.public_indexes().any(|index| !found_by(new, index.id)) {
            return Change::Rows;
        }
        let indexes = |table: &TableDescriptor| table.indexes.iter().map(|index| index.id).collect::<Vec<u32>>();
        let keys = |table: &TableDescriptor| {
            let validated = |key: &ForeignKeyDescriptor| ForeignKeyDescriptor { validated: true, ..key.clone() };
            table.foreign_keys.iter().map(validated).collect::<Vec<_>>()
        };
        let kept = indexes(old) == indexes(new) && old.checks == new.checks && old.referrers == new.referrers;
        if kept && keys(old) == keys(new) { Change::Nothing } else { Change::Writes }
    }

    /// Whoever uses the table in these modes can't go on.
    pub fn breaks(self, used: Modes) -> bool {
        match self {
            Change::Nothing => false,
            Change::Writes => used.iter().any(|mode| mode >= Mode::RowExclusive),
            Change::Rows => true,
        }
    }
}

/// The longer part is cut until all fit a name.
fn object_name(parts: [&str; 2], label: &str) -> String {
    let [mut first, mut second] = parts;
    let separators = usize::from(!second.is_empty()) + 1;
    while first.len() + second.len() + label.len() + separators > MAX_NAME_BYTES {
        let longer = if first.len() >= second.len() { &mut first } else { &mut second };
        let mut end = longer.len().saturating_sub(1);
        while !longer.is_char_boundary(end) {
            end -= 1;
        }
        *longer = &longer[..end];
    }
    match second {
        "" => format!("{first}_{label}"),
        second => format!("{first}_{second}_{label}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::descriptor::TableDescriptor;

    #[test]
    fn a_table_is_the_same_since_this_gateway_heard_of_its_form() {
        let table = |id: u32, version: u64| {
            Arc::new(TableDescriptor {
                // Another one each time: a change of the rows.
                storage_id: 10 * id + version as u32,
                version,
                ..TableDescriptor::new(id, format!("t{id}"), Vec::new(), Vec::new())
            })
        };
        let follow = |version, older: &CatalogSnapshot, tables: Vec<Table>, at: u64| {
            let mut catalog = CatalogSnapshot::new(version, tables);
            catalog.set_usable_from(older, &older.changed_in(&catalog), Timestamp(at));
            catalog
        };
        let first = follow(1, &CatalogSnapshot::default(), vec![table(1, 1), table(2, 1)], 100);
        let second = follow(2, &first, vec![table(1, 2), table(2, 1), table(3, 1)], 200);
        let third = follow(3, &second, vec![table(1, 2), table(2, 1), table(3, 1)], 300);
        let since = |table: u32| (0..400).find(|ts| third.same_since(&[(table, Mode::AccessShare)], Timestamp(*ts)));
        assert_eq!([1, 2, 3].map(since), [Some(200), Some(100), Some(200)]);
    }

    #[test]
    fn names_fit_and_are_free() {
        let catalog = CatalogSnapshot::default();
        assert_eq!(catalog.free_name("public", ["t", "a"], "seq", &[]), "t_a_seq");
        assert_eq!(catalog.free_name("public", ["t", "a"], "seq", &["t_a_seq".into()]), "t_a_seq1");
        let long = catalog.free_name("public", [&"x".repeat(63), &"y".repeat(40)], "key", &[]);
        assert_eq!(long, format!("{}_{}_key", "x".repeat(29), "y".repeat(29)));
        assert_eq!(catalog.free_name("public", ["t", ""], "pkey", &[]), "t_pkey");
    }
}
