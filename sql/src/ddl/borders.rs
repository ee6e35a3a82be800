//! Keys at which a table's regions are cut. PURE.

use bytes::Bytes;
use datafusion::sql::sqlparser::ast::Expr;
use proto::keyspace;

use crate::{
    catalog::{ColumnDescriptor, TableDescriptor},
    codec::table::TableCodec,
    error::{SqlError, SqlResult, SqlState},
    eval::{Compiler, Env, ParamTypes, Refusal},
    statement::borders::Borders,
    types::{Datum, PgType},
};

/// Regions that one statement may ask for: each is a Raft group on three stores, and PD takes a thousand keys at a time.
pub const REGIONS_AT_MOST: usize = 500;

/// Keys of a table, and what the client should know about them.
pub struct Keys {
    /// In no order.
    pub keys: Vec<Bytes>,
    /// A notice.
    pub remark: Option<&'static str>,
}

/// The keys that a clause names. 22023 for what can't be spread so, 22004 for NULL, 42804 and its kin for values of other types.
pub fn keys(table: &TableDescriptor, borders: &Borders, env: &Env<'_>) -> SqlResult<Keys> {
    match borders {
        Borders::Values(rows) => at_values(table, rows, env),
        Borders::Into { regions, between } => into_regions(table, *regions, between.as_deref(), env),
    }
}

fn invalid(message: impl Into<String>) -> SqlError {
    SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message)
}

fn key_columns(table: &TableDescriptor) -> SqlResult<Vec<&ColumnDescriptor>> {
    if table.primary_key.is_none() {
        return Err(invalid(format!("table \"{}\" has no primary key to split by", table.name))
            .with_hint("Its hidden row ids grow: there is nothing to spread before there are rows."));
    }
    Ok(table.key.iter().map(|at| &table.columns[*at]).collect())
}

fn value(expr: &Expr, column: &ColumnDescriptor, env: &Env<'_>) -> SqlResult<Datum> {
    let compiled = Compiler::new(ParamTypes::default()).assigned(expr, column.column_type, &column.name);
    let scalar = compiled.map_err(|refusal| match refusal {
        Refusal::Error(error) => error,
        Refusal::Unknown => SqlError::unsupported(format!("the border {expr}")),
    })?;
    match scalar.eval(env)? {
        Datum::Null => {
            let message = format!("a border of column \"{}\" must not be null", column.name);
            Err(SqlError::new(SqlState::NULL_VALUE_NOT_ALLOWED, message))
        }
        datum => Ok(datum),
    }
}

fn at_values(table: &TableDescriptor, rows: &[Vec<Expr>], env: &Env<'_>) -> SqlResult<Keys> {
    if rows.len() >= REGIONS_AT_MOST {
        return Err(invalid(format!("{} borders, at most {} at a time", rows.len(), REGIONS_AT_MOST - 1)));
    }
    let (columns, codec) = (key_columns(table)?, TableCodec::new(table));
    let key = |row: &Vec<Expr>| {
        if row.len() > columns.len() {
            let (values, columns) = (row.len(), columns.len());
            return Err(SqlError::syntax(format!("a border of {values} values for a key of {columns} columns")));
        }
        let values = row.iter().zip(&columns).map(|(expr, column)| value(expr, column, env));
        codec.key_of(&values.collect::<SqlResult<Vec<_>>>()?)
    };
    Ok(Keys { keys: rows.iter().map(key).collect::<SqlResult<_>>()?, remark: None })
}

fn into_regions(
    table: &TableDescriptor,
    regions: u64,
    between: Option<&(Expr, Expr)>,
    env: &Env<'_>,
) -> SqlResult<Keys> {
    let count = usize::try_from(regions).unwrap_or(usize::MAX);
    if !(1..=REGIONS_AT_MOST).contains(&count) {
        return Err(invalid(format!("{regions} regions: 1 to {REGIONS_AT_MOST} can be made at a time")));
    }
    let first = key_columns(table)?[0];
    let spread = Spread::of(first)?;
    let (low, high) = match between {
        Some((low, high)) => {
            let number = |expr| value(expr, first, env).map(|datum| spread.number(&datum));
            (number(low)?, number(high)?)
        }
        None => spread.range(),
    };
    // Both ends belong to it.
    let values = high.checked_sub(low).map_or(0, |last| last.saturating_add(1));
    let regions = u128::from(regions);
    if values < regions {
        return Err(invalid(format!("there are no {regions} values of \"{}\" between the two", first.name)));
    }
    let codec = TableCodec::new(table);
    let step = |n: u128| low + values / regions * n + values % regions * n / regions;
    let inner = (1..regions).map(|n| codec.key_of(&[spread.datum(step(n))]));
    let mut keys = inner.collect::<SqlResult<Vec<_>>>()?;
    // So that the regions hold the table and nothing else.
    let whole = keyspace::table_range(keyspace::SQL_KEYSPACE, table.storage_id);
    keys.extend([whole.start, whole.end]);
    let remark = (between.is_none() && spread != Spread::Uuid).then_some(
        "the regions share all values of the key's type: SPLIT INTO n BETWEEN low AND high spreads those that are used",
    );
    Ok(Keys { keys, remark })
}

/// Types whose values can be counted, and by what they are shifted so that the smallest is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spread {
    Int2,
    Int4,
    Int8,
    Uuid,
}

impl Spread {
    fn of(column: &ColumnDescriptor) -> SqlResult<Spread> {
        Ok(match column.column_type.pg_type {
            PgType::Int2 => Spread::Int2,
            PgType::Int4 => Spread::Int4,
            PgType::Int8 => Spread::Int8,
            PgType::Uuid => Spread::Uuid,
            _ => {
                let message = format!("SPLIT INTO by column \"{}\", which is neither integer nor uuid,", column.name);
                return Err(SqlError::unsupported(message).with_hint("SPLIT AT VALUES names the borders."));
            }
        })
    }

    /// The smallest and the largest value.
    fn range(self) -> (u128, u128) {
        match self {
            Spread::Int2 => (0, u16::MAX.into()),
            Spread::Int4 => (0, u32::MAX.into()),
            Spread::Int8 => (0, u64::MAX.into()),
            Spread::Uuid => (0, u128::MAX),
        }
    }

    fn number(self, datum: &Datum) -> u128 {
        let shifted = |value: i64, least: i64| (i128::from(value) - i128::from(least)) as u128;
        match datum {
            Datum::Int2(v) => shifted((*v).into(), i16::MIN.into()),
            Datum::Int4(v) => shifted((*v).into(), i32::MIN.into()),
            Datum::Int8(v) => shifted(*v, i64::MIN),
            Datum::Uuid(v) => u128::from_be_bytes(*v),
            other => unreachable!("{self:?} and {other:?}: the value was cast to the column's type"),
        }
    }

    fn datum(self, number: u128) -> Datum {
        let back = |least: i64| (number as i128 + i128::from(least)) as i64;
        match self {
            Spread::Int2 => Datum::Int2(back(i16::MIN.into()) as i16),
            Spread::Int4 => Datum::Int4(back(i32::MIN.into()) as i32),
            Spread::Int8 => Datum::Int8(back(i64::MIN)),
            Spread::Uuid => Datum::Uuid(number.to_be_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ddl::create_table,
        statement::{Command, borders::Target, parse_one},
        types::FormatSettings,
    };

    /// The keys of a CREATE TABLE, decoded: the first key column of each that lies in the table.
    fn borders(sql: &str) -> SqlResult<(Vec<Datum>, bool)> {
        let Command::Split(split) = parse_one(sql)? else { panic!("{sql}") };
        let Target::Create(create) = &split.target else { panic!("{sql}") };
        let table = create_table::described(create)?;
        let settings = FormatSettings::default();
        let found = keys(&table, &split.borders, &Env { row: &[], params: &[], now_us: 0, settings: &settings })?;
        let codec = TableCodec::new(&table);
        let inner = found.keys.iter().filter(|key| key.len() > keyspace::PREFIX_LEN);
        let values = inner.map(|key| codec.decode_key(key).map(|row| row[0].clone()));
        Ok((values.collect::<SqlResult<_>>()?, found.remark.is_some()))
    }

    #[test]
    fn regions_get_as_many_values_each() {
        let ints = |sql: &str| borders(sql).expect(sql);
        let (found, remark) = ints("CREATE TABLE t (a int PRIMARY KEY) SPLIT INTO 4 BETWEEN 0 AND 999");
        assert_eq!((found, remark), (vec![Datum::Int4(250), Datum::Int4(500), Datum::Int4(750)], false));
        let (found, remark) = ints("CREATE TABLE t (a bigint PRIMARY KEY) SPLIT INTO 2");
        assert_eq!((found, remark), (vec![Datum::Int8(0)], true));
        let (found, remark) = ints("CREATE TABLE t (a uuid PRIMARY KEY, b int) SPLIT INTO 2");
        assert!(matches!(&found[..], [Datum::Uuid(half)] if half[..2] == [0x7f, 0xff]) && !remark, "{found:?}");
        assert_eq!(ints("CREATE TABLE t (a int2 PRIMARY KEY) SPLIT INTO 1").0, []);
        let (found, _) = ints("CREATE TABLE t (a int PRIMARY KEY) SPLIT AT VALUES (7), (-1 - 1)");
        assert_eq!(found, [Datum::Int4(7), Datum::Int4(-2)]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (sql, state) in [
            ("CREATE TABLE t (a int PRIMARY KEY) SPLIT INTO 0", SqlState::INVALID_PARAMETER_VALUE),
            ("CREATE TABLE t (a int PRIMARY KEY) SPLIT INTO 501", SqlState::INVALID_PARAMETER_VALUE),
            ("CREATE TABLE t (a int PRIMARY KEY) SPLIT INTO 9 BETWEEN 1 AND 3", SqlState::INVALID_PARAMETER_VALUE),
            ("CREATE TABLE t (a int PRIMARY KEY) SPLIT INTO 2 BETWEEN 3 AND 1", SqlState::INVALID_PARAMETER_VALUE),
            ("CREATE TABLE t (a int) SPLIT INTO 2", SqlState::INVALID_PARAMETER_VALUE),
            ("CREATE TABLE t (a text PRIMARY KEY) SPLIT INTO 2", SqlState::FEATURE_NOT_SUPPORTED),
            ("CREATE TABLE t (a int PRIMARY KEY) SPLIT AT VALUES (1, 2)", SqlState::SYNTAX_ERROR),
            ("CREATE TABLE t (a int PRIMARY KEY) SPLIT AT VALUES (NULL)", SqlState::NULL_VALUE_NOT_ALLOWED),
            ("CREATE TABLE t (a int PRIMARY KEY) SPLIT AT VALUES ('x')", SqlState::INVALID_TEXT_REPRESENTATION),
            ("CREATE TABLE t (a int PRIMARY KEY) SPLIT AT VALUES (99999999999)", SqlState::NUMERIC_VALUE_OUT_OF_RANGE),
        ] {
            assert_eq!(borders(sql).expect_err(sql).sqlstate, state, "{sql}");
        }
    }
}
