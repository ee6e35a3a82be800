//! `pg_sleep(seconds)`: waits on the gateway's clock.

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, AsArray, StringArray},
    datatypes::{DataType, Float64Type},
};
use async_trait::async_trait;
use datafusion::{
    common::Result,
    logical_expr::{ScalarUDF, TypeSignature},
};

use super::waiting::{self, Body, Rows};
use crate::types::PgType;

/// Longest wait for one batch of rows: what does not fit is cut to it, as nobody waits so long.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Sleep;

/// The function.
pub fn pg_sleep() -> ScalarUDF {
    waiting::build("pg_sleep", vec![TypeSignature::Exact(vec![DataType::Float64])], Sleep)
}

#[async_trait]
impl Body for Sleep {
    fn result(&self) -> PgType {
        PgType::Void
    }

    /// Waits for the sum of the rows' times; each row is an empty text, NULL for no time.
    async fn call(&self, rows: Rows) -> Result<ArrayRef> {
        let times = rows.columns[0].as_primitive::<Float64Type>();
        let seconds: f64 = times.iter().flatten().filter(|seconds| *seconds > 0.0).sum();
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or(MAX_WAIT).min(MAX_WAIT);
        if !wait.is_zero() {
            rows.run.source.clock().sleep(wait).await;
        }
        Ok(Arc::new(times.iter().map(|seconds| seconds.map(|_| "")).collect::<StringArray>()))
    }
}
