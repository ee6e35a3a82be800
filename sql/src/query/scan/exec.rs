//! The leaf of physical plans that reads a table's rows.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::{array::RecordBatch, compute::SortOptions, datatypes::SchemaRef};
use bytes::Bytes;
use dashmap::DashMap;
use datafusion::{
    catalog::Session,
    common::{Result, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr, expressions::Column},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use kv::ScanOptions;
use proto::KeyRange;
use tokio::sync::OnceCell;

use super::{
    access::Chosen,
    bounds::{Compiled, Spans},
    rows::RowShape,
    store::ScanSpec,
};
use crate::{
    Reader,
    catalog::{Table, descriptor::IndexDescriptor},
    codec::IndexCodec,
    error::SqlError,
    query::{engine, failure::external, run::Slot},
    session::Backend,
    types::PgType,
};

/// Points fetched in one request; a batch of rows comes of each.
const POINTS_PER_BATCH: usize = 256;

/// What the leaves of one run read through.
pub struct Source {
    reader: Reader,
    clock: Arc<dyn kv::Clock>,
    backend: Arc<Backend>,
    /// The spans of each scan, cut for its partitions: computed once, or partitions could disagree after a split.
    spans: DashMap<u64, Arc<OnceCell<Arc<Spans>>>>,
}

impl Source {
    /// For one run of a plan.
    pub fn new(reader: Reader, clock: Arc<dyn kv::Clock>, backend: Arc<Backend>) -> Self {
        Source { reader, clock, backend, spans: DashMap::new() }
    }
    /// The session.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
    /// The gateway's clock.
    pub fn clock(&self) -> &Arc<dyn kv::Clock> {
        &self.clock
    }
    /// The transactions.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

/// Numbers scans, so that the scans of one run are told apart.
static NEXT_SCAN: AtomicU64 = AtomicU64::new(0);

/// Scans some columns of the rows that [`Compiled`] bounds leave. Its partitions take contiguous shares of the regions.
pub struct RegionScan {
    id: u64,
    table: Table,
    columns: Vec<usize>,
    bounds: Compiled,
    index: Option<Arc<IndexCodec>>,
    limit: Option<usize>,
    spec: Bytes,
    shape: Arc<RowShape>,
    slot: Slot,
    properties: Arc<PlanProperties>,
}

impl RegionScan {
    /// `columns` are positions in the table's descriptor; with `limit` that many rows are enough.
    pub fn new(
        table: Table,
        columns: Vec<usize>,
        chosen: Chosen,
        limit: Option<usize>,
        state: &dyn Session,
    ) -> Result<Self> {
        let shape = Arc::new(RowShape::new(&table, columns.clone()));
        let partitions = if chosen.is_points() { 1 } else { engine::TARGET_PARTITIONS };
        let slot = state.config_options().extensions.get::<Slot>().cloned().unwrap_or_default();
        Ok(RegionScan {
            id: NEXT_SCAN.fetch_add(1, Ordering::Relaxed),
            bounds: Compiled::new(&chosen, state)?,
            spec: ScanSpec::encode(&table, &columns),
            properties: Arc::new(PlanProperties::new(
                match &chosen.index {
                    None => key_order(&table, &columns, shape.schema()),
                    Some(_) => EquivalenceProperties::new(Arc::clone(shape.schema())),
                },
                Partitioning::UnknownPartitioning(partitions),
                EmissionType::Incremental,
                Boundedness::Bounded,
            )),
            index: chosen.index.map(Arc::new),
            table,
            columns,
            limit,
            shape,
            slot,
        })
    }

    /// The table it reads.
    pub fn table(&self) -> &Table {
        &self.table
    }
    /// Which of its keys.
    pub fn bounds(&self) -> &Compiled {
        &self.bounds
    }
    /// The secondary index it reads by.
    pub fn index(&self) -> Option<&IndexDescriptor> {
        self.index.as_ref().map(|index| &index.descriptor)
    }
    /// Rows that are enough.
    pub fn limit(&self) -> Option<usize> {
        self.limit
    }
}

/// Rows come in the key's order. Floats are left out: 0 and −0 share a key but not a place in Arrow's order.
fn key_order(table: &Table, columns: &[usize], schema: &SchemaRef) -> EquivalenceProperties {
    let mut order = Vec::new();
    for at in &table.key {
        let float = matches!(table.columns[*at].column_type.pg_type, PgType::Float4 | PgType::Float8);
        let Some(position) = columns.iter().position(|column| column == at).filter(|_| !float) else { break };
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(schema.field(position).name(), position));
        order.push(PhysicalSortExpr::new(column, SortOptions { descending: false, nulls_first: false }));
    }
    if order.is_empty() {
        return EquivalenceProperties::new(Arc::clone(schema));
    }
    EquivalenceProperties::new_with_orderings(Arc::clone(schema), [order])
}

impl fmt::Debug for RegionScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionScan({})", self.table.shown_name())
    }
}

impl DisplayAs for RegionScan {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let names: Vec<&str> = self.columns.iter().map(|at| self.table.columns[*at].name.as_str()).collect();
        write!(f, "RegionScan: {} [{}]", self.table.shown_name(), names.join(", "))?;
        if let Some(index) = self.index() {
            write!(f, " by {}", index.name)?;
        }
        crate::query::explain::fmt_bounds(&self.table, &self.bounds, f)?;
        match self.limit {
            Some(limit) => write!(f, " limit={limit}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for RegionScan {
    fn name(&self) -> &str {
        "RegionScan"
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
        let bounds = self.bounds.bounds();
        let sides = [&bounds.lower, &bounds.upper].into_iter().flatten().map(|bound| &bound.value);
        for expr in bounds.fixed.iter().flatten().chain(sides) {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    /// Another scan, whose spans are computed anew: within a run a subquery is looked up with other values each time.
    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        if let Ok(run) = self.slot.run() {
            run.source.spans.remove(&self.id);
        }
        Ok(Arc::new(RegionScan {
            id: NEXT_SCAN.fetch_add(1, Ordering::Relaxed),
            table: Arc::clone(&self.table),
            columns: self.columns.clone(),
            bounds: self.bounds.clone(),
            index: self.index.clone(),
            limit: self.limit,
            spec: self.spec.clone(),
            shape: Arc::clone(&self.shape),
            slot: self.slot.clone(),
            properties: Arc::clone(&self.properties),
        }))
    }

    fn execute(&self, partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let share = Share {
            scan: self.id,
            partition,
            partitions: self.properties.partitioning.partition_count(),
            storage_id: self.table.storage_id,
            bounds: self.bounds.clone(),
            index: self.index.clone(),
            shape: Arc::clone(&self.shape),
            spec: self.spec.clone(),
            limit: self.limit,
            source: Arc::clone(&self.slot.run()?.source),
        };
        let batches = stream::once(share.batches()).try_flatten();
        let schema = Arc::clone(self.shape.schema());
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}

/// What one partition of a scan reads.
struct Share {
    scan: u64,
    partition: usize,
    partitions: usize,
    storage_id: u32,
    bounds: Compiled,
    index: Option<Arc<IndexCodec>>,
    shape: Arc<RowShape>,
    spec: Bytes,
    limit: Option<usize>,
    source: Arc<Source>,
}

impl Share {
    async fn batches(self) -> Result<stream::BoxStream<'static, Result<RecordBatch>>> {
        let spans = self.spans().await?;
        if let Some(index) = self.index.clone() {
            let own = match spans.as_ref() {
                Spans::Points(keys) => Spans::Points(keys.clone()),
                Spans::Ranges(ranges) => Spans::Ranges(own_share(ranges, self.partition, self.partitions)),
            };
            let (txn, limit) = (self.txn().clone(), self.limit);
            return Ok(super::by_index::batches(txn, index, own, limit, Arc::clone(&self.shape)).boxed());
        }
        Ok(match spans.as_ref() {
            Spans::Points(keys) => self.points(keys.clone()).boxed(),
            Spans::Ranges(ranges) => {
                let own = own_share(ranges, self.partition, self.partitions);
                self.ranges(own).boxed()
            }
        })
    }

    fn txn(&self) -> &kv::Txn {
        self.source.reader.txn(self.storage_id)
    }

    /// The spans of the whole scan; ranges are cut at the borders of regions.
    async fn spans(&self) -> Result<Arc<Spans>> {
        let cell = Arc::clone(&self.source.spans.entry(self.scan).or_default());
        let spans = cell
            .get_or_try_init(|| async {
                let spans = match self.bounds.spans()? {
                    Spans::Ranges(ranges) if self.partitions > 1 => {
                        Spans::Ranges(cut_at_regions(self.txn().client(), ranges).await?)
                    }
                    other => other,
                };
                Ok::<_, datafusion::common::DataFusionError>(Arc::new(spans))
            })
            .await?;
        Ok(Arc::clone(spans))
    }

    fn points(self, keys: Vec<Bytes>) -> impl Stream<Item = Result<RecordBatch>> + Send {
        let chunks: Vec<Vec<Bytes>> = keys.chunks(POINTS_PER_BATCH).map(<[Bytes]>::to_vec).collect();
        stream::iter(chunks).then(move |keys| {
            let (txn, shape) = (self.txn().clone(), Arc::clone(&self.shape));
            async move {
                let values = txn.get_many(&keys).await.map_err(|error| external(SqlError::from(error)))?;
                let mut builder = shape.builder();
                for (key, value) in keys.iter().zip(values) {
                    if let Some(value) = value {
                        builder.push(key, &value).map_err(external)?;
                    }
                }
                builder.finish().map_err(external)
            }
        })
    }

    fn ranges(self, ranges: Vec<KeyRange>) -> impl Stream<Item = Result<RecordBatch>> + Send {
        let share = Arc::new(self);
        stream::iter(ranges).flat_map(move |range| Arc::clone(&share).range(range))
    }

    /// One range, page by page. `kv` fetches a page ahead while this one is worked on, and no further.
    fn range(self: Arc<Self>, range: KeyRange) -> impl Stream<Item = Result<RecordBatch>> + Send {
        let txn = self.txn();
        let plain = txn.has_writes_in(&range);
        let scan = txn.scan(ScanOptions {
            range,
            limit: self.limit.unwrap_or(0) as u64,
            pushdown: (!plain).then(|| self.spec.clone()),
            ..Default::default()
        });
        let shape = Arc::clone(&self.shape);
        stream::try_unfold(scan, move |mut scan| {
            let shape = Arc::clone(&shape);
            async move {
                let page = scan.next_page().await.map_err(|error| external(SqlError::from(error)))?;
                let Some(page) = page else { return Ok(None) };
                let batch = batch_of(page, &shape).map_err(external)?;
                Ok(Some((batch, scan)))
            }
        })
    }
}

fn batch_of(page: kv::Page, shape: &Arc<RowShape>) -> Result<RecordBatch, SqlError> {
    if let Some(chunk) = page.chunk {
        let batch =
            chunk.downcast_ref::<RecordBatch>().ok_or_else(|| SqlError::internal("a scan's chunk is no batch"))?;
        // IPC keeps the columns but not necessarily the schema's pointer; names and types are the spec's.
        return Ok(batch.clone());
    }
    let mut builder = shape.builder();
    for (key, value) in &page.rows {
        builder.push(key, value)?;
    }
    builder.finish()
}

async fn cut_at_regions(client: &kv::Client, ranges: Vec<KeyRange>) -> Result<Vec<KeyRange>> {
    let mut pieces = Vec::with_capacity(ranges.len());
    for range in ranges {
        let regions = client.regions(&range).await.map_err(|error| external(SqlError::from(error)))?;
        pieces.extend(regions.into_iter().map(|route| route.part));
    }
    Ok(pieces)
}

/// The contiguous share of partition `at` of `of`, so that each partition's rows are in the key's order.
fn own_share(ranges: &[KeyRange], at: usize, of: usize) -> Vec<KeyRange> {
    let border = |at: usize| ranges.len() * at / of;
    ranges[border(at)..border(at + 1)].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_share_all_ranges_in_order() {
        let ranges: Vec<KeyRange> = (0..5_u8).map(|at| KeyRange::new(vec![at], vec![at + 1])).collect();
        let shared: Vec<KeyRange> = (0..3).flat_map(|at| own_share(&ranges, at, 3)).collect();
        assert_eq!(shared, ranges);
    }
}
