//! Tables as DataFusion reads them: scans over the regions of a table.
//!
//! ```text
//!   WHERE k = $1 AND v > 3      bounds    which conditions fix or bound the key's columns   (when planned)
//!        │                      points or key ranges, cut at region borders                 (when it runs)
//!   RegionScan ── partition 0 ── kv::Scan ── region 2 ┐
//!              └─ partition 1 ── kv::Scan ── region 3 ┤ store-side half: decode, project    (store)
//!                                                     └ Arrow batches, one page ahead
//! ```
//!
//! [`RegionTable`] is the table at planning time, [`exec::RegionScan`] the leaf of the physical plan, [`bounds`] the
//! access path that both the scan and the key plans use, [`access`] the choice between the primary key and the indexes, [`store::RowScan`] the half that runs where the rows are. A range in which the
//! transaction has written itself is scanned plainly and decoded here, so that it sees its own writes.
//!
//! Conditions are never left to the bounds alone: DataFusion filters again above. Not here: filters, top-n and
//! aggregates in the store.

pub mod access;
pub mod bounds;
pub mod by_index;
pub mod exec;
pub mod rows;
pub mod store;

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{Constraint, Constraints, Result},
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::ExecutionPlan,
};

use crate::{
    catalog::{Table, TableDescriptor},
    types::arrow as mapping,
};

/// A table of the cluster.
#[derive(Debug)]
pub struct RegionTable {
    table: Table,
    /// Positions in the descriptor of the schema's columns.
    columns: Vec<usize>,
    schema: SchemaRef,
    constraints: Constraints,
}

impl RegionTable {
    /// The table's visible columns; with `hidden` the row id too.
    pub fn new(table: Table, hidden: bool) -> Self {
        let columns: Vec<usize> = (0..table.columns.len()).filter(|at| hidden || !table.columns[*at].hidden).collect();
        let schema = Arc::new(schema_of(&table, &columns));
        let key: Option<Vec<usize>> =
            table.key.iter().map(|at| columns.iter().position(|column| column == at)).collect();
        let constraints = key.map(|key| vec![Constraint::PrimaryKey(key)]).unwrap_or_default();
        RegionTable { table, columns, schema, constraints: Constraints::new_unverified(constraints) }
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> &Table {
        &self.table
    }
}

/// An Arrow schema of some of a table's columns.
pub fn schema_of(table: &TableDescriptor, columns: &[usize]) -> Schema {
    let field = |at: &usize| {
        let column = &table.columns[*at];
        // Sinks check NOT NULL. To the planner all columns may be NULL: it forgets that the rows of an empty subquery are.
        mapping::field(&column.name, column.column_type, true)
    };
    Schema::new(columns.iter().map(field).collect::<Vec<_>>())
}

#[async_trait]
impl TableProvider for RegionTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn constraints(&self) -> Option<&Constraints> {
        Some(&self.constraints)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let useful = |filter: &&Expr| {
            if access::mentions_key(filter, &self.table) {
                TableProviderFilterPushDown::Inexact
            } else {
                TableProviderFilterPushDown::Unsupported
            }
        };
        Ok(filters.iter().map(useful).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = match projection {
            Some(projection) => projection.iter().map(|at| self.columns[*at]).collect(),
            None => self.columns.clone(),
        };
        let chosen = access::choose(filters, &self.table);
        let scan = exec::RegionScan::new(Arc::clone(&self.table), columns, chosen, limit, state)?;
        Ok(Arc::new(scan))
    }
}
