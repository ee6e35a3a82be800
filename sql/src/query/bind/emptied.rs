//! Questions about things that do not exist here.
//!
//! psql asks for publications, policies and statistics in queries that use more of PostgreSQL than can be planned
//! yet. Their FROM joins a system table that is always empty ([`empty`]), so the answer is no rows whatever else they
//! say. Only a query that could not be planned as it stands is answered this way.

use datafusion::sql::sqlparser::ast::{
    Expr, GroupByExpr, Ident, JoinOperator, Query, Select, SelectItem, SetExpr, TableFactor, TableWithJoins, Value,
};

use super::{folded, rewrite::cast_to};
use crate::query::catalog::empty;

/// The query with every SELECT that can't have rows made trivial; `None` when there is none.
pub fn emptied(query: &Query) -> Option<Query> {
    let mut query = query.clone();
    if !empty_body(&mut query.body) {
        return None;
    }
    query.order_by = None;
    Some(query)
}

fn empty_body(body: &mut SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => empty_select(select),
        SetExpr::SetOperation { left, right, .. } => {
            let left = empty_body(left);
            empty_body(right) || left
        }
        SetExpr::Query(query) => empty_body(&mut query.body),
        _ => false,
    }
}

fn empty_select(select: &mut Select) -> bool {
    let ungrouped = matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    if !ungrouped || !select.from.iter().any(joins_empty) {
        return false;
    }
    let mut items = Vec::with_capacity(select.projection.len());
    for item in &select.projection {
        let alias = match item {
            SelectItem::ExprWithAlias { alias, .. } => alias.clone(),
            SelectItem::UnnamedExpr(Expr::Identifier(ident)) => ident.clone(),
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => match parts.last() {
                Some(last) => last.clone(),
                None => return false,
            },
            _ => return false,
        };
        let expr = cast_to(Expr::value(Value::Null), "text");
        items.push(SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', folded(&alias)) });
    }
    select.projection = items;
    select.from = Vec::new();
    select.selection = Some(Expr::value(Value::Boolean(false)));
    true
}

/// Without a row of an empty table this FROM item has no row.
fn joins_empty(from: &TableWithJoins) -> bool {
    let inner = from.joins.iter().filter(|join| {
        matches!(join.join_operator, JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_))
    });
    // An outer join behind it could bring rows back only from its right side.
    let kept = from.joins.iter().all(|join| {
        !matches!(join.join_operator, JoinOperator::Right(_) | JoinOperator::RightOuter(_) | JoinOperator::FullOuter(_))
    });
    kept && (is_empty(&from.relation) || inner.map(|join| &join.relation).any(is_empty))
}

fn is_empty(relation: &TableFactor) -> bool {
    let TableFactor::Table { name, args: None, .. } = relation else { return false };
    let parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(folded).collect();
    match parts.as_slice() {
        [table] => empty::build(table).is_some(),
        [schema, table] => schema == crate::query::catalog::PG_CATALOG && empty::build(table).is_some(),
        _ => false,
    }
}
