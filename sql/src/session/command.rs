//! Statements that are not about rows: transactions, settings, schema, prepared statements.

use std::{collections::VecDeque, sync::Arc};

use datafusion::sql::sqlparser::ast::{
    AlterTable, AlterTableOperation, DiscardObject, DropBehavior, Expr, Ident, ObjectType, Reset, Set, Statement,
    TransactionAccessMode, TransactionIsolationLevel, TransactionMode, UnaryOperator, Value,
};

use super::{
    Session, TransactionStatus,
    plan::{self, PlanKind},
    portal::{Portal, Progress, Running, Tag, no_statement},
    step::{RowBatch, RowShape},
    transaction::State,
};
use crate::{
    ddl::{
        Pending,
        constraint::{self, Alone, Dropping},
        create_table, drop_table, index, sequence, truncate,
    },
    dml::Isolation,
    error::{Severity, SqlError, SqlResult, SqlState},
    eval::{Compiler, ParamTypes, Refusal},
    name::{RelationName, folded},
    notify::Change,
    query::{RunValues, explain},
    statement::{Command, SequenceStatement, sequence::Action},
    types::{Datum, PgType},
};

/// A statement that changes the schema.
#[derive(Clone, Copy)]
pub(super) enum SchemaStatement<'a> {
    Sql(&'a Statement),
    Sequence(&'a SequenceStatement),
}

/// How often a schema change on its own is run again after a conflict with another one.
const MAX_DDL_RETRIES: u32 = 50;

impl Session {
    /// Runs a command. `single`: outside of a transaction and alone in its message.
    pub(super) async fn command(&mut self, statement: &Arc<Statement>, single: bool) -> SqlResult<Running> {
        match &**statement {
            Statement::StartTransaction { modes, .. } => self.begin(modes),
            Statement::Commit { chain, .. } => self.end_block(true, *chain).await,
            Statement::Rollback { chain, savepoint: None } => self.end_block(false, *chain).await,
            Statement::Rollback { savepoint: Some(name), .. } => self.roll_back_to(&folded(name)).await,
            Statement::Savepoint { name } => self.savepoint(folded(name)).await,
            Statement::ReleaseSavepoint { name } => self.release(&folded(name)),
            Statement::Set(set) => self.set(set),
            Statement::Reset(reset) => {
                let changes = match &reset.reset {
                    Reset::ALL => self.settings.reset_all(),
                    Reset::ConfigurationParameter(name) => {
                        let name = name.to_string();
                        self.before_setting();
                        let changes = self.settings.reset(&name)?.into_iter().collect();
                        self.after_setting(&name);
                        changes
                    }
                };
                self.changes.extend(changes);
                Ok(Running::done("RESET"))
            }
            Statement::ShowVariable { variable } => self.show(variable),
            Statement::Discard { object_type } => self.discard(object_type).await,
            Statement::Deallocate { name, .. } => self.deallocate(name),
            Statement::NOTIFY { channel, payload } => {
                self.open(false)?;
                self.backend.pending.lock().notify(&folded(channel), payload.as_deref().unwrap_or_default())?;
                Ok(Running::done("NOTIFY"))
            }
            Statement::LISTEN { channel } => self.listening("LISTEN", Change::Listen(folded(channel))),
            Statement::UNLISTEN { channel } if channel.value == "*" && channel.quote_style.is_none() => {
                self.listening("UNLISTEN", Change::UnlistenAll)
            }
            Statement::UNLISTEN { channel } => self.listening("UNLISTEN", Change::Unlisten(folded(channel))),
            Statement::Prepare { name, data_types, statement } => {
                let types = data_types.iter().map(|data_type| {
                    crate::query::bind::type_names::column_type(data_type).map(|column_type| column_type.pg_type)
                });
                let declared = types.collect::<SqlResult<Vec<PgType>>>()?;
                let command = Command::Sql(Arc::new((**statement).clone()));
                let prepared = self.prepare_command(statement.to_string(), command, declared)?;
                self.keep_statement(&folded(name), prepared)?;
                Ok(Running::done("PREPARE"))
            }
            Statement::Execute { name: Some(name), parameters, .. } => {
                let name = RelationName::new(name)?.name;
                self.execute_prepared(&name, parameters, single).await
            }
            Statement::Lock(lock) => self.lock_tables(lock).await,
            Statement::Explain { statement, analyze, .. } => self.explain_statement(statement, *analyze).await,
            Statement::Fetch { name, direction, into: None, .. } => self.fetch_from(name, direction).await,
            Statement::Close { cursor } => self.close_cursor(cursor),
            _ => self.schema_change(SchemaStatement::Sql(statement), single).await,
        }
    }

    fn begin(&mut self, modes: &[TransactionMode]) -> SqlResult<Running> {
        if self.transaction.status() == TransactionStatus::InTransaction {
            let message = "there is already a transaction in progress";
            self.notices.push(SqlError::notice(Severity::Warning, SqlState::ACTIVE_SQL_TRANSACTION, message));
        }
        self.open(true)?.explicit = true;
        self.set_modes(modes)?;
        Ok(Running::done("BEGIN"))
    }

    /// BEGIN's and SET TRANSACTION's modes. A transaction that has seen something keeps its level: 25001.
    fn set_modes(&mut self, modes: &[TransactionMode]) -> SqlResult<()> {
        for mode in modes {
            match mode {
                TransactionMode::AccessMode(access) => {
                    let open = self.open(false)?;
                    let read_only = *access == TransactionAccessMode::ReadOnly;
                    if open.past.is_some() && !read_only {
                        return Err(SqlError::syntax("a transaction AS OF SYSTEM TIME is read-only"));
                    }
                    if open.near && !read_only {
                        let message = "transaction read-write mode must be set before any query";
                        return Err(SqlError::new(SqlState::ACTIVE_SQL_TRANSACTION, message));
                    }
                    open.read_only = read_only;
                }
                TransactionMode::IsolationLevel(level) => self.set_isolation(Isolation::named(level_name(level))?)?,
            }
        }
        Ok(())
    }

    fn set_isolation(&mut self, isolation: Isolation) -> SqlResult<()> {
        let open = self.open(false)?;
        if open.txn.is_some() && open.isolation != isolation {
            let message = "SET TRANSACTION ISOLATION LEVEL must be called before any query";
            return Err(SqlError::new(SqlState::ACTIVE_SQL_TRANSACTION, message));
        }
        open.isolation = isolation;
        Ok(())
    }

    async fn end_block(&mut self, commit: bool, chain: bool) -> SqlResult<Running> {
        if chain {
            return Err(SqlError::unsupported("AND CHAIN"));
        }
        let status = self.transaction.status();
        if status == TransactionStatus::Idle {
            let message = "there is no transaction in progress";
            self.notices.push(SqlError::notice(Severity::Warning, SqlState::NO_ACTIVE_SQL_TRANSACTION, message));
        }
        // Portals and cursors end with the transaction they were made in.
        self.portals.clear();
        if commit && status != TransactionStatus::Failed {
            self.commit().await?;
            return Ok(Running::done("COMMIT"));
        }
        self.rollback();
        self.backend.advisory.freed().await;
        self.transaction.tables.left().await;
        Ok(Running::done("ROLLBACK"))
    }

    fn set(&mut self, set: &Set) -> SqlResult<Running> {
        match set {
            Set::SingleAssignment { scope, variable, values, .. } => {
                let local = matches!(scope, Some(datafusion::sql::sqlparser::ast::ContextModifier::Local));
                self.set_one(&variable.to_string(), values, local)?;
            }
            Set::SetTimeZone { local, value } => self.set_one("TimeZone", std::slice::from_ref(value), *local)?,
            Set::SetNames { charset_name, .. } => {
                let change = self.settings.set("client_encoding", &charset_name.value)?;
                self.changes.extend(change);
            }
            Set::SetTransaction { modes, session: false, snapshot: None } => {
                if self.transaction.status() == TransactionStatus::Idle {
                    let message = "SET TRANSACTION can only be used in transaction blocks";
                    let warning = SqlError::notice(Severity::Warning, SqlState::NO_ACTIVE_SQL_TRANSACTION, message);
                    self.notices.push(warning);
                } else {
                    self.set_modes(modes)?;
                }
            }
            Set::SetTransaction { modes, session: true, .. } => {
                for mode in modes {
                    let (name, value) = match mode {
                        TransactionMode::AccessMode(TransactionAccessMode::ReadOnly) => {
                            ("default_transaction_read_only", "on")
                        }
                        TransactionMode::AccessMode(_) => ("default_transaction_read_only", "off"),
                        TransactionMode::IsolationLevel(level) => {
                            ("default_transaction_isolation", Isolation::named(level_name(level))?.name())
                        }
                    };
                    let change = self.settings.set(name, value)?;
                    self.changes.extend(change);
                }
            }
            _ => return Err(SqlError::unsupported("this form of SET")),
        }
        Ok(Running::done("SET"))
    }

    /// SET, or with `local` SET LOCAL: until the transaction ends.
    fn set_one(&mut self, name: &str, values: &[Expr], local: bool) -> SqlResult<()> {
        if local && !self.in_block() {
            let message = "SET LOCAL can only be used in transaction blocks";
            self.notices.push(SqlError::notice(Severity::Warning, SqlState::NO_ACTIVE_SQL_TRANSACTION, message));
            return Ok(());
        }
        let words: Vec<String> = values.iter().map(setting_text).collect::<SqlResult<_>>()?;
        let is_default = matches!(values, [Expr::Identifier(word)] if word.value.eq_ignore_ascii_case("default"));
        if name.eq_ignore_ascii_case("transaction_isolation") && !is_default {
            // It is the transaction's, not the session's; the settings know which levels there are.
            let level = self.settings.checked_level(&words.join(" "))?;
            return if self.in_block() { self.set_isolation(Isolation::named(&level)?) } else { Ok(()) };
        }
        self.before_setting();
        let change =
            if is_default { self.settings.reset(name)? } else { self.settings.set(name, &words.join(", "))? };
        self.changes.extend(change);
        if !local {
            self.after_setting(name);
        }
        Ok(())
    }

    fn show(&mut self, variable: &[Ident]) -> SqlResult<Running> {
        let name = plan::show_name(variable);
        let runs = self.gateway.planner_runs().to_string();
        let rows: Vec<Vec<Datum>> = match name.as_str() {
            "all" => self.settings.all().map(|(name, value)| vec![Datum::text(name), Datum::text(value)]).collect(),
            "flaredb.planner_runs" => vec![vec![Datum::text(runs)]],
            "transaction_isolation" => vec![vec![Datum::text(self.isolation()?.name())]],
            name => vec![vec![Datum::text(self.settings.show(name)?.1)]],
        };
        Ok(self.text_rows("SHOW", rows))
    }

    /// Of the open transaction, or of the next one.
    fn isolation(&self) -> SqlResult<Isolation> {
        match &self.transaction.state {
            State::Open(open) => Ok(open.isolation),
            _ => Isolation::named(self.settings.show("default_transaction_isolation")?.1),
        }
    }

    /// A result of text columns.
    fn text_rows(&self, tag: &str, rows: Vec<Vec<Datum>>) -> Running {
        let width = rows.first().map_or(1, Vec::len);
        let types = vec![PgType::Text.plain(); width];
        let shape = Arc::new(RowShape { types, settings: self.settings.format.clone() });
        let mut running = Running::with_tag(Tag::Fixed(tag.to_owned()));
        let count = rows.len();
        let datums = rows.into_iter().flatten().collect();
        running.ready = VecDeque::from([RowBatch::from_datums(Arc::clone(&shape), count, datums)]);
        running.shape = shape;
        running
    }

    /// LISTEN, UNLISTEN: carried out at COMMIT.
    fn listening(&mut self, tag: &str, change: Change) -> SqlResult<Running> {
        self.open(false)?;
        self.backend.pending.lock().change(change);
        Ok(Running::done(tag))
    }

    async fn discard(&mut self, object: &DiscardObject) -> SqlResult<Running> {
        match object {
            DiscardObject::ALL => {
                if self.in_block() {
                    return Err(SqlError::new(
                        SqlState::ACTIVE_SQL_TRANSACTION,
                        "DISCARD ALL cannot run inside a transaction block",
                    ));
                }
                self.statements.clear();
                self.portals.clear();
                self.backend.sequences.forget();
                self.backend.advisory.unlock_all().await;
                self.gateway.channels().unlisten(self.backend.pid, None);
                let changes = self.settings.reset_all();
                self.changes.extend(changes);
                Ok(Running::done("DISCARD ALL"))
            }
            DiscardObject::PLANS => Ok(Running::done("DISCARD PLANS")),
            DiscardObject::SEQUENCES => {
                self.backend.sequences.forget();
                Ok(Running::done("DISCARD SEQUENCES"))
            }
            DiscardObject::TEMP => Ok(Running::done("DISCARD TEMP")),
        }
    }

    fn deallocate(&mut self, name: &Ident) -> SqlResult<Running> {
        if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("all") {
            self.statements.clear();
            return Ok(Running::done("DEALLOCATE ALL"));
        }
        let name = folded(name);
        match self.statements.remove(&name) {
            Some(_) => Ok(Running::done("DEALLOCATE")),
            None => Err(no_statement(&name)),
        }
    }

    async fn execute_prepared(&mut self, name: &str, arguments: &[Expr], single: bool) -> SqlResult<Running> {
        let prepared = Arc::clone(self.statements.get(name).ok_or_else(|| no_statement(name))?);
        let types = &prepared.plan.param_types;
        if arguments.len() != types.len() {
            return Err(SqlError::syntax(format!("wrong number of parameters for prepared statement \"{name}\""))
                .with_detail(format!("Expected {} parameters but got {}.", types.len(), arguments.len())));
        }
        let mut compiler = Compiler::new(ParamTypes::default());
        let mut params = Vec::with_capacity(arguments.len());
        let now_us = self.gateway.config().clock.wall_ms() as i64 * 1000;
        let env = crate::eval::Env { row: &[], params: &[], now_us, settings: &self.settings.format };
        for (argument, pg_type) in arguments.iter().zip(types) {
            let scalar =
                compiler.assigned(argument, pg_type.plain(), "parameter").map_err(|refusal| match refusal {
                    Refusal::Error(error) => error,
                    Refusal::Unknown => SqlError::unsupported(format!("the EXECUTE argument {argument}")),
                })?;
            params.push(scalar.eval(&env)?);
        }
        let plan = Arc::clone(&prepared.plan);
        if !matches!(plan.kind, PlanKind::Key(_) | PlanKind::General(_) | PlanKind::Empty | PlanKind::Maintenance(_)) {
            return Err(SqlError::unsupported("EXECUTE of a statement that is no query or change"));
        }
        let mut portal = Portal { prepared, plan, params, formats: Vec::new(), progress: Progress::New };
        self.start(&mut portal, single).await
    }

    async fn explain_statement(&mut self, statement: &Statement, analyze: bool) -> SqlResult<Running> {
        if analyze {
            return Err(SqlError::unsupported("EXPLAIN ANALYZE"));
        }
        let single = matches!(self.transaction.state, State::Idle);
        let snapshot = self.snapshot();
        let now_us = self.open(false)?.now_us;
        let settings = self.settings.format.clone();
        if let Some(plan) = self.gateway.planner().explained_key(statement, &snapshot)? {
            let env = crate::eval::Env { row: &[], params: &[], now_us, settings: &settings };
            let lines = explain::explain_key(&plan, self.gateway.client(), &env).await?;
            if single {
                self.rollback();
            }
            return Ok(self.lines(lines));
        }
        let planned = self.gateway.planner().explained(statement, &snapshot)?;
        let (reader, _) = self.reader().await?;
        let clock = Arc::clone(&self.gateway.config().clock);
        let values = RunValues {
            parameters: &[],
            lifted: &planned.lifted,
            transaction_time: now_us,
            settings: &settings,
            clock: &clock,
            backend: &self.backend,
            locked: &[],
        };
        let lines = explain::explain(&planned.plan, reader, &values).await?;
        if single {
            self.rollback();
        }
        Ok(self.lines(lines))
    }

    /// EXPLAIN's result.
    fn lines(&self, lines: Vec<String>) -> Running {
        self.text_rows("EXPLAIN", lines.into_iter().map(|line| vec![Datum::text(line)]).collect())
    }

    /// CREATE, DROP, TRUNCATE, ALTER. One on its own is committed here, and run again after a conflict.
    pub(super) async fn schema_change(&mut self, statement: SchemaStatement<'_>, single: bool) -> SqlResult<Running> {
        let mut retries = 0;
        loop {
            let result = match self.change_schema(statement, single).await {
                Ok(tag) if single => self.commit().await.map(|()| tag),
                other => other,
            };
            match result {
                Ok(tag) => return Ok(Running::done(tag)),
                Err(error) if single && error.is_retryable() && retries < MAX_DDL_RETRIES => {
                    retries += 1;
                    self.rollback();
                    // The other change is published soon; until then this one would meet it again.
                    let clock = Arc::clone(&self.gateway.config().clock);
                    let pause = std::time::Duration::from_millis(10);
                    super::run::guarded(self, async {
                        clock.sleep(pause).await;
                        Ok(())
                    })
                    .await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn change_schema(&mut self, statement: SchemaStatement<'_>, single: bool) -> SqlResult<&'static str> {
        self.catalog.held().await?;
        let open = self.open(false)?;
        if open.read_only {
            return Err(SqlError::new(
                SqlState::READ_ONLY_SQL_TRANSACTION,
                "cannot change the schema in a read-only transaction",
            ));
        }
        if let SchemaStatement::Sql(statement) = statement {
            self.lock_for(statement).await?;
        }
        let txn = self.open(false)?.txn.clone();
        self.rebase();
        let base = self.catalog.current();
        let open = self.open(false)?;
        let alone = Alone { single, txn };
        let mut pending = open.pending.as_deref().cloned().unwrap_or_else(|| Pending::new(&base));
        let tag = match statement {
            SchemaStatement::Sql(statement) => self.change_by(&mut pending, statement, &alone).await?,
            SchemaStatement::Sequence(statement) => self.change_sequence(&mut pending, statement).await?,
        };
        let open = self.open(false)?;
        // Also when nothing is left of what the transaction had changed.
        if open.pending.is_some() || !pending.changes.is_empty() {
            open.pending = Some(Arc::new(pending));
        }
        Ok(tag)
    }

    async fn change_sequence(
        &mut self,
        pending: &mut Pending,
        statement: &SequenceStatement,
    ) -> SqlResult<&'static str> {
        let client = self.gateway.client().clone();
        let notice = sequence::run(&client, pending, statement).await?;
        self.notices.extend(notice);
        Ok(if statement.action == Action::Create { "CREATE SEQUENCE" } else { "ALTER SEQUENCE" })
    }

    async fn change_by(
        &mut self,
        pending: &mut Pending,
        statement: &Statement,
        alone: &Alone,
    ) -> SqlResult<&'static str> {
        let gateway = Arc::clone(&self.gateway);
        Ok(match statement {
            Statement::CreateTable(create) => {
                let notice = create_table::create(&gateway, pending, create).await?;
                self.notices.extend(notice);
                "CREATE TABLE"
            }
            Statement::CreateIndex(create) => {
                let notice = index::create(&gateway, pending, create, alone).await?;
                self.notices.extend(notice);
                "CREATE INDEX"
            }
            Statement::Drop { object_type: ObjectType::Table, if_exists, names, cascade, .. } => {
                let notices = drop_table::drop_tables(pending, names, *if_exists, *cascade)?;
                self.notices.extend(notices);
                "DROP TABLE"
            }
            Statement::Drop { object_type: ObjectType::Index, if_exists, names, table: None, .. } => {
                let notices = index::drop_indexes(pending, names, *if_exists)?;
                self.notices.extend(notices);
                "DROP INDEX"
            }
            Statement::Drop { object_type: ObjectType::Sequence, if_exists, names, cascade, .. } => {
                let notices = sequence::drop_sequences(pending, names, *if_exists, *cascade)?;
                self.notices.extend(notices);
                "DROP SEQUENCE"
            }
            Statement::Truncate(statement) => {
                let notices = truncate::truncate(&gateway, pending, statement).await?;
                self.notices.extend(notices);
                "TRUNCATE TABLE"
            }
            Statement::AlterTable(alter) => {
                self.alter(pending, alter, alone).await?;
                "ALTER TABLE"
            }
            other => return Err(plan::unsupported(other)),
        })
    }

    async fn alter(&mut self, pending: &mut Pending, alter: &AlterTable, alone: &Alone) -> SqlResult<()> {
        let name = RelationName::new(&alter.name)?;
        let table = match pending.catalog.resolve(name.schema.as_deref(), &name.name) {
            Ok(table) => Arc::clone(table),
            Err(_) if alter.if_exists => {
                let message = format!("relation \"{}\" does not exist, skipping", name.name);
                self.notices.push(SqlError::notice(Severity::Notice, SqlState::SUCCESS, message));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let gateway = Arc::clone(&self.gateway);
        let [operation] = alter.operations.as_slice() else { return Err(unsupported_change(&alter.operations)) };
        match operation {
            AlterTableOperation::AddConstraint { constraint, not_valid } => {
                constraint::add(&gateway, pending, &table, constraint, (*not_valid, alone)).await
            }
            AlterTableOperation::ValidateConstraint { name } => {
                constraint::validate(&gateway, pending, &table, &folded(name)).await
            }
            AlterTableOperation::DropConstraint { if_exists, name, drop_behavior } => {
                let how =
                    Dropping { if_exists: *if_exists, cascade: matches!(drop_behavior, Some(DropBehavior::Cascade)) };
                let name = folded(name);
                let notices = constraint::drop(pending, &table, (&name, how))?;
                self.notices.extend(notices);
                Ok(())
            }
            _ => Err(unsupported_change(&alter.operations)),
        }
    }
}

/// 0A000 that names the first change which is none that is known.
fn unsupported_change(operations: &[AlterTableOperation]) -> SqlError {
    let is_other = |operation: &&AlterTableOperation| {
        !matches!(
            operation,
            AlterTableOperation::DropConstraint { .. }
                | AlterTableOperation::AddConstraint { .. }
                | AlterTableOperation::ValidateConstraint { .. }
        )
    };
    let Some(other) = operations.iter().find(is_other) else {
        return SqlError::unsupported("ALTER TABLE with several changes");
    };
    let text = other.to_string();
    let is_keyword = |word: &&str| word.chars().all(|letter| letter.is_ascii_uppercase());
    let keywords: Vec<&str> = text.split_whitespace().take_while(is_keyword).collect();
    SqlError::unsupported(format!("ALTER TABLE … {}", keywords.join(" ")))
}

/// As settings say it.
fn level_name(level: &TransactionIsolationLevel) -> &'static str {
    match level {
        TransactionIsolationLevel::ReadUncommitted => "read uncommitted",
        TransactionIsolationLevel::ReadCommitted => "read committed",
        TransactionIsolationLevel::RepeatableRead | TransactionIsolationLevel::Snapshot => "repeatable read",
        TransactionIsolationLevel::Serializable => "serializable",
    }
}

/// A value of SET: a word, a string, a number.
fn setting_text(expr: &Expr) -> SqlResult<String> {
    Ok(match expr {
        Expr::Identifier(word) => word.value.clone(),
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => text.clone(),
            Value::Number(digits, _) => digits.clone(),
            Value::Boolean(truth) => (if *truth { "on" } else { "off" }).to_owned(),
            other => return Err(SqlError::syntax(format!("syntax error at or near \"{other}\""))),
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => format!("-{}", setting_text(expr)?),
        other => other.to_string(),
    })
}
