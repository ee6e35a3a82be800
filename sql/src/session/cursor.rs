//! DECLARE, FETCH, CLOSE: portals that statements name.
//!
//! A cursor is a portal like those of the extended protocol, in the same name space. FETCH's rows are the portal's next ones,
//! streamed like any result. Cursors end with their transaction, and go forward only.

use std::{future::Future, pin::Pin, sync::Arc};

use datafusion::sql::sqlparser::ast::{CloseCursor, FetchDirection, Ident, Statement, Value};

use super::{
    Session, Step,
    plan::Declared,
    portal::{Portal, Progress, Running, Source, Tag, check_count},
    step::Field,
};
use crate::{
    error::{SqlError, SqlResult, SqlState},
    name::folded,
    statement::Command,
    types::{Datum, PgType},
};

/// A statement's query runs inside of another statement: a type that does not hold itself.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = SqlResult<T>> + Send + 'a>>;

fn no_cursor(name: &str) -> SqlError {
    SqlError::new(SqlState::INVALID_CURSOR_NAME, format!("cursor \"{name}\" does not exist"))
}

impl Session {
    /// DECLARE.
    pub(super) fn declare(&mut self, cursor: &Declared, types: Vec<PgType>, params: Vec<Datum>) -> SqlResult<Running> {
        if !self.in_block() {
            let message = "DECLARE CURSOR can only be used in transaction blocks";
            return Err(SqlError::new(SqlState::NO_ACTIVE_SQL_TRANSACTION, message));
        }
        if self.portals.contains_key(&cursor.name) {
            let message = format!("cursor \"{}\" already exists", cursor.name);
            return Err(SqlError::new(SqlState::DUPLICATE_CURSOR, message));
        }
        check_count(self.portals.len(), "portals")?;
        let command = Command::Sql(Arc::clone(&cursor.query));
        let prepared = Arc::new(self.prepare_command(cursor.query.to_string(), command, types)?);
        let plan = Arc::clone(&prepared.plan);
        let portal = Portal { prepared, plan, params, formats: Vec::new(), progress: Progress::New };
        self.portals.insert(cursor.name.clone(), portal);
        Ok(Running::done("DECLARE CURSOR"))
    }

    /// The columns that FETCH gives; `None` for any other statement.
    pub(super) fn cursor_fields(&self, command: &Command) -> Option<Arc<[Field]>> {
        let Command::Sql(statement) = command else { return None };
        let Statement::Fetch { name, .. } = &**statement else { return None };
        self.portals.get(&folded(name))?.plan.fields.clone()
    }

    /// FETCH: starts the cursor's query at its first use.
    pub(super) fn fetch_from<'a>(&'a mut self, name: &Ident, direction: &FetchDirection) -> Boxed<'a, Running> {
        let (name, left) = (folded(name), rows_of(direction));
        Box::pin(async move {
            let left = left?;
            let mut cursor = self.portals.remove(&name).ok_or_else(|| no_cursor(&name))?;
            if matches!(cursor.progress, Progress::New) {
                let started = self.start(&mut cursor, false).await?;
                cursor.progress = Progress::Running(Box::new(started));
            }
            let mut running = Running::with_tag(Tag::Fetch);
            if let Progress::Running(query) = &cursor.progress {
                running.shape = Arc::clone(&query.shape);
                running.source = Source::Cursor { name: name.clone(), left };
            }
            self.portals.insert(name, cursor);
            Ok(running)
        })
    }

    /// More rows of a cursor into the FETCH that runs; its source is gone when there are no more for it.
    pub(super) fn advance_cursor<'a>(&'a mut self, portal: &'a mut Portal) -> Boxed<'a, ()> {
        Box::pin(async move {
            let Progress::Running(running) = &mut portal.progress else { return Ok(()) };
            let Source::Cursor { name, left } = &mut running.source else { return Ok(()) };
            let name = name.clone();
            let mut cursor = self.portals.remove(&name).ok_or_else(|| no_cursor(&name))?;
            let step = self.advance(&mut cursor, left).await?;
            self.portals.insert(name, cursor);
            match step {
                Some(Step::Rows(batch)) => running.ready.push_back(batch),
                _ => running.source = Source::Nothing,
            }
            Ok(())
        })
    }

    /// CLOSE.
    pub(super) fn close_cursor(&mut self, cursor: &CloseCursor) -> SqlResult<Running> {
        match cursor {
            CloseCursor::All => {
                self.portals.clear();
                Ok(Running::done("CLOSE CURSOR ALL"))
            }
            CloseCursor::Specific { name } => {
                let name = folded(name);
                self.portals.remove(&name).ok_or_else(|| no_cursor(&name))?;
                Ok(Running::done("CLOSE CURSOR"))
            }
        }
    }
}

/// How many rows; `None` for all that are left.
fn rows_of(direction: &FetchDirection) -> SqlResult<Option<u64>> {
    let limit = match direction {
        FetchDirection::Next | FetchDirection::Forward { limit: None } => return Ok(Some(1)),
        FetchDirection::All | FetchDirection::ForwardAll => return Ok(None),
        FetchDirection::Count { limit } | FetchDirection::Forward { limit: Some(limit) } => limit,
        _ => {
            return Err(SqlError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "cursor can only scan forward"));
        }
    };
    match &limit.value {
        Value::Number(digits, _) => match digits.parse::<u64>() {
            Ok(rows) if rows > 0 => Ok(Some(rows)),
            Ok(_) => Err(SqlError::unsupported("FETCH 0")),
            Err(_) => Err(SqlError::out_of_range("bigint")),
        },
        other => Err(SqlError::syntax(format!("syntax error at or near \"{other}\""))),
    }
}
