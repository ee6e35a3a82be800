//! What a client says: bytes to messages. PURE: no socket.
//!
//! A frame is `type (1 byte) ‖ length (4, big-endian, itself included) ‖ body`. Cutting frames and reading
//! bodies are two steps on purpose: a body that makes no sense inside a good frame is an ordinary error
//! ([`Malformed`], the session goes on), a frame that can't be cut is the end of the connection ([`BadFrame`]).
//! Bodies are views into the read buffer; only names and SQL text are copied.

use bytes::{Buf, Bytes, BytesMut};

/// The longest message taken. PostgreSQL allows 1 GiB; here one session must not be able to take the memory of all,
/// and a value has to fit a Raft entry anyway.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Type byte and length.
const HEADER_BYTES: usize = 5;

/// A message of a session that is past its startup.
#[derive(Debug, PartialEq)]
pub enum Frontend {
    /// `Q`: statements in the simple protocol.
    Query(String),
    /// `P`: prepares a statement; oid 0 is "find out".
    Parse {
        /// Empty: the unnamed statement.
        name: String,
        /// One statement.
        sql: String,
        /// As many as the client cares to tell.
        param_oids: Vec<u32>,
    },
    /// `B`: makes a portal of a statement and its parameters.
    Bind(Bind),
    /// `D`: asks for a statement's or portal's columns.
    Describe(Target),
    /// `E`: runs a portal, `max_rows` rows at most (0: all).
    Execute {
        /// Empty: the unnamed portal.
        portal: String,
        /// 0: no limit.
        max_rows: u32,
    },
    /// `C`: forgets a statement or portal; one that does not exist is fine.
    Close(Target),
    /// `H`: send what you have.
    Flush,
    /// `S`: ends a round of the extended protocol.
    Sync,
    /// `d`: a piece of a COPY FROM STDIN.
    CopyData(Bytes),
    /// `c`: the end of it.
    CopyDone,
    /// `f`: the client gives it up, and why.
    CopyFail(String),
    /// `F`: a call by function oid, which FlareDB does not have.
    FunctionCall,
    /// `p`: an answer to an authentication request nobody made.
    Password,
    /// `X`: goodbye.
    Terminate,
}

/// The body of `B`.
#[derive(Debug, Default, PartialEq)]
pub struct Bind {
    /// Empty: the unnamed portal.
    pub portal: String,
    /// Empty: the unnamed statement.
    pub statement: String,
    /// None (all text), one for all, or one each; 0 text, 1 binary.
    pub param_formats: Vec<i16>,
    /// `None` is NULL.
    pub params: Vec<Option<Bytes>>,
    /// As `param_formats`, for the columns that come back.
    pub result_formats: Vec<i16>,
}

/// What Describe and Close mean.
#[derive(Debug, PartialEq)]
pub enum Target {
    /// A prepared statement.
    Statement(String),
    /// A portal.
    Portal(String),
}

/// The stream can't be cut into messages any more: FATAL.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum BadFrame {
    /// A type byte the protocol does not have.
    #[error("invalid frontend message type {0}")]
    UnknownType(u8),
    /// A length that can't be.
    #[error("invalid message length {0}")]
    Length(i32),
    /// Above [`MESSAGE_BYTES_MAX`].
    #[error("message of {0} bytes is longer than the limit of {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
}

/// A body that does not fit its type, or text that is not UTF-8: an ERROR of this message alone.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// Shorter or longer than its parts say.
    #[error("invalid message format: {0}")]
    Body(&'static str),
    /// Text must be UTF-8; these are the bytes that are not.
    #[error("invalid byte sequence for encoding \"UTF8\": {0}")]
    NotUtf8(String),
}

/// Cuts the next frame off `buffer`; `None` until it is whole. The type byte is checked as soon as it is there.
pub fn cut(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, BadFrame> {
    let Some(&kind) = buffer.first() else { return Ok(None) };
    if !b"QPBDECHSdcfFpX".contains(&kind) {
        return Err(BadFrame::UnknownType(kind));
    }
    let Some(length) = buffer.get(1..HEADER_BYTES) else { return Ok(None) };
    let length = i32::from_be_bytes(length.try_into().expect("four bytes"));
    let frame = match usize::try_from(length) {
        Ok(l) if l >= 4 => l + 1,
        _ => return Err(BadFrame::Length(length)),
    };
    if frame > MESSAGE_BYTES_MAX {
        return Err(BadFrame::TooLong(frame));
    }
    if buffer.len() < frame {
        return Ok(None);
    }
    let mut frame = buffer.split_to(frame).freeze();
    frame.advance(HEADER_BYTES);
    Ok(Some((kind, frame)))
}

/// How long the frame at the start of `buffer` says it is; 0 while that is not known.
pub fn announced(buffer: &[u8]) -> usize {
    buffer.get(1..HEADER_BYTES).map_or(0, |l| u32::from_be_bytes(l.try_into().expect("four bytes")) as usize + 1)
}

/// Whether errors of this message type are followed by silence until the next Sync.
pub fn is_extended(kind: u8) -> bool {
    b"PBDECH".contains(&kind)
}

/// Reads the body of a frame.
pub fn decode(kind: u8, body: Bytes) -> Result<Frontend, Malformed> {
    let mut body = Body(body);
    let message = match kind {
        b'Q' => Frontend::Query(body.string()?),
        b'P' => {
            let (name, sql) = (body.string()?, body.string()?);
            Frontend::Parse { name, sql, param_oids: body.list(4, |b| b.get_u32())? }
        }
        b'B' => Frontend::Bind(body.bind()?),
        b'D' => Frontend::Describe(body.target()?),
        b'E' => {
            // A negative limit means none, as in PostgreSQL.
            let (portal, max_rows) = (body.string()?, body.int32()?);
            Frontend::Execute { portal, max_rows: u32::try_from(max_rows).unwrap_or(0) }
        }
        b'C' => Frontend::Close(body.target()?),
        b'H' => Frontend::Flush,
        b'S' => Frontend::Sync,
        b'd' => Frontend::CopyData(body.rest()),
        b'c' => Frontend::CopyDone,
        b'f' => Frontend::CopyFail(body.string()?),
        b'F' => {
            body.rest();
            Frontend::FunctionCall
        }
        b'p' => {
            body.rest();
            Frontend::Password
        }
        b'X' => Frontend::Terminate,
        _ => return Err(Malformed::Body("unknown message type")),
    };
    match body.0.is_empty() {
        true => Ok(message),
        false => Err(Malformed::Body("bytes are left over")),
    }
}

struct Body(Bytes);

impl Body {
    fn take(&mut self, n: usize) -> Result<Bytes, Malformed> {
        match n <= self.0.len() {
            true => Ok(self.0.split_to(n)),
            false => Err(Malformed::Body("insufficient data left in message")),
        }
    }
    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }
    fn int16(&mut self) -> Result<i16, Malformed> {
        Ok(self.take(2)?.get_i16())
    }
    fn int32(&mut self) -> Result<i32, Malformed> {
        Ok(self.take(4)?.get_i32())
    }
    fn string(&mut self) -> Result<String, Malformed> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(Malformed::Body("a string without its end"))?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        utf8(&text).map(str::to_owned)
    }
    /// `count (2) ‖ count × size bytes`.
    fn list<T>(&mut self, size: usize, read: impl Fn(&mut Bytes) -> T) -> Result<Vec<T>, Malformed> {
        let count = usize::from(self.int16()? as u16);
        let mut bytes = self.take(count * size)?;
        Ok((0..count).map(|_| read(&mut bytes)).collect())
    }
    fn target(&mut self) -> Result<Target, Malformed> {
        match self.take(1)?[0] {
            b'S' => Ok(Target::Statement(self.string()?)),
            b'P' => Ok(Target::Portal(self.string()?)),
            _ => Err(Malformed::Body("neither a statement nor a portal")),
        }
    }
    fn bind(&mut self) -> Result<Bind, Malformed> {
        let (portal, statement) = (self.string()?, self.string()?);
        let param_formats = self.list(2, Buf::get_i16)?;
        let count = usize::from(self.int16()? as u16);
        // Every parameter takes four bytes at least, so a lying count can't make us reserve more than was sent.
        let mut params = Vec::with_capacity(count.min(self.0.len() / 4));
        for _ in 0..count {
            let length = self.int32()?;
            params.push(match usize::try_from(length) {
                Ok(n) => Some(self.take(n)?),
                Err(_) if length == -1 => None,
                Err(_) => return Err(Malformed::Body("a parameter of negative length")),
            });
        }
        Ok(Bind { portal, statement, param_formats, params, result_formats: self.list(2, Buf::get_i16)? })
    }
}

/// `bytes` as text; the error names the first bytes that are not UTF-8, as PostgreSQL does.
pub fn utf8(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        let bad = &bytes[at..bytes.len().min(at + e.error_len().unwrap_or(bytes.len() - at).max(1))];
        let hex: Vec<_> = bad.iter().map(|b| format!("0x{b:02x}")).collect();
        Malformed::NotUtf8(hex.join(" "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;

    fn frame(kind: u8, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_u8(kind);
        out.put_i32(body.len() as i32 + 4);
        out.put_slice(body);
        out
    }
    fn read(kind: u8, body: &[u8]) -> Result<Frontend, Malformed> {
        let (kind, body) = cut(&mut frame(kind, body)).unwrap().unwrap();
        decode(kind, body)
    }

    #[test]
    fn a_frame_is_cut_only_when_whole() {
        let whole = frame(b'Q', b"SELECT 1\0");
        for n in 0..whole.len() {
            assert_eq!(cut(&mut BytesMut::from(&whole[..n])), Ok(None), "{n} bytes");
        }
        let mut two = BytesMut::from(&[&whole[..], &frame(b'S', b"")[..]].concat()[..]);
        let (kind, body) = cut(&mut two).unwrap().unwrap();
        assert_eq!(decode(kind, body), Ok(Frontend::Query("SELECT 1".into())));
        assert_eq!(cut(&mut two), Ok(Some((b'S', Bytes::new()))));
        assert_eq!(cut(&mut two), Ok(None));
    }

    #[test]
    fn frames_that_cannot_be_are_refused_before_they_are_read() {
        assert_eq!(cut(&mut BytesMut::from(&b"G"[..])), Err(BadFrame::UnknownType(b'G')));
        assert_eq!(cut(&mut BytesMut::from(&b"Q\0\0\0\x03"[..])), Err(BadFrame::Length(3)));
        assert_eq!(cut(&mut BytesMut::from(&b"Q\xff\xff\xff\xff"[..])), Err(BadFrame::Length(-1)));
        assert!(matches!(cut(&mut BytesMut::from(&b"Q\x7f\xff\xff\xff"[..])), Err(BadFrame::TooLong(_))));
    }

    #[test]
    fn bind_is_read_whole() {
        let body = b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x02ab\xff\xff\xff\xff\0\0";
        let expected = Bind {
            portal: "p".into(),
            statement: "s".into(),
            param_formats: vec![1],
            params: vec![Some(Bytes::from_static(b"ab")), None],
            result_formats: vec![],
        };
        assert_eq!(read(b'B', body), Ok(Frontend::Bind(expected)));
        for n in 0..body.len() {
            assert!(matches!(read(b'B', &body[..n]), Err(Malformed::Body(_))), "cut at {n}");
        }
    }

    #[test]
    fn text_must_be_utf8() {
        assert_eq!(read(b'Q', b"SELECT '\xc3\x28'\0"), Err(Malformed::NotUtf8("0xc3".into())));
        assert_eq!(read(b'Q', b"SELECT 1"), Err(Malformed::Body("a string without its end")));
        assert_eq!(read(b'Q', b"a\0b"), Err(Malformed::Body("bytes are left over")));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some((kind, body))) = cut(&mut buffer) {
                let _ = decode(kind, body);
            }
            for kind in *b"QPBDECHSdcfFpX" {
                let _ = decode(kind, Bytes::from(bytes.clone()));
            }
        }
    }
}
