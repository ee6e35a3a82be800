//! Statements that cut regions. PD does it; nothing of it is transactional.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use datafusion::sql::sqlparser::ast::{ObjectName, Statement};
use proto::wire::OperatorState;

use super::{Session, portal::Running, run::guarded};
use crate::{
    catalog::Table,
    ddl::{borders, create_table},
    error::{Severity, SqlError, SqlResult, SqlState},
    eval::Env,
    gateway::GatewayConfig,
    name::RelationName,
    statement::borders::{SplitStatement, Target},
};

/// Before the first look at what PD does: about what a split takes. Then twice as long each time.
const LOOK_AFTER: Duration = Duration::from_millis(5);
/// Between later looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// PD refuses what it can't do this moment (a region without leader, another change under way): it is asked again so often,
/// for five seconds in all.
const ATTEMPTS: u32 = 25;
/// Between later ones; after a split it has not heard of what was split off for a moment.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(250);

impl Session {
    /// Runs a statement with a SPLIT clause. `single`: outside of a transaction and alone in its message.
    pub(super) async fn split_regions(&mut self, split: &SplitStatement, single: bool) -> SqlResult<Running> {
        let (tag, what) = match &split.target {
            Target::Table { .. } => ("ALTER TABLE", "ALTER TABLE … SPLIT"),
            Target::Index { .. } => ("ALTER INDEX", "ALTER INDEX … SPLIT"),
            Target::Create(_) => ("CREATE TABLE", "CREATE TABLE … SPLIT"),
        };
        if !single {
            let message = format!("{what} cannot run inside a transaction block");
            return Err(SqlError::new(SqlState::ACTIVE_SQL_TRANSACTION, message));
        }
        let table = match &split.target {
            Target::Create(create) => return self.create_split(create, split).await,
            Target::Table { name, if_exists } => self.split_table(name, *if_exists)?,
            Target::Index { name, if_exists } => self.table_of_index(name, *if_exists)?,
        };
        if let Some(table) = table {
            let keys = self.borders(&table, split)?;
            self.cut(keys).await?;
        }
        Ok(Running::done(tag))
    }

    /// The table is there for good when its regions are cut: what goes wrong with them is a warning.
    async fn create_split(&mut self, create: &Arc<Statement>, split: &SplitStatement) -> SqlResult<Running> {
        // What is wrong with the clause is said before anything is made.
        let described = create_table::described(create)?;
        self.env_and(|env| borders::keys(&described, &split.borders, env))?;
        let is_there = |session: &Session| {
            let known = session.snapshot().table(&described.schema, &described.name).cloned();
            known.map(|table: Table| table.id)
        };
        let before = is_there(self);
        let created = self.command(create, true).await?;
        let snapshot = self.snapshot();
        match snapshot.table(&described.schema, &described.name).cloned() {
            Some(table) if before.is_none() => {
                let keys = self.borders(&table, split)?;
                if let Err(error) = self.cut(keys).await {
                    let message = format!("the table was created and its regions were not split: {}", error.message);
                    self.notices.push(SqlError::notice(Severity::Warning, SqlState::WARNING, message));
                }
            }
            // IF NOT EXISTS, and a notice has said so.
            _ => {}
        }
        Ok(created)
    }

    fn split_table(&mut self, name: &ObjectName, if_exists: bool) -> SqlResult<Option<Table>> {
        let name = RelationName::new(name)?;
        let snapshot = self.snapshot();
        match snapshot.resolve(name.schema.as_deref(), &name.name) {
            Ok(table) => Ok(Some(Arc::clone(table))),
            Err(_) if if_exists => Ok(self.skipped(&name.name)),
            Err(error) => Err(error),
        }
    }

    /// Of a primary key; 0A000 for a secondary index.
    fn table_of_index(&mut self, name: &ObjectName, if_exists: bool) -> SqlResult<Option<Table>> {
        let name = RelationName::new(name)?;
        let snapshot = self.snapshot();
        let mut tables = snapshot.tables();
        let here = |table: &&Table| {
            table.has_index(&name.name) && name.schema.as_ref().is_none_or(|schema| *schema == table.schema)
        };
        match tables.find(here) {
            Some(table) if table.primary_key.as_ref() != Some(&name.name) => {
                Err(SqlError::unsupported("ALTER INDEX … SPLIT of a secondary index"))
            }
            Some(table) => Ok(Some(Arc::clone(table))),
            None if if_exists => Ok(self.skipped(&name.name)),
            None => {
                let message = format!("index \"{}\" does not exist", name.name);
                Err(SqlError::new(SqlState::UNDEFINED_OBJECT, message))
            }
        }
    }

    fn skipped(&mut self, name: &str) -> Option<Table> {
        let message = format!("relation \"{name}\" does not exist, skipping");
        self.notices.push(SqlError::notice(Severity::Notice, SqlState::SUCCESS, message));
        None
    }

    fn env_and<T>(&self, with: impl FnOnce(&Env<'_>) -> T) -> T {
        let now_us = self.gateway.config().clock.wall_ms() as i64 * 1000;
        with(&Env { row: &[], params: &[], now_us, settings: &self.settings.format })
    }

    fn borders(&mut self, table: &Table, split: &SplitStatement) -> SqlResult<Vec<Bytes>> {
        let found = self.env_and(|env| borders::keys(table, &split.borders, env))?;
        if let Some(remark) = found.remark {
            self.notices.push(SqlError::notice(Severity::Notice, SqlState::SUCCESS, remark));
        }
        Ok(found.keys)
    }

    /// Waits until PD says that all keys are borders.
    async fn cut(&mut self, keys: Vec<Bytes>) -> SqlResult<()> {
        let config = self.gateway.config().clone();
        guarded(self, async move {
            let (mut trouble, mut pause) = (String::new(), LOOK_AFTER);
            for _ in 0..ATTEMPTS {
                if !trouble.is_empty() {
                    config.clock.sleep(pause).await;
                    pause = ATTEMPT_PAUSE.min(pause * 2);
                    trouble.clear();
                }
                match config.pd.split_at(keys.clone()).await {
                    Ok(operators) if operators.is_empty() => return Ok(()),
                    Ok(operators) => {
                        for id in operators {
                            ended(&config, id).await?.into_iter().for_each(|reason| trouble = reason);
                        }
                    }
                    Err(kv::PdError::Refused(reason)) => trouble = reason,
                    Err(error) => return Err(error.into()),
                }
            }
            let message = format!("the regions could not be split: {trouble}");
            Err(SqlError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
                .with_detail("Some of the borders may be there; the statement can be repeated."))
        })
        .await
    }
}

/// Waits for the end of an operator; why it did not succeed, if it did not.
async fn ended(config: &GatewayConfig, id: u64) -> SqlResult<Option<String>> {
    let mut pause = LOOK_AFTER;
    loop {
        match config.pd.operator(id).await? {
            Some(status) if status.state() == OperatorState::Running => {
                config.clock.sleep(pause).await;
                pause = LOOK_AGAIN.min(pause * 2);
            }
            Some(status) if status.state() == OperatorState::Done => return Ok(None),
            Some(status) => return Ok(Some(status.outcome)),
            None => return Ok(Some("PD has changed".into())),
        }
    }
}
