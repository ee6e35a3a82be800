//! `pg_notify(channel, payload)`: NOTIFY with names and texts that are computed.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, StringArray},
    datatypes::DataType,
};
use async_trait::async_trait;
use datafusion::{
    common::Result,
    logical_expr::{ScalarUDF, TypeSignature},
};

use super::waiting::{self, Body, Rows};
use crate::{
    query::failure::external,
    types::{Datum, PgType, arrow as mapping},
};

#[derive(Debug, PartialEq, Eq, Hash)]
struct Notify;

/// The function. It waits for nothing, but needs the session.
pub fn pg_notify() -> ScalarUDF {
    waiting::build("pg_notify", vec![TypeSignature::Exact(vec![DataType::Utf8, DataType::Utf8])], Notify)
}

#[async_trait]
impl Body for Notify {
    fn result(&self) -> PgType {
        PgType::Void
    }

    /// Each row is noted for the transaction's COMMIT. NULLs are empty, as in PostgreSQL: an empty channel is refused.
    async fn call(&self, Rows { run, columns, count }: Rows) -> Result<ArrayRef> {
        let mut pending = run.source.backend().pending.lock();
        for row in 0..count {
            let text = |column: usize| match mapping::datum_at(&columns[column], row) {
                Ok(Datum::Text(text)) => Ok(text.as_str().to_owned()),
                Ok(_) => Ok(String::new()),
                Err(error) => Err(external(error)),
            };
            pending.notify(&text(0)?, &text(1)?).map_err(external)?;
        }
        Ok(Arc::new(StringArray::from(vec![""; count])))
    }
}
