//! What the catalog knows about a table.

use std::sync::Arc;

use proto::KeyRange;

use super::foreign_key::{Deferral, ForeignKeyDescriptor};
use crate::types::ColumnType;

/// Most columns of a table, as in PostgreSQL.
pub const MAX_COLUMNS: usize = 1600;
/// Most columns of a primary key, as in PostgreSQL.
pub const MAX_KEY_COLUMNS: usize = 32;
/// The index that holds a table's rows.
pub const PRIMARY_INDEX: u32 = 0;
/// Name of the hidden row id of a table without a primary key.
pub const ROW_ID_COLUMN: &str = "flaredb_rowid";
/// The schema of user tables.
pub const PUBLIC_SCHEMA: &str = "public";

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnDescriptor {
    /// Never reused in its table; from 1. Rows name their values by it, and it is `attnum`.
    pub id: u32,
    /// Name.
    pub name: String,
    /// Type with modifier.
    pub column_type: ColumnType,
    /// NULL is allowed.
    pub nullable: bool,
    /// DEFAULT: an SQL expression, as text.
    pub default: Option<String>,
    /// Not part of `*` and of INSERT's column list: the row id.
    pub hidden: bool,
    /// The id of the sequence whose next value it is by default: serial, identity, or written so.
    pub sequence: Option<u32>,
    /// GENERATED … AS IDENTITY.
    pub identity: Option<Identity>,
}

/// Who says what is in an identity column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The sequence.
    Always,
    /// The sequence, unless a statement does.
    ByDefault,
}

impl ColumnDescriptor {
    /// A column that may be NULL, without a default.
    pub fn new(id: u32, name: impl Into<String>, column_type: ColumnType) -> Self {
        ColumnDescriptor {
            id,
            name: name.into(),
            column_type,
            nullable: true,
            default: None,
            hidden: false,
            sequence: None,
            identity: None,
        }
    }
}

/// A table. Everyone holds it as `Arc`; it never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDescriptor {
    /// Its identity, and its oid in `pg_class`. Stays for the table's life.
    pub id: u32,
    /// The table id in its keys. TRUNCATE and ADD PRIMARY KEY give it a new one.
    pub storage_id: u32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Counts changes of this descriptor, from 1.
    pub version: u64,
    /// In the order of `*`.
    pub columns: Vec<ColumnDescriptor>,
    /// Positions in `columns` of the key's columns: the primary key's, or the hidden row id's.
    pub key: Vec<usize>,
    /// Name of the primary key constraint; `None` when the key is the row id, also beside one that may be deferred.
    pub primary_key: Option<String>,
    /// Id of the next column.
    pub next_column_id: u32,
    /// Secondary indexes.
    pub indexes: Vec<IndexDescriptor>,
    /// CHECK constraints, by name.
    pub checks: Vec<CheckDescriptor>,
    /// FOREIGN KEY constraints of this table, in the order in which they came.
    pub foreign_keys: Vec<ForeignKeyDescriptor>,
    /// Ids of tables with a FOREIGN KEY that references this one; itself if it does.
    pub referrers: Vec<u32>,
}

/// A CHECK constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckDescriptor {
    /// Its oid in `pg_constraint`.
    pub id: u32,
    /// Name.
    pub name: String,
    /// What must not be false: an SQL expression over the table's columns, as text.
    pub expr: String,
}

/// A secondary index. Its entries lie beside the table's rows, under the table's storage id and its own id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexDescriptor {
    /// Its identity, its oid in `pg_class`, and the index id in its keys.
    pub id: u32,
    /// Name; of the constraint too, if it is one.
    pub name: String,
    /// What it is ordered by.
    pub columns: Vec<IndexColumn>,
    /// No two rows have the same values.
    pub unique: bool,
    /// Rows with a NULL are never the same.
    pub nulls_distinct: bool,
    /// Made by a UNIQUE constraint, or a PRIMARY KEY.
    pub constraint: bool,
    /// Made by a PRIMARY KEY that may be deferred. Its table is kept by the row id: two rows may have the key for a while.
    pub primary: bool,
    /// When its constraint is checked. If that may be put off its entries are as those of an index that is not unique.
    pub deferral: Deferral,
    /// Complete. Until then it is written, and nobody reads it.
    pub public: bool,
}

impl IndexDescriptor {
    /// Its constraint is checked when a statement or the transaction ends: until then rows may have the same values.
    pub fn is_deferrable(&self) -> bool {
        self.unique && self.deferral != Deferral::Never
    }
    /// No two rows have the same values, at no moment.
    pub fn is_strict(&self) -> bool {
        self.unique && self.deferral == Deferral::Never
    }
}

/// A column of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexColumn {
    /// Position in the table's columns.
    pub at: usize,
    /// Greatest first.
    pub descending: bool,
    /// NULLs before all values.
    pub nulls_first: bool,
}

impl TableDescriptor {
    /// Version 1 of a table in `public` that is stored under its id: these columns, of which those at the positions `key` are its
    /// key, without constraints and indexes.
    pub fn new(id: u32, name: impl Into<String>, columns: Vec<ColumnDescriptor>, key: Vec<usize>) -> TableDescriptor {
        TableDescriptor {
            id,
            storage_id: id,
            schema: PUBLIC_SCHEMA.into(),
            name: name.into(),
            version: 1,
            next_column_id: columns.len() as u32 + 1,
            columns,
            key,
            primary_key: None,
            indexes: Vec::new(),
            checks: Vec::new(),
            foreign_keys: Vec::new(),
            referrers: Vec::new(),
        }
    }
    /// The keys of its rows.
    pub fn rows(&self) -> KeyRange {
        proto::keyspace::index_range(proto::keyspace::SQL_KEYSPACE, self.storage_id, PRIMARY_INDEX)
    }
    /// Position of a column by name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
    /// The columns `*` stands for, with their positions.
    pub fn visible(&self) -> impl Iterator<Item = (usize, &ColumnDescriptor)> {
        self.columns.iter().enumerate().filter(|(_, column)| !column.hidden)
    }
    /// The hidden row id's position, for a table without a primary key.
    pub fn row_id(&self) -> Option<usize> {
        self.columns.iter().position(|column| column.hidden)
    }
    /// It has a primary key, whatever its rows are kept by.
    pub fn has_primary_key(&self) -> bool {
        self.primary_key.is_some() || self.deferrable_key().is_some()
    }
    /// The primary key that may be deferred.
    pub fn deferrable_key(&self) -> Option<&IndexDescriptor> {
        self.indexes.iter().find(|index| index.primary)
    }
    /// Rows that come are looked at when a statement or the transaction ends.
    pub fn checks_new_rows(&self) -> bool {
        !self.foreign_keys.is_empty() || self.indexes.iter().any(IndexDescriptor::is_deferrable)
    }
    /// It has an index of that name; the primary key's counts.
    pub fn has_index(&self, name: &str) -> bool {
        self.primary_key.as_deref() == Some(name) || self.indexes.iter().any(|index| index.name == name)
    }
    /// It has a foreign key, or another table has one that references it.
    pub fn is_linked(&self) -> bool {
        !self.foreign_keys.is_empty() || !self.referrers.is_empty()
    }
    /// It has a constraint of that name.
    pub fn has_constraint(&self, name: &str) -> bool {
        self.primary_key.as_deref() == Some(name)
            || self.indexes.iter().any(|index| index.constraint && index.name == name)
            || self.checks.iter().any(|check| check.name == name)
            || self.foreign_keys.iter().any(|key| key.name == name)
    }
    /// The secondary indexes that may be read.
    pub fn public_indexes(&self) -> impl Iterator<Item = &IndexDescriptor> {
        self.indexes.iter().filter(|index| index.public)
    }
    /// `schema.name`, or the name alone in `public`.
    pub fn shown_name(&self) -> String {
        if self.schema == PUBLIC_SCHEMA { self.name.clone() } else { format!("{}.{}", self.schema, self.name) }
    }
}

/// A shared descriptor.
pub type Table = Arc<TableDescriptor>;
