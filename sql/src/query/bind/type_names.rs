//! Type names of the parser as PostgreSQL types.

use std::sync::Arc;

use arrow::datatypes::FieldRef;
use datafusion::{
    common::Result,
    logical_expr::planner::TypePlanner,
    sql::sqlparser::ast::{CharacterLength, DataType, ExactNumberInfo, ObjectName, TimezoneInfo},
};

use crate::{
    error::{SqlError, SqlResult, SqlState},
    query::{failure::external, types},
    types::{ColumnType, PgType, TYPES},
};

/// For DataFusion's planner: the field carries the PostgreSQL type in its metadata, which marks a cast as the statement's own.
#[derive(Debug)]
pub struct PgTypes;

impl TypePlanner for PgTypes {
    fn plan_type_field(&self, data_type: &DataType) -> Result<Option<FieldRef>> {
        if matches!(data_type, DataType::Interval { .. }) {
            return Ok(Some(types::field(types::INTERVAL)));
        }
        let column_type = column_type(data_type).map_err(external)?;
        Ok(Some(Arc::new(crate::types::arrow::field("", column_type, true))))
    }
}

/// The type a name means. 42704 for none, 0A000 for one of PostgreSQL's that has to wait.
pub fn column_type(data_type: &DataType) -> SqlResult<ColumnType> {
    use DataType as D;
    Ok(match data_type {
        D::Boolean | D::Bool => PgType::Bool.plain(),
        D::SmallInt(None) | D::Int2(None) => PgType::Int2.plain(),
        D::Int(None) | D::Integer(None) | D::Int4(None) => PgType::Int4.plain(),
        D::BigInt(None) | D::Int8(None) => PgType::Int8.plain(),
        D::Real | D::Float4 => PgType::Float4.plain(),
        D::DoublePrecision | D::Double(ExactNumberInfo::None) | D::Float8 => PgType::Float8.plain(),
        D::Float(ExactNumberInfo::None) => PgType::Float8.plain(),
        D::Float(ExactNumberInfo::Precision(bits)) if *bits <= 24 => PgType::Float4.plain(),
        D::Float(ExactNumberInfo::Precision(_)) => PgType::Float8.plain(),
        D::Numeric(size) | D::Decimal(size) | D::Dec(size) => numeric(size)?,
        D::Text => PgType::Text.plain(),
        D::Varchar(length) | D::CharacterVarying(length) | D::CharVarying(length) => {
            characters(PgType::Varchar, length.as_ref(), None)?
        }
        D::Char(length) | D::Character(length) => characters(PgType::Bpchar, length.as_ref(), Some(1))?,
        D::Bytea => PgType::Bytea.plain(),
        D::Date => PgType::Date.plain(),
        D::Timestamp(precision, zone) => timestamp(*precision, zone)?,
        D::Uuid => PgType::Uuid.plain(),
        D::Regclass => PgType::Regclass.plain(),
        D::Custom(name, arguments) => custom(name, arguments)?,
        D::Time(..) | D::JSON | D::JSONB | D::Array(_) | D::Bit(_) | D::BitVarying(_) => {
            return Err(SqlError::unsupported(format!("type {}", data_type.to_string().to_lowercase())));
        }
        other => return Err(undefined(&other.to_string())),
    })
}

fn numeric(size: &ExactNumberInfo) -> SqlResult<ColumnType> {
    match size {
        ExactNumberInfo::None => Ok(PgType::Numeric.plain()),
        ExactNumberInfo::Precision(precision) => ColumnType::numeric(*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => ColumnType::numeric(*precision, *scale),
    }
}

fn characters(pg_type: PgType, length: Option<&CharacterLength>, default: Option<u64>) -> SqlResult<ColumnType> {
    match (length, default) {
        (Some(CharacterLength::IntegerLength { length, .. }), _) => ColumnType::characters(pg_type, *length),
        (None, Some(default)) => ColumnType::characters(pg_type, default),
        _ => Ok(pg_type.plain()),
    }
}

fn timestamp(precision: Option<u64>, zone: &TimezoneInfo) -> SqlResult<ColumnType> {
    if precision.is_some_and(|digits| digits < 6) {
        return Err(SqlError::unsupported("a timestamp with fewer than 6 digits of seconds"));
    }
    Ok(match zone {
        TimezoneInfo::Tz | TimezoneInfo::WithTimeZone => PgType::TimestampTz.plain(),
        _ => PgType::Timestamp.plain(),
    })
}

/// Types the parser has no word for: `oid`, `name`, `pg_catalog.int4`, `"char"`.
fn custom(name: &ObjectName, arguments: &[String]) -> SqlResult<ColumnType> {
    let parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(super::folded).collect();
    let last = match parts.as_slice() {
        [last] => last,
        [schema, last] if schema == "pg_catalog" => last,
        _ => return Err(undefined(&name.to_string())),
    };
    let quoted = name.0.last().and_then(|part| part.as_ident()).is_some_and(|ident| ident.quote_style.is_some());
    // Without quotes `char` is character(1); the parser has a word for that one.
    let row = TYPES.iter().find(|row| row.name == last && (row.pg_type != PgType::Char || quoted));
    match row {
        Some(row) if arguments.is_empty() => Ok(row.pg_type.plain()),
        Some(row) => Err(SqlError::unsupported(format!("a modifier of type {}", row.name))),
        None => match last.as_str() {
            "regproc" | "regprocedure" | "regoper" | "regnamespace" | "regrole" | "xid" | "cid" => {
                Ok(PgType::Text.plain())
            }
            "interval" | "time" | "timetz" | "json" | "jsonb" | "xml" | "inet" | "cidr" | "money" => {
                Err(SqlError::unsupported(format!("type {last}")))
            }
            _ => Err(undefined(last)),
        },
    }
}

fn undefined(name: &str) -> SqlError {
    SqlError::new(SqlState::UNDEFINED_OBJECT, format!("type \"{name}\" does not exist"))
}
