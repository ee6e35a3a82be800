//! Arrays as the system tables need them: written as text, `{a,b}`.
//!
//! There is no array type yet. psql and drivers ask the system tables about arrays in a few fixed forms, which become
//! expressions over their text; everything else with arrays is 0A000.

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Query, SelectItem, SetExpr,
    TableFactor, Value,
};

use super::{
    folded,
    rewrite::{call, cast_to},
};

/// `ARRAY(SELECT x …)` as `(SELECT '{' || string_agg(x::text, ',') || '}' …)`.
pub fn of_subquery(function: &Function) -> Option<Expr> {
    let FunctionArguments::Subquery(query) = &function.args else { return None };
    if !function.name.to_string().eq_ignore_ascii_case("array") {
        return None;
    }
    if unnests_options(query) {
        return Some(text("{}"));
    }
    let mut query: Query = query.as_ref().clone();
    // The order of elements of the lists this is for does not matter, and string_agg takes none from here.
    query.order_by = None;
    let SetExpr::Select(select) = query.body.as_mut() else { return None };
    let [SelectItem::UnnamedExpr(element) | SelectItem::ExprWithAlias { expr: element, .. }] =
        select.projection.as_slice()
    else {
        return None;
    };
    let joined = call("string_agg", vec![cast_to(element.clone(), "text"), text(",")]);
    let listed = call("coalesce", vec![joined, text("")]);
    let array = concat(concat(text("{"), listed), text("}"));
    select.projection = vec![SelectItem::UnnamedExpr(array)];
    Some(Expr::Subquery(Box::new(query)))
}

/// `ARRAY(SELECT … FROM unnest(reloptions))`: relations have no options here.
fn unnests_options(query: &Query) -> bool {
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    let [from] = select.from.as_slice() else { return false };
    let TableFactor::Table { name, args: Some(arguments), .. } = &from.relation else { return false };
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(column))] = arguments.args.as_slice() else { return false };
    let last = match column {
        Expr::Identifier(ident) => Some(ident),
        Expr::CompoundIdentifier(parts) => parts.last(),
        _ => None,
    };
    let function = name.0.last().and_then(|part| part.as_ident());
    function.is_some_and(|function| folded(function) == "unnest")
        && last.is_some_and(|last| folded(last) == "reloptions")
}

/// `x = ANY (column)`, the column being an array's text.
pub fn any_of_text(left: &Expr, right: &Expr) -> Option<Expr> {
    let right = match right {
        Expr::Nested(inner) => inner.as_ref(),
        other => other,
    };
    let column = matches!(right, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
    column.then(|| call("array_text_contains", vec![cast_to(left.clone(), "text"), right.clone()]))
}

fn text(value: &str) -> Expr {
    Expr::value(Value::SingleQuotedString(value.to_owned()))
}

fn concat(left: Expr, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op: BinaryOperator::StringConcat, right: Box::new(right) }
}
