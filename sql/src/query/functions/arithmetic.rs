//! `+ - * / %` and unary minus with PostgreSQL's result types and errors: 22003 instead of wrapping around or
//! infinity, 22012 for every division by zero.
//!
//! Operands are first cast to the operator's type, as PostgreSQL's operator tables say: the wider of two integers, numeric
//! for an integer and a numeric, double precision as soon as a float meets another type. numeric is computed in 128-bit
//! decimals, so a result has one scale per column where PostgreSQL chooses it per value: a quotient shows
//! [`DIVISION_SCALE`] digits behind the point.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, Datum as ArrowDatum, Decimal128Array},
    compute::kernels::numeric,
    datatypes::{DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, Float32Type, Float64Type, i256},
    error::ArrowError,
};
use datafusion::{
    common::{Result, ScalarValue},
    logical_expr::{
        ColumnarValue, Expr, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, cast,
    },
};

use crate::{
    error::SqlError,
    query::{failure::external, types},
    types::PgType,
};

/// Digits behind the point of a numeric quotient, unless an operand has more: PostgreSQL gives at least 16 significant ones.
pub const DIVISION_SCALE: i8 = 16;

/// A checked operator on two operands of one type (numeric: of any precision and scale).
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Arithmetic {
    op: Operator,
    signature: Signature,
}

/// `left op right` for two numbers.
pub fn call(op: Operator, left: Expr, right: Expr, left_type: &DataType, right_type: &DataType) -> Result<Expr> {
    let (to_left, to_right) = operand_types(left_type, right_type);
    let to = |expr: Expr, from: &DataType, to: &DataType| match (from, to) {
        (from, to) if from == to => expr,
        // Arrow divides two floats, which rounds twice.
        (DataType::Decimal128(..), DataType::Float64) => super::cast::call(expr, from, PgType::Float8.plain()),
        _ => cast(expr, to.clone()),
    };
    let arguments = vec![to(left, left_type, &to_left), to(right, right_type, &to_right)];
    let function = Arithmetic { op, signature: Signature::any(2, Volatility::Immutable) };
    Ok(ScalarUDF::new_from_impl(function).call(arguments))
}

/// What two numeric types are cast to before they meet.
fn operand_types(left: &DataType, right: &DataType) -> (DataType, DataType) {
    use DataType as D;
    let left = types::integer_of(left);
    let right = types::integer_of(right);
    let decimal = |from: &DataType| match from {
        D::Int16 => D::Decimal128(5, 0),
        D::Int32 => D::Decimal128(10, 0),
        D::Int64 => D::Decimal128(19, 0),
        other => other.clone(),
    };
    match (&left, &right) {
        (a, b) if a == b => (a.clone(), b.clone()),
        (D::Float32 | D::Float64, _) | (_, D::Float32 | D::Float64) => (D::Float64, D::Float64),
        (D::Decimal128(..), _) | (_, D::Decimal128(..)) => (decimal(&left), decimal(&right)),
        (D::Int64, _) | (_, D::Int64) => (D::Int64, D::Int64),
        (D::Int32, _) | (_, D::Int32) => (D::Int32, D::Int32),
        _ => (left, right),
    }
}

impl ScalarUDFImpl for Arithmetic {
    fn name(&self) -> &str {
        match self.op {
            Operator::Plus => "pg_add",
            Operator::Minus => "pg_sub",
            Operator::Multiply => "pg_mul",
            Operator::Divide => "pg_div",
            _ => "pg_mod",
        }
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(match (&arguments[0], &arguments[1]) {
            (DataType::Decimal128(_, a), DataType::Decimal128(_, b)) => {
                DataType::Decimal128(DECIMAL128_MAX_PRECISION, result_scale(self.op, *a, *b))
            }
            (same, _) => same.clone(),
        })
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let result_type = arguments.return_field.data_type().clone();
        let [left, right] = <[ColumnarValue; 2]>::try_from(arguments.args)
            .map_err(|_| datafusion::common::DataFusionError::Internal("an operator takes two operands".into()))?;
        let scalar = matches!((&left, &right), (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)));
        let (left, right) = (operand(left)?, operand(right)?);
        let result = self.compute(left.as_ref(), right.as_ref(), &result_type)?;
        Ok(if scalar {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)
        } else {
            ColumnarValue::Array(result)
        })
    }
}

/// An operand as Arrow's kernels take it: an array, or one value for all rows.
fn operand(value: ColumnarValue) -> Result<Box<dyn ArrowDatum>> {
    Ok(match value {
        ColumnarValue::Array(array) => Box::new(array),
        ColumnarValue::Scalar(scalar) => Box::new(scalar.to_scalar()?),
    })
}

fn result_scale(op: Operator, left: i8, right: i8) -> i8 {
    let max = DECIMAL128_MAX_PRECISION as i8;
    match op {
        Operator::Multiply => (left + right).min(max),
        Operator::Divide => left.max(right).max(DIVISION_SCALE),
        _ => left.max(right),
    }
}

impl Arithmetic {
    fn compute(&self, left: &dyn ArrowDatum, right: &dyn ArrowDatum, result_type: &DataType) -> Result<ArrayRef> {
        match result_type {
            DataType::Decimal128(_, scale) => decimal(self.op, left, right, *scale),
            DataType::Float32 | DataType::Float64 => float(self.op, left, right),
            integer => native(self.op, left, right).map_err(|error| external(named(error, integer))),
        }
    }
}

fn native(op: Operator, left: &dyn ArrowDatum, right: &dyn ArrowDatum) -> Result<ArrayRef, ArrowError> {
    match op {
        Operator::Plus => numeric::add(left, right),
        Operator::Minus => numeric::sub(left, right),
        Operator::Multiply => numeric::mul(left, right),
        Operator::Divide => numeric::div(left, right),
        _ => numeric::rem(left, right),
    }
}

fn named(error: ArrowError, data_type: &DataType) -> SqlError {
    match error {
        ArrowError::DivideByZero => SqlError::division_by_zero(),
        ArrowError::ArithmeticOverflow(_) => SqlError::out_of_range(&types::sql_name(data_type)),
        other => SqlError::internal(other.to_string()),
    }
}

/// Float arithmetic; where finite operands give infinity the value is out of range.
fn float(op: Operator, left: &dyn ArrowDatum, right: &dyn ArrowDatum) -> Result<ArrayRef> {
    let out_of_range =
        || external(SqlError::new(crate::error::SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: overflow"));
    let (l, r) = (floats(left), floats(right));
    let result = native(op, left, right).map_err(|error| external(named(error, &DataType::Float64)))?;
    for row in 0..result.len() {
        let (Some(a), Some(b)) = (l.at(row), r.at(row)) else { continue };
        if matches!(op, Operator::Divide | Operator::Modulo) && b == 0.0 && !a.is_nan() {
            return Err(external(SqlError::division_by_zero()));
        }
        let value = match result.data_type() {
            DataType::Float32 => f64::from(result.as_primitive::<Float32Type>().value(row)),
            _ => result.as_primitive::<Float64Type>().value(row),
        };
        if value.is_infinite() && a.is_finite() && b.is_finite() {
            return Err(out_of_range());
        }
    }
    Ok(result)
}

/// Reads an operand's rows, repeating a scalar.
struct Rows<'a, T> {
    array: &'a dyn Array,
    scalar: bool,
    read: fn(&dyn Array, usize) -> T,
}

impl<T> Rows<'_, T> {
    fn at(&self, row: usize) -> Option<T> {
        let row = if self.scalar { 0 } else { row };
        (!self.array.is_null(row)).then(|| (self.read)(self.array, row))
    }
}

fn floats(operand: &dyn ArrowDatum) -> Rows<'_, f64> {
    let (array, scalar) = operand.get();
    let read = |array: &dyn Array, row: usize| match array.data_type() {
        DataType::Float32 => f64::from(array.as_primitive::<Float32Type>().value(row)),
        _ => array.as_primitive::<Float64Type>().value(row),
    };
    Rows { array, scalar, read }
}

fn decimals(operand: &dyn ArrowDatum) -> Rows<'_, i128> {
    let (array, scalar) = operand.get();
    Rows { array, scalar, read: |array, row| array.as_primitive::<Decimal128Type>().value(row) }
}

fn scale_of(operand: &dyn ArrowDatum) -> i8 {
    match operand.get().0.data_type() {
        DataType::Decimal128(_, scale) => *scale,
        _ => 0,
    }
}

/// numeric arithmetic, exact in 256 bits and then fitted into 128.
fn decimal(op: Operator, left: &dyn ArrowDatum, right: &dyn ArrowDatum, scale: i8) -> Result<ArrayRef> {
    let (l, r) = (decimals(left), decimals(right));
    let (ls, rs) = (scale_of(left), scale_of(right));
    let len = if l.scalar { r.array.len() } else { l.array.len() };
    let mut values = Vec::with_capacity(len);
    for row in 0..len {
        values.push(match (l.at(row), r.at(row)) {
            (Some(a), Some(b)) => Some(decimal_value(op, (a, ls), (b, rs), scale).map_err(external)?),
            _ => None,
        });
    }
    let array = Decimal128Array::from(values).with_precision_and_scale(DECIMAL128_MAX_PRECISION, scale)?;
    Ok(Arc::new(array))
}

/// One operation on (mantissa, scale) pairs; the mantissa of the result at `scale`, rounded half away from zero.
fn decimal_value(op: Operator, left: (i128, i8), right: (i128, i8), scale: i8) -> Result<i128, SqlError> {
    let overflow = || SqlError::out_of_range("numeric");
    let aligned = |(mantissa, from): (i128, i8), to: i8| {
        i256::from_i128(mantissa).checked_mul(power_of_ten(to - from)?).ok_or_else(overflow)
    };
    let exact = match op {
        Operator::Plus => aligned(left, scale)?.checked_add(aligned(right, scale)?).ok_or_else(overflow)?,
        Operator::Minus => aligned(left, scale)?.checked_sub(aligned(right, scale)?).ok_or_else(overflow)?,
        Operator::Multiply => {
            let product = i256::from_i128(left.0).checked_mul(i256::from_i128(right.0)).ok_or_else(overflow)?;
            divide_rounded(product, power_of_ten(left.1 + right.1 - scale)?)
        }
        Operator::Divide | Operator::Modulo if right.0 == 0 => return Err(SqlError::division_by_zero()),
        Operator::Divide => {
            let dividend =
                i256::from_i128(left.0).checked_mul(power_of_ten(scale - left.1 + right.1)?).ok_or_else(overflow)?;
            divide_rounded(dividend, i256::from_i128(right.0))
        }
        _ => aligned(left, scale)?.checked_rem(aligned(right, scale)?).ok_or_else(overflow)?,
    };
    let limit = 10_i128.pow(u32::from(DECIMAL128_MAX_PRECISION));
    exact.to_i128().filter(|value| value.abs() < limit).ok_or_else(overflow)
}

fn power_of_ten(exponent: i8) -> Result<i256, SqlError> {
    i256::from_i128(10).checked_pow(exponent.max(0) as u32).ok_or_else(|| SqlError::out_of_range("numeric"))
}

fn divide_rounded(dividend: i256, divisor: i256) -> i256 {
    let quotient = dividend.wrapping_div(divisor);
    let rest = dividend.wrapping_rem(divisor).wrapping_abs();
    let half_reached = rest.wrapping_mul(i256::from_i128(2)) >= divisor.wrapping_abs();
    let negative = (dividend < i256::ZERO) != (divisor < i256::ZERO);
    match (half_reached, negative) {
        (false, _) => quotient,
        (true, false) => quotient.wrapping_add(i256::ONE),
        (true, true) => quotient.wrapping_sub(i256::ONE),
    }
}

/// Unary minus as PostgreSQL computes it: zero minus the operand, with the same overflow error.
pub fn negate(operand: Expr, data_type: &DataType) -> Result<Expr> {
    let zero = ScalarValue::new_zero(&types::integer_of(data_type))?;
    call(Operator::Minus, Expr::Literal(zero, None), operand, &types::integer_of(data_type), data_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_round_half_away_from_zero() {
        let div = |a, b| decimal_value(Operator::Divide, (a, 0), (b, 0), 2).unwrap();
        assert_eq!((div(1, 3), div(2, 3), div(-2, 3), div(1, 8), div(-1, 8)), (33, 67, -67, 13, -13));
        let err = decimal_value(Operator::Divide, (1, 0), (0, 0), 2).unwrap_err();
        assert_eq!(err, SqlError::division_by_zero());
        assert!(decimal_value(Operator::Multiply, (i128::MAX / 4, 0), (10, 0), 0).is_err());
    }

    #[test]
    fn operand_types_are_postgresqls() {
        use DataType as D;
        assert_eq!(operand_types(&D::Int16, &D::Int32), (D::Int32, D::Int32));
        assert_eq!(operand_types(&D::Int64, &D::Float32), (D::Float64, D::Float64));
        assert_eq!(operand_types(&D::Float32, &D::Float32), (D::Float32, D::Float32));
        assert_eq!(operand_types(&D::Int32, &D::Decimal128(8, 2)), (D::Decimal128(10, 0), D::Decimal128(8, 2)));
    }
}
