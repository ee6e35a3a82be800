//! Which keys a WHERE clause asks for. PURE.
//!
//! ```text
//!   k = 5                        one point
//!   a = 1 AND b IN (2, 3)        two points of the key (a, b)
//!   a = 1 AND b >= 5 AND v > 0   a range of the key (a, b), and a filter
//! ```

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr};

use crate::{
    catalog::TableDescriptor,
    error::{SqlResult, SqlState},
    eval::{Comparison, Compiler, Env, Refusal, Scalar, Typed},
    types::{ColumnType, Datum, PgType},
};

/// Most points one statement asks for; more are read as a table.
const MAX_POINTS: usize = 1000;

/// A value that a key column is compared with, cast to the column's type when it runs.
#[derive(Clone, Debug)]
pub struct KeyValue {
    scalar: Scalar,
    to: ColumnType,
}

/// What a key value is in one run.
pub enum KeyDatum {
    /// A value of the column's type.
    Value(Datum),
    /// NULL, or a number the column's type cannot hold: no row equals it.
    Nothing,
}

impl KeyValue {
    /// Its value.
    pub fn eval(&self, env: &Env<'_>) -> SqlResult<KeyDatum> {
        let datum = self.scalar.eval(env)?;
        if datum.is_null() {
            return Ok(KeyDatum::Nothing);
        }
        if datum.pg_type() == self.to.pg_type {
            return Ok(KeyDatum::Value(datum));
        }
        match crate::eval::cast::cast(datum, self.to.pg_type.plain(), true, env.settings) {
            Ok(datum) => Ok(KeyDatum::Value(datum)),
            Err(error) if error.sqlstate == SqlState::NUMERIC_VALUE_OUT_OF_RANGE => Ok(KeyDatum::Nothing),
            Err(error) => Err(error),
        }
    }
}

/// One side of a range over the key column behind the equal ones.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The border.
    pub value: KeyValue,
    /// Belongs to the range.
    pub inclusive: bool,
}

/// The rows a statement asks for.
#[derive(Clone, Debug)]
pub enum Access {
    /// These keys: a value for each key column.
    Points(Arc<[Vec<KeyValue>]>),
    /// All keys that begin with `prefix`, the next column between the bounds.
    Range {
        /// Values of the first key columns.
        prefix: Vec<KeyValue>,
        /// From.
        low: Option<Bound>,
        /// To.
        high: Option<Bound>,
    },
}

/// An access and what is checked of each row besides.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Which keys.
    pub access: Access,
    /// The rest of the WHERE clause.
    pub filter: Option<Scalar>,
}

/// What the conjuncts say about one key column.
#[derive(Default)]
struct ColumnBounds {
    equal: Option<Vec<KeyValue>>,
    low: Option<Bound>,
    high: Option<Bound>,
}

/// Takes a WHERE clause apart; refuses when it holds something that does not compile.
pub fn select(
    compiler: &mut Compiler<'_>,
    table: &TableDescriptor,
    selection: Option<&Expr>,
) -> Result<Selection, Refusal> {
    let mut conjuncts = Vec::new();
    if let Some(selection) = selection {
        split(selection, &mut conjuncts);
    }
    let mut bounds: Vec<ColumnBounds> = table.key.iter().map(|_| ColumnBounds::default()).collect();
    let mut filters: Vec<Scalar> = Vec::new();
    for conjunct in conjuncts {
        if !bind(compiler, table, conjunct, &mut bounds)? {
            let filter = compiler.expr(conjunct)?;
            if filter.column_type.pg_type != PgType::Bool {
                return Err(Refusal::Unknown);
            }
            filters.push(filter.scalar);
        }
    }
    let access = access(bounds)?;
    let filter = filters.into_iter().reduce(|a, b| Scalar::And(Box::new(a), Box::new(b)));
    Ok(Selection { access, filter })
}

fn split<'a>(expr: &'a Expr, out: &mut Vec<&'a Expr>) {
    match expr {
        Expr::Nested(inner) => split(inner, out),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            split(left, out);
            split(right, out);
        }
        other => out.push(other),
    }
}

/// A conjunct that bounds a key column; `false` when it has to be a filter.
fn bind(
    compiler: &mut Compiler<'_>,
    table: &TableDescriptor,
    conjunct: &Expr,
    bounds: &mut [ColumnBounds],
) -> Result<bool, Refusal> {
    match conjunct {
        Expr::InList { expr, list, negated: false } if list.len() <= MAX_POINTS => {
            let column = compiler.expr(expr)?;
            let Some(at) = key_column(table, &column) else { return Err(Refusal::Unknown) };
            let mut values = Vec::with_capacity(list.len());
            for item in list {
                let probe =
                    Expr::BinaryOp { left: expr.clone(), op: BinaryOperator::Eq, right: Box::new(item.clone()) };
                let Scalar::Compare(_, left, right) = compiler.expr(&probe)?.scalar else {
                    return Err(Refusal::Unknown);
                };
                let Some((value, _)) = key_value(table, at, *left, *right) else { return Err(Refusal::Unknown) };
                values.push(value);
            }
            if bounds[at].equal.is_some() {
                return Err(Refusal::Unknown);
            }
            bounds[at].equal = Some(values);
            Ok(true)
        }
        Expr::BinaryOp { .. } | Expr::Between { .. } => {
            let compiled = compiler.expr(conjunct)?.scalar;
            let parts = match compiled {
                Scalar::And(a, b) => vec![*a, *b],
                other => vec![other],
            };
            let found: Option<Vec<_>> = parts.into_iter().map(|part| bound(table, part)).collect();
            let Some(found) = found else { return Ok(false) };
            // Two bounds on one side: the second is a filter (and for BETWEEN both are).
            let taken = |(at, comparison, _): &(usize, Comparison, KeyValue)| {
                let known = &bounds[*at];
                match comparison {
                    Comparison::Equal => known.equal.is_some(),
                    Comparison::Greater | Comparison::GreaterOrEqual => known.low.is_some(),
                    _ => known.high.is_some(),
                }
            };
            if found.iter().any(taken) {
                return Ok(false);
            }
            for (at, comparison, value) in found {
                let inclusive = matches!(comparison, Comparison::GreaterOrEqual | Comparison::LessOrEqual);
                match comparison {
                    Comparison::Equal => bounds[at].equal = Some(vec![value]),
                    Comparison::Greater | Comparison::GreaterOrEqual => {
                        bounds[at].low = Some(Bound { value, inclusive });
                    }
                    _ => bounds[at].high = Some(Bound { value, inclusive }),
                }
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn key_column(table: &TableDescriptor, expr: &Typed) -> Option<usize> {
    let Scalar::Column(column) = expr.scalar else { return None };
    table.key.iter().position(|at| *at == column)
}

/// `key column comparison constant`, either way round.
fn bound(table: &TableDescriptor, scalar: Scalar) -> Option<(usize, Comparison, KeyValue)> {
    let Scalar::Compare(comparison, left, right) = scalar else { return None };
    if comparison == Comparison::NotEqual {
        return None;
    }
    let at = [&left, &right].into_iter().find_map(|side| match stripped(side) {
        Scalar::Column(column) => table.key.iter().position(|at| at == column),
        _ => None,
    })?;
    let widened = [&left, &right].into_iter().any(|side| {
        matches!(&**side, Scalar::Cast { to, .. } if to.pg_type.is_integer() && matches!(stripped(side), Scalar::Column(_)))
    });
    // A value that does not fit the column's type says nothing simple about an inequality.
    if comparison != Comparison::Equal && widened {
        return None;
    }
    let (value, mirrored) = key_value(table, at, *left, *right)?;
    Some((at, if mirrored { comparison.mirrored() } else { comparison }, value))
}

/// A column, maybe widened to meet the other side.
fn stripped(scalar: &Scalar) -> &Scalar {
    match scalar {
        Scalar::Cast { input, .. } if matches!(**input, Scalar::Column(_)) => input,
        other => other,
    }
}

/// The constant that key column `at` is compared with, and whether it stood on the left.
fn key_value(table: &TableDescriptor, at: usize, left: Scalar, right: Scalar) -> Option<(KeyValue, bool)> {
    let position = table.key[at];
    let is_column = |scalar: &Scalar| matches!(stripped(scalar), Scalar::Column(column) if *column == position);
    let (column, constant, mirrored) = if is_column(&left) {
        (left, right, false)
    } else if is_column(&right) {
        (right, left, true)
    } else {
        return None;
    };
    if !constant.is_constant() {
        return None;
    }
    let to = table.columns[position].column_type;
    if let Scalar::Cast { to: widened, .. } = &column {
        // Integers of different widths meet in the wider one; anything else changes what is equal.
        let integers = widened.pg_type.is_integer() && to.pg_type.is_integer();
        let texts = widened.pg_type.is_text() && to.pg_type.is_text();
        if !integers && !texts {
            return None;
        }
    }
    Some((KeyValue { scalar: constant, to }, mirrored))
}

fn access(bounds: Vec<ColumnBounds>) -> Result<Access, Refusal> {
    let width = bounds.len();
    let equal = bounds.iter().take_while(|column| column.equal.is_some()).count();
    if equal == width {
        if bounds.iter().any(|column| column.low.is_some() || column.high.is_some()) {
            return Err(Refusal::Unknown);
        }
        let mut points: Vec<Vec<KeyValue>> = vec![Vec::with_capacity(width)];
        for column in bounds {
            let values = column.equal.unwrap_or_default();
            if points.len() * values.len() > MAX_POINTS {
                return Err(Refusal::Unknown);
            }
            points = points
                .into_iter()
                .flat_map(|point| {
                    values.iter().map(move |value| {
                        let mut longer = point.clone();
                        longer.push(value.clone());
                        longer
                    })
                })
                .collect();
        }
        return Ok(Access::Points(points.into()));
    }
    let mut bounds = bounds.into_iter();
    let mut prefix = Vec::with_capacity(equal);
    for column in bounds.by_ref().take(equal) {
        let mut values = column.equal.unwrap_or_default();
        if values.len() != 1 || column.low.is_some() || column.high.is_some() {
            return Err(Refusal::Unknown);
        }
        prefix.append(&mut values);
    }
    let next = bounds.next().unwrap_or_default();
    // What is said about later columns would have to be a filter.
    if bounds.any(|column| column.equal.is_some() || column.low.is_some() || column.high.is_some()) {
        return Err(Refusal::Unknown);
    }
    Ok(Access::Range { prefix, low: next.low, high: next.high })
}
