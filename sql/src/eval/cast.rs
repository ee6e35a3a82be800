//! Casts between datums. PURE.

use crate::{
    error::{SqlError, SqlResult, SqlState},
    types::{ColumnType, Datum, Decimal, FormatSettings, PgType, Text, datetime, text},
};

/// Whether a value of type `from` can be stored into a column of type `to` without a written cast.
pub fn assignable(from: PgType, to: PgType) -> bool {
    use PgType as T;
    from == to
        || from == T::Unknown
        || to.is_text() && to != T::Char
        || from.is_number() && to.is_number()
        || from.is_oid() && to.is_oid()
        || (from.is_integer() && to.is_oid())
        || (from.is_oid() && matches!(to, T::Int4 | T::Int8))
        || matches!(
            (from, to),
            (T::Date, T::Timestamp | T::TimestampTz)
                | (T::Timestamp, T::Date | T::TimestampTz)
                | (T::TimestampTz, T::Date | T::Timestamp)
        )
}

/// Whether a written cast exists.
pub fn castable(from: PgType, to: PgType) -> bool {
    assignable(from, to)
        || from.is_text()
        || matches!((from, to), (PgType::Bool, PgType::Int4) | (PgType::Int4, PgType::Bool))
}

/// 42804 with PostgreSQL's words for a column that can't take the expression.
pub fn mismatch(column: &str, to: ColumnType, from: PgType) -> SqlError {
    SqlError::new(
        SqlState::DATATYPE_MISMATCH,
        format!(
            "column \"{column}\" is of type {} but expression is of type {}",
            to.pg_type.sql_name(),
            from.sql_name()
        ),
    )
    .with_hint("You will need to rewrite or cast the expression.")
}

/// A value as a value of `to`. An assignment refuses text that is too long (22001), a written cast (`explicit`) cuts it off.
pub fn cast(datum: Datum, to: ColumnType, explicit: bool, settings: &FormatSettings) -> SqlResult<Datum> {
    let value = convert(datum, to.pg_type, settings)?;
    match (&value, to.max_characters()) {
        (Datum::Text(text), Some(n)) if explicit => {
            let end = text.as_str().char_indices().nth(n as usize).map_or(text.as_bytes().len(), |(at, _)| at);
            to.fit(Datum::Text(text.truncated(end)))
        }
        _ => to.fit(value),
    }
}

fn convert(datum: Datum, to: PgType, settings: &FormatSettings) -> SqlResult<Datum> {
    use PgType as T;
    Ok(match (datum, to) {
        (Datum::Null, _) => Datum::Null,
        (Datum::Text(v), to) => text::parse_plain(&v, to, settings)?,
        (v @ Datum::Bool(_), T::Bool)
        | (v @ Datum::Int2(_), T::Int2)
        | (v @ Datum::Int4(_), T::Int4)
        | (v @ Datum::Int8(_), T::Int8)
        | (v @ Datum::Float4(_), T::Float4)
        | (v @ Datum::Float8(_), T::Float8)
        | (v @ Datum::Numeric(_), T::Numeric)
        | (v @ Datum::Bytea(_), T::Bytea)
        | (v @ Datum::Date(_), T::Date)
        | (v @ Datum::Timestamp(_), T::Timestamp)
        | (v @ Datum::TimestampTz(_), T::TimestampTz)
        | (v @ Datum::Uuid(_), T::Uuid) => v,
        (v @ Datum::Oid(_), to) if to.is_oid() => v,
        (Datum::Bool(v), T::Int4) => Datum::Int4(i32::from(v)),
        (Datum::Int4(v), T::Bool) => Datum::Bool(v != 0),
        (v, T::Int2 | T::Int4 | T::Int8) => to_integer(v, to)?,
        (v, T::Float4 | T::Float8) => to_float(&v, to)?,
        (v, T::Numeric) => Datum::Numeric(to_numeric(&v)?),
        (v, T::Oid | T::Regclass | T::Regtype) => match v.as_i64().map(u32::try_from) {
            Some(Ok(oid)) => Datum::Oid(oid),
            Some(Err(_)) => return Err(SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "OID out of range")),
            None => return Err(cannot(v.pg_type(), to)),
        },
        (v, T::Date | T::Timestamp | T::TimestampTz) => to_time(v, to, settings)?,
        (v, to) if to.is_text() => {
            let mut out = String::new();
            match &v {
                Datum::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
                other => text::format(other, other.pg_type().plain(), settings, &mut out),
            }
            Datum::Text(Text::from(out))
        }
        (v, to) => return Err(cannot(v.pg_type(), to)),
    })
}

fn cannot(from: PgType, to: PgType) -> SqlError {
    SqlError::new(SqlState::CANNOT_COERCE, format!("cannot cast type {} to {}", from.sql_name(), to.sql_name()))
}

fn to_integer(datum: Datum, to: PgType) -> SqlResult<Datum> {
    let out_of_range = || SqlError::out_of_range(to.sql_name());
    let wide = match &datum {
        Datum::Numeric(v) => v.to_i64().ok_or_else(out_of_range)?,
        // PostgreSQL rounds half to even here, and a NaN is out of range.
        Datum::Float4(v) => float_to_i64(f64::from(*v)).ok_or_else(out_of_range)?,
        Datum::Float8(v) => float_to_i64(*v).ok_or_else(out_of_range)?,
        other => other.as_i64().ok_or_else(|| cannot(other.pg_type(), to))?,
    };
    Ok(match to {
        PgType::Int2 => Datum::Int2(wide.try_into().map_err(|_| out_of_range())?),
        PgType::Int4 => Datum::Int4(wide.try_into().map_err(|_| out_of_range())?),
        _ => Datum::Int8(wide),
    })
}

fn float_to_i64(value: f64) -> Option<i64> {
    let rounded = value.round_ties_even();
    (rounded >= -(2f64.powi(63)) && rounded < 2f64.powi(63)).then_some(rounded as i64)
}

fn to_float(datum: &Datum, to: PgType) -> SqlResult<Datum> {
    let wide = match datum {
        Datum::Float4(v) => f64::from(*v),
        Datum::Float8(v) => *v,
        Datum::Numeric(v) => v.to_f64(),
        other => other.as_i64().ok_or_else(|| cannot(other.pg_type(), to))? as f64,
    };
    if to == PgType::Float8 {
        return Ok(Datum::Float8(wide));
    }
    let narrow = wide as f32;
    if narrow.is_infinite() && wide.is_finite() {
        return Err(SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: overflow"));
    }
    if narrow == 0.0 && wide != 0.0 {
        return Err(SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: underflow"));
    }
    Ok(Datum::Float4(narrow))
}

fn to_numeric(datum: &Datum) -> SqlResult<Decimal> {
    match datum {
        Datum::Float4(v) => Decimal::from_f64(f64::from(*v), 6),
        Datum::Float8(v) => Decimal::from_f64(*v, 15),
        other => other.as_i64().map(Decimal::from_i64).ok_or_else(|| cannot(other.pg_type(), PgType::Numeric)),
    }
}

fn to_time(datum: Datum, to: PgType, settings: &FormatSettings) -> SqlResult<Datum> {
    // Local time of an instant, or an instant of a local time; infinities stay.
    let local = |utc: i64| {
        if utc == i64::MAX || utc == i64::MIN {
            return utc;
        }
        utc.saturating_add(i64::from(datetime::offset_seconds(utc, settings.time_zone)) * 1_000_000)
    };
    let utc = |local: i64| {
        if local == i64::MAX || local == i64::MIN { local } else { datetime::local_to_utc(local, settings.time_zone) }
    };
    let of_date = |days: i32| match days {
        i32::MAX => Ok(i64::MAX),
        i32::MIN => Ok(i64::MIN),
        days => i64::from(days)
            .checked_mul(datetime::DAY_US)
            .ok_or_else(|| SqlError::new(SqlState::DATETIME_FIELD_OVERFLOW, "date out of range for timestamp")),
    };
    let date_of = |micros: i64| match micros {
        i64::MAX => i32::MAX,
        i64::MIN => i32::MIN,
        micros => micros.div_euclid(datetime::DAY_US) as i32,
    };
    Ok(match (datum, to) {
        (Datum::Date(v), PgType::Timestamp) => Datum::Timestamp(of_date(v)?),
        (Datum::Date(v), PgType::TimestampTz) => Datum::TimestampTz(utc(of_date(v)?)),
        (Datum::Timestamp(v), PgType::Date) => Datum::Date(date_of(v)),
        (Datum::Timestamp(v), PgType::TimestampTz) => Datum::TimestampTz(utc(v)),
        (Datum::TimestampTz(v), PgType::Timestamp) => Datum::Timestamp(local(v)),
        (Datum::TimestampTz(v), PgType::Date) => Datum::Date(date_of(local(v))),
        (other, to) => return Err(cannot(other.pg_type(), to)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_round_and_refuse_as_postgresql() {
        let settings = FormatSettings::default();
        let to = |datum, to: ColumnType| cast(datum, to, false, &settings);
        assert_eq!(to(Datum::Float8(2.5), PgType::Int4.plain()).unwrap(), Datum::Int4(2));
        assert_eq!(to(Datum::Numeric(Decimal::parse("2.5").unwrap()), PgType::Int4.plain()).unwrap(), Datum::Int4(3));
        assert_eq!(to(Datum::Int8(1 << 40), PgType::Int4.plain()).unwrap_err().message, "integer out of range");
        assert_eq!(to(Datum::Bool(true), PgType::Text.plain()).unwrap(), Datum::text("true"));
        let varchar = ColumnType::characters(PgType::Varchar, 2).unwrap();
        assert_eq!(to(Datum::text("abc"), varchar).unwrap_err().sqlstate, SqlState::STRING_DATA_RIGHT_TRUNCATION);
        assert_eq!(cast(Datum::text("abc"), varchar, true, &settings).unwrap(), Datum::text("ab"));
        assert!(!assignable(PgType::Text, PgType::Int4) && castable(PgType::Text, PgType::Int4));
    }
}
