//! Expressions over datums: what DEFAULT, VALUES, RETURNING and key plans need. PURE.
//!
//! ```text
//!   sqlparser's Expr ──compile.rs: types, unknown literals, parameters──▶ Scalar ──eval──▶ Datum
//! ```
//!
//! Literals, parameters, columns, `+ - * / %`, comparisons, AND OR NOT, IS NULL, casts, CURRENT_TIMESTAMP. What it does not know
//! it refuses to compile, and the statement goes the general way through `query`. What it knows means the same there: numeric
//! division, whose scale DataFusion fixes per column, is left to that side for this reason.

pub mod arith;
pub mod cast;
pub mod compile;

pub use compile::{Compiler, ParamTypes, Refusal, Typed};

use std::cmp::Ordering;

use crate::{
    error::{SqlError, SqlResult},
    types::{ColumnType, Datum, FormatSettings, PgType},
};

/// A compiled expression; every operand has been cast to what its operator takes.
#[derive(Clone, Debug)]
pub enum Scalar {
    /// A value.
    Literal(Datum),
    /// A parameter, counted from 0.
    Param(usize),
    /// A column of the row, by position.
    Column(usize),
    /// When the transaction began, as timestamptz.
    Now,
    /// Two numbers of one type.
    Arithmetic(arith::Operator, Box<Scalar>, Box<Scalar>),
    /// A number with the other sign.
    Negate(Box<Scalar>),
    /// Two values of one type.
    Compare(Comparison, Box<Scalar>, Box<Scalar>),
    /// AND
    And(Box<Scalar>, Box<Scalar>),
    /// OR
    Or(Box<Scalar>, Box<Scalar>),
    /// NOT
    Not(Box<Scalar>),
    /// IS NULL
    IsNull(Box<Scalar>),
    /// To another type; `explicit` cuts text off silently.
    Cast {
        /// What is cast.
        input: Box<Scalar>,
        /// To what.
        to: ColumnType,
        /// Written as a cast, not implied by an assignment.
        explicit: bool,
    },
}

/// `= <> < <= > >=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// =
    Equal,
    /// <>
    NotEqual,
    /// <
    Less,
    /// <=
    LessOrEqual,
    /// >
    Greater,
    /// >=
    GreaterOrEqual,
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Comparison::Equal => order.is_eq(),
            Comparison::NotEqual => order.is_ne(),
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
            Comparison::Greater => order.is_gt(),
            Comparison::GreaterOrEqual => order.is_ge(),
        }
    }
    /// With the operands swapped.
    pub fn mirrored(self) -> Self {
        match self {
            Comparison::Less => Comparison::Greater,
            Comparison::LessOrEqual => Comparison::GreaterOrEqual,
            Comparison::Greater => Comparison::Less,
            Comparison::GreaterOrEqual => Comparison::LessOrEqual,
            same => same,
        }
    }
}

/// What an expression reads.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// The row; empty where there is none.
    pub row: &'a [Datum],
    /// The parameters, each of its type.
    pub params: &'a [Datum],
    /// When the transaction began, in microseconds since 1970 UTC.
    pub now_us: i64,
    /// Of the session.
    pub settings: &'a FormatSettings,
}

impl Scalar {
    /// Its value; 22003, 22012 and the errors of casts.
    pub fn eval(&self, env: &Env<'_>) -> SqlResult<Datum> {
        Ok(match self {
            Scalar::Literal(datum) => datum.clone(),
            Scalar::Param(at) => env
                .params
                .get(*at)
                .cloned()
                .ok_or_else(|| SqlError::internal(format!("parameter ${} has no value", at + 1)))?,
            Scalar::Column(at) => env.row[*at].clone(),
            Scalar::Now => Datum::TimestampTz(env.now_us),
            Scalar::Arithmetic(operator, left, right) => operator.apply(&left.eval(env)?, &right.eval(env)?)?,
            Scalar::Negate(input) => arith::negate(&input.eval(env)?)?,
            Scalar::Compare(comparison, left, right) => match left.eval(env)?.compare(&right.eval(env)?) {
                Some(order) => Datum::Bool(comparison.holds(order)),
                None => Datum::Null,
            },
            Scalar::And(left, right) => match (left.truth(env)?, right) {
                (Some(false), _) => Datum::Bool(false),
                (left, right) => match (left, right.truth(env)?) {
                    (_, Some(false)) => Datum::Bool(false),
                    (Some(true), Some(true)) => Datum::Bool(true),
                    _ => Datum::Null,
                },
            },
            Scalar::Or(left, right) => match (left.truth(env)?, right) {
                (Some(true), _) => Datum::Bool(true),
                (left, right) => match (left, right.truth(env)?) {
                    (_, Some(true)) => Datum::Bool(true),
                    (Some(false), Some(false)) => Datum::Bool(false),
                    _ => Datum::Null,
                },
            },
            Scalar::Not(input) => input.truth(env)?.map_or(Datum::Null, |truth| Datum::Bool(!truth)),
            Scalar::IsNull(input) => Datum::Bool(input.eval(env)?.is_null()),
            Scalar::Cast { input, to, explicit } => cast::cast(input.eval(env)?, *to, *explicit, env.settings)?,
        })
    }
    /// Its value as SQL's three-valued truth.
    pub fn truth(&self, env: &Env<'_>) -> SqlResult<Option<bool>> {
        match self.eval(env)? {
            Datum::Bool(truth) => Ok(Some(truth)),
            Datum::Null => Ok(None),
            other => Err(SqlError::internal(format!("a condition gave a {}", other.pg_type().sql_name()))),
        }
    }
    /// Reads no column.
    pub fn is_constant(&self) -> bool {
        match self {
            Scalar::Literal(_) | Scalar::Param(_) | Scalar::Now => true,
            Scalar::Column(_) => false,
            Scalar::Negate(a) | Scalar::Not(a) | Scalar::IsNull(a) | Scalar::Cast { input: a, .. } => a.is_constant(),
            Scalar::Arithmetic(_, a, b) | Scalar::Compare(_, a, b) | Scalar::And(a, b) | Scalar::Or(a, b) => {
                a.is_constant() && b.is_constant()
            }
        }
    }
}

/// The type two numbers are cast to before an operator meets them, as PostgreSQL's operator tables say.
pub fn common_number(left: PgType, right: PgType) -> Option<PgType> {
    use PgType as T;
    if !left.is_number() || !right.is_number() {
        return None;
    }
    Some(match (left, right) {
        (a, b) if a == b => a,
        (T::Float4 | T::Float8, _) | (_, T::Float4 | T::Float8) => T::Float8,
        (T::Numeric, _) | (_, T::Numeric) => T::Numeric,
        (T::Int8, _) | (_, T::Int8) => T::Int8,
        _ => T::Int4,
    })
}
