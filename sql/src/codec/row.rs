//! The value of a row. PURE.
//!
//! ```text
//!   value   version u8 = 1 ‖ field*            fields in the order of column ids; NULL: no field
//!   field   (column id << 3 | kind) varint ‖ payload
//!   kind 0  varint, zigzag       booleans, integers, dates, timestamps, oid
//!   kind 1  8 bytes LE           double precision
//!   kind 2  length varint ‖ …    text, bytea, uuid, numeric (scale u8 ‖ mantissa, least two's complement BE)
//!   kind 5  4 bytes LE           real
//! ```
//!
//! A field says how long it is without its column's type, so that columns which were dropped are stepped over.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    error::{SqlError, SqlResult, SqlState},
    types::{Datum, Decimal, PgType, Text},
};

/// The version of the format above.
pub const VERSION: u8 = 1;
/// Longest row, in bytes: it has to fit a proposal.
pub const MAX_ROW_BYTES: usize = 4 << 20;

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED_32: u64 = 5;

fn corrupt(what: &str) -> SqlError {
    SqlError::new(SqlState::DATA_CORRUPTED, format!("a row does not decode: {what}"))
}

fn put_varint(mut value: u64, out: &mut BytesMut) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Starts a row's value.
pub fn start(out: &mut BytesMut) {
    out.put_u8(VERSION);
}

/// Appends a column; ids must ascend. NULL appends nothing.
pub fn push(column_id: u32, datum: &Datum, out: &mut BytesMut) {
    let tag = |kind: u64, out: &mut BytesMut| put_varint(u64::from(column_id) << 3 | kind, out);
    let bytes = |bytes: &[u8], out: &mut BytesMut| {
        tag(LENGTH, out);
        put_varint(bytes.len() as u64, out);
        out.put_slice(bytes);
    };
    let varint = match datum {
        Datum::Null => return,
        Datum::Bool(v) => i64::from(*v),
        Datum::Int2(v) => i64::from(*v),
        Datum::Int4(v) | Datum::Date(v) => i64::from(*v),
        Datum::Int8(v) | Datum::Timestamp(v) | Datum::TimestampTz(v) => *v,
        Datum::Oid(v) => i64::from(*v),
        Datum::Float4(v) => {
            tag(FIXED_32, out);
            return out.put_f32_le(*v);
        }
        Datum::Float8(v) => {
            tag(FIXED_64, out);
            return out.put_f64_le(*v);
        }
        Datum::Text(v) => return bytes(v.as_bytes(), out),
        Datum::Bytea(v) => return bytes(v, out),
        Datum::Uuid(v) => return bytes(v, out),
        Datum::Numeric(v) => {
            let mantissa = v.mantissa().to_be_bytes();
            let sign = if v.mantissa() < 0 { 0xff } else { 0 };
            let skip = mantissa.iter().take_while(|byte| **byte == sign).count();
            // Keep one byte whose top bit is the sign.
            let skip = if skip > 0 && (skip == 16 || mantissa[skip] >> 7 != sign >> 7) { skip - 1 } else { skip };
            let mut packed = [0; 17];
            packed[0] = v.scale();
            packed[1..17 - skip].copy_from_slice(&mantissa[skip..]);
            return bytes(&packed[..17 - skip], out);
        }
    };
    tag(VARINT, out);
    put_varint(zigzag(varint), out);
}

/// A field's payload, before its column's type is known.
enum Payload {
    Varint(i64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Bytes),
}

/// Reads a value's fields one after another.
pub struct Fields<'a> {
    value: &'a Bytes,
    at: usize,
}

impl<'a> Fields<'a> {
    /// XX001 for a version this build does not know.
    pub fn new(value: &'a Bytes) -> SqlResult<Self> {
        match value.first() {
            Some(&VERSION) => Ok(Fields { value, at: 1 }),
            Some(other) => Err(corrupt(&format!("its format is {other}, this build knows {VERSION}"))),
            None => Err(corrupt("it is empty")),
        }
    }
    fn varint(&mut self) -> SqlResult<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.value.get(self.at).ok_or_else(|| corrupt("it ends early"))?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(corrupt("a number has too many bytes"))
    }
    fn take(&mut self, len: usize) -> SqlResult<std::ops::Range<usize>> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.value.len());
        let range = self.at..end.ok_or_else(|| corrupt("it ends early"))?;
        self.at = range.end;
        Ok(range)
    }
    /// Column id of the next field; `None` at the end. Then call [`Fields::datum`] or [`Fields::skip`].
    pub fn next_header(&mut self) -> SqlResult<Option<Header>> {
        if self.at == self.value.len() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let column_id = u32::try_from(tag >> 3).map_err(|_| corrupt("a column id is too big"))?;
        Ok(Some(Header { column_id, kind: tag & 7 }))
    }
    fn payload(&mut self, header: &Header) -> SqlResult<Payload> {
        Ok(match header.kind {
            VARINT => Payload::Varint(unzigzag(self.varint()?)),
            FIXED_64 => Payload::Fixed64(self.value[self.take(8)?].try_into().expect("eight bytes")),
            FIXED_32 => Payload::Fixed32(self.value[self.take(4)?].try_into().expect("four bytes")),
            LENGTH => {
                let len = usize::try_from(self.varint()?).map_err(|_| corrupt("a length is too big"))?;
                Payload::Bytes(self.value.slice(self.take(len)?))
            }
            other => return Err(corrupt(&format!("it has a field of kind {other}"))),
        })
    }
    /// Steps over the field.
    pub fn skip(&mut self, header: &Header) -> SqlResult<()> {
        self.payload(header).map(|_| ())
    }
    /// The field as a value of `pg_type`; text and bytea share the row's buffer.
    pub fn datum(&mut self, header: &Header, pg_type: PgType) -> SqlResult<Datum> {
        let wrong = || corrupt(&format!("column {} is no {}", header.column_id, pg_type.sql_name()));
        let payload = self.payload(header)?;
        Ok(match (pg_type, payload) {
            (PgType::Bool, Payload::Varint(v)) => Datum::Bool(v != 0),
            (PgType::Int2, Payload::Varint(v)) => Datum::Int2(v.try_into().map_err(|_| wrong())?),
            (PgType::Int4, Payload::Varint(v)) => Datum::Int4(v.try_into().map_err(|_| wrong())?),
            (PgType::Int8, Payload::Varint(v)) => Datum::Int8(v),
            (PgType::Date, Payload::Varint(v)) => Datum::Date(v.try_into().map_err(|_| wrong())?),
            (PgType::Timestamp, Payload::Varint(v)) => Datum::Timestamp(v),
            (PgType::TimestampTz, Payload::Varint(v)) => Datum::TimestampTz(v),
            (PgType::Oid | PgType::Regclass | PgType::Regtype, Payload::Varint(v)) => {
                Datum::Oid(v.try_into().map_err(|_| wrong())?)
            }
            (PgType::Float8, Payload::Fixed64(v)) => Datum::Float8(f64::from_le_bytes(v)),
            (PgType::Float4, Payload::Fixed32(v)) => Datum::Float4(f32::from_le_bytes(v)),
            (PgType::Uuid, Payload::Bytes(v)) => Datum::Uuid(v[..].try_into().map_err(|_| wrong())?),
            (PgType::Bytea, Payload::Bytes(v)) => Datum::Bytea(v),
            (PgType::Numeric, Payload::Bytes(v)) => Datum::Numeric(unpack(&v).ok_or_else(wrong)?),
            (text, Payload::Bytes(v)) if text.is_text() => Datum::Text(Text::from_utf8(v).map_err(|_| wrong())?),
            _ => return Err(wrong()),
        })
    }
}

/// What a field begins with.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Whose value it is.
    pub column_id: u32,
    kind: u64,
}

fn unpack(bytes: &[u8]) -> Option<Decimal> {
    let (scale, mantissa) = bytes.split_first()?;
    if mantissa.is_empty() || mantissa.len() > 16 {
        return None;
    }
    let sign = if mantissa[0] >> 7 == 1 { 0xff } else { 0 };
    let mut wide = [sign; 16];
    wide[16 - mantissa.len()..].copy_from_slice(mantissa);
    Decimal::new(i128::from_be_bytes(wide), *scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_come_back() {
        let numeric = |text: &str| Datum::Numeric(Decimal::parse(text).unwrap());
        let row = [
            (1, PgType::Int4, Datum::Int4(-5)),
            (2, PgType::Text, Datum::text("héllo")),
            (4, PgType::Float8, Datum::Float8(1.5)),
            (5, PgType::Numeric, numeric("-128")),
            (6, PgType::Numeric, numeric("0.00")),
            (7, PgType::Numeric, numeric("255")),
            (8, PgType::Numeric, numeric("-99999999999999999999999999999999999999")),
            (9, PgType::Uuid, Datum::Uuid([9; 16])),
            (900, PgType::TimestampTz, Datum::TimestampTz(i64::MIN)),
        ];
        let mut out = BytesMut::new();
        start(&mut out);
        row.iter().for_each(|(id, _, datum)| push(*id, datum, &mut out));
        push(901, &Datum::Null, &mut out);
        let value = out.freeze();
        let mut fields = Fields::new(&value).unwrap();
        for (id, pg_type, datum) in row {
            let header = fields.next_header().unwrap().unwrap();
            assert_eq!(header.column_id, id);
            assert_eq!(fields.datum(&header, pg_type).unwrap(), datum);
        }
        assert!(fields.next_header().unwrap().is_none());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes: Vec<u8>, kind in 0usize..20) {
            bytes.insert(0, VERSION);
            let value = Bytes::from(bytes);
            let mut fields = Fields::new(&value).unwrap();
            while let Ok(Some(header)) = fields.next_header() {
                if fields.datum(&header, crate::types::TYPES[kind].pg_type).is_err() {
                    break;
                }
            }
        }
    }
}
