//! Text forms: PostgreSQL's input and output functions.

use bytes::{Bytes, BytesMut};

use super::{ColumnType, Datum, Decimal, FormatSettings, PgType, Text, datetime, float};
use crate::error::{SqlError, SqlResult, SqlState};

/// Longest identifier, in bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// The input function of `column_type` with its modifier, as for an assignment: `text` must be UTF-8 without NUL
/// (22021). What does not parse is 22P02, what is too big 22003, what is too long 22001.
pub fn parse(text: &Bytes, column_type: ColumnType, settings: &FormatSettings) -> SqlResult<Datum> {
    let checked = checked_text(text)?;
    column_type.fit(parse_plain(&checked, column_type.pg_type, settings)?)
}

/// `bytes` as text; 22021 when they are not UTF-8 or hold a NUL.
pub fn checked_text(bytes: &Bytes) -> SqlResult<Text> {
    let refuse = |at: usize, len: usize| {
        let shown: Vec<String> = bytes[at..(at + len).min(bytes.len())].iter().map(|b| format!("0x{b:02x}")).collect();
        SqlError::new(
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            format!("invalid byte sequence for encoding \"UTF8\": {}", shown.join(" ")),
        )
    };
    let text = Text::from_utf8(bytes.clone()).map_err(|e| refuse(e.valid_up_to(), e.error_len().unwrap_or(4)))?;
    match bytes.iter().position(|b| *b == 0) {
        Some(at) => Err(refuse(at, 1)),
        None => Ok(text),
    }
}

/// The input function of a type without modifier.
pub fn parse_plain(text: &Text, pg_type: PgType, settings: &FormatSettings) -> SqlResult<Datum> {
    let str = text.as_str();
    Ok(match pg_type {
        PgType::Bool => Datum::Bool(parse_bool(str)?),
        PgType::Int2 => Datum::Int2(parse_int(str, pg_type)?),
        PgType::Int4 => Datum::Int4(parse_int(str, pg_type)?),
        PgType::Int8 => Datum::Int8(parse_int(str, pg_type)?),
        PgType::Float4 => Datum::Float4(float::parse_f32(str)?),
        PgType::Float8 => Datum::Float8(float::parse_f64(str)?),
        PgType::Numeric => Datum::Numeric(Decimal::parse(str)?),
        PgType::Text | PgType::Varchar | PgType::Unknown => Datum::Text(text.clone()),
        PgType::Bpchar => Datum::Text(text.truncated(str.trim_end_matches(' ').len())),
        PgType::Name => Datum::Text(text.truncated(floor_char_boundary(str, MAX_NAME_BYTES))),
        PgType::Char => Datum::Text(text.truncated(floor_char_boundary(str, 1))),
        PgType::Bytea => Datum::Bytea(parse_bytea(str)?),
        PgType::Date => Datum::Date(datetime::parse_date(str)?),
        PgType::Timestamp => Datum::Timestamp(datetime::parse_timestamp(str)?),
        PgType::TimestampTz => Datum::TimestampTz(datetime::parse_timestamptz(str, settings.time_zone)?),
        PgType::Uuid => Datum::Uuid(parse_uuid(str)?),
        PgType::Oid | PgType::Regclass | PgType::Regtype => Datum::Oid(parse_oid(str, pg_type)?),
        PgType::Void => Datum::Null,
    })
}

fn floor_char_boundary(text: &str, max: usize) -> usize {
    (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// `boolin`: any unambiguous beginning of true, false, yes, no, on, off; 1, 0.
fn parse_bool(text: &str) -> SqlResult<bool> {
    let word = text.trim_matches(|c: char| c.is_ascii_whitespace()).to_ascii_lowercase();
    let begins = |full: &str, least: usize| word.len() >= least && full.starts_with(&word);
    if word == "1" || begins("true", 1) || begins("yes", 1) || word == "on" {
        Ok(true)
    } else if word == "0" || begins("false", 1) || begins("no", 1) || begins("off", 2) {
        Ok(false)
    } else {
        Err(SqlError::invalid_input("boolean", text))
    }
}

fn parse_int<T: std::str::FromStr<Err = std::num::ParseIntError>>(text: &str, pg_type: PgType) -> SqlResult<T> {
    let word = text.trim_matches(|c: char| c.is_ascii_whitespace());
    word.parse().map_err(|error: std::num::ParseIntError| match error.kind() {
        std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
            SqlError::value_out_of_range(pg_type.sql_name(), text)
        }
        _ => SqlError::invalid_input(pg_type.sql_name(), text),
    })
}

fn parse_oid(text: &str, pg_type: PgType) -> SqlResult<u32> {
    let word = text.trim_matches(|c: char| c.is_ascii_whitespace());
    if let Ok(oid) = word.parse::<u32>() {
        return Ok(oid);
    }
    match word.parse::<i32>() {
        Ok(negative) => Ok(negative as u32),
        Err(_) if word.bytes().all(|b| b.is_ascii_digit()) && !word.is_empty() => {
            Err(SqlError::value_out_of_range(pg_type.sql_name(), text))
        }
        Err(_) => Err(SqlError::invalid_input(pg_type.sql_name(), text)),
    }
}

/// `byteain`: `\x` and hexadecimal digits, or the escape form.
fn parse_bytea(text: &str) -> SqlResult<Bytes> {
    if let Some(hex) = text.strip_prefix("\\x") {
        let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        let value = |b: u8| {
            (b as char).to_digit(16).map(|d| d as u8).ok_or_else(|| {
                SqlError::new(
                    SqlState::INVALID_PARAMETER_VALUE,
                    format!("invalid hexadecimal digit: \"{}\"", (b as char).escape_default()),
                )
            })
        };
        if !digits.len().is_multiple_of(2) {
            return Err(SqlError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                "invalid hexadecimal data: odd number of digits",
            ));
        }
        return digits.chunks(2).map(|pair| Ok(value(pair[0])? << 4 | value(pair[1])?)).collect();
    }
    let bytes = text.as_bytes();
    let mut out = BytesMut::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            out.extend_from_slice(&bytes[at..=at]);
            at += 1;
        } else if bytes.get(at + 1) == Some(&b'\\') {
            out.extend_from_slice(b"\\");
            at += 2;
        } else {
            let octal = bytes
                .get(at + 1..at + 4)
                .filter(|d| (b'0'..=b'3').contains(&d[0]) && d[1..].iter().all(|b| (b'0'..=b'7').contains(b)));
            let octal = octal.ok_or_else(|| {
                SqlError::new(SqlState::INVALID_TEXT_REPRESENTATION, "invalid input syntax for type bytea")
            })?;
            out.extend_from_slice(&[(octal[0] - b'0') << 6 | (octal[1] - b'0') << 3 | (octal[2] - b'0')]);
            at += 4;
        }
    }
    Ok(out.freeze())
}

fn parse_uuid(text: &str) -> SqlResult<[u8; 16]> {
    let body = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
    let digits: String = body.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || body.starts_with('-') || body.ends_with('-') || body.contains("--") {
        return Err(SqlError::invalid_input("uuid", text));
    }
    uuid::Uuid::try_parse(&digits).map(uuid::Uuid::into_bytes).map_err(|_| SqlError::invalid_input("uuid", text))
}

/// Cuts blanks past `n` characters off; 22001 when something else is there. `char(n)` loses all trailing blanks.
pub(super) fn fit_characters(text: Text, n: usize, column_type: &ColumnType) -> SqlResult<Text> {
    let str = text.as_str();
    let end = match str.char_indices().nth(n) {
        None => str.len(),
        Some((end, _)) if str[end..].bytes().all(|b| b == b' ') => end,
        Some(_) => {
            return Err(SqlError::new(
                SqlState::STRING_DATA_RIGHT_TRUNCATION,
                format!("value too long for type {}", column_type.sql_name()),
            ));
        }
    };
    let end = if column_type.pg_type == PgType::Bpchar { str[..end].trim_end_matches(' ').len() } else { end };
    Ok(if end == str.len() { text } else { text.truncated(end) })
}

/// The output function: appends the text of `datum`, a value of `column_type` that is not NULL (NULL writes nothing).
pub fn format(datum: &Datum, column_type: ColumnType, settings: &FormatSettings, out: &mut String) {
    use std::fmt::Write;
    let written = match datum {
        Datum::Null => Ok(()),
        Datum::Bool(v) => write!(out, "{}", if *v { 't' } else { 'f' }),
        Datum::Int2(v) => write!(out, "{v}"),
        Datum::Int4(v) => write!(out, "{v}"),
        Datum::Int8(v) => write!(out, "{v}"),
        Datum::Oid(v) => write!(out, "{v}"),
        Datum::Uuid(v) => write!(out, "{}", uuid::Uuid::from_bytes(*v)),
        other => {
            format_long(other, column_type, settings, out);
            Ok(())
        }
    };
    written.expect("a String takes everything");
}

fn format_long(datum: &Datum, column_type: ColumnType, settings: &FormatSettings, out: &mut String) {
    match datum {
        Datum::Float4(v) => float::format_f32(*v, settings.shortest_floats, out),
        Datum::Float8(v) => float::format_f64(*v, settings.shortest_floats, out),
        Datum::Numeric(v) => v.format(out),
        Datum::Text(v) => {
            out.push_str(v.as_str());
            if column_type.pg_type == PgType::Bpchar
                && let Some(n) = column_type.max_characters()
            {
                let missing = (n as usize).saturating_sub(v.as_str().chars().count());
                out.extend(std::iter::repeat_n(' ', missing));
            }
        }
        Datum::Bytea(v) => format_bytea(v, settings.bytea_escape, out),
        Datum::Date(v) => datetime::format_date(*v, out),
        Datum::Timestamp(v) => datetime::format_timestamp(*v, out),
        Datum::TimestampTz(v) => datetime::format_timestamptz(*v, settings.time_zone, out),
        _ => {}
    }
}

fn format_bytea(bytes: &[u8], escape: bool, out: &mut String) {
    use std::fmt::Write;
    const HEX: &[u8; 16] = b"0123456789abcdef";
    if !escape {
        out.reserve(2 + bytes.len() * 2);
        out.push_str("\\x");
        for byte in bytes {
            out.push(HEX[usize::from(byte >> 4)] as char);
            out.push(HEX[usize::from(byte & 15)] as char);
        }
        return;
    }
    for byte in bytes {
        match byte {
            b'\\' => out.push_str("\\\\"),
            0x20..=0x7e => out.push(*byte as char),
            other => write!(out, "\\{other:03o}").expect("a String takes everything"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(text: &str, column_type: impl Into<ColumnType>) -> Result<String, &'static str> {
        let (column_type, settings) = (column_type.into(), FormatSettings::default());
        let datum =
            parse(&Bytes::copy_from_slice(text.as_bytes()), column_type, &settings).map_err(|e| e.sqlstate.0)?;
        let mut out = String::new();
        format(&datum, column_type, &settings, &mut out);
        Ok(out)
    }

    #[test]
    fn values_and_refusals_are_postgresqls() {
        assert_eq!(round(" 42 ", PgType::Int4).unwrap(), "42");
        assert_eq!(round("+42", PgType::Int4).unwrap(), "42");
        assert_eq!(round("40000", PgType::Int2), Err("22003"));
        assert_eq!(round("4x", PgType::Int8), Err("22P02"));
        assert_eq!(round("", PgType::Int4), Err("22P02"));
        assert_eq!(round("YE", PgType::Bool).unwrap(), "t");
        assert_eq!(round("o", PgType::Bool), Err("22P02"));
        assert_eq!(round("\\xDEad be", PgType::Bytea).unwrap(), "\\xdeadbe");
        assert_eq!(round("a\\\\\\001", PgType::Bytea).unwrap(), "\\x615c01");
        assert_eq!(round("{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}", PgType::Uuid).unwrap().len(), 36);
        assert_eq!(round("a0ee", PgType::Uuid), Err("22P02"));
        let char_4 = ColumnType::characters(PgType::Bpchar, 4).unwrap();
        assert_eq!(round("ab", char_4).unwrap(), "ab  ");
        assert_eq!(round("abcd   ", char_4).unwrap(), "abcd");
        assert_eq!(round("abcde", char_4), Err("22001"));
        let varchar_3 = ColumnType::characters(PgType::Varchar, 3).unwrap();
        assert_eq!(round("äöü ", varchar_3).unwrap(), "äöü");
        assert_eq!(round("a\0b", PgType::Text), Err("22021"));
        assert_eq!(round("1234.565", ColumnType::numeric(8, 2).unwrap()).unwrap(), "1234.57");
    }
}
