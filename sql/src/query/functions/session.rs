//! Functions whose value belongs to a transaction or session: `now()`, `current_user`, …
//!
//! They exist only while a statement is bound; then they become placeholders, which the optimiser leaves alone and
//! each run fills (see `run`).

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::{
    common::{DataFusionError, Result},
    logical_expr::{
        ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    },
};

use super::cast;
use crate::{
    query::{
        run::HoleSource,
        types::{pg_field, text_field, timestamptz},
    },
    types::{ColumnType, NO_TYPE_MOD, PgType, arrow as mapping},
};

/// What a name stands for.
struct Meaning {
    name: &'static str,
    source: Option<HoleSource>,
    pg_type: PgType,
}

const fn meaning(name: &'static str, source: HoleSource, pg_type: PgType) -> Meaning {
    Meaning { name, source: Some(source), pg_type }
}

/// All of them. One transaction's statements see one time, as in PostgreSQL; `clock_timestamp()` is the
/// transaction's time too, since a node reads no clock of its own while it computes.
const MEANINGS: [Meaning; 15] = [
    meaning("now", HoleSource::TransactionTime, PgType::TimestampTz),
    meaning("transaction_timestamp", HoleSource::TransactionTime, PgType::TimestampTz),
    meaning("statement_timestamp", HoleSource::TransactionTime, PgType::TimestampTz),
    meaning("clock_timestamp", HoleSource::TransactionTime, PgType::TimestampTz),
    meaning("current_timestamp", HoleSource::TransactionTime, PgType::TimestampTz),
    meaning("localtimestamp", HoleSource::TransactionTime, PgType::Timestamp),
    meaning("current_date", HoleSource::TransactionTime, PgType::Date),
    meaning("current_user", HoleSource::User, PgType::Name),
    meaning("session_user", HoleSource::User, PgType::Name),
    meaning("user", HoleSource::User, PgType::Name),
    meaning("current_role", HoleSource::User, PgType::Name),
    meaning("current_database", HoleSource::Database, PgType::Name),
    meaning("current_catalog", HoleSource::Database, PgType::Name),
    meaning("pg_backend_pid", HoleSource::ProcessId, PgType::Int4),
    Meaning { name: "current_schema", source: None, pg_type: PgType::Name },
];

/// A function of no arguments that binding replaces.
#[derive(Debug, PartialEq, Eq, Hash)]
struct SessionFunction {
    name: &'static str,
    source: Option<HoleSource>,
    column_type: ColumnType,
    signature: Signature,
}

/// The function of that name, if it is one of these.
pub fn function(name: &str) -> Option<Arc<ScalarUDF>> {
    let meaning = MEANINGS.iter().find(|meaning| meaning.name == name)?;
    Some(Arc::new(ScalarUDF::new_from_impl(SessionFunction {
        name: meaning.name,
        source: meaning.source,
        column_type: ColumnType { pg_type: meaning.pg_type, type_mod: NO_TYPE_MOD },
        signature: Signature::nullary(Volatility::Stable),
    })))
}

/// What a call of one of these becomes; `None` for any other function.
pub fn replacement(function: &ScalarUDF) -> Option<Expr> {
    let function = (function.inner().as_ref() as &dyn std::any::Any).downcast_ref::<SessionFunction>()?;
    let to = function.column_type;
    Some(match function.source {
        None => {
            let public = Expr::Literal(datafusion::common::ScalarValue::Utf8(Some("public".into())), None);
            cast::call(public, &DataType::Utf8, to)
        }
        Some(HoleSource::TransactionTime) => {
            let time = HoleSource::TransactionTime.placeholder(pg_field(PgType::TimestampTz.plain()));
            if to.pg_type == PgType::TimestampTz { time } else { cast::call(time, &timestamptz(), to) }
        }
        Some(source) => cast::call(source.placeholder(text_field()), &DataType::Utf8, to),
    })
}

impl ScalarUDFImpl for SessionFunction {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(mapping::data_type(self.column_type))
    }
    fn return_field_from_args(&self, _arguments: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(mapping::field(self.name, self.column_type, true).into())
    }
    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(DataFusionError::Internal(format!("{}() was not replaced when the statement was bound", self.name)))
    }
}
