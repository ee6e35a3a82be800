//! COPY in a session.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::sql::sqlparser::ast::{Ident, ObjectName};

use super::{
    Session, Step,
    portal::{Running, Source, Tag},
    step::CopyFormat,
    transaction::State,
};
use crate::{
    catalog::{CatalogSnapshot, Entered, Sequence, Table, garbage},
    copy::{CopyOut, Input, columns_of},
    dml::{BulkWriter, Certainty, Integrity, Target, foreign::Later},
    error::{SqlError, SqlResult, SqlState},
    eval::cast,
    name::RelationName,
    query::{Planned, RunValues},
    statement::{CopyStatement, copy::CopySource},
    table_locks::Mode,
    types::Datum,
};

/// Rows of COPY FROM that are put into the transaction's buffer at a time.
const ROWS_AT_ONCE: usize = 1000;

/// COPY … FROM STDIN under way.
pub(super) struct CopyIn {
    target: Target,
    input: Input,
    sink: Sink,
    /// Columns that sequences fill.
    drawn: Vec<(usize, Sequence)>,
    /// Rows that were read and not given to the sink.
    rows: Vec<Vec<Datum>>,
    announced: bool,
    count: u64,
    single: bool,
    /// Rows whose parents may come behind them.
    later: Later,
}

enum Sink {
    /// Into a storage id nobody else knows: committed in batches.
    Bulk(Box<BulkWriter>),
    /// Into the transaction's buffer, which makes room when it is full.
    Buffer,
}

impl CopyIn {
    /// CopyInResponse, once.
    pub(super) fn announce(&mut self) -> Option<Step> {
        if std::mem::replace(&mut self.announced, true) {
            return None;
        }
        Some(Step::CopyIn(CopyFormat { columns: self.input.width() as i16 }))
    }
}

impl Session {
    pub(super) async fn copy(&mut self, copy: &CopyStatement, single: bool) -> SqlResult<Running> {
        if copy.out { self.copy_out(copy, single).await } else { self.copy_from(copy, single).await }
    }

    async fn copy_out(&mut self, copy: &CopyStatement, single: bool) -> SqlResult<Running> {
        self.catalog.held().await?;
        let planned = loop {
            let planned = self.plan_copy(&copy.source)?;
            let tables = crate::query::plan::tables_read(planned.plan.logical()).into_iter();
            if self.enter_tables(&tables.map(|id| (id, Mode::AccessShare)).collect::<Vec<_>>()).await? {
                break planned;
            }
        };
        let (reader, _) = self.reader().await?;
        let now_us = self.open(false)?.now_us;
        let settings = self.settings.format.clone();
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
        let rows = planned.plan.start(reader, &values).await?;
        let mut running = Running::with_tag(Tag::Fixed("COPY".to_owned()));
        running.source = Source::CopyOut(Box::new(CopyOut::new(rows, copy, &self.settings.format)));
        running.single = single;
        Ok(running)
    }

    fn plan_copy(&self, source: &CopySource) -> SqlResult<Planned> {
        let snapshot = self.snapshot();
        let query = match source {
            CopySource::Query(query) => query.to_string(),
            CopySource::Table { name, columns } => {
                let relation = RelationName::new(name)?;
                let table = snapshot.resolve(relation.schema.as_deref(), &relation.name)?;
                let positions = columns_of(table, columns)?;
                let names: Vec<String> =
                    positions.iter().map(|at| Ident::with_quote('"', &table.columns[*at].name).to_string()).collect();
                format!("SELECT {} FROM {name}", names.join(", "))
            }
        };
        self.gateway.planner().query(&query, &snapshot)
    }

    /// Enters the fence of tables that a statement without a plan of its own uses; `false`: after a wait, or because the
    /// catalog has changed, they have to be looked up again.
    async fn enter_tables(&mut self, tables: &[(u32, Mode)]) -> SqlResult<bool> {
        let snapshot = self.snapshot();
        let planned = match &self.transaction.state {
            State::Open(open) => open.pending.as_ref().map_or(snapshot.version, |pending| pending.base_version),
            _ => snapshot.version,
        };
        let (catalog, fence, past) = (&self.catalog, &self.transaction.fence, self.is_past());
        let entered = fence.enter(tables, past, planned, || catalog.current_version());
        fence.check()?;
        match entered {
            Entered::Yes => Ok(true),
            Entered::Blocked(table, mode) => {
                let ask = self.ask("COPY");
                self.wait_for_table((table, mode), &ask).await.map(|_| false)
            }
            Entered::Stale => {
                self.rebase();
                Ok(false)
            }
        }
    }

    /// The table that COPY FROM fills, with the catalog that knows it.
    async fn entered(&mut self, name: &ObjectName) -> SqlResult<(Table, Arc<CatalogSnapshot>)> {
        let relation = RelationName::new(name)?;
        loop {
            let snapshot = self.snapshot();
            let table = snapshot.resolve(relation.schema.as_deref(), &relation.name)?.clone();
            if self.enter_tables(&snapshot.reached_by_insert(table.id)).await? {
                return Ok((table, snapshot));
            }
        }
    }

    async fn copy_from(&mut self, copy: &CopyStatement, single: bool) -> SqlResult<Running> {
        let CopySource::Table { name, .. } = &copy.source else {
            return Err(SqlError::syntax("syntax error: COPY FROM needs a table"));
        };
        self.catalog.held().await?;
        let (table, snapshot) = self.entered(name).await?;
        self.txn().await?;
        let open = self.open(false)?;
        if open.read_only {
            let message = "cannot execute COPY FROM in a read-only transaction";
            return Err(SqlError::new(SqlState::READ_ONLY_SQL_TRANSACTION, message));
        }
        let own = open.pending.as_mut().filter(|pending| pending.unpublished.contains(&table.storage_id));
        let own = own.map(|pending| Arc::make_mut(pending).fill(table.storage_id)).is_some();
        let now_us = open.now_us;
        let target = Target::new(Arc::clone(&table));
        let input = Input::new(target.clone(), copy, &self.settings.format, now_us)?;
        let sink = if own {
            garbage::note(self.gateway.client(), self.gateway.id(), garbage::Garbage::Storage(table.storage_id))
                .await?;
            Sink::Bulk(Box::new(BulkWriter::new(self.gateway.client().clone(), target.clone())))
        } else {
            Sink::Buffer
        };
        let sequence = |at: &usize| {
            let id = table.columns[*at].sequence.unwrap_or(0);
            let sequence = snapshot.sequence(id).ok_or_else(|| SqlError::undefined_table(&id.to_string()))?;
            Ok((*at, Sequence::clone(sequence)))
        };
        let drawn = input.drawn().iter().map(sequence).collect::<SqlResult<Vec<_>>>()?;
        let (rows, later) = (Vec::new(), Later::of(own));
        self.copy_in =
            Some(Box::new(CopyIn { target, input, sink, drawn, rows, announced: false, count: 0, single, later }));
        let mut running = Running::with_tag(Tag::Fixed("COPY".to_owned()));
        running.source = Source::CopyIn;
        running.single = single;
        Ok(running)
    }

    /// CopyData from the client, after [`Step::CopyIn`]. After an error the COPY is over, and more data is to be skipped.
    pub async fn copy_data(&mut self, data: Bytes) -> SqlResult<()> {
        let Some(mut copy) = self.copy_in.take() else { return Err(no_copy()) };
        copy.input.feed(data);
        let fed = self.copy_rows(&mut copy).await;
        self.copied(copy, fed)
    }

    /// Keeps the COPY after success; after an error the transaction has failed.
    fn copied(&mut self, copy: Box<CopyIn>, result: SqlResult<()>) -> SqlResult<()> {
        match result {
            Ok(()) => {
                self.copy_in = Some(copy);
                Ok(())
            }
            Err(error) => {
                self.active = super::Active::Nothing;
                self.fail(copy.single);
                // Rows are written some lines after they were read, so only what is wrong with a line names one.
                Err(error.with_place(format!("COPY {}", copy.target.table.name)))
            }
        }
    }

    async fn copy_rows(&mut self, copy: &mut CopyIn) -> SqlResult<()> {
        self.backend.cancel.check()?;
        while let Some(mut row) = copy.input.next_row()? {
            if let Some(at) = copy.target.table.row_id() {
                row[at] = Datum::Int8(self.gateway.row_ids().next().await?);
            }
            copy.count += 1;
            copy.rows.push(row);
            // What goes wrong with a row in bulk is said with its line, if it need not wait for others.
            let at_once = matches!(copy.sink, Sink::Bulk(_)) && copy.drawn.is_empty();
            if at_once || copy.rows.len() >= ROWS_AT_ONCE {
                self.copy_out_of_buffer(copy).await?;
            }
        }
        Ok(())
    }

    /// Gives the rows that were read to the sink.
    async fn copy_out_of_buffer(&mut self, copy: &mut CopyIn) -> SqlResult<()> {
        let mut rows = std::mem::take(&mut copy.rows);
        if rows.is_empty() {
            return Ok(());
        }
        for (at, sequence) in &copy.drawn {
            let column_type = copy.target.table.columns[*at].column_type;
            let values = self.backend.sequences.next(sequence, rows.len()).await?;
            for (row, value) in rows.iter_mut().zip(values) {
                row[*at] = cast::cast(Datum::Int8(value), column_type, false, &self.settings.format)?;
            }
        }
        match &mut copy.sink {
            Sink::Bulk(writer) => {
                for row in &rows {
                    let key = copy.target.codec.key(row).map_err(|error| copy.input.placed(error))?;
                    let value = copy.target.codec.value(row).map_err(|error| copy.input.placed(error))?;
                    writer.push(key, value, row).await?;
                }
            }
            Sink::Buffer => self.copy_buffer(&copy.target, &rows, copy.single).await?,
        }
        let bulk = matches!(copy.sink, Sink::Bulk(_));
        let checked =
            if bulk { !copy.target.table.foreign_keys.is_empty() } else { copy.target.table.checks_new_rows() };
        match checked {
            true => self.settle_copied(&copy.target.table, Some(&rows), &mut copy.later).await,
            false => Ok(()),
        }
    }

    /// 23503 for rows without a parent, 23505 for those that share a deferrable value; with `None` all rows have come.
    async fn settle_copied(&mut self, table: &Table, rows: Option<&[Vec<Datum>]>, later: &mut Later) -> SqlResult<()> {
        let links = self.links("COPY FROM STDIN")?;
        let now_us = self.open(false)?.now_us;
        let (reader, _) = self.reader().await?;
        let (settings, plant) = (self.settings.format.clone(), self.gateway.plant());
        let integrity = Integrity { reader: &reader, links: &links, now_us, settings: &settings, plant };
        match rows {
            Some(rows) => super::run::guarded(self, integrity.settle_some(table, rows, later)).await,
            None => super::run::guarded(self, integrity.settle_rest(table, std::mem::take(later))).await,
        }
    }

    async fn copy_buffer(&mut self, target: &Target, rows: &[Vec<Datum>], single: bool) -> SqlResult<()> {
        let txn = self.txn().await?;
        let locking = self.locking("COPY FROM STDIN")?;
        // On its own its commit follows at once.
        let certainty = if single { Certainty::Read } else { Certainty::Locked(&locking) };
        super::run::guarded(self, target.insert(&txn, rows, certainty)).await
    }

    /// CopyDone from the client: then ask for the next step.
    pub async fn copy_done(&mut self) -> SqlResult<()> {
        let Some(mut copy) = self.copy_in.take() else { return Err(no_copy()) };
        let done = self.copy_end(&mut copy).await;
        let (count, single) = (copy.count, copy.single);
        self.copied(copy, done)?;
        self.copy_in = None;
        if single {
            self.checked()?;
            self.commit().await?;
        }
        self.end_copy(format!("COPY {count}"));
        Ok(())
    }

    async fn copy_end(&mut self, copy: &mut CopyIn) -> SqlResult<()> {
        copy.input.finish();
        self.copy_rows(copy).await?;
        self.copy_out_of_buffer(copy).await?;
        if let Sink::Bulk(writer) = &mut copy.sink {
            writer.finish().await?;
        }
        match copy.target.table.checks_new_rows() {
            true => self.settle_copied(&copy.target.table, None, &mut copy.later).await,
            false => Ok(()),
        }
    }

    /// CopyFail from the client: 57014, and the COPY is over.
    pub async fn copy_fail(&mut self, message: &str) -> SqlResult<()> {
        let Some(copy) = self.copy_in.take() else { return Err(no_copy()) };
        let error = SqlError::new(SqlState::QUERY_CANCELED, format!("COPY from stdin failed: {message}"));
        self.copied(copy, Err(error))
    }
}

fn no_copy() -> SqlError {
    SqlError::new(SqlState::PROTOCOL_VIOLATION, "no COPY FROM STDIN is under way")
}
