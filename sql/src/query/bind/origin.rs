//! Which table's column a result column is, as RowDescription says it: drivers look up keys and editable columns by it.

use datafusion::{
    datasource::source_as_provider,
    logical_expr::{Distinct, Expr, LogicalPlan},
};

use crate::query::scan::RegionTable;

/// The table's oid and the column's number there; `None` for what is computed, or comes from several places.
pub fn of(plan: &LogicalPlan, at: usize) -> Option<(u32, i16)> {
    match plan {
        LogicalPlan::Projection(projection) => of_expr(projection.expr.get(at)?, &projection.input),
        LogicalPlan::Aggregate(aggregate) => of_expr(aggregate.group_expr.get(at)?, &aggregate.input),
        LogicalPlan::Filter(filter) => of(&filter.input, at),
        LogicalPlan::Sort(sort) => of(&sort.input, at),
        LogicalPlan::Limit(limit) => of(&limit.input, at),
        LogicalPlan::Distinct(Distinct::All(input)) => of(input, at),
        LogicalPlan::SubqueryAlias(alias) => of(&alias.input, at),
        LogicalPlan::Window(window) if at < window.input.schema().fields().len() => of(&window.input, at),
        LogicalPlan::Join(join) => {
            let left = join.left.schema().fields().len();
            if at < left { of(&join.left, at) } else { of(&join.right, at - left) }
        }
        // A look-up's own column comes last.
        LogicalPlan::Extension(extension) => {
            let input = extension.node.inputs().into_iter().next()?;
            (at < input.schema().fields().len()).then(|| of(input, at))?
        }
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source).ok()?;
            let table = provider.downcast_ref::<RegionTable>()?.descriptor();
            let column = table.columns.iter().find(|column| column.name == *scan.projected_schema.field(at).name())?;
            Some((table.id, i16::try_from(column.id).ok()?))
        }
        _ => None,
    }
}

fn of_expr(expr: &Expr, input: &LogicalPlan) -> Option<(u32, i16)> {
    match expr {
        Expr::Alias(alias) => of_expr(&alias.expr, input),
        Expr::Column(column) => of(input, input.schema().maybe_index_of_column(column)?),
        _ => None,
    }
}
