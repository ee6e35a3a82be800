//! `nextval`, `currval`, `setval`, `lastval` over the sequences of a catalog snapshot.
//!
//! They run in the plan as functions that wait: [`crate::sequence::Sequences`] of the session that runs it does the work. A sequence is
//! named by its oid (`'s'::regclass`) or its name as text.

use std::{fmt, sync::Arc};

use arrow::array::{ArrayRef, Int64Array};
use async_trait::async_trait;
use datafusion::{
    common::Result,
    logical_expr::{ScalarUDF, TypeSignature},
};

use super::waiting::{self, Body, Rows};
use crate::{
    catalog::{CatalogSnapshot, Sequence},
    error::{SqlError, SqlResult, SqlState},
    query::{catalog::oids, failure::external},
    sequence::Sequences,
    types::{Datum, PgType, arrow as mapping},
};

/// Which of the functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Next,
    Current,
    Set,
    Last,
}

const KINDS: [(Kind, &str); 4] =
    [(Kind::Next, "nextval"), (Kind::Current, "currval"), (Kind::Set, "setval"), (Kind::Last, "lastval")];

struct Function {
    kind: Kind,
    snapshot: Arc<CatalogSnapshot>,
}

/// The function of that name over `snapshot`, if it is one of these.
pub fn function(name: &str, snapshot: &Arc<CatalogSnapshot>) -> Option<Arc<ScalarUDF>> {
    let (kind, name) = KINDS.into_iter().find(|(_, known)| *known == name)?;
    let arguments = match kind {
        Kind::Next | Kind::Current => vec![TypeSignature::Any(1)],
        Kind::Set => vec![TypeSignature::Any(2), TypeSignature::Any(3)],
        Kind::Last => vec![TypeSignature::Nullary],
    };
    Some(Arc::new(waiting::build(name, arguments, Function { kind, snapshot: Arc::clone(snapshot) })))
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.kind, f)
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.snapshot.version == other.snapshot.version
    }
}

impl Eq for Function {}

impl std::hash::Hash for Function {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
    }
}

#[async_trait]
impl Body for Function {
    fn result(&self) -> PgType {
        PgType::Int8
    }

    async fn call(&self, Rows { run, columns, count }: Rows) -> Result<ArrayRef> {
        let sequences = &run.source.backend().sequences;
        let values = self.values(sequences, &columns, count).await.map_err(external)?;
        Ok(Arc::new(Int64Array::from(values)))
    }
}

impl Function {
    async fn values(&self, sequences: &Sequences, columns: &[ArrayRef], rows: usize) -> SqlResult<Vec<Option<i64>>> {
        let argument = |column: usize, row: usize| match columns.get(column) {
            Some(array) => mapping::datum_at(array, row),
            None => Ok(Datum::Null),
        };
        if self.kind == Kind::Last {
            return (0..rows).map(|_| sequences.last().map(Some)).collect();
        }
        let mut named = Vec::with_capacity(rows);
        for row in 0..rows {
            named.push(self.sequence(&argument(0, row)?)?);
        }
        // Rows that follow each other and name one sequence draw together.
        let mut values = Vec::with_capacity(rows);
        while values.len() < rows {
            let row = values.len();
            let Some(sequence) = &named[row] else {
                values.push(None);
                continue;
            };
            match self.kind {
                Kind::Next => {
                    let same = |other: &&Option<Sequence>| other.as_ref().is_some_and(|other| other.id == sequence.id);
                    let count = named[row..].iter().take_while(same).count();
                    values.extend(sequences.next(sequence, count).await?.into_iter().map(Some));
                }
                Kind::Current => values.push(Some(sequences.current(sequence)?)),
                Kind::Set | Kind::Last => {
                    let (value, called) = (argument(1, row)?, argument(2, row)?);
                    let called = match (columns.len() > 2, called) {
                        (false, _) => Some(true),
                        (true, Datum::Bool(called)) => Some(called),
                        (true, Datum::Null) => None,
                        (true, _) => return Err(no_function()),
                    };
                    values.push(match (integer(value)?, called) {
                        (Some(value), Some(called)) => Some(sequences.set(sequence, value, called).await?),
                        _ => None,
                    });
                }
            }
        }
        Ok(values)
    }

    /// The sequence that an argument names; `None` for NULL.
    fn sequence(&self, named: &Datum) -> SqlResult<Option<Sequence>> {
        let id = match named {
            Datum::Null => return Ok(None),
            Datum::Text(name) => oids::relation(&self.snapshot, name.as_str())?,
            other => other.as_i64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0),
        };
        if let Some(sequence) = self.snapshot.sequence(id) {
            return Ok(Some(Sequence::clone(sequence)));
        }
        let shown = match named {
            Datum::Text(name) => format!("\"{}\" is not a sequence", name.as_str()),
            _ => format!("could not open relation with OID {id}"),
        };
        Err(SqlError::new(SqlState::WRONG_OBJECT_TYPE, shown))
    }
}

fn integer(value: Datum) -> SqlResult<Option<i64>> {
    match &value {
        Datum::Null => Ok(None),
        Datum::Text(text) => {
            let parsed = text.as_str().trim().parse();
            parsed.map(Some).map_err(|_| SqlError::invalid_input("bigint", text.as_str()))
        }
        other => other.as_i64().map(Some).ok_or_else(no_function),
    }
}

fn no_function() -> SqlError {
    SqlError::new(SqlState::UNDEFINED_FUNCTION, "no function setval takes arguments of these types").with_hint(
        "setval takes a sequence, a bigint, and optionally a boolean. You might need to add explicit type casts.",
    )
}
