//! AS OF SYSTEM TIME: transactions that read what was so at a time of the past.
//!
//! Such a transaction is read-only, has one snapshot, and holds back the collection of what it may still read. It reads rows as their
//! tables are made now; so the catalog is read at that time, too, and a table that has changed since is refused: its rows may
//! have been elsewhere, and entries of an index not yet there.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::Statement;

use super::{Session, plan::StatementPlan, portal::Running, run::guarded, transaction::State};
use crate::{
    catalog::{CatalogSnapshot, store},
    dml::Isolation,
    error::{SqlError, SqlResult, SqlState},
    statement::Moment,
};

impl Session {
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
            let done = self.enter_past(moment).await;
            if done.is_err() && begins {
                self.rollback();
            }
            done?;
        }
        Ok(running)
    }

    /// A statement that says AS OF SYSTEM TIME is about to run: its transaction, which is no other's, reads the past.
    pub(super) async fn look_back(&mut self, moment: &Moment) -> SqlResult<()> {
        if self.in_block() {
            let message = "AS OF SYSTEM TIME of a statement in a transaction block";
            return Err(SqlError::unsupported(message).with_hint("Say it with BEGIN, for the whole transaction."));
        }
        self.enter_past(moment).await
    }

    async fn enter_past(&mut self, moment: &Moment) -> SqlResult<()> {
        let settings = self.settings.format.clone();
        let client = self.gateway.client().clone();
        let open = self.open(false)?;
        if open.txn.is_some() || open.pending.is_some() {
            let message = "AS OF SYSTEM TIME must be said before any query";
            return Err(SqlError::new(SqlState::ACTIVE_SQL_TRANSACTION, message));
        }
        let entering = async {
            let at = moment.resolve(client.timestamp().await?, &settings)?;
            let txn = client.begin_at(at);
            let past = store::load_past(&txn).await?;
            Ok((txn, Arc::new(past)))
        };
        let (txn, past) = guarded(self, entering).await?;
        let open = self.open(false)?;
        (open.txn, open.past) = (Some(txn), Some(past));
        (open.read_only, open.isolation) = (true, Isolation::RepeatableRead);
        Ok(())
    }

    fn past(&self) -> Option<&Arc<CatalogSnapshot>> {
        match &self.transaction.state {
            State::Open(open) => open.past.as_ref(),
            _ => None,
        }
    }

    /// The open transaction reads the past.
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
