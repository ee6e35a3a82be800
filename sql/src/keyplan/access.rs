//! Which keys a WHERE clause asks for. PURE.
//!
//! ```text
//!   k = 5                        one point
//!   a = 1 AND b IN (2, 3)        two points of the key (a, b)
//!   a = 1 AND b >= 5 AND v > 0   a range of the key (a, b), and a filter
//! ```
//!
//! Where the primary key has no points a secondary index may: every column of a unique one fixed, or the first ones of any.

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
    /// The secondary index whose keys these are, by its place in the table's; `None` for the table's own.
    pub index: Option<usize>,
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
    let primary = by_primary(compiler, table, &conjuncts);
    let narrow = match &primary {
        Ok(Selection { access: Access::Points(_), .. }) => true,
        Ok(Selection { access: Access::Range { prefix, low, high }, .. }) => {
            !prefix.is_empty() || (low.is_some() && high.is_some())
        }
        Err(_) => false,
    };
    if narrow || matches!(primary, Err(Refusal::Error(_))) || conjuncts.is_empty() {
        return primary;
    }
    match by_index(compiler, table, &conjuncts) {
        Ok(Some(found)) => Ok(found),
        Ok(None) | Err(Refusal::Unknown) => primary,
        Err(error) => Err(error),
    }
}

fn by_primary(compiler: &mut Compiler<'_>, table: &TableDescriptor, conjuncts: &[&Expr]) -> Result<Selection, Refusal> {
    let mut bounds: Vec<ColumnBounds> = table.key.iter().map(|_| ColumnBounds::default()).collect();
    let mut filters: Vec<Scalar> = Vec::new();
    for conjunct in conjuncts {
        if !bind(compiler, table, &table.key, conjunct, &mut bounds)? {
            filters.push(condition(compiler, conjunct)?);
        }
    }
    let access = access(bounds)?;
    let filter = filters.into_iter().reduce(|a, b| Scalar::And(Box::new(a), Box::new(b)));
    Ok(Selection { index: None, access, filter })
}

fn condition(compiler: &mut Compiler<'_>, conjunct: &Expr) -> Result<Scalar, Refusal> {
    let filter = compiler.expr(conjunct)?;
    if filter.column_type.pg_type != PgType::Bool {
        return Err(Refusal::Unknown);
    }
    Ok(filter.scalar)
}

/// The index that narrows most. All conditions are checked of the rows again.
fn by_index(
    compiler: &mut Compiler<'_>,
    table: &TableDescriptor,
    conjuncts: &[&Expr],
) -> Result<Option<Selection>, Refusal> {
    let mut best: Option<((bool, usize, usize), Selection)> = None;
    for (place, index) in table.indexes.iter().enumerate().filter(|(_, index)| index.public) {
        let key: Vec<usize> = index.columns.iter().map(|column| column.at).collect();
        let mut bounds: Vec<ColumnBounds> = key.iter().map(|_| ColumnBounds::default()).collect();
        let mut filters = Vec::with_capacity(conjuncts.len());
        for conjunct in conjuncts {
            bind(compiler, table, &key, conjunct, &mut bounds)?;
            filters.push(condition(compiler, conjunct)?);
        }
        let Some((rank, access)) = index_access(bounds, index.is_strict()) else { continue };
        if best.as_ref().is_none_or(|(known, _)| *known < rank) {
            let filter = filters.into_iter().reduce(|a, b| Scalar::And(Box::new(a), Box::new(b)));
            best = Some((rank, Selection { index: Some(place), access, filter }));
        }
    }
    Ok(best.map(|(_, selection)| selection))
}

/// What bounds of an index's columns say, and how well they narrow: a point, columns fixed, sides of a range. `None` when not well enough.
fn index_access(bounds: Vec<ColumnBounds>, unique: bool) -> Option<((bool, usize, usize), Access)> {
    let single = |column: &ColumnBounds| column.equal.as_ref().is_some_and(|values| values.len() == 1);
    let width = bounds.len();
    let fixed = bounds.iter().take_while(|column| single(column)).count();
    let mut bounds = bounds.into_iter();
    let prefix: Vec<KeyValue> =
        bounds.by_ref().take(fixed).flat_map(|column| column.equal.unwrap_or_default()).collect();
    if fixed == width && unique {
        return Some(((true, fixed, 0), Access::Points([prefix].into())));
    }
    let next = bounds.next().unwrap_or_default();
    let sides = usize::from(next.low.is_some()) + usize::from(next.high.is_some());
    if fixed == 0 && sides < 2 {
        return None;
    }
    Some(((false, fixed, sides), Access::Range { prefix, low: next.low, high: next.high }))
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
    key: &[usize],
    conjunct: &Expr,
    bounds: &mut [ColumnBounds],
) -> Result<bool, Refusal> {
    match conjunct {
        Expr::InList { expr, list, negated: false } if list.len() <= MAX_POINTS => {
            let column = compiler.expr(expr)?;
            let Some(at) = key_column(key, &column) else { return Err(Refusal::Unknown) };
            let mut values = Vec::with_capacity(list.len());
            for item in list {
                let probe =
                    Expr::BinaryOp { left: expr.clone(), op: BinaryOperator::Eq, right: Box::new(item.clone()) };
                let Scalar::Compare(_, left, right) = compiler.expr(&probe)?.scalar else {
                    return Err(Refusal::Unknown);
                };
                let Some((value, _)) = key_value(table, key[at], *left, *right) else { return Err(Refusal::Unknown) };
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
            let found: Option<Vec<_>> = parts.into_iter().map(|part| bound(table, key, part)).collect();
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

fn key_column(key: &[usize], expr: &Typed) -> Option<usize> {
    let Scalar::Column(column) = expr.scalar else { return None };
    key.iter().position(|at| *at == column)
}

/// `key column comparison constant`, either way round.
fn bound(table: &TableDescriptor, key: &[usize], scalar: Scalar) -> Option<(usize, Comparison, KeyValue)> {
    let Scalar::Compare(comparison, left, right) = scalar else { return None };
    if comparison == Comparison::NotEqual {
        return None;
    }
    let at = [&left, &right].into_iter().find_map(|side| match stripped(side) {
        Scalar::Column(column) => key.iter().position(|at| at == column),
        _ => None,
    })?;
    let widened = [&left, &right].into_iter().any(|side| {
        matches!(&**side, Scalar::Cast { to, .. } if to.pg_type.is_integer() && matches!(stripped(side), Scalar::Column(_)))
    });
    // A value that does not fit the column's type says nothing simple about an inequality.
    if comparison != Comparison::Equal && widened {
        return None;
    }
    let (value, mirrored) = key_value(table, key[at], *left, *right)?;
    Some((at, if mirrored { comparison.mirrored() } else { comparison }, value))
}

/// A column, maybe widened to meet the other side.
fn stripped(scalar: &Scalar) -> &Scalar {
    match scalar {
        Scalar::Cast { input, .. } if matches!(**input, Scalar::Column(_)) => input,
        other => other,
    }
}

/// The constant that the column at `position` is compared with, and whether it stood on the left.
fn key_value(table: &TableDescriptor, position: usize, left: Scalar, right: Scalar) -> Option<(KeyValue, bool)> {
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
