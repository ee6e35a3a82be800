//! LOCK TABLE, and waiting for tables that others have locked.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{Lock, Statement};

use super::{Session, portal::Running, run::guarded};
use crate::{
    catalog::{Entered, Table},
    ddl::locks,
    dml::locking,
    error::{SqlError, SqlResult, SqlState},
    name::RelationName,
    table_locks::{Ask, Mode, Wanted, not_available},
};

impl Session {
    /// How a statement asks for table locks.
    pub(super) fn ask(&self, sql: &str) -> Ask {
        Ask { wait: true, timeout: self.lock_timeout(), label: locking::label(sql) }
    }

    /// LOCK TABLE. 25P01 outside of a block, 55P03 with NOWAIT.
    pub(super) async fn lock_tables(&mut self, lock: &Lock) -> SqlResult<Running> {
        if !self.in_block() {
            let message = "LOCK TABLE can only be used in transaction blocks";
            return Err(SqlError::new(SqlState::NO_ACTIVE_SQL_TRANSACTION, message));
        }
        if self.is_past() {
            return Err(SqlError::unsupported("LOCK TABLE in a transaction AS OF SYSTEM TIME"));
        }
        let mode = lock.lock_mode.as_ref().map_or(Mode::AccessExclusive, Mode::from);
        let ask = Ask { wait: !lock.nowait, ..self.ask(&lock.to_string()) };
        for target in &lock.tables {
            let name = RelationName::new(&target.name)?;
            self.lock_table(&name, mode, &ask).await?;
        }
        Ok(Running::done("LOCK TABLE"))
    }

    /// Locks the table that has a name when it is locked.
    async fn lock_table(&mut self, name: &RelationName, mode: Mode, ask: &Ask) -> SqlResult<Table> {
        loop {
            let held = self.catalog.held();
            guarded(self, held).await?;
            let table = Arc::clone(self.snapshot().resolve(name.schema.as_deref(), &name.name)?);
            if !self.is_own(table.id) {
                self.lock_id((table.id, &table.name), mode, ask).await?;
            }
            // Another session may have dropped or replaced it meanwhile.
            if self.snapshot().table(&table.schema, &table.name).is_some_and(|now| now.id == table.id) {
                return Ok(table);
            }
        }
    }

    /// Locks what a change of the schema changes; names are looked up anew behind each wait.
    pub(super) async fn lock_for(&mut self, statement: &Statement) -> SqlResult<()> {
        let ask = self.ask(&statement.to_string());
        loop {
            self.rebase();
            let snapshot = self.snapshot();
            let fence = Arc::clone(&self.transaction.fence);
            let is_missing = |(id, mode): &(u32, Mode)| !self.is_own(*id) && !fence.held(*id).cover(*mode);
            let missing: Vec<(u32, Mode)> = locks::of(statement, &snapshot).into_iter().filter(is_missing).collect();
            if missing.is_empty() {
                return Ok(());
            }
            for (id, mode) in missing {
                let name = snapshot.by_id(id).map(|table| table.name.clone()).unwrap_or_default();
                self.lock_id((id, &name), mode, &ask).await?;
            }
        }
    }

    /// Only this transaction knows the table.
    fn is_own(&self, table: u32) -> bool {
        self.catalog.current().by_id(table).is_none()
    }

    /// Locks a table by its id.
    pub(super) async fn lock_id(&mut self, (table, name): (u32, &str), mode: Mode, ask: &Ask) -> SqlResult<()> {
        let (fence, tables) = (Arc::clone(&self.transaction.fence), Arc::clone(&self.transaction.tables));
        fence.check()?;
        if !mode.is_strong() {
            return self.use_table((table, name), mode, ask).await;
        }
        if fence.held(table).cover(mode) {
            return Ok(());
        }
        let begun = self.begun();
        let txn = begun.await?;
        fence.wants(Some((table, mode)));
        let taken = guarded(self, tables.take(&txn, &fence, (table, mode), ask)).await;
        fence.wants(None);
        fence.check()?;
        if taken? { Ok(()) } else { Err(not_available(name)) }
    }

    async fn use_table(&mut self, (table, name): (u32, &str), mode: Mode, ask: &Ask) -> SqlResult<()> {
        // It is locked by its id, whatever the catalog says of it.
        while let Entered::Blocked(table, mode) = self.transaction.fence.enter(&[(table, mode)], false, 0, || 0) {
            if !self.wait_for_table((table, mode), ask).await? {
                return Err(not_available(name));
            }
        }
        self.begun().await.map(drop)
    }

    /// Waits until no other session's lock is in the way of a use of a table; `false`: one is, and nobody waits.
    pub(super) async fn wait_for_table(&mut self, (table, mode): (u32, Mode), ask: &Ask) -> SqlResult<bool> {
        let (fence, tables) = (Arc::clone(&self.transaction.fence), Arc::clone(&self.transaction.tables));
        let txn = self.begun().await?;
        let wanted = Wanted { table, mode, held: fence.held(table) };
        fence.wants(Some((table, mode)));
        let waited = guarded(self, tables.wait(&txn, wanted, ask)).await;
        fence.wants(None);
        waited
    }
}
