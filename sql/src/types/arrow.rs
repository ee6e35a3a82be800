//! The same values in Arrow: which Arrow type stands for which PostgreSQL type, and datums in and out of arrays.
//!
//! | PostgreSQL | Arrow |
//! | --- | --- |
//! | boolean | Boolean |
//! | smallint, integer, bigint | Int16, Int32, Int64 |
//! | real, double precision | Float32, Float64 |
//! | numeric(p,s) | Decimal128(p, s); without modifier Decimal128(38, 16) |
//! | text, varchar, char, name, "char", unknown, void (an empty text) | Utf8 |
//! | bytea | Binary |
//! | date | Date32 |
//! | timestamp, timestamptz | Timestamp(µs), Timestamp(µs, "UTC") |
//! | uuid | FixedSizeBinary(16) |
//! | oid, regclass, regtype | UInt32 |
//!
//! What Arrow's type does not say (varchar or text, n of `char(n)`) travels in the field's metadata under
//! [`TYPE_KEY`]; a field without it gets the most general type.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder,
        FixedSizeBinaryBuilder, Float32Builder, Float64Builder, Int16Builder, Int32Builder, Int64Builder,
        StringBuilder, TimestampMicrosecondBuilder, UInt32Builder,
    },
    datatypes::{
        DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
        Int64Type, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
        TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
    },
};
use bytes::Bytes;

use super::{ColumnType, Datum, Decimal, NO_TYPE_MOD, PgType, numeric};
use crate::error::{SqlError, SqlResult};

/// Metadata key of a field: `oid:atttypmod`.
pub const TYPE_KEY: &str = "flaredb.type";
/// Scale of a numeric column of which no scale is known.
pub const DEFAULT_NUMERIC_SCALE: i8 = 16;
/// Name of the zone in Arrow's timestamptz.
pub const UTC: &str = "UTC";

/// The Arrow type that holds values of `column_type`.
pub fn data_type(column_type: ColumnType) -> DataType {
    match column_type.pg_type {
        PgType::Bool => DataType::Boolean,
        PgType::Int2 => DataType::Int16,
        PgType::Int4 => DataType::Int32,
        PgType::Int8 => DataType::Int64,
        PgType::Float4 => DataType::Float32,
        PgType::Float8 => DataType::Float64,
        PgType::Numeric => match column_type.precision_scale() {
            Some((precision, scale)) => DataType::Decimal128(precision, scale as i8),
            None => DataType::Decimal128(numeric::MAX_PRECISION, DEFAULT_NUMERIC_SCALE),
        },
        PgType::Text
        | PgType::Varchar
        | PgType::Bpchar
        | PgType::Name
        | PgType::Char
        | PgType::Unknown
        | PgType::Void => DataType::Utf8,
        PgType::Bytea => DataType::Binary,
        PgType::Date => DataType::Date32,
        PgType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        PgType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
        PgType::Uuid => DataType::FixedSizeBinary(16),
        PgType::Oid | PgType::Regclass | PgType::Regtype => DataType::UInt32,
    }
}

/// A field of that type which remembers the PostgreSQL type in its metadata.
pub fn field(name: &str, column_type: ColumnType, nullable: bool) -> Field {
    let metadata =
        HashMap::from([(TYPE_KEY.to_owned(), format!("{}:{}", column_type.pg_type.oid(), column_type.type_mod))]);
    Field::new(name, data_type(column_type), nullable).with_metadata(metadata)
}

/// The PostgreSQL type of a field: by its metadata when that still agrees with the Arrow type, otherwise by the Arrow
/// type alone. 0A000 for Arrow types that stand for none.
pub fn column_type(field: &Field) -> SqlResult<ColumnType> {
    if let Some(remembered) = field.metadata().get(TYPE_KEY).and_then(|text| remembered(text))
        && &data_type(remembered) == field.data_type()
    {
        return Ok(remembered);
    }
    column_type_of(field.data_type())
}

fn remembered(text: &str) -> Option<ColumnType> {
    let (oid, type_mod) = text.split_once(':')?;
    Some(ColumnType { pg_type: PgType::from_oid(oid.parse().ok()?)?, type_mod: type_mod.parse().ok()? })
}

/// The most general PostgreSQL type of an Arrow type; 0A000 when there is none.
pub fn column_type_of(data_type: &DataType) -> SqlResult<ColumnType> {
    Ok(match data_type {
        DataType::Null => PgType::Text.plain(),
        DataType::Boolean => PgType::Bool.plain(),
        DataType::Int8 | DataType::UInt8 | DataType::Int16 => PgType::Int2.plain(),
        DataType::UInt16 | DataType::Int32 => PgType::Int4.plain(),
        DataType::Int64 | DataType::UInt64 => PgType::Int8.plain(),
        DataType::UInt32 => PgType::Oid.plain(),
        DataType::Float32 => PgType::Float4.plain(),
        DataType::Float64 => PgType::Float8.plain(),
        DataType::Decimal128(..) => ColumnType { pg_type: PgType::Numeric, type_mod: NO_TYPE_MOD },
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => PgType::Text.plain(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => PgType::Bytea.plain(),
        DataType::Date32 => PgType::Date.plain(),
        DataType::Timestamp(_, None) => PgType::Timestamp.plain(),
        DataType::Timestamp(_, Some(_)) => PgType::TimestampTz.plain(),
        DataType::FixedSizeBinary(16) => PgType::Uuid.plain(),
        DataType::Dictionary(_, values) => column_type_of(values)?,
        other => return Err(SqlError::unsupported(format!("a result of Arrow type {other}"))),
    })
}

/// Row `at` of an array of any type [`column_type_of`] knows.
pub fn datum_at(array: &dyn Array, at: usize) -> SqlResult<Datum> {
    if array.is_null(at) {
        return Ok(Datum::Null);
    }
    Ok(match array.data_type() {
        DataType::Null => Datum::Null,
        DataType::Boolean => Datum::Bool(array.as_boolean().value(at)),
        DataType::Int8 => Datum::Int2(i16::from(array.as_primitive::<Int8Type>().value(at))),
        DataType::UInt8 => Datum::Int2(i16::from(array.as_primitive::<UInt8Type>().value(at))),
        DataType::Int16 => Datum::Int2(array.as_primitive::<Int16Type>().value(at)),
        DataType::UInt16 => Datum::Int4(i32::from(array.as_primitive::<UInt16Type>().value(at))),
        DataType::Int32 => Datum::Int4(array.as_primitive::<Int32Type>().value(at)),
        DataType::UInt32 => Datum::Oid(array.as_primitive::<UInt32Type>().value(at)),
        DataType::Int64 => Datum::Int8(array.as_primitive::<Int64Type>().value(at)),
        DataType::UInt64 => Datum::Int8(
            i64::try_from(array.as_primitive::<UInt64Type>().value(at))
                .map_err(|_| SqlError::out_of_range("bigint"))?,
        ),
        DataType::Float32 => Datum::Float4(array.as_primitive::<Float32Type>().value(at)),
        DataType::Float64 => Datum::Float8(array.as_primitive::<Float64Type>().value(at)),
        DataType::Decimal128(_, scale) => {
            let mantissa = array.as_primitive::<Decimal128Type>().value(at);
            let value = u8::try_from(*scale).ok().and_then(|scale| Decimal::new(mantissa, scale));
            Datum::Numeric(value.ok_or_else(|| SqlError::out_of_range("numeric"))?)
        }
        DataType::Date32 => Datum::Date(array.as_primitive::<Date32Type>().value(at)),
        DataType::Timestamp(unit, zone) => {
            let micros = timestamp_micros(array, *unit, at);
            if zone.is_some() { Datum::TimestampTz(micros) } else { Datum::Timestamp(micros) }
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            return datum_at(dictionary.values(), dictionary.normalized_keys()[at]);
        }
        _ => return bytes_at(array, at),
    })
}

fn bytes_at(array: &dyn Array, at: usize) -> SqlResult<Datum> {
    Ok(match array.data_type() {
        DataType::Utf8 => Datum::text(array.as_string::<i32>().value(at)),
        DataType::LargeUtf8 => Datum::text(array.as_string::<i64>().value(at)),
        DataType::Utf8View => Datum::text(array.as_string_view().value(at)),
        DataType::Binary => Datum::Bytea(Bytes::copy_from_slice(array.as_binary::<i32>().value(at))),
        DataType::LargeBinary => Datum::Bytea(Bytes::copy_from_slice(array.as_binary::<i64>().value(at))),
        DataType::BinaryView => Datum::Bytea(Bytes::copy_from_slice(array.as_binary_view().value(at))),
        DataType::FixedSizeBinary(16) => {
            Datum::Uuid(array.as_fixed_size_binary().value(at).try_into().expect("sixteen bytes"))
        }
        other => return Err(SqlError::unsupported(format!("a result of Arrow type {other}"))),
    })
}

fn timestamp_micros(array: &dyn Array, unit: TimeUnit, at: usize) -> i64 {
    match unit {
        TimeUnit::Second => array.as_primitive::<TimestampSecondType>().value(at).saturating_mul(1_000_000),
        TimeUnit::Millisecond => array.as_primitive::<TimestampMillisecondType>().value(at).saturating_mul(1000),
        TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().value(at),
        TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().value(at).div_euclid(1000),
    }
}

/// Collects datums of one type into an array.
pub enum ColumnBuilder {
    /// boolean
    Bool(BooleanBuilder),
    /// smallint
    Int2(Int16Builder),
    /// integer
    Int4(Int32Builder),
    /// bigint
    Int8(Int64Builder),
    /// real
    Float4(Float32Builder),
    /// double precision
    Float8(Float64Builder),
    /// numeric of the given scale
    Numeric(Decimal128Builder, u8),
    /// all texts
    Text(StringBuilder),
    /// bytea
    Bytea(BinaryBuilder),
    /// date
    Date(Date32Builder),
    /// timestamp and timestamptz
    Timestamp(TimestampMicrosecondBuilder),
    /// uuid
    Uuid(FixedSizeBinaryBuilder),
    /// oid, regclass, regtype
    Oid(UInt32Builder),
}

impl ColumnBuilder {
    /// For `capacity` values of `column_type`.
    pub fn new(column_type: ColumnType, capacity: usize) -> Self {
        match column_type.pg_type {
            PgType::Bool => ColumnBuilder::Bool(BooleanBuilder::with_capacity(capacity)),
            PgType::Int2 => ColumnBuilder::Int2(Int16Builder::with_capacity(capacity)),
            PgType::Int4 => ColumnBuilder::Int4(Int32Builder::with_capacity(capacity)),
            PgType::Int8 => ColumnBuilder::Int8(Int64Builder::with_capacity(capacity)),
            PgType::Float4 => ColumnBuilder::Float4(Float32Builder::with_capacity(capacity)),
            PgType::Float8 => ColumnBuilder::Float8(Float64Builder::with_capacity(capacity)),
            PgType::Numeric => {
                let data_type = data_type(column_type);
                let scale = if let DataType::Decimal128(_, scale) = &data_type { *scale as u8 } else { 0 };
                ColumnBuilder::Numeric(Decimal128Builder::with_capacity(capacity).with_data_type(data_type), scale)
            }
            PgType::Bytea => ColumnBuilder::Bytea(BinaryBuilder::new()),
            PgType::Date => ColumnBuilder::Date(Date32Builder::with_capacity(capacity)),
            PgType::Timestamp | PgType::TimestampTz => ColumnBuilder::Timestamp(
                TimestampMicrosecondBuilder::with_capacity(capacity).with_data_type(data_type(column_type)),
            ),
            PgType::Uuid => ColumnBuilder::Uuid(FixedSizeBinaryBuilder::with_capacity(capacity, 16)),
            PgType::Oid | PgType::Regclass | PgType::Regtype => {
                ColumnBuilder::Oid(UInt32Builder::with_capacity(capacity))
            }
            _ => ColumnBuilder::Text(StringBuilder::new()),
        }
    }
    /// Appends a value; XX000 when it is not of the column's type, 22003 when a numeric does not fit its scale.
    pub fn push(&mut self, datum: &Datum) -> SqlResult<()> {
        match (self, datum) {
            (builder, Datum::Null) => builder.push_null(),
            (ColumnBuilder::Bool(b), Datum::Bool(v)) => b.append_value(*v),
            (ColumnBuilder::Int2(b), Datum::Int2(v)) => b.append_value(*v),
            (ColumnBuilder::Int4(b), Datum::Int4(v)) => b.append_value(*v),
            (ColumnBuilder::Int8(b), Datum::Int8(v)) => b.append_value(*v),
            (ColumnBuilder::Float4(b), Datum::Float4(v)) => b.append_value(*v),
            (ColumnBuilder::Float8(b), Datum::Float8(v)) => b.append_value(*v),
            (ColumnBuilder::Numeric(b, scale), Datum::Numeric(v)) => b.append_value(v.rescale(*scale)?.mantissa()),
            (ColumnBuilder::Text(b), Datum::Text(v)) => b.append_value(v.as_str()),
            (ColumnBuilder::Bytea(b), Datum::Bytea(v)) => b.append_value(v),
            (ColumnBuilder::Date(b), Datum::Date(v)) => b.append_value(*v),
            (ColumnBuilder::Timestamp(b), Datum::Timestamp(v) | Datum::TimestampTz(v)) => b.append_value(*v),
            (ColumnBuilder::Uuid(b), Datum::Uuid(v)) => b.append_value(v).expect("sixteen bytes"),
            (ColumnBuilder::Oid(b), Datum::Oid(v)) => b.append_value(*v),
            (_, other) => {
                return Err(SqlError::internal(format!(
                    "a {} was put into a column of another type",
                    other.pg_type().sql_name()
                )));
            }
        }
        Ok(())
    }
    fn push_null(&mut self) {
        match self {
            ColumnBuilder::Bool(b) => b.append_null(),
            ColumnBuilder::Int2(b) => b.append_null(),
            ColumnBuilder::Int4(b) => b.append_null(),
            ColumnBuilder::Int8(b) => b.append_null(),
            ColumnBuilder::Float4(b) => b.append_null(),
            ColumnBuilder::Float8(b) => b.append_null(),
            ColumnBuilder::Numeric(b, _) => b.append_null(),
            ColumnBuilder::Text(b) => b.append_null(),
            ColumnBuilder::Bytea(b) => b.append_null(),
            ColumnBuilder::Date(b) => b.append_null(),
            ColumnBuilder::Timestamp(b) => b.append_null(),
            ColumnBuilder::Uuid(b) => b.append_null(),
            ColumnBuilder::Oid(b) => b.append_null(),
        }
    }
    /// The array; the builder is empty again.
    pub fn finish(&mut self) -> ArrayRef {
        match self {
            ColumnBuilder::Bool(b) => Arc::new(b.finish()),
            ColumnBuilder::Int2(b) => Arc::new(b.finish()),
            ColumnBuilder::Int4(b) => Arc::new(b.finish()),
            ColumnBuilder::Int8(b) => Arc::new(b.finish()),
            ColumnBuilder::Float4(b) => Arc::new(b.finish()),
            ColumnBuilder::Float8(b) => Arc::new(b.finish()),
            ColumnBuilder::Numeric(b, _) => Arc::new(b.finish()),
            ColumnBuilder::Text(b) => Arc::new(b.finish()),
            ColumnBuilder::Bytea(b) => Arc::new(b.finish()),
            ColumnBuilder::Date(b) => Arc::new(b.finish()),
            ColumnBuilder::Timestamp(b) => Arc::new(b.finish()),
            ColumnBuilder::Uuid(b) => Arc::new(b.finish()),
            ColumnBuilder::Oid(b) => Arc::new(b.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_goes_through_an_array() {
        let values = [
            (PgType::Bool.plain(), Datum::Bool(true)),
            (PgType::Int2.plain(), Datum::Int2(-2)),
            (PgType::Int8.plain(), Datum::Int8(i64::MIN)),
            (PgType::Float4.plain(), Datum::Float4(f32::NAN)),
            (ColumnType::numeric(8, 2).unwrap(), Datum::Numeric(Decimal::parse("-12.34").unwrap())),
            (ColumnType::characters(PgType::Bpchar, 5).unwrap(), Datum::text("ab")),
            (PgType::Bytea.plain(), Datum::Bytea(Bytes::from_static(b"\0\xff"))),
            (PgType::Date.plain(), Datum::Date(19_000)),
            (PgType::TimestampTz.plain(), Datum::TimestampTz(-1)),
            (PgType::Uuid.plain(), Datum::Uuid([7; 16])),
            (PgType::Oid.plain(), Datum::Oid(u32::MAX)),
        ];
        for (column, datum) in values {
            let mut builder = ColumnBuilder::new(column, 2);
            builder.push(&datum).unwrap();
            builder.push(&Datum::Null).unwrap();
            let array = builder.finish();
            assert_eq!(array.data_type(), &data_type(column));
            assert_eq!(datum_at(&array, 0).unwrap(), datum);
            assert!(datum_at(&array, 1).unwrap().is_null());
            assert_eq!(column_type(&field("c", column, true)).unwrap(), column);
        }
    }
}
