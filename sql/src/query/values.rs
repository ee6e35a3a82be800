//! `VALUES` whose expressions are computed when the plan runs.
//!
//! DataFusion computes a VALUES list while it makes the physical plan, so that a cached plan could not have
//! parameters in it. This node keeps the expressions, in the logical plan and in the physical one.

use std::{cmp::Ordering, fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    datatypes::{Schema, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::{DFSchema, DFSchemaRef, DataFusionError, Result, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{
        Expr, Extension, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
        physical_planning_context::PhysicalPlanningContext,
    },
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
    physical_planner::{ExtensionPlanner, PhysicalPlanner},
};
use futures::stream;

/// Rows of expressions without columns.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ValueRows {
    schema: DFSchemaRef,
    exprs: Vec<Expr>,
}

impl ValueRows {
    /// A plan of these rows; each has one expression for each field of `schema`, of that field's type.
    pub fn plan(schema: DFSchemaRef, rows: Vec<Vec<Expr>>) -> LogicalPlan {
        debug_assert!(rows.iter().all(|row| row.len() == schema.fields().len()));
        let node = ValueRows { schema, exprs: rows.into_iter().flatten().collect() };
        LogicalPlan::Extension(Extension { node: Arc::new(node) })
    }

    /// The rows.
    pub fn rows(&self) -> impl Iterator<Item = &[Expr]> {
        self.exprs.chunks(self.schema.fields().len().max(1))
    }
}

impl PartialOrd for ValueRows {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.exprs.partial_cmp(&other.exprs)
    }
}

impl UserDefinedLogicalNodeCore for ValueRows {
    fn name(&self) -> &str {
        "Values"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        Vec::new()
    }
    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }
    fn expressions(&self) -> Vec<Expr> {
        self.exprs.clone()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Values: {} rows", self.rows().count())
    }
    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, _inputs: Vec<LogicalPlan>) -> Result<Self> {
        Ok(ValueRows { schema: Arc::clone(&self.schema), exprs })
    }
}

/// Makes [`ValueRowsExec`] of [`ValueRows`].
pub struct ValuesPlanner;

#[async_trait]
impl ExtensionPlanner for ValuesPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        _physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(values) = node.as_any().downcast_ref::<ValueRows>() else { return Ok(None) };
        let none = DFSchema::empty();
        let compile = |row: &[Expr]| -> Result<Vec<Arc<dyn PhysicalExpr>>> {
            row.iter().map(|expr| planner.create_physical_expr(expr, &none, session, context)).collect()
        };
        let rows = values.rows().map(compile).collect::<Result<Vec<_>>>()?;
        let schema: SchemaRef = Arc::clone(values.schema.inner());
        Ok(Some(Arc::new(ValueRowsExec::new(schema, rows))))
    }
}

/// Computes the rows as one batch.
#[derive(Debug)]
pub struct ValueRowsExec {
    schema: SchemaRef,
    rows: Arc<Vec<Vec<Arc<dyn PhysicalExpr>>>>,
    properties: Arc<PlanProperties>,
}

impl ValueRowsExec {
    fn new(schema: SchemaRef, rows: Vec<Vec<Arc<dyn PhysicalExpr>>>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        ValueRowsExec { schema, rows: Arc::new(rows), properties: Arc::new(properties) }
    }
}

impl DisplayAs for ValueRowsExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Values: {} rows", self.rows.len())
    }
}

impl ExecutionPlan for ValueRowsExec {
    fn name(&self) -> &str {
        "Values"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }
    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }
    fn with_new_children(self: Arc<Self>, _children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }
    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for expr in self.rows.iter().flatten() {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }
    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (schema, rows) = (Arc::clone(&self.schema), Arc::clone(&self.rows));
        let batch = stream::once(async move { compute(&schema, &rows) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batch)))
    }
}

fn compute(schema: &SchemaRef, rows: &[Vec<Arc<dyn PhysicalExpr>>]) -> Result<RecordBatch> {
    let one = RecordBatchOptions::new().with_row_count(Some(1));
    let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &one)?;
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for at in 0..schema.fields().len() {
        let cells = rows.iter().map(|cells| cells[at].evaluate(&row)?.into_array(1));
        let cells = cells.collect::<Result<Vec<_>, DataFusionError>>()?;
        let cells: Vec<&dyn arrow::array::Array> = cells.iter().map(AsRef::as_ref).collect();
        columns.push(arrow::compute::concat(&cells)?);
    }
    let count = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &count)?)
}
