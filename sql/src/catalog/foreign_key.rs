//! FOREIGN KEY constraints in descriptors. PURE.
//!
//! ```text
//!   child (table with the constraint)        parent (table it references)
//!     foreign_keys: [ … ] ───── parent id ─►   referrers: [ child id, … ]
//! ```
//!
//! Both descriptors change when a constraint comes or goes, so that statements on either are planned anew.

use prost::Message;

use super::descriptor::TableDescriptor;
use crate::{
    error::{SqlError, SqlResult, SqlState},
    name::quoted,
};

/// A FOREIGN KEY constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKeyDescriptor {
    /// Its oid in `pg_constraint`.
    pub id: u32,
    /// Name.
    pub name: String,
    /// Positions of its columns in its own table.
    pub columns: Vec<usize>,
    /// The table it references; its own for a reference to itself.
    pub parent: u32,
    /// Positions in the parent of the columns they reference, in the order of `columns`.
    pub referenced: Vec<usize>,
    /// The parent's index that makes those unique: [`super::descriptor::PRIMARY_INDEX`] or a secondary one.
    pub index: u32,
    /// MATCH FULL: all columns are NULL or none.
    pub match_full: bool,
    /// When a referenced key changes.
    pub on_update: Action,
    /// When a referenced row goes.
    pub on_delete: Action,
    /// When it is checked.
    pub deferral: Deferral,
    /// The rows that were there when it came keep it, too.
    pub validated: bool,
}

/// What becomes of rows whose parent goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// They must be gone, or have another parent, when the constraint is checked.
    #[default]
    NoAction,
    /// There must be none.
    Restrict,
    /// They go or change with it.
    Cascade,
    /// Their columns become NULL.
    SetNull,
    /// Their columns become what DEFAULT says.
    SetDefault,
}

const ACTIONS: [(Action, &str, &str); 5] = [
    (Action::NoAction, "NO ACTION", "a"),
    (Action::Restrict, "RESTRICT", "r"),
    (Action::Cascade, "CASCADE", "c"),
    (Action::SetNull, "SET NULL", "n"),
    (Action::SetDefault, "SET DEFAULT", "d"),
];

impl Action {
    fn number(self) -> usize {
        ACTIONS.iter().position(|(action, _, _)| *action == self).unwrap_or_default()
    }
    /// As SQL says it.
    pub fn words(self) -> &'static str {
        ACTIONS[self.number()].1
    }
    /// As `pg_constraint` says it.
    pub fn letter(self) -> &'static str {
        ACTIONS[self.number()].2
    }
}

/// When a constraint, of whatever kind, is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deferral {
    /// At the end of each statement, always.
    #[default]
    Never,
    /// At the end of each statement, unless SET CONSTRAINTS says otherwise.
    Immediate,
    /// At COMMIT, unless SET CONSTRAINTS says otherwise.
    Deferred,
}

impl Deferral {
    /// What follows in a constraint's definition.
    pub fn words(self) -> &'static str {
        match self {
            Deferral::Never => "",
            Deferral::Immediate => " DEFERRABLE",
            Deferral::Deferred => " DEFERRABLE INITIALLY DEFERRED",
        }
    }
    pub(super) fn number(self) -> u32 {
        DEFERRALS.iter().position(|known| *known == self).unwrap_or_default() as u32
    }
    /// The reverse; `None` for what no build writes.
    pub(super) fn numbered(number: u32) -> Option<Self> {
        DEFERRALS.get(number as usize).copied()
    }
}

impl ForeignKeyDescriptor {
    /// SET CONSTRAINTS may say when it is checked.
    pub fn is_deferrable(&self) -> bool {
        self.deferral != Deferral::Never
    }

    /// What `pg_get_constraintdef` says of a constraint of `child` on `parent`.
    pub fn definition(&self, child: &TableDescriptor, parent: &TableDescriptor) -> String {
        let mut text = format!(
            "FOREIGN KEY ({}) REFERENCES {}({})",
            names(child, &self.columns),
            quoted(&parent.name),
            names(parent, &self.referenced)
        );
        if self.match_full {
            text.push_str(" MATCH FULL");
        }
        for (event, action) in [("UPDATE", self.on_update), ("DELETE", self.on_delete)] {
            if action != Action::NoAction {
                text.push_str(&format!(" ON {event} {}", action.words()));
            }
        }
        text.push_str(self.deferral.words());
        if !self.validated {
            text.push_str(" NOT VALID");
        }
        text
    }
}

/// Columns' names, separated by commas.
pub fn names(table: &TableDescriptor, columns: &[usize]) -> String {
    columns.iter().map(|at| quoted(&table.columns[*at].name)).collect::<Vec<_>>().join(", ")
}

/// The bytes of a [`ForeignKeyDescriptor`], within those of its table.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ForeignKeyRecord {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint32, repeated, tag = "3")]
    columns: Vec<u32>,
    #[prost(uint32, tag = "4")]
    parent: u32,
    #[prost(uint32, repeated, tag = "5")]
    referenced: Vec<u32>,
    #[prost(uint32, tag = "6")]
    index: u32,
    #[prost(bool, tag = "7")]
    match_full: bool,
    #[prost(uint32, tag = "8")]
    on_update: u32,
    #[prost(uint32, tag = "9")]
    on_delete: u32,
    #[prost(uint32, tag = "10")]
    deferral: u32,
    #[prost(bool, tag = "11")]
    validated: bool,
}

const DEFERRALS: [Deferral; 3] = [Deferral::Never, Deferral::Immediate, Deferral::Deferred];

impl From<&ForeignKeyDescriptor> for ForeignKeyRecord {
    fn from(key: &ForeignKeyDescriptor) -> Self {
        let numbers = |positions: &[usize]| positions.iter().map(|at| *at as u32).collect();
        ForeignKeyRecord {
            id: key.id,
            name: key.name.clone(),
            columns: numbers(&key.columns),
            parent: key.parent,
            referenced: numbers(&key.referenced),
            index: key.index,
            match_full: key.match_full,
            on_update: key.on_update.number() as u32,
            on_delete: key.on_delete.number() as u32,
            deferral: key.deferral.number(),
            validated: key.validated,
        }
    }
}

impl ForeignKeyRecord {
    /// Of a table with so many columns; XX001 for what was written by no build.
    pub(super) fn decoded(self, columns: usize) -> SqlResult<ForeignKeyDescriptor> {
        let corrupt = || SqlError::new(SqlState::DATA_CORRUPTED, "a foreign key's descriptor does not decode");
        let unknown = self.columns.iter().any(|at| *at as usize >= columns);
        if self.columns.is_empty() || self.columns.len() != self.referenced.len() || unknown {
            return Err(corrupt());
        }
        let action = |number: u32| ACTIONS.get(number as usize).map(|(action, _, _)| *action).ok_or_else(corrupt);
        Ok(ForeignKeyDescriptor {
            id: self.id,
            name: self.name,
            columns: self.columns.into_iter().map(|at| at as usize).collect(),
            parent: self.parent,
            referenced: self.referenced.into_iter().map(|at| at as usize).collect(),
            index: self.index,
            match_full: self.match_full,
            on_update: action(self.on_update)?,
            on_delete: action(self.on_delete)?,
            deferral: Deferral::numbered(self.deferral).ok_or_else(corrupt)?,
            validated: self.validated,
        })
    }
}
