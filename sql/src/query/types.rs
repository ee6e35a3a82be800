//! Arrow types seen as PostgreSQL sees them: in families within which values meet.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, TimeUnit};

use crate::types::{ColumnType, PgType, arrow as mapping};

/// interval. It exists inside expressions only: `sql::types` has no interval yet, so a result column of it is 0A000.
pub const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);

/// Groups of types whose values compare and combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Nothing fixed the type yet.
    Unknown,
    /// boolean
    Boolean,
    /// smallint, integer, bigint
    Integer,
    /// numeric
    Decimal,
    /// real, double precision
    Float,
    /// text, varchar, char, name
    Text,
    /// bytea
    Bytes,
    /// date
    Date,
    /// timestamp
    Timestamp,
    /// timestamptz
    TimestampTz,
    /// interval
    Interval,
    /// uuid
    Uuid,
    /// oid and its aliases
    Oid,
    /// Arrays and what else has no PostgreSQL type here.
    Other,
}

impl Family {
    /// Integers, numeric, floats.
    pub fn is_number(self) -> bool {
        matches!(self, Family::Integer | Family::Decimal | Family::Float)
    }
}

/// The family of an Arrow type.
pub fn family(data_type: &DataType) -> Family {
    match data_type {
        DataType::Null => Family::Unknown,
        DataType::Boolean => Family::Boolean,
        DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt64 => Family::Integer,
        DataType::UInt32 => Family::Oid,
        DataType::Decimal128(..) | DataType::Decimal256(..) => Family::Decimal,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => Family::Float,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Family::Text,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Family::Bytes,
        DataType::FixedSizeBinary(16) => Family::Uuid,
        DataType::Date32 => Family::Date,
        DataType::Timestamp(_, None) => Family::Timestamp,
        DataType::Timestamp(_, Some(_)) => Family::TimestampTz,
        DataType::Interval(_) | DataType::Duration(_) => Family::Interval,
        _ => Family::Other,
    }
}

/// PostgreSQL's integer types in place of Arrow's other widths.
pub fn integer_of(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt64 => DataType::Int64,
        other => other.clone(),
    }
}

/// The type's name in PostgreSQL's messages.
pub fn sql_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Null => "unknown".to_owned(),
        DataType::Interval(_) | DataType::Duration(_) => "interval".to_owned(),
        DataType::List(item) | DataType::LargeList(item) => format!("{}[]", sql_name(item.data_type())),
        other => match mapping::column_type_of(other) {
            Ok(column_type) => column_type.pg_type.sql_name().to_owned(),
            Err(_) => other.to_string(),
        },
    }
}

/// A nullable field without a name that remembers its PostgreSQL type.
pub fn pg_field(column_type: ColumnType) -> FieldRef {
    Arc::new(mapping::field("", column_type, true))
}

/// A nullable field without a name.
pub fn field(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("", data_type, true))
}

/// text.
pub fn text_field() -> FieldRef {
    pg_field(PgType::Text.plain())
}

/// text, without modifier.
pub fn text_type() -> ColumnType {
    PgType::Text.plain()
}

/// `field` for a placeholder: no name, nullable.
pub fn unnamed(field: &FieldRef) -> FieldRef {
    if field.name().is_empty() && field.is_nullable() {
        return Arc::clone(field);
    }
    Arc::new(field.as_ref().clone().with_name("").with_nullable(true))
}

/// timestamptz as Arrow has it.
pub fn timestamptz() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(mapping::UTC.into()))
}
