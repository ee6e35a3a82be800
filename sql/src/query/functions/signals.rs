//! `pg_cancel_backend(pid)`, `pg_terminate_backend(pid [, timeout])`: of a session on any node.

use std::sync::Arc;

use arrow::{
    array::{AsArray, BooleanArray},
    datatypes::{DataType, FieldRef, Int32Type},
};
use async_trait::async_trait;
use datafusion::{
    common::{DataFusionError, Result},
    logical_expr::{
        ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature,
        Volatility,
        async_udf::{AsyncScalarUDF, AsyncScalarUDFImpl},
    },
};
use proto::wire::SignalRequest;

use crate::{
    query::{failure::external, run::Slot},
    types::{PgType, arrow as mapping},
};

#[derive(Debug, PartialEq, Eq, Hash)]
struct Signal {
    name: &'static str,
    terminate: bool,
    signature: Signature,
}

/// The functions. The timeout is taken and not waited for: the session ends as soon as its node hears of it.
pub fn all() -> [ScalarUDF; 2] {
    let function = |name, terminate, arguments| {
        let signature = Signature::one_of(arguments, Volatility::Volatile);
        AsyncScalarUDF::new(Arc::new(Signal { name, terminate, signature })).into_scalar_udf()
    };
    let pid = || TypeSignature::Exact(vec![DataType::Int32]);
    [
        function("pg_cancel_backend", false, vec![pid()]),
        function(
            "pg_terminate_backend",
            true,
            vec![pid(), TypeSignature::Exact(vec![DataType::Int32, DataType::Int64])],
        ),
    ]
}

impl ScalarUDFImpl for Signal {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }
    fn return_field_from_args(&self, _arguments: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(mapping::field(self.name, PgType::Bool.plain(), true).into())
    }
    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(DataFusionError::Internal(format!("{}() was called where nothing can wait", self.name)))
    }
}

#[async_trait]
impl AsyncScalarUDFImpl for Signal {
    /// Whether there is such a session.
    async fn invoke_async_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let client = {
            let slot = arguments.config_options.extensions.get::<Slot>();
            let slot = slot.ok_or_else(|| DataFusionError::Internal("a plan was made without a slot".into()))?;
            slot.run()?.source.reader().main().client().clone()
        };
        let pids = arguments.args[0].to_array(arguments.number_rows)?;
        let mut told = Vec::with_capacity(pids.len());
        for pid in pids.as_primitive::<Int32Type>() {
            told.push(match pid {
                None => None,
                // A process id that nobody has.
                Some(pid) if pid <= 0 => Some(false),
                Some(pid) => {
                    let signal = SignalRequest { pid: pid as u32, terminate: self.terminate, ..Default::default() };
                    Some(client.signal(signal).await.map_err(|error| external(error.into()))?)
                }
            });
        }
        Ok(ColumnarValue::Array(Arc::new(BooleanArray::from(told))))
    }
}
