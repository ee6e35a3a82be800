//! Functions that wait for something: of the plan's run, they hold no thread meanwhile. A cancel drops the run, and with it the wait.

use std::{fmt, hash::Hash, sync::Arc};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, FieldRef},
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

use crate::{
    error::SqlError,
    query::{
        failure::external,
        run::{Run, Slot},
    },
    types::{PgType, arrow as mapping},
};

/// The rows that a function is called for.
pub struct Rows {
    /// What differs between two runs of the plan.
    pub run: Arc<Run>,
    /// The arguments, each with a value for every row.
    pub columns: Vec<ArrayRef>,
    /// How many rows.
    pub count: usize,
}

/// What a function does. Two of one name and equal bodies are the same function.
#[async_trait]
pub trait Body: fmt::Debug + Eq + Hash + Send + Sync + 'static {
    /// The type of its value.
    fn result(&self) -> PgType;
    /// Its value for every row.
    async fn call(&self, rows: Rows) -> Result<ArrayRef>;
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function<B> {
    name: &'static str,
    signature: Signature,
    body: B,
}

/// A function of this name, with one of these forms of arguments.
pub fn build<B: Body>(name: &'static str, arguments: Vec<TypeSignature>, body: B) -> ScalarUDF {
    let signature = Signature::one_of(arguments, Volatility::Volatile);
    AsyncScalarUDF::new(Arc::new(Function { name, signature, body })).into_scalar_udf()
}

impl<B: Body> ScalarUDFImpl for Function<B> {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(mapping::data_type(self.body.result().plain()))
    }
    fn return_field_from_args(&self, _arguments: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(mapping::field(self.name, self.body.result().plain(), true).into())
    }
    /// 0A000: the expression stands in a place where nothing can wait.
    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(external(SqlError::unsupported(format!("{}() in this place", self.name))))
    }
}

#[async_trait]
impl<B: Body> AsyncScalarUDFImpl for Function<B> {
    async fn invoke_async_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let run = {
            let slot = arguments.config_options.extensions.get::<Slot>();
            slot.ok_or_else(|| DataFusionError::Internal("a plan was made without a slot".into()))?.run()?
        };
        let count = arguments.number_rows;
        let columns = arguments.args.iter().map(|argument| argument.to_array(count));
        let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
        self.body.call(Rows { run, columns, count }).await.map(ColumnarValue::Array)
    }
}
