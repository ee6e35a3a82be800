//! Rows compared with rows: `(a, b) = (1, 2)`, `(a, b) < (c, d)`, `(a, b) IN ((1, 2), (3, 4))`, as comparisons of their columns.

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr};

use crate::error::{SqlError, SqlResult};

/// The comparison of the columns; `None` when `expr` compares no rows. 42601 for rows of different lengths.
pub fn comparison(expr: &Expr) -> SqlResult<Option<Expr>> {
    Ok(match expr {
        Expr::BinaryOp { left, op, right } => match (row(left), row(right)) {
            (Some(left), Some(right)) => compared(left, op, right)?,
            _ => None,
        },
        Expr::InList { expr, list, negated } => {
            let Some(left) = row(expr) else { return Ok(None) };
            let mut equal = Vec::with_capacity(list.len());
            for item in list {
                let Some(right) = row(item) else { return Ok(None) };
                check(left, right)?;
                equal.push(all_equal(left, right));
            }
            let any = joined(equal, &BinaryOperator::Or);
            any.map(|any| if *negated { negate(any) } else { any })
        }
        _ => None,
    })
}

/// `(a, b)` or `ROW(a, b)`.
fn row(expr: &Expr) -> Option<&[Expr]> {
    match expr {
        Expr::Tuple(values) => Some(values),
        _ => None,
    }
}

fn check(left: &[Expr], right: &[Expr]) -> SqlResult<()> {
    if left.len() == right.len() {
        Ok(())
    } else {
        Err(SqlError::syntax("unequal number of entries in row expressions"))
    }
}

fn compared(left: &[Expr], op: &BinaryOperator, right: &[Expr]) -> SqlResult<Option<Expr>> {
    use BinaryOperator as B;
    let strict = match op {
        B::Eq | B::NotEq => None,
        B::Lt | B::LtEq => Some(B::Lt),
        B::Gt | B::GtEq => Some(B::Gt),
        _ => return Ok(None),
    };
    check(left, right)?;
    let Some(strict) = strict else {
        let equal = all_equal(left, right);
        return Ok(Some(if *op == B::Eq { equal } else { negate(equal) }));
    };
    // From the last column on: a < b OR (a = b AND the rest).
    let mut pairs = left.iter().zip(right).rev();
    let Some((last, other)) = pairs.next() else { return Ok(None) };
    let mut whole = binary(last.clone(), op, other.clone());
    for (a, b) in pairs {
        let tied = binary(binary(a.clone(), &B::Eq, b.clone()), &B::And, whole);
        whole = binary(binary(a.clone(), &strict, b.clone()), &B::Or, Expr::Nested(Box::new(tied)));
        whole = Expr::Nested(Box::new(whole));
    }
    Ok(Some(whole))
}

fn all_equal(left: &[Expr], right: &[Expr]) -> Expr {
    let equal = left.iter().zip(right).map(|(a, b)| binary(a.clone(), &BinaryOperator::Eq, b.clone())).collect();
    let all = joined(equal, &BinaryOperator::And);
    Expr::Nested(Box::new(all.unwrap_or_else(|| Expr::value(datafusion::sql::sqlparser::ast::Value::Boolean(true)))))
}

fn joined(exprs: Vec<Expr>, op: &BinaryOperator) -> Option<Expr> {
    exprs.into_iter().reduce(|a, b| binary(a, op, b)).map(|all| Expr::Nested(Box::new(all)))
}

fn negate(expr: Expr) -> Expr {
    Expr::UnaryOp { op: datafusion::sql::sqlparser::ast::UnaryOperator::Not, expr: Box::new(expr) }
}

fn binary(left: Expr, op: &BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op: op.clone(), right: Box::new(right) }
}
