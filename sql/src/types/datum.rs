//! One SQL value.

use std::{cmp::Ordering, fmt};

use bytes::Bytes;

use super::{Decimal, PgType, float};

/// UTF-8 text that shares its buffer: a column's text is a slice of the row it was read from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text(Bytes);

impl Text {
    /// Takes bytes that must be UTF-8.
    pub fn from_utf8(bytes: Bytes) -> Result<Self, std::str::Utf8Error> {
        std::str::from_utf8(&bytes)?;
        Ok(Text(bytes))
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when it was made")
    }
    /// Its UTF-8 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    /// The part up to byte `len`, which must be a border of characters.
    pub fn truncated(&self, len: usize) -> Self {
        debug_assert!(self.as_str().is_char_boundary(len));
        Text(self.0.slice(..len))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Text(Bytes::from(text))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Text(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// One SQL value. What it may be is said by its column's type: `varchar` and `char(n)` are `Text`
/// (`char(n)` without its trailing blanks, which are put back on output).
#[derive(Clone, Debug, Default)]
pub enum Datum {
    /// NULL of any type.
    #[default]
    Null,
    /// boolean
    Bool(bool),
    /// smallint
    Int2(i16),
    /// integer
    Int4(i32),
    /// bigint
    Int8(i64),
    /// real
    Float4(f32),
    /// double precision
    Float8(f64),
    /// numeric
    Numeric(Decimal),
    /// text, varchar, char, name, "char", and literals of unknown type
    Text(Text),
    /// bytea
    Bytea(Bytes),
    /// date: days since 1970-01-01; `i32::MIN` and `i32::MAX` are −infinity and infinity
    Date(i32),
    /// timestamp: microseconds since 1970-01-01 00:00; `i64::MIN` and `i64::MAX` are −infinity and infinity
    Timestamp(i64),
    /// timestamptz: the same in UTC
    TimestampTz(i64),
    /// uuid
    Uuid([u8; 16]),
    /// oid, regclass, regtype
    Oid(u32),
}

impl Datum {
    /// It is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Datum::Null)
    }
    /// Text from a string.
    pub fn text(text: impl Into<Text>) -> Self {
        Datum::Text(text.into())
    }
    /// The plain type of the value; NULL and text are `Unknown` and `Text`.
    pub fn pg_type(&self) -> PgType {
        match self {
            Datum::Null => PgType::Unknown,
            Datum::Bool(_) => PgType::Bool,
            Datum::Int2(_) => PgType::Int2,
            Datum::Int4(_) => PgType::Int4,
            Datum::Int8(_) => PgType::Int8,
            Datum::Float4(_) => PgType::Float4,
            Datum::Float8(_) => PgType::Float8,
            Datum::Numeric(_) => PgType::Numeric,
            Datum::Text(_) => PgType::Text,
            Datum::Bytea(_) => PgType::Bytea,
            Datum::Date(_) => PgType::Date,
            Datum::Timestamp(_) => PgType::Timestamp,
            Datum::TimestampTz(_) => PgType::TimestampTz,
            Datum::Uuid(_) => PgType::Uuid,
            Datum::Oid(_) => PgType::Oid,
        }
    }
    /// An integer of any width.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Datum::Int2(v) => Some(i64::from(*v)),
            Datum::Int4(v) => Some(i64::from(*v)),
            Datum::Int8(v) => Some(*v),
            Datum::Oid(v) => Some(i64::from(*v)),
            _ => None,
        }
    }
    /// PostgreSQL's order of two values of one type: NaN is above all numbers, text goes by bytes.
    /// `None` when one is NULL or the types differ.
    pub fn compare(&self, other: &Datum) -> Option<Ordering> {
        Some(match (self, other) {
            (Datum::Bool(a), Datum::Bool(b)) => a.cmp(b),
            (Datum::Int2(a), Datum::Int2(b)) => a.cmp(b),
            (Datum::Int4(a), Datum::Int4(b)) => a.cmp(b),
            (Datum::Int8(a), Datum::Int8(b)) => a.cmp(b),
            (Datum::Float4(a), Datum::Float4(b)) => float::compare(f64::from(*a), f64::from(*b)),
            (Datum::Float8(a), Datum::Float8(b)) => float::compare(*a, *b),
            (Datum::Numeric(a), Datum::Numeric(b)) => a.cmp(b),
            (Datum::Text(a), Datum::Text(b)) => a.cmp(b),
            (Datum::Bytea(a), Datum::Bytea(b)) => a.cmp(b),
            (Datum::Date(a), Datum::Date(b)) => a.cmp(b),
            (Datum::Timestamp(a), Datum::Timestamp(b)) | (Datum::TimestampTz(a), Datum::TimestampTz(b)) => a.cmp(b),
            (Datum::Uuid(a), Datum::Uuid(b)) => a.cmp(b),
            (Datum::Oid(a), Datum::Oid(b)) => a.cmp(b),
            _ => return None,
        })
    }
}

/// Equality of representation: NULL equals NULL, as tests and caches want it. SQL's own is [`Datum::compare`].
impl PartialEq for Datum {
    fn eq(&self, other: &Datum) -> bool {
        match (self, other) {
            (Datum::Null, Datum::Null) => true,
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }
}
