//! The operator that runs a subquery for each row of its input.

use std::{collections::HashMap, fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::SchemaRef,
};
use datafusion::{
    common::{Result, ScalarValue, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{Distribution, EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, InputDistributionRequirements, Partitioning, PlanProperties,
        ReplaceChildrenOptions, execute_stream,
        execution_plan::{Boundedness, ChildrenPropertiesMode, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, stream};

use crate::{
    error::{SqlError, SqlState},
    query::{failure::external, plan::reset, run::Slot},
};

/// Values of one subquery that are remembered in one run: some ten thousand bytes for most types.
pub const MAX_REMEMBERED: usize = 1024;

/// Adds the value of a subquery to each row.
pub struct LookupExec {
    input: Arc<dyn ExecutionPlan>,
    subquery: Arc<dyn ExecutionPlan>,
    outer: Vec<(usize, Arc<dyn PhysicalExpr>)>,
    slot: Slot,
    /// Equal outer values give equal results.
    remember: bool,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl LookupExec {
    /// `outer` are expressions over rows of `input`, with their numbers in the subquery.
    pub fn new(
        input: Arc<dyn ExecutionPlan>,
        subquery: Arc<dyn ExecutionPlan>,
        outer: Vec<(usize, Arc<dyn PhysicalExpr>)>,
        schema: SchemaRef,
        slot: Slot,
        remember: bool,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        LookupExec { input, subquery, outer, slot, remember, schema, properties: Arc::new(properties) }
    }
}

impl fmt::Debug for LookupExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LookupExec")
    }
}

impl DisplayAs for LookupExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Lookup: a subquery a row")?;
        for (number, outer) in &self.outer {
            write!(f, ", $outer{number} = {outer}")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for LookupExec {
    fn name(&self) -> &str {
        "Lookup"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input, &self.subquery]
    }
    /// One row at a time: its values stand in the slot while the subquery runs.
    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition, Distribution::UnspecifiedDistribution])
    }
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false, false]
    }
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true, false]
    }
    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Ok([input, subquery]) = <[Arc<dyn ExecutionPlan>; 2]>::try_from(children) else {
            return datafusion::common::internal_err!("a look-up has two inputs");
        };
        let (schema, slot) = (Arc::clone(&self.schema), self.slot.clone());
        Ok(Arc::new(LookupExec::new(input, subquery, self.outer.clone(), schema, slot, self.remember)))
    }
    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }
    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for (_, expr) in &self.outer {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, Arc::clone(&context))?;
        let search = Search {
            subquery: Arc::clone(&self.subquery),
            outer: self.outer.clone(),
            slot: self.slot.clone(),
            known: self.remember.then(HashMap::new),
            schema: Arc::clone(&self.schema),
            context,
        };
        let batches = stream::try_unfold((rows, search), |(mut rows, mut search)| async move {
            let Some(batch) = rows.next().await.transpose()? else { return Ok(None) };
            let batch = search.batch(&batch).await?;
            Ok(Some((batch, (rows, search))))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches)))
    }
}

/// One execution of the operator.
struct Search {
    subquery: Arc<dyn ExecutionPlan>,
    outer: Vec<(usize, Arc<dyn PhysicalExpr>)>,
    slot: Slot,
    known: Option<HashMap<Vec<ScalarValue>, ScalarValue>>,
    schema: SchemaRef,
    context: Arc<TaskContext>,
}

impl Search {
    /// The rows with their subqueries' values.
    async fn batch(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = self.outer.iter().map(|(_, outer)| outer.evaluate(batch)?.into_array(batch.num_rows()));
        let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
        let mut found = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            let key = columns.iter().map(|column| ScalarValue::try_from_array(column, row));
            found.push(self.value(key.collect::<Result<Vec<_>>>()?).await?);
        }
        let value = if found.is_empty() {
            arrow::array::new_empty_array(self.schema.field(batch.num_columns()).data_type())
        } else {
            ScalarValue::iter_to_array(found)?
        };
        let columns = batch.columns().iter().cloned().chain([value]).collect();
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    async fn value(&mut self, key: Vec<ScalarValue>) -> Result<ScalarValue> {
        if let Some(value) = self.known.as_ref().and_then(|known| known.get(&key)) {
            return Ok(value.clone());
        }
        for ((number, _), value) in self.outer.iter().zip(&key) {
            self.slot.set_outer(*number, value.clone());
        }
        let value = self.look_up().await?;
        if let Some(known) = &mut self.known {
            if known.len() >= MAX_REMEMBERED {
                known.clear();
            }
            known.insert(key, value.clone());
        }
        Ok(value)
    }

    /// Runs the subquery with the values in the slot.
    async fn look_up(&self) -> Result<ScalarValue> {
        let mut rows = execute_stream(reset(Arc::clone(&self.subquery))?, Arc::clone(&self.context))?;
        let mut found = None;
        while let Some(batch) = rows.next().await.transpose()? {
            if batch.num_rows() > 1 || (batch.num_rows() == 1 && found.is_some()) {
                return Err(external(SqlError::new(
                    SqlState::CARDINALITY_VIOLATION,
                    "more than one row returned by a subquery used as an expression",
                )));
            }
            if batch.num_rows() == 1 {
                found = Some(ScalarValue::try_from_array(batch.column(0), 0)?);
            }
        }
        match found {
            Some(value) => Ok(value),
            None => ScalarValue::try_from(self.subquery.schema().field(0).data_type()),
        }
    }
}
