//! Running statements that read and write rows: retries, transactions around them, steps to the client.

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use arrow::record_batch::RecordBatch;
use kv::Txn;

use super::{
    Session, Step,
    command::SchemaStatement,
    plan::{Linked, PlanKind, StatementPlan},
    portal::{Portal, Progress, Running, Source, Tag},
    step::{RowBatch, RowShape},
    transaction::State,
};
use crate::{
    catalog::{CatalogSnapshot, Entered},
    dml::{Links, RowLocking, general, locking, select_for},
    error::{SqlError, SqlResult, SqlState},
    keyplan::{KeyPlan, run as keyrun},
    planted::Planted,
    query::{Change, RunValues},
    statement::parse_one,
    table_locks::Mode,
    types::Datum,
    work::Work,
};

/// How often a single statement that met a conflict is run again before the client hears of it.
pub(super) const MAX_RETRIES: u32 = 100;
/// First pause before a retry; it doubles up to [`MAX_PAUSE`].
pub(super) const FIRST_PAUSE: Duration = Duration::from_micros(500);
/// Longest pause before a retry.
pub(super) const MAX_PAUSE: Duration = Duration::from_millis(50);

/// Runs `work` until it ends, is cancelled, or `deadline` passes. The future does not hold the session: parts of it
/// (streams under way) can't be shared between threads.
pub(super) fn guarded<T, F>(session: &Session, work: F) -> impl Future<Output = SqlResult<T>> + use<T, F>
where
    F: Future<Output = SqlResult<T>>,
{
    let cancel = session.backend.cancel.clone();
    let clock = Arc::clone(&session.gateway.config().clock);
    let deadline = session.deadline;
    async move {
        let timeout = async {
            match deadline {
                Some(deadline) => clock.sleep(deadline.since(clock.now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            error = cancel.cancelled() => Err(error),
            done = work => done,
            () = timeout => {
                Err(SqlError::new(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout"))
            }
        }
    }
}

impl Session {
    /// How the statement that runs now locks rows.
    pub(super) fn locking(&mut self, sql: &str) -> SqlResult<RowLocking> {
        let timeout = self.lock_timeout();
        let isolation = self.open(false)?.isolation;
        Ok(RowLocking { isolation, timeout, label: locking::label(sql) })
    }

    /// `None`: whoever waits for a lock waits as long as it takes.
    pub(super) fn lock_timeout(&self) -> Option<Duration> {
        let timeout = self.settings.milliseconds("lock_timeout");
        (timeout > 0).then(|| Duration::from_millis(timeout))
    }

    /// A new statement starts: earlier cancels do not concern it, its time runs.
    pub(super) fn begin_statement(&mut self, sql: &str) -> SqlResult<()> {
        self.backend.runs(sql, self.gateway.now_us());
        self.backend.cancel.reset();
        let timeout = self.settings.milliseconds("statement_timeout");
        let now = self.gateway.config().clock.now();
        self.deadline = (timeout > 0).then(|| now + Duration::from_millis(timeout));
        self.backend.advisory.check()
    }

    /// Starts a portal's statement. `last`: outside of a transaction it is one of its own.
    pub(super) async fn start(&mut self, portal: &mut Portal, last: bool) -> SqlResult<Running> {
        if !portal.plan.ends_transaction() {
            self.transaction.check()?;
        }
        match portal.plan.kind.clone() {
            PlanKind::Empty => Ok(Running::with_tag(Tag::Empty)),
            PlanKind::Maintenance(tag) => {
                let block = self.transaction.status() == super::TransactionStatus::InTransaction;
                if tag == "VACUUM" && block {
                    let error =
                        SqlError::new(SqlState::ACTIVE_SQL_TRANSACTION, "VACUUM cannot run inside a transaction block");
                    self.fail(false);
                    return Err(error);
                }
                Ok(Running::done(tag))
            }
            PlanKind::Command(statement) => {
                let single = last && matches!(self.transaction.state, State::Idle);
                let done = match portal.plan.as_of.clone() {
                    None => Box::pin(self.command(&statement, single)).await,
                    Some(moment) => Box::pin(self.command_as_of(&statement, single, &moment)).await,
                };
                done.inspect_err(|_| self.fail(single))
            }
            PlanKind::Sequence(statement) => {
                let single = last && matches!(self.transaction.state, State::Idle);
                let done = Box::pin(self.schema_change(SchemaStatement::Sequence(&statement), single)).await;
                done.inspect_err(|_| self.fail(single))
            }
            PlanKind::Split(split) => {
                let single = last && matches!(self.transaction.state, State::Idle);
                let done = Box::pin(self.split_regions(&split, single)).await;
                done.inspect_err(|_| self.fail(single))
            }
            PlanKind::Constraints(constraints) => {
                let set = Box::pin(self.set_constraints(&constraints)).await;
                set.inspect_err(|_| self.fail(false))
            }
            PlanKind::Copy(copy) => {
                let single = last && matches!(self.transaction.state, State::Idle);
                let started = Box::pin(self.copy(&copy, single)).await;
                started.inspect_err(|_| self.fail(single))
            }
            PlanKind::Declare(cursor) => {
                let done = self.declare(&cursor, portal.plan.param_types.clone(), portal.params.clone());
                done.inspect_err(|_| self.fail(false))
            }
            PlanKind::Key(_) | PlanKind::General(_) => self.rows(portal, last).await,
        }
    }

    /// Runs a statement on rows; a single one is repeated after a conflict.
    async fn rows(&mut self, portal: &mut Portal, last: bool) -> SqlResult<Running> {
        let single = last && matches!(self.transaction.state, State::Idle);
        let (mut retries, mut pause) = (0, FIRST_PAUSE);
        loop {
            let error = match self.attempt(portal, single, retries > 0).await {
                Ok(running) => return Ok(running),
                Err(error) => error,
            };
            self.fail(single);
            let unknown = error.sqlstate == SqlState::STATEMENT_COMPLETION_UNKNOWN;
            let again = error.is_retryable() || (unknown && self.gateway.plant().has(Planted::RepeatUnknown));
            if !single || !again || retries == MAX_RETRIES {
                return Err(error);
            }
            retries += 1;
            let clock = Arc::clone(&self.gateway.config().clock);
            guarded(self, async {
                clock.sleep(pause).await;
                Ok(())
            })
            .await?;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// `again`: it has met a conflict before, and locks what it changes.
    async fn attempt(&mut self, portal: &mut Portal, single: bool, again: bool) -> SqlResult<Running> {
        self.open(false)?;
        if !self.catalog.holds() {
            let held = self.catalog.held();
            guarded(self, held).await?;
        }
        self.come_in(portal, single).await?;
        let plan = Arc::clone(&portal.plan);
        if let Some(moment) = &plan.as_of {
            Box::pin(self.look_back(moment, &plan)).await?;
        }
        if self.settings.reads_nearest() {
            Box::pin(self.look_nearby(&plan, single)).await?;
        }
        if plan.writes && self.open(false)?.read_only {
            return Err(SqlError::new(
                SqlState::READ_ONLY_SQL_TRANSACTION,
                "cannot change or lock rows in a read-only transaction",
            ));
        }
        let newest = single && plan.as_of.is_none() && !self.open(false)?.near;
        if newest && let Some(running) = self.read_latest(&plan, &portal.params).await? {
            return Ok(running);
        }
        let locking = match &plan.kind {
            // The row is read under its lock: that costs no more than to read it.
            PlanKind::Key(key_plan) if key_plan.reads_for_write() => Some(self.locking(&portal.prepared.sql)?),
            PlanKind::General(planned) if planned.plan.locks_rows() => Some(self.locking(&portal.prepared.sql)?),
            _ if !single || again || plan.linked == Linked::Keys => Some(self.locking(&portal.prepared.sql)?),
            _ => None,
        };
        let links = if plan.linked == Linked::No { None } else { Some(self.links(&portal.prepared.sql)?) };
        let mut running = self.run_plan(&plan, &portal.params, single, (locking, links)).await?;
        running.single = single;
        if single && matches!(running.source, Source::Nothing) {
            self.checked()?;
            self.commit().await?;
        }
        Ok(running)
    }

    /// Enters the fence of the statement's tables; where another session has locked one, when it does not any more.
    async fn come_in(&mut self, portal: &mut Portal, single: bool) -> SqlResult<()> {
        while let Some(wanted) = self.enter(portal)? {
            let ask = self.ask(&portal.prepared.sql);
            Box::pin(self.wait_for_table(wanted, &ask)).await?;
            if single {
                // It begins now.
                self.rollback();
                self.open(false)?;
            }
        }
        Ok(())
    }

    /// Makes sure the plan is one for the catalog as it is, and enters its tables' fence; what it has to wait for.
    fn enter(&mut self, portal: &mut Portal) -> SqlResult<Option<(u32, Mode)>> {
        loop {
            let snapshot = self.snapshot();
            if portal.plan.version != snapshot.version || snapshot.private {
                self.replan(portal, &snapshot)?;
            }
            let catalog = &self.catalog;
            let planned = match &self.transaction.state {
                State::Open(open) => open.pending.as_ref().map_or(snapshot.version, |pending| pending.base_version),
                _ => snapshot.version,
            };
            let past = portal.plan.as_of.is_some() || self.is_past();
            let fence = &self.transaction.fence;
            let entered = fence.enter(&portal.plan.tables, past, planned, || catalog.current_version());
            fence.check()?;
            match entered {
                Entered::Yes => return Ok(None),
                Entered::Blocked(table, mode) => return Ok(Some((table, mode))),
                Entered::Stale => {}
            }
            self.rebase();
        }
    }

    /// Plans a portal's statement again, for another version of the catalog.
    fn replan(&self, portal: &mut Portal, snapshot: &Arc<CatalogSnapshot>) -> SqlResult<()> {
        let prepared = &portal.prepared;
        let planner = self.gateway.planner();
        if prepared.unparsed {
            // Found by its shape, its literals as parameters.
            if let Some(ready) = planner.simple(&prepared.sql, snapshot)? {
                portal.plan = ready.plan;
                portal.params = ready.params;
                return Ok(());
            }
            let command = parse_one(&prepared.sql)?;
            portal.plan = Arc::new(planner.plan(&prepared.sql, &command, snapshot, &[])?);
            portal.params.clear();
            return Ok(());
        }
        let plan = planner.plan(&prepared.sql, &prepared.command, snapshot, &prepared.declared)?;
        let same = prepared.simple || plan.same_result(&portal.plan);
        if !same || plan.param_types != portal.plan.param_types {
            return Err(SqlError::new(SqlState::FEATURE_NOT_SUPPORTED, "cached plan must not change result type"));
        }
        portal.plan = Arc::new(plan);
        Ok(())
    }

    /// What was read may be shown: no table has changed under it, and the catalog lease still holds.
    pub(super) fn checked(&self) -> SqlResult<()> {
        self.transaction.fence.check()?;
        self.catalog.check()
    }

    /// A single read of one key needs no snapshot: the newest version it is.
    async fn read_latest(&mut self, plan: &StatementPlan, params: &[Datum]) -> SqlResult<Option<Running>> {
        let PlanKind::Key(key_plan) = &plan.kind else { return Ok(None) };
        let KeyPlan::Read(read) = &**key_plan else { return Ok(None) };
        if read.lock.is_some() {
            return Ok(None);
        }
        let now_us = self.open(false)?.now_us;
        let settings = self.settings.format.clone();
        let env = crate::eval::Env { row: &[], params, now_us, settings: &settings };
        let Some(keys) = keyrun::single_key(read, &env)? else { return Ok(None) };
        let mut rows = keyrun::Rows::default();
        for key in &keys {
            let client = self.gateway.client();
            let value = guarded(self, async { Ok(client.get_latest(key).await?) }).await?;
            if let Some(value) = value {
                keyrun::project(read, key, &value, &env, &mut rows)?;
            }
        }
        self.checked()?;
        self.rollback();
        let shape = self.shape(plan);
        Ok(Some(few(shape, rows, Tag::Select)))
    }

    fn shape(&self, plan: &StatementPlan) -> Arc<RowShape> {
        let types = plan.fields.iter().flat_map(|fields| fields.iter()).map(|field| field.column_type).collect();
        Arc::new(RowShape { types, settings: self.settings.format.clone() })
    }

    async fn run_plan(
        &mut self,
        plan: &StatementPlan,
        params: &[Datum],
        single: bool,
        (locking, links): (Option<RowLocking>, Option<Links>),
    ) -> SqlResult<Running> {
        let (reader, filling) = self.reader().await?;
        self.usable(plan, reader.main())?;
        let now_us = self.open(false)?.now_us;
        let settings = self.settings.format.clone();
        let row_ids = self.gateway.row_ids();
        let backend = Arc::clone(&self.backend);
        let mut work = Work {
            reader,
            params,
            now_us,
            settings: &settings,
            eager: !single,
            locking,
            links,
            row_ids,
            sequences: &backend.sequences,
            plant: self.gateway.plant(),
        };
        let shape = self.shape(plan);
        let running = match &plan.kind {
            PlanKind::Key(key_plan) if key_plan.writes() => {
                let rows = guarded(self, keyrun::write(key_plan, &work)).await?;
                let tag = Tag::Fixed(key_tag(key_plan, rows.count));
                few(shape, rows, tag)
            }
            PlanKind::Key(key_plan) => match guarded(self, keyrun::read(key_plan, &work)).await? {
                keyrun::Read::Rows(rows) => few(shape, rows, Tag::Select),
                keyrun::Read::Range(range) => stream(shape, Source::Range(range)),
                keyrun::Read::Index(index) => stream(shape, Source::Index(index)),
            },
            PlanKind::General(planned) => {
                self.backend.advisory.set_timeout(self.lock_timeout());
                let clock = Arc::clone(&self.gateway.config().clock);
                let values = RunValues {
                    parameters: params,
                    lifted: &planned.lifted,
                    transaction_time: now_us,
                    settings: &settings,
                    clock: &clock,
                    backend: &backend,
                    locked: &[],
                };
                let locked = match planned.plan.inner() {
                    [] => Vec::new(),
                    inner => guarded(self, Box::pin(select_for::run_all(inner, &mut work, &values))).await?,
                };
                let values = RunValues { locked: &locked, ..values };
                match planned.plan.change() {
                    None if planned.plan.locks().is_some() => {
                        let run = select_for::run(&planned.plan, &work, &values);
                        let (batches, _) = guarded(self, Box::pin(run)).await?;
                        given(Running::with_tag(Tag::Select), shape, batches)
                    }
                    None => {
                        let start = planned.plan.start(work.reader.clone(), &values);
                        stream(shape, Source::Query(guarded(self, Box::pin(start)).await?))
                    }
                    Some(change) => {
                        let changed = guarded(self, Box::pin(general::run(planned, &work, &values))).await?;
                        given(Running::done(general_tag(change, changed.count)), shape, changed.returned)
                    }
                }
            }
            _ => return Err(SqlError::internal("a command was run as a statement on rows")),
        };
        drop(work);
        self.commit_filling(filling).await?;
        Ok(running)
    }

    /// 55000 for a table that has another form than at the time of AS OF SYSTEM TIME; 40001 for a snapshot older than a table's present form.
    pub(super) fn usable(&self, plan: &StatementPlan, txn: &Txn) -> SqlResult<()> {
        let snapshot = self.snapshot();
        if self.is_past() {
            return self.unchanged_since(plan, &snapshot);
        }
        // A snapshot that is still to be taken is later than everything that is known here.
        let read_ts = txn.read_ts_taken().unwrap_or(proto::Timestamp::MAX);
        for (id, _) in &plan.tables {
            if read_ts < snapshot.usable_from(*id) {
                return Err(SqlError::serialization("A table was changed since the transaction began."));
            }
        }
        Ok(())
    }

    /// The next step of a portal; `None` when it has nothing more in this Execute. `left` is how many rows it may still give.
    pub(super) async fn advance(&mut self, portal: &mut Portal, left: &mut Option<u64>) -> SqlResult<Option<Step>> {
        loop {
            let running = match &mut portal.progress {
                Progress::Running(running) => running,
                Progress::Done(tag) => return Ok(Some(Step::Done(tag.clone()))),
                Progress::New => return Err(SqlError::internal("a portal was read before it was started")),
            };
            if let Some(mut batch) = running.ready.pop_front() {
                if batch.is_empty() {
                    continue;
                }
                if *left == Some(0) {
                    running.ready.push_front(batch);
                    return Ok(Some(Step::Suspended));
                }
                if let Some(left) = left {
                    let rest = batch.split_off(*left as usize);
                    *left -= batch.len() as u64;
                    if !rest.is_empty() {
                        running.ready.push_front(rest);
                    }
                }
                running.sent += batch.len() as u64;
                return Ok(Some(Step::Rows(batch)));
            }
            if *left == Some(0) {
                return Ok(Some(Step::Suspended));
            }
            let single = running.single;
            match self.fetch(portal).await {
                Ok(Some(step)) => return Ok(Some(step)),
                Ok(None) if self.is_fetching(portal) => {}
                Ok(None) => return self.finish(portal).await.map(Some),
                Err(error) => {
                    self.fail(single);
                    return Err(error);
                }
            }
        }
    }

    fn is_fetching(&self, portal: &Portal) -> bool {
        match &portal.progress {
            Progress::Running(running) => !matches!(running.source, Source::Nothing) || !running.ready.is_empty(),
            _ => false,
        }
    }

    /// Gets more rows of a running portal's source into `ready`; at its end the source is gone.
    async fn fetch(&mut self, portal: &mut Portal) -> SqlResult<Option<Step>> {
        let Progress::Running(running) = &mut portal.progress else { return Ok(None) };
        match &mut running.source {
            Source::Nothing => {}
            Source::Cursor { .. } => self.advance_cursor(portal).await?,
            Source::CopyIn => return Err(SqlError::internal("COPY's rows have not ended")),
            Source::Range(range) => {
                let rows = guarded(self, range.next()).await?;
                self.checked()?;
                running.take(rows);
            }
            Source::Index(index) => {
                let rows = guarded(self, index.next()).await?;
                self.checked()?;
                running.take(rows);
            }
            Source::Query(query) => {
                let batch = guarded(self, query.next_batch()).await?;
                self.checked()?;
                match batch {
                    None => running.source = Source::Nothing,
                    Some(batch) => running.ready.push_back(RowBatch::from_arrow(Arc::clone(&running.shape), batch)),
                }
            }
            Source::CopyOut(copy) => {
                let step = guarded(self, copy.next()).await?;
                self.checked()?;
                if step.is_none() {
                    running.tag = Tag::Fixed(format!("COPY {}", copy.count()));
                    running.source = Source::Nothing;
                }
                return Ok(step);
            }
        }
        Ok(None)
    }

    /// The statement has given everything.
    async fn finish(&mut self, portal: &mut Portal) -> SqlResult<Step> {
        let Progress::Running(running) = &portal.progress else {
            return Err(SqlError::internal("a portal ended twice"));
        };
        let (tag, single) = (running.tag(), running.single);
        portal.progress = Progress::Done(tag.clone().unwrap_or_default());
        // A read that was streamed; writes were committed before their rows were shown.
        if single && matches!(self.transaction.state, State::Open(_)) {
            self.commit().await?;
        }
        Ok(tag.map_or(Step::Empty, Step::Done))
    }
}

impl Running {
    /// More rows of a key plan, or the end of them.
    fn take(&mut self, rows: Option<keyrun::Rows>) {
        match rows {
            None => self.source = Source::Nothing,
            Some(rows) => {
                let shape = Arc::clone(&self.shape);
                self.ready.push_back(RowBatch::from_datums(shape, rows.count, rows.datums));
            }
        }
    }
}

/// With rows that are there already.
fn given(mut running: Running, shape: Arc<RowShape>, batches: impl IntoIterator<Item = RecordBatch>) -> Running {
    running.ready.extend(batches.into_iter().map(|batch| RowBatch::from_arrow(Arc::clone(&shape), batch)));
    running.shape = shape;
    running
}

fn few(shape: Arc<RowShape>, rows: keyrun::Rows, tag: Tag) -> Running {
    let mut running = Running::with_tag(tag);
    let width = shape.types.len();
    if width > 0 && !rows.datums.is_empty() {
        let count = rows.datums.len() / width;
        running.ready = VecDeque::from([RowBatch::from_datums(Arc::clone(&shape), count, rows.datums)]);
    }
    running.shape = shape;
    running
}

fn stream(shape: Arc<RowShape>, source: Source) -> Running {
    let mut running = Running::with_tag(Tag::Select);
    running.shape = shape;
    running.source = source;
    running
}

fn key_tag(plan: &KeyPlan, count: usize) -> String {
    match plan {
        KeyPlan::Read(_) => format!("SELECT {count}"),
        KeyPlan::Insert(_) => format!("INSERT 0 {count}"),
        KeyPlan::Modify(plan) if plan.assignments.is_some() => format!("UPDATE {count}"),
        KeyPlan::Modify(_) => format!("DELETE {count}"),
    }
}

fn general_tag(change: &Change, count: usize) -> String {
    match change {
        Change::Insert { .. } => format!("INSERT 0 {count}"),
        Change::Update { .. } => format!("UPDATE {count}"),
        Change::Delete { .. } => format!("DELETE {count}"),
    }
}
