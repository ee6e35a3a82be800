//! Dates and times under `+` and `-`.
//!
//! Timestamps and intervals are added by Arrow, which knows months; what Arrow lacks or types otherwise is here: `date ± integer`,
//! `date - date` (an integer) and `timestamp - timestamp` (an interval of days and time, never of months).

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Date32Array, Int32Array, IntervalMonthDayNanoArray},
    compute::{kernels::arity::binary, kernels::arity::try_binary},
    datatypes::{DataType, Date32Type, Int32Type, IntervalMonthDayNano, TimeUnit, TimestampMicrosecondType},
    error::ArrowError,
};
use datafusion::{
    common::{Result, ScalarValue},
    logical_expr::{
        BinaryExpr, ColumnarValue, Expr, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
        cast,
    },
};

use crate::query::types::{Family, INTERVAL};

/// Microseconds of a day.
const DAY_MICROS: i64 = 86_400_000_000;

/// What the function computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// date + integer
    AddDays,
    /// date - integer
    SubDays,
    /// date - date
    DaysBetween,
    /// timestamp - timestamp, of either kind
    TimeBetween,
}

/// One of the operators above.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Temporal {
    kind: Kind,
    signature: Signature,
}

/// `left op right` where PostgreSQL has such an operator and at least one side is a date or time.
pub fn call(op: Operator, left: Expr, right: Expr, left_family: Family, right_family: Family) -> Option<Expr> {
    use Family as F;
    let timestamp = |expr: Expr| cast(expr, DataType::Timestamp(TimeUnit::Microsecond, None));
    let native = |left: Expr, right: Expr| Some(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right))));
    match (left_family, op, right_family) {
        (F::Date, Operator::Plus, F::Integer) => Some(build(Kind::AddDays, left, cast(right, DataType::Int32))),
        (F::Integer, Operator::Plus, F::Date) => Some(build(Kind::AddDays, right, cast(left, DataType::Int32))),
        (F::Date, Operator::Minus, F::Integer) => Some(build(Kind::SubDays, left, cast(right, DataType::Int32))),
        (F::Date, Operator::Minus, F::Date) => Some(build(Kind::DaysBetween, left, right)),
        (F::Date, Operator::Plus | Operator::Minus, F::Interval) => native(timestamp(left), right),
        (F::Interval, Operator::Plus, F::Date) => native(timestamp(right), left),
        (F::Timestamp | F::TimestampTz, Operator::Plus | Operator::Minus, F::Interval) => native(left, right),
        (F::Interval, Operator::Plus, F::Timestamp | F::TimestampTz) => native(right, left),
        (F::Interval, Operator::Plus | Operator::Minus, F::Interval) => native(left, right),
        (F::Timestamp, Operator::Minus, F::Date) => Some(build(Kind::TimeBetween, left, timestamp(right))),
        (F::Date, Operator::Minus, F::Timestamp) => Some(build(Kind::TimeBetween, timestamp(left), right)),
        (F::Timestamp, Operator::Minus, F::Timestamp) | (F::TimestampTz, Operator::Minus, F::TimestampTz) => {
            Some(build(Kind::TimeBetween, left, right))
        }
        _ => None,
    }
}

fn build(kind: Kind, left: Expr, right: Expr) -> Expr {
    let function = Temporal { kind, signature: Signature::any(2, Volatility::Immutable) };
    ScalarUDF::new_from_impl(function).call(vec![left, right])
}

impl ScalarUDFImpl for Temporal {
    fn name(&self) -> &str {
        match self.kind {
            Kind::AddDays => "date_add_days",
            Kind::SubDays => "date_sub_days",
            Kind::DaysBetween => "date_diff",
            Kind::TimeBetween => "timestamp_diff",
        }
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(match self.kind {
            Kind::AddDays | Kind::SubDays => DataType::Date32,
            Kind::DaysBetween => DataType::Int32,
            Kind::TimeBetween => INTERVAL,
        })
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = arguments.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { arguments.number_rows };
        let arrays = arguments.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<Vec<ArrayRef>>>()?;
        let result = self.compute(&arrays[0], &arrays[1])?;
        Ok(if scalar {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)
        } else {
            ColumnarValue::Array(result)
        })
    }
}

impl Temporal {
    fn compute(&self, left: &ArrayRef, right: &ArrayRef) -> Result<ArrayRef, ArrowError> {
        let overflow = || ArrowError::ArithmeticOverflow("date out of range".into());
        Ok(match self.kind {
            Kind::AddDays | Kind::SubDays => {
                let (dates, days) = (left.as_primitive::<Date32Type>(), right.as_primitive::<Int32Type>());
                let adds = self.kind == Kind::AddDays;
                let shifted: Date32Array = try_binary(dates, days, |date, days| {
                    if adds { date.checked_add(days) } else { date.checked_sub(days) }.ok_or_else(overflow)
                })?;
                Arc::new(shifted)
            }
            Kind::DaysBetween => {
                let (a, b) = (left.as_primitive::<Date32Type>(), right.as_primitive::<Date32Type>());
                let days: Int32Array = try_binary(a, b, |a, b| a.checked_sub(b).ok_or_else(overflow))?;
                Arc::new(days)
            }
            Kind::TimeBetween => {
                let a = left.as_primitive::<TimestampMicrosecondType>();
                let b = right.as_primitive::<TimestampMicrosecondType>();
                let between: IntervalMonthDayNanoArray = binary(a, b, |a, b| {
                    let micros = a.saturating_sub(b);
                    IntervalMonthDayNano::new(0, (micros / DAY_MICROS) as i32, micros % DAY_MICROS * 1000)
                })?;
                Arc::new(between)
            }
        })
    }
}
