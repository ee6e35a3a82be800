//! Which way a statement goes: key plan, query, or a command of its own.

use std::{num::NonZeroUsize, sync::Arc};

use datafusion::sql::sqlparser::ast::{self, Statement};
use lru::LruCache;
use parking_lot::Mutex;

use super::step::Field;
use crate::{
    catalog::{CatalogSnapshot, TableDescriptor},
    error::{SqlError, SqlResult},
    eval::Refusal,
    keyplan::{KeyPlan, ModifyPlan, compile},
    query::{
        self, PlanCache, normalise,
        plan::{is_volatile, tables_read},
    },
    statement::{
        Command, ConstraintsStatement, CopyStatement, Moment, SequenceStatement, SplitStatement, locate::locate,
        parse_one,
    },
    table_locks::Mode,
    types::{ColumnType, Datum, FormatSettings, PgType, Text, text},
};

/// Shapes of statements a gateway keeps key plans (or the knowledge that there is none) for.
const MAX_KEY_PLANS: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// How a statement is run.
#[derive(Clone, Debug)]
pub enum PlanKind {
    /// Nothing.
    Empty,
    /// By key.
    Key(Arc<KeyPlan>),
    /// Through DataFusion: a query, or the source of a DML statement's rows.
    General(query::Planned),
    /// By the session itself: transactions, settings, DDL.
    Command(Arc<Statement>),
    /// CREATE or ALTER SEQUENCE.
    Sequence(Arc<SequenceStatement>),
    /// Regions are cut.
    Split(Arc<SplitStatement>),
    /// SET CONSTRAINTS.
    Constraints(Arc<ConstraintsStatement>),
    /// COPY.
    Copy(Arc<CopyStatement>),
    /// DECLARE.
    Declare(Arc<Declared>),
    /// Accepted, nothing to do.
    Maintenance(&'static str),
}

/// A cursor's declaration.
#[derive(Clone, Debug)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Its query.
    pub query: Arc<Statement>,
}

/// A statement and how it is run against one version of the catalog.
#[derive(Clone, Debug)]
pub struct StatementPlan {
    /// How.
    pub kind: PlanKind,
    /// [`CatalogSnapshot::plan_version`] of what it was planned for; 0 when it does not depend on it.
    pub version: u64,
    /// Types of the client's parameters.
    pub param_types: Vec<PgType>,
    /// The result's columns; `None` when it has none.
    pub fields: Option<Arc<[Field]>>,
    /// Ids of the tables it reads or writes, and how they are locked.
    pub tables: Vec<(u32, Mode)>,
    /// It changes rows.
    pub writes: bool,
    /// Some of its functions do more than compute, or give another value each time.
    pub volatile: bool,
    /// It reads what was so then.
    pub as_of: Option<Arc<Moment>>,
    /// What foreign keys and deferrable constraints want of it.
    pub linked: Linked,
}

/// What foreign keys and deferrable constraints want of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linked {
    /// Nothing.
    No,
    /// Its new rows are looked at in the end: for their parents, for values that they must not share.
    NewRows,
    /// It may change or remove keys: its rows are locked before it changes them, and looked at in the end.
    Keys,
}

impl Linked {
    /// Of an UPDATE of these columns.
    fn updating(table: &TableDescriptor, assigned: &[usize]) -> Self {
        let own = table.foreign_keys.iter().any(|key| key.columns.iter().any(|at| assigned.contains(at)));
        let unique = table.indexes.iter().filter(|index| index.unique);
        let keys =
            table.key.iter().copied().chain(unique.flat_map(|index| index.columns.iter().map(|column| column.at)));
        // The key of a row is what a check that waits for COMMIT finds it by.
        let shared = table.indexes.iter().filter(|index| index.is_deferrable());
        let shared = shared.flat_map(|index| &index.columns).any(|column| assigned.contains(&column.at));
        let linked = own || shared || (table.is_linked() && keys.into_iter().any(|at| assigned.contains(&at)));
        if linked { Linked::Keys } else { Linked::No }
    }
    fn inserting(table: &TableDescriptor) -> Self {
        if table.checks_new_rows() { Linked::NewRows } else { Linked::No }
    }
    fn deleting(table: &TableDescriptor) -> Self {
        if table.referrers.is_empty() { Linked::No } else { Linked::Keys }
    }
    fn of_key_plan(plan: &KeyPlan) -> Self {
        let table = &plan.target().table;
        match plan {
            KeyPlan::Read(_) => Linked::No,
            KeyPlan::Insert(_) => Self::inserting(table),
            KeyPlan::Modify(ModifyPlan { assignments: None, .. }) => Self::deleting(table),
            KeyPlan::Modify(ModifyPlan { assignments: Some(assignments), .. }) => {
                Self::updating(table, &assignments.iter().map(|(at, _)| *at).collect::<Vec<_>>())
            }
        }
    }
    fn of_change(change: &query::Change) -> Self {
        match change {
            query::Change::Insert { table, conflict: Some(query::Conflict { update: Some(update), .. }), .. } => {
                match Self::updating(table, &update.assigned) {
                    Linked::No => Self::inserting(table),
                    linked => linked,
                }
            }
            query::Change::Insert { table, .. } => Self::inserting(table),
            query::Change::Update { table, assigned, .. } => Self::updating(table, assigned),
            query::Change::Delete { table, .. } => Self::deleting(table),
        }
    }
}

impl Linked {
    /// The tables that a statement on `table` uses beside those it reads.
    fn reached(self, table: u32, mode: Mode, catalog: &CatalogSnapshot) -> Vec<(u32, Mode)> {
        match self {
            Linked::No => vec![(table, mode)],
            Linked::NewRows => catalog.reached_by_insert(table),
            Linked::Keys => catalog.reached_from(table),
        }
    }
}

impl StatementPlan {
    fn plain(kind: PlanKind) -> Self {
        StatementPlan {
            kind,
            version: 0,
            param_types: Vec::new(),
            fields: None,
            tables: Vec::new(),
            writes: false,
            volatile: false,
            linked: Linked::No,
            as_of: None,
        }
    }

    fn key(plan: KeyPlan, param_types: Vec<PgType>, catalog: &CatalogSnapshot) -> Self {
        let linked = Linked::of_key_plan(&plan);
        let table = plan.target().table.id;
        let mode = match (plan.writes(), plan.locks()) {
            (true, _) => Mode::RowExclusive,
            (false, true) => Mode::RowShare,
            (false, false) => Mode::AccessShare,
        };
        StatementPlan {
            fields: plan.projection().map(|projection| projection.fields.clone().into()),
            tables: linked.reached(table, mode, catalog),
            writes: plan.writes() || plan.locks(),
            // Those it has are stable: it meets no others.
            volatile: false,
            kind: PlanKind::Key(Arc::new(plan)),
            version: catalog.plan_version(),
            param_types,
            linked,
            as_of: None,
        }
    }

    fn general(planned: query::Planned, catalog: &CatalogSnapshot) -> Self {
        let plan = &planned.plan;
        let column = |column: &query::OutputColumn| {
            let (table_oid, column_id) = column.origin.unwrap_or_default();
            Field { table_oid, column_id, ..Field::computed(column.name.clone(), column.column_type) }
        };
        let known = tables_read(plan.logical());
        let reads = if plan.locks().is_some() { Mode::RowShare } else { Mode::AccessShare };
        let mut tables: Vec<(u32, Mode)> = known.iter().map(|id| (*id, reads)).collect();
        let inner = plan.inner().iter().flat_map(|inner| tables_read(inner.logical()));
        tables.extend(inner.map(|id| (id, Mode::RowShare)));
        let linked = plan.change().map_or(Linked::No, Linked::of_change);
        let fields: Option<Vec<Field>> = match plan.change() {
            None => {
                let visible = plan.locks().map_or(plan.columns().len(), |locks| locks.visible);
                Some(plan.columns()[..visible].iter().map(column).collect())
            }
            Some(change) => {
                tables.extend(linked.reached(change.table().id, Mode::RowExclusive, catalog));
                change.returning().map(|returning| returning.columns.iter().map(column).collect())
            }
        };
        StatementPlan {
            fields: fields.map(Into::into),
            tables,
            writes: plan.change().is_some() || plan.locks_rows(),
            volatile: is_volatile(plan.logical()) || plan.inner().iter().any(|inner| is_volatile(inner.logical())),
            param_types: plan.parameters().iter().map(|column_type| column_type.pg_type).collect(),
            kind: PlanKind::General(planned),
            version: catalog.plan_version(),
            linked,
            as_of: None,
        }
    }

    /// The result looks the same: as many columns of the same types.
    pub fn same_result(&self, other: &StatementPlan) -> bool {
        let types = |plan: &StatementPlan| -> Option<Vec<ColumnType>> {
            plan.fields.as_ref().map(|fields| fields.iter().map(|field| field.column_type).collect())
        };
        types(self) == types(other)
    }

    /// COMMIT and ROLLBACK, also to a savepoint: allowed in a failed transaction.
    pub fn ends_transaction(&self) -> bool {
        matches!(&self.kind, PlanKind::Command(statement)
            if matches!(**statement, Statement::Commit { .. } | Statement::Rollback { .. }))
    }
}

/// A statement of the simple protocol that is ready to run, with the values of its literals.
pub struct Ready {
    /// The plan.
    pub plan: Arc<StatementPlan>,
    /// Its parameters.
    pub params: Vec<Datum>,
}

/// What identifies a statement whose key plan is kept.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    shape: String,
    types: Vec<PgType>,
    version: u64,
}

/// Plans statements, and keeps the plans of a gateway.
pub struct StatementPlanner {
    queries: PlanCache,
    /// `None`: a statement of this shape has no key plan.
    keys: Mutex<LruCache<Key, Option<Arc<StatementPlan>>>>,
    compiled: std::sync::atomic::AtomicU64,
    general: std::sync::atomic::AtomicU64,
}

impl Default for StatementPlanner {
    fn default() -> Self {
        StatementPlanner {
            queries: PlanCache::default(),
            keys: Mutex::new(LruCache::new(MAX_KEY_PLANS)),
            compiled: std::sync::atomic::AtomicU64::new(0),
            general: std::sync::atomic::AtomicU64::new(0),
        }
    }
}

impl StatementPlanner {
    /// How often a statement was planned: compiled to a key plan, or planned by DataFusion. Stays flat while known statements run.
    pub fn runs(&self) -> u64 {
        self.compiled.load(std::sync::atomic::Ordering::Relaxed) + query::planner_runs()
    }

    /// How often a statement that reads or writes rows was given to DataFusion.
    pub fn general(&self) -> u64 {
        self.general.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// A statement of the simple protocol whose shape has a key plan: without parsing it, after the first time.
    pub fn simple(&self, sql: &str, catalog: &CatalogSnapshot) -> SqlResult<Option<Ready>> {
        if catalog.private || !may_have_key_plan(sql) {
            return Ok(None);
        }
        let Some(shape) = normalise::shape(sql) else { return Ok(None) };
        let types: Vec<PgType> = shape.literals.iter().map(|literal| literal.literal_type(sql)).collect();
        let key = Key { shape: shape.text, types, version: catalog.version };
        let known = self.keys.lock().get(&key).cloned();
        let plan = match known {
            Some(known) => known,
            None => {
                let plan = self.compile_shape(sql, &shape.literals, &key.types, catalog)?.map(Arc::new);
                self.keys.lock().put(key, plan.clone());
                plan
            }
        };
        let Some(plan) = plan else { return Ok(None) };
        let mut params = Vec::with_capacity(shape.literals.len());
        for (literal, pg_type) in shape.literals.iter().zip(&plan.param_types) {
            let value = literal.value(sql);
            params.push(text::parse_plain(&Text::from(&*value), *pg_type, &FormatSettings::default())?);
        }
        // Parameters whose text depends on the session's time zone are parsed where it is known.
        let zoned = plan.param_types.contains(&PgType::TimestampTz);
        Ok((!zoned && params.len() == shape.literals.len()).then_some(Ready { plan, params }))
    }

    fn compile_shape(
        &self,
        sql: &str,
        literals: &[normalise::Literal],
        types: &[PgType],
        catalog: &CatalogSnapshot,
    ) -> SqlResult<Option<StatementPlan>> {
        let mut text = String::with_capacity(sql.len() + literals.len());
        let mut copied = 0;
        for (at, literal) in literals.iter().enumerate() {
            text.push_str(&sql[copied..literal.start]);
            text.push_str(&format!("${}", at + 1));
            copied = literal.end;
        }
        text.push_str(&sql[copied..]);
        // With parameters in places that want literals it may not even parse: then it has no key plan.
        let Ok(Command::Sql(statement)) = parse_one(&text) else { return Ok(None) };
        self.compiled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(match compile::compile(&statement, catalog, types) {
            Ok(compiled) if compiled.params.len() == types.len() => {
                Some(StatementPlan::key(compiled.plan, compiled.params, catalog))
            }
            // Errors are reported with the statement as it was written.
            _ => None,
        })
    }

    /// Plans a parsed statement. `declared_types` are the parameter types the client said.
    pub fn plan(
        &self,
        sql: &str,
        command: &Command,
        catalog: &Arc<CatalogSnapshot>,
        declared_types: &[PgType],
    ) -> SqlResult<StatementPlan> {
        let statement = match command {
            Command::Empty => return Ok(StatementPlan::plain(PlanKind::Empty)),
            Command::Copy(copy) => return Ok(StatementPlan::plain(PlanKind::Copy(Arc::clone(copy)))),
            Command::Sequence(sequence) => {
                return Ok(StatementPlan::plain(PlanKind::Sequence(Arc::clone(sequence))));
            }
            Command::Constraints(constraints) => {
                return Ok(StatementPlan::plain(PlanKind::Constraints(Arc::new(constraints.clone()))));
            }
            Command::Split(split) => return Ok(StatementPlan::plain(PlanKind::Split(Arc::clone(split)))),
            Command::Maintenance(tag) => return Ok(StatementPlan::plain(PlanKind::Maintenance(tag))),
            Command::AsOf(moment, statement) => {
                // Its own text is another one, with other literals.
                let (text, command) = (statement.to_string(), Command::Sql(Arc::clone(statement)));
                let plan = self.plan(&text, &command, catalog, declared_types)?;
                return Ok(StatementPlan { as_of: Some(Arc::clone(moment)), ..plan });
            }
            Command::Sql(statement) => statement,
        };
        match &**statement {
            Statement::Query(_) | Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) => {
                self.data(sql, statement, catalog, declared_types).map_err(|error| locate(error, sql))
            }
            Statement::Declare { stmts } => {
                let declared = declared(stmts)?;
                // Its parameters are the query's.
                let query = self.data(&declared.query.to_string(), &declared.query, catalog, declared_types)?;
                let mut plan = StatementPlan::plain(PlanKind::Declare(Arc::new(declared)));
                plan.param_types = query.param_types;
                Ok(plan)
            }
            other => {
                let mut plan = StatementPlan::plain(PlanKind::Command(Arc::clone(statement)));
                plan.fields = command_fields(other);
                Ok(plan)
            }
        }
    }

    /// Plans a query of ours: COPY's.
    pub fn query(&self, sql: &str, catalog: &Arc<CatalogSnapshot>) -> SqlResult<query::Planned> {
        match parse_one(sql)? {
            Command::Sql(statement) => self.queries.plan(sql, (*statement).clone(), catalog, &[]),
            _ => Err(SqlError::internal("a query of our own does not parse")),
        }
    }

    /// The key plan that a statement runs by, for EXPLAIN; `None` when it goes the general way.
    pub fn explained_key(&self, statement: &Statement, catalog: &CatalogSnapshot) -> SqlResult<Option<KeyPlan>> {
        match compile::compile(statement, catalog, &[]) {
            Ok(compiled) if compiled.params.is_empty() => Ok(Some(compiled.plan)),
            Ok(_) | Err(Refusal::Unknown) => Ok(None),
            Err(Refusal::Error(error)) => Err(error),
        }
    }

    /// Plans a statement for EXPLAIN the general way.
    pub fn explained(&self, statement: &Statement, catalog: &Arc<CatalogSnapshot>) -> SqlResult<query::Planned> {
        self.queries.plan(&statement.to_string(), statement.clone(), catalog, &[])
    }

    fn data(
        &self,
        sql: &str,
        statement: &Arc<Statement>,
        catalog: &Arc<CatalogSnapshot>,
        declared: &[PgType],
    ) -> SqlResult<StatementPlan> {
        let column_type = |pg_type: &PgType| (*pg_type != PgType::Unknown).then(|| ColumnType::from(*pg_type));
        let types: Vec<Option<ColumnType>> = declared.iter().map(column_type).collect();
        if let Some(planned) = self.queries.find(sql, catalog, &types)? {
            self.general.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return Ok(StatementPlan::general(planned, catalog));
        }
        self.compiled.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        match compile::compile(statement, catalog, declared) {
            Ok(compiled) => Ok(StatementPlan::key(compiled.plan, compiled.params, catalog)),
            Err(Refusal::Error(error)) => Err(error),
            Err(Refusal::Unknown) => {
                self.general.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let planned = self.queries.plan(sql, (**statement).clone(), catalog, &types)?;
                Ok(StatementPlan::general(planned, catalog))
            }
        }
    }
}

/// What DECLARE says; 0A000 for cursors that outlive their transaction or go backwards.
fn declared(stmts: &[ast::Declare]) -> SqlResult<Declared> {
    let [ast::Declare { names, declare_type: Some(ast::DeclareType::Cursor), binary, scroll, hold, for_query, .. }] =
        stmts
    else {
        return Err(SqlError::syntax("syntax error in DECLARE"));
    };
    let ([name], Some(query)) = (names.as_slice(), for_query) else {
        return Err(SqlError::syntax("syntax error in DECLARE"));
    };
    for (said, feature) in [(hold, "WITH HOLD"), (scroll, "SCROLL"), (binary, "BINARY")] {
        if *said == Some(true) {
            return Err(SqlError::unsupported(format!("a cursor {feature}")));
        }
    }
    let query = Arc::new(Statement::Query(query.clone()));
    Ok(Declared { name: crate::name::folded(name), query })
}

fn may_have_key_plan(sql: &str) -> bool {
    let word = crate::statement::split::skip_blank(sql).as_bytes();
    let is = |name: &[u8]| word.get(..name.len()).is_some_and(|head| head.eq_ignore_ascii_case(name));
    is(b"select") || is(b"insert") || is(b"update") || is(b"delete")
}

/// The columns of commands that give rows.
fn command_fields(statement: &Statement) -> Option<Arc<[Field]>> {
    match statement {
        Statement::ShowVariable { variable } => {
            let name = show_name(variable);
            if name == "all" {
                return Some(Arc::new(["name", "setting"].map(|name| Field::computed(name, PgType::Text))));
            }
            Some(Arc::new([Field::computed(name, PgType::Text)]))
        }
        Statement::Explain { .. } => Some(Arc::new([Field::computed("QUERY PLAN", PgType::Text)])),
        _ => None,
    }
}

/// The setting SHOW asks for.
pub fn show_name(variable: &[ast::Ident]) -> String {
    let words: Vec<String> = variable.iter().map(|ident| ident.value.to_lowercase()).collect();
    match words.join(" ").as_str() {
        "transaction isolation level" => "transaction_isolation".to_owned(),
        "time zone" => "timezone".to_owned(),
        _ => words.join("."),
    }
}

/// 0A000 for a statement nobody runs.
pub fn unsupported(statement: &Statement) -> SqlError {
    SqlError::unsupported(crate::statement::parse::shown(statement))
}
