//! CREATE TABLE.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    CreateTable, CreateTableOptions, Expr, PrimaryKeyConstraint, SqlOption, Statement, TableConstraint,
};

use super::{
    Pending,
    check::{self, Said},
    column::{self, Definition, Draws},
    foreign_key,
    index::{self, Unique},
};
use crate::{
    catalog::{
        CatalogSnapshot, ColumnDescriptor, Sequence, SequenceDescriptor, TableDescriptor,
        descriptor::{MAX_COLUMNS, MAX_KEY_COLUMNS, ROW_ID_COLUMN},
        foreign_key::Deferral,
        sequence::Owner,
        store,
    },
    error::{Severity, SqlError, SqlResult, SqlState},
    gateway::Gateway,
    name::{RelationName, folded, quoted},
    query::catalog::oids,
    statement::sequence::SequenceOptions,
    types::PgType,
};

/// A notice for the client, when there is one.
pub type Notice = Option<SqlError>;

/// Creates a table in `pending`, with the sequences and indexes its definition asks for.
pub async fn create(gateway: &Arc<Gateway>, pending: &mut Pending, create: &CreateTable) -> SqlResult<Notice> {
    check_clauses(create)?;
    let name = RelationName::new(&create.name)?;
    let schema = name.creation_schema()?.to_owned();
    if pending.catalog.has_relation(&schema, &name.name) {
        let duplicate = store::duplicate_relation(&name.name);
        if !create.if_not_exists {
            return Err(duplicate);
        }
        let message = format!("{}, skipping", duplicate.message);
        return Ok(Some(SqlError::notice(Severity::Notice, SqlState::DUPLICATE_TABLE, message)));
    }
    let mut design = describe(create, schema, name.name)?;
    let references = std::mem::take(&mut design.references);
    let (mut table, sequences) = made(gateway.client(), &pending.catalog, design, references.len()).await?;
    add_references(&pending.catalog, &mut table, &references)?;
    foreign_key::link(pending, &table);
    pending.create(Arc::new(table));
    sequences.into_iter().for_each(|sequence| pending.create_sequence(sequence));
    Ok(None)
}

/// The constraints of a table whose id is known; the ids behind the table's own and those of what is made with it are theirs.
fn add_references(
    catalog: &CatalogSnapshot,
    table: &mut TableDescriptor,
    references: &[foreign_key::Said],
) -> SqlResult<()> {
    let used = table.checks.iter().map(|check| check.id).chain(table.indexes.iter().map(|index| index.id));
    let drawn = table.columns.iter().filter_map(|column| column.sequence);
    let mut id = used.chain(drawn).chain([table.id]).max().unwrap_or(table.id);
    for said in references {
        id += 1;
        let key = foreign_key::described(catalog, table, said, id, &[])?;
        if key.parent == table.id {
            table.referrers = vec![table.id];
        }
        table.foreign_keys.push(key);
    }
    Ok(())
}

/// The table of a design with its sequences, under new ids; `more` ids behind theirs are free.
async fn made(
    client: &kv::Client,
    catalog: &CatalogSnapshot,
    design: Design,
    more: usize,
) -> SqlResult<(TableDescriptor, Vec<Sequence>)> {
    let Design { mut table, draws, uniques, checks, .. } = design;
    let mut names = vec![table.name.clone()];
    names.extend(table.primary_key.clone());
    if let Some(taken) = names[1..].iter().find(|name| catalog.has_relation(&table.schema, name)) {
        return Err(store::duplicate_relation(taken));
    }
    let mut id = store::allocate_ids(client, 1 + (draws.len() + uniques.len() + checks.len() + more) as u32).await?;
    table.id = id;
    table.storage_id = id;
    let mut sequences = Vec::new();
    for (at, draws) in draws {
        let sequence = match draws {
            Draws::Named(name) => named_sequence(catalog, &name)?,
            Draws::New(options) => {
                id += 1;
                let sequence = owned_sequence(catalog, &table, at, &options, id, &names)?;
                names.push(sequence.name.clone());
                if table.columns[at].identity.is_none() {
                    table.columns[at].default = Some(format!("nextval('{}'::regclass)", quoted(&sequence.name)));
                }
                sequences.push(Arc::new(sequence));
                id
            }
        };
        table.columns[at].sequence = Some(sequence);
    }
    for unique in uniques {
        id += 1;
        let index = index::unique_index(catalog, &table, unique, id, &names)?;
        names.push(index.name.clone());
        table.indexes.push(index);
    }
    for said in checks {
        id += 1;
        let check = check::described(catalog, &table, said, id, &names)?;
        names.push(check.name.clone());
        table.checks.push(check);
    }
    table.checks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((table, sequences))
}

fn named_sequence(catalog: &CatalogSnapshot, name: &str) -> SqlResult<u32> {
    match oids::split_name(name).as_slice() {
        [name] => catalog.resolve_sequence(None, name).map(|sequence| sequence.id),
        [schema, name] => catalog.resolve_sequence(Some(schema), name).map(|sequence| sequence.id),
        _ => Err(SqlError::new(SqlState::INVALID_NAME, "invalid name syntax")),
    }
}

/// The sequence of a serial or identity column.
fn owned_sequence(
    catalog: &CatalogSnapshot,
    table: &TableDescriptor,
    at: usize,
    options: &SequenceOptions,
    id: u32,
    taken: &[String],
) -> SqlResult<SequenceDescriptor> {
    let column = &table.columns[at];
    let mut sequence = super::sequence::described(options, column.column_type.pg_type)?;
    sequence.schema.clone_from(&table.schema);
    sequence.name = catalog.free_name(&table.schema, [&table.name, &column.name], "seq", taken);
    (sequence.id, sequence.value_id) = (id, id);
    sequence.owner = Some(Owner { table: table.id, column: column.id });
    Ok(sequence)
}

/// The table that a CREATE TABLE describes, without ids.
pub fn described(statement: &Statement) -> SqlResult<TableDescriptor> {
    let Statement::CreateTable(create) = statement else { return Err(SqlError::internal("no CREATE TABLE")) };
    check_clauses(create)?;
    let name = RelationName::new(&create.name)?;
    describe(create, name.creation_schema()?.to_owned(), name.name).map(|design| design.table)
}

/// A table, and what is to be made with it.
struct Design {
    table: TableDescriptor,
    /// Positions of columns whose default is drawn from a sequence.
    draws: Vec<(usize, Draws)>,
    uniques: Vec<Unique>,
    checks: Vec<Said>,
    references: Vec<foreign_key::Said>,
}

fn check_clauses(create: &CreateTable) -> SqlResult<()> {
    let waits = [
        (create.temporary, "a temporary table"),
        (create.query.is_some(), "CREATE TABLE AS"),
        (create.like.is_some(), "CREATE TABLE LIKE"),
        (create.inherits.is_some(), "INHERITS"),
        (create.partition_by.is_some() || create.partition_of.is_some(), "a partitioned table"),
        (create.or_replace, "CREATE OR REPLACE TABLE"),
        (create.on_commit.is_some(), "ON COMMIT"),
        (create.external, "an external table"),
    ];
    if let Some((_, feature)) = waits.into_iter().find(|(said, _)| *said) {
        return Err(SqlError::unsupported(feature));
    }
    match &create.table_options {
        CreateTableOptions::None => Ok(()),
        CreateTableOptions::With(options) => options.iter().try_for_each(check_option),
        _ => Err(SqlError::unsupported("this table option")),
    }
}

/// Storage parameters of PostgreSQL's heap mean nothing here and are taken.
fn check_option(option: &SqlOption) -> SqlResult<()> {
    let SqlOption::KeyValue { key, .. } = option else { return Err(SqlError::unsupported("this table option")) };
    let name = folded(key);
    if name == "fillfactor" || name.starts_with("autovacuum_") || name.starts_with("toast") {
        return Ok(());
    }
    Err(SqlError::new(SqlState::INVALID_PARAMETER_VALUE, format!("unrecognized parameter \"{name}\"")))
}

fn describe(create: &CreateTable, schema: String, name: String) -> SqlResult<Design> {
    if create.columns.len() >= MAX_COLUMNS {
        return Err(SqlError::new(
            SqlState::TOO_MANY_COLUMNS,
            format!("tables can have at most {MAX_COLUMNS} columns"),
        ));
    }
    let mut columns: Vec<ColumnDescriptor> = Vec::with_capacity(create.columns.len() + 1);
    let mut key: Option<Key> = None;
    let (mut draws, mut uniques, mut checks) = (Vec::new(), Vec::new(), Vec::new());
    let mut references = Vec::new();
    for definition in &create.columns {
        let at = columns.len();
        let Definition { column, key: is_key, unique, checks: checked, references: referenced, draws: drawn } =
            column::read(definition, at as u32 + 1)?;
        if columns.iter().any(|known| known.name == column.name) {
            return Err(SqlError::new(
                SqlState::DUPLICATE_COLUMN,
                format!("column \"{}\" specified more than once", column.name),
            ));
        }
        columns.push(column);
        draws.extend(drawn.map(|drawn| (at, drawn)));
        checks.extend(checked);
        references.extend(referenced);
        let of_column = |unique: column::Unique| Unique {
            name: unique.name,
            columns: vec![at],
            nulls_distinct: unique.nulls_distinct,
            deferral: unique.deferral,
            primary: false,
        };
        uniques.extend(unique.into_iter().map(of_column));
        if let Some(said) = is_key {
            set_key(&mut key, &name, Key { name: said.name, columns: vec![at], deferral: said.deferral })?;
        }
    }
    for constraint in &create.constraints {
        match constraint {
            TableConstraint::PrimaryKey(primary) => {
                set_key(&mut key, &name, read_key(primary, &columns)?)?;
            }
            TableConstraint::Unique(unique) => uniques.push(index::read_unique(unique, &columns)?),
            TableConstraint::ForeignKey(key) => references.push(foreign_key::read(key, None, None)?),
            TableConstraint::Check(check) => {
                checks.push(Said { name: check.name.as_ref().map(folded), expr: (*check.expr).clone() });
            }
            _ => return Err(SqlError::unsupported("this table constraint")),
        }
    }
    let (primary_key, key, beside) = keyed_by(key, &name, &mut columns);
    uniques.splice(0..0, beside);
    let table = TableDescriptor { schema, primary_key, ..TableDescriptor::new(0, name, columns, key) };
    Ok(Design { table, draws, uniques, checks, references })
}

/// A PRIMARY KEY as it was said.
pub struct Key {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Positions of its columns.
    pub columns: Vec<usize>,
    /// When it is checked.
    pub deferral: Deferral,
}

impl Key {
    /// One that may be deferred is no key that rows can be kept by: an index.
    pub fn beside_rows(self) -> Result<Unique, Key> {
        let Key { name, columns, deferral } = self;
        match deferral {
            Deferral::Never => Err(Key { name, columns, deferral }),
            _ => Ok(Unique { name, columns, nulls_distinct: true, deferral, primary: true }),
        }
    }
}

/// Reads a table's PRIMARY KEY.
pub fn read_key(primary: &PrimaryKeyConstraint, columns: &[ColumnDescriptor]) -> SqlResult<Key> {
    Ok(Key {
        name: primary.name.as_ref().map(folded),
        columns: key_positions(primary, columns)?,
        deferral: foreign_key::deferral(primary.characteristics.as_ref())?,
    })
}

/// The primary key's name and columns, which get NOT NULL; or the hidden row id, which is added. Then maybe the primary key that is an
/// index beside it.
fn keyed_by(
    key: Option<Key>,
    table: &str,
    columns: &mut Vec<ColumnDescriptor>,
) -> (Option<String>, Vec<usize>, Option<Unique>) {
    key.iter().flat_map(|key| &key.columns).for_each(|at| columns[*at].nullable = false);
    match key.map(Key::beside_rows) {
        Some(Err(key)) => (Some(key.name.unwrap_or_else(|| format!("{table}_pkey"))), key.columns, None),
        other => {
            let id = columns.len() as u32 + 1;
            columns.push(row_id(id));
            (None, vec![columns.len() - 1], other.and_then(Result::ok))
        }
    }
}

fn set_key(key: &mut Option<Key>, table: &str, new: Key) -> SqlResult<()> {
    if key.is_some() {
        return Err(multiple_keys(table));
    }
    *key = Some(new);
    Ok(())
}

/// 42P16.
pub fn multiple_keys(table: &str) -> SqlError {
    SqlError::new(
        SqlState::INVALID_TABLE_DEFINITION,
        format!("multiple primary keys for table \"{table}\" are not allowed"),
    )
}

/// The hidden key of a table without one.
pub fn row_id(id: u32) -> ColumnDescriptor {
    let column = ColumnDescriptor::new(id, ROW_ID_COLUMN, PgType::Int8.plain());
    ColumnDescriptor { nullable: false, hidden: true, ..column }
}

/// Positions of a key's columns; 42703 for an unknown one, 42701 for one named twice, 54011 for too many.
fn key_positions(primary: &PrimaryKeyConstraint, columns: &[ColumnDescriptor]) -> SqlResult<Vec<usize>> {
    if primary.columns.len() > MAX_KEY_COLUMNS {
        return Err(SqlError::new(
            SqlState::TOO_MANY_COLUMNS,
            format!("cannot use more than {MAX_KEY_COLUMNS} columns in an index"),
        ));
    }
    let mut positions = Vec::with_capacity(primary.columns.len());
    for column in &primary.columns {
        let Expr::Identifier(name) = &column.column.expr else {
            return Err(SqlError::syntax("a primary key consists of columns"));
        };
        let name = folded(name);
        let at = columns.iter().position(|column| column.name == name && !column.hidden).ok_or_else(|| {
            SqlError::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" named in key does not exist"))
        })?;
        if positions.contains(&at) {
            return Err(SqlError::new(
                SqlState::DUPLICATE_COLUMN,
                format!("column \"{name}\" appears twice in primary key constraint"),
            ));
        }
        positions.push(at);
    }
    Ok(positions)
}
