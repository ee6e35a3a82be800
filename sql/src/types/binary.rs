//! Binary forms: PostgreSQL's receive and send functions.

use bytes::{BufMut, Bytes, BytesMut};

use super::{ColumnType, Datum, Decimal, FormatSettings, PgType, datetime, text};
use crate::error::{SqlError, SqlResult, SqlState};

/// Digits of a numeric travel base 10,000.
const NUMERIC_BASE: i128 = 10_000;
const NUMERIC_NEGATIVE: u16 = 0x4000;
const POSTGRES_EPOCH_US: i64 = datetime::POSTGRES_EPOCH_DAYS as i64 * datetime::DAY_US;

fn array<const N: usize>(bytes: &[u8]) -> SqlResult<[u8; N]> {
    bytes.try_into().map_err(|_| SqlError::invalid_binary("bind parameter"))
}

/// The receive function of a type; 22P03 when the bytes are not of its form.
pub fn receive(bytes: &Bytes, column_type: ColumnType) -> SqlResult<Datum> {
    let datum = match column_type.pg_type {
        PgType::Bool => Datum::Bool(array::<1>(bytes)?[0] != 0),
        PgType::Int2 => Datum::Int2(i16::from_be_bytes(array(bytes)?)),
        PgType::Int4 => Datum::Int4(i32::from_be_bytes(array(bytes)?)),
        PgType::Int8 => Datum::Int8(i64::from_be_bytes(array(bytes)?)),
        PgType::Float4 => Datum::Float4(f32::from_be_bytes(array(bytes)?)),
        PgType::Float8 => Datum::Float8(f64::from_be_bytes(array(bytes)?)),
        PgType::Numeric => Datum::Numeric(receive_numeric(bytes)?),
        PgType::Bytea => Datum::Bytea(bytes.clone()),
        PgType::Date => Datum::Date(match i32::from_be_bytes(array(bytes)?) {
            infinite @ (i32::MAX | i32::MIN) => infinite,
            days => days.checked_add(datetime::POSTGRES_EPOCH_DAYS).ok_or_else(out_of_range)?,
        }),
        PgType::Timestamp => Datum::Timestamp(receive_micros(bytes)?),
        PgType::TimestampTz => Datum::TimestampTz(receive_micros(bytes)?),
        PgType::Uuid => Datum::Uuid(array(bytes)?),
        PgType::Oid | PgType::Regclass | PgType::Regtype => Datum::Oid(u32::from_be_bytes(array(bytes)?)),
        PgType::Void => Datum::Null,
        text => text::parse_plain(&text::checked_text(bytes)?, text, &FormatSettings::default())?,
    };
    column_type.fit(datum)
}

fn out_of_range() -> SqlError {
    SqlError::new(SqlState::DATETIME_FIELD_OVERFLOW, "date/time value out of range")
}

fn receive_micros(bytes: &[u8]) -> SqlResult<i64> {
    match i64::from_be_bytes(array(bytes)?) {
        infinite @ (i64::MAX | i64::MIN) => Ok(infinite),
        micros => micros.checked_add(POSTGRES_EPOCH_US).ok_or_else(out_of_range),
    }
}

/// `numeric_recv`: digit count, weight, sign, display scale, digits base 10,000; all 16 bits.
fn receive_numeric(bytes: &[u8]) -> SqlResult<Decimal> {
    let invalid = || SqlError::invalid_binary("bind parameter");
    if bytes.len() < 8 || !bytes.len().is_multiple_of(2) {
        return Err(invalid());
    }
    let word = |at: usize| u16::from_be_bytes([bytes[at * 2], bytes[at * 2 + 1]]);
    let (count, weight, sign, scale) = (usize::from(word(0)), word(1) as i16, word(2), word(3));
    if bytes.len() != 8 + count * 2 {
        return Err(invalid());
    }
    if sign != 0 && sign != NUMERIC_NEGATIVE {
        return Err(SqlError::unsupported("NaN or infinity in a numeric"));
    }
    // Built as text: `numeric_in` has all the checks of size already.
    let mut out = String::from(if sign == NUMERIC_NEGATIVE { "-0" } else { "0" });
    for at in 0..count {
        let digit = word(4 + at);
        if i128::from(digit) >= NUMERIC_BASE {
            return Err(invalid());
        }
        out.push_str(&format!("{digit:04}"));
    }
    let exponent = (i32::from(weight) - count as i32 + 1) * 4;
    let value = Decimal::parse(&format!("{}e{exponent}", if count == 0 { "0" } else { &out }))?;
    value.rescale(u8::try_from(scale).map_err(|_| SqlError::out_of_range("numeric"))?)
}

/// The send function: appends the bytes of a value that is not NULL.
pub fn send(datum: &Datum, column_type: ColumnType, settings: &FormatSettings, out: &mut BytesMut) {
    match datum {
        Datum::Null => {}
        Datum::Bool(v) => out.put_u8(u8::from(*v)),
        Datum::Int2(v) => out.put_i16(*v),
        Datum::Int4(v) => out.put_i32(*v),
        Datum::Int8(v) => out.put_i64(*v),
        Datum::Float4(v) => out.put_f32(*v),
        Datum::Float8(v) => out.put_f64(*v),
        Datum::Numeric(v) => send_numeric(v, out),
        Datum::Bytea(v) => out.put_slice(v),
        Datum::Date(v @ (i32::MAX | i32::MIN)) => out.put_i32(*v),
        Datum::Date(v) => out.put_i32(v.saturating_sub(datetime::POSTGRES_EPOCH_DAYS)),
        Datum::Timestamp(v @ (i64::MAX | i64::MIN)) | Datum::TimestampTz(v @ (i64::MAX | i64::MIN)) => out.put_i64(*v),
        Datum::Timestamp(v) | Datum::TimestampTz(v) => out.put_i64(v.saturating_sub(POSTGRES_EPOCH_US)),
        Datum::Uuid(v) => out.put_slice(v),
        Datum::Oid(v) => out.put_u32(*v),
        Datum::Text(_) => {
            let mut text = String::new();
            text::format(datum, column_type, settings, &mut text);
            out.put_slice(text.as_bytes());
        }
    }
}

/// `numeric_send`.
fn send_numeric(value: &Decimal, out: &mut BytesMut) {
    // Align the fraction to whole base-10,000 digits.
    let fraction_digits = usize::from(value.scale()).div_ceil(4);
    let padding = (fraction_digits * 4 - usize::from(value.scale())) as u32;
    let magnitude = value.mantissa().unsigned_abs();
    let power = 10u128.pow(u32::from(value.scale()));
    let (mut whole, fraction) = (magnitude / power, magnitude % power);
    let mut fraction = fraction;
    let mut digits: Vec<u16> = Vec::with_capacity(20);
    if fraction_digits > 0 {
        // The lowest digit holds 4 − padding decimals.
        let lowest = 10u128.pow(4 - padding);
        digits.push(((fraction % lowest) * 10u128.pow(padding)) as u16);
        fraction /= lowest;
        for _ in 1..fraction_digits {
            digits.push((fraction % NUMERIC_BASE as u128) as u16);
            fraction /= NUMERIC_BASE as u128;
        }
    }
    let mut weight = -1;
    while whole > 0 {
        digits.push((whole % NUMERIC_BASE as u128) as u16);
        whole /= NUMERIC_BASE as u128;
        weight += 1;
    }
    digits.reverse();
    let leading = digits.iter().take_while(|d| **d == 0).count();
    digits.drain(..leading);
    weight -= leading as i16;
    while digits.last() == Some(&0) {
        digits.pop();
    }
    out.put_u16(digits.len() as u16);
    out.put_i16(if digits.is_empty() { 0 } else { weight });
    out.put_u16(if value.mantissa() < 0 { NUMERIC_NEGATIVE } else { 0 });
    out.put_u16(u16::from(value.scale()));
    for digit in digits {
        out.put_u16(digit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(datum: &Datum, pg_type: PgType) -> Datum {
        let mut out = BytesMut::new();
        send(datum, pg_type.plain(), &FormatSettings::default(), &mut out);
        receive(&out.freeze(), pg_type.plain()).unwrap()
    }

    #[test]
    fn values_come_back() {
        for text in
            ["0", "1", "-1.5", "12345.678", "0.0001", "0.00001", "10000", "99999999999999.99", "-0.10", "100000000"]
        {
            let value = Decimal::parse(text).unwrap();
            let Datum::Numeric(back) = round(&Datum::Numeric(value), PgType::Numeric) else { panic!("not numeric") };
            assert_eq!((back.mantissa(), back.scale()), (value.mantissa(), value.scale()), "{text}");
        }
        assert_eq!(round(&Datum::Date(-1), PgType::Date), Datum::Date(-1));
        assert_eq!(round(&Datum::Timestamp(i64::MAX), PgType::Timestamp), Datum::Timestamp(i64::MAX));
        assert_eq!(round(&Datum::TimestampTz(123_456), PgType::TimestampTz), Datum::TimestampTz(123_456));
    }

    #[test]
    fn numeric_bytes_are_postgresqls() {
        // select encode(numeric_send(-12345.678), 'hex')
        let mut out = BytesMut::new();
        send_numeric(&Decimal::parse("-12345.678").unwrap(), &mut out);
        assert_eq!(out[..], [0, 3, 0, 1, 0x40, 0, 0, 3, 0, 1, 0x09, 0x29, 0x1a, 0x7c]);
    }

    #[test]
    fn bad_bytes_are_refused() {
        let refused = |bytes: &'static [u8], t: PgType| receive(&Bytes::from_static(bytes), t.plain()).unwrap_err();
        assert_eq!(refused(&[1, 2, 3], PgType::Int4).sqlstate, SqlState::INVALID_BINARY_REPRESENTATION);
        assert_eq!(refused(&[0, 9, 0, 0], PgType::Numeric).sqlstate, SqlState::INVALID_BINARY_REPRESENTATION);
        assert_eq!(refused(&[0xff], PgType::Text).sqlstate, SqlState::CHARACTER_NOT_IN_REPERTOIRE);
    }
}
