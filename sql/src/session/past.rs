//! Reading the past: AS OF SYSTEM TIME, and reads from the nearest replica.
//!
//! Such a transaction is read-only, has one snapshot, and holds back the collection of what it may still read. It reads rows as their
//! tables are made now; so the catalog is read at that time, too, unless this gateway knows that nothing of it has changed, and
//! a table that has changed since is refused: its rows may have been elsewhere, and entries of an index not yet there.
//!
//! With `flaredb.read_from = 'nearest'` a statement or transaction that only reads has a snapshot some seconds old, which other
//! replicas than the leaders have, too. It needs no catalog of then: if this gateway knows of a change of one of its tables since,
//! or has not been there for so long, the statement reads from the leaders as it is now.

use std::{sync::Arc, time::Duration};

use datafusion::sql::sqlparser::ast::Statement;
use proto::Timestamp;

use super::{
    Session,
    plan::{PlanKind, StatementPlan},
    portal::Running,
    run::guarded,
    transaction::State,
};
use crate::{
    catalog::{CatalogSnapshot, store},
    dml::Isolation,
    error::{SqlError, SqlResult, SqlState},
    statement::{Moment, NEARBY},
    table_locks::Mode,
};

/// How old a timestamp of PD's may be behind which the nearest replicas are read. Together with [`NEARBY`] what the documentation
/// promises.
const RECENT: Duration = Duration::from_secs(1);

impl Session {
    /// Has a statement of a session that reads from the nearest replicas begin its transaction so, if it can. `single`: it is alone
    /// in it.
    pub(super) async fn look_nearby(&mut self, plan: &StatementPlan, single: bool) -> SqlResult<()> {
        let reads = matches!(plan.kind, PlanKind::Key(_) | PlanKind::General(_)) && !plan.writes && !plan.volatile;
        if !reads || plan.tables.is_empty() || plan.as_of.is_some() {
            return Ok(());
        }
        let open = self.open(false)?;
        if !(single || open.read_only) || open.txn.is_some() || open.pending.is_some() {
            return Ok(());
        }
        let client = self.gateway.client().clone();
        let recent = guarded(self, async { Ok(client.recent_timestamp(RECENT).await?) }).await?;
        let behind = recent.physical_ms().saturating_sub(NEARBY.as_millis() as u64);
        let at = Timestamp::new(behind, recent.logical());
        if !self.snapshot().same_since(&plan.tables, at) {
            return Ok(());
        }
        let open = self.open(false)?;
        (open.txn, open.near) = (Some(client.begin_near(at)), true);
        (open.read_only, open.isolation) = (true, Isolation::RepeatableRead);
        Ok(())
    }

    /// BEGIN or SET TRANSACTION with AS OF SYSTEM TIME.
    pub(super) async fn command_as_of(
        &mut self,
        statement: &Arc<Statement>,
        single: bool,
        moment: &Moment,
    ) -> SqlResult<Running> {
        let begins = matches!(self.transaction.state, State::Idle);
        let running = self.command(statement, single).await?;
        // SET TRANSACTION outside of a block has only warned.
        if self.in_block() {
            let done = self.enter_past(moment, None).await;
            if done.is_err() && begins {
                self.rollback();
            }
            done?;
        }
        Ok(running)
    }

    /// A statement that says AS OF SYSTEM TIME is about to run: its transaction, which is no other's, reads the past.
    pub(super) async fn look_back(&mut self, moment: &Moment, plan: &StatementPlan) -> SqlResult<()> {
        if self.in_block() {
            let message = "AS OF SYSTEM TIME of a statement in a transaction block";
            return Err(SqlError::unsupported(message).with_hint("Say it with BEGIN, for the whole transaction."));
        }
        self.enter_past(moment, Some(&plan.tables)).await
    }

    /// `tables`: all that will be read, if they are known. The catalog of then is not needed if they are known to be as they were.
    async fn enter_past(&mut self, moment: &Moment, tables: Option<&[(u32, Mode)]>) -> SqlResult<()> {
        let settings = self.settings.format.clone();
        let client = self.gateway.client().clone();
        let open = self.open(false)?;
        if open.txn.is_some() || open.pending.is_some() {
            let message = "AS OF SYSTEM TIME must be said before any query";
            return Err(SqlError::new(SqlState::ACTIVE_SQL_TRANSACTION, message));
        }
        let catalog = self.snapshot();
        let entering = async {
            let at = moment.resolve(client.timestamp().await?, &settings)?;
            let txn = client.begin_near(at);
            let is_known = tables.is_some_and(|tables| catalog.same_since(tables, at));
            let past = if is_known { None } else { Some(Arc::new(store::load_past(&txn).await?)) };
            Ok((txn, past))
        };
        let (txn, past) = guarded(self, entering).await?;
        let open = self.open(false)?;
        (open.txn, open.near, open.past) = (Some(txn), true, past);
        (open.read_only, open.isolation) = (true, Isolation::RepeatableRead);
        Ok(())
    }

    fn past(&self) -> Option<&Arc<CatalogSnapshot>> {
        match &self.transaction.state {
            State::Open(open) => open.past.as_ref(),
            _ => None,
        }
    }

    /// The open transaction reads AS OF SYSTEM TIME.
    pub(super) fn is_past(&self) -> bool {
        self.past().is_some()
    }

    /// 55000 for a table that is not as it was then.
    pub(super) fn unchanged_since(&self, plan: &StatementPlan, now: &CatalogSnapshot) -> SqlResult<()> {
        let Some(past) = self.past() else { return Ok(()) };
        for table in plan.tables.iter().filter_map(|(id, _)| now.by_id(*id)) {
            if past.by_id(table.id).is_none_or(|then| then.version != table.version) {
                let message =
                    format!("table \"{}\" was made or changed after the time of AS OF SYSTEM TIME", table.name);
                return Err(SqlError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
                    .with_detail("Old rows are read only if the table has had the same form since."));
            }
        }
        Ok(())
    }
}
