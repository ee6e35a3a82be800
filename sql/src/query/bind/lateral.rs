//! `FROM t CROSS JOIN LATERAL (SELECT f(t.x)) AS o(n)`: a lateral subquery without a FROM of its own gives one row
//! computed from what stands left of it, so its columns are just names for expressions.
//!
//! Only this form is rewritten (pgbench and psql use it); other lateral subqueries go to DataFusion, which decorrelates
//! some of them.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, Join, JoinConstraint, JoinOperator, Select, SelectItem, SetExpr, TableFactor, VisitMut, VisitorMut,
};

use super::folded;

/// A column of such a subquery, and what it stands for.
struct Named {
    table: String,
    column: String,
    expr: Expr,
}

/// Puts the expressions of FROM-less lateral subqueries in the place of the columns that name them.
pub fn inline(select: &mut Select) {
    let mut named = Vec::new();
    for from in &mut select.from {
        from.joins.retain(|join| !take(join, &mut named));
    }
    if named.is_empty() {
        return;
    }
    let mut replacer = Replacer { named };
    for item in &mut select.projection {
        // It keeps the name of the column that it was written as.
        let named = match item {
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => parts
                .last()
                .cloned()
                .map(|alias| SelectItem::ExprWithAlias { expr: Expr::CompoundIdentifier(parts.clone()), alias }),
            _ => None,
        };
        if let Some(named) = named {
            *item = named;
        }
        if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
            let _ = VisitMut::visit(expr, &mut replacer);
        }
    }
    let _ = VisitMut::visit(&mut select.selection, &mut replacer);
    let _ = VisitMut::visit(&mut select.group_by, &mut replacer);
    let _ = VisitMut::visit(&mut select.having, &mut replacer);
    let _ = VisitMut::visit(&mut select.from, &mut replacer);
}

fn take(join: &Join, named: &mut Vec<Named>) -> bool {
    if !matches!(join.join_operator, JoinOperator::CrossJoin(JoinConstraint::None)) {
        return false;
    }
    let TableFactor::Derived { lateral: true, subquery, alias: Some(alias), .. } = &join.relation else {
        return false;
    };
    let SetExpr::Select(inner) = subquery.body.as_ref() else { return false };
    if !inner.from.is_empty() || inner.selection.is_some() || subquery.limit_clause.is_some() {
        return false;
    }
    let table = folded(&alias.name);
    for (at, item) in inner.projection.iter().enumerate() {
        let (expr, own) = match item {
            SelectItem::UnnamedExpr(expr) => (expr, None),
            SelectItem::ExprWithAlias { expr, alias } => (expr, Some(folded(alias))),
            _ => return false,
        };
        let Some(column) = alias.columns.get(at).map(|column| folded(&column.name)).or(own) else { return false };
        named.push(Named { table: table.clone(), column, expr: expr.clone() });
    }
    true
}

struct Replacer {
    named: Vec<Named>,
}

impl VisitorMut for Replacer {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::CompoundIdentifier(parts) = expr
            && let [table, column] = parts.as_slice()
        {
            let (table, column) = (folded(table), folded(column));
            let found = self.named.iter().find(|named| named.table == table && named.column == column);
            if let Some(named) = found {
                *expr = Expr::Nested(Box::new(named.expr.clone()));
            }
        }
        ControlFlow::Continue(())
    }
}
