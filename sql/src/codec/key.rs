//! Order-preserving, prefix-free encodings of key columns. PURE.
//!
//! ```text
//!   boolean                  1 byte, 0 or 1
//!   integers, dates, times   big endian, the sign bit flipped                       2, 4 or 8 bytes
//!   floats                   IEEE bits; negative: all flipped, others: sign flipped; −0 is 0, NaN the greatest
//!   uuid, oid                as they are, big endian
//!   text, bytea              bytes with 00 → 00 FF, then 00 01                       ("a" < "a\0" < "ab")
//!   numeric                  02 for 0; 03 ‖ exponent i16+8000h ‖ digit pairs 1…100 ‖ 00; negative: 01 ‖ all flipped
//!   nullable column          one byte before it: 01 value, 02 NULL (NULLS LAST); NULLS FIRST: 00 NULL
//!   DESC                     all bytes of the value flipped
//! ```
//!
//! Text orders by bytes (collation "C"). `char(n)` comes without trailing blanks, as PostgreSQL compares it.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    error::{SqlError, SqlResult, SqlState},
    types::{Datum, Decimal, PgType, Text},
};

/// Longest encoded key, in bytes: keys are held in locks, region borders and routing tables.
pub const MAX_KEY_BYTES: usize = 8 * 1024;

const NULL_FIRST: u8 = 0x00;
const NOT_NULL: u8 = 0x01;
const NULL_LAST: u8 = 0x02;
const ESCAPED: u8 = 0xff;
const TERMINATOR: u8 = 0x01;
const NEGATIVE: u8 = 0x01;
const ZERO: u8 = 0x02;
const POSITIVE: u8 = 0x03;
/// Makes exponents from −38 to 38 positive.
const EXPONENT_BIAS: i32 = 0x8000;

/// How a column stands in a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its type.
    pub pg_type: PgType,
    /// May be NULL: costs a byte.
    pub nullable: bool,
    /// Greatest first.
    pub descending: bool,
    /// NULLs before all values.
    pub nulls_first: bool,
}

impl KeyColumn {
    /// A primary key's column: ascending, never NULL.
    pub fn primary(pg_type: PgType) -> Self {
        KeyColumn { pg_type, nullable: false, descending: false, nulls_first: false }
    }
    /// What all keys begin with that go on behind `prefix` with a value, and not with NULL, of this nullable column.
    pub fn values_behind(self, prefix: &[u8]) -> Bytes {
        let mut out = BytesMut::from(prefix);
        out.put_u8(NOT_NULL);
        out.freeze()
    }
}

fn corrupt() -> SqlError {
    SqlError::new(SqlState::DATA_CORRUPTED, "a key does not decode by its table's descriptor")
}

/// Appends a column to a key. The datum is of the column's type; NULL only where the column is nullable.
pub fn encode(datum: &Datum, column: KeyColumn, out: &mut BytesMut) {
    if column.nullable {
        let null = if column.nulls_first { NULL_FIRST } else { NULL_LAST };
        out.put_u8(if datum.is_null() { null } else { NOT_NULL });
    }
    let start = out.len();
    encode_value(datum, out);
    if column.descending {
        out[start..].iter_mut().for_each(|byte| *byte = !*byte);
    }
}

fn encode_value(datum: &Datum, out: &mut BytesMut) {
    match datum {
        Datum::Null => {}
        Datum::Bool(v) => out.put_u8(u8::from(*v)),
        Datum::Int2(v) => out.put_u16(*v as u16 ^ 1 << 15),
        Datum::Int4(v) | Datum::Date(v) => out.put_u32(*v as u32 ^ 1 << 31),
        Datum::Int8(v) | Datum::Timestamp(v) | Datum::TimestampTz(v) => out.put_u64(*v as u64 ^ 1 << 63),
        Datum::Float4(v) => {
            let bits = if v.is_nan() { f32::NAN.to_bits() & !(1 << 31) } else { (v + 0.0).to_bits() };
            out.put_u32(if bits >> 31 == 1 { !bits } else { bits | 1 << 31 });
        }
        Datum::Float8(v) => {
            let bits = if v.is_nan() { f64::NAN.to_bits() & !(1 << 63) } else { (v + 0.0).to_bits() };
            out.put_u64(if bits >> 63 == 1 { !bits } else { bits | 1 << 63 });
        }
        Datum::Oid(v) => out.put_u32(*v),
        Datum::Uuid(v) => out.put_slice(v),
        Datum::Text(v) => encode_bytes(v.as_bytes(), out),
        Datum::Bytea(v) => encode_bytes(v, out),
        Datum::Numeric(v) => encode_numeric(v, out),
    }
}

fn encode_bytes(bytes: &[u8], out: &mut BytesMut) {
    out.reserve(bytes.len() + 2);
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == 0) {
        out.put_slice(&rest[..=at]);
        out.put_u8(ESCAPED);
        rest = &rest[at + 1..];
    }
    out.put_slice(rest);
    out.put_slice(&[0, TERMINATOR]);
}

fn encode_numeric(value: &Decimal, out: &mut BytesMut) {
    if value.is_zero() {
        return out.put_u8(ZERO);
    }
    out.put_u8(if value.mantissa() < 0 { NEGATIVE } else { POSITIVE });
    let start = out.len();
    let digits = value.mantissa().unsigned_abs().to_string();
    // value = 0.d1d2d3… × 10^exponent
    let exponent = digits.len() as i32 - i32::from(value.scale());
    out.put_u16((exponent + EXPONENT_BIAS) as u16);
    let digits = digits.trim_end_matches('0').as_bytes();
    for pair in digits.chunks(2) {
        let low = pair.get(1).map_or(0, |digit| digit - b'0');
        out.put_u8((pair[0] - b'0') * 10 + low + 1);
    }
    out.put_u8(0);
    if value.mantissa() < 0 {
        out[start..].iter_mut().for_each(|byte| *byte = !*byte);
    }
}

/// Takes a column off the front of `key`; XX001 when it is not of that column's form.
pub fn decode(key: &mut &[u8], column: KeyColumn) -> SqlResult<Datum> {
    if column.nullable {
        match take(key, 1)?[0] {
            NOT_NULL => {}
            NULL_FIRST | NULL_LAST => return Ok(Datum::Null),
            _ => return Err(corrupt()),
        }
    }
    let flip = if column.descending { 0xff } else { 0 };
    Ok(match column.pg_type {
        PgType::Bool => Datum::Bool(fixed::<1>(key, flip)?[0] != 0),
        PgType::Int2 => Datum::Int2((u16::from_be_bytes(fixed(key, flip)?) ^ 1 << 15) as i16),
        PgType::Int4 => Datum::Int4((u32::from_be_bytes(fixed(key, flip)?) ^ 1 << 31) as i32),
        PgType::Date => Datum::Date((u32::from_be_bytes(fixed(key, flip)?) ^ 1 << 31) as i32),
        PgType::Int8 => Datum::Int8((u64::from_be_bytes(fixed(key, flip)?) ^ 1 << 63) as i64),
        PgType::Timestamp => Datum::Timestamp((u64::from_be_bytes(fixed(key, flip)?) ^ 1 << 63) as i64),
        PgType::TimestampTz => Datum::TimestampTz((u64::from_be_bytes(fixed(key, flip)?) ^ 1 << 63) as i64),
        PgType::Float4 => {
            let bits = u32::from_be_bytes(fixed(key, flip)?);
            Datum::Float4(f32::from_bits(if bits >> 31 == 1 { bits ^ 1 << 31 } else { !bits }))
        }
        PgType::Float8 => {
            let bits = u64::from_be_bytes(fixed(key, flip)?);
            Datum::Float8(f64::from_bits(if bits >> 63 == 1 { bits ^ 1 << 63 } else { !bits }))
        }
        PgType::Oid | PgType::Regclass | PgType::Regtype => Datum::Oid(u32::from_be_bytes(fixed(key, flip)?)),
        PgType::Uuid => Datum::Uuid(fixed(key, flip)?),
        PgType::Numeric => Datum::Numeric(decode_numeric(key, flip)?),
        PgType::Bytea => Datum::Bytea(Bytes::from(decode_bytes(key, flip)?)),
        PgType::Void => Datum::Null,
        _ => Datum::Text(Text::from_utf8(Bytes::from(decode_bytes(key, flip)?)).map_err(|_| corrupt())?),
    })
}

fn take<'a>(key: &mut &'a [u8], len: usize) -> SqlResult<&'a [u8]> {
    let (taken, rest) = key.split_at_checked(len).ok_or_else(corrupt)?;
    *key = rest;
    Ok(taken)
}

fn fixed<const N: usize>(key: &mut &[u8], flip: u8) -> SqlResult<[u8; N]> {
    let mut bytes: [u8; N] = take(key, N)?.try_into().expect("N bytes were taken");
    bytes.iter_mut().for_each(|byte| *byte ^= flip);
    Ok(bytes)
}

fn decode_bytes(key: &mut &[u8], flip: u8) -> SqlResult<Vec<u8>> {
    let mut out = Vec::with_capacity(key.len());
    loop {
        let at = key.iter().position(|byte| byte ^ flip == 0).ok_or_else(corrupt)?;
        out.extend(take(key, at)?.iter().map(|byte| byte ^ flip));
        match take(key, 2)?[1] ^ flip {
            ESCAPED => out.push(0),
            TERMINATOR => return Ok(out),
            _ => return Err(corrupt()),
        }
    }
}

fn decode_numeric(key: &mut &[u8], flip: u8) -> SqlResult<Decimal> {
    let (negative, flip) = match take(key, 1)?[0] ^ flip {
        ZERO => return Ok(Decimal::from_i64(0)),
        POSITIVE => (false, flip),
        NEGATIVE => (true, !flip),
        _ => return Err(corrupt()),
    };
    let exponent = i32::from(u16::from_be_bytes(fixed(key, flip)?)) - EXPONENT_BIAS;
    let len = key.iter().position(|byte| byte ^ flip == 0).ok_or_else(corrupt)?;
    let mut mantissa: i128 = 0;
    for byte in take(key, len)? {
        let pair = i128::from((byte ^ flip) - 1);
        mantissa = mantissa.checked_mul(100).and_then(|m| m.checked_add(pair)).ok_or_else(corrupt)?;
    }
    take(key, 1)?;
    let mantissa = if negative { -mantissa } else { mantissa };
    let mut scale = len as i32 * 2 - exponent;
    let mut mantissa = mantissa;
    // An odd count of digits got a 0 behind it that may be one too many for the scale.
    while scale > 0 && mantissa % 10 == 0 {
        mantissa /= 10;
        scale -= 1;
    }
    if scale < 0 {
        let power = 10i128.checked_pow(scale.unsigned_abs()).ok_or_else(corrupt)?;
        mantissa = mantissa.checked_mul(power).ok_or_else(corrupt)?;
        scale = 0;
    }
    u8::try_from(scale).ok().and_then(|scale| Decimal::new(mantissa, scale)).ok_or_else(corrupt)
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;

    fn numeric() -> BoxedStrategy<Datum> {
        (any::<i64>(), 0u8..30, 0u32..19)
            .prop_map(|(mantissa, scale, shrink)| {
                let mantissa = i128::from(mantissa / 10i64.pow(shrink.min(18)));
                Datum::Numeric(Decimal::new(mantissa, scale).unwrap())
            })
            .boxed()
    }

    /// Pairs of values of one type, of every type a key can hold.
    fn pairs() -> BoxedStrategy<(PgType, Datum, Datum)> {
        fn of(pg_type: PgType, values: BoxedStrategy<Datum>) -> BoxedStrategy<(PgType, Datum, Datum)> {
            (values.clone(), values).prop_map(move |(a, b)| (pg_type, a, b)).boxed()
        }
        prop_oneof![
            of(PgType::Bool, any::<bool>().prop_map(Datum::Bool).boxed()),
            of(PgType::Int2, any::<i16>().prop_map(Datum::Int2).boxed()),
            of(PgType::Int4, any::<i32>().prop_map(Datum::Int4).boxed()),
            of(PgType::Int8, any::<i64>().prop_map(Datum::Int8).boxed()),
            of(PgType::Float4, any::<f32>().prop_map(Datum::Float4).boxed()),
            of(PgType::Float8, any::<f64>().prop_map(Datum::Float8).boxed()),
            of(PgType::Numeric, numeric()),
            of(PgType::Text, "[\\x00a-c]{0,5}".prop_map(Datum::text).boxed()),
            of(PgType::Bytea, prop::collection::vec(0u8..3, 0..5).prop_map(|v| Datum::Bytea(v.into())).boxed()),
            of(PgType::Date, any::<i32>().prop_map(Datum::Date).boxed()),
            of(PgType::TimestampTz, any::<i64>().prop_map(Datum::TimestampTz).boxed()),
            of(PgType::Uuid, any::<[u8; 16]>().prop_map(Datum::Uuid).boxed()),
            of(PgType::Oid, any::<u32>().prop_map(Datum::Oid).boxed()),
        ]
        .boxed()
    }

    fn encoded(datum: &Datum, column: KeyColumn) -> Bytes {
        let mut out = BytesMut::new();
        encode(datum, column, &mut out);
        out.freeze()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn the_order_of_keys_is_the_order_of_values(
            (pg_type, a, b) in pairs(), nulls in 0u8..4, descending: bool, nulls_first: bool,
        ) {
            let column = KeyColumn { pg_type, nullable: true, descending, nulls_first };
            let a = if nulls & 1 == 1 { Datum::Null } else { a };
            let b = if nulls & 2 == 2 { Datum::Null } else { b };
            let order = match (a.is_null(), b.is_null()) {
                (true, true) => Ordering::Equal,
                (true, false) => if nulls_first { Ordering::Less } else { Ordering::Greater },
                (false, true) => if nulls_first { Ordering::Greater } else { Ordering::Less },
                (false, false) => {
                    let order = a.compare(&b).unwrap();
                    if descending { order.reverse() } else { order }
                }
            };
            let (key_a, key_b) = (encoded(&a, column), encoded(&b, column));
            prop_assert_eq!(key_a.cmp(&key_b), order);
            prop_assert!(order == Ordering::Equal || !key_b.starts_with(&key_a));
            let mut rest = &key_a[..];
            prop_assert_eq!(decode(&mut rest, column).unwrap(), a);
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>, (pg_type, ..) in pairs(), descending: bool) {
            let column = KeyColumn { pg_type, nullable: true, descending, nulls_first: false };
            let _ = decode(&mut &bytes[..], column);
        }
    }
}
