//! `ceil`, `floor` and `sign` with PostgreSQL's types: numeric stays numeric without digits behind
//! the point, everything else is double precision.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Decimal128Array, Float64Array},
    datatypes::{DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, Float64Type},
};
use datafusion::{
    common::{Result, ScalarValue},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};

use crate::query::types::{self, Family};

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
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
    [("ceil", Kind::Ceil), ("ceiling", Kind::Ceil), ("floor", Kind::Floor), ("sign", Kind::Sign)]
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
        match arguments {
            [argument] if types::family(argument) == Family::Decimal => Ok(vec![argument.clone()]),
            [argument] if types::family(argument).is_number() || types::family(argument) == Family::Unknown => {
                Ok(vec![DataType::Float64])
            }
            _ => Err(super::no_function(self.name, arguments)),
        }
    }
    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(match types::family(&arguments[0]) {
            Family::Decimal => DataType::Decimal128(DECIMAL128_MAX_PRECISION, 0),
            _ => DataType::Float64,
        })
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = matches!(arguments.args[0], ColumnarValue::Scalar(_));
        let array = arguments.args[0].to_array(if scalar { 1 } else { arguments.number_rows })?;
        let result: ArrayRef = match array.data_type() {
            DataType::Decimal128(_, scale) => {
                let unit = 10_i128.pow(u32::try_from(*scale).unwrap_or(0));
                let rounded: Decimal128Array =
                    array.as_primitive::<Decimal128Type>().unary(|mantissa| self.decimal(mantissa, unit));
                Arc::new(rounded.with_precision_and_scale(DECIMAL128_MAX_PRECISION, 0)?)
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
    fn decimal(&self, mantissa: i128, unit: i128) -> i128 {
        match self.kind {
            Kind::Ceil => -(-mantissa).div_euclid(unit),
            Kind::Floor => mantissa.div_euclid(unit),
            Kind::Sign => mantissa.signum(),
        }
    }
    fn float(&self, value: f64) -> f64 {
        match self.kind {
            Kind::Ceil => value.ceil(),
            Kind::Floor => value.floor(),
            Kind::Sign if value == 0.0 || value.is_nan() => value,
            Kind::Sign => value.signum(),
        }
    }
}
