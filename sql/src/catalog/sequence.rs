//! Sequences: what the catalog knows of one, and how its value goes on. PURE.
//!
//! ```text
//!   descriptor   limits, increment, cache …          changed by DDL, published as tables are
//!   value        last value, was it given out        under the descriptor's value id, changed by nextval and setval
//! ```
//!
//! A value is not rolled back: it is changed in transactions of its own ([`super::store`]), many values at a time where many are
//! asked for. Starting anew is another value id, so that RESTART is as transactional as the rest of a schema change.

use std::sync::Arc;

use crate::{
    error::{SqlError, SqlResult, SqlState},
    types::PgType,
};

/// Whose column's end is a sequence's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The table.
    pub table: u32,
    /// The column's id in it.
    pub column: u32,
}

/// A sequence. Everyone holds it as `Arc`; it never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceDescriptor {
    /// Its identity, and its oid in `pg_class`.
    pub id: u32,
    /// Under which its value is kept. Starting anew gives it a new one.
    pub value_id: u32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Counts changes of this descriptor, from 1.
    pub version: u64,
    /// smallint, integer or bigint.
    pub pg_type: PgType,
    /// Parameters.
    pub options: Options,
    /// The first value under `value_id`.
    pub first: i64,
    /// It is dropped with this column.
    pub owner: Option<Owner>,
    /// Other transactions know it too. Not kept: what is loaded is published.
    pub published: bool,
}

/// What CREATE SEQUENCE says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where RESTART without a value begins.
    pub start: i64,
    /// Added for the next value; not 0.
    pub increment: i64,
    /// Least value.
    pub min: i64,
    /// Greatest value.
    pub max: i64,
    /// Values a node takes at a time at least; from 1.
    pub cache: i64,
    /// Begins again at the other end.
    pub cycle: bool,
}

/// A shared descriptor.
pub type Sequence = Arc<SequenceDescriptor>;

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value given out last; the next one when none was.
    pub last: i64,
    /// It was given out.
    pub called: bool,
}

/// Values that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The first.
    pub first: i64,
    /// From one to the next.
    pub increment: i64,
    /// How many; at least 1.
    pub count: u64,
}

impl Block {
    /// The values.
    pub fn values(self) -> impl Iterator<Item = i64> {
        (0..self.count).map(move |at| self.at(at))
    }
    fn at(self, at: u64) -> i64 {
        // Within the limits, so it fits.
        (i128::from(self.first) + i128::from(self.increment) * i128::from(at)) as i64
    }
}

impl SequenceDescriptor {
    /// Where it stands before anybody asked.
    pub fn beginning(&self) -> Value {
        Value { last: self.first, called: false }
    }

    /// Up to `wanted` values behind `value`, fewer where a limit comes before, and where the sequence stands then. 2200H at the limit of
    /// one that does not cycle.
    pub fn advance(&self, value: Value, wanted: u64) -> SqlResult<(Block, Value)> {
        let Options { increment, min, max, .. } = self.options;
        let first = if value.called { self.behind(value.last)? } else { value.last };
        let room =
            if increment > 0 { i128::from(max) - i128::from(first) } else { i128::from(first) - i128::from(min) };
        let fits = room / i128::from(increment.unsigned_abs()) + 1;
        let count = u64::try_from(fits).unwrap_or(u64::MAX).min(wanted).max(1);
        let block = Block { first, increment, count };
        Ok((block, Value { last: block.at(count - 1), called: true }))
    }

    fn behind(&self, last: i64) -> SqlResult<i64> {
        let Options { increment, min, max, cycle, .. } = self.options;
        if let Some(next) = last.checked_add(increment).filter(|next| (min..=max).contains(next)) {
            return Ok(next);
        }
        match (cycle, increment > 0) {
            (true, true) => Ok(min),
            (true, false) => Ok(max),
            (false, up) => {
                let (side, limit) = if up { ("maximum", max) } else { ("minimum", min) };
                let message = format!("nextval: reached {side} value of sequence \"{}\" ({limit})", self.name);
                Err(SqlError::new(SqlState::SEQUENCE_GENERATOR_LIMIT_EXCEEDED, message))
            }
        }
    }

    /// 22003 for a value that setval must not set.
    pub fn check(&self, value: i64) -> SqlResult<()> {
        let Options { min, max, .. } = self.options;
        if (min..=max).contains(&value) {
            return Ok(());
        }
        let message = format!("setval: value {value} is out of bounds for sequence \"{}\" ({min}..{max})", self.name);
        Err(SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(options: Options) -> SequenceDescriptor {
        SequenceDescriptor {
            id: 1,
            value_id: 1,
            schema: "public".into(),
            name: "s".into(),
            version: 1,
            pg_type: PgType::Int8,
            first: options.start,
            options,
            owner: None,
            published: true,
        }
    }

    fn options(start: i64, increment: i64, min: i64, max: i64, cycle: bool) -> Options {
        Options { start, increment, min, max, cache: 1, cycle }
    }

    #[test]
    fn values_follow_each_other_up_to_the_limit() {
        let up = sequence(options(1, 2, 1, 6, false));
        let (block, value) = up.advance(up.beginning(), 2).unwrap();
        assert_eq!(block.values().collect::<Vec<_>>(), [1, 3]);
        let (block, value) = up.advance(value, 2).unwrap();
        assert_eq!(block.values().collect::<Vec<_>>(), [5]);
        let error = up.advance(value, 1).unwrap_err();
        assert_eq!(error.sqlstate, SqlState::SEQUENCE_GENERATOR_LIMIT_EXCEEDED);
    }

    #[test]
    fn a_cycle_begins_at_its_limit_and_not_at_its_start() {
        let down = sequence(options(0, -1, -1, 3, true));
        let (block, value) = down.advance(down.beginning(), 9).unwrap();
        assert_eq!(block.values().collect::<Vec<_>>(), [0, -1]);
        let (block, _) = down.advance(value, 2).unwrap();
        assert_eq!(block.values().collect::<Vec<_>>(), [3, 2]);
    }

    #[test]
    fn the_ends_of_bigint_do_not_overflow() {
        let all = sequence(options(i64::MIN, i64::MAX, i64::MIN, i64::MAX, false));
        let (block, value) = all.advance(all.beginning(), u64::MAX).unwrap();
        assert_eq!(block.values().collect::<Vec<_>>(), [i64::MIN, -1, i64::MAX - 1]);
        assert!(all.advance(value, 1).is_err());
    }
}
