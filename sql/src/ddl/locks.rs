//! Which tables a change of the schema locks, and how: as PostgreSQL does. PURE.
//!
//! Names that mean nothing lock nothing: the statement itself says so, or skips them.

use datafusion::sql::sqlparser::ast::{
    AlterTable, AlterTableOperation, CascadeOption, ColumnOption, CreateTable, DropBehavior, ObjectName, ObjectType,
    Statement, TableConstraint,
};

use super::foreign_key;
use crate::{
    catalog::{CatalogSnapshot, Table, TableDescriptor},
    name::{RelationName, folded},
    table_locks::Mode,
};

/// Ids of tables and how they are locked, in the order of the statement.
pub fn of(statement: &Statement, catalog: &CatalogSnapshot) -> Vec<(u32, Mode)> {
    let mut locks = Locks { catalog, found: Vec::new() };
    match statement {
        Statement::CreateTable(create) => locks.create_table(create),
        Statement::CreateIndex(create) => {
            let mode = if create.concurrently { Mode::ShareUpdateExclusive } else { Mode::Share };
            locks.named(&create.table_name, mode);
        }
        Statement::Drop { object_type: ObjectType::Table, names, cascade, .. } => {
            names.iter().for_each(|name| locks.drop_table(name, *cascade));
        }
        Statement::Drop { object_type: ObjectType::Index, names, .. } => {
            names.iter().for_each(|name| locks.index(name));
        }
        Statement::Drop { object_type: ObjectType::Sequence, names, cascade: true, .. } => {
            names.iter().for_each(|name| locks.drawing_from(name));
        }
        Statement::Truncate(truncate) => {
            let cascade = matches!(truncate.cascade, Some(CascadeOption::Cascade));
            truncate.table_names.iter().for_each(|target| locks.truncate(&target.name, cascade));
        }
        Statement::AlterTable(alter) => locks.alter(alter),
        _ => {}
    }
    locks.found
}

struct Locks<'a> {
    catalog: &'a CatalogSnapshot,
    found: Vec<(u32, Mode)>,
}

impl<'a> Locks<'a> {
    fn add(&mut self, table: u32, mode: Mode) {
        if !self.found.contains(&(table, mode)) {
            self.found.push((table, mode));
        }
    }

    fn table(&self, name: &ObjectName) -> Option<&'a Table> {
        let name = RelationName::new(name).ok()?;
        self.catalog.resolve(name.schema.as_deref(), &name.name).ok()
    }

    fn named(&mut self, name: &ObjectName, mode: Mode) -> Option<&'a Table> {
        let table = self.table(name)?;
        self.add(table.id, mode);
        Some(table)
    }

    fn create_table(&mut self, create: &CreateTable) {
        let constraints = create.constraints.iter().filter_map(|constraint| match constraint {
            TableConstraint::ForeignKey(key) => Some(&key.foreign_table),
            _ => None,
        });
        let options = create.columns.iter().flat_map(|column| &column.options);
        let columns = options.filter_map(|option| match &option.option {
            ColumnOption::ForeignKey(key) => Some(&key.foreign_table),
            _ => None,
        });
        for parent in constraints.chain(columns) {
            self.named(parent, Mode::ShareRowExclusive);
        }
    }

    /// Tables on the other side of foreign keys that go are changed, too.
    fn drop_table(&mut self, name: &ObjectName, cascade: bool) {
        let Some(table) = self.named(name, Mode::AccessExclusive) else { return };
        self.parents(table);
        if cascade {
            self.children(table, None);
        }
    }

    fn parents(&mut self, table: &TableDescriptor) {
        table.foreign_keys.iter().for_each(|key| self.add(key.parent, Mode::AccessExclusive));
    }

    fn children(&mut self, table: &TableDescriptor, index: Option<u32>) {
        for (child, _, _) in foreign_key::on_table(self.catalog, table, index) {
            self.add(child.id, Mode::AccessExclusive);
        }
    }

    fn index(&mut self, name: &ObjectName) {
        let Ok(name) = RelationName::new(name) else { return };
        let here = |table: &&Table| {
            name.schema.as_ref().is_none_or(|schema| *schema == table.schema) && table.has_index(&name.name)
        };
        if let Some(table) = self.catalog.tables().find(here) {
            self.add(table.id, Mode::AccessExclusive);
        }
    }

    fn drawing_from(&mut self, name: &ObjectName) {
        let Ok(name) = RelationName::new(name) else { return };
        let Ok(sequence) = self.catalog.resolve_sequence(name.schema.as_deref(), &name.name) else { return };
        let draws = |table: &&Table| table.columns.iter().any(|column| column.sequence == Some(sequence.id));
        for table in self.catalog.tables().filter(draws) {
            self.add(table.id, Mode::AccessExclusive);
        }
    }

    fn truncate(&mut self, name: &ObjectName, cascade: bool) {
        let mut reached: Vec<&Table> = self.named(name, Mode::AccessExclusive).into_iter().collect();
        let mut at = 0;
        while let Some(table) = reached.get(at).copied().filter(|_| cascade) {
            at += 1;
            for child in table.referrers.iter().filter_map(|id| self.catalog.by_id(*id)) {
                if !reached.iter().any(|known| known.id == child.id) {
                    reached.push(child);
                    self.add(child.id, Mode::AccessExclusive);
                }
            }
        }
    }

    fn alter(&mut self, alter: &AlterTable) {
        let Some(table) = self.table(&alter.name) else { return };
        for operation in &alter.operations {
            match operation {
                AlterTableOperation::AddConstraint { constraint: TableConstraint::ForeignKey(key), .. } => {
                    self.add(table.id, Mode::ShareRowExclusive);
                    self.named(&key.foreign_table, Mode::ShareRowExclusive);
                }
                AlterTableOperation::ValidateConstraint { name } => {
                    self.add(table.id, Mode::ShareUpdateExclusive);
                    let name = folded(name);
                    let key = table.foreign_keys.iter().find(|key| key.name == name);
                    key.into_iter().for_each(|key| self.add(key.parent, Mode::RowShare));
                }
                AlterTableOperation::DropConstraint { name, drop_behavior, .. } => {
                    self.add(table.id, Mode::AccessExclusive);
                    self.drop_constraint(table, &folded(name), matches!(drop_behavior, Some(DropBehavior::Cascade)));
                }
                _ => self.add(table.id, Mode::AccessExclusive),
            }
        }
    }

    fn drop_constraint(&mut self, table: &TableDescriptor, name: &str, cascade: bool) {
        let key = table.foreign_keys.iter().find(|key| key.name == name);
        key.into_iter().for_each(|key| self.add(key.parent, Mode::AccessExclusive));
        let index = table.indexes.iter().find(|index| index.name == name);
        if let Some(index) = index.filter(|_| cascade) {
            self.children(table, Some(index.id));
        }
    }
}
