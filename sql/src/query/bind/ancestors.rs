//! `x IN (SELECT pg_partition_ancestors('t') UNION ALL VALUES ('t'::regclass))`, by which psql asks what references a table: there
//! are no partitions, so it is `x = 't'::regclass`.

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Query, SelectItem, SetExpr, SetOperator};

use super::folded;

/// Without the ancestors that no table has.
pub fn without(expr: &mut Expr) {
    let Expr::InSubquery { expr: asked, subquery, negated: false } = expr else { return };
    if let Some(table) = own(subquery) {
        let left = asked.clone();
        *expr = Expr::BinaryOp { left, op: BinaryOperator::Eq, right: Box::new(table) };
    }
}

/// What stands beside the ancestors.
fn own(query: &Query) -> Option<Expr> {
    let SetExpr::SetOperation { op: SetOperator::Union, left, right, .. } = query.body.as_ref() else { return None };
    let (SetExpr::Select(select), SetExpr::Values(values)) = (left.as_ref(), right.as_ref()) else { return None };
    let [SelectItem::UnnamedExpr(Expr::Function(function))] = select.projection.as_slice() else { return None };
    let name = function.name.0.last()?.as_ident().map(folded)?;
    let [row] = values.rows.as_slice() else { return None };
    let [table] = row.content.as_slice() else { return None };
    (name == "pg_partition_ancestors" && select.from.is_empty()).then(|| table.clone())
}
