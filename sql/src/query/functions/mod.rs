//! PostgreSQL's functions and operators over Arrow, where DataFusion has none or another meaning.

pub mod advisory;
mod aggregates;
pub mod arithmetic;
pub mod cast;
pub mod fields;
mod notify;
pub mod registry;
pub mod rounding;
pub mod scalar;
pub mod sequences;
pub mod session;
pub mod signals;
mod sleep;
pub mod standard;
pub mod temporal;
pub mod type_of;
mod waiting;
pub mod widened;
pub mod zone;

use arrow::datatypes::DataType;
use datafusion::common::DataFusionError;

use crate::{
    error::{SqlError, SqlState},
    query::{failure::external, types},
};

/// 42883 for a function that no argument types of this kind have.
pub fn no_function(name: &str, arguments: &[DataType]) -> DataFusionError {
    let shown = arguments.iter().map(types::sql_name).collect::<Vec<_>>().join(", ");
    external(
        SqlError::new(SqlState::UNDEFINED_FUNCTION, format!("function {name}({shown}) does not exist")).with_hint(
            "No function matches the given name and argument types. You might need to add explicit type casts.",
        ),
    )
}
