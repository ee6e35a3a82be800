//! Keys, records and scan tokens of namespaces. PURE.
//!
//! ```text
//! keyspace 2 ‖ 0 ‖ 0 ‖ bytes(name)          1u8 ‖ mode u8 ‖ keyspace u32      the namespace of this name
//! keyspace N ‖ 0 ‖ 0 ‖ bytes(key)           strong:    1u8 ‖ value
//!                                           eventual:  see `lww`
//!
//! bytes(b)   b with 00 → 00 FF, then 00 01: prefix-free, in the order of b
//! token      1u8 ‖ keyspace u32 ‖ read_ts u64 ‖ reverse u8 ‖ border          where a scan goes on, opaque to clients
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use proto::{KeyRange, Timestamp, keyspace};

/// First byte of every record here.
pub const VERSION: u8 = 1;
/// Longest name, bytes.
pub const NAME_BYTES_MAX: usize = 64;

const ESCAPED: u8 = 0xff;
const TERMINATOR: u8 = 0x01;

/// How a namespace keeps its promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Linearizable; a write waits for a quorum.
    Strong,
    /// Any node accepts a write and any replica answers; the write with the latest timestamp wins in the end.
    Eventual,
}

/// A named part of the key space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// As clients call it.
    pub name: String,
    /// Its promise; for good.
    pub mode: Mode,
    /// Its keys start with this.
    pub keyspace: u32,
}

/// What is wrong with a name, if anything.
pub fn check_name(name: &str) -> Result<(), String> {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.');
    match !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(fine) {
        true => Ok(()),
        false => Err(format!(
            "namespace {name:?}: a name has 1 to {NAME_BYTES_MAX} of the characters a-z, 0-9, '_', '-' and '.'"
        )),
    }
}

fn escape(bytes: &[u8], out: &mut BytesMut) {
    for &byte in bytes {
        out.put_u8(byte);
        if byte == 0 {
            out.put_u8(ESCAPED);
        }
    }
    out.put_slice(&[0, TERMINATOR]);
}

fn unescape(mut bytes: &[u8]) -> Option<Bytes> {
    let mut out = BytesMut::with_capacity(bytes.len());
    loop {
        let (&byte, rest) = bytes.split_first()?;
        match (byte, rest.first()) {
            (0, Some(&ESCAPED)) => {
                out.put_u8(0);
                bytes = &rest[1..];
            }
            (0, Some(&TERMINATOR)) => return (rest.len() == 1).then(|| out.freeze()),
            (0, _) => return None,
            (byte, _) => {
                out.put_u8(byte);
                bytes = rest;
            }
        }
    }
}

/// A client's key as regions hold it.
pub fn encode(keyspace: u32, key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(keyspace::PREFIX_LEN + key.len() + 2);
    out.put_slice(&keyspace::index_prefix(keyspace, 0, 0));
    escape(key, &mut out);
    out.freeze()
}

/// The client's key; `None` when it is none of a namespace.
pub fn decode(key: &[u8]) -> Option<Bytes> {
    let (_, 0, 0, rest) = keyspace::split_prefix(key)? else { return None };
    unescape(rest)
}

/// The keys from `start` to before `end`; an empty `end` is "to the last".
pub fn range(keyspace: u32, start: &[u8], end: &[u8]) -> KeyRange {
    let end = if end.is_empty() { keyspace::index_range(keyspace, 0, 0).end } else { encode(keyspace, end) };
    KeyRange::new(encode(keyspace, start), end)
}

/// Where the namespace of a name is recorded.
pub fn registry_key(name: &str) -> Bytes {
    encode(keyspace::NAMESPACES_KEYSPACE, name.as_bytes())
}

/// All records of namespaces.
pub fn registry() -> KeyRange {
    range(keyspace::NAMESPACES_KEYSPACE, b"", b"")
}

/// A namespace's record.
pub fn encode_namespace(mode: Mode, keyspace: u32) -> Bytes {
    let mut out = BytesMut::with_capacity(6);
    out.put_u8(VERSION);
    out.put_u8(match mode {
        Mode::Strong => 1,
        Mode::Eventual => 2,
    });
    out.put_u32(keyspace);
    out.freeze()
}

/// Reads [`encode_namespace`]'s bytes; `None` when they are not of this version.
pub fn decode_namespace(mut record: &[u8]) -> Option<(Mode, u32)> {
    if record.len() != 6 || record.get_u8() != VERSION {
        return None;
    }
    let mode = match record.get_u8() {
        1 => Mode::Strong,
        2 => Mode::Eventual,
        _ => return None,
    };
    Some((mode, record.get_u32()))
}

/// A strong value's record.
pub fn encode_value(value: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + value.len());
    out.put_u8(VERSION);
    out.put_slice(value);
    out.freeze()
}

/// Reads [`encode_value`]'s bytes.
pub fn decode_value(record: Bytes) -> Option<Bytes> {
    (record.first() == Some(&VERSION)).then(|| record.slice(1..))
}

/// Where a scan goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Of the namespace.
    pub keyspace: u32,
    /// The scan's snapshot.
    pub read_ts: Timestamp,
    /// Its direction.
    pub reverse: bool,
    /// The start of what is left (the end, in reverse), as regions hold it.
    pub border: Bytes,
}

impl Token {
    /// For the client.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(14 + self.border.len());
        out.put_u8(VERSION);
        out.put_u32(self.keyspace);
        out.put_u64(self.read_ts.0);
        out.put_u8(u8::from(self.reverse));
        out.put_slice(&self.border);
        out.freeze()
    }
    /// From the client; `None` when it is no token.
    pub fn decode(mut token: Bytes) -> Option<Token> {
        if token.len() < 14 || token.get_u8() != VERSION {
            return None;
        }
        let (keyspace, read_ts) = (token.get_u32(), Timestamp(token.get_u64()));
        let reverse = match token.get_u8() {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Token { keyspace, read_ts, reverse, border: token })
    }
}

/// A border right behind an encoded key: all that is stored of it lies before, all later keys behind. (The key with a zero
/// appended would lie before the key's own versions, which end in inverted timestamps.)
pub fn after(key: &[u8]) -> Bytes {
    let mut out = BytesMut::from(key);
    if let Some(last) = out.last_mut() {
        *last = TERMINATOR + 1;
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_order_as_the_clients_do_and_none_is_a_prefix(a: Vec<u8>, b: Vec<u8>) {
            let (ka, kb) = (encode(7, &a), encode(7, &b));
            prop_assert_eq!(ka.cmp(&kb), a.cmp(&b));
            prop_assert_eq!(decode(&ka), Some(Bytes::from(a.clone())));
            prop_assert!(a == b || !kb.starts_with(&ka));
            prop_assert!(range(7, b"", b"").contains(&ka) && !range(8, b"", b"").contains(&ka));
            prop_assert!(ka < after(&ka) && (kb <= ka || after(&ka) <= kb));
        }

        #[test]
        fn tokens_survive_and_random_bytes_are_refused_or_read(
            border: Vec<u8>, read_ts: u64, keyspace: u32, reverse: bool, junk: Vec<u8>,
        ) {
            let token = Token { keyspace, read_ts: Timestamp(read_ts), reverse, border: border.into() };
            prop_assert_eq!(Token::decode(token.encode()), Some(token));
            let _ = (Token::decode(junk.clone().into()), decode(&junk), decode_namespace(&junk), decode_value(junk.into()));
        }
    }

    #[test]
    fn names_are_plain() {
        assert!(check_name("a-b_c.9").is_ok());
        for bad in ["", "A", "a b", "ä", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert_eq!(decode_namespace(&encode_namespace(Mode::Eventual, 101)), Some((Mode::Eventual, 101)));
    }
}
