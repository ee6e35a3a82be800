//! Values of parameters and literals as the holes of a plan take them.

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::ScalarValue;

use crate::{
    error::{SqlError, SqlResult},
    query::{
        failure::from_datafusion,
        functions::cast::{Strength, cast_datum},
    },
    types::{
        ColumnType, Datum, FormatSettings, PgType,
        arrow::{self as mapping, ColumnBuilder},
    },
};

/// `datum` as a value of `field`'s type. A text goes through the type's input function.
pub fn scalar(datum: Datum, field: &FieldRef, settings: &FormatSettings) -> SqlResult<ScalarValue> {
    if datum.is_null() {
        return ScalarValue::try_from(field.data_type()).map_err(from_datafusion);
    }
    if let (DataType::Interval(_), Datum::Text(text)) = (field.data_type(), &datum) {
        return interval(text.as_str());
    }
    let to = target(field)?;
    let from = datum.pg_type().plain();
    let cast = cast_datum(datum, from, to, Strength::Assignment, settings)?;
    let mut builder = ColumnBuilder::new(to, 1);
    builder.push(&cast)?;
    ScalarValue::try_from_array(&builder.finish(), 0).map_err(from_datafusion)
}

/// The field's PostgreSQL type; a numeric keeps the scale that the plan was made with.
fn target(field: &FieldRef) -> SqlResult<ColumnType> {
    let column_type = mapping::column_type(field)?;
    match field.data_type() {
        DataType::Decimal128(precision, scale) if column_type.pg_type == PgType::Numeric => {
            ColumnType::numeric(u64::from(*precision), i64::from(*scale))
        }
        _ => Ok(column_type),
    }
}

fn interval(text: &str) -> SqlResult<ScalarValue> {
    let parsed = arrow::compute::kernels::cast_utils::parse_interval_month_day_nano(text);
    parsed
        .map(|value| ScalarValue::IntervalMonthDayNano(Some(value)))
        .map_err(|_| SqlError::invalid_input("interval", text))
}
