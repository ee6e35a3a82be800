//! A table whose rows are fetched from PD when its plan runs.

use std::{fmt, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{Result, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, TableType},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::stream;

use super::{View, rows};
use crate::{
    catalog::{CatalogSnapshot, Table},
    query::{catalog::table::SystemTable, failure::external, run::Slot},
};

/// One of the views, while a statement is planned.
#[derive(Debug)]
pub(super) struct ClusterTable {
    view: View,
    schema: SchemaRef,
    /// To name what lies in a region.
    tables: Arc<Vec<Table>>,
}

impl ClusterTable {
    pub(super) fn new(view: View, snapshot: &CatalogSnapshot) -> Self {
        let schema = SystemTable::new(view.columns()).schema();
        ClusterTable { view, schema, tables: Arc::new(snapshot.tables().cloned().collect()) }
    }
}

#[async_trait]
impl TableProvider for ClusterTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
    fn table_type(&self) -> TableType {
        TableType::View
    }
    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let slot = state.config_options().extensions.get::<Slot>().cloned().unwrap_or_default();
        let columns: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let schema = Arc::new(self.schema.project(&columns)?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let fetch = Fetch { view: self.view, columns, tables: Arc::clone(&self.tables), slot };
        Ok(Arc::new(ClusterScan { schema, fetch, properties: Arc::new(properties) }))
    }
}

/// What a run has to fetch.
#[derive(Clone, Debug)]
struct Fetch {
    view: View,
    columns: Vec<usize>,
    tables: Arc<Vec<Table>>,
    slot: Slot,
}

impl Fetch {
    async fn batch(self) -> Result<RecordBatch> {
        let source = Arc::clone(&self.slot.run()?.source);
        let client = source.reader().main().client();
        let rows = rows::fetch(self.view, client, &self.tables).await.map_err(external)?;
        Ok(rows.batch()?.project(&self.columns)?)
    }
}

/// The leaf of physical plans.
#[derive(Debug)]
struct ClusterScan {
    schema: SchemaRef,
    fetch: Fetch,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for ClusterScan {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "ClusterScan: {}.{}", super::FLAREDB, self.fetch.view.name())
    }
}

impl ExecutionPlan for ClusterScan {
    fn name(&self) -> &str {
        "ClusterScan"
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
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = stream::once(self.fetch.clone().batch());
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batch)))
    }
}
