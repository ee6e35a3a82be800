//! A planned statement: planned once, run many times.
//!
//! ```text
//!   Bound ── optimise ──► logical, with placeholders      key plans are compiled from here
//!                            │ cut
//!                         logical, with holes ── physical planning ──► Instance, Instance, …
//! ```
//!
//! An `Instance` is a physical plan with its own `Slot`; it serves one run at a time and goes back to its
//! plan when the run ends. As many are made as runs of the statement ever overlapped, up to [`MAX_IDLE_INSTANCES`] kept.

use std::{
    any::Any,
    collections::BTreeSet,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use arrow::record_batch::RecordBatch;
use datafusion::{
    common::{
        DFSchemaRef, ScalarValue,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, FetchType, LogicalPlan, SkipType},
    physical_expr::PhysicalExpr,
    physical_plan::{ExecutionPlan, async_func::AsyncFuncExec, execute_stream},
};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;

use super::{
    bind::{Bound, Change, OutputColumn, RowLocks, literals::Taken},
    engine,
    failure::from_datafusion,
    parameters,
    run::{self, Hole, HoleSource, Run, Slot},
    scan::exec::Source,
};
use crate::{
    Reader,
    error::{SqlError, SqlResult},
    session::Backend,
    types::{ColumnType, Datum, FormatSettings},
};

/// Physical plans of one statement kept for later runs; more concurrent runs than that plan afresh.
pub const MAX_IDLE_INSTANCES: usize = 16;

/// What a run needs besides the plan.
#[derive(Clone)]
pub struct RunValues<'a> {
    /// The client's parameters, of the types [`QueryPlan::parameters`] says, or text for the types' input functions.
    pub parameters: &'a [Datum],
    /// The values of lifted literals, from [`super::cache::Planned`].
    pub lifted: &'a [Datum],
    /// When the transaction began, in microseconds since 1970 UTC.
    pub transaction_time: i64,
    /// How the session reads and shows values.
    pub settings: &'a FormatSettings,
    /// What the run waits by, where it is asked to.
    pub clock: &'a Arc<dyn kv::Clock>,
    /// The session.
    pub backend: &'a Arc<Backend>,
    /// The rows of the plan's [`QueryPlan::inner`].
    pub locked: &'a [Vec<RecordBatch>],
}

/// A planned statement. Shared by all sessions of a gateway.
#[derive(Debug)]
pub struct QueryPlan {
    logical: LogicalPlan,
    cut: LogicalPlan,
    returning: Vec<Expr>,
    conflict: Vec<Expr>,
    columns: Vec<OutputColumn>,
    change: Option<Change>,
    locks: Option<RowLocks>,
    inner: Vec<Arc<QueryPlan>>,
    parameters: Vec<ColumnType>,
    taken: Vec<Taken>,
    holes: Vec<Hole>,
    /// LIMIT or OFFSET is a parameter: the physical plan depends on its value.
    custom: bool,
    idle: Mutex<Vec<Instance>>,
    /// What sqlcore compiles of the statement: `None` inside when it is no key plan.
    key_plan: OnceLock<Option<Arc<dyn Any + Send + Sync>>>,
}

/// A physical plan and what it reads from.
#[derive(Debug)]
struct Instance {
    plan: Arc<dyn ExecutionPlan>,
    returning: Vec<Arc<dyn PhysicalExpr>>,
    conflict: Vec<Arc<dyn PhysicalExpr>>,
    context: Arc<TaskContext>,
    slot: Slot,
}

impl QueryPlan {
    /// Optimises a bound statement.
    pub fn new(bound: Bound) -> SqlResult<Self> {
        let logical = engine::optimise(&bound.plan).map_err(from_datafusion)?;
        let mut holes = Vec::new();
        let cut = run::cut(logical.clone(), &mut holes).map_err(from_datafusion)?;
        let mut cut_all = |exprs: &[Expr]| {
            let cut = exprs.iter().map(|expr| Ok(run::cut_expr(expr.clone(), &mut holes)?.data));
            cut.collect::<datafusion::common::Result<Vec<Expr>>>().map_err(from_datafusion)
        };
        let change = bound.change.as_ref();
        let returning = cut_all(change.and_then(Change::returning).map_or(&[][..], |returning| &returning.exprs))?;
        let conflict = cut_all(change.and_then(Change::conflict_update).map_or(&[][..], |update| &update.exprs))?;
        Ok(QueryPlan {
            custom: has_parameter_limit(&logical).map_err(from_datafusion)?,
            cut,
            returning,
            conflict,
            columns: output_columns(&logical, &bound.columns)?,
            logical,
            change: bound.change,
            locks: bound.locks,
            inner: bound
                .inner
                .into_iter()
                .map(|bound| QueryPlan::new(bound).map(Arc::new))
                .collect::<SqlResult<_>>()?,
            parameters: bound.parameters,
            taken: bound.literals.taken,
            holes,
            idle: Mutex::default(),
            key_plan: OnceLock::new(),
        })
    }

    /// The optimised logical plan. Parameters are placeholders `$1`…; lifted literals follow the client's own;
    /// `$now`, `$user` and their kin are the transaction's and session's.
    pub fn logical(&self) -> &LogicalPlan {
        &self.logical
    }
    /// The columns of the rows: of the result for a query, of the source for DML.
    pub fn columns(&self) -> &[OutputColumn] {
        &self.columns
    }
    /// What happens to the rows; `None` for a query.
    pub fn change(&self) -> Option<&Change> {
        self.change.as_ref()
    }
    /// The rows a query locks.
    pub fn locks(&self) -> Option<&RowLocks> {
        self.locks.as_ref()
    }
    /// It locks rows that it does not change.
    pub fn locks_rows(&self) -> bool {
        self.locks.is_some() || !self.inner.is_empty()
    }
    /// Locking queries inside the statement: they run before it, each once, and it reads their rows.
    pub fn inner(&self) -> &[Arc<QueryPlan>] {
        &self.inner
    }
    /// Types of the client's parameters.
    pub fn parameters(&self) -> &[ColumnType] {
        &self.parameters
    }
    /// The literals that became parameters behind the client's.
    pub fn taken(&self) -> &[Taken] {
        &self.taken
    }
    /// The statement's key plan, compiled at its first use; `None` when it has none.
    pub fn key_plan<K: Any + Send + Sync>(&self, compile: impl FnOnce(&Self) -> Option<Arc<K>>) -> Option<Arc<K>> {
        let compiled = self.key_plan.get_or_init(|| compile(self).map(|plan| plan as Arc<dyn Any + Send + Sync>));
        compiled.clone()?.downcast().ok()
    }

    /// The values of the lifted literals as the statement's text has them.
    pub fn lifted_values(&self, text_of: impl Fn(usize) -> String) -> SqlResult<Vec<Datum>> {
        let value = |taken: &Taken| match taken.lifted {
            Some(at) => literal_datum(&text_of(at), taken),
            None => Ok(Datum::Null),
        };
        self.taken.iter().map(value).collect()
    }

    /// Starts a run that reads through `reader`.
    pub async fn start(self: &Arc<Self>, reader: Reader, values: &RunValues<'_>) -> SqlResult<Rows> {
        if values.locked.len() != self.inner.len() {
            return Err(SqlError::unsupported("a locking clause inside of such a statement"));
        }
        let source = Arc::new(Source::new(reader, Arc::clone(values.clock), Arc::clone(values.backend)));
        let run = Arc::new(Run { values: self.values(values)?, source, locked: values.locked.to_vec() });
        let instance = self.instance(values).await?;
        instance.slot.fill(run);
        let (plan, context) = (Arc::clone(&instance.plan), Arc::clone(&instance.context));
        let stream = execute_stream(plan, context).map_err(from_datafusion)?;
        Ok(Rows { plan: Arc::clone(self), instance: Some(instance), stream: Some(stream) })
    }

    async fn instance(&self, values: &RunValues<'_>) -> SqlResult<Instance> {
        if let Some(instance) = self.idle.lock().pop() {
            return Ok(instance);
        }
        let slot = Slot::new();
        let plan = if self.custom {
            let logical = with_limits(self.logical.clone(), |source| self.source_value(source, values))?;
            run::cut(logical, &mut self.holes.clone())
        } else {
            Ok(self.cut.clone())
        };
        let plan = plan.map_err(from_datafusion)?;
        let plan = engine::physical(&plan, &slot).await.map_err(from_datafusion)?;
        let compiled = |exprs: &[Expr], schema: Option<&DFSchemaRef>| match schema {
            Some(schema) => {
                let compile = |expr: &Expr| engine::physical_expr(expr.clone(), schema, &slot);
                exprs.iter().map(compile).collect::<Result<Vec<_>, _>>().map_err(from_datafusion)
            }
            None => Ok(Vec::new()),
        };
        let change = self.change.as_ref();
        let returning =
            compiled(&self.returning, change.and_then(Change::returning).map(|returning| &returning.schema))?;
        let conflict = compiled(&self.conflict, change.and_then(Change::conflict_update).map(|update| &update.schema))?;
        let context = if waits(&plan) { engine::task_context_with(&slot) } else { engine::task_context() };
        Ok(Instance { plan, returning, conflict, context, slot })
    }

    fn values(&self, values: &RunValues<'_>) -> SqlResult<Vec<ScalarValue>> {
        let value =
            |hole: &Hole| parameters::scalar(self.source_value(hole.source, values)?, &hole.field, values.settings);
        self.holes.iter().map(value).collect()
    }

    /// What a hole's source has in this run.
    pub fn source_value(&self, source: HoleSource, values: &RunValues<'_>) -> SqlResult<Datum> {
        Ok(match source {
            HoleSource::Parameter(at) => match at.checked_sub(self.parameters.len()) {
                None => values.parameters.get(at).cloned().ok_or_else(|| missing(at))?,
                Some(at) => values.lifted.get(at).cloned().ok_or_else(|| missing(at))?,
            },
            HoleSource::TransactionTime => Datum::TimestampTz(values.transaction_time),
            HoleSource::User => Datum::text(values.backend.user.as_str()),
            HoleSource::Database => Datum::text(values.backend.database.as_str()),
            HoleSource::ProcessId => Datum::text(values.backend.pid.to_string()),
            HoleSource::Settings => Datum::text(values.settings.encode()),
            HoleSource::TimeZone => Datum::text(values.settings.time_zone.name()),
            HoleSource::Outer(_) => return Err(SqlError::unsupported("a LIMIT that depends on an outer query")),
        })
    }

    /// The physical plan as EXPLAIN shows it, with the values of a run.
    pub async fn explain<T>(
        &self,
        reader: Reader,
        values: &RunValues<'_>,
        show: impl FnOnce(&Arc<dyn ExecutionPlan>) -> T,
    ) -> SqlResult<T> {
        let source = Arc::new(Source::new(reader, Arc::clone(values.clock), Arc::clone(values.backend)));
        let run = Arc::new(Run { values: self.values(values)?, source, locked: Vec::new() });
        let instance = self.instance(values).await?;
        instance.slot.fill(run);
        let shown = show(&instance.plan);
        self.put_back(instance);
        Ok(shown)
    }

    fn put_back(&self, instance: Instance) {
        instance.slot.clear();
        if self.custom {
            return;
        }
        // Joins, repartitions and the like remember their first run.
        let Ok(plan) = reset(Arc::clone(&instance.plan)) else { return };
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE_INSTANCES {
            idle.push(Instance { plan, ..instance });
        }
    }
}

/// The bound names with the types that coercion made.
fn output_columns(plan: &LogicalPlan, bound: &[OutputColumn]) -> SqlResult<Vec<OutputColumn>> {
    let column = |(field, bound): (&arrow::datatypes::FieldRef, &OutputColumn)| {
        Ok(OutputColumn { column_type: crate::types::arrow::column_type(field)?, ..bound.clone() })
    };
    plan.schema().fields().iter().zip(bound).map(column).collect()
}

fn missing(at: usize) -> SqlError {
    SqlError::internal(format!("parameter {} of a plan has no value", at + 1))
}

/// A literal's value of the type its look gives it; a string is text until its hole parses it.
pub fn literal_datum(text: &str, taken: &Taken) -> SqlResult<Datum> {
    use crate::types::{PgType, Text, text};
    match taken.pg_type {
        PgType::Unknown => Ok(Datum::text(text)),
        pg_type => text::parse_plain(&Text::from(text), pg_type, &FormatSettings::default()),
    }
}

/// Some function of the plan is asynchronous.
fn waits(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.downcast_ref::<AsyncFuncExec>().is_some() || plan.children().into_iter().any(waits)
}

/// The same plan with nothing remembered of an earlier run.
pub fn reset(plan: Arc<dyn ExecutionPlan>) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| node.reset_state().map(Transformed::yes)).map(|plan| plan.data)
}

/// A LIMIT or OFFSET that is no literal.
fn has_parameter_limit(plan: &LogicalPlan) -> datafusion::common::Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Limit(limit) = node {
            found |= matches!(limit.get_fetch_type()?, FetchType::UnsupportedExpr);
            found |= matches!(limit.get_skip_type()?, SkipType::UnsupportedExpr);
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Puts the values of parameters into LIMIT and OFFSET.
fn with_limits(plan: LogicalPlan, value_of: impl Fn(HoleSource) -> SqlResult<Datum>) -> SqlResult<LogicalPlan> {
    let fill = |expr: Expr| {
        expr.transform_up(|expr| match &expr {
            Expr::Placeholder(placeholder) => {
                let (Some(source), Some(field)) = (HoleSource::parse(&placeholder.id), &placeholder.field) else {
                    return Ok(Transformed::no(expr));
                };
                let datum = value_of(source).map_err(super::failure::external)?;
                let value = parameters::scalar(datum, field, &FormatSettings::default());
                let value = value.map_err(super::failure::external)?;
                Ok(Transformed::yes(Expr::Literal(value, None)))
            }
            _ => Ok(Transformed::no(expr)),
        })
    };
    let filled = plan.transform_down_with_subqueries(|node| match node {
        LogicalPlan::Limit(_) => node.map_expressions(fill),
        node => Ok(Transformed::no(node)),
    });
    filled.map(|plan| plan.data).map_err(from_datafusion)
}

/// The rows of a run: a stream of batches. Dropping it ends the run.
pub struct Rows {
    plan: Arc<QueryPlan>,
    instance: Option<Instance>,
    stream: Option<SendableRecordBatchStream>,
}

impl Rows {
    /// The plan that runs.
    pub fn plan(&self) -> &Arc<QueryPlan> {
        &self.plan
    }

    /// The next rows; `None` at the end.
    pub async fn next_batch(&mut self) -> SqlResult<Option<RecordBatch>> {
        self.next().await.transpose()
    }

    /// RETURNING over rows of the changed table (all its columns, in the table's order).
    pub fn returning(&self, rows: &RecordBatch) -> SqlResult<Vec<arrow::array::ArrayRef>> {
        self.evaluated(rows, |instance| &instance.returning)
    }

    /// DO UPDATE's expressions ([`super::bind::ConflictUpdate::exprs`]) over pairs of rows.
    pub fn conflict(&self, rows: &RecordBatch) -> SqlResult<Vec<arrow::array::ArrayRef>> {
        self.evaluated(rows, |instance| &instance.conflict)
    }

    fn evaluated(
        &self,
        rows: &RecordBatch,
        exprs: impl Fn(&Instance) -> &Vec<Arc<dyn PhysicalExpr>>,
    ) -> SqlResult<Vec<arrow::array::ArrayRef>> {
        let Some(instance) = &self.instance else { return Err(SqlError::internal("the run has ended")) };
        let value = |expr: &Arc<dyn PhysicalExpr>| {
            expr.evaluate(rows).and_then(|value| value.into_array(rows.num_rows())).map_err(from_datafusion)
        };
        exprs(instance).iter().map(value).collect()
    }
}

impl Stream for Rows {
    type Item = SqlResult<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        stream.poll_next_unpin(context).map(|batch| batch.map(|batch| batch.map_err(from_datafusion)))
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // The stream goes first: its operators still read the slot.
        self.stream = None;
        if let Some(instance) = self.instance.take() {
            self.plan.put_back(instance);
        }
    }
}

/// Whether some function of a plan does more than compute, or gives another value each time.
pub fn is_volatile(plan: &LogicalPlan) -> bool {
    super::lookup::is_volatile(plan).unwrap_or(true)
}

/// The names of all tables a plan reads, for locks and EXPLAIN: ids of descriptors.
pub fn tables_read(plan: &LogicalPlan) -> BTreeSet<u32> {
    let mut ids = BTreeSet::new();
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Ok(provider) = datafusion::datasource::source_as_provider(&scan.source)
            && let Some(table) = provider.downcast_ref::<super::scan::RegionTable>()
        {
            ids.insert(table.descriptor().id);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok());
    ids
}
