//! The messages of the extended protocol.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Active, Session, StatementDescription, Step,
    plan::StatementPlan,
    portal::{Portal, Prepared, Progress, Source, Tag, check_count, no_portal, no_statement},
    step::Field,
};
use crate::{
    error::{SqlError, SqlResult, SqlState},
    statement::{Command, parse_one},
    types::{Datum, Format, PgType, binary, text},
};

impl Session {
    /// Parse: prepares a statement; `""` is the unnamed one. `param_oids` may be shorter than the parameters; 0 is "find out".
    pub async fn parse(&mut self, name: &str, sql: &str, param_oids: &[u32]) -> SqlResult<()> {
        let prepared = self.prepare(sql, param_oids);
        let prepared = self.noting_failure(prepared)?;
        self.keep_statement(name, prepared)
    }

    pub(super) fn keep_statement(&mut self, name: &str, prepared: Prepared) -> SqlResult<()> {
        if !name.is_empty() {
            if self.statements.contains_key(name) {
                let message = format!("prepared statement \"{name}\" already exists");
                return Err(SqlError::new(SqlState::DUPLICATE_PREPARED_STATEMENT, message));
            }
            check_count(self.statements.len(), "prepared statements")?;
        }
        self.statements.insert(name.to_owned(), Arc::new(prepared));
        Ok(())
    }

    /// An error of Parse, Bind or Describe fails the transaction too.
    fn noting_failure<T>(&mut self, result: SqlResult<T>) -> SqlResult<T> {
        if result.is_err() {
            self.fail(false);
        }
        result
    }

    fn prepare(&mut self, sql: &str, param_oids: &[u32]) -> SqlResult<Prepared> {
        let known = |oid: &u32| {
            PgType::from_oid(*oid)
                .ok_or_else(|| SqlError::new(SqlState::UNDEFINED_OBJECT, format!("type with OID {oid} does not exist")))
        };
        let declared: Vec<PgType> = param_oids.iter().map(known).collect::<SqlResult<_>>()?;
        if crate::statement::split(sql).len() > 1 {
            return Err(SqlError::syntax("cannot insert multiple commands into a prepared statement"));
        }
        let command = parse_one(sql)?;
        self.prepare_command(sql.to_owned(), command, declared)
    }

    pub(super) fn prepare_command(
        &mut self,
        sql: String,
        command: Command,
        declared: Vec<PgType>,
    ) -> SqlResult<Prepared> {
        let plan = self.gateway.planner().plan(&sql, &command, &self.snapshot(), &declared);
        // In a failed transaction nobody cares whether the statement could be planned.
        if !plan.as_ref().is_ok_and(StatementPlan::ends_transaction) {
            self.transaction.check()?;
        }
        let mut plan = plan?;
        if let Some(fields) = self.cursor_fields(&command) {
            plan.fields = Some(fields);
        }
        // From now on the types are fixed: planning again must find the same.
        let declared = if plan.param_types.is_empty() { declared } else { plan.param_types.clone() };
        Ok(Prepared { sql, command, declared, plan: Arc::new(plan), unparsed: false, simple: false })
    }

    fn statement(&self, name: &str) -> SqlResult<&Arc<Prepared>> {
        self.statements.get(name).ok_or_else(|| no_statement(name))
    }

    /// Describe of a prepared statement.
    pub async fn describe_statement(&mut self, name: &str) -> SqlResult<StatementDescription> {
        let described = self.statement(name).map(|prepared| StatementDescription {
            param_oids: prepared.plan.param_types.iter().map(|pg_type| pg_type.oid()).collect(),
            fields: prepared.plan.fields.clone(),
        });
        self.noting_failure(described)
    }

    /// Bind: gives a statement its parameters. Formats are none (all text), one (for all) or one for each.
    pub async fn bind(
        &mut self,
        portal: &str,
        statement: &str,
        param_formats: &[Format],
        params: Vec<Option<Bytes>>,
        result_formats: &[Format],
    ) -> SqlResult<()> {
        let bound = self.bound(statement, param_formats, params, result_formats);
        let bound = self.noting_failure(bound)?;
        if !portal.is_empty() {
            if self.portals.contains_key(portal) {
                return Err(SqlError::new(SqlState::DUPLICATE_CURSOR, format!("cursor \"{portal}\" already exists")));
            }
            check_count(self.portals.len(), "portals")?;
        }
        self.portals.insert(portal.to_owned(), bound);
        Ok(())
    }

    fn bound(
        &mut self,
        statement: &str,
        param_formats: &[Format],
        params: Vec<Option<Bytes>>,
        result_formats: &[Format],
    ) -> SqlResult<Portal> {
        let prepared = Arc::clone(self.statement(statement)?);
        if !prepared.plan.ends_transaction() {
            self.transaction.check()?;
        }
        let types = &prepared.plan.param_types;
        if params.len() != types.len() {
            return Err(SqlError::new(
                SqlState::PROTOCOL_VIOLATION,
                format!(
                    "bind message supplies {} parameters, but prepared statement \"{statement}\" requires {}",
                    params.len(),
                    types.len()
                ),
            ));
        }
        if param_formats.len() > 1 && param_formats.len() != params.len() {
            return Err(SqlError::new(
                SqlState::PROTOCOL_VIOLATION,
                format!("bind message has {} parameter formats but {} parameters", param_formats.len(), params.len()),
            ));
        }
        let width = prepared.plan.fields.as_ref().map_or(0, |fields| fields.len());
        if result_formats.len() > 1 && result_formats.len() != width {
            return Err(SqlError::new(
                SqlState::PROTOCOL_VIOLATION,
                format!("bind message has {} result formats but query has {width} columns", result_formats.len()),
            ));
        }
        let mut values = Vec::with_capacity(params.len());
        for (at, (param, pg_type)) in params.into_iter().zip(types).enumerate() {
            let format = match param_formats {
                [one] => *one,
                each => each.get(at).copied().unwrap_or_default(),
            };
            values.push(match (param, format) {
                (None, _) => Datum::Null,
                (Some(bytes), Format::Text) => {
                    text::parse_plain(&text::checked_text(&bytes)?, *pg_type, &self.settings.format)?
                }
                (Some(bytes), Format::Binary) => binary::receive(&bytes, pg_type.plain())?,
            });
        }
        let plan = Arc::clone(&prepared.plan);
        Ok(Portal { prepared, plan, params: values, formats: result_formats.to_vec(), progress: Progress::New })
    }

    /// Describe of a portal: its columns with their formats; `None` for NoData.
    pub async fn describe_portal(&mut self, name: &str) -> SqlResult<Option<Arc<[Field]>>> {
        let described = self.portals.get(name).ok_or_else(|| no_portal(name)).map(Portal::fields);
        self.noting_failure(described)
    }

    /// Result formats of a portal, for encoding its rows.
    pub fn portal_formats(&self, name: &str) -> Vec<Format> {
        self.portals.get(name).map(|portal| portal.formats.clone()).unwrap_or_default()
    }

    /// Execute: then call [`Session::next`] until `None`. `max_rows` 0 is all. `last` says that Sync is the next message:
    /// then a statement outside a transaction commits (and is retried) within Execute; otherwise it joins the
    /// implicit transaction that [`Session::sync`] commits. A protocol that has read Execute and nothing behind it should wait for
    /// the next message before it calls this.
    pub async fn execute(&mut self, portal: &str, max_rows: u32, last: bool) -> SqlResult<()> {
        let taken = self.portals.remove(portal);
        self.begin_statement(taken.as_ref().map_or("", |portal| &portal.prepared.sql))?;
        let Some(mut taken) = taken else {
            self.fail(false);
            return Err(no_portal(portal));
        };
        if matches!(taken.progress, Progress::New) {
            // A result in parts outlives the message: its transaction ends with Sync.
            let running = self.start(&mut taken, last && max_rows == 0).await?;
            taken.progress = Progress::Running(Box::new(running));
        }
        self.portals.insert(portal.to_owned(), taken);
        self.active = Active::Portal(portal.to_owned(), (max_rows > 0).then_some(u64::from(max_rows)));
        Ok(())
    }

    pub(super) async fn next_of_portal(&mut self, name: String, mut left: Option<u64>) -> SqlResult<Option<Step>> {
        if let Some(copy) = &mut self.copy_in
            && let Some(step) = copy.announce()
        {
            self.active = Active::Portal(name, left);
            return Ok(Some(step));
        }
        let Some(mut portal) = self.portals.remove(&name) else { return Ok(None) };
        let step = self.advance(&mut portal, &mut left).await?;
        self.portals.insert(name.clone(), portal);
        if !matches!(step, Some(Step::Done(_) | Step::Suspended | Step::Empty) | None) {
            self.active = Active::Portal(name, left);
        }
        Ok(step)
    }

    /// COPY FROM has taken all its rows: what comes next is its tag.
    pub(super) fn end_copy(&mut self, tag: String) {
        let portal = match &mut self.active {
            Active::Portal(name, _) => self.portals.get_mut(name),
            Active::Simple(queue) => queue.running_portal(),
            Active::Nothing | Active::Batch(_) => None,
        };
        if let Some(portal) = portal
            && let Progress::Running(running) = &mut portal.progress
        {
            running.source = Source::Nothing;
            running.tag = Tag::Fixed(tag);
            running.single = false;
        }
    }

    /// Close of a prepared statement; one that does not exist is no error.
    pub fn close_statement(&mut self, name: &str) {
        self.statements.remove(name);
    }
    /// Close of a portal; one that does not exist is no error.
    pub fn close_portal(&mut self, name: &str) {
        self.portals.remove(name);
    }

    /// Sync: ends an implicit transaction (commits it, or rolls it back after an error). An error is reported before ReadyForQuery.
    pub async fn sync(&mut self) -> SqlResult<()> {
        self.active = Active::Nothing;
        self.copy_in = None;
        if self.in_block() {
            return Ok(());
        }
        self.portals.clear();
        self.commit().await
    }
}
