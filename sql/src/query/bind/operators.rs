//! Binary operators by PostgreSQL's rules, where DataFusion's own differ.
//!
//! An operand of unknown type (a quoted literal, a parameter without a type; DataFusion's `Null` type) takes the
//! other one's; two unknowns are text. Arithmetic becomes our checked functions; comparisons stay DataFusion's, so
//! that its optimiser understands them, but only between types PostgreSQL has an operator for: `1 = 'a'::text` is 42883,
//! not a silent cast.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::{
    common::{
        DFSchema, DataFusionError, Result, ScalarValue,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    logical_expr::{
        BinaryExpr, Expr, ExprSchemable, Operator,
        expr::Placeholder,
        planner::{ExprPlanner, PlannerResult, RawBinaryExpr},
    },
    sql::sqlparser::ast::BinaryOperator,
};

use crate::{
    error::{SqlError, SqlState},
    query::{
        failure::external,
        functions::{arithmetic, cast, fields, standard, temporal},
        types::{self, Family},
    },
    types::{PgType, arrow as mapping},
};

/// The planner hook.
#[derive(Debug)]
pub struct PgOperators;

impl ExprPlanner for PgOperators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let Some(operator) = operator(&expr.op) else { return Ok(PlannerResult::Original(expr)) };
        plan(operator, expr.left, expr.right, schema).map(PlannerResult::Planned)
    }

    fn plan_extract(&self, arguments: Vec<Expr>) -> Result<PlannerResult<Vec<Expr>>> {
        Ok(PlannerResult::Planned(standard::function(fields::EXTRACT)?.call(arguments)))
    }
}

/// DataFusion's operator for the parser's, where PostgreSQL has it too.
pub fn operator(op: &BinaryOperator) -> Option<Operator> {
    Some(match op {
        BinaryOperator::Gt => Operator::Gt,
        BinaryOperator::GtEq => Operator::GtEq,
        BinaryOperator::Lt => Operator::Lt,
        BinaryOperator::LtEq => Operator::LtEq,
        BinaryOperator::Eq => Operator::Eq,
        BinaryOperator::NotEq => Operator::NotEq,
        BinaryOperator::Plus => Operator::Plus,
        BinaryOperator::Minus => Operator::Minus,
        BinaryOperator::Multiply => Operator::Multiply,
        BinaryOperator::Divide => Operator::Divide,
        BinaryOperator::Modulo => Operator::Modulo,
        BinaryOperator::And => Operator::And,
        BinaryOperator::Or => Operator::Or,
        BinaryOperator::StringConcat => Operator::StringConcat,
        BinaryOperator::PGRegexMatch => Operator::RegexMatch,
        BinaryOperator::PGRegexIMatch => Operator::RegexIMatch,
        BinaryOperator::PGRegexNotMatch => Operator::RegexNotMatch,
        BinaryOperator::PGRegexNotIMatch => Operator::RegexNotIMatch,
        BinaryOperator::PGLikeMatch => Operator::LikeMatch,
        BinaryOperator::PGNotLikeMatch => Operator::NotLikeMatch,
        BinaryOperator::PGILikeMatch => Operator::ILikeMatch,
        BinaryOperator::PGNotILikeMatch => Operator::NotILikeMatch,
        _ => return None,
    })
}

/// `left op right`.
pub fn plan(op: Operator, left: Expr, right: Expr, schema: &DFSchema) -> Result<Expr> {
    let (left, right) = settle(op, left, right, schema)?;
    let (left_type, right_type) = (left.get_type(schema)?, right.get_type(schema)?);
    match op {
        Operator::And | Operator::Or => {
            for (side, data_type) in [(&left, &left_type), (&right, &right_type)] {
                if !matches!(data_type, DataType::Boolean | DataType::Null) {
                    return Err(external(not_boolean(op, side, schema)));
                }
            }
            Ok(binary(left, op, right))
        }
        Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide | Operator::Modulo => {
            arithmetic_expr(op, left, right, &left_type, &right_type)
                .unwrap_or_else(|| Err(no_operator(op, &left_type, &right_type)))
        }
        Operator::StringConcat => concat(left, right, &left_type, &right_type),
        op if op.supports_propagation() || is_comparison(op) => {
            if comparable(&left_type, &right_type) {
                Ok(binary(beside(left, &left_type, &right_type), op, beside(right, &right_type, &left_type)))
            } else {
                Err(no_operator(op, &left_type, &right_type))
            }
        }
        _ => {
            if [&left_type, &right_type].iter().all(|t| matches!(types::family(t), Family::Text | Family::Unknown)) {
                Ok(binary(left, op, right))
            } else {
                Err(no_operator(op, &left_type, &right_type))
            }
        }
    }
}

fn binary(left: Expr, op: Operator, right: Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)))
}

/// An operand as it meets one of type `other` in a comparison: a number beside a float is double precision, a date or
/// time beside a wider one becomes that.
pub fn beside(expr: Expr, data_type: &DataType, other: &DataType) -> Expr {
    let (own, other) = (types::family(data_type), types::family(other));
    match (own, other) {
        (Family::Integer | Family::Decimal, Family::Float) => cast::call(expr, data_type, PgType::Float8.plain()),
        (Family::Date, Family::Timestamp) => cast::call(expr, data_type, PgType::Timestamp.plain()),
        (Family::Date | Family::Timestamp, Family::TimestampTz) => {
            cast::call(expr, data_type, PgType::TimestampTz.plain())
        }
        _ => expr,
    }
}

fn is_comparison(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

/// Gives operands of unknown type their type.
fn settle(op: Operator, left: Expr, right: Expr, schema: &DFSchema) -> Result<(Expr, Expr)> {
    let (left_field, right_field) = (left.to_field(schema)?.1, right.to_field(schema)?.1);
    let unknown = |field: &FieldRef| field.data_type() == &DataType::Null;
    Ok(match (unknown(&left_field), unknown(&right_field)) {
        (false, false) => (left, right),
        (true, false) => (assign(left, &for_unknown(op, &right_field))?, right),
        (false, true) => {
            let field = for_unknown(op, &left_field);
            (left, assign(right, &field)?)
        }
        (true, true) => {
            let field = match op {
                Operator::And | Operator::Or => types::field(DataType::Boolean),
                Operator::Plus | Operator::Minus | Operator::Multiply | Operator::Divide | Operator::Modulo => {
                    return Err(external(SqlError::new(
                        SqlState("42725"),
                        format!("operator is not unique: unknown {op} unknown"),
                    )));
                }
                _ => types::text_field(),
            };
            (assign(left, &field)?, assign(right, &field)?)
        }
    })
}

/// The type an unknown operand takes beside one of type `other`.
fn for_unknown(op: Operator, other: &FieldRef) -> FieldRef {
    match (op, types::family(other.data_type())) {
        (Operator::And | Operator::Or, _) => types::field(DataType::Boolean),
        (Operator::StringConcat, Family::Bytes) => types::field(DataType::Binary),
        (Operator::StringConcat, _) => types::text_field(),
        // now() - '1 day': PostgreSQL resolves an unknown beside a date or time to an interval for + only when
        // nothing else fits; timestamp - unknown prefers the same type, + can only be an interval.
        (Operator::Plus, Family::Timestamp | Family::TimestampTz) => types::field(types::INTERVAL),
        (Operator::Plus | Operator::Minus, Family::Date) => match op {
            Operator::Plus => types::field(types::INTERVAL),
            _ => types::field(DataType::Date32),
        },
        // char(n) compares without trailing blanks, which the literal loses when it becomes one.
        (_, Family::Text) if is_blank_padded(other) => types::pg_field(PgType::Bpchar.plain()),
        (_, Family::Text) => types::text_field(),
        _ => Arc::new(other.as_ref().clone().with_name("").with_nullable(true)),
    }
}

fn is_blank_padded(field: &FieldRef) -> bool {
    mapping::column_type(field).is_ok_and(|known| known.pg_type == PgType::Bpchar)
}

/// Gives the unknown placeholders and literals inside `expr` that decide its type the type of `field`.
pub fn assign(expr: Expr, field: &FieldRef) -> Result<Expr> {
    let assigned = expr.transform_down(|expr| match expr {
        Expr::Placeholder(Placeholder { id, field: None }) => {
            Ok(Transformed::yes(Expr::Placeholder(Placeholder::new_with_field(id, Some(types::unnamed(field))))))
        }
        Expr::Literal(ScalarValue::Null, metadata) => {
            Ok(Transformed::yes(Expr::Literal(ScalarValue::try_from(field.data_type())?, metadata)))
        }
        // Branches take the type; conditions and arguments of other functions have their own.
        Expr::Case(mut case) => {
            for (_, then) in &mut case.when_then_expr {
                **then = assign(std::mem::take(then.as_mut()), field)?;
            }
            if let Some(otherwise) = &mut case.else_expr {
                **otherwise = assign(std::mem::take(otherwise.as_mut()), field)?;
            }
            Ok(Transformed::new(Expr::Case(case), true, TreeNodeRecursion::Jump))
        }
        Expr::Alias(alias) => Ok(Transformed::no(Expr::Alias(alias))),
        Expr::ScalarFunction(function) if matches!(function.name(), "coalesce" | "nullif" | "greatest" | "least") => {
            Ok(Transformed::no(Expr::ScalarFunction(function)))
        }
        other => Ok(Transformed::new(other, false, TreeNodeRecursion::Jump)),
    })?;
    Ok(assigned.data)
}

fn arithmetic_expr(
    op: Operator,
    left: Expr,
    right: Expr,
    left_type: &DataType,
    right_type: &DataType,
) -> Option<Result<Expr>> {
    let (from, to) = (types::family(left_type), types::family(right_type));
    if from.is_number() && to.is_number() {
        return Some(arithmetic::call(op, left, right, left_type, right_type));
    }
    temporal::call(op, left, right, from, to).map(Ok)
}

/// `||`: text on both sides, NULL when one is.
fn concat(left: Expr, right: Expr, left_type: &DataType, right_type: &DataType) -> Result<Expr> {
    if [left_type, right_type].iter().all(|t| types::family(t) == Family::Bytes) {
        return Ok(standard::function("byteacat")?.call(vec![left, right]));
    }
    let one_is_text = [left_type, right_type].iter().any(|t| types::family(t) == Family::Text);
    let lists = [left_type, right_type].iter().any(|t| types::family(t) == Family::Other);
    if !one_is_text || lists {
        return Err(no_operator(Operator::StringConcat, left_type, right_type));
    }
    let as_text = |expr: Expr, data_type: &DataType| match types::family(data_type) {
        Family::Text => expr,
        _ => cast::call(expr, data_type, types::text_type()),
    };
    Ok(binary(as_text(left, left_type), Operator::StringConcat, as_text(right, right_type)))
}

/// PostgreSQL compares values of these two types.
pub fn comparable(left: &DataType, right: &DataType) -> bool {
    use Family as F;
    let (from, to) = (types::family(left), types::family(right));
    match (from, to) {
        (F::Unknown, _) | (_, F::Unknown) => true,
        (F::Integer | F::Decimal | F::Float, F::Integer | F::Decimal | F::Float) => true,
        (F::Integer, F::Oid) | (F::Oid, F::Integer) => true,
        (F::Date | F::Timestamp | F::TimestampTz, F::Date | F::Timestamp | F::TimestampTz) => true,
        (F::Other, F::Other) => left == right,
        _ => from == to,
    }
}

fn no_operator(op: Operator, left: &DataType, right: &DataType) -> DataFusionError {
    let sign = match op {
        Operator::NotEq => "<>".to_owned(),
        other => other.to_string(),
    };
    external(
        SqlError::new(
            SqlState::UNDEFINED_FUNCTION,
            format!("operator does not exist: {} {sign} {}", types::sql_name(left), types::sql_name(right)),
        )
        .with_hint("No operator matches the given name and argument types. You might need to add explicit type casts."),
    )
}

fn not_boolean(op: Operator, side: &Expr, schema: &DFSchema) -> SqlError {
    let shown = side.get_type(schema).map(|t| types::sql_name(&t)).unwrap_or_else(|_| "unknown".into());
    SqlError::new(SqlState::DATATYPE_MISMATCH, format!("argument of {op} must be type boolean, not type {shown}"))
}

/// A field without a name, for placeholders.
pub fn plain(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("", data_type, true))
}
