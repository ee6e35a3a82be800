//! CREATE TABLE.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    ColumnDef, ColumnOption, CreateTable, CreateTableOptions, Expr, Ident, PrimaryKeyConstraint, SqlOption, Statement,
    TableConstraint,
};

use super::{Pending, default};
use crate::{
    catalog::{
        ColumnDescriptor, TableDescriptor,
        descriptor::{MAX_COLUMNS, MAX_KEY_COLUMNS, ROW_ID_COLUMN},
        store,
    },
    error::{Severity, SqlError, SqlResult, SqlState},
    name::{RelationName, folded},
    query::bind::type_names,
    types::{PgType, TypeRow},
};

/// A notice for the client, when there is one.
pub type Notice = Option<SqlError>;

/// Creates a table in `pending`.
pub async fn create(client: &kv::Client, pending: &mut Pending, create: &CreateTable) -> SqlResult<Notice> {
    check_clauses(create)?;
    let name = RelationName::new(&create.name)?;
    let schema = name.creation_schema()?.to_owned();
    if let Some(existing) = pending.catalog.table(&schema, &name.name) {
        let duplicate = store::duplicate_table(existing);
        if !create.if_not_exists {
            return Err(duplicate);
        }
        let message = format!("{}, skipping", duplicate.message);
        return Ok(Some(SqlError::notice(Severity::Notice, SqlState::DUPLICATE_TABLE, message)));
    }
    let mut table = describe(create, schema, name.name)?;
    let id = store::allocate_ids(client, 1).await?;
    table.id = id;
    table.storage_id = id;
    pending.create(Arc::new(table));
    Ok(None)
}

/// The table that a CREATE TABLE describes, without ids.
pub fn described(statement: &Statement) -> SqlResult<TableDescriptor> {
    let Statement::CreateTable(create) = statement else { return Err(SqlError::internal("no CREATE TABLE")) };
    check_clauses(create)?;
    let name = RelationName::new(&create.name)?;
    describe(create, name.creation_schema()?.to_owned(), name.name)
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

fn describe(create: &CreateTable, schema: String, name: String) -> SqlResult<TableDescriptor> {
    if create.columns.len() >= MAX_COLUMNS {
        return Err(SqlError::new(
            SqlState::TOO_MANY_COLUMNS,
            format!("tables can have at most {MAX_COLUMNS} columns"),
        ));
    }
    let mut columns: Vec<ColumnDescriptor> = Vec::with_capacity(create.columns.len() + 1);
    let mut key: Option<(Option<String>, Vec<usize>)> = None;
    for definition in &create.columns {
        let at = columns.len();
        let (column, is_key) = column(definition, at as u32 + 1)?;
        if columns.iter().any(|known| known.name == column.name) {
            return Err(SqlError::new(
                SqlState::DUPLICATE_COLUMN,
                format!("column \"{}\" specified more than once", column.name),
            ));
        }
        columns.push(column);
        if let Some(constraint) = is_key {
            set_key(&mut key, &name, (constraint, vec![at]))?;
        }
    }
    for constraint in &create.constraints {
        match constraint {
            TableConstraint::PrimaryKey(primary) => {
                let named = primary.name.as_ref().map(folded);
                let positions = key_positions(primary, &columns)?;
                set_key(&mut key, &name, (named, positions))?;
            }
            TableConstraint::Unique(_) => return Err(SqlError::unsupported("a UNIQUE constraint")),
            TableConstraint::ForeignKey(_) => return Err(SqlError::unsupported("a FOREIGN KEY constraint")),
            TableConstraint::Check(_) => return Err(SqlError::unsupported("a CHECK constraint")),
            _ => return Err(SqlError::unsupported("this table constraint")),
        }
    }
    let (primary_key, key) = match key {
        Some((constraint, key)) => {
            key.iter().for_each(|at| columns[*at].nullable = false);
            (Some(constraint.unwrap_or_else(|| format!("{name}_pkey"))), key)
        }
        None => {
            let id = columns.len() as u32 + 1;
            columns.push(row_id(id));
            (None, vec![columns.len() - 1])
        }
    };
    let next_column_id = columns.len() as u32 + 1;
    Ok(TableDescriptor {
        id: 0,
        storage_id: 0,
        schema,
        name,
        version: 1,
        columns,
        key,
        primary_key,
        next_column_id,
        writes_fenced_until: 0,
    })
}

fn set_key(
    key: &mut Option<(Option<String>, Vec<usize>)>,
    table: &str,
    new: (Option<String>, Vec<usize>),
) -> SqlResult<()> {
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
    ColumnDescriptor {
        id,
        name: ROW_ID_COLUMN.to_owned(),
        column_type: PgType::Int8.plain(),
        nullable: false,
        default: None,
        hidden: true,
    }
}

/// Positions of a key's columns; 42703 for an unknown one, 42701 for one named twice, 54011 for too many.
pub fn key_positions(primary: &PrimaryKeyConstraint, columns: &[ColumnDescriptor]) -> SqlResult<Vec<usize>> {
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

/// A column, and the constraint's name if it is the primary key.
fn column(definition: &ColumnDef, id: u32) -> SqlResult<(ColumnDescriptor, Option<Option<String>>)> {
    let name = folded(&definition.name);
    if name == ROW_ID_COLUMN {
        return Err(SqlError::new(SqlState::RESERVED_NAME, format!("column name \"{name}\" is reserved")));
    }
    check_serial(definition)?;
    let column_type = type_names::column_type(&definition.data_type)?;
    storable(column_type.pg_type.row())?;
    if column_type.pg_type == PgType::Numeric && column_type.precision_scale().is_none() {
        return Err(SqlError::unsupported("a numeric column without precision")
            .with_hint("Write numeric(p, s), with p up to 38."));
    }
    let mut column = ColumnDescriptor { id, name, column_type, nullable: true, default: None, hidden: false };
    let mut key = None;
    for option in &definition.options {
        let named = || option.name.as_ref().map(|name: &Ident| folded(name));
        match &option.option {
            ColumnOption::Null => {}
            ColumnOption::NotNull => column.nullable = false,
            ColumnOption::Default(expr) => {
                default::compile_expr(expr, &column)?;
                column.default = Some(expr.to_string());
            }
            ColumnOption::PrimaryKey(_) => key = Some(named()),
            ColumnOption::Unique(_) => return Err(SqlError::unsupported("a UNIQUE constraint")),
            ColumnOption::ForeignKey(_) => return Err(SqlError::unsupported("a FOREIGN KEY constraint")),
            ColumnOption::Check(_) => return Err(SqlError::unsupported("a CHECK constraint")),
            ColumnOption::Generated { .. } | ColumnOption::Identity(_) => {
                return Err(SqlError::unsupported("a generated or identity column"));
            }
            other => return Err(SqlError::unsupported(format!("the column option {other}"))),
        }
    }
    Ok((column, key))
}

fn check_serial(definition: &ColumnDef) -> SqlResult<()> {
    let name = definition.data_type.to_string().to_lowercase();
    if matches!(name.as_str(), "serial" | "bigserial" | "smallserial" | "serial4" | "serial8" | "serial2") {
        return Err(SqlError::unsupported(format!("type {name}")));
    }
    Ok(())
}

fn storable(row: &TypeRow) -> SqlResult<()> {
    match row.pg_type {
        PgType::Unknown | PgType::Void => Err(SqlError::new(
            SqlState::INVALID_TABLE_DEFINITION,
            format!("a column cannot have pseudo-type {}", row.name),
        )),
        PgType::Regclass | PgType::Regtype | PgType::Char => {
            Err(SqlError::unsupported(format!("a column of type {}", row.name)))
        }
        _ => Ok(()),
    }
}
