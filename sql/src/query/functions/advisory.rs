//! `pg_advisory_lock` and its kin, over [`crate::advisory`] of the session that runs the plan.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, StringArray},
    datatypes::DataType,
};
use async_trait::async_trait;
use datafusion::{
    common::Result,
    logical_expr::{ScalarUDF, TypeSignature},
};

use super::waiting::{self, Body, Rows};
use crate::{
    advisory::{Ask, Name, Scope},
    error::{Severity, SqlError, SqlResult, SqlState},
    query::failure::external,
    session::Backend,
    types::{Datum, PgType, arrow as mapping},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// Waits; void.
    Lock(Scope),
    /// Whether it got it.
    Try(Scope),
    /// Whether it was held.
    Unlock,
    /// void
    UnlockAll,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    kind: Kind,
    shared: bool,
}

/// All of them.
pub fn all() -> impl Iterator<Item = ScalarUDF> {
    use Kind::{Lock, Try, Unlock, UnlockAll};
    let (session, transaction) = (Scope::Session, Scope::Transaction);
    let functions = [
        ("pg_advisory_lock", Lock(session), false),
        ("pg_advisory_lock_shared", Lock(session), true),
        ("pg_advisory_xact_lock", Lock(transaction), false),
        ("pg_advisory_xact_lock_shared", Lock(transaction), true),
        ("pg_try_advisory_lock", Try(session), false),
        ("pg_try_advisory_lock_shared", Try(session), true),
        ("pg_try_advisory_xact_lock", Try(transaction), false),
        ("pg_try_advisory_xact_lock_shared", Try(transaction), true),
        ("pg_advisory_unlock", Unlock, false),
        ("pg_advisory_unlock_shared", Unlock, true),
        ("pg_advisory_unlock_all", UnlockAll, false),
    ];
    functions.into_iter().map(|(name, kind, shared)| {
        let arguments = match kind {
            UnlockAll => vec![TypeSignature::Nullary],
            _ => vec![
                // Two integers first: they would fit one bigint each.
                TypeSignature::Exact(vec![DataType::Int32, DataType::Int32]),
                TypeSignature::Exact(vec![DataType::Int64]),
            ],
        };
        waiting::build(name, arguments, Function { kind, shared })
    })
}

impl Function {
    async fn of(&self, backend: &Backend, name: Name) -> SqlResult<bool> {
        let (locks, shared) = (&backend.advisory, self.shared);
        match self.kind {
            Kind::Lock(scope) => locks.take(Ask { name, shared, scope, wait: true, label: backend.label() }).await,
            Kind::Try(scope) => locks.take(Ask { name, shared, scope, wait: false, label: backend.label() }).await,
            Kind::Unlock => {
                let unlocked = locks.unlock(name, shared).await;
                if !unlocked {
                    let mode = if shared { "ShareLock" } else { "ExclusiveLock" };
                    let message = format!("you don't own a lock of type {mode}");
                    backend.notice(SqlError::notice(Severity::Warning, SqlState::WARNING, message));
                }
                Ok(unlocked)
            }
            Kind::UnlockAll => {
                locks.unlock_all().await;
                Ok(true)
            }
        }
    }
}

/// The lock that a row names; `None` for NULL.
fn name(columns: &[ArrayRef], row: usize) -> SqlResult<Option<Name>> {
    let mut numbers = Vec::with_capacity(2);
    for column in columns {
        match mapping::datum_at(column, row)? {
            Datum::Null => return Ok(None),
            value => numbers.push(value.as_i64().unwrap_or_default()),
        }
    }
    Ok(match numbers.as_slice() {
        [first, second] => Some(Name::Two(*first as i32, *second as i32)),
        [one] => Some(Name::One(*one)),
        _ => Some(Name::One(0)),
    })
}

#[async_trait]
impl Body for Function {
    fn result(&self) -> PgType {
        if matches!(self.kind, Kind::Try(_) | Kind::Unlock) { PgType::Bool } else { PgType::Void }
    }

    async fn call(&self, Rows { run, columns, count }: Rows) -> Result<ArrayRef> {
        let mut answers = Vec::with_capacity(count);
        for row in 0..count {
            answers.push(match name(&columns, row).map_err(external)? {
                Some(name) => Some(self.of(run.source.backend(), name).await.map_err(external)?),
                None => None,
            });
        }
        Ok(match self.result() {
            PgType::Void => Arc::new(answers.iter().map(|answer| answer.map(|_| "")).collect::<StringArray>()),
            _ => Arc::new(BooleanArray::from(answers)),
        })
    }
}
