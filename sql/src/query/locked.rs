//! The rows of a locking query inside a statement, as a table that the rest of the statement reads: see [`super::bind::row_locks`].

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::{Field, Schema, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, TableType},
    physical_plan::{
        ExecutionPlan,
        stream::RecordBatchStreamAdapter,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use futures::stream;

use super::{bind::Bound, engine, failure::from_datafusion, run::Slot};
use crate::error::SqlResult;

/// The table.
#[derive(Debug)]
pub struct LockedRows {
    /// Which of the statement's locking queries.
    at: usize,
    schema: SchemaRef,
}

impl LockedRows {
    /// Rows of the query at `at`.
    pub fn new(at: usize, schema: SchemaRef) -> Self {
        LockedRows { at, schema }
    }

    /// What the rows of a locking query look like.
    pub fn schema_of(bound: &Bound) -> SqlResult<SchemaRef> {
        let visible = bound.locks.as_ref().map_or(bound.columns.len(), |locks| locks.visible);
        // With the types that coercion makes.
        let plan = engine::optimise(&bound.plan).map_err(from_datafusion)?;
        let fields = plan.schema().fields().iter().take(visible);
        // A row that is waited for may be anything when it is there.
        let fields: Vec<Field> = fields.map(|field| field.as_ref().clone().with_nullable(true)).collect();
        Ok(Arc::new(Schema::new(fields)))
    }
}

#[async_trait]
impl TableProvider for LockedRows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
    fn table_type(&self) -> TableType {
        TableType::Temporary
    }
    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let slot = state.config_options().extensions.get::<Slot>().cloned().unwrap_or_default();
        let schema = Arc::clone(&self.schema);
        let rows: Arc<dyn PartitionStream> = Arc::new(RowsOfRun { at: self.at, schema, slot });
        let schema = Arc::clone(&self.schema);
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![rows], projection, [], false, limit)?))
    }
}

/// Finds them when the plan runs.
#[derive(Debug)]
struct RowsOfRun {
    at: usize,
    schema: SchemaRef,
    slot: Slot,
}

impl RowsOfRun {
    fn batches(&self) -> Result<Vec<RecordBatch>> {
        let run = self.slot.run()?;
        let lost = || DataFusionError::Internal("a locking query was not run before its statement".into());
        let named = |batch: &RecordBatch| {
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), batch.columns().to_vec(), &options)?)
        };
        run.locked.get(self.at).ok_or_else(lost)?.iter().map(named).collect()
    }
}

impl PartitionStream for RowsOfRun {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }
    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batches = match self.batches() {
            Ok(batches) => batches.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream::iter(batches)))
    }
}
