//! From a parsed statement to a logical plan with PostgreSQL's meaning: the door `bind(ast) -> LogicalPlan`.
//!
//! ```text
//!   ast ── rewrite ── literals ── DataFusion's SqlToRel ── legalise ── lookups ──► LogicalPlan
//!          spellings  become $n    operators: typing rules    casts,     correlated
//!                                                             unknowns   subqueries
//! ```
//!
//! Behind the door stands DataFusion's own SQL planner so far; name resolution is its, typing of operators, literals,
//! casts and the names of columns are PostgreSQL's. What DataFusion can't plan is 0A000 with its words.

pub mod ancestors;
pub mod arguments;
pub mod arrays;
pub mod conflict;
pub mod dml;
pub mod emptied;
pub mod lateral;
pub mod legalise;
pub mod literals;
pub mod lookups;
pub mod names;
pub mod operators;
pub mod origin;
pub mod predicates;
pub mod provider;
pub mod rewrite;
pub mod row_locks;
pub mod rows;
pub mod series;
pub mod type_names;

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::Result,
    logical_expr::LogicalPlan,
    sql::{
        planner::{NullOrdering, ParserOptions, PlannerContext, SqlToRel},
        sqlparser::ast::{Ident, Query, Statement},
    },
};

pub use conflict::{Arbiters, Conflict, ConflictUpdate};
pub use dml::{Change, Returning};
pub use literals::Literals;
pub use row_locks::{LockedTable, RowLocks};

use self::{
    legalise::legalise,
    lookups::{Numbers, separate},
    provider::Provider,
};
use crate::{
    catalog::CatalogSnapshot,
    error::{SqlError, SqlResult, SqlState},
    query::{failure::from_datafusion, locked::LockedRows, normalise::Shape},
    types::{ColumnType, arrow as mapping},
};

/// A statement to bind.
pub struct Unbound<'a> {
    /// The parsed statement: a query, INSERT, UPDATE or DELETE.
    pub statement: Statement,
    /// Its text and shape; without them no literal is lifted.
    pub source: Option<(&'a str, &'a Shape)>,
    /// What the client said about its parameters; `None` or a missing one is found out.
    pub parameter_types: &'a [Option<ColumnType>],
    /// The tables there are.
    pub snapshot: &'a Arc<CatalogSnapshot>,
}

/// A column of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputColumn {
    /// As the client sees it; not unique.
    pub name: String,
    /// Its type.
    pub column_type: ColumnType,
    /// The table and the number in it, of a plain column of a table.
    pub origin: Option<(u32, i16)>,
}

/// A bound statement.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Where its rows come from. For a query these are the result; for DML see [`Change`].
    pub plan: LogicalPlan,
    /// The columns of `plan`.
    pub columns: Vec<OutputColumn>,
    /// What happens to the rows; `None` for a query.
    pub change: Option<Change>,
    /// The rows that a query locks.
    pub locks: Option<RowLocks>,
    /// Types of the client's parameters.
    pub parameters: Vec<ColumnType>,
    /// The literals that were taken out.
    pub literals: Literals,
    /// Locking queries inside the statement, whose rows it reads.
    pub inner: Vec<Bound>,
}

/// Binds a statement.
pub fn bind(unbound: Unbound<'_>) -> SqlResult<Bound> {
    let Unbound { mut statement, source, parameter_types, snapshot } = unbound;
    if let Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) = &statement {
        dml::check(&statement)?;
    }
    let locks = row_locks::take(&mut statement, snapshot)?;
    let wanted = row_locks::mark(&mut statement, snapshot)?;
    rewrite::rewrite(&mut statement, snapshot)?;
    let spare = match &statement {
        Statement::Query(query) if wanted.is_empty() => emptied::emptied(query),
        _ => None,
    };
    let literals = literals::take(&mut statement, source);
    let mut binder =
        Binder { snapshot, literals: &literals, parameter_types, numbers: RefCell::default(), inner: Vec::new() };
    let mut inner = Vec::with_capacity(wanted.len());
    if !wanted.is_empty() {
        for (query, wanted) in row_locks::cut_out(&mut statement)?.into_iter().zip(wanted) {
            let bound = binder.locking(query, wanted)?;
            binder.inner.push(LockedRows::schema_of(&bound)?);
            inner.push(bound);
        }
    }
    let (plan, change) = match statement {
        Statement::Query(query) => match (binder.query(*query, &row_locks::hidden(&locks)), spare) {
            (Err(_), Some(spare)) => (binder.query(spare, &[])?, None),
            (planned, _) => (planned.map_err(|error| row_locks::explained(error, &locks))?, None),
        },
        Statement::Insert(insert) => dml::insert(&binder, insert)?,
        Statement::Update(update) => dml::update(&binder, update)?,
        Statement::Delete(delete) => dml::delete(&binder, delete)?,
        other => return Err(SqlError::unsupported(first_words(&other))),
    };
    let columns = output_columns(&plan)?;
    let locks = locks.map(|wanted| wanted.bound(&plan)).transpose()?;
    let plans: Vec<&LogicalPlan> = std::iter::once(&plan).chain(inner.iter().map(|bound| &bound.plan)).collect();
    let parameters = parameters(&plans, change.as_ref(), &literals, parameter_types)?;
    for bound in &mut inner {
        bound.parameters.clone_from(&parameters);
    }
    Ok(Bound { plan, columns, change, locks, parameters, literals, inner })
}

fn first_words(statement: &Statement) -> String {
    statement.to_string().split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// Binds the parts of one statement.
pub struct Binder<'a> {
    snapshot: &'a Arc<CatalogSnapshot>,
    literals: &'a Literals,
    parameter_types: &'a [Option<ColumnType>],
    numbers: RefCell<Numbers>,
    /// The rows of the locking queries inside.
    inner: Vec<SchemaRef>,
}

impl Binder<'_> {
    /// What names mean; `targets` as for [`Binder::query`].
    fn provider(&self, targets: &[u32]) -> Provider {
        Provider::new(Arc::clone(self.snapshot), targets.to_vec(), self.inner.clone())
    }

    /// A locking query inside the statement. Its parameters are the statement's, and not known yet.
    fn locking(&self, query: Query, wanted: row_locks::Wanted) -> SqlResult<Bound> {
        let wanted = Some(wanted);
        let plan = self.query(query, &row_locks::hidden(&wanted)).map_err(|error| {
            let error = row_locks::explained(error, &wanted);
            match error.sqlstate {
                SqlState::UNDEFINED_COLUMN | SqlState::UNDEFINED_TABLE if error.hint.is_none() => error.with_hint(
                    "A query with a locking clause can't refer to the query around it, nor to its WITH queries.",
                ),
                _ => error,
            }
        })?;
        let columns = output_columns(&plan)?;
        let locks = wanted.map(|wanted| wanted.bound(&plan)).transpose()?;
        let (literals, parameters) = (self.literals.clone(), Vec::new());
        Ok(Bound { plan, columns, change: None, locks, parameters, literals, inner: Vec::new() })
    }

    /// A query's plan. `targets` are the tables whose hidden columns it may name.
    pub fn query(&self, query: Query, targets: &[u32]) -> SqlResult<LogicalPlan> {
        self.plan(query, targets).map_err(from_datafusion)
    }

    fn plan(&self, query: Query, targets: &[u32]) -> Result<LogicalPlan> {
        let provider = self.provider(targets);
        let planner = SqlToRel::new_with_options(&provider, parser_options());
        let fields = self.literals.fields(self.parameter_types);
        let mut context = PlannerContext::new().with_prepare_param_data_types(fields);
        let plan = planner.sql_statement_to_plan_with_context(Statement::Query(Box::new(query)), &mut context)?;
        separate(legalise(plan, self.literals)?, &mut self.numbers.borrow_mut())
    }
}

fn parser_options() -> ParserOptions {
    ParserOptions::new()
        .with_parse_float_as_decimal(true)
        .with_map_string_types_to_utf8view(false)
        .with_default_null_ordering(NullOrdering::NullsMax)
}

fn output_columns(plan: &LogicalPlan) -> SqlResult<Vec<OutputColumn>> {
    let column = |(at, field): (usize, &arrow::datatypes::FieldRef)| {
        let name = names::shown(field.name()).to_owned();
        Ok(OutputColumn { name, column_type: mapping::column_type(field)?, origin: origin::of(plan, at) })
    };
    plan.schema().fields().iter().enumerate().map(column).collect()
}

/// The client's parameters: what it said, otherwise what the plans want, otherwise text.
fn parameters(
    plans: &[&LogicalPlan],
    change: Option<&Change>,
    literals: &Literals,
    said: &[Option<ColumnType>],
) -> SqlResult<Vec<ColumnType>> {
    let mut found = BTreeMap::new();
    plans.iter().try_for_each(|plan| legalise::parameter_types(plan, &mut found)).map_err(from_datafusion)?;
    let returning = change.and_then(Change::returning).map(|returning| &returning.exprs);
    let conflict = change.and_then(Change::conflict_update).map(|update| &update.exprs);
    for expr in returning.into_iter().chain(conflict).flatten() {
        legalise::expression_parameters(expr, &mut found).map_err(from_datafusion)?;
    }
    let of = |at: usize| match (said.get(at).copied().flatten(), found.get(&at)) {
        (Some(said), _) if said.pg_type != crate::types::PgType::Unknown => Ok(said),
        (_, Some(field)) => mapping::column_type(field).map(|found| found.pg_type.plain()),
        _ => Ok(crate::query::types::text_type()),
    };
    (0..literals.client_parameters).map(of).collect()
}

/// An identifier's name: in lower case unless it was quoted.
pub fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}
