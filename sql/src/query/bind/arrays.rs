//! Arrays as the system tables need them: written as text, `{a,b}`.
//!
//! There is no array type yet. psql and drivers ask the system tables about arrays in a few fixed forms, which become
//! expressions over their text; everything else with arrays is 0A000.

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArguments, Query, SelectItem, SetExpr, Value,
};

use super::rewrite::{call, cast_to};

/// `ARRAY(SELECT x …)` as `(SELECT '{' || string_agg(x::text, ',') || '}' …)`.
pub fn of_subquery(function: &Function) -> Option<Expr> {
    let FunctionArguments::Subquery(query) = &function.args else { return None };
    if !function.name.to_string().eq_ignore_ascii_case("array") {
        return None;
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
