//! `pg_cancel_backend(pid)`, `pg_terminate_backend(pid [, timeout])`: of a session on any node.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray},
    datatypes::{DataType, Int32Type},
};
use async_trait::async_trait;
use datafusion::{
    common::Result,
    logical_expr::{ScalarUDF, TypeSignature},
};
use proto::wire::SignalRequest;

use super::waiting::{self, Body, Rows};
use crate::{query::failure::external, types::PgType};

#[derive(Debug, PartialEq, Eq, Hash)]
struct Signal {
    terminate: bool,
}

/// The functions. The timeout is taken and not waited for: the session ends as soon as its node hears of it.
pub fn all() -> [ScalarUDF; 2] {
    let pid = || TypeSignature::Exact(vec![DataType::Int32]);
    let pid_and_timeout = TypeSignature::Exact(vec![DataType::Int32, DataType::Int64]);
    [
        waiting::build("pg_cancel_backend", vec![pid()], Signal { terminate: false }),
        waiting::build("pg_terminate_backend", vec![pid(), pid_and_timeout], Signal { terminate: true }),
    ]
}

#[async_trait]
impl Body for Signal {
    fn result(&self) -> PgType {
        PgType::Bool
    }

    /// Whether there is such a session.
    async fn call(&self, rows: Rows) -> Result<ArrayRef> {
        let client = rows.run.source.reader().main().client().clone();
        let mut told = Vec::with_capacity(rows.count);
        for pid in rows.columns[0].as_primitive::<Int32Type>() {
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
        Ok(Arc::new(BooleanArray::from(told)))
    }
}
