//! Which keys a statement's conditions leave: from `WHERE` to points and ranges of keys.
//!
//! ```text
//!   key (a, b, c)     a = 1 AND b IN (2, 3) AND c > 4     fixed: [a = 1], [b = 2 | b = 3]; range: c > 4
//!                     a = 1 AND c > 4                     fixed: [a = 1]               (c's condition can't bound keys)
//! ```
//!
//! [`analyse`] works on logical expressions when a statement is planned; the values are expressions without columns
//! that are computed when the plan runs ([`Compiled::spans`]). The conditions are checked again on the rows, so
//! what is not understood here costs time, never a wrong result.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::{DataType, Schema},
};
use bytes::{Bytes, BytesMut};
use datafusion::{
    catalog::Session,
    common::{
        DFSchema, Result,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{BinaryExpr, Expr, Operator, expr::InList},
    physical_expr::{PhysicalExpr, ScalarFunctionExpr},
};
use proto::KeyRange;

use super::access::Chosen;
use crate::{
    catalog::TableDescriptor,
    codec::{KeyForm, key::KeyColumn},
    error::{SqlError, SqlResult},
    query::{failure::external, run::HoleFunction},
    types::{Datum, PgType, arrow as mapping},
};

/// Most points or ranges that IN lists may multiply to; beyond, the last list bounds nothing.
pub const MAX_SPANS: usize = 1024;

/// One side of a range.
#[derive(Clone, Debug)]
pub struct Bound<E> {
    /// The value.
    pub value: E,
    /// Keys with this very value belong to the range.
    pub inclusive: bool,
}

/// What the conditions say about a table's key. `E` is a logical or a compiled expression.
#[derive(Clone, Debug)]
pub struct KeyBounds<E> {
    /// For the first columns of the key: the values it may have, one or several.
    pub fixed: Vec<Vec<E>>,
    /// For the next column: from where.
    pub lower: Option<Bound<E>>,
    /// For the next column: to where.
    pub upper: Option<Bound<E>>,
}

impl<E> KeyBounds<E> {
    /// No condition bounds the key: the whole table is read.
    pub fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.lower.is_none() && self.upper.is_none()
    }

    /// The same bounds over other expressions.
    pub fn map<F>(&self, mut f: impl FnMut(&E) -> Result<F>) -> Result<KeyBounds<F>> {
        let fixed = self.fixed.iter().map(|values| values.iter().map(&mut f).collect()).collect::<Result<_>>()?;
        let mut bound = |bound: &Option<Bound<E>>| {
            bound.as_ref().map(|b| Ok(Bound { value: f(&b.value)?, inclusive: b.inclusive })).transpose()
        };
        let (lower, upper): (Result<_>, Result<_>) = (bound(&self.lower), bound(&self.upper));
        Ok(KeyBounds { fixed, lower: lower?, upper: upper? })
    }
}

/// The condition compares the column with something that has no columns.
pub fn bounds_column(filter: &Expr, column: &str) -> bool {
    alternatives(filter, column).is_some() || ranges(filter, column).is_some()
}

/// Finds the bounds of a key in `filters`, which all hold.
pub fn analyse(filters: &[Expr], table: &TableDescriptor, form: &KeyForm) -> KeyBounds<Expr> {
    let conjuncts: Vec<&Expr> = filters.iter().flat_map(datafusion::logical_expr::utils::split_conjunction).collect();
    let mut bounds = KeyBounds { fixed: Vec::new(), lower: None, upper: None };
    let mut spans = 1;
    for (at, _) in form.columns() {
        let name = &table.columns[*at].name;
        let fixed = conjuncts
            .iter()
            .filter_map(|filter| alternatives(filter, name))
            .min_by_key(Vec::len)
            .filter(|values| values.len() * spans <= MAX_SPANS);
        if let Some(values) = fixed {
            spans *= values.len();
            bounds.fixed.push(values);
            continue;
        }
        for (lower, bound) in conjuncts.iter().flat_map(|filter| ranges(filter, name)) {
            let side = if lower { &mut bounds.lower } else { &mut bounds.upper };
            side.get_or_insert(bound);
        }
        break;
    }
    bounds
}

/// `column = value`, `column IN (…)`, or an OR of these over one column: the values.
fn alternatives(filter: &Expr, column: &str) -> Option<Vec<Expr>> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            if is_key_column(left, column) && is_constant(right) {
                Some(vec![right.as_ref().clone()])
            } else if is_key_column(right, column) && is_constant(left) {
                Some(vec![left.as_ref().clone()])
            } else {
                None
            }
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let mut values = alternatives(left, column)?;
            values.extend(alternatives(right, column)?);
            Some(values)
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            (is_key_column(expr, column) && list.iter().all(is_constant)).then(|| list.clone())
        }
        _ => None,
    }
}

/// `column < value` and the like: (is a lower bound, the bound).
fn ranges(filter: &Expr, column: &str) -> Option<(bool, Bound<Expr>)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    let (op, value) = if is_key_column(left, column) && is_constant(right) {
        (*op, right)
    } else if is_key_column(right, column) && is_constant(left) {
        (op.swap()?, left)
    } else {
        return None;
    };
    let (lower, inclusive) = match op {
        Operator::Gt => (true, false),
        Operator::GtEq => (true, true),
        Operator::Lt => (false, false),
        Operator::LtEq => (false, true),
        _ => return None,
    };
    Some((lower, Bound { value: value.as_ref().clone(), inclusive }))
}

/// The column itself, or the column as a wider integer, which orders the same.
fn is_key_column(expr: &Expr, column: &str) -> bool {
    match expr {
        Expr::Column(found) => found.name == column,
        Expr::Cast(cast) => {
            matches!(cast.field.data_type(), DataType::Int32 | DataType::Int64) && is_key_column(&cast.expr, column)
        }
        _ => false,
    }
}

/// Can be computed once per run: no columns, no subqueries, the same value for every row.
fn is_constant(expr: &Expr) -> bool {
    let mut constant = true;
    let walked = expr.apply(|node| {
        constant &= !matches!(
            node,
            Expr::Column(_)
                | Expr::OuterReferenceColumn(..)
                | Expr::ScalarSubquery(_)
                | Expr::InSubquery(_)
                | Expr::Exists(_)
                | Expr::AggregateFunction(_)
                | Expr::WindowFunction(_)
        );
        Ok(if constant { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    walked.is_ok() && constant && !expr.is_volatile()
}

/// Bounds whose values are compiled.
#[derive(Clone, Debug)]
pub struct Compiled {
    bounds: KeyBounds<Arc<dyn PhysicalExpr>>,
    form: Arc<KeyForm>,
    points: bool,
}

/// The keys to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spans {
    /// These keys, in key order, each once.
    Points(Vec<Bytes>),
    /// All keys of these ranges, in key order, not overlapping.
    Ranges(Vec<KeyRange>),
}

impl Compiled {
    /// Compiles the values of chosen bounds.
    pub fn new(chosen: &Chosen, state: &dyn Session) -> Result<Self> {
        let schema = DFSchema::empty();
        Ok(Compiled {
            bounds: chosen.bounds.map(|value| state.create_physical_expr(value.clone(), &schema))?,
            form: Arc::new(chosen.form.clone()),
            points: chosen.is_points(),
        })
    }

    /// The keys that are bounded.
    pub fn form(&self) -> &KeyForm {
        &self.form
    }

    /// The bounds, for EXPLAIN.
    pub fn bounds(&self) -> &KeyBounds<Arc<dyn PhysicalExpr>> {
        &self.bounds
    }

    /// They change within a run: with the rows that a subquery is looked up for.
    pub fn is_outer(&self) -> bool {
        let sides = [&self.bounds.lower, &self.bounds.upper].into_iter().flatten().map(|bound| &bound.value);
        let hole = |expr: &Arc<dyn PhysicalExpr>| {
            let function = expr.downcast_ref::<ScalarFunctionExpr>()?;
            (function.fun().inner().as_ref() as &dyn std::any::Any)
                .downcast_ref::<HoleFunction>()
                .map(HoleFunction::is_outer)
        };
        let mut values = self.bounds.fixed.iter().flatten().chain(sides);
        values.any(|value| value.exists(|expr| Ok(hole(expr) == Some(true))).unwrap_or(false))
    }

    /// The keys for the values of this run.
    pub fn spans(&self) -> Result<Spans> {
        self.compute().map_err(external)
    }

    fn compute(&self) -> SqlResult<Spans> {
        let mut prefixes: Vec<Vec<Datum>> = vec![Vec::new()];
        for (values, (_, column)) in self.bounds.fixed.iter().zip(self.form.columns()) {
            let mut next = Vec::with_capacity(prefixes.len() * values.len());
            for value in values {
                let Fitted::Value(datum) = fit(evaluate(value)?, column.pg_type)? else { continue };
                for prefix in &prefixes {
                    next.push(prefix.iter().cloned().chain([datum.clone()]).collect());
                }
            }
            prefixes = next;
        }
        let keys = prefixes.iter().map(|prefix| self.form.key_of(prefix)).collect::<SqlResult<BTreeSet<Bytes>>>()?;
        if self.points {
            return Ok(Spans::Points(keys.into_iter().collect()));
        }
        if self.bounds.is_empty() {
            return Ok(Spans::Ranges(vec![self.form.range()]));
        }
        let Some((_, column)) = self.form.columns().get(self.bounds.fixed.len()) else {
            let whole = |key: Bytes| KeyRange::new(key.clone(), prefix_end(&key));
            return Ok(Spans::Ranges(keys.into_iter().map(whole).collect()));
        };
        let side = |bound: &Option<Bound<Arc<dyn PhysicalExpr>>>| -> SqlResult<Option<(Fitted, bool)>> {
            let Some(bound) = bound else { return Ok(None) };
            Ok(Some((fit(evaluate(&bound.value)?, column.pg_type)?, bound.inclusive)))
        };
        let (lower, upper) = (side(&self.bounds.lower)?, side(&self.bounds.upper)?);
        let ranges = keys.into_iter().filter_map(|prefix| range(&prefix, &lower, &upper, *column)).collect();
        Ok(Spans::Ranges(ranges))
    }
}

/// A value beside the range of the column's type.
#[derive(Clone, Debug, PartialEq)]
pub enum Fitted {
    /// A value of the column's type.
    Value(Datum),
    /// Above all values of the type.
    Above,
    /// Below all values of the type.
    Below,
    /// NULL: no row compares with it.
    Nothing,
}

/// The key range of a prefix and the bounds of the column behind it, each with whether it belongs to the range; `None` when it is
/// empty. With a bound no NULL is in it.
pub fn range(
    prefix: &Bytes,
    lower: &Option<(Fitted, bool)>,
    upper: &Option<(Fitted, bool)>,
    column: KeyColumn,
) -> Option<KeyRange> {
    let with = |datum: &Datum| {
        let mut key = BytesMut::from(&prefix[..]);
        crate::codec::key::encode(datum, column, &mut key);
        key.freeze()
    };
    let bounded = lower.is_some() || upper.is_some();
    let values = if column.nullable && bounded { column.values_behind(prefix) } else { prefix.clone() };
    // Where the greatest come first the bounds change sides.
    let (first, last) = if column.descending { (upper, lower) } else { (lower, upper) };
    let open = |fitted: &Fitted, at_start: bool| match fitted {
        Fitted::Below => at_start != column.descending,
        Fitted::Above => at_start == column.descending,
        _ => false,
    };
    let start = match first {
        None => values.clone(),
        Some((Fitted::Value(value), true)) => with(value),
        Some((Fitted::Value(value), false)) => prefix_end(&with(value)),
        Some((other, _)) if open(other, true) => values.clone(),
        Some(_) => return None,
    };
    let end = match last {
        None => prefix_end(&values),
        Some((Fitted::Value(value), true)) => prefix_end(&with(value)),
        Some((Fitted::Value(value), false)) => with(value),
        Some((other, _)) if open(other, false) => prefix_end(&values),
        Some(_) => return None,
    };
    (end.is_empty() || start < end).then(|| KeyRange::new(start, end))
}

/// The first key behind all keys that start with `prefix`; empty when there is none.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = BytesMut::from(prefix);
    while let Some(last) = end.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            return end.freeze();
        }
        end.truncate(end.len() - 1);
    }
    Bytes::new()
}

/// Computes an expression without columns.
pub fn evaluate(expr: &Arc<dyn PhysicalExpr>) -> SqlResult<Datum> {
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)
        .map_err(|error| SqlError::internal(error.to_string()))?;
    let value =
        expr.evaluate(&row).and_then(|value| value.into_array(1)).map_err(crate::query::failure::from_datafusion)?;
    mapping::datum_at(&value, 0)
}

/// `datum` as a value of a key column; only integers may be of another type.
fn fit(datum: Datum, pg_type: PgType) -> SqlResult<Fitted> {
    if datum.is_null() {
        return Ok(Fitted::Nothing);
    }
    let limits = match pg_type {
        PgType::Int2 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        PgType::Int4 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    Ok(match (pg_type, datum.as_i64()) {
        (PgType::Int2 | PgType::Int4 | PgType::Int8, Some(value)) if value > limits.1 => Fitted::Above,
        (PgType::Int2 | PgType::Int4 | PgType::Int8, Some(value)) if value < limits.0 => Fitted::Below,
        (PgType::Int2, Some(value)) => Fitted::Value(Datum::Int2(value as i16)),
        (PgType::Int4, Some(value)) => Fitted::Value(Datum::Int4(value as i32)),
        (PgType::Int8, Some(value)) => Fitted::Value(Datum::Int8(value)),
        (PgType::Bpchar, _) => match datum {
            Datum::Text(text) => Fitted::Value(Datum::text(text.as_str().trim_end_matches(' '))),
            other => return Err(mismatch(&other, pg_type)),
        },
        (pg_type, _) if datum.pg_type() == pg_type || (pg_type.is_text() && matches!(datum, Datum::Text(_))) => {
            Fitted::Value(datum)
        }
        (pg_type, _) if pg_type.is_oid() && matches!(datum, Datum::Oid(_)) => Fitted::Value(datum),
        _ => return Err(mismatch(&datum, pg_type)),
    })
}

/// The type rules of comparisons make both sides one type, so this is a fault of ours.
fn mismatch(datum: &Datum, pg_type: PgType) -> SqlError {
    SqlError::internal(format!(
        "a key of type {} is compared with a {}",
        pg_type.sql_name(),
        datum.pg_type().sql_name()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys() {
        assert_eq!(prefix_end(b"a\xff"), Bytes::from_static(b"b"));
        assert_eq!(prefix_end(b"\xff\xff"), Bytes::new());
    }

    #[test]
    fn integers_beyond_the_columns_type_bound_nothing_or_everything() {
        assert_eq!(fit(Datum::Int8(1 << 40), PgType::Int4).unwrap(), Fitted::Above);
        assert_eq!(fit(Datum::Int8(-(1 << 40)), PgType::Int4).unwrap(), Fitted::Below);
        assert_eq!(fit(Datum::Null, PgType::Int4).unwrap(), Fitted::Nothing);
        let prefix = Bytes::from_static(b"p");
        let above = Some((Fitted::Above, true));
        let column = KeyColumn::primary(PgType::Int4);
        assert_eq!(range(&prefix, &above, &None, column), None);
        let whole = KeyRange::new(prefix.clone(), prefix_end(&prefix));
        assert_eq!(range(&prefix, &None, &above, column), Some(whole.clone()));
        let falling = KeyColumn { descending: true, ..column };
        assert_eq!(range(&prefix, &above, &None, falling), None);
        assert_eq!(range(&prefix, &None, &above, falling), Some(whole));
    }

    #[test]
    fn ranges_hold_the_values_between_their_bounds_and_no_null() {
        let prefix = Bytes::from_static(b"p");
        let key = |datum: &Datum, column: KeyColumn| {
            let mut key = BytesMut::from(&prefix[..]);
            crate::codec::key::encode(datum, column, &mut key);
            key.freeze()
        };
        for flags in 0..4 {
            let (descending, nulls_first) = (flags & 1 == 1, flags & 2 == 2);
            let column = KeyColumn { pg_type: PgType::Int4, nullable: true, descending, nulls_first };
            let bound = |value: i32, inclusive: bool| Some((Fitted::Value(Datum::Int4(value)), inclusive));
            let holds = |lower: &Option<(Fitted, bool)>, upper: &Option<(Fitted, bool)>| {
                let range = range(&prefix, lower, upper, column).unwrap();
                let inside: Vec<i32> =
                    (0..6).filter(|value| range.contains(&key(&Datum::Int4(*value), column))).collect();
                assert_eq!(range.contains(&key(&Datum::Null, column)), lower.is_none() && upper.is_none());
                inside
            };
            assert_eq!(holds(&bound(2, true), &bound(4, false)), [2, 3]);
            assert_eq!(holds(&bound(2, false), &None), [3, 4, 5]);
            assert_eq!(holds(&None, &bound(2, true)), [0, 1, 2]);
            assert_eq!(holds(&None, &None), [0, 1, 2, 3, 4, 5]);
        }
    }
}
