//! PostgreSQL's types: the table of them with PostgreSQL's oids, their values, and how these go in and out.
//!
//! ```text
//!   text / binary of the wire ──parse/receive──▶ Datum ──format/send──▶ text / binary of the wire
//!                                               ▲  │
//!                            arrow::datum_at ───┘  └──▶ arrow::ColumnBuilder
//! ```
//!
//! [`ColumnType`] is a type with its modifier: `varchar(10)`, `numeric(8,2)`. [`Datum`] is one value. All text
//! and binary forms, and the SQLSTATEs of what is refused, are PostgreSQL 15's.
//!
//! Not here: casts between types that SQL expressions ask for (see `keyplan` and `query`), collations
//! (everything compares by bytes, as PostgreSQL's "C"), arrays and composite types (0A000).

pub mod arrow;
pub mod binary;
pub mod datetime;
pub mod datum;
pub mod float;
pub mod numeric;
pub mod text;

pub use datum::{Datum, Text};
pub use numeric::Decimal;

use crate::error::{SqlError, SqlResult, SqlState};

/// Text or binary, as the Bind message says per column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// What people read.
    #[default]
    Text,
    /// Network byte order, as PostgreSQL's send and receive functions.
    Binary,
}

impl Format {
    /// From the wire's format code.
    pub fn from_code(code: i16) -> SqlResult<Self> {
        match code {
            0 => Ok(Format::Text),
            1 => Ok(Format::Binary),
            other => Err(SqlError::new(SqlState::INVALID_PARAMETER_VALUE, format!("unsupported format code: {other}"))),
        }
    }
    /// The wire's format code.
    pub fn code(self) -> i16 {
        match self {
            Format::Text => 0,
            Format::Binary => 1,
        }
    }
}

/// A type, without its modifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PgType {
    /// boolean
    Bool,
    /// smallint
    Int2,
    /// integer
    Int4,
    /// bigint
    Int8,
    /// real
    Float4,
    /// double precision
    Float8,
    /// numeric; at most 38 digits
    Numeric,
    /// text
    Text,
    /// character varying
    Varchar,
    /// character, blank-padded
    Bpchar,
    /// name: an identifier, at most 63 bytes
    Name,
    /// "char": one byte
    Char,
    /// bytea
    Bytea,
    /// date
    Date,
    /// timestamp without time zone
    Timestamp,
    /// timestamp with time zone
    TimestampTz,
    /// uuid
    Uuid,
    /// oid
    Oid,
    /// regclass: an oid that is shown as a relation's name
    Regclass,
    /// regtype: an oid that is shown as a type's name
    Regtype,
    /// a literal or parameter whose type nothing has fixed yet
    Unknown,
    /// no value at all
    Void,
}

/// What PostgreSQL's `pg_type` says about a type.
#[derive(Clone, Copy, Debug)]
pub struct TypeRow {
    /// The type.
    pub pg_type: PgType,
    /// `pg_type.oid`.
    pub oid: u32,
    /// Oid of the type's array type.
    pub array_oid: u32,
    /// `pg_type.typname`.
    pub name: &'static str,
    /// The name `format_type` shows.
    pub sql_name: &'static str,
    /// `pg_type.typlen`: bytes, −1 for variable, −2 for a C string.
    pub len: i16,
    /// `pg_type.typcategory`.
    pub category: char,
}

const fn row(
    pg_type: PgType,
    oid: u32,
    array_oid: u32,
    name: &'static str,
    sql_name: &'static str,
    len: i16,
    category: char,
) -> TypeRow {
    TypeRow { pg_type, oid, array_oid, name, sql_name, len, category }
}

/// All types, with PostgreSQL's oids, in the order of [`PgType`]. `pg_type` shows this table.
pub const TYPES: [TypeRow; 22] = [
    row(PgType::Bool, 16, 1000, "bool", "boolean", 1, 'B'),
    row(PgType::Int2, 21, 1005, "int2", "smallint", 2, 'N'),
    row(PgType::Int4, 23, 1007, "int4", "integer", 4, 'N'),
    row(PgType::Int8, 20, 1016, "int8", "bigint", 8, 'N'),
    row(PgType::Float4, 700, 1021, "float4", "real", 4, 'N'),
    row(PgType::Float8, 701, 1022, "float8", "double precision", 8, 'N'),
    row(PgType::Numeric, 1700, 1231, "numeric", "numeric", -1, 'N'),
    row(PgType::Text, 25, 1009, "text", "text", -1, 'S'),
    row(PgType::Varchar, 1043, 1015, "varchar", "character varying", -1, 'S'),
    row(PgType::Bpchar, 1042, 1014, "bpchar", "character", -1, 'S'),
    row(PgType::Name, 19, 1003, "name", "name", 64, 'S'),
    row(PgType::Char, 18, 1002, "char", "\"char\"", 1, 'Z'),
    row(PgType::Bytea, 17, 1001, "bytea", "bytea", -1, 'U'),
    row(PgType::Date, 1082, 1182, "date", "date", 4, 'D'),
    row(PgType::Timestamp, 1114, 1115, "timestamp", "timestamp without time zone", 8, 'D'),
    row(PgType::TimestampTz, 1184, 1185, "timestamptz", "timestamp with time zone", 8, 'D'),
    row(PgType::Uuid, 2950, 2951, "uuid", "uuid", 16, 'U'),
    row(PgType::Oid, 26, 1028, "oid", "oid", 4, 'N'),
    row(PgType::Regclass, 2205, 2210, "regclass", "regclass", 4, 'N'),
    row(PgType::Regtype, 2206, 2211, "regtype", "regtype", 4, 'N'),
    row(PgType::Unknown, 705, 0, "unknown", "unknown", -2, 'X'),
    row(PgType::Void, 2278, 0, "void", "void", 4, 'P'),
];

impl PgType {
    /// Its row in `pg_type`.
    pub fn row(self) -> &'static TypeRow {
        &TYPES[self as usize]
    }
    /// PostgreSQL's oid.
    pub fn oid(self) -> u32 {
        self.row().oid
    }
    /// The name `format_type` shows, e.g. `character varying`.
    pub fn sql_name(self) -> &'static str {
        self.row().sql_name
    }
    /// The type of an oid; 0 ("not said") is unknown.
    pub fn from_oid(oid: u32) -> Option<PgType> {
        if oid == 0 {
            return Some(PgType::Unknown);
        }
        TYPES.iter().find(|row| row.oid == oid).map(|row| row.pg_type)
    }
    /// Values are UTF-8 text.
    pub fn is_text(self) -> bool {
        matches!(self, PgType::Text | PgType::Varchar | PgType::Bpchar | PgType::Name | PgType::Char | PgType::Unknown)
    }
    /// Integers, floats, numeric.
    pub fn is_number(self) -> bool {
        matches!(self, PgType::Int2 | PgType::Int4 | PgType::Int8 | PgType::Float4 | PgType::Float8 | PgType::Numeric)
    }
    /// smallint, integer, bigint.
    pub fn is_integer(self) -> bool {
        matches!(self, PgType::Int2 | PgType::Int4 | PgType::Int8)
    }
    /// Shown and compared as an unsigned 32-bit number.
    pub fn is_oid(self) -> bool {
        matches!(self, PgType::Oid | PgType::Regclass | PgType::Regtype)
    }
    /// Without a modifier.
    pub fn plain(self) -> ColumnType {
        ColumnType { pg_type: self, type_mod: NO_TYPE_MOD }
    }
}

/// "No modifier", as `atttypmod` writes it.
pub const NO_TYPE_MOD: i32 = -1;
/// PostgreSQL adds its varlena header's size to the lengths in a type modifier.
const TYPE_MOD_HEADER: i32 = 4;
/// Longest varchar(n) and char(n), as in PostgreSQL (10 MiB of characters).
pub const MAX_CHARACTERS: u32 = 10_485_760;

/// A type with its modifier, as PostgreSQL encodes it in `atttypmod`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ColumnType {
    /// The type.
    pub pg_type: PgType,
    /// PostgreSQL's `atttypmod`; −1 when there is none.
    pub type_mod: i32,
}

impl From<PgType> for ColumnType {
    fn from(pg_type: PgType) -> Self {
        pg_type.plain()
    }
}

impl ColumnType {
    /// `varchar(n)` or `char(n)`; n in characters, 1 to [`MAX_CHARACTERS`].
    pub fn characters(pg_type: PgType, n: u64) -> SqlResult<Self> {
        let name = if pg_type == PgType::Varchar { "varchar" } else { "char" };
        if n == 0 {
            return Err(SqlError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("length for type {name} must be at least 1"),
            ));
        }
        match u32::try_from(n).ok().filter(|n| *n <= MAX_CHARACTERS) {
            Some(n) => Ok(ColumnType { pg_type, type_mod: n as i32 + TYPE_MOD_HEADER }),
            None => Err(SqlError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("length for type {name} cannot exceed {MAX_CHARACTERS}"),
            )),
        }
    }
    /// `numeric(precision, scale)`; precision 1 to 38 (what 128 bits hold), scale 0 to precision.
    pub fn numeric(precision: u64, scale: i64) -> SqlResult<Self> {
        if precision == 0 || precision > 1000 {
            return Err(SqlError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("NUMERIC precision {precision} must be between 1 and 1000"),
            ));
        }
        if precision > numeric::MAX_PRECISION as u64 {
            return Err(SqlError::unsupported(format!("a NUMERIC precision above {}", numeric::MAX_PRECISION)));
        }
        if scale < 0 || scale > precision as i64 {
            return Err(SqlError::unsupported(format!("a NUMERIC scale of {scale} with precision {precision}")));
        }
        Ok(ColumnType {
            pg_type: PgType::Numeric,
            type_mod: ((precision as i32) << 16 | scale as i32) + TYPE_MOD_HEADER,
        })
    }
    /// n of `varchar(n)` and `char(n)`.
    pub fn max_characters(&self) -> Option<u32> {
        (matches!(self.pg_type, PgType::Varchar | PgType::Bpchar) && self.type_mod >= TYPE_MOD_HEADER)
            .then(|| (self.type_mod - TYPE_MOD_HEADER) as u32)
    }
    /// (precision, scale) of `numeric(precision, scale)`.
    pub fn precision_scale(&self) -> Option<(u8, u8)> {
        (self.pg_type == PgType::Numeric && self.type_mod >= TYPE_MOD_HEADER).then(|| {
            let packed = self.type_mod - TYPE_MOD_HEADER;
            ((packed >> 16) as u8, (packed & 0x7ff) as u8)
        })
    }
    /// As `format_type` shows it: `numeric(8,2)`.
    pub fn sql_name(&self) -> String {
        let name = self.pg_type.sql_name();
        if let Some(n) = self.max_characters() {
            format!("{name}({n})")
        } else if let Some((precision, scale)) = self.precision_scale() {
            format!("{name}({precision},{scale})")
        } else {
            name.to_owned()
        }
    }
    /// Makes `datum`, a value of this type without its modifier, fit the modifier as an assignment does:
    /// 22001 for text that is too long (blanks are cut off), 22003 for a numeric that does not fit.
    pub fn fit(&self, datum: Datum) -> SqlResult<Datum> {
        match datum {
            Datum::Text(text) => match (self.pg_type, self.max_characters()) {
                (PgType::Varchar | PgType::Bpchar, Some(n)) => {
                    text::fit_characters(text, n as usize, self).map(Datum::Text)
                }
                _ => Ok(Datum::Text(text)),
            },
            Datum::Numeric(value) => match self.precision_scale() {
                Some((precision, scale)) => value.fit(precision, scale).map(Datum::Numeric),
                None => Ok(Datum::Numeric(value)),
            },
            other => Ok(other),
        }
    }
}

/// Settings of a session that change how values look.
#[derive(Clone, Debug)]
pub struct FormatSettings {
    /// For `timestamptz`.
    pub time_zone: chrono_tz::Tz,
    /// `extra_float_digits` > 0: the shortest text that reads back as the same float.
    pub shortest_floats: bool,
    /// `bytea_output = escape` instead of hex.
    pub bytea_escape: bool,
}

impl FormatSettings {
    /// As a text without blanks, for plans that are told them when they run.
    pub fn encode(&self) -> String {
        format!("{},{},{}", self.time_zone.name(), u8::from(self.shortest_floats), u8::from(self.bytea_escape))
    }
    /// The reverse of [`FormatSettings::encode`]; `None` for any other text.
    pub fn decode(text: &str) -> Option<Self> {
        let mut parts = text.split(',');
        let time_zone = parts.next()?.parse().ok()?;
        let mut flag = || parts.next().map(|flag| flag == "1");
        Some(FormatSettings { time_zone, shortest_floats: flag()?, bytea_escape: flag()? })
    }
}

impl Default for FormatSettings {
    fn default() -> Self {
        FormatSettings { time_zone: chrono_tz::Tz::UTC, shortest_floats: true, bytea_escape: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (at, row) in TYPES.iter().enumerate() {
            assert_eq!(row.pg_type as usize, at, "{}", row.name);
            assert_eq!(PgType::from_oid(row.oid), Some(row.pg_type));
        }
    }

    #[test]
    fn settings_come_back() {
        let zone = chrono_tz::Tz::Europe__Berlin;
        let settings = FormatSettings { time_zone: zone, shortest_floats: false, bytea_escape: true };
        let back = FormatSettings::decode(&settings.encode()).unwrap();
        assert_eq!((back.time_zone, back.shortest_floats, back.bytea_escape), (zone, false, true));
        assert!(FormatSettings::decode("nowhere").is_none());
    }

    #[test]
    fn modifiers_are_postgresqls() {
        assert_eq!(ColumnType::characters(PgType::Bpchar, 22).unwrap().type_mod, 26);
        let numeric = ColumnType::numeric(8, 2).unwrap();
        assert_eq!(numeric.type_mod, 524_294);
        assert_eq!(numeric.sql_name(), "numeric(8,2)");
        assert_eq!(numeric.precision_scale(), Some((8, 2)));
        assert_eq!(ColumnType::numeric(0, 0).unwrap_err().sqlstate, SqlState::INVALID_PARAMETER_VALUE);
    }
}
