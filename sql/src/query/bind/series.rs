//! Functions that give rows. In FROM their column has the alias' name, or the function's.
//!
//! `generate_series` of integers is one of integers: DataFusion's gives bigints, so it becomes
//! `(SELECT value::int4 AS g FROM generate_series(1, 3)) AS g`. In a select list DataFusion's gives an array, which is unnested.

use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Query, SetExpr, TableAlias, TableAliasColumnDef, TableFactor,
    UnaryOperator, Value,
};

use super::{
    folded,
    rewrite::{call, cast_to},
};

/// DataFusion's name for the column.
const VALUE: &str = "value";

/// Gives the column of a function in FROM its name and type.
pub fn name(factor: &mut TableFactor) {
    let TableFactor::Table { name, alias, args: Some(arguments), .. } = factor else { return };
    let Some(function) = name.0.last().and_then(|part| part.as_ident()).cloned() else { return };
    let alias = alias.get_or_insert_with(|| TableAlias {
        explicit: true,
        name: function.clone(),
        columns: Vec::new(),
        at: None,
    });
    if alias.columns.is_empty() {
        alias.columns.push(TableAliasColumnDef { name: alias.name.clone(), data_type: None });
    }
    if folded(&function) == "generate_series" && arguments.args.iter().all(is_integer) {
        let (alias, column) = (alias.clone(), alias.columns[0].name.clone());
        let mut series = factor.clone();
        if let TableFactor::Table { alias, .. } = &mut series {
            *alias = None;
        }
        if let Some(query) = narrowed(series, column) {
            *factor =
                TableFactor::Derived { lateral: false, subquery: Box::new(query), alias: Some(alias), sample: None };
        }
    }
}

/// `generate_series(…)` where a value stands, as rows.
pub fn unnested(function: &Function) -> Option<Expr> {
    let FunctionArguments::List(arguments) = &function.args else { return None };
    let series = function.name.0.last()?.as_ident().is_some_and(|name| folded(name) == "generate_series");
    series.then(|| {
        let rows = call("unnest", vec![Expr::Function(function.clone())]);
        if arguments.args.iter().all(is_integer) { cast_to(rows, "int4") } else { rows }
    })
}

/// An integer literal that fits PostgreSQL's integer.
fn is_integer(argument: &FunctionArg) -> bool {
    let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = argument else { return false };
    let literal = match expr {
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => expr.as_ref(),
        other => other,
    };
    matches!(literal, Expr::Value(value)
        if matches!(&value.value, Value::Number(digits, false) if digits.parse::<i32>().is_ok()))
}

/// `SELECT value::int4 AS column FROM series`
fn narrowed(series: TableFactor, column: Ident) -> Option<Query> {
    let text = format!("SELECT {} AS {column} FROM x", cast_to(Expr::Identifier(Ident::new(VALUE)), "int4"));
    let mut query = super::dml::parsed_query(&text).ok()?;
    let SetExpr::Select(select) = query.body.as_mut() else { return None };
    select.from[0].relation = series;
    Some(query)
}
