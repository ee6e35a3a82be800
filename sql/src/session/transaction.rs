//! The session's transaction: none, open, or failed; BEGIN to COMMIT.

use std::sync::Arc;

use kv::{CommitOptions, DetachedRows, Floor, Txn};
use parking_lot::Mutex;

use super::{Session, TransactionStatus, settings::Values};
use crate::{
    catalog::{CatalogSnapshot, Fence, garbage, store},
    ddl::{Pending, restore},
    dml::{
        Isolation, Target,
        foreign::{Deferred, Place},
    },
    error::{Severity, SqlError, SqlResult, SqlState},
    notify,
    planted::Planted,
    reader::Reader,
    table_locks::TableLocks,
};

/// A transaction under way.
pub(super) struct Open {
    /// BEGIN was said: it lasts until COMMIT or ROLLBACK. Otherwise until the statement's end, or Sync.
    pub explicit: bool,
    /// Begun with its first statement that reads, writes or locks.
    pub txn: Option<Txn>,
    /// `txn` was begun to lock, and nothing has been read at its snapshot.
    pub unread: bool,
    /// now(), in microseconds since 1970 UTC.
    pub now_us: i64,
    /// What it changed of the schema.
    pub pending: Option<Arc<Pending>>,
    /// Tables that ROLLBACK TO has moved.
    pub moves: Vec<restore::Move>,
    /// It must not write.
    pub read_only: bool,
    /// The catalog at the time of AS OF SYSTEM TIME, when it reads the past.
    pub past: Option<Arc<CatalogSnapshot>>,
    /// It reads from the nearest replicas, some seconds behind.
    pub near: bool,
    /// What its statements see.
    pub isolation: Isolation,
    /// Oldest first; names may repeat, the last one counts.
    pub savepoints: Vec<Savepoint>,
    /// What SET and SET LOCAL changed in it; `None` when nothing.
    pub settings: Option<ChangedSettings>,
    /// Constraints that are checked at COMMIT.
    pub deferred: Arc<Mutex<Deferred>>,
}

/// What the settings will be when the transaction has ended.
#[derive(Clone)]
pub(super) struct ChangedSettings {
    /// After ROLLBACK.
    pub rolled_back: Values,
    /// After COMMIT: without what SET LOCAL changed.
    pub committed: Values,
}

/// A place that ROLLBACK TO goes back to.
pub(super) struct Savepoint {
    pub name: String,
    pub place: kv::Savepoint,
    /// Of the advisory locks.
    pub advisory: usize,
    /// Of the tables used, and of those locked in strong modes.
    pub tables: (usize, usize),
    /// The schema at that time.
    pub schema: restore::Kept,
    /// Of what it has to say.
    pub said: crate::notify::Place,
    /// The settings at that time.
    pub settings: (Values, Option<ChangedSettings>),
    /// The checks for COMMIT at that time.
    pub deferred: Place,
}

pub(super) enum State {
    Idle,
    Open(Box<Open>),
    /// A statement failed; the client has to say ROLLBACK (or, in an implicit one, Sync). Nothing is open any more, but for what
    /// ROLLBACK TO may bring back.
    Failed {
        explicit: bool,
        kept: Option<Box<Open>>,
    },
}

pub(super) struct Transaction {
    pub state: State,
    pub fence: Arc<Fence>,
    /// Its strong table locks.
    pub tables: Arc<TableLocks>,
}

/// 25P02.
pub(super) fn failed() -> SqlError {
    SqlError::new(
        SqlState::IN_FAILED_SQL_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

impl Transaction {
    pub(super) fn status(&self) -> TransactionStatus {
        match &self.state {
            State::Open(open) if open.explicit => TransactionStatus::InTransaction,
            State::Failed { explicit: true, .. } => TransactionStatus::Failed,
            _ => TransactionStatus::Idle,
        }
    }
    pub(super) fn open(&mut self) -> Option<&mut Open> {
        match &mut self.state {
            State::Open(open) => Some(open),
            _ => None,
        }
    }
    /// A statement may run at all.
    pub(super) fn check(&self) -> SqlResult<()> {
        match self.state {
            State::Failed { .. } => Err(failed()),
            _ => Ok(()),
        }
    }
}

impl Session {
    /// The catalog as this session's statements see it.
    pub(super) fn snapshot(&self) -> Arc<CatalogSnapshot> {
        match &self.transaction.state {
            State::Open(open) => match &open.pending {
                Some(pending) => Arc::clone(&pending.catalog),
                None => self.catalog.current(),
            },
            _ => self.catalog.current(),
        }
    }

    /// What the transaction has changed of the schema is now changed against the newest catalog.
    pub(super) fn rebase(&mut self) {
        let current = self.catalog.current();
        if let State::Open(open) = &mut self.transaction.state
            && let Some(pending) = &mut open.pending
            && pending.base_version != current.version
        {
            Arc::make_mut(pending).rebase(&current);
        }
    }

    /// Opens a transaction if none is open. 25P02 in a failed one.
    pub(super) fn open(&mut self, explicit: bool) -> SqlResult<&mut Open> {
        self.transaction.check()?;
        if matches!(self.transaction.state, State::Idle) {
            let isolation = Isolation::named(self.settings.show("default_transaction_isolation")?.1)?;
            let open = Open {
                explicit,
                txn: None,
                unread: false,
                now_us: self.gateway.config().clock.wall_ms() as i64 * 1000,
                pending: None,
                moves: Vec::new(),
                read_only: self.settings.is_on("default_transaction_read_only"),
                past: None,
                near: false,
                isolation,
                savepoints: Vec::new(),
                settings: None,
                deferred: Arc::default(),
            };
            self.transaction.state = State::Open(Box::new(open));
        }
        self.transaction.open().ok_or_else(failed)
    }

    /// The open transaction, begun now if need be, at the snapshot of the statement that asks for it.
    pub(super) async fn txn(&mut self) -> SqlResult<Txn> {
        let known = self.open(false)?.txn.is_some();
        let begun = self.begun().await?;
        let open = self.open(false)?;
        let unread = std::mem::take(&mut open.unread);
        Ok(match open.isolation {
            _ if !known => begun,
            Isolation::ReadCommitted => begun.at_fresh_snapshot(),
            // What it waited for, to lock tables, is part of what it sees.
            Isolation::RepeatableRead | Isolation::Serializable if unread => {
                open.txn.insert(begun.at_fresh_snapshot()).clone()
            }
            Isolation::RepeatableRead | Isolation::Serializable => begun,
        })
    }

    /// The open transaction, begun now if need be, to lock by: its snapshot is taken when something is read.
    pub(super) async fn begun(&mut self) -> SqlResult<Txn> {
        let client = self.gateway.client().clone();
        let open = self.open(false)?;
        if let Some(txn) = &open.txn {
            return Ok(txn.clone());
        }
        let txn = match open.isolation {
            Isolation::ReadCommitted | Isolation::RepeatableRead => client.begin().await?,
            Isolation::Serializable => client.begin_serializable().await?,
        };
        (open.txn, open.unread) = (Some(txn.clone()), true);
        self.transaction.fence.begins(txn.start_ts().0);
        let open = self.open(false)?;
        let (isolation, started_us) = (open.isolation, open.now_us.unsigned_abs());
        self.backend.begins(txn.start_ts(), isolation, started_us);
        self.backend.advisory.begins(&txn);
        Ok(txn)
    }

    /// What a statement reads through, and the transaction that fills tables only this one knows.
    pub(super) async fn reader(&mut self) -> SqlResult<(Reader, Option<Txn>)> {
        let reader = Reader::new(self.txn().await?);
        let open = self.open(false)?;
        let unpublished: Arc<[u32]> = match &open.pending {
            Some(pending) if !pending.unpublished.is_empty() => pending.unpublished.clone().into(),
            _ => return Ok((reader, None)),
        };
        let filling = self.gateway.client().begin().await?;
        Ok((reader.with_unpublished(unpublished, filling.clone()), Some(filling)))
    }

    /// Commits what a statement wrote to tables only this transaction knows.
    pub(super) async fn commit_filling(&mut self, filling: Option<Txn>) -> SqlResult<()> {
        let Some(filling) = filling.filter(|txn| txn.write_count() > 0) else { return Ok(()) };
        if let Some(pending) = &mut self.open(false)?.pending {
            let unpublished = pending.unpublished.clone();
            for storage_id in &unpublished {
                if filling.may_have_written(&store::rows_of(*storage_id)) {
                    Arc::make_mut(pending).fill(*storage_id);
                }
            }
            for storage_id in unpublished {
                garbage::note(self.gateway.client(), self.gateway.id(), garbage::Garbage::Storage(storage_id)).await?;
            }
        }
        let options = CommitOptions { floor: Floor::StartTs, max_commit_ts: None };
        match filling.commit(options).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// The error a client sees for one of kv's: 23505 names the key's table and values.
    pub(super) fn explain(&self, error: kv::Error) -> SqlError {
        if let kv::Error::AlreadyExists { key } = &error
            && let Some((_, storage_id, _, _)) = proto::keyspace::split_prefix(key)
            && let Some(table) = self.snapshot().tables().find(|table| table.storage_id == storage_id)
        {
            return Target::new(Arc::clone(table)).duplicate_key(key);
        }
        error.into()
    }

    /// Commits the open transaction; without one nothing happens. Whatever the result, it has ended. After a lost answer it is 40003.
    pub(super) async fn commit(&mut self) -> SqlResult<()> {
        let committed = self.commit_said().await;
        self.backend.advisory.freed().await;
        self.transaction.tables.left().await;
        committed
    }

    /// Commits with what the transaction has to say to others.
    async fn commit_said(&mut self) -> SqlResult<()> {
        if !matches!(self.transaction.state, State::Open(_)) {
            return self.commit_open().await;
        }
        if let Err(error) = self.check_deferred("COMMIT", true).await {
            self.rollback();
            return Err(error);
        }
        let (said, changes) = self.backend.pending.lock().take();
        let count = said.len() as u64;
        let mut last = 0;
        if count > 0 {
            let pid = self.backend.pid;
            let written = match self.txn().await {
                Ok(txn) => notify::write(&txn, pid, said).await,
                Err(error) => Err(error),
            };
            match written {
                Ok(number) => last = number,
                Err(error) => {
                    self.rollback();
                    return Err(error);
                }
            }
        }
        self.commit_open().await?;
        let channels = Arc::clone(self.gateway.channels());
        channels.apply(&self.backend, changes).await?;
        if count > 0 {
            channels.sent(self.backend.pid, last + 1 - count, last).await;
        }
        Ok(())
    }

    async fn commit_open(&mut self) -> SqlResult<()> {
        let State::Open(open) = &mut self.transaction.state else {
            self.transaction.state = State::Idle;
            return Ok(());
        };
        let pending = open.pending.take().map(Arc::unwrap_or_clone);
        let explicit = open.explicit;
        let txn = match (&open.txn, &pending) {
            (Some(txn), _) => Some(txn.clone()),
            (None, Some(_)) => match self.gateway.client().begin().await {
                Ok(txn) => Some(txn),
                Err(error) => {
                    self.abandon(pending, None);
                    return Err(error.into());
                }
            },
            (None, None) => None,
        };
        let Some(txn) = txn else {
            self.end(true);
            return Ok(());
        };
        // Others learn of what it has changed before they come to its tables.
        let queues = self.transaction.tables.detach(&txn);
        let result = self.commit_txn(&txn, pending.as_ref(), explicit).await;
        match result {
            Ok(version) => {
                self.end(true);
                match (version, pending) {
                    (Some(version), Some(pending)) => self.published(version, pending).await,
                    (None, Some(pending)) => self.gateway.collect(pending.discarded),
                    (_, None) => {}
                }
                self.transaction.tables.end(queues);
                Ok(())
            }
            Err(error) => {
                // A lost answer may mean success: then the storage ids are in use.
                let unknown = error.sqlstate == SqlState::STATEMENT_COMPLETION_UNKNOWN;
                self.abandon(pending.filter(|_| !unknown), queues);
                Err(error)
            }
        }
    }

    async fn commit_txn(&mut self, txn: &Txn, pending: Option<&Pending>, explicit: bool) -> SqlResult<Option<u64>> {
        // Before it is asked whether the lease ran out since the transaction used its tables: this one is bound by it then.
        let before = self.catalog.end();
        self.transaction.fence.begin_commit()?;
        let mut version = None;
        if let Some(pending) = pending.filter(|pending| !pending.changes.is_empty()) {
            version = Some(store::write(txn, self.gateway.id(), pending.base_version, &pending.changes).await?);
        }
        let floor = if explicit { Floor::Pd } else { Floor::StartTs };
        let max_commit_ts = (!self.gateway.plant().has(Planted::CommitPastLease)).then_some(before);
        match txn.commit(CommitOptions { floor, max_commit_ts }).await {
            Ok(_) => Ok(version),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// The schema has changed for this session; now for everybody.
    async fn published(&mut self, version: u64, pending: Pending) {
        match self.gateway.publish(version).await {
            Ok(()) => {
                self.gateway.collect([pending.changes.garbage, pending.discarded].concat());
                self.gateway.collect_indexes(pending.changes.dropped_indexes);
                self.gateway.forget_garbage(pending.unpublished, pending.unpublished_indexes);
            }
            Err(error) => self.notices.push(
                SqlError::notice(
                    Severity::Warning,
                    SqlState::WARNING,
                    "the schema change is committed, but not every node has confirmed it yet",
                )
                .with_detail(error.message.clone()),
            ),
        }
    }

    /// Rolls back what is open.
    pub(super) fn rollback(&mut self) {
        let (pending, queues) = match &mut self.transaction.state {
            State::Open(open) | State::Failed { kept: Some(open), .. } => {
                let queues = open.txn.as_ref().and_then(|txn| {
                    let queues = self.transaction.tables.detach(txn);
                    txn.rollback();
                    queues
                });
                (open.pending.take().map(Arc::unwrap_or_clone), queues)
            }
            _ => (None, None),
        };
        self.abandon(pending, queues);
    }

    /// After an error: an explicit or multi-statement transaction has failed, one of a single statement is gone.
    pub(super) fn fail(&mut self, single: bool) {
        let explicit = match &self.transaction.state {
            State::Open(open) => open.explicit,
            State::Failed { .. } | State::Idle => return,
        };
        match std::mem::replace(&mut self.transaction.state, State::Idle) {
            State::Open(open) if !open.savepoints.is_empty() => {
                self.transaction.state = State::Failed { explicit, kept: Some(open) };
                return;
            }
            state => self.transaction.state = state,
        }
        self.rollback();
        if explicit || !single {
            self.transaction.state = State::Failed { explicit, kept: None };
        }
    }

    fn abandon(&mut self, pending: Option<Pending>, queues: Option<DetachedRows>) {
        if let Some(pending) = pending {
            self.gateway.collect([pending.unpublished, pending.discarded].concat());
            self.gateway.collect_indexes(pending.unpublished_indexes);
        }
        self.end(false);
        self.transaction.tables.end(queues);
    }

    fn end(&mut self, committed: bool) {
        let state = std::mem::replace(&mut self.transaction.state, State::Idle);
        if let State::Open(open) | State::Failed { kept: Some(open), .. } = state
            && let Some(settings) = open.settings
        {
            let values = if committed { &settings.committed } else { &settings.rolled_back };
            let changes = self.settings.restore(values);
            self.changes.extend(changes);
        }
        self.transaction.fence.end();
        self.backend.ends();
        self.backend.advisory.ends();
        self.backend.advisory.end_since(0);
        self.backend.pending.lock().take();
    }

    /// A setting is about to change; a transaction's end may change it back.
    pub(super) fn before_setting(&mut self) {
        if let State::Open(open) = &mut self.transaction.state
            && open.settings.is_none()
        {
            let values = self.settings.values();
            open.settings = Some(ChangedSettings { rolled_back: values.clone(), committed: values });
        }
    }

    /// A setting has changed for more than the transaction.
    pub(super) fn after_setting(&mut self, name: &str) {
        if let State::Open(open) = &mut self.transaction.state
            && let Some(settings) = &mut open.settings
        {
            settings.committed.take_over(name, &self.settings);
        }
    }
}
