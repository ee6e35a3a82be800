//! `+ - * / %` on datums: 22003 instead of wrapping around, 22012 for division by zero. PURE.

use crate::{
    error::{SqlError, SqlResult},
    types::Datum,
};

/// An operator on two numbers of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// +
    Add,
    /// -
    Sub,
    /// *
    Mul,
    /// /
    Div,
    /// %
    Rem,
}

macro_rules! integers {
    ($operator:expr, $a:expr, $b:expr, $name:literal) => {{
        if matches!($operator, Operator::Div | Operator::Rem) && *$b == 0 {
            return Err(SqlError::division_by_zero());
        }
        match $operator {
            Operator::Add => $a.checked_add(*$b),
            Operator::Sub => $a.checked_sub(*$b),
            Operator::Mul => $a.checked_mul(*$b),
            Operator::Div => $a.checked_div(*$b),
            // The smallest integer % −1 is 0, not an overflow.
            Operator::Rem => Some($a.wrapping_rem(*$b)),
        }
        .ok_or_else(|| SqlError::out_of_range($name))?
    }};
}

macro_rules! floats {
    ($operator:expr, $a:expr, $b:expr) => {{
        let (a, b) = (*$a, *$b);
        if $operator == Operator::Div && b == 0.0 && !a.is_nan() {
            return Err(SqlError::division_by_zero());
        }
        let result = match $operator {
            Operator::Add => a + b,
            Operator::Sub => a - b,
            Operator::Mul => a * b,
            Operator::Div => a / b,
            Operator::Rem => a % b,
        };
        if result.is_infinite() && a.is_finite() && b.is_finite() {
            return Err(SqlError::new(crate::SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: overflow"));
        }
        let shrinks = matches!($operator, Operator::Mul | Operator::Div) && a != 0.0;
        if result == 0.0 && shrinks && (b.is_finite() && b != 0.0) {
            return Err(SqlError::new(crate::SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: underflow"));
        }
        result
    }};
}

impl Operator {
    /// `left operator right`; NULL when one is NULL.
    pub fn apply(self, left: &Datum, right: &Datum) -> SqlResult<Datum> {
        Ok(match (left, right) {
            (Datum::Null, _) | (_, Datum::Null) => Datum::Null,
            (Datum::Int2(a), Datum::Int2(b)) => Datum::Int2(integers!(self, a, b, "smallint")),
            (Datum::Int4(a), Datum::Int4(b)) => Datum::Int4(integers!(self, a, b, "integer")),
            (Datum::Int8(a), Datum::Int8(b)) => Datum::Int8(integers!(self, a, b, "bigint")),
            (Datum::Float4(a), Datum::Float4(b)) => Datum::Float4(floats!(self, a, b)),
            (Datum::Float8(a), Datum::Float8(b)) => Datum::Float8(floats!(self, a, b)),
            (Datum::Numeric(a), Datum::Numeric(b)) => Datum::Numeric(match self {
                Operator::Add => a.add(b)?,
                Operator::Sub => a.sub(b)?,
                Operator::Mul => a.mul(b)?,
                Operator::Div => a.div(b)?,
                Operator::Rem => a.rem(b)?,
            }),
            (a, b) => {
                return Err(SqlError::internal(format!(
                    "no operator for {} and {}",
                    a.pg_type().sql_name(),
                    b.pg_type().sql_name()
                )));
            }
        })
    }
}

/// `-input`; NULL for NULL.
pub fn negate(input: &Datum) -> SqlResult<Datum> {
    Ok(match input {
        Datum::Null => Datum::Null,
        Datum::Int2(v) => Datum::Int2(v.checked_neg().ok_or_else(|| SqlError::out_of_range("smallint"))?),
        Datum::Int4(v) => Datum::Int4(v.checked_neg().ok_or_else(|| SqlError::out_of_range("integer"))?),
        Datum::Int8(v) => Datum::Int8(v.checked_neg().ok_or_else(|| SqlError::out_of_range("bigint"))?),
        Datum::Float4(v) => Datum::Float4(-v),
        Datum::Float8(v) => Datum::Float8(-v),
        Datum::Numeric(v) => Datum::Numeric(v.neg()),
        other => return Err(SqlError::internal(format!("no operator - for {}", other.pg_type().sql_name()))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqlState;

    #[test]
    fn overflow_and_division_are_errors() {
        let int = |v| Datum::Int4(v);
        assert_eq!(Operator::Add.apply(&int(2), &int(3)).unwrap(), int(5));
        let overflow = Operator::Add.apply(&int(i32::MAX), &int(1)).unwrap_err();
        assert_eq!(
            (overflow.sqlstate, overflow.message.as_str()),
            (SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "integer out of range")
        );
        assert_eq!(Operator::Div.apply(&int(1), &int(0)).unwrap_err().sqlstate, SqlState::DIVISION_BY_ZERO);
        assert_eq!(Operator::Div.apply(&int(-7), &int(2)).unwrap(), int(-3));
        assert_eq!(Operator::Rem.apply(&int(i32::MIN), &int(-1)).unwrap(), int(0));
        assert!(Operator::Add.apply(&int(1), &Datum::Null).unwrap().is_null());
        let big = Datum::Float8(1e308);
        assert_eq!(Operator::Mul.apply(&big, &big).unwrap_err().message, "value out of range: overflow");
        assert!(negate(&int(i32::MIN)).is_err());
    }
}
