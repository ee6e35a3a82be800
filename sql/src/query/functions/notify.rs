//! `pg_notify(channel, payload)`: NOTIFY with names and texts that are computed.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, StringArray},
    datatypes::{DataType, FieldRef},
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
    error::SqlError,
    query::{failure::external, run::Slot},
    types::{Datum, PgType, arrow as mapping},
};

#[derive(Debug, PartialEq, Eq, Hash)]
struct Notify {
    signature: Signature,
}

/// The function.
pub fn pg_notify() -> ScalarUDF {
    let signature = Signature::exact(vec![DataType::Utf8, DataType::Utf8], Volatility::Volatile);
    AsyncScalarUDF::new(Arc::new(Notify { signature })).into_scalar_udf()
}

impl ScalarUDFImpl for Notify {
    fn name(&self) -> &str {
        "pg_notify"
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
        Err(external(SqlError::unsupported("pg_notify() in this place")))
    }
}

#[async_trait]
impl AsyncScalarUDFImpl for Notify {
    /// Each row is noted for the transaction's COMMIT. NULLs are empty, as in PostgreSQL: an empty channel is refused.
    async fn invoke_async_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let slot = arguments.config_options.extensions.get::<Slot>();
        let slot = slot.ok_or_else(|| DataFusionError::Internal("a plan was made without a slot".into()))?;
        let run = slot.run()?;
        let rows = arguments.number_rows;
        let columns = arguments.args.iter().map(|argument| argument.to_array(rows));
        let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
        let mut pending = run.source.backend().pending.lock();
        for row in 0..rows {
            let text = |column: usize| match mapping::datum_at(&columns[column], row) {
                Ok(Datum::Text(text)) => Ok(text.as_str().to_owned()),
                Ok(_) => Ok(String::new()),
                Err(error) => Err(external(error)),
            };
            pending.notify(&text(0)?, &text(1)?).map_err(external)?;
        }
        Ok(ColumnarValue::Array(Arc::new(StringArray::from(vec![""; rows]))))
    }
}
