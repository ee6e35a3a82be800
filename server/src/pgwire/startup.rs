//! The first packets of a connection: bytes to requests. PURE: no socket.
//!
//! ```text
//! length (4) ‖ code (4) ‖ rest          code = 80877103  SSLRequest      → one byte 'S' or 'N', then again
//!                                              80877104  GSSENCRequest   → 'N', then again
//!                                              80877102  CancelRequest   → nothing, the connection ends
//!                                              3.x       StartupMessage  → key\0value\0 … \0
//! ```

use bytes::{Buf, Bytes, BytesMut};

use super::frontend::utf8;

/// PostgreSQL's own limit for packets of somebody nobody knows yet.
pub const PACKET_BYTES_MAX: usize = 10_000;

/// Protocol 3.2's upper bound for a cancel key.
const SECRET_BYTES_MAX: usize = 256;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// The newest minor version of protocol 3 that FlareDB speaks.
pub const MINOR_MAX: u16 = 2;

/// What the first packets ask for.
#[derive(Debug, PartialEq)]
pub enum Opening {
    /// TLS, please.
    Ssl,
    /// GSSAPI encryption, please.
    Gss,
    /// Stop what session `pid` is doing.
    Cancel {
        /// From its BackendKeyData.
        pid: u32,
        /// Likewise; 4 bytes in protocol 3.0, up to 256 in 3.2.
        secret: Bytes,
    },
    /// A session.
    Startup(Hello),
}

/// The body of a StartupMessage.
#[derive(Debug, Default, PartialEq)]
pub struct Hello {
    /// The minor version asked for, of protocol 3.
    pub minor: u16,
    /// In the order they came: `user`, `database`, run-time settings.
    pub parameters: Vec<(String, String)>,
}

impl Hello {
    /// The last value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
    /// Parameters `_pq_.*`: protocol extensions, none of which FlareDB has.
    pub fn extensions(&self) -> impl Iterator<Item = &str> {
        self.parameters.iter().map(|(key, _)| key.as_str()).filter(|key| key.starts_with("_pq_."))
    }
}

/// A packet nobody can answer but by closing: FATAL.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum BadStartup {
    /// Not between 8 and [`PACKET_BYTES_MAX`].
    #[error("invalid length of startup packet")]
    Length,
    /// Not version 3.
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 to 3.{MINOR_MAX}")]
    Version(u16, u16),
    /// Parameters that don't end where they should.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    /// Text must be UTF-8.
    #[error("{0}")]
    Text(String),
}

/// Cuts the next packet off `buffer`; `None` until it is whole.
pub fn cut(buffer: &mut BytesMut) -> Result<Option<Opening>, BadStartup> {
    let Some(length) = buffer.get(..4) else { return Ok(None) };
    let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
    if !(8..=PACKET_BYTES_MAX).contains(&length) {
        return Err(BadStartup::Length);
    }
    if buffer.len() < length {
        return Ok(None);
    }
    let mut body = buffer.split_to(length).freeze();
    body.advance(4);
    decode(body).map(Some)
}

fn decode(mut body: Bytes) -> Result<Opening, BadStartup> {
    let code = body.get_u32();
    match code {
        SSL if body.is_empty() => Ok(Opening::Ssl),
        GSS if body.is_empty() => Ok(Opening::Gss),
        CANCEL if (5..=4 + SECRET_BYTES_MAX).contains(&body.len()) => {
            Ok(Opening::Cancel { pid: body.get_u32(), secret: body })
        }
        SSL | GSS | CANCEL => Err(BadStartup::Length),
        _ if code >> 16 == 3 => Ok(Opening::Startup(Hello { minor: code as u16, parameters: parameters(body)? })),
        _ => Err(BadStartup::Version((code >> 16) as u16, code as u16)),
    }
}

fn parameters(mut body: Bytes) -> Result<Vec<(String, String)>, BadStartup> {
    let mut parameters = Vec::new();
    loop {
        let key = string(&mut body)?;
        if key.is_empty() {
            return if body.is_empty() { Ok(parameters) } else { Err(BadStartup::Layout) };
        }
        parameters.push((key, string(&mut body)?));
    }
}

fn string(body: &mut Bytes) -> Result<String, BadStartup> {
    let end = body.iter().position(|b| *b == 0).ok_or(BadStartup::Layout)?;
    let text = body.split_to(end);
    body.advance(1);
    utf8(&text).map(str::to_owned).map_err(|e| BadStartup::Text(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &[u8]) -> Result<Option<Opening>, BadStartup> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        cut(&mut BytesMut::from(&[&length[..], body].concat()[..]))
    }

    #[test]
    fn a_startup_message_is_read() {
        let Ok(Some(Opening::Startup(hello))) = read(b"\0\x03\0\0user\0ann\0_pq_.x\x001\0\0") else { panic!() };
        assert_eq!((hello.minor, hello.parameter("user"), hello.parameter("database")), (0, Some("ann"), None));
        assert_eq!(hello.extensions().collect::<Vec<_>>(), ["_pq_.x"]);
    }

    #[test]
    fn the_other_openings_are_read() {
        assert_eq!(read(&SSL.to_be_bytes()), Ok(Some(Opening::Ssl)));
        assert_eq!(read(&GSS.to_be_bytes()), Ok(Some(Opening::Gss)));
        let cancel = [&CANCEL.to_be_bytes()[..], b"\0\0\0\x07secr"].concat();
        assert_eq!(read(&cancel), Ok(Some(Opening::Cancel { pid: 7, secret: Bytes::from_static(b"secr") })));
    }

    #[test]
    fn wrong_packets_say_why() {
        assert_eq!(read(b"\0\x02\0\0user\0ann\0\0"), Err(BadStartup::Version(2, 0)));
        assert_eq!(read(b"\0\x03\0\0user\0ann\0"), Err(BadStartup::Layout));
        assert_eq!(read(b"\0\x03\0\0user\0ann\0\0x"), Err(BadStartup::Layout));
        assert!(matches!(read(b"\0\x03\0\0user\0\xff\0\0"), Err(BadStartup::Text(_))));
        assert_eq!(cut(&mut BytesMut::from(&b"GET / HTTP/1.1\r\n"[..])), Err(BadStartup::Length));
        assert_eq!(cut(&mut BytesMut::from(&b"\0\0\0\x07"[..])), Err(BadStartup::Length));
        assert_eq!(cut(&mut BytesMut::from(&b"\0\0\0\x08\0"[..])), Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = read(&bytes);
            let _ = cut(&mut BytesMut::from(&bytes[..]));
        }
    }
}
