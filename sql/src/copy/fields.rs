//! A line to its fields. PURE.

use bytes::{Bytes, BytesMut};

/// The fields of a line: `None` is NULL, which is what looks like `null` before escapes are undone. Fields without escapes
/// share the line's buffer.
pub struct Fields<'a> {
    line: &'a Bytes,
    /// Start of the next field; `None` after the last.
    at: Option<usize>,
    delimiter: u8,
    null: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Of `line`.
    pub fn new(line: &'a Bytes, delimiter: u8, null: &'a [u8]) -> Self {
        Fields { line, at: Some(0), delimiter, null }
    }
}

impl Iterator for Fields<'_> {
    type Item = Option<Bytes>;

    fn next(&mut self) -> Option<Option<Bytes>> {
        let start = self.at?;
        let bytes = &self.line[start..];
        let (mut len, mut escapes) = (0, false);
        while let Some(skip) = bytes[len..].iter().position(|byte| *byte == self.delimiter || *byte == b'\\') {
            len += skip;
            if bytes[len] == self.delimiter {
                break;
            }
            escapes = true;
            // The byte behind the backslash, if there is one.
            len = (len + 2).min(bytes.len());
        }
        let found = bytes.get(len).is_some_and(|byte| *byte == self.delimiter);
        if !found {
            len = bytes.len();
        }
        self.at = found.then_some(start + len + 1);
        let field = self.line.slice(start..start + len);
        if field == self.null {
            return Some(None);
        }
        Some(Some(if escapes { unescaped(&field) } else { field }))
    }
}

fn unescaped(field: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        out.extend_from_slice(&rest[..at]);
        let (byte, len) = escape(&rest[at + 1..]);
        out.extend(byte);
        rest = &rest[at + 1 + len..];
    }
    out.extend_from_slice(rest);
    out.freeze()
}

/// What follows a backslash: the byte it stands for, and its length. A backslash at the end of a line stands for nothing.
fn escape(rest: &[u8]) -> (Option<u8>, usize) {
    let digits = |from: &[u8], radix: u32, most: usize| {
        let values = from.iter().take(most).map_while(|byte| (*byte as char).to_digit(radix));
        values.fold((0u32, 0), |(value, len), digit| (value * radix + digit, len + 1))
    };
    let Some(first) = rest.first() else { return (None, 0) };
    match first {
        b'0'..=b'7' => {
            let (value, len) = digits(rest, 8, 3);
            (Some(value as u8), len)
        }
        b'x' => match digits(&rest[1..], 16, 2) {
            (_, 0) => (Some(b'x'), 1),
            (value, len) => (Some(value as u8), 1 + len),
        },
        b'b' => (Some(8), 1),
        b't' => (Some(b'\t'), 1),
        b'n' => (Some(b'\n'), 1),
        b'v' => (Some(11), 1),
        b'f' => (Some(12), 1),
        b'r' => (Some(b'\r'), 1),
        other => (Some(*other), 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(line: &str) -> Vec<Option<String>> {
        let line = Bytes::copy_from_slice(line.as_bytes());
        let text = |field: Option<Bytes>| field.map(|field| String::from_utf8_lossy(&field).into_owned());
        Fields::new(&line, b'\t', b"\\N").map(text).collect()
    }

    #[test]
    fn escapes_are_postgresqls() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(fields(""), [some("")]);
        assert_eq!(fields("\t"), [some(""), some("")]);
        assert_eq!(fields("1\t\\N\t\\\\N"), [some("1"), None, some("\\N")]);
        assert_eq!(fields("a\\tb\\n\\r\\b\\f\\v\tc"), [some("a\tb\n\r\u{8}\u{c}\u{b}"), some("c")]);
        assert_eq!(fields("\\101\\x42\\x4g\\xg\\1018"), [some("AB\u{4}gxgA8")]);
        assert_eq!(fields("\\q\\\tz"), [some("q\tz")]);
        assert_eq!(fields("end\\"), [some("end")]);
        assert_eq!(fields("\\\\"), [some("\\")]);
    }
}
