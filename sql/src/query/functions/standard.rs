//! PostgreSQL's functions that depend on their arguments alone and that DataFusion lacks or gives another result.

use crate::{
    error::{SqlError, SqlResult, SqlState},
    types::{ColumnType, Datum, NO_TYPE_MOD, PgType},
};

use super::scalar::Declaration;

const TEXT: ColumnType = ColumnType { pg_type: PgType::Text, type_mod: NO_TYPE_MOD };
const BOOL: ColumnType = ColumnType { pg_type: PgType::Bool, type_mod: NO_TYPE_MOD };
const INT4: ColumnType = ColumnType { pg_type: PgType::Int4, type_mod: NO_TYPE_MOD };
const INT8: ColumnType = ColumnType { pg_type: PgType::Int8, type_mod: NO_TYPE_MOD };
const BYTEA: ColumnType = ColumnType { pg_type: PgType::Bytea, type_mod: NO_TYPE_MOD };
const NAME: ColumnType = ColumnType { pg_type: PgType::Name, type_mod: NO_TYPE_MOD };

/// The PostgreSQL whose behaviour this is, as `server_version` says it.
pub const SERVER_VERSION: &str = "15.0";
/// The same as a number.
pub const SERVER_VERSION_NUM: &str = "150000";
/// What version() answers; drivers parse the number after `PostgreSQL`.
pub const VERSION: &str = concat!("PostgreSQL 15.0 (FlareDB ", env!("CARGO_PKG_VERSION"), ")");

const fn declare(
    name: &'static str,
    arity: (usize, usize),
    returns: ColumnType,
    body: fn(&(), &[Datum]) -> SqlResult<Datum>,
) -> Declaration<()> {
    Declaration { name, arity, returns, strict: true, body }
}

const fn loose(
    name: &'static str,
    arity: (usize, usize),
    returns: ColumnType,
    body: fn(&(), &[Datum]) -> SqlResult<Datum>,
) -> Declaration<()> {
    Declaration { name, arity, returns, strict: false, body }
}

/// All of them. Privileges are all granted: there is one user so far.
pub const DECLARATIONS: &[Declaration<()>] = &[
    declare("version", (0, 0), TEXT, |_, _| Ok(Datum::text(VERSION))),
    loose("format_type", (2, 2), TEXT, |_, a| Ok(format_type(&a[0], &a[1]))),
    declare("quote_ident", (1, 1), TEXT, |_, a| Ok(Datum::text(quote_ident(text(&a[0]))))),
    declare("quote_literal", (1, 1), TEXT, |_, a| Ok(Datum::text(quote_literal(text(&a[0]))))),
    declare("pg_encoding_to_char", (1, 1), NAME, |_, a| {
        Ok(Datum::text(if a[0].as_i64() == Some(UTF8_ENCODING) { "UTF8" } else { "" }))
    }),
    declare("pg_get_userbyid", (1, 1), NAME, |_, a| {
        Ok(Datum::text(match a[0].as_i64() {
            Some(SUPERUSER_OID) => "postgres".to_owned(),
            other => format!("unknown (OID={})", other.unwrap_or(0)),
        }))
    }),
    declare("pg_get_expr", (2, 3), TEXT, |_, a| Ok(a[0].clone())),
    loose("obj_description", (1, 2), TEXT, |_, _| Ok(Datum::Null)),
    loose("col_description", (2, 2), TEXT, |_, _| Ok(Datum::Null)),
    loose("shobj_description", (2, 2), TEXT, |_, _| Ok(Datum::Null)),
    declare("has_table_privilege", (2, 3), BOOL, |_, _| Ok(Datum::Bool(true))),
    declare("has_schema_privilege", (2, 3), BOOL, |_, _| Ok(Datum::Bool(true))),
    declare("has_database_privilege", (2, 3), BOOL, |_, _| Ok(Datum::Bool(true))),
    declare("has_column_privilege", (3, 4), BOOL, |_, _| Ok(Datum::Bool(true))),
    declare("pg_has_role", (2, 3), BOOL, |_, _| Ok(Datum::Bool(true))),
    declare("pg_type_is_visible", (1, 1), BOOL, |_, _| Ok(Datum::Bool(true))),
    declare("pg_function_is_visible", (1, 1), BOOL, |_, _| Ok(Datum::Bool(true))),
    declare("pg_is_in_recovery", (0, 0), BOOL, |_, _| Ok(Datum::Bool(false))),
    declare("pg_relation_is_publishable", (1, 1), BOOL, |_, _| Ok(Datum::Bool(false))),
    declare("pg_tablespace_location", (1, 1), TEXT, |_, _| Ok(Datum::text(""))),
    declare("pg_size_pretty", (1, 1), TEXT, |_, a| Ok(Datum::text(size_pretty(a[0].as_i64().unwrap_or(0))))),
    // Regions know their sizes, the catalog does not: unknown.
    loose("pg_table_size", (1, 1), INT8, |_, _| Ok(Datum::Null)),
    loose("pg_relation_size", (1, 2), INT8, |_, _| Ok(Datum::Null)),
    loose("pg_total_relation_size", (1, 1), INT8, |_, _| Ok(Datum::Null)),
    loose("pg_indexes_size", (1, 1), INT8, |_, _| Ok(Datum::Null)),
    loose("pg_database_size", (1, 1), INT8, |_, _| Ok(Datum::Null)),
    loose("pg_tablespace_size", (1, 1), INT8, |_, _| Ok(Datum::Null)),
    declare("current_schemas", (1, 1), TEXT, |_, a| {
        Ok(Datum::text(if matches!(a[0], Datum::Bool(true)) { "{pg_catalog,public}" } else { "{public}" }))
    }),
    declare("array_position", (2, 2), INT4, |_, a| Ok(array_position(text(&a[0]), text(&a[1])))),
    declare("array_text_contains", (2, 2), BOOL, |_, a| {
        Ok(Datum::Bool(!array_position(text(&a[1]), text(&a[0])).is_null()))
    }),
    declare("array_to_string", (2, 3), TEXT, |_, a| {
        Ok(Datum::text(elements(text(&a[0])).collect::<Vec<_>>().join(text(&a[1]))))
    }),
    declare("pg_get_function_result", (1, 1), TEXT, |_, _| Ok(Datum::Null)),
    declare("pg_get_function_arguments", (1, 1), TEXT, |_, _| Ok(Datum::Null)),
    declare("pg_get_statisticsobjdef_columns", (1, 1), TEXT, |_, _| Ok(Datum::Null)),
    declare("length", (1, 1), INT4, |_, a| length(&a[0])),
    declare("byteacat", (2, 2), BYTEA, |_, a| Ok(byteacat(&a[0], &a[1]))),
    declare("similar_to_escape", (1, 2), TEXT, |_, a| similar_to_escape(text(&a[0]), a.get(1).map(text))),
    loose("num_nulls", (1, 8), INT4, |_, a| {
        Ok(Datum::Int4(a.iter().filter(|argument| argument.is_null()).count() as i32))
    }),
];

/// The function of that name.
pub fn function(name: &str) -> datafusion::common::Result<std::sync::Arc<datafusion::logical_expr::ScalarUDF>> {
    let found = super::registry::functions().scalar(name);
    found.ok_or_else(|| datafusion::common::DataFusionError::Internal(format!("there is no function {name}")))
}

/// PostgreSQL's number for UTF8 in `pg_database.encoding`.
pub const UTF8_ENCODING: i64 = 6;
/// Oid of the bootstrap superuser.
pub const SUPERUSER_OID: i64 = 10;

fn text(datum: &Datum) -> &str {
    match datum {
        Datum::Text(text) => text.as_str(),
        _ => "",
    }
}

/// The elements of an array's text, `{a,b}`; system tables hold none that need quotes.
fn elements(array: &str) -> impl Iterator<Item = &str> {
    let inner = array.trim_start_matches('{').trim_end_matches('}');
    inner.split(',').filter(|element| !element.is_empty())
}

/// The place of an element, from 1.
fn array_position(array: &str, wanted: &str) -> Datum {
    elements(array).position(|element| element == wanted).map_or(Datum::Null, |at| Datum::Int4(at as i32 + 1))
}

fn format_type(oid: &Datum, type_mod: &Datum) -> Datum {
    let Some(oid) = oid.as_i64() else { return Datum::Null };
    let type_mod = type_mod.as_i64().and_then(|value| i32::try_from(value).ok()).unwrap_or(NO_TYPE_MOD);
    let oid = u32::try_from(oid).unwrap_or(0);
    if oid == 0 {
        return Datum::text("-");
    }
    if let Some(pg_type) = PgType::from_oid(oid) {
        return Datum::text(ColumnType { pg_type, type_mod }.sql_name());
    }
    let array = crate::types::TYPES.iter().find(|row| row.array_oid == oid);
    Datum::text(array.map_or_else(|| "???".to_owned(), |row| format!("{}[]", row.sql_name)))
}

/// An identifier as a statement must write it.
pub fn quote_ident(name: &str) -> String {
    let plain = name
        .bytes()
        .enumerate()
        .all(|(at, byte)| byte.is_ascii_lowercase() || byte == b'_' || (at > 0 && byte.is_ascii_digit()));
    if plain && !name.is_empty() { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn quote_literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if value.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

fn size_pretty(bytes: i64) -> String {
    /// PostgreSQL goes on to the next unit from here.
    const NEXT_UNIT: i64 = 10 * 1024;
    let units = ["bytes", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (bytes, 0);
    while value.abs() >= NEXT_UNIT && unit + 1 < units.len() {
        value = (value + 512 * value.signum()) / 1024;
        unit += 1;
    }
    format!("{value} {}", units[unit])
}

/// Characters of a text, bytes of a bytea.
fn length(value: &Datum) -> SqlResult<Datum> {
    match value {
        Datum::Text(text) => Ok(Datum::Int4(text.as_str().chars().count() as i32)),
        Datum::Bytea(bytes) => Ok(Datum::Int4(bytes.len() as i32)),
        other => Err(SqlError::new(
            SqlState::UNDEFINED_FUNCTION,
            format!("function length({}) does not exist", other.pg_type().sql_name()),
        )),
    }
}

fn byteacat(left: &Datum, right: &Datum) -> Datum {
    match (left, right) {
        (Datum::Bytea(left), Datum::Bytea(right)) => Datum::Bytea([left.as_ref(), right.as_ref()].concat().into()),
        _ => Datum::Null,
    }
}

/// A pattern of SIMILAR TO as a regular expression.
fn similar_to_escape(pattern: &str, escape: Option<&str>) -> SqlResult<Datum> {
    let mut characters = escape.unwrap_or("\\").chars();
    let (escape, more) = (characters.next(), characters.next());
    if more.is_some() {
        return Err(SqlError::new(SqlState("22025"), "invalid escape string")
            .with_hint("Escape string must be empty or one character."));
    }
    let (mut out, mut escaped, mut class) = (String::from("^(?:"), false, false);
    for character in pattern.chars() {
        match character {
            character if escaped => {
                out.push('\\');
                out.push(character);
                escaped = false;
            }
            character if Some(character) == escape => escaped = true,
            '\\' => out.push_str("\\\\"),
            character if class => {
                class = character != ']';
                out.push(character);
            }
            '[' => {
                class = true;
                out.push('[');
            }
            '%' => out.push_str("(?s:.*)"),
            '_' => out.push_str("(?s:.)"),
            '(' => out.push_str("(?:"),
            '.' | '^' | '$' => {
                out.push('\\');
                out.push(character);
            }
            other => out.push(other),
        }
    }
    out.push_str(")$");
    Ok(Datum::text(out))
}
