//! Lines of COPY FROM into columns. PURE.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::{SqlError, SqlResult, SqlState};

/// Longest line, in bytes; a row is no longer than 4 MiB, and escapes make it longer.
const MAX_LINE_BYTES: usize = 16 << 20;

/// One line's columns; `None` is NULL.
pub type Line = Vec<Option<Bytes>>;

/// Cuts the client's data into lines. Data comes in pieces of any size.
#[derive(Debug)]
pub struct LineReader {
    delimiter: u8,
    null: Bytes,
    rest: BytesMut,
    scanned: usize,
    /// Lines so far, the header too.
    pub line_number: u64,
    ended: bool,
}

impl LineReader {
    /// For data with this delimiter and this text for NULL.
    pub fn new(delimiter: u8, null: &str) -> Self {
        LineReader {
            delimiter,
            null: Bytes::copy_from_slice(null.as_bytes()),
            rest: BytesMut::new(),
            scanned: 0,
            line_number: 0,
            ended: false,
        }
    }
    /// Adds a piece of data.
    pub fn feed(&mut self, data: &[u8]) {
        self.rest.extend_from_slice(data);
    }
    /// The next whole line; `None` when more data is needed, or after `\.`.
    pub fn next_line(&mut self) -> SqlResult<Option<Line>> {
        if self.ended {
            self.rest.clear();
            return Ok(None);
        }
        let Some(at) = self.rest[self.scanned..].iter().position(|byte| *byte == b'\n') else {
            self.scanned = self.rest.len();
            if self.rest.len() > MAX_LINE_BYTES {
                return Err(SqlError::new(
                    SqlState::PROGRAM_LIMIT_EXCEEDED,
                    format!("a line of COPY data has more than {MAX_LINE_BYTES} bytes"),
                ));
            }
            return Ok(None);
        };
        let line = self.rest.split_to(self.scanned + at).freeze();
        self.rest.advance(1);
        self.scanned = 0;
        self.take(line)
    }
    /// The last line, when it does not end with a newline.
    pub fn last_line(&mut self) -> SqlResult<Option<Line>> {
        if self.ended || self.rest.is_empty() {
            return Ok(None);
        }
        let line = self.rest.split().freeze();
        self.scanned = 0;
        self.take(line)
    }
    fn take(&mut self, line: Bytes) -> SqlResult<Option<Line>> {
        self.line_number += 1;
        let line = if line.last() == Some(&b'\r') { line.slice(..line.len() - 1) } else { line };
        if line[..] == *b"\\." {
            self.ended = true;
            return Ok(None);
        }
        Ok(Some(self.columns(&line)))
    }
    fn columns(&self, line: &Bytes) -> Line {
        let mut columns = Vec::new();
        let (mut start, mut at) = (0, 0);
        while at <= line.len() {
            if at == line.len() || line[at] == self.delimiter {
                let raw = line.slice(start..at);
                columns.push(if raw == self.null { None } else { Some(unescape(raw)) });
                start = at + 1;
                at += 1;
            } else if line[at] == b'\\' {
                at = (at + 2).min(line.len());
            } else {
                at += 1;
            }
        }
        columns
    }
}

/// Resolves backslashes; without one nothing is copied.
fn unescape(raw: Bytes) -> Bytes {
    if !raw.contains(&b'\\') {
        return raw;
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some(escaped) = bytes.next() else {
            out.push(b'\\');
            break;
        };
        match escaped {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(11),
            b'0'..=b'7' => {
                let mut value = u32::from(escaped - b'0');
                for _ in 0..2 {
                    match bytes.next_if(|digit| (b'0'..=b'7').contains(digit)) {
                        Some(digit) => value = value * 8 + u32::from(digit - b'0'),
                        None => break,
                    }
                }
                out.push(value as u8);
            }
            b'x' if bytes.peek().is_some_and(u8::is_ascii_hexdigit) => {
                let mut value = 0;
                for _ in 0..2 {
                    match bytes.next_if(u8::is_ascii_hexdigit) {
                        Some(digit) => value = value * 16 + (digit as char).to_digit(16).unwrap_or(0),
                        None => break,
                    }
                }
                out.push(value as u8);
            }
            other => out.push(other),
        }
    }
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines() {
        let mut reader = LineReader::new(b'\t', "\\N");
        reader.feed(b"1\ta\\tb\t\\N\n2\t");
        let line = reader.next_line().unwrap().unwrap();
        assert_eq!(line, [Some(Bytes::from("1")), Some(Bytes::from("a\tb")), None]);
        assert_eq!(reader.next_line().unwrap(), None);
        reader.feed(b"\\x41\\101\t\r\n\\.\nignored\n");
        assert_eq!(
            reader.next_line().unwrap().unwrap(),
            [Some(Bytes::from("2")), Some(Bytes::from("AA")), Some(Bytes::new())]
        );
        assert_eq!(reader.next_line().unwrap(), None);
        assert_eq!(reader.last_line().unwrap(), None);
        let mut reader = LineReader::new(b'|', "");
        reader.feed(b"a||c");
        assert_eq!(reader.next_line().unwrap(), None);
        assert_eq!(reader.last_line().unwrap().unwrap(), [Some(Bytes::from("a")), None, Some(Bytes::from("c"))]);
    }
}
