//! sum() and avg() with PostgreSQL's result types.
//!
//! DataFusion's sum of bigint is a bigint that wraps around; PostgreSQL's is numeric. Its avg of integers is a
//! float; PostgreSQL's is numeric. Here only the type that the argument is coerced to differs; the accumulators are
//! DataFusion's.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::{
    common::{Result, ScalarValue},
    functions_aggregate::{average::avg_udaf, sum::sum_udaf},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, GroupsAccumulator, ReversedUDAF, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
    },
};

use super::widened::{Widened, WidenedGroups};
use crate::query::types::{self, Family};

/// Digits behind the point that an average's argument gets; the average itself has four more, 16 as PostgreSQL's.
const AVERAGE_ARGUMENT_SCALE: i8 = 12;
/// Digits that hold every bigint and leave room for the sum of 10^9 of them.
const BIGINT_SUM_PRECISION: u8 = 28;

/// DataFusion's aggregate with PostgreSQL's coercion.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Coerced {
    inner: Arc<AggregateUDF>,
    average: bool,
    signature: Signature,
}

/// sum(x).
pub fn sum() -> Arc<AggregateUDF> {
    build(sum_udaf(), false)
}

/// avg(x).
pub fn avg() -> Arc<AggregateUDF> {
    build(avg_udaf(), true)
}

fn build(inner: Arc<AggregateUDF>, average: bool) -> Arc<AggregateUDF> {
    Arc::new(AggregateUDF::new_from_impl(Coerced {
        inner,
        average,
        signature: Signature::user_defined(Volatility::Immutable),
    }))
}

impl AggregateUDFImpl for Coerced {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        let [argument] = arguments else { return Err(self.no_such(arguments)) };
        let coerced = match (types::family(argument), argument) {
            (Family::Integer, DataType::Int64 | DataType::UInt64) if !self.average => {
                DataType::Decimal128(BIGINT_SUM_PRECISION, 0)
            }
            // Applied twice this gives the same: bigint would become numeric the second time.
            (Family::Integer, _) if !self.average => DataType::Int32,
            (Family::Integer, _) => DataType::Decimal128(38, AVERAGE_ARGUMENT_SCALE),
            (Family::Decimal, DataType::Decimal128(_, scale)) if self.average => {
                DataType::Decimal128(38, (*scale).max(AVERAGE_ARGUMENT_SCALE))
            }
            (Family::Decimal, other) => other.clone(),
            (Family::Float, _) => DataType::Float64,
            _ => return Err(self.no_such(arguments)),
        };
        Ok(vec![coerced])
    }
    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        if arguments == [DataType::Int32] { Ok(DataType::Int64) } else { self.inner.return_type(arguments) }
    }
    fn accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let widened = self.widens(&arguments);
        let inner = self.inner.accumulator(arguments)?;
        Ok(if widened { Box::new(Widened(inner)) } else { inner })
    }
    fn state_fields(&self, arguments: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(arguments)
    }
    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(arguments)
    }
    fn create_groups_accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let widened = self.widens(&arguments);
        let inner = self.inner.create_groups_accumulator(arguments)?;
        Ok(if widened { Box::new(WidenedGroups(inner)) } else { inner })
    }
    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let widened = self.widens(&arguments);
        let inner = self.inner.create_sliding_accumulator(arguments)?;
        Ok(if widened { Box::new(Widened(inner)) } else { inner })
    }
    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }
    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        self.inner.default_value(data_type)
    }
}

impl Coerced {
    /// The sum of an integer is a bigint, its accumulator one of bigints.
    fn widens(&self, arguments: &AccumulatorArgs) -> bool {
        !self.average && arguments.expr_fields.first().is_some_and(|field| field.data_type() == &DataType::Int32)
    }

    fn no_such(&self, arguments: &[DataType]) -> datafusion::common::DataFusionError {
        super::no_function(self.inner.name(), arguments)
    }
}
