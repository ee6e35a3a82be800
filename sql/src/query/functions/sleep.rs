//! `pg_sleep(seconds)`: waits on the gateway's clock and holds no thread meanwhile. A cancel drops the run, and with it the wait.

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, AsArray, StringArray},
    datatypes::{DataType, FieldRef, Float64Type},
};
use async_trait::async_trait;
use datafusion::{
    common::{DataFusionError, Result},
    logical_expr::{
        ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
        async_udf::{AsyncScalarUDF, AsyncScalarUDFImpl},
    },
};

use crate::{
    query::run::Slot,
    types::{PgType, arrow as mapping},
};

/// Longest wait for one batch of rows: what does not fit is cut to it, as nobody waits so long.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Sleep {
    signature: Signature,
}

/// The function.
pub fn pg_sleep() -> ScalarUDF {
    let signature = Signature::exact(vec![DataType::Float64], Volatility::Volatile);
    AsyncScalarUDF::new(Arc::new(Sleep { signature })).into_scalar_udf()
}

impl ScalarUDFImpl for Sleep {
    fn name(&self) -> &str {
        "pg_sleep"
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(mapping::data_type(PgType::Void.plain()))
    }
    fn return_field_from_args(&self, _arguments: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(mapping::field(self.name(), PgType::Void.plain(), true).into())
    }
    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(DataFusionError::Internal("pg_sleep() was called where nothing can wait".into()))
    }
}

#[async_trait]
impl AsyncScalarUDFImpl for Sleep {
    /// Waits for the sum of the rows' times; each row is an empty text, NULL for no time.
    async fn invoke_async_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let clock = {
            let slot = arguments.config_options.extensions.get::<Slot>();
            let slot = slot.ok_or_else(|| DataFusionError::Internal("a plan was made without a slot".into()))?;
            Arc::clone(slot.run()?.source.clock())
        };
        let times: ArrayRef = arguments.args[0].to_array(arguments.number_rows)?;
        let times = times.as_primitive::<Float64Type>();
        let seconds: f64 = times.iter().flatten().filter(|seconds| *seconds > 0.0).sum();
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or(MAX_WAIT).min(MAX_WAIT);
        if !wait.is_zero() {
            clock.sleep(wait).await;
        }
        let rows: StringArray = times.iter().map(|seconds| seconds.map(|_| "")).collect();
        Ok(ColumnarValue::Array(Arc::new(rows)))
    }
}
