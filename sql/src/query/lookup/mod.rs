//! Correlated scalar subqueries that are run for each row of the outer query.
//!
//! ```text
//!   SELECT k, (SELECT v FROM b WHERE b.k = a.k ORDER BY v LIMIT 1) FROM a
//!
//!   Projection: k, #lookup0
//!     Lookup: $outer0 = a.k                one more column: the subquery's value for that row, NULL without a row
//!       Scan a
//!       Limit ─ Sort ─ Scan b: k = $outer0
//! ```
//!
//! DataFusion turns a correlated subquery into a join when it is an aggregate and compares for equality: that stays its
//! affair, since it reads the inner table once. All others (no aggregate, LIMIT, `<`, a subquery in a subquery that names the
//! outermost row) come here ([`crate::query::bind::lookups`] decides). What PostgreSQL finds out while it runs is
//! found out here, too: a second row is 21000.
//!
//! Values are remembered by the outer columns, so that a subquery runs once for equal ones ([`exec::MAX_REMEMBERED`]).

pub mod exec;

use std::{cmp::Ordering, collections::BTreeSet, fmt, sync::Arc};

use arrow::datatypes::Field;
use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::{DFSchema, DFSchemaRef, Result, tree_node::TreeNodeRecursion},
    logical_expr::{
        Expr, Extension, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
        physical_planning_context::PhysicalPlanningContext,
    },
    physical_plan::ExecutionPlan,
    physical_planner::{ExtensionPlanner, PhysicalPlanner},
};

use self::exec::LookupExec;
use super::run::Slot;

/// The outer query's rows with one more column.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lookup {
    input: LogicalPlan,
    subquery: LogicalPlan,
    /// The numbers of the outer columns in the subquery's placeholders.
    numbers: Vec<usize>,
    /// Which columns of the input they are.
    outer: Vec<Expr>,
    name: String,
    schema: DFSchemaRef,
}

impl Lookup {
    /// `input` with the column `name`: what `subquery` gives for each row. `outer` are the columns of `input` that stand in the subquery as
    /// placeholders ([`super::run::HoleSource::Outer`]) with these numbers.
    pub fn plan(
        input: LogicalPlan,
        subquery: LogicalPlan,
        outer: Vec<(usize, Expr)>,
        name: String,
    ) -> Result<LogicalPlan> {
        let (numbers, outer) = outer.into_iter().unzip();
        let schema = schema(&input, &subquery, &name)?;
        let node = Lookup { input, subquery, numbers, outer, name, schema };
        Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
    }
}

fn schema(input: &LogicalPlan, subquery: &LogicalPlan, name: &str) -> Result<DFSchemaRef> {
    let value: &Field = subquery.schema().field(0);
    let value = Arc::new(value.clone().with_name(name).with_nullable(true));
    let known = input.schema().iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field)));
    let schema = DFSchema::new_with_metadata(known.chain([(None, value)]).collect(), Default::default())?;
    Ok(Arc::new(schema))
}

impl PartialOrd for Lookup {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (&self.name, &self.input, &self.subquery).partial_cmp(&(&other.name, &other.input, &other.subquery))
    }
}

impl UserDefinedLogicalNodeCore for Lookup {
    fn name(&self) -> &str {
        "Lookup"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input, &self.subquery]
    }
    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }
    fn expressions(&self) -> Vec<Expr> {
        self.outer.clone()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Lookup:")?;
        for (at, (number, outer)) in self.numbers.iter().zip(&self.outer).enumerate() {
            write!(f, "{} $outer{number} = {outer}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
    fn with_exprs_and_inputs(&self, outer: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let Ok([input, subquery]) = <[LogicalPlan; 2]>::try_from(inputs) else {
            return datafusion::common::internal_err!("a look-up has two inputs");
        };
        let schema = schema(&input, &subquery, &self.name)?;
        Ok(Lookup { input, subquery, numbers: self.numbers.clone(), outer, name: self.name.clone(), schema })
    }
    /// The columns that are passed on or looked up by.
    fn necessary_children_exprs(&self, output: &[usize]) -> Option<Vec<Vec<usize>>> {
        let width = self.input.schema().fields().len();
        let mut needed: BTreeSet<usize> = output.iter().copied().filter(|at| *at < width).collect();
        for column in self.outer.iter().flat_map(Expr::column_refs) {
            needed.insert(self.input.schema().maybe_index_of_column(column)?);
        }
        Some(vec![needed.into_iter().collect(), vec![0]])
    }
}

/// Makes [`LookupExec`] of [`Lookup`].
pub struct LookupPlanner;

#[async_trait]
impl ExtensionPlanner for LookupPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(lookup) = node.as_any().downcast_ref::<Lookup>() else { return Ok(None) };
        let [input, subquery] = physical_inputs else {
            return datafusion::common::internal_err!("a look-up has two inputs");
        };
        let schema = lookup.input.schema();
        let compile = |outer: &Expr| planner.create_physical_expr(outer, schema, session, context);
        let outer = lookup.outer.iter().map(compile).collect::<Result<Vec<_>>>()?;
        let slot = session.config_options().extensions.get::<Slot>().cloned().unwrap_or_default();
        let outer = lookup.numbers.iter().copied().zip(outer).collect();
        let schema = Arc::clone(lookup.schema.inner());
        let remember = !is_volatile(&lookup.subquery)?;
        let exec = LookupExec::new(Arc::clone(input), Arc::clone(subquery), outer, schema, slot, remember);
        Ok(Some(Arc::new(exec)))
    }
}

/// Whether a plan has a function that does more than compute, or gives another value each time.
pub(super) fn is_volatile(plan: &LogicalPlan) -> Result<bool> {
    let mut volatile = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            volatile |= expr.is_volatile();
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(volatile)
}
