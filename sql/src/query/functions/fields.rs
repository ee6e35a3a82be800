//! `EXTRACT(field FROM t)` and `date_trunc(field, t)` by PostgreSQL's calendar. Infinite times have no fields (NULL) and stay what they
//! are when truncated.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, Decimal128Array, TimestampMicrosecondArray},
    datatypes::{
        DECIMAL128_MAX_PRECISION, DataType, Field, FieldRef, IntervalMonthDayNano, IntervalMonthDayNanoType, TimeUnit,
        TimestampMicrosecondType,
    },
};
use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveDateTime, NaiveTime, Timelike};
use datafusion::{
    common::{Result, ScalarValue},
    logical_expr::{
        ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    },
};

use crate::{
    error::{SqlError, SqlState},
    query::{
        failure::external,
        types::{self, Family},
    },
};

/// What EXTRACT becomes.
pub const EXTRACT: &str = "pg_extract";
/// date_trunc().
pub const TRUNCATE: &str = "date_trunc";

#[derive(Debug, PartialEq, Eq, Hash)]
struct Fields {
    name: &'static str,
    signature: Signature,
}

/// Both functions.
pub fn all() -> [ScalarUDF; 2] {
    [EXTRACT, TRUNCATE].map(|name| {
        ScalarUDF::new_from_impl(Fields { name, signature: Signature::user_defined(Volatility::Immutable) })
    })
}

impl ScalarUDFImpl for Fields {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let [field, time] = arguments else { return Err(super::no_function(self.name, arguments)) };
        let time = match types::family(time) {
            _ if !matches!(types::family(field), Family::Text | Family::Unknown) => None,
            Family::Timestamp | Family::Date => Some(DataType::Timestamp(TimeUnit::Microsecond, None)),
            Family::TimestampTz => Some(types::timestamptz()),
            Family::Interval if self.name == EXTRACT => Some(types::INTERVAL),
            _ => None,
        };
        let time = time.ok_or_else(|| super::no_function(self.name.trim_start_matches("pg_"), arguments))?;
        Ok(vec![DataType::Utf8, time])
    }
    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        if self.name == TRUNCATE {
            return Ok(arguments[1].clone());
        }
        Ok(DataType::Decimal128(DECIMAL128_MAX_PRECISION, SECONDS_SCALE))
    }
    /// As many digits as the field has: a field that is not known yet gets those of seconds.
    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let given: Vec<DataType> = arguments.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let data_type = match (self.return_type(&given)?, arguments.scalar_arguments[0]) {
            (DataType::Decimal128(precision, _), Some(ScalarValue::Utf8(Some(field)))) => {
                DataType::Decimal128(precision, scale(field))
            }
            (other, _) => other,
        };
        Ok(Arc::new(Field::new(self.name, data_type, true)))
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = arguments.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { arguments.number_rows };
        let to = arguments.return_field.data_type().clone();
        let arrays = arguments.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<Vec<ArrayRef>>>()?;
        let result = match &to {
            DataType::Decimal128(_, scale) => extracted(&arrays[0], &arrays[1], *scale)?,
            _ => truncated(&arrays[0], &arrays[1], to)?,
        };
        Ok(if scalar {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)
        } else {
            ColumnarValue::Array(result)
        })
    }
}

/// Digits of seconds.
const SECONDS_SCALE: i8 = 6;

fn scale(field: &str) -> i8 {
    match field.to_lowercase().as_str() {
        "second" | "seconds" | "epoch" => SECONDS_SCALE,
        "millisecond" | "milliseconds" => 3,
        _ => 0,
    }
}

fn extracted(fields: &ArrayRef, times: &ArrayRef, scale: i8) -> Result<ArrayRef> {
    let fields = fields.as_string::<i32>();
    let mut values = Vec::with_capacity(times.len());
    for row in 0..times.len() {
        if fields.is_null(row) || times.is_null(row) {
            values.push(None);
            continue;
        }
        let field = fields.value(row).to_lowercase();
        let micros = match times.data_type() {
            DataType::Interval(_) => of_interval(&field, times.as_primitive::<IntervalMonthDayNanoType>().value(row))?,
            _ => match times.as_primitive::<TimestampMicrosecondType>().value(row) {
                i64::MIN | i64::MAX => None,
                micros => of_time(&field, micros)?,
            },
        };
        values.push(micros.map(|micros| micros / 10_i128.pow(u32::try_from(SECONDS_SCALE - scale).unwrap_or(0))));
    }
    Ok(Arc::new(Decimal128Array::from(values).with_precision_and_scale(DECIMAL128_MAX_PRECISION, scale)?))
}

/// 10^6 times the field's value; `None` for a time that no calendar holds.
fn of_time(field: &str, micros: i64) -> Result<Option<i128>> {
    let Some(time) = DateTime::from_timestamp_micros(micros).map(|time| time.naive_utc()) else { return Ok(None) };
    let in_minute = i128::from(micros.rem_euclid(60_000_000));
    let year = time.year();
    let week = time.iso_week();
    let whole = match field {
        "epoch" => return Ok(Some(i128::from(micros))),
        "second" | "seconds" => return Ok(Some(in_minute)),
        "millisecond" | "milliseconds" => return Ok(Some(in_minute * 1_000)),
        "microsecond" | "microseconds" => return Ok(Some(in_minute * 1_000_000)),
        "minute" | "minutes" => i64::from(time.minute()),
        "hour" | "hours" => i64::from(time.hour()),
        "day" | "days" => i64::from(time.day()),
        "month" | "months" => i64::from(time.month()),
        "quarter" => i64::from(time.month().div_ceil(3)),
        // There is no year 0: the one before 1 is −1.
        "year" | "years" => i64::from(if year > 0 { year } else { year - 1 }),
        "decade" | "decades" => i64::from(year.div_euclid(10)),
        "century" | "centuries" => i64::from(epoch_of(year, 100)),
        "millennium" | "millennia" => i64::from(epoch_of(year, 1000)),
        "week" | "weeks" => i64::from(week.week()),
        "isoyear" => i64::from(if week.year() > 0 { week.year() } else { week.year() - 1 }),
        "dow" => i64::from(time.weekday().num_days_from_sunday()),
        "isodow" => i64::from(time.weekday().number_from_monday()),
        "doy" => i64::from(time.ordinal()),
        other => return Err(unknown(other)),
    };
    Ok(Some(i128::from(whole) * 1_000_000))
}

/// Which century or millennium, counted from 1 and, before our era, from −1.
fn epoch_of(year: i32, years: i32) -> i32 {
    if year > 0 { (year + years - 1) / years } else { -((years - 1 - (year - 1)) / years) }
}

fn of_interval(field: &str, interval: IntervalMonthDayNano) -> Result<Option<i128>> {
    let (months, days) = (i64::from(interval.months), i64::from(interval.days));
    let micros = interval.nanoseconds / 1000;
    let in_minute = i128::from(micros % 60_000_000);
    let whole = match field {
        // A year has 365.25 days, a month of what is left 30.
        "epoch" => {
            let hundredths = i128::from(months / 12) * 36_525 + i128::from(months % 12 * 30 + days) * 100;
            return Ok(Some(hundredths * 864_000_000 + i128::from(micros)));
        }
        "second" | "seconds" => return Ok(Some(in_minute)),
        "millisecond" | "milliseconds" => return Ok(Some(in_minute * 1_000)),
        "microsecond" | "microseconds" => return Ok(Some(in_minute * 1_000_000)),
        "minute" | "minutes" => micros / 60_000_000 % 60,
        "hour" | "hours" => micros / 3_600_000_000,
        "day" | "days" => days,
        "month" | "months" => months % 12,
        "quarter" => months % 12 / 3 + 1,
        "year" | "years" => months / 12,
        "decade" | "decades" => months / 120,
        "century" | "centuries" => months / 1200,
        "millennium" | "millennia" => months / 12_000,
        other => return Err(unknown(other)),
    };
    Ok(Some(i128::from(whole) * 1_000_000))
}

fn truncated(fields: &ArrayRef, times: &ArrayRef, to: DataType) -> Result<ArrayRef> {
    let (fields, times) = (fields.as_string::<i32>(), times.as_primitive::<TimestampMicrosecondType>());
    let mut values = Vec::with_capacity(times.len());
    for row in 0..times.len() {
        values.push(match (fields.is_valid(row), times.is_valid(row).then(|| times.value(row))) {
            (true, Some(time @ (i64::MIN | i64::MAX))) => Some(time),
            (true, Some(time)) => truncate(&fields.value(row).to_lowercase(), time)?,
            _ => None,
        });
    }
    Ok(Arc::new(TimestampMicrosecondArray::from(values).with_data_type(to)))
}

fn truncate(field: &str, micros: i64) -> Result<Option<i64>> {
    let Some(time) = DateTime::from_timestamp_micros(micros).map(|time| time.naive_utc()) else { return Ok(None) };
    let (date, year) = (time.date(), time.year());
    let first = |year: i32, month: u32| NaiveDate::from_ymd_opt(year, month, 1);
    let multiple = |unit: i64| Ok(Some(micros - micros.rem_euclid(unit)));
    let date = match field {
        "microsecond" | "microseconds" => return Ok(Some(micros)),
        "millisecond" | "milliseconds" => return multiple(1_000),
        "second" | "seconds" => return multiple(1_000_000),
        "minute" | "minutes" => return multiple(60_000_000),
        "hour" | "hours" => return multiple(3_600_000_000),
        "day" | "days" => Some(date),
        "week" | "weeks" => date.checked_sub_days(Days::new(u64::from(date.weekday().num_days_from_monday()))),
        "month" | "months" => first(year, time.month()),
        "quarter" => first(year, (time.month() - 1) / 3 * 3 + 1),
        "year" | "years" => first(year, 1),
        "decade" | "decades" => first(year.div_euclid(10) * 10, 1),
        "century" | "centuries" => first((year - 1).div_euclid(100) * 100 + 1, 1),
        "millennium" | "millennia" => first((year - 1).div_euclid(1000) * 1000 + 1, 1),
        other => return Err(unknown(other)),
    };
    Ok(date.map(|date| NaiveDateTime::new(date, NaiveTime::MIN).and_utc().timestamp_micros()))
}

fn unknown(field: &str) -> datafusion::common::DataFusionError {
    let message = format!("unit \"{field}\" not recognized for type timestamp without time zone");
    external(SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_postgresqls() {
        // Each checked with PostgreSQL 15; 2024-02-29 12:34:56.789012.
        let time = 1_709_210_096_789_012;
        let field = |name| of_time(name, time).unwrap().unwrap();
        assert_eq!((field("second"), field("milliseconds")), (56_789_012, 56_789_012_000));
        assert_eq!((field("week"), field("dow"), field("isodow")), (9_000_000, 4_000_000, 4_000_000));
        assert_eq!((epoch_of(2000, 100), epoch_of(2001, 100), epoch_of(0, 100), epoch_of(-99, 100)), (20, 21, -1, -1));
        let to = |name| truncate(name, time).unwrap().unwrap();
        assert_eq!(to("hour"), 1_709_208_000_000_000);
        assert_eq!(to("week"), 1_708_905_600_000_000);
        assert_eq!(to("quarter"), 1_704_067_200_000_000);
        assert!(of_time("nonsense", time).unwrap_err().to_string().contains("not recognized"));
        let year = IntervalMonthDayNano::new(12, 0, 0);
        assert_eq!(of_interval("epoch", year).unwrap(), Some(31_557_600_000_000));
    }
}
