//! What DataFusion reports, in PostgreSQL's words.
//!
//! Our own functions fail with a [`SqlError`] inside [`DataFusionError::External`]; it comes out unchanged.
//! For the rest the kind of DataFusion's error decides the SQLSTATE. A message that DataFusion wrote for its
//! developers ("Internal error … please file a bug") reaches the client as XX000 with its text, since that is
//! what a person needs to report it.

use arrow::error::ArrowError;
use datafusion::{
    common::{DataFusionError, SchemaError, TableReference},
    sql::sqlparser::parser::ParserError,
};

use crate::error::{SqlError, SqlState};

/// Lets our functions fail inside DataFusion.
pub fn external(error: SqlError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// An error of planning or running, for the client.
pub fn from_datafusion(error: DataFusionError) -> SqlError {
    match error {
        DataFusionError::External(inner) => match inner.downcast::<SqlError>() {
            Ok(error) => *error,
            Err(inner) => match inner.downcast::<DataFusionError>() {
                Ok(error) => from_datafusion(*error),
                Err(inner) => SqlError::internal(inner.to_string()),
            },
        },
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => from_datafusion(*inner),
        DataFusionError::Collection(mut errors) if !errors.is_empty() => from_datafusion(errors.swap_remove(0)),
        DataFusionError::Shared(shared) => from_shared(&shared),
        DataFusionError::ArrowError(arrow, _) => from_arrow(*arrow),
        DataFusionError::SchemaError(schema, _) => from_schema(*schema),
        DataFusionError::SQL(parser, _) => from_parser(*parser),
        DataFusionError::NotImplemented(what) => SqlError::new(SqlState::FEATURE_NOT_SUPPORTED, what),
        DataFusionError::Plan(message) => from_plan_message(message),
        DataFusionError::ResourcesExhausted(what) => SqlError::new(SqlState::OUT_OF_MEMORY, "out of memory")
            .with_detail(what)
            .with_hint("The query needs more memory than a query may use; read less at a time."),
        DataFusionError::Execution(message) => from_execution_message(message),
        other => SqlError::internal(other.strip_backtrace()),
    }
}

/// An error that several partitions share can't be taken apart: what is ours is cloned.
fn from_shared(shared: &DataFusionError) -> SqlError {
    match shared {
        DataFusionError::External(inner) => match inner.downcast_ref::<SqlError>() {
            Some(error) => error.clone(),
            None => match inner.downcast_ref::<DataFusionError>() {
                Some(error) => from_shared(error),
                None => SqlError::internal(inner.to_string()),
            },
        },
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => from_shared(inner),
        DataFusionError::Shared(inner) => from_shared(inner),
        DataFusionError::ArrowError(arrow, _) => match arrow.as_ref() {
            ArrowError::DivideByZero => SqlError::division_by_zero(),
            ArrowError::ArithmeticOverflow(_) => SqlError::out_of_range("value"),
            other => SqlError::internal(other.to_string()),
        },
        DataFusionError::Execution(message) => from_execution_message(message.clone()),
        other => SqlError::internal(other.strip_backtrace()),
    }
}

fn from_arrow(error: ArrowError) -> SqlError {
    match error {
        ArrowError::DivideByZero => SqlError::division_by_zero(),
        ArrowError::ArithmeticOverflow(_) => SqlError::out_of_range("value"),
        ArrowError::ExternalError(inner) => from_datafusion(DataFusionError::External(inner)),
        ArrowError::CastError(message) => SqlError::new(SqlState::INVALID_TEXT_REPRESENTATION, message),
        other => SqlError::internal(other.to_string()),
    }
}

fn from_schema(error: SchemaError) -> SqlError {
    match error {
        SchemaError::AmbiguousReference { field } => {
            SqlError::new(SqlState::AMBIGUOUS_COLUMN, format!("column reference \"{}\" is ambiguous", field.name))
        }
        SchemaError::FieldNotFound { field, valid_fields } => {
            let missing_table = field.relation.as_ref().filter(|relation| {
                !valid_fields
                    .iter()
                    .any(|valid| valid.relation.as_ref().is_some_and(|known| known.table() == relation.table()))
            });
            match (missing_table, &field.relation) {
                (Some(relation), _) => SqlError::new(
                    SqlState::UNDEFINED_TABLE,
                    format!("missing FROM-clause entry for table \"{}\"", relation.table()),
                ),
                (None, Some(relation)) => SqlError::new(
                    SqlState::UNDEFINED_COLUMN,
                    format!("column {}.{} does not exist", relation.table(), field.name),
                ),
                (None, None) => {
                    SqlError::new(SqlState::UNDEFINED_COLUMN, format!("column \"{}\" does not exist", field.name))
                }
            }
        }
        SchemaError::DuplicateQualifiedField { qualifier, .. } => duplicate_alias(qualifier.table()),
        SchemaError::DuplicateUnqualifiedField { name } => {
            SqlError::new(SqlState::DUPLICATE_COLUMN, format!("column \"{name}\" specified more than once"))
        }
    }
}

fn duplicate_alias(table: &str) -> SqlError {
    SqlError::new(SqlState("42712"), format!("table name \"{table}\" specified more than once"))
}

fn from_parser(error: ParserError) -> SqlError {
    match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => SqlError::syntax(message),
        ParserError::RecursionLimitExceeded => SqlError::too_complex(),
    }
}

/// Planner messages carry no kind; PostgreSQL's SQLSTATEs are found by what they say.
fn from_plan_message(message: String) -> SqlError {
    let has = |part: &str| message.contains(part);
    if has("non-boolean predicate") {
        return SqlError::new(SqlState::DATATYPE_MISMATCH, "argument of WHERE must be type boolean")
            .with_detail(message);
    }
    if let Some(name) = message.strip_prefix("Invalid function '").and_then(|rest| rest.split('\'').next()) {
        return match name {
            "to_char" | "to_date" | "to_timestamp" | "to_number" => SqlError::unsupported(format!("{name}()")),
            name => SqlError::new(SqlState::UNDEFINED_FUNCTION, format!("function {name} does not exist")).with_hint(
                "No function matches the given name and argument types. You might need to add explicit type casts.",
            ),
        };
    }
    let state = if has("must be in the GROUP BY clause")
        || has("could not be resolved from available columns")
        || has("must appear in the GROUP BY clause")
        || has("HAVING clause references")
        || has("Aggregate functions are not allowed")
    {
        SqlState::GROUPING_ERROR
    } else if has("requires a boolean expression") {
        SqlState::DATATYPE_MISMATCH
    } else if has("Unary operator")
        || has("Invalid function")
        || has("No function matches")
        || has("does not support zero arguments")
    {
        SqlState::UNDEFINED_FUNCTION
    } else if has("Placeholder type") {
        SqlState::INDETERMINATE_DATATYPE
    } else if has("Cannot infer common argument type") || has("type_coercion") || has("coerce") {
        SqlState::DATATYPE_MISMATCH
    } else {
        SqlState::SYNTAX_ERROR
    };
    SqlError::new(state, message)
}

fn from_execution_message(message: String) -> SqlError {
    if message.contains("more than one row") {
        return SqlError::new(
            SqlState::CARDINALITY_VIOLATION,
            "more than one row returned by a subquery used as an expression",
        );
    }
    SqlError::internal(message)
}

/// 42P01 for a table that no catalog knows, with the name as the statement wrote it.
pub fn undefined_table(name: &TableReference) -> SqlError {
    match name.schema() {
        Some(schema) => {
            SqlError::new(SqlState::UNDEFINED_TABLE, format!("relation \"{schema}.{}\" does not exist", name.table()))
        }
        None => SqlError::undefined_table(name.table()),
    }
}
