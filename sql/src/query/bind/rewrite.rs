//! PostgreSQL's spellings that DataFusion's planner does not read, in words that it does. Meaning never changes here.
//!
//! | written | becomes |
//! | --- | --- |
//! | `a OPERATOR(pg_catalog.~) b` | `a ~ b` |
//! | `x COLLATE pg_catalog.default` | `x`: there is one collation, "C" |
//! | `pg_catalog.f(x)` | `f(x)` |
//! | `'t'::regclass` | the table's oid |
//! | `x::regclass`, `x::regtype` | the object's name |
//! | `x = ANY (ARRAY[a, b])` | `x IN (a, b)` |
//! | `x BETWEEN a AND b` | `x >= a AND x <= b`, so that the operators' typing rules hold |
//! | `(a, b) < (c, d)`, `(a, b) IN ((1, 2), …)` | comparisons of their columns: see [`super::rows`] |
//! | `a SIMILAR TO p` | `a ~ similar_to_escape(p)` |
//! | `FROM a, LATERAL (SELECT f(a.x)) AS o(n)` | `FROM (SELECT *, f(x) …)`: see [`super::lateral`] |
//! | `FROM f(x) AS g` | `FROM f(x) AS g(g)`: see [`super::series`] |
//! | `x IN (SELECT pg_partition_ancestors(t) UNION ALL VALUES (t))` | `x = t`: see [`super::ancestors`] |
//! | `pg_sleep($1)` | `pg_sleep($1::float8)`: see [`super::arguments`] |
//! | select items without a name | named as PostgreSQL names them |

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, DataType, DateTimeField, Expr, ExtractSyntax, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentList, FunctionArguments, Ident, LimitClause, ObjectName, ObjectNamePart, Query, Select, SetExpr,
    Statement, TableFactor, UnaryOperator, Value, ValueWithSpan, VisitMut, VisitorMut,
};

use super::{ancestors, arguments, arrays, folded, names, rows, series, type_names};
use crate::{
    catalog::CatalogSnapshot,
    error::{SqlError, SqlResult, SqlState},
    query::catalog::oids,
    types::PgType,
};

/// Rewrites a whole statement in place.
pub fn rewrite(statement: &mut Statement, snapshot: &CatalogSnapshot) -> SqlResult<()> {
    let mut rewriter = Rewriter { snapshot };
    match statement.visit(&mut rewriter) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// Rewrites one expression in place.
pub fn rewrite_expr(expr: &mut Expr, snapshot: &CatalogSnapshot) -> SqlResult<()> {
    match expr.visit(&mut Rewriter { snapshot }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Rewriter<'a> {
    snapshot: &'a CatalogSnapshot,
}

impl VisitorMut for Rewriter<'_> {
    type Break = SqlError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<SqlError> {
        let ctes = query.with.iter().flat_map(|with| &with.cte_tables);
        if ctes.into_iter().any(|cte| changes_rows(&cte.query.body)) {
            return ControlFlow::Break(SqlError::unsupported("INSERT, UPDATE or DELETE in WITH"));
        }
        if let Err(error) = fetch_to_limit(query) {
            return ControlFlow::Break(error);
        }
        name_body(&mut query.body);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<SqlError> {
        if select.into.is_some() {
            return ControlFlow::Break(SqlError::unsupported("SELECT INTO"));
        }
        super::lateral::inline(select);
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<SqlError> {
        series::name(factor);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<SqlError> {
        ancestors::without(expr);
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<SqlError> {
        match self.expr(expr) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }
}

/// `FETCH FIRST n ROWS ONLY` is LIMIT n.
pub fn fetch_to_limit(query: &mut Query) -> SqlResult<()> {
    let Some(fetch) = query.fetch.take() else { return Ok(()) };
    if fetch.with_ties || fetch.percent {
        return Err(SqlError::unsupported("FETCH ... WITH TIES"));
    }
    let limit = fetch.quantity.unwrap_or_else(|| number("1"));
    query.limit_clause = Some(match query.limit_clause.take() {
        Some(LimitClause::LimitOffset { offset, limit_by, limit: None }) => {
            LimitClause::LimitOffset { limit: Some(limit), offset, limit_by }
        }
        None => LimitClause::LimitOffset { limit: Some(limit), offset: None, limit_by: Vec::new() },
        Some(_) => return Err(SqlError::syntax("multiple LIMIT clauses not allowed")),
    });
    Ok(())
}

fn changes_rows(body: &SetExpr) -> bool {
    matches!(body, SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_))
}

/// Names the columns of every SELECT of a query's body; a set operation is named by its first one.
fn name_body(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => names::name_items(&mut select.projection),
        SetExpr::SetOperation { left, right, .. } => {
            name_body(left);
            name_body(right);
        }
        _ => {}
    }
}

impl Rewriter<'_> {
    fn expr(&self, expr: &mut Expr) -> SqlResult<()> {
        match expr {
            Expr::BinaryOp { op: op @ BinaryOperator::PGCustomBinaryOperator(_), .. } => *op = custom_operator(op)?,
            Expr::BinaryOp { .. } | Expr::InList { .. } => {
                if let Some(compared) = rows::comparison(expr)? {
                    *expr = compared;
                }
            }
            Expr::Identifier(name) if name.quote_style.is_none() && folded(name) == "current_schema" => {
                *expr = call("current_schema", Vec::new());
            }
            Expr::Collate { expr: inner, collation } => {
                check_collation(collation)?;
                *expr = std::mem::replace(inner.as_mut(), null());
            }
            Expr::Function(function) => {
                function_name(function);
                arguments::give_types(function);
                if let Some(rewritten) =
                    arrays::of_subquery(function).or_else(|| series::unnested(function)).or_else(|| renamed(function))
                {
                    *expr = rewritten;
                }
            }
            Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } => {
                if let Expr::Value(value) = inner.as_mut()
                    && let Value::Number(digits, _) = &mut value.value
                    && let Some(least) = least_integer(digits)
                {
                    *expr = least;
                }
            }
            Expr::Cast { expr: inner, data_type, .. } => {
                if let Some(rewritten) = self.object_cast(inner, data_type)? {
                    *expr = rewritten;
                }
            }
            Expr::Between { expr: value, negated, low, high } => {
                *expr = between(take(value), take(low), take(high), *negated);
            }
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => {
                if let Some(list) = array_elements(right) {
                    *expr = Expr::InList { expr: left.clone(), list, negated: false };
                } else if let Some(contains) = arrays::any_of_text(left, right) {
                    *expr = contains;
                }
            }
            Expr::AllOp { left, compare_op: BinaryOperator::NotEq, right } => {
                if let Some(list) = array_elements(right) {
                    *expr = Expr::InList { expr: left.clone(), list, negated: true };
                }
            }
            Expr::SimilarTo { negated, expr: value, pattern, escape_char } => {
                let mut arguments = vec![take(pattern)];
                arguments.extend(escape_char.take().map(Expr::Value));
                *expr = Expr::BinaryOp {
                    left: Box::new(take(value)),
                    op: if *negated { BinaryOperator::PGRegexNotMatch } else { BinaryOperator::PGRegexMatch },
                    right: Box::new(call("similar_to_escape", arguments)),
                };
            }
            Expr::AtTimeZone { timestamp, time_zone } => {
                *expr = call("timezone", vec![take(time_zone), take(timestamp)]);
            }
            _ => {}
        }
        Ok(())
    }

    /// Casts to types that stand for an object's oid.
    fn object_cast(&self, inner: &Expr, data_type: &DataType) -> SqlResult<Option<Expr>> {
        let Some(word) = object_type(data_type) else { return Ok(None) };
        if let Expr::Value(value) = inner
            && let Value::SingleQuotedString(text) = &value.value
        {
            let oid = match word.as_str() {
                _ if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().unwrap_or(0),
                "regclass" => oids::relation(self.snapshot, text)?,
                "regtype" => type_oid(text)?,
                "regnamespace" => oids::namespace(text)?,
                _ => return Ok(None),
            };
            return Ok(Some(cast_to(number(&oid.to_string()), "oid")));
        }
        Ok(match word.as_str() {
            "regclass" => Some(call("regclass_name", vec![inner.clone()])),
            "regtype" => Some(call("format_type", vec![inner.clone(), Expr::value(Value::Null)])),
            "regnamespace" => Some(call("regnamespace_name", vec![inner.clone()])),
            "regrole" => Some(call("pg_get_userbyid", vec![inner.clone()])),
            _ => None,
        })
    }
}

fn object_type(data_type: &DataType) -> Option<String> {
    match data_type {
        DataType::Regclass => Some("regclass".into()),
        DataType::Custom(name, _) => {
            let last = folded(name.0.last()?.as_ident()?);
            last.starts_with("reg").then_some(last)
        }
        _ => None,
    }
}

fn type_oid(name: &str) -> SqlResult<u32> {
    let found = crate::types::TYPES.iter().find(|row| row.name == name || row.sql_name == name);
    match found {
        Some(row) => Ok(row.oid),
        None => Err(SqlError::new(SqlState::UNDEFINED_OBJECT, format!("type \"{name}\" does not exist"))),
    }
}

fn custom_operator(op: &BinaryOperator) -> SqlResult<BinaryOperator> {
    let BinaryOperator::PGCustomBinaryOperator(parts) = op else { return Ok(op.clone()) };
    let sign = parts.last().map(String::as_str).unwrap_or_default();
    Ok(match sign {
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "=" => BinaryOperator::Eq,
        "<>" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        ">" => BinaryOperator::Gt,
        "<=" => BinaryOperator::LtEq,
        ">=" => BinaryOperator::GtEq,
        "+" => BinaryOperator::Plus,
        "-" => BinaryOperator::Minus,
        "||" => BinaryOperator::StringConcat,
        other => return Err(SqlError::unsupported(format!("OPERATOR({other})"))),
    })
}

/// Everything compares by bytes, which is what these collations mean here.
fn check_collation(collation: &ObjectName) -> SqlResult<()> {
    let last = collation.0.last().and_then(|part| part.as_ident()).map(|ident| ident.value.as_str());
    match last {
        Some("default" | "C" | "POSIX" | "ucs_basic") => Ok(()),
        _ => Err(SqlError::unsupported(format!("collation {collation}"))),
    }
}

/// Functions live in pg_catalog; DataFusion's names have no schema.
fn function_name(function: &mut Function) {
    if function.name.0.len() == 2 && function.name.0[0].as_ident().is_some_and(|ident| folded(ident) == "pg_catalog") {
        function.name.0.remove(0);
    }
}

/// Functions that are operators or casts by another name: `mod(a, b)`, `date_part(field, t)`.
fn renamed(function: &Function) -> Option<Expr> {
    let FunctionArguments::List(list) = &function.args else { return None };
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(first)), FunctionArg::Unnamed(FunctionArgExpr::Expr(second))] =
        list.args.as_slice()
    else {
        return None;
    };
    match folded(function.name.0.last()?.as_ident()?).as_str() {
        "mod" => Some(Expr::Nested(Box::new(Expr::BinaryOp {
            left: Box::new(first.clone()),
            op: BinaryOperator::Modulo,
            right: Box::new(second.clone()),
        }))),
        "date_part" => match first {
            Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(field), .. }) => {
                let field = DateTimeField::Custom(Ident::new(field));
                let expr = Box::new(second.clone());
                Some(cast_to(Expr::Extract { field, syntax: ExtractSyntax::From, expr }, "float8"))
            }
            _ => None,
        },
        _ => None,
    }
}

fn array_elements(expr: &Expr) -> Option<Vec<Expr>> {
    match expr {
        Expr::Array(array) => Some(array.elem.clone()),
        Expr::Nested(inner) => array_elements(inner),
        Expr::Cast { expr, .. } => array_elements(expr),
        // '{a,b}': an array's text without quotes or escapes.
        Expr::Value(value) => {
            let Value::SingleQuotedString(text) = &value.value else { return None };
            let inner = text.strip_prefix('{')?.strip_suffix('}')?;
            if inner.contains(['"', '\\', '{']) {
                return None;
            }
            let element = |part: &str| Expr::value(Value::SingleQuotedString(part.trim().to_owned()));
            Some(inner.split(',').map(element).collect())
        }
        _ => None,
    }
}

fn between(value: Expr, low: Expr, high: Expr, negated: bool) -> Expr {
    let compare = |left: Expr, op: BinaryOperator, right: Expr| Expr::BinaryOp {
        left: Box::new(left),
        op,
        right: Box::new(right),
    };
    let both = if negated {
        let below = compare(value.clone(), BinaryOperator::Lt, low);
        compare(below, BinaryOperator::Or, compare(value, BinaryOperator::Gt, high))
    } else {
        let above = compare(value.clone(), BinaryOperator::GtEq, low);
        compare(above, BinaryOperator::And, compare(value, BinaryOperator::LtEq, high))
    };
    Expr::Nested(Box::new(both))
}

fn null() -> Expr {
    Expr::value(Value::Null)
}

fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, null())
}

fn number(digits: &str) -> Expr {
    Expr::value(Value::Number(digits.to_owned(), false))
}

/// The integers whose digits without the sign are too big for their type.
fn least_integer(digits: &str) -> Option<Expr> {
    let (value, type_name) = match digits {
        "2147483648" => (i64::from(i32::MIN), "int4"),
        "9223372036854775808" => (i64::MIN, "int8"),
        _ => return None,
    };
    Some(cast_to(Expr::value(Value::SingleQuotedString(value.to_string())), type_name))
}

/// `expr::type_name`, by the type's name in `pg_type`.
pub fn cast_to(expr: Expr, type_name: &str) -> Expr {
    debug_assert!(type_names::column_type(&custom(type_name)).is_ok_and(|t| t.pg_type != PgType::Unknown));
    Expr::Cast {
        kind: datafusion::sql::sqlparser::ast::CastKind::DoubleColon,
        expr: Box::new(expr),
        data_type: custom(type_name),
        array: false,
        format: None,
    }
}

fn custom(type_name: &str) -> DataType {
    DataType::Custom(ObjectName(vec![ObjectNamePart::Identifier(Ident::new(type_name))]), Vec::new())
}

/// A call of one of our functions.
pub fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let args = arguments.into_iter().map(|expr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))).collect();
    Expr::Function(Function {
        name: ObjectName(vec![ObjectNamePart::Identifier(Ident::new(name))]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
