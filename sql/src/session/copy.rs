//! COPY in a session.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::sql::sqlparser::ast::Ident;

use super::{
    Session, Step,
    portal::{Running, Source, Tag},
    step::CopyFormat,
    transaction::State,
};
use crate::{
    catalog::{Table, store},
    copy::{CopyOut, Line, LineReader},
    dml::{BulkWriter, Target},
    error::{SqlError, SqlResult, SqlState},
    eval::{Env, Scalar},
    keyplan::compile::default_scalar,
    name::{RelationName, folded},
    query::RunValues,
    statement::{CopyStatement, copy::CopySource},
    types::{Datum, text},
};

/// Rows of COPY FROM that are put into the transaction's buffer at a time.
const ROWS_AT_ONCE: usize = 1000;

/// COPY … FROM STDIN under way.
pub(super) struct CopyIn {
    target: Target,
    /// Positions of the columns that lines give.
    columns: Vec<usize>,
    defaults: Vec<Scalar>,
    lines: LineReader,
    /// The first line is still to be skipped.
    header: bool,
    sink: Sink,
    announced: bool,
    count: u64,
    single: bool,
}

enum Sink {
    /// Into a storage id nobody else knows: committed in batches.
    Bulk(Box<BulkWriter>),
    /// Into the transaction's buffer, which is bounded.
    Buffer(Vec<Vec<Datum>>),
}

impl CopyIn {
    /// CopyInResponse, once.
    pub(super) fn announce(&mut self) -> Option<Step> {
        if std::mem::replace(&mut self.announced, true) {
            return None;
        }
        Some(Step::CopyIn(CopyFormat { columns: self.columns.len() as i16 }))
    }
}

impl Session {
    pub(super) async fn copy(&mut self, copy: &CopyStatement, single: bool) -> SqlResult<Running> {
        if copy.out { self.copy_out(copy, single).await } else { self.copy_from(copy, single).await }
    }

    async fn copy_out(&mut self, copy: &CopyStatement, single: bool) -> SqlResult<Running> {
        self.catalog.held().await?;
        let snapshot = self.snapshot();
        let query = match &copy.source {
            CopySource::Query(query) => query.to_string(),
            CopySource::Table { name, columns } => {
                let relation = RelationName::new(name)?;
                let table = snapshot.resolve(relation.schema.as_deref(), &relation.name)?;
                let positions = positions(table, columns)?;
                let names: Vec<String> =
                    positions.iter().map(|at| Ident::with_quote('"', &table.columns[*at].name).to_string()).collect();
                format!("SELECT {} FROM {name}", names.join(", "))
            }
        };
        let planned = self.gateway.planner().query(&query, &snapshot)?;
        let tables: Vec<u32> = crate::query::plan::tables_read(planned.plan.logical()).into_iter().collect();
        self.enter_tables(&tables)?;
        let (reader, _) = self.reader().await?;
        let now_us = self.open(false)?.now_us;
        let values = RunValues {
            parameters: &[],
            lifted: &planned.lifted,
            transaction_time: now_us,
            user: &self.startup.user,
            database: &self.startup.database,
        };
        let rows = planned.plan.start(reader, &values).await?;
        let mut running = Running::with_tag(Tag::Fixed("COPY".to_owned()));
        running.source = Source::CopyOut(Box::new(CopyOut::new(rows, copy, self.settings.format.clone())));
        running.single = single;
        Ok(running)
    }

    /// Enters the fence of tables that a statement without a plan of its own uses.
    fn enter_tables(&mut self, tables: &[u32]) -> SqlResult<()> {
        let snapshot = self.snapshot();
        let planned = match &self.transaction.state {
            State::Open(open) => open.pending.as_ref().map_or(snapshot.version, |pending| pending.base_version),
            _ => snapshot.version,
        };
        let catalog = &self.catalog;
        if self.transaction.fence.enter(tables, planned, || catalog.current_version()) {
            return self.transaction.fence.check();
        }
        Err(SqlError::serialization("Another session changed the schema at the same time."))
    }

    async fn copy_from(&mut self, copy: &CopyStatement, single: bool) -> SqlResult<Running> {
        let CopySource::Table { name, columns } = &copy.source else {
            return Err(SqlError::syntax("syntax error: COPY FROM needs a table"));
        };
        self.catalog.held().await?;
        let relation = RelationName::new(name)?;
        let table = self.snapshot().resolve(relation.schema.as_deref(), &relation.name)?.clone();
        let columns = positions(&table, columns)?;
        self.enter_tables(&[table.id])?;
        let start_ts = self.txn().await?.start_ts();
        let open = self.open(false)?;
        if open.read_only {
            let message = "cannot execute COPY FROM in a read-only transaction";
            return Err(SqlError::new(SqlState::READ_ONLY_SQL_TRANSACTION, message));
        }
        let own = open.pending.as_ref().is_some_and(|pending| pending.unpublished.contains(&table.storage_id));
        if !own && start_ts.0 < table.writes_fenced_until {
            return Err(SqlError::serialization("ALTER TABLE by another session holds writes to the table off."));
        }
        let defaults = (0..table.columns.len()).map(|at| default_scalar(&table, at)).collect::<SqlResult<_>>()?;
        let target = Target::new(Arc::clone(&table));
        let sink = if own {
            store::note_garbage(self.gateway.client(), table.storage_id).await?;
            Sink::Bulk(Box::new(BulkWriter::new(self.gateway.client().clone(), target.clone())))
        } else {
            Sink::Buffer(Vec::new())
        };
        self.copy_in = Some(Box::new(CopyIn {
            target,
            columns,
            defaults,
            lines: LineReader::new(copy.delimiter, &copy.null),
            header: copy.header,
            sink,
            announced: false,
            count: 0,
            single,
        }));
        let mut running = Running::with_tag(Tag::Fixed("COPY".to_owned()));
        running.source = Source::CopyIn;
        running.single = single;
        Ok(running)
    }

    /// CopyData from the client, after [`Step::CopyIn`]. After an error the COPY is over, and more data is to be skipped.
    pub async fn copy_data(&mut self, data: Bytes) -> SqlResult<()> {
        let Some(mut copy) = self.copy_in.take() else { return Err(no_copy()) };
        copy.lines.feed(&data);
        let fed = self.copy_lines(&mut copy, false).await;
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
                let place = format!("COPY {}, line {}", copy.target.table.name, copy.lines.line_number);
                self.active = super::Active::Nothing;
                self.fail(copy.single);
                Err(error.with_place(place))
            }
        }
    }

    async fn copy_lines(&mut self, copy: &mut CopyIn, last: bool) -> SqlResult<()> {
        self.cancel.check()?;
        loop {
            let line = match copy.lines.next_line()? {
                None if last => copy.lines.last_line()?,
                line => line,
            };
            let Some(line) = line else { return Ok(()) };
            if std::mem::take(&mut copy.header) {
                continue;
            }
            let row = self.copy_row(copy, line).await?;
            copy.count += 1;
            match &mut copy.sink {
                Sink::Bulk(writer) => {
                    copy.target.check_not_null(&row)?;
                    writer.push(copy.target.codec.key(&row)?, copy.target.codec.value(&row)?).await?;
                }
                Sink::Buffer(rows) => {
                    rows.push(row);
                    if rows.len() >= ROWS_AT_ONCE {
                        let rows = std::mem::take(rows);
                        self.copy_buffer(&copy.target, &rows).await?;
                    }
                }
            }
        }
    }

    async fn copy_buffer(&mut self, target: &Target, rows: &[Vec<Datum>]) -> SqlResult<()> {
        let txn = self.txn().await?;
        target.insert(&txn, rows, true).await.map_err(|error| {
            if error.sqlstate != SqlState::PROGRAM_LIMIT_EXCEEDED {
                return error;
            }
            error.with_hint("Create or truncate the table in the same transaction as the COPY: then any amount fits.")
        })
    }

    async fn copy_row(&self, copy: &CopyIn, line: Line) -> SqlResult<Vec<Datum>> {
        let names = || copy.columns.iter().map(|at| copy.target.table.columns[*at].name.as_str());
        let bad = |message: String| SqlError::new(SqlState::BAD_COPY_FILE_FORMAT, message);
        if line.len() < copy.columns.len() {
            let missing = names().nth(line.len()).unwrap_or_default();
            return Err(bad(format!("missing data for column \"{missing}\"")));
        }
        if line.len() > copy.columns.len() {
            return Err(bad("extra data after last expected column".to_owned()));
        }
        let mut row = vec![Datum::Null; copy.target.table.columns.len()];
        let now_us = self.gateway.config().clock.wall_ms() as i64 * 1000;
        let env = Env { row: &[], params: &[], now_us, settings: &self.settings.format };
        for (at, default) in copy.defaults.iter().enumerate() {
            if !copy.columns.contains(&at) {
                row[at] = default.eval(&env)?;
            }
        }
        for (at, value) in copy.columns.iter().zip(line) {
            let column = &copy.target.table.columns[*at];
            if let Some(value) = value {
                row[*at] = text::parse(&value, column.column_type, &self.settings.format).map_err(|error| {
                    let shown = String::from_utf8_lossy(&value).into_owned();
                    error.with_place(format!(
                        "COPY {}, line {}, column {}: \"{shown}\"",
                        copy.target.table.name, copy.lines.line_number, column.name
                    ))
                })?;
            }
        }
        if let Some(at) = copy.target.table.row_id() {
            row[at] = Datum::Int8(self.gateway.row_ids().next().await?);
        }
        Ok(row)
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
        self.copy_lines(copy, true).await?;
        match &mut copy.sink {
            Sink::Bulk(writer) => writer.finish().await,
            Sink::Buffer(rows) => {
                let rows = std::mem::take(rows);
                self.copy_buffer(&copy.target, &rows).await
            }
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

/// The columns COPY names, as positions; all visible ones when it names none.
fn positions(table: &Table, columns: &[Ident]) -> SqlResult<Vec<usize>> {
    if columns.is_empty() {
        return Ok(table.visible().map(|(at, _)| at).collect());
    }
    let mut positions = Vec::with_capacity(columns.len());
    for column in columns {
        let name = folded(column);
        let at = table.position(&name).filter(|at| !table.columns[*at].hidden);
        let at = at.ok_or_else(|| SqlError::undefined_column(&name, &table.name))?;
        if positions.contains(&at) {
            let message = format!("column \"{name}\" specified more than once");
            return Err(SqlError::new(SqlState::DUPLICATE_COLUMN, message));
        }
        positions.push(at);
    }
    Ok(positions)
}
