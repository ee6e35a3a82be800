//! The names PostgreSQL gives to the columns of a select list that have none.
//!
//! DataFusion wants the names of a projection to be unique, PostgreSQL does not: a name that came before gets a
//! mark and a number behind it, which [`shown`] takes off again.

use datafusion::sql::sqlparser::ast::{
    DataType, Expr, FunctionArguments, Ident, ObjectName, Query, SelectItem, SetExpr,
};

/// What separates a name from the number that makes it unique. No identifier of a client holds it.
const MARK: char = '\u{1}';
/// PostgreSQL's name for what has no better one.
const ANONYMOUS: &str = "?column?";

/// A column's name as the client sees it.
pub fn shown(name: &str) -> &str {
    name.split(MARK).next().unwrap_or(name)
}

/// Gives every unnamed expression of a select list its name.
pub fn name_items(items: &mut [SelectItem]) {
    let wildcard = items.iter().any(|item| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
    let mut seen: Vec<String> = Vec::new();
    for (at, item) in items.iter_mut().enumerate() {
        let name = match item {
            SelectItem::ExprWithAlias { alias, .. } => crate::query::bind::folded(alias),
            SelectItem::UnnamedExpr(expr) => {
                let name = of_expr(expr).unwrap_or_else(|| ANONYMOUS.to_owned());
                let plain = matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
                let duplicate = seen.contains(&name);
                if !plain || duplicate || wildcard {
                    let unique = if duplicate || wildcard { format!("{name}{MARK}{at}") } else { name.clone() };
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::with_quote('"', unique) };
                }
                seen.push(name);
                continue;
            }
            _ => continue,
        };
        if seen.contains(&name)
            && let SelectItem::ExprWithAlias { alias, .. } = item
        {
            *alias = Ident::with_quote('"', format!("{name}{MARK}{at}"));
        }
        seen.push(name);
    }
}

/// How sure PostgreSQL is of a name: a cast's type name gives way to the name of what is cast.
enum Name {
    Weak(String),
    Strong(String),
}

fn of_expr(expr: &Expr) -> Option<String> {
    name(expr).map(|name| match name {
        Name::Weak(name) | Name::Strong(name) => name,
    })
}

fn strong(text: &str) -> Option<Name> {
    Some(Name::Strong(text.to_owned()))
}

fn name(expr: &Expr) -> Option<Name> {
    match expr {
        Expr::Identifier(ident) => Some(Name::Strong(crate::query::bind::folded(ident))),
        Expr::CompoundIdentifier(parts) => parts.last().map(|last| Name::Strong(crate::query::bind::folded(last))),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => name(inner),
        Expr::Function(function) => function_name(&function.name, &function.args),
        Expr::Cast { expr, data_type, .. } => match name(expr) {
            Some(Name::Strong(text)) => Some(Name::Strong(text)),
            _ => Some(Name::Weak(type_name(data_type))),
        },
        Expr::TypedString(typed) => Some(Name::Weak(type_name(&typed.data_type))),
        Expr::Interval(_) => Some(Name::Weak("interval".into())),
        Expr::Case { else_result, .. } => match else_result.as_deref().and_then(name) {
            Some(Name::Strong(text)) => Some(Name::Strong(text)),
            _ => Some(Name::Weak("case".into())),
        },
        Expr::Exists { .. } => strong("exists"),
        Expr::Subquery(query) => of_query(query),
        Expr::Extract { .. } => strong("extract"),
        Expr::Substring { shorthand, .. } => strong(if *shorthand { "substr" } else { "substring" }),
        Expr::Position { .. } => strong("position"),
        Expr::Overlay { .. } => strong("overlay"),
        Expr::Ceil { .. } => strong("ceil"),
        Expr::Floor { .. } => strong("floor"),
        Expr::Trim { trim_where, .. } => strong(match trim_where {
            Some(side) if side.to_string() == "LEADING" => "ltrim",
            Some(side) if side.to_string() == "TRAILING" => "rtrim",
            _ => "btrim",
        }),
        Expr::AtTimeZone { .. } => strong("timezone"),
        Expr::Array(_) => strong("array"),
        _ => None,
    }
}

fn function_name(name: &ObjectName, arguments: &FunctionArguments) -> Option<Name> {
    let last = name.0.last()?.as_ident()?;
    if let FunctionArguments::Subquery(_) = arguments {
        return strong("array");
    }
    Some(Name::Strong(crate::query::bind::folded(last)))
}

fn of_query(query: &Query) -> Option<Name> {
    let SetExpr::Select(select) = query.body.as_ref() else { return None };
    match select.projection.first()? {
        SelectItem::UnnamedExpr(expr) => name(expr),
        SelectItem::ExprWithAlias { alias, .. } => {
            let text = crate::query::bind::folded(alias);
            Some(Name::Strong(shown(&text).to_owned()))
        }
        _ => None,
    }
}

/// The type's internal name, which PostgreSQL uses for a column made by a cast.
fn type_name(data_type: &DataType) -> String {
    match super::type_names::column_type(data_type) {
        Ok(column_type) => column_type.pg_type.row().name.to_owned(),
        Err(_) => data_type.to_string().to_lowercase(),
    }
}
