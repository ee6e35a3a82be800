//! `timezone(zone, t)`, which `t AT TIME ZONE zone` calls: a timestamptz becomes the zone's wall clock, a timestamp
//! taken as the zone's wall clock becomes a timestamptz.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray},
    datatypes::{DataType, TimeUnit, TimestampMicrosecondType},
};
use datafusion::{
    common::{Result, ScalarValue},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};

use crate::{
    error::{SqlError, SqlResult, SqlState},
    query::{
        failure::external,
        types::{self, Family},
    },
    types::datetime,
};

#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeZone {
    signature: Signature,
}

/// The function.
pub fn timezone() -> ScalarUDF {
    ScalarUDF::new_from_impl(TimeZone { signature: Signature::user_defined(Volatility::Immutable) })
}

impl ScalarUDFImpl for TimeZone {
    fn name(&self) -> &str {
        "timezone"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let [zone, time] = arguments else { return Err(super::no_function("timezone", arguments)) };
        if !matches!(types::family(zone), Family::Text | Family::Unknown) {
            return Err(super::no_function("timezone", arguments));
        }
        let time = match types::family(time) {
            Family::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            // PostgreSQL takes a date, and what has no type, as timestamptz.
            Family::TimestampTz | Family::Date | Family::Unknown | Family::Text => types::timestamptz(),
            _ => return Err(super::no_function("timezone", arguments)),
        };
        Ok(vec![DataType::Utf8, time])
    }
    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(match types::family(&arguments[1]) {
            Family::Timestamp => types::timestamptz(),
            _ => DataType::Timestamp(TimeUnit::Microsecond, None),
        })
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = arguments.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { arguments.number_rows };
        let arrays = arguments.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<Vec<ArrayRef>>>()?;
        let shifted = shift(&arrays[0], &arrays[1]).map_err(external)?;
        let shifted: ArrayRef = Arc::new(shifted.with_data_type(arguments.return_field.data_type().clone()));
        Ok(if scalar {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&shifted, 0)?)
        } else {
            ColumnarValue::Array(shifted)
        })
    }
}

fn shift(zones: &ArrayRef, times: &ArrayRef) -> SqlResult<TimestampMicrosecondArray> {
    let to_local = types::family(times.data_type()) == Family::TimestampTz;
    let (zones, values) = (zones.as_string::<i32>(), times.as_primitive::<TimestampMicrosecondType>());
    (0..values.len())
        .map(|row| {
            if zones.is_null(row) || values.is_null(row) {
                return Ok(None);
            }
            let (name, time) = (zones.value(row), values.value(row));
            let zone = datetime::time_zone(name).ok_or_else(|| {
                SqlError::new(SqlState::INVALID_PARAMETER_VALUE, format!("time zone \"{name}\" not recognized"))
            })?;
            Ok(Some(if time == i64::MAX || time == i64::MIN {
                time
            } else if to_local {
                time + i64::from(datetime::offset_seconds(time, zone)) * 1_000_000
            } else {
                datetime::local_to_utc(time, zone)
            }))
        })
        .collect()
}
