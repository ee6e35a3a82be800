//! Records of the `data` column family: what a committed transaction did to a key. PURE.
//!
//! ```text
//! version   01 ‖ kind u8 ‖ start_ts u64 BE ‖ value          kind 00 put, 01 delete, 02 no change
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use proto::Timestamp;

use super::{Fault, lock::WriteKind};

const FORMAT: u8 = 1;
/// Everything before the value.
pub const HEADER_LEN: usize = 2 + 8;

/// A version as it stands in the engine, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    /// What it did.
    pub kind: WriteKind,
    /// Its transaction.
    pub start_ts: Timestamp,
    /// Of a put.
    pub value: &'a [u8],
}

impl<'a> Version<'a> {
    /// Reads the record that stands under `key`.
    pub fn decode(key: &[u8], record: &'a [u8]) -> Result<Self, Fault> {
        let parse = || {
            let (header, value) = record.split_first_chunk::<HEADER_LEN>()?;
            let (&[format, kind], ts) = header.split_first_chunk::<2>()?;
            let start_ts = Timestamp(u64::from_be_bytes(ts.try_into().ok()?));
            let kind = WriteKind::from_byte(kind).filter(|_| format == FORMAT)?;
            Some(Version { kind, start_ts, value })
        };
        parse().ok_or_else(|| Fault::corrupt(key, "version record does not decode"))
    }
}

/// The record without its value: what commit puts before the value it moves.
pub fn header(kind: WriteKind, start_ts: Timestamp) -> Bytes {
    record(kind, start_ts, &[])
}

/// The whole record.
pub fn record(kind: WriteKind, start_ts: Timestamp, value: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_LEN + value.len());
    out.put_slice(&[FORMAT, kind as u8]);
    out.put_u64(start_ts.0);
    out.put_slice(value);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_survives_storage_and_bad_ones_are_refused() {
        let stored = record(WriteKind::Put, Timestamp(7), b"value");
        let version = Version::decode(b"k", &stored).unwrap();
        assert_eq!(version, Version { kind: WriteKind::Put, start_ts: Timestamp(7), value: b"value" });
        for bad in [&b""[..], b"\x01", b"\x02\0........", b"\x01\x09........", b"\x01\0......."] {
            assert!(Version::decode(b"k", bad).is_err());
        }
    }
}
