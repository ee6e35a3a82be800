//! `CAST` and `::` by PostgreSQL's rules.
//!
//! Arrow's own cast truncates where PostgreSQL rounds, parses other texts and writes other ones. So a cast that a
//! statement asks for becomes this function; casts that widen without loss, which DataFusion adds by itself, stay Arrow's.
//!
//! | from → to | rule |
//! | --- | --- |
//! | text → any | the type's input function: 22P02, 22003, 22007 |
//! | any → text | the type's output function; `true`/`false` for booleans |
//! | float, numeric → integer | rounded (floats to even, numerics away from zero), 22003 |
//! | any → varchar(n), char(n) | cut to n characters when written in the statement, 22001 when assigned |
//! | any → numeric(p,s) | rounded to s, 22003 beyond p |

use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::{DataType, FieldRef},
};
use datafusion::{
    common::{Result, ScalarValue},
    logical_expr::{
        ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    },
};

use crate::{
    error::{SqlError, SqlResult, SqlState},
    query::{failure::external, run::HoleSource, types as families},
    types::{
        ColumnType, Datum, Decimal, FormatSettings, PgType, Text,
        arrow::{self as mapping, ColumnBuilder},
        datetime, text,
    },
};

/// Microseconds of a day.
const DAY_MICROS: i64 = 86_400_000_000;
/// Significant digits of a real and a double precision when they become numeric, as PostgreSQL (FLT_DIG, DBL_DIG).
const FLOAT4_DIGITS: usize = 6;
const FLOAT8_DIGITS: usize = 15;

/// Who asks for the cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strength {
    /// The statement: too long texts are cut.
    Explicit,
    /// An INSERT or UPDATE: too long texts are refused.
    Assignment,
}

/// The function; its argument is of any type.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Cast {
    to: ColumnType,
    /// The target scale, when `to` is a numeric without modifier: what its values have is kept.
    data_type: DataType,
    strength: Strength,
    signature: Signature,
}

/// `expr::to`, for an expression of type `from`.
pub fn call(expr: Expr, from: &DataType, to: ColumnType) -> Expr {
    build(expr, from, to, mapping::data_type(to), Strength::Explicit)
}

/// `expr`, of type `from`, as the value for a column of type `to`.
pub fn assign(expr: Expr, from: &DataType, to: ColumnType) -> Expr {
    build(expr, from, to, mapping::data_type(to), Strength::Assignment)
}

/// The cast's result depends on the session's settings: its time zone, how it shows floats and bytes.
pub fn asks_settings(from: &DataType, to: ColumnType) -> bool {
    use families::Family as F;
    match (families::family(from), families::family(&mapping::data_type(to))) {
        (F::TimestampTz, F::TimestampTz) => false,
        (F::TimestampTz, _) => true,
        (F::Unknown | F::Text | F::Date | F::Timestamp, F::TimestampTz) => true,
        (F::Float | F::Bytes, F::Text) => true,
        _ => false,
    }
}

/// `expr::numeric` without modifier, keeping the scale of `from`.
pub fn to_numeric(expr: Expr, from: &DataType) -> Expr {
    let data_type = match from {
        DataType::Decimal128(..) => from.clone(),
        DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::UInt32 => DataType::Decimal128(38, 0),
        _ => mapping::data_type(PgType::Numeric.plain()),
    };
    build(expr, from, PgType::Numeric.plain(), data_type, Strength::Explicit)
}

/// Settings that matter are a second argument: a placeholder, so that nothing is computed before the plan runs.
fn build(expr: Expr, from: &DataType, to: ColumnType, data_type: DataType, strength: Strength) -> Expr {
    let mut arguments = vec![expr];
    if asks_settings(from, to) {
        arguments.push(HoleSource::Settings.placeholder(families::text_field()));
    }
    let cast = Cast { to, data_type, strength, signature: Signature::any(arguments.len(), Volatility::Immutable) };
    ScalarUDF::new_from_impl(cast).call(arguments)
}

impl Cast {
    /// The type it casts to.
    pub fn to(&self) -> ColumnType {
        self.to
    }
}

impl ScalarUDFImpl for Cast {
    fn name(&self) -> &str {
        "pg_cast"
    }
    fn schema_name(&self, arguments: &[Expr]) -> Result<String> {
        Ok(format!("{}::{}", arguments[0].schema_name(), self.to.sql_name()))
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.data_type.clone())
    }
    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let field = mapping::field(self.name(), self.to, arguments.arg_fields[0].is_nullable());
        Ok(field.with_data_type(self.data_type.clone()).into())
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let from = mapping::column_type(&arguments.arg_fields[0]).map_err(external)?;
        // The same for all rows, whichever way it comes.
        let settings = match arguments.args.get(1) {
            Some(ColumnarValue::Scalar(ScalarValue::Utf8(Some(text)))) => FormatSettings::decode(text),
            Some(ColumnarValue::Array(texts)) if !texts.is_empty() => {
                FormatSettings::decode(texts.as_string::<i32>().value(0))
            }
            _ => None,
        };
        let settings = settings.unwrap_or_default();
        match &arguments.args[0] {
            ColumnarValue::Array(array) => {
                self.cast_array(array, from, &settings).map(ColumnarValue::Array).map_err(external)
            }
            ColumnarValue::Scalar(scalar) => {
                let array = self.cast_array(&scalar.to_array()?, from, &settings).map_err(external)?;
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?))
            }
        }
    }
}

impl Cast {
    fn cast_array(&self, array: &ArrayRef, from: ColumnType, settings: &FormatSettings) -> SqlResult<ArrayRef> {
        if array.data_type() == &self.data_type && self.to.max_characters().is_none() && from.pg_type == self.to.pg_type
        {
            return Ok(array.clone());
        }
        let mut builder = ColumnBuilder::new(self.builder_type(), array.len());
        for row in 0..array.len() {
            let datum = mapping::datum_at(array, row)?;
            builder.push(&cast_datum(datum, from, self.to, self.strength, settings)?)?;
        }
        Ok(builder.finish())
    }

    /// `to`, with the scale of this very column for a numeric without modifier.
    fn builder_type(&self) -> ColumnType {
        match (self.to.precision_scale(), &self.data_type) {
            (None, DataType::Decimal128(precision, scale)) => {
                ColumnType::numeric(u64::from(*precision), i64::from(*scale)).unwrap_or(self.to)
            }
            _ => self.to,
        }
    }
}

/// One value's cast.
pub fn cast_datum(
    datum: Datum,
    from: ColumnType,
    to: ColumnType,
    strength: Strength,
    settings: &FormatSettings,
) -> SqlResult<Datum> {
    let plain = match datum {
        Datum::Null => return Ok(Datum::Null),
        Datum::Text(value) if to.pg_type.is_text() => Datum::Text(value),
        Datum::Text(value) => text::parse_plain(&value, to.pg_type, settings)?,
        Datum::Bool(value) if to.pg_type.is_text() => Datum::text(if value { "true" } else { "false" }),
        other if to.pg_type.is_text() => {
            let mut out = String::new();
            text::format(&other, from, settings, &mut out);
            Datum::text(out)
        }
        other if to.pg_type.is_number() || to.pg_type.is_oid() => to_number(other, to.pg_type)?,
        other => to_other(other, to.pg_type, settings)?,
    };
    match (strength, plain) {
        (_, Datum::Text(value)) if to.pg_type == PgType::Bpchar && to.max_characters().is_none() => {
            Ok(Datum::Text(cut(value, to)))
        }
        (Strength::Explicit, Datum::Text(value)) => Ok(Datum::Text(cut(value, to))),
        (_, plain) => to.fit(plain),
    }
}

/// An explicit cast cuts text to the type's length.
fn cut(value: Text, to: ColumnType) -> Text {
    let str = value.as_str();
    let end = match to.max_characters() {
        Some(n) => str.char_indices().nth(n as usize).map_or(str.len(), |(at, _)| at),
        None if to.pg_type == PgType::Name => floor_char_boundary(str, text::MAX_NAME_BYTES),
        None => str.len(),
    };
    let end = if to.pg_type == PgType::Bpchar { str[..end].trim_end_matches(' ').len() } else { end };
    if end == str.len() { value } else { value.truncated(end) }
}

fn floor_char_boundary(str: &str, at: usize) -> usize {
    (0..=at.min(str.len())).rev().find(|at| str.is_char_boundary(*at)).unwrap_or(0)
}

fn to_number(datum: Datum, to: PgType) -> SqlResult<Datum> {
    let whole = match &datum {
        Datum::Bool(value) if to == PgType::Int4 => Some(i128::from(*value)),
        Datum::Int2(_) | Datum::Int4(_) | Datum::Int8(_) | Datum::Oid(_) => datum.as_i64().map(i128::from),
        _ => None,
    };
    match to {
        PgType::Float4 | PgType::Float8 => {
            let value = match (&datum, whole) {
                (_, Some(whole)) => whole as f64,
                (Datum::Float4(value), _) => f64::from(*value),
                (Datum::Float8(value), _) => *value,
                (Datum::Numeric(value), _) => value.to_f64(),
                _ => return Err(cannot_cast(&datum, to)),
            };
            if to == PgType::Float8 {
                return Ok(Datum::Float8(value));
            }
            let narrow = value as f32;
            if narrow.is_infinite() && value.is_finite() || narrow == 0.0 && value != 0.0 {
                return Err(SqlError::out_of_range("real"));
            }
            Ok(Datum::Float4(narrow))
        }
        PgType::Numeric => match (&datum, whole) {
            (_, Some(whole)) => {
                Decimal::new(whole, 0).map(Datum::Numeric).ok_or_else(|| SqlError::out_of_range("numeric"))
            }
            (Datum::Float4(value), _) => Decimal::from_f64(f64::from(*value), FLOAT4_DIGITS).map(Datum::Numeric),
            (Datum::Float8(value), _) => Decimal::from_f64(*value, FLOAT8_DIGITS).map(Datum::Numeric),
            (Datum::Numeric(_), _) => Ok(datum),
            _ => Err(cannot_cast(&datum, to)),
        },
        _ => to_integer(&datum, whole, to),
    }
}

fn to_integer(datum: &Datum, whole: Option<i128>, to: PgType) -> SqlResult<Datum> {
    let rounded = |value: f64| {
        let value = value.round_ties_even();
        (value.is_finite() && value.abs() < 1e19).then_some(value as i128)
    };
    let value = match (datum, whole) {
        (_, Some(whole)) => Some(whole),
        (Datum::Float4(value), _) => rounded(f64::from(*value)),
        (Datum::Float8(value), _) => rounded(*value),
        (Datum::Numeric(value), _) => Some(value.rescale(0)?.mantissa()),
        _ => return Err(cannot_cast(datum, to)),
    };
    let out_of_range = || SqlError::out_of_range(to.sql_name());
    let value = value.ok_or_else(out_of_range)?;
    match to {
        PgType::Int2 => i16::try_from(value).map(Datum::Int2).map_err(|_| out_of_range()),
        PgType::Int4 => i32::try_from(value).map(Datum::Int4).map_err(|_| out_of_range()),
        PgType::Int8 => i64::try_from(value).map(Datum::Int8).map_err(|_| out_of_range()),
        // PostgreSQL takes a negative integer as the oid with the same bits.
        _ => u32::try_from(value)
            .or_else(|_| i32::try_from(value).map(|value| value as u32))
            .map(Datum::Oid)
            .map_err(|_| SqlError::out_of_range("OID")),
    }
}

fn to_other(datum: Datum, to: PgType, settings: &FormatSettings) -> SqlResult<Datum> {
    let special = |micros: i64| micros == i64::MAX || micros == i64::MIN;
    Ok(match (datum, to) {
        (Datum::Int4(value), PgType::Bool) => Datum::Bool(value != 0),
        (Datum::Date(days), PgType::Timestamp) => Datum::Timestamp(date_micros(days)?),
        (Datum::Date(days), PgType::TimestampTz) => {
            let local = date_micros(days)?;
            Datum::TimestampTz(if special(local) { local } else { datetime::local_to_utc(local, settings.time_zone) })
        }
        (Datum::Timestamp(micros), PgType::Date) => Datum::Date(micros_date(micros)),
        (Datum::Timestamp(micros), PgType::TimestampTz) if special(micros) => Datum::TimestampTz(micros),
        (Datum::Timestamp(micros), PgType::TimestampTz) => {
            Datum::TimestampTz(datetime::local_to_utc(micros, settings.time_zone))
        }
        (Datum::TimestampTz(micros), PgType::Timestamp) => Datum::Timestamp(local(micros, settings)),
        (Datum::TimestampTz(micros), PgType::Date) => Datum::Date(micros_date(local(micros, settings))),
        (datum, to) if datum.pg_type() == to => datum,
        (datum, to) => return Err(cannot_cast(&datum, to)),
    })
}

fn local(utc: i64, settings: &FormatSettings) -> i64 {
    if utc == i64::MAX || utc == i64::MIN {
        return utc;
    }
    utc + i64::from(datetime::offset_seconds(utc, settings.time_zone)) * 1_000_000
}

fn date_micros(days: i32) -> SqlResult<i64> {
    match days {
        i32::MAX => Ok(i64::MAX),
        i32::MIN => Ok(i64::MIN),
        days => i64::from(days)
            .checked_mul(DAY_MICROS)
            .ok_or_else(|| SqlError::new(SqlState::DATETIME_FIELD_OVERFLOW, "date out of range for timestamp")),
    }
}

fn micros_date(micros: i64) -> i32 {
    match micros {
        i64::MAX => i32::MAX,
        i64::MIN => i32::MIN,
        micros => i32::try_from(micros.div_euclid(DAY_MICROS)).unwrap_or(i32::MAX),
    }
}

fn cannot_cast(datum: &Datum, to: PgType) -> SqlError {
    cannot_coerce(datum.pg_type().sql_name(), to.sql_name())
}

fn cannot_coerce(from: &str, to: &str) -> SqlError {
    SqlError::new(SqlState::CANNOT_COERCE, format!("cannot cast type {from} to {to}"))
}

/// Whether PostgreSQL has a cast between the types at all; checked when the statement is bound. 42846.
pub fn check(from: &DataType, to: ColumnType) -> SqlResult<()> {
    use families::Family as F;
    let target = mapping::data_type(to);
    let (from_family, to_family) = (families::family(from), families::family(&target));
    let fine = match (from_family, to_family) {
        (a, b) if a == b => true,
        (F::Unknown | F::Text, _) | (_, F::Text) => true,
        (F::Integer | F::Decimal | F::Float, F::Integer | F::Decimal | F::Float) => true,
        (F::Boolean, F::Integer) => to.pg_type == PgType::Int4,
        (F::Integer, F::Boolean) => from == &DataType::Int32,
        (F::Integer, F::Oid) | (F::Oid, F::Integer) => true,
        (F::Date | F::Timestamp | F::TimestampTz, F::Date | F::Timestamp | F::TimestampTz) => true,
        _ => false,
    };
    if fine { Ok(()) } else { Err(cannot_coerce(&families::sql_name(from), to.pg_type.sql_name())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast(datum: Datum, to: ColumnType) -> SqlResult<Datum> {
        let from = datum.pg_type().plain();
        cast_datum(datum, from, to, Strength::Explicit, &FormatSettings::default())
    }

    #[test]
    fn numbers_round_as_in_postgresql() {
        let int4 = PgType::Int4.plain();
        assert_eq!(cast(Datum::Float8(2.5), int4), Ok(Datum::Int4(2)));
        assert_eq!(cast(Datum::Float8(-3.5), int4), Ok(Datum::Int4(-4)));
        assert_eq!(cast(Datum::Numeric(Decimal::parse("2.5").unwrap()), int4), Ok(Datum::Int4(3)));
        assert_eq!(cast(Datum::Int8(1 << 40), int4), Err(SqlError::out_of_range("integer")));
        assert_eq!(cast(Datum::Float8(f64::NAN), int4), Err(SqlError::out_of_range("integer")));
    }

    #[test]
    fn texts_are_cut_when_asked_and_refused_when_assigned() {
        let to = ColumnType::characters(PgType::Varchar, 2).unwrap();
        assert_eq!(cast(Datum::text("äöü"), to), Ok(Datum::text("äö")));
        let text = PgType::Text.plain();
        let refused = cast_datum(Datum::text("äöü"), text, to, Strength::Assignment, &FormatSettings::default());
        assert_eq!(refused.unwrap_err().sqlstate, SqlState::STRING_DATA_RIGHT_TRUNCATION);
        assert_eq!(cast(Datum::Bool(true), text), Ok(Datum::text("true")));
        assert_eq!(cast(Datum::text("x"), PgType::Int4.plain()), Err(SqlError::invalid_input("integer", "x")));
    }
}
