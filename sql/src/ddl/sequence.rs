//! CREATE, ALTER and DROP SEQUENCE, and the sequences of serial and identity columns.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::ObjectName;
use kv::Client;

use super::Pending;
use crate::{
    catalog::{
        CatalogSnapshot, Sequence, SequenceDescriptor,
        sequence::{Options, Owner},
        store,
    },
    error::{Severity, SqlError, SqlResult, SqlState},
    name::{RelationName, folded},
    statement::sequence::{Action, SequenceOptions, SequenceStatement},
    types::PgType,
};

/// Runs the statement in `pending`; a notice when there is one.
pub async fn run(client: &Client, pending: &mut Pending, statement: &SequenceStatement) -> SqlResult<Option<SqlError>> {
    let name = RelationName::new(&statement.name)?;
    match statement.action {
        Action::Create => create(client, pending, &name, statement).await,
        Action::Alter => alter(client, pending, &name, statement).await,
    }
}

async fn create(
    client: &Client,
    pending: &mut Pending,
    name: &RelationName,
    statement: &SequenceStatement,
) -> SqlResult<Option<SqlError>> {
    let schema = name.creation_schema()?.to_owned();
    if pending.catalog.has_relation(&schema, &name.name) {
        let duplicate = store::duplicate_relation(&name.name);
        if !statement.lenient {
            return Err(duplicate);
        }
        let message = format!("{}, skipping", duplicate.message);
        return Ok(Some(SqlError::notice(Severity::Notice, SqlState::DUPLICATE_TABLE, message)));
    }
    let mut sequence = described(&statement.options, PgType::Int8)?;
    (sequence.schema, sequence.name) = (schema, name.name.clone());
    if let Some(Some(column)) = &statement.options.owner {
        sequence.owner = Some(owner(&pending.catalog, column, &sequence.schema)?);
    }
    sequence.id = store::allocate_ids(client, 1).await?;
    sequence.value_id = sequence.id;
    pending.create_sequence(Arc::new(sequence));
    Ok(None)
}

/// A sequence as options describe it, without ids and names. `pg_type` is what it has values of when they do not say.
pub fn described(options: &SequenceOptions, pg_type: PgType) -> SqlResult<SequenceDescriptor> {
    let pg_type = type_of(options)?.unwrap_or(pg_type);
    let increment = options.increment.unwrap_or(1);
    let (low, high) = limits(pg_type);
    let (min, max) = if increment < 0 { (low, -1) } else { (1, high) };
    let min = options.min.flatten().unwrap_or(min);
    let max = options.max.flatten().unwrap_or(max);
    let options = Options {
        start: options.start.unwrap_or(if increment < 0 { max } else { min }),
        increment,
        min,
        max,
        cache: options.cache.unwrap_or(1),
        cycle: options.cycle.unwrap_or(false),
    };
    check(options, options.start, pg_type)?;
    Ok(SequenceDescriptor {
        id: 0,
        value_id: 0,
        schema: String::new(),
        name: String::new(),
        version: 1,
        pg_type,
        first: options.start,
        options,
        owner: None,
        published: false,
    })
}

fn invalid(message: String) -> SqlError {
    SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

fn type_of(options: &SequenceOptions) -> SqlResult<Option<PgType>> {
    match options.column_type {
        None => Ok(None),
        Some(column_type) if column_type.pg_type.is_integer() => Ok(Some(column_type.pg_type)),
        Some(_) => Err(invalid("sequence type must be smallint, integer, or bigint".into())),
    }
}

fn limits(pg_type: PgType) -> (i64, i64) {
    match pg_type {
        PgType::Int2 => (i16::MIN.into(), i16::MAX.into()),
        PgType::Int4 => (i32::MIN.into(), i32::MAX.into()),
        _ => (i64::MIN, i64::MAX),
    }
}

/// 22023 for options that do not go together. `last` is where the sequence is to stand.
fn check(options: Options, last: i64, pg_type: PgType) -> SqlResult<()> {
    let Options { start, increment, min, max, cache, .. } = options;
    if increment == 0 {
        return Err(invalid("INCREMENT must not be zero".into()));
    }
    let (low, high) = limits(pg_type);
    for (name, value) in [("MAXVALUE", max), ("MINVALUE", min)] {
        if !(low..=high).contains(&value) {
            let type_name = pg_type.sql_name();
            return Err(invalid(format!("{name} ({value}) is out of range for sequence data type {type_name}")));
        }
    }
    if min >= max {
        return Err(invalid(format!("MINVALUE ({min}) must be less than MAXVALUE ({max})")));
    }
    for (name, value) in [("START", start), ("RESTART", last)] {
        if value < min {
            return Err(invalid(format!("{name} value ({value}) cannot be less than MINVALUE ({min})")));
        }
        if value > max {
            return Err(invalid(format!("{name} value ({value}) cannot be greater than MAXVALUE ({max})")));
        }
    }
    if cache < 1 {
        return Err(invalid(format!("CACHE ({cache}) must be greater than zero")));
    }
    Ok(())
}

/// The column OWNED BY names. It must be in the sequence's schema, which 55000 says.
fn owner(catalog: &CatalogSnapshot, name: &ObjectName, schema: &str) -> SqlResult<Owner> {
    let parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(folded).collect();
    let (in_schema, table, column) = match parts.as_slice() {
        [table, column] => (None, table, column),
        [schema, table, column] => (Some(schema.as_str()), table, column),
        _ => {
            return Err(SqlError::syntax("invalid OWNED BY option")
                .with_hint("Specify OWNED BY table.column or OWNED BY NONE."));
        }
    };
    let table = catalog.resolve(in_schema, table)?;
    let at = table.position(column).filter(|at| !table.columns[*at].hidden);
    let at = at.ok_or_else(|| {
        let message = format!("column \"{column}\" of relation \"{}\" does not exist", table.name);
        SqlError::new(SqlState::UNDEFINED_COLUMN, message)
    })?;
    if table.schema != schema {
        let message = "sequence must be in same schema as table it is linked to";
        return Err(SqlError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message));
    }
    Ok(Owner { table: table.id, column: table.columns[at].id })
}

async fn alter(
    client: &Client,
    pending: &mut Pending,
    name: &RelationName,
    statement: &SequenceStatement,
) -> SqlResult<Option<SqlError>> {
    let old = match pending.catalog.resolve_sequence(name.schema.as_deref(), &name.name) {
        Ok(sequence) => Arc::clone(sequence),
        Err(_) if statement.lenient => {
            let message = format!("relation \"{}\" does not exist, skipping", name.name);
            return Ok(Some(SqlError::notice(Severity::Notice, SqlState::SUCCESS, message)));
        }
        Err(error) => return Err(error),
    };
    let said = &statement.options;
    let mut new = altered(&old, said)?;
    if let Some(column) = &said.owner {
        if identity_of(&pending.catalog, &old).is_some() {
            let error = SqlError::unsupported("another owner for the sequence of an identity column");
            return Err(error);
        }
        new.owner = column.as_ref().map(|column| owner(&pending.catalog, column, &old.schema)).transpose()?;
    }
    let value = store::sequence_value(&client.begin().await?, &old).await?;
    match said.restart {
        Some(to) => restart(client, &mut new, to).await?,
        None => check(new.options, value.last, new.pg_type)?,
    }
    check(new.options, new.first, new.pg_type)?;
    pending.put_sequence(&old, Arc::new(new));
    Ok(None)
}

/// The sequence with what ALTER says; what it does not say stays.
fn altered(old: &SequenceDescriptor, said: &SequenceOptions) -> SqlResult<SequenceDescriptor> {
    let mut new = old.clone();
    new.version += 1;
    new.pg_type = type_of(said)?.unwrap_or(old.pg_type);
    let options = &mut new.options;
    options.increment = said.increment.unwrap_or(options.increment);
    let ((old_low, old_high), (low, high)) = (limits(old.pg_type), limits(new.pg_type));
    // A limit that was the type's goes with the type.
    let (min, max) = if options.increment < 0 { (low, -1) } else { (1, high) };
    let follows = new.pg_type != old.pg_type;
    options.min = match said.min {
        Some(said) => said.unwrap_or(min),
        None if follows && old.options.min == old_low => low,
        None => options.min,
    };
    options.max = match said.max {
        Some(said) => said.unwrap_or(max),
        None if follows && old.options.max == old_high => high,
        None => options.max,
    };
    options.start = said.start.unwrap_or(options.start);
    options.cache = said.cache.unwrap_or(options.cache);
    options.cycle = said.cycle.unwrap_or(options.cycle);
    Ok(new)
}

/// Makes it begin anew, at `to` or its START.
async fn restart(client: &Client, sequence: &mut SequenceDescriptor, to: Option<i64>) -> SqlResult<()> {
    sequence.first = to.unwrap_or(sequence.options.start);
    sequence.value_id = store::allocate_ids(client, 1).await?;
    Ok(())
}

/// TRUNCATE … RESTART IDENTITY: the sequences that columns of the table own.
pub async fn restart_owned(client: &Client, pending: &mut Pending, table: u32) -> SqlResult<()> {
    for old in pending.owned_sequences(table) {
        let mut new = (*old).clone();
        new.version += 1;
        restart(client, &mut new, None).await?;
        pending.put_sequence(&old, Arc::new(new));
    }
    Ok(())
}

/// The identity column that a sequence is of, as messages name it.
fn identity_of(catalog: &CatalogSnapshot, sequence: &SequenceDescriptor) -> Option<String> {
    let table = catalog.by_id(sequence.owner?.table)?;
    let mut columns = table.columns.iter();
    let column = columns.find(|column| column.identity.is_some() && column.sequence == Some(sequence.id))?;
    Some(format!("column {} of table {}", column.name, table.name))
}

/// DROP SEQUENCE in `pending`; notices for those that are missing under IF EXISTS, and for defaults that go with them.
pub fn drop_sequences(
    pending: &mut Pending,
    names: &[ObjectName],
    if_exists: bool,
    cascade: bool,
) -> SqlResult<Vec<SqlError>> {
    let mut notices = Vec::new();
    for name in names {
        let name = RelationName::new(name)?;
        let found = pending.catalog.resolve_sequence(name.schema.as_deref(), &name.name).cloned();
        let sequence = match found {
            Ok(sequence) => sequence,
            Err(error) if error.sqlstate != SqlState::UNDEFINED_TABLE => return Err(error),
            Err(_) if if_exists => {
                let message = format!("sequence \"{}\" does not exist, skipping", name.name);
                notices.push(SqlError::notice(Severity::Notice, SqlState::SUCCESS, message));
                continue;
            }
            Err(_) => {
                let message = format!("sequence \"{}\" does not exist", name.shown());
                return Err(SqlError::new(SqlState::UNDEFINED_TABLE, message));
            }
        };
        if let Some(column) = identity_of(&pending.catalog, &sequence) {
            let message = format!("cannot drop sequence {} because {column} requires it", sequence.name);
            return Err(SqlError::new(SqlState::DEPENDENT_OBJECTS_STILL_EXIST, message)
                .with_hint(format!("You can drop {column} instead.")));
        }
        drop_defaults(pending, &sequence, cascade, &mut notices)?;
        pending.drop_sequence(&sequence);
    }
    Ok(notices)
}

fn needed(sequence: &SequenceDescriptor, detail: String) -> SqlError {
    let message = format!("cannot drop sequence {} because other objects depend on it", sequence.name);
    SqlError::new(SqlState::DEPENDENT_OBJECTS_STILL_EXIST, message).with_detail(detail)
}

/// Defaults that draw from the sequence: they go with CASCADE, and are in the way without.
fn drop_defaults(
    pending: &mut Pending,
    sequence: &Sequence,
    cascade: bool,
    notices: &mut Vec<SqlError>,
) -> SqlResult<()> {
    let draws = |table: &&crate::catalog::Table| table.columns.iter().any(|c| c.sequence == Some(sequence.id));
    let tables: Vec<_> = pending.catalog.tables().filter(draws).cloned().collect();
    for table in tables {
        let mut new = (*table).clone();
        new.version += 1;
        for column in new.columns.iter_mut().filter(|column| column.sequence == Some(sequence.id)) {
            let what = format!("default value for column {} of table {}", column.name, table.name);
            if !cascade {
                return Err(needed(sequence, format!("{what} depends on sequence {}", sequence.name))
                    .with_hint("Use DROP ... CASCADE to drop the dependent objects too."));
            }
            notices.push(SqlError::notice(Severity::Notice, SqlState::SUCCESS, format!("drop cascades to {what}")));
            (column.sequence, column.default) = (None, None);
        }
        pending.put(Arc::new(new));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::{Command, parse_one};

    fn options(sql: &str) -> SequenceOptions {
        match parse_one(sql).unwrap() {
            Command::Sequence(statement) => statement.options.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn limits_are_postgresqls() {
        let make = |sql: &str| described(&options(sql), PgType::Int8);
        let down = make("create sequence s as smallint increment -3").unwrap();
        assert_eq!((down.options.min, down.options.max, down.first), (-32768, -1, -1));
        for (sql, message) in [
            ("create sequence s increment 0", "INCREMENT must not be zero"),
            ("create sequence s minvalue 5 maxvalue 5", "MINVALUE (5) must be less than MAXVALUE (5)"),
            ("create sequence s start 0", "START value (0) cannot be less than MINVALUE (1)"),
            ("create sequence s cache 0", "CACHE (0) must be greater than zero"),
            (
                "create sequence s as int2 maxvalue 99999",
                "MAXVALUE (99999) is out of range for sequence data type smallint",
            ),
            ("create sequence s as text", "sequence type must be smallint, integer, or bigint"),
        ] {
            let error = make(sql).expect_err(sql);
            assert_eq!((error.sqlstate, &*error.message), (SqlState::INVALID_PARAMETER_VALUE, message));
        }
        let big = make("create sequence s").unwrap();
        let small = altered(&big, &options("alter sequence s as integer")).unwrap();
        assert_eq!((small.options.min, small.options.max), (1, i32::MAX.into()));
    }
}
