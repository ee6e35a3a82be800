//! Arguments of functions that take one type only: a parameter or a string without a type is given it, as PostgreSQL does;
//! DataFusion would take it for text.

use datafusion::sql::sqlparser::ast::{Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Value};

use super::{folded, rewrite::cast_to};

/// Name (or how it begins), and the types of its arguments by their number.
const FIXED: &[(&str, &[&[&str]])] = &[
    ("pg_advisory_", &[&["int8"], &["int4", "int4"]]),
    ("pg_try_advisory_", &[&["int8"], &["int4", "int4"]]),
    ("pg_cancel_backend", &[&["int4"]]),
    ("pg_terminate_backend", &[&["int4"], &["int4", "int8"]]),
    ("pg_sleep", &[&["float8"]]),
];

/// Casts what has no type.
pub fn give_types(function: &mut Function) {
    let Some(name) = function.name.0.last().and_then(|part| part.as_ident()).map(folded) else { return };
    let FunctionArguments::List(list) = &mut function.args else { return };
    let Some((_, forms)) = FIXED.iter().find(|(known, _)| name.starts_with(known)) else { return };
    let Some(types) = forms.iter().find(|types| types.len() == list.args.len()) else { return };
    for (argument, type_name) in list.args.iter_mut().zip(*types) {
        if let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = argument
            && let Expr::Value(value) = &*expr
            && matches!(value.value, Value::Placeholder(_) | Value::SingleQuotedString(_) | Value::Null)
        {
            *expr = cast_to(expr.clone(), type_name);
        }
    }
}
