//! A gateway's query side without sessions: tables in memory, one transaction a statement.

use std::{
    fmt::Write,
    sync::{Arc, LazyLock},
};

use arrow::record_batch::RecordBatch;
use datafusion::sql::sqlparser::{
    ast::{ColumnOption, CreateTable, Expr, Statement, TableConstraint},
    dialect::PostgreSqlDialect,
    parser::Parser,
};
use kv::local::Local;
use sql::{
    Gateway, GatewayConfig, Reader, Session, SqlError, SqlResult, Startup,
    catalog::{CatalogSnapshot, ColumnDescriptor, TableDescriptor},
    codec::TableCodec,
    query::{
        Change, PlanCache, Planned, Rows, RunValues,
        bind::{folded, type_names},
        explain, physical_plans, planner_runs,
        scan::store::RowScan,
    },
    types::{ColumnType, Datum, FormatSettings, PgType, arrow::datum_at, text},
};

/// 2024-02-29 12:34:56.789 UTC: every transaction's time.
pub const NOW: i64 = 1_709_210_096_789_000;

/// See the module.
pub struct Harness {
    local: Local,
    snapshot: Arc<CatalogSnapshot>,
    cache: PlanCache,
    /// Whose statements they are.
    session: Session,
    next_table: u32,
    next_row: i64,
    seen: (u64, u64),
}

impl Harness {
    /// With region borders at tables 100 and 101 and within table 100's first column's small integers.
    pub async fn new() -> Self {
        let mut borders: Vec<bytes::Bytes> =
            (100..104).map(|table| proto::keyspace::table_prefix(proto::keyspace::SQL_KEYSPACE, table)).collect();
        let mut inside = proto::keyspace::index_prefix(proto::keyspace::SQL_KEYSPACE, 100, 0).to_vec();
        inside.extend((5_u32 ^ 1 << 31).to_be_bytes());
        borders.push(inside.into());
        borders.sort();
        let local = Local::start(&borders, Some(Arc::new(RowScan::default())));
        let session = session(&local).await;
        Harness {
            local,
            session,
            snapshot: Arc::new(CatalogSnapshot::new(1, [])),
            cache: PlanCache::default(),
            next_table: 100,
            next_row: 1,
            seen: (planner_runs(), physical_plans()),
        }
    }

    fn plan(&self, sql: &str, parameters: &[String]) -> SqlResult<(Planned, Vec<Datum>)> {
        let types: Vec<Option<ColumnType>> = Vec::new();
        let planned = match self.cache.find(sql, &self.snapshot, &types)? {
            Some(planned) => planned,
            None => self.cache.plan(sql, parse(sql)?, &self.snapshot, &types)?,
        };
        let settings = FormatSettings::default();
        let value = |(text, column_type): (&String, &ColumnType)| {
            sql::types::text::parse(&bytes::Bytes::from(text.clone()), *column_type, &settings)
        };
        let values = parameters.iter().zip(planned.plan.parameters()).map(value).collect::<SqlResult<_>>()?;
        Ok((planned, values))
    }

    /// Runs a statement; the result as the script prints it.
    pub async fn sql(&mut self, sql: &str, parameters: &[String]) -> SqlResult<String> {
        if let Ok(Statement::CreateTable(create)) = parse(sql) {
            self.create(&create)?;
            return Ok(String::new());
        }
        let (planned, values) = self.plan(sql, parameters)?;
        let txn = self.local.client.begin().await?;
        let mut rows = planned
            .plan
            .start(Reader::new(txn.clone()), &run_values(&planned, &values, &self.local, &self.session))
            .await?;
        let mut out = String::new();
        match planned.plan.change() {
            Some(Change::Insert { table, .. }) => {
                let codec = TableCodec::new(table);
                while let Some(batch) = rows.next_batch().await? {
                    for at in 0..batch.num_rows() {
                        let mut row = datums(&batch, at)?;
                        if table.row_id().is_some() {
                            row.push(Datum::Int8(self.next_row));
                            self.next_row += 1;
                        }
                        txn.put(codec.key(&row)?, codec.value(&row)?)?;
                    }
                }
                txn.commit(kv::CommitOptions { floor: kv::Floor::StartTs, max_commit_ts: None }).await?;
            }
            _ => print_rows(&planned, &mut rows, &mut out).await?,
        }
        Ok(out)
    }

    /// EXPLAIN of a statement.
    pub async fn explain(&mut self, sql: &str, parameters: &[String]) -> SqlResult<String> {
        let (planned, values) = self.plan(sql, parameters)?;
        let txn = self.local.client.begin().await?;
        let lines = explain::explain(
            &planned.plan,
            Reader::new(txn),
            &run_values(&planned, &values, &self.local, &self.session),
        )
        .await?;
        Ok(lines.join("\n"))
    }

    /// Planner runs since the last call. Scripts run in parallel: only a script that runs alone in its process counts exactly.
    pub fn runs(&mut self) -> String {
        let now = (planner_runs(), physical_plans());
        let since = format!("planner {}, physical {}", now.0 - self.seen.0, now.1 - self.seen.1);
        self.seen = now;
        since
    }

    fn create(&mut self, create: &CreateTable) -> SqlResult<()> {
        let name = create.name.0.last().and_then(|part| part.as_ident()).map(folded).unwrap_or_default();
        let mut table = TableDescriptor::new(self.next_table, name.clone(), Vec::new(), Vec::new());
        for column in &create.columns {
            let option = |wanted: fn(&ColumnOption) -> bool| column.options.iter().any(|o| wanted(&o.option));
            let default = column.options.iter().find_map(|o| match &o.option {
                ColumnOption::Default(expr) => Some(expr.to_string()),
                _ => None,
            });
            let key = option(|o| matches!(o, ColumnOption::PrimaryKey(_)));
            if key {
                table.key.push(table.columns.len());
            }
            push_column(&mut table, folded(&column.name), type_names::column_type(&column.data_type)?, default);
            let nullable = !key && !option(|o| matches!(o, ColumnOption::NotNull));
            table.columns.last_mut().expect("just pushed").nullable = nullable;
        }
        for constraint in &create.constraints {
            let TableConstraint::PrimaryKey(key) = constraint else { continue };
            for column in &key.columns {
                let Expr::Identifier(ident) = &column.column.expr else { continue };
                let at = table.position(&folded(ident)).expect("a key's column");
                table.columns[at].nullable = false;
                table.key.push(at);
            }
        }
        if table.key.is_empty() {
            push_column(&mut table, "flaredb_rowid".into(), PgType::Int8.plain(), None);
            let last = table.columns.last_mut().expect("just pushed");
            (last.hidden, last.nullable) = (true, false);
            table.key.push(table.columns.len() - 1);
        } else {
            table.primary_key = Some(format!("{name}_pkey"));
        }
        self.next_table += 1;
        let tables: Vec<_> = self.snapshot.tables().cloned().chain([Arc::new(table)]).collect();
        self.snapshot = Arc::new(CatalogSnapshot::new(self.snapshot.version + 1, tables));
        Ok(())
    }
}

fn push_column(table: &mut TableDescriptor, name: String, column_type: ColumnType, default: Option<String>) {
    let id = table.next_column_id;
    table.columns.push(ColumnDescriptor { default, ..ColumnDescriptor::new(id, name, column_type) });
    table.next_column_id += 1;
}

/// A session of a gateway that does nothing else.
async fn session(local: &Local) -> Session {
    let Local { client, pd, clock, spawn, .. } = local;
    let (client, pd, clock, spawn) = (client.clone(), pd.clone(), clock.clone(), spawn.clone());
    let gateway = Gateway::new(GatewayConfig { client, pd, clock, spawn });
    gateway.start().await.expect("the gateway starts");
    let startup = Startup { user: "postgres".into(), database: "postgres".into(), ..Startup::default() };
    gateway.connect(startup).expect("the session is let in")
}

fn run_values<'a>(
    planned: &'a Planned,
    parameters: &'a [Datum],
    local: &'a Local,
    session: &'a Session,
) -> RunValues<'a> {
    static SETTINGS: LazyLock<FormatSettings> = LazyLock::new(FormatSettings::default);
    let lifted = &planned.lifted;
    RunValues {
        parameters,
        lifted,
        transaction_time: NOW,
        settings: &SETTINGS,
        clock: &local.clock,
        backend: session.backend(),
        locked: &[],
    }
}

fn parse(sql: &str) -> SqlResult<Statement> {
    let mut parsed =
        Parser::parse_sql(&PostgreSqlDialect {}, sql).map_err(|error| SqlError::syntax(error.to_string()))?;
    match parsed.len() {
        1 => Ok(parsed.remove(0)),
        _ => Err(SqlError::syntax("one statement at a time")),
    }
}

fn datums(batch: &RecordBatch, at: usize) -> SqlResult<Vec<Datum>> {
    batch.columns().iter().map(|column| datum_at(column, at)).collect()
}

async fn print_rows(planned: &Planned, rows: &mut Rows, out: &mut String) -> SqlResult<()> {
    let columns = planned.plan.columns();
    let header: Vec<String> =
        columns.iter().map(|column| format!("{} {}", column.name, column.column_type.sql_name())).collect();
    writeln!(out, "{}", header.join(", ").replace('\u{1}', "^")).expect("a String takes everything");
    while let Some(batch) = rows.next_batch().await? {
        for at in 0..batch.num_rows() {
            writeln!(out, "{}", row_text(&batch, at, planned)?).expect("a String takes everything");
        }
    }
    Ok(())
}

/// A row as `psql -At` prints it, NULL as `NULL`.
pub fn row_text(batch: &RecordBatch, at: usize, planned: &Planned) -> SqlResult<String> {
    let settings = FormatSettings::default();
    let cells = datums(batch, at)?.into_iter().zip(planned.plan.columns()).map(|(datum, column)| {
        if datum.is_null() {
            return "NULL".to_owned();
        }
        let mut out = String::new();
        text::format(&datum, column.column_type, &settings, &mut out);
        out
    });
    Ok(cells.collect::<Vec<_>>().join("|"))
}
