//! `round`, `trunc`, `ceil`, `floor` and `sign` with PostgreSQL's types and rounding: a numeric stays one, with the digits behind the
//! point that are asked for; everything else is double precision, whose `round` goes to the even neighbour.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Decimal128Array, Float64Array},
    datatypes::{DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, Field, FieldRef, Float64Type, Int32Type},
};
use datafusion::{
    common::{Result, ScalarValue},
    logical_expr::{
        ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    },
};

use crate::query::types::{self, Family};

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Round,
    Trunc,
    Ceil,
    Floor,
    Sign,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Rounding {
    name: &'static str,
    kind: Kind,
    signature: Signature,
}

/// All of them, under each of their names.
pub fn all() -> Vec<ScalarUDF> {
    let build = |(name, kind)| {
        ScalarUDF::new_from_impl(Rounding { name, kind, signature: Signature::user_defined(Volatility::Immutable) })
    };
    [
        ("round", Kind::Round),
        ("trunc", Kind::Trunc),
        ("ceil", Kind::Ceil),
        ("ceiling", Kind::Ceil),
        ("floor", Kind::Floor),
        ("sign", Kind::Sign),
    ]
    .into_iter()
    .map(build)
    .collect()
}

impl ScalarUDFImpl for Rounding {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let digits = matches!(self.kind, Kind::Round | Kind::Trunc);
        match arguments {
            [argument] if types::family(argument) == Family::Decimal => Ok(vec![argument.clone()]),
            [argument] if types::family(argument).is_number() || types::family(argument) == Family::Unknown => {
                Ok(vec![DataType::Float64])
            }
            [argument, places] if digits && types::family(places) == Family::Integer => match types::family(argument) {
                Family::Decimal => Ok(vec![argument.clone(), DataType::Int32]),
                Family::Integer => Ok(vec![DataType::Decimal128(DECIMAL128_MAX_PRECISION, 0), DataType::Int32]),
                _ => Err(super::no_function(self.name, arguments)),
            },
            _ => Err(super::no_function(self.name, arguments)),
        }
    }
    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(match (&arguments[0], arguments.len()) {
            (DataType::Decimal128(_, scale), 2) => DataType::Decimal128(DECIMAL128_MAX_PRECISION, *scale),
            (DataType::Decimal128(..), _) => DataType::Decimal128(DECIMAL128_MAX_PRECISION, 0),
            _ => DataType::Float64,
        })
    }
    /// A number of places that is known gives the scale; otherwise the argument's stays.
    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let given: Vec<DataType> = arguments.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let data_type = match (self.return_type(&given)?, arguments.scalar_arguments.get(1)) {
            (DataType::Decimal128(precision, _), Some(Some(ScalarValue::Int32(Some(places))))) => {
                DataType::Decimal128(precision, (*places).clamp(0, i32::from(DECIMAL128_MAX_PRECISION)) as i8)
            }
            (other, _) => other,
        };
        let nullable = arguments.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name, data_type, nullable)))
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = arguments.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { arguments.number_rows };
        let array = arguments.args[0].to_array(rows)?;
        let result: ArrayRef = match (array.data_type(), arguments.return_field.data_type()) {
            (DataType::Decimal128(_, from), DataType::Decimal128(_, to)) => {
                let places = arguments.args.get(1).map(|places| places.to_array(rows)).transpose()?;
                Arc::new(self.decimals(&array, (*from, *to), places)?)
            }
            _ => {
                let rounded: Float64Array = array.as_primitive::<Float64Type>().unary(|value| self.float(value));
                Arc::new(rounded)
            }
        };
        Ok(if scalar {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)
        } else {
            ColumnarValue::Array(result)
        })
    }
}

impl Rounding {
    /// Numerics of the scale `from` as ones of the scale `to`, rounded to `places` (0 when there are none).
    fn decimals(&self, array: &ArrayRef, (from, to): (i8, i8), places: Option<ArrayRef>) -> Result<Decimal128Array> {
        let values = array.as_primitive::<Decimal128Type>();
        let mut rounded = Vec::with_capacity(values.len());
        for (row, mantissa) in values.iter().enumerate() {
            let places = match &places {
                None => Some(0),
                Some(places) => places.is_valid(row).then(|| places.as_primitive::<Int32Type>().value(row)),
            };
            rounded.push(match (mantissa, places) {
                (Some(mantissa), Some(places)) => {
                    Some(self.decimal(mantissa, i32::from(from), i32::from(to), places)?)
                }
                _ => None,
            });
        }
        Ok(Decimal128Array::from(rounded).with_precision_and_scale(DECIMAL128_MAX_PRECISION, to)?)
    }

    fn decimal(&self, mantissa: i128, from: i32, to: i32, places: i32) -> Result<i128> {
        // More places than there are change nothing; a unit beyond all digits leaves nothing but a carry.
        let dropped = u32::try_from(from - places.min(from)).unwrap_or(0);
        let unit = 10_i128.checked_pow(dropped);
        let whole = match (self.kind, unit) {
            (Kind::Sign, _) => mantissa.signum(),
            (_, None) => 0,
            (Kind::Round, Some(unit)) => {
                let (quotient, rest) = (mantissa / unit, mantissa % unit);
                // Without doubling, which could overflow.
                let up = rest != 0 && rest.unsigned_abs() >= unit.unsigned_abs() - rest.unsigned_abs();
                quotient + if up { mantissa.signum() } else { 0 }
            }
            (Kind::Trunc, Some(unit)) => mantissa / unit,
            (Kind::Ceil, Some(unit)) => -(-mantissa).div_euclid(unit),
            (Kind::Floor, Some(unit)) => mantissa.div_euclid(unit),
        };
        let scale = if self.kind == Kind::Sign { 0 } else { places.min(from) };
        let raised = u32::try_from(to - scale).ok().and_then(|power| 10_i128.checked_pow(power));
        let raised = if whole == 0 { Some(0) } else { raised.and_then(|unit| whole.checked_mul(unit)) };
        raised.ok_or_else(|| crate::query::failure::external(crate::SqlError::out_of_range("numeric")))
    }

    fn float(&self, value: f64) -> f64 {
        match self.kind {
            Kind::Round => value.round_ties_even(),
            Kind::Trunc => value.trunc(),
            Kind::Ceil => value.ceil(),
            Kind::Floor => value.floor(),
            Kind::Sign if value == 0.0 || value.is_nan() => value,
            Kind::Sign => value.signum(),
        }
    }
}
