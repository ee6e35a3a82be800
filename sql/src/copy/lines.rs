//! Chunks to lines. PURE.
//!
//! The first line's end says how all lines end: `\n`, `\r\n` or `\r`. A backslash takes the byte behind it into the line, whatever it
//! is. The line `\.` is the end; what follows it is dropped.

use bytes::{Bytes, BytesMut};

use super::bad_format;
use crate::{
    codec::row::MAX_ROW_BYTES,
    error::{SqlError, SqlResult, SqlState},
};

/// Longest line, in bytes: the longest row with each of its bytes written as an escape of four.
pub const MAX_LINE_BYTES: usize = 4 * MAX_ROW_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineEnd {
    Lf,
    CrLf,
    Cr,
}

/// Cuts chunks into lines. Lines that lie within one chunk share its buffer.
#[derive(Debug, Default)]
pub struct Lines {
    /// The line that began in earlier chunks.
    begun: BytesMut,
    chunk: Bytes,
    /// The last byte of `begun` is a backslash that takes the next byte with it.
    escaped: bool,
    /// `begun` is a whole line but for the `\n` that may follow its `\r`.
    after_cr: bool,
    end: Option<LineEnd>,
    finished: bool,
    ended: bool,
}

impl Lines {
    /// Adds a chunk; all lines of the one before must have been taken.
    pub fn feed(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty() && !self.finished);
        if !self.ended {
            self.chunk = chunk;
        }
    }
    /// No chunk follows: the last line may lack its end.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// The next line without its end; `None` when another chunk is needed, or all is over. 22P04 for mixed ends of lines and for
    /// `\.` within a line, 54000 for a line longer than [`MAX_LINE_BYTES`].
    pub fn next_line(&mut self) -> SqlResult<Option<Bytes>> {
        let line = self.raw_line()?;
        match line {
            Some(line) if &line[..] == b"\\." => {
                self.ended = true;
                self.chunk = Bytes::new();
                self.begun = BytesMut::new();
                Ok(None)
            }
            Some(line) if has_end_marker(&line) => Err(bad_format("end-of-copy marker corrupt")),
            other => Ok(other),
        }
    }

    fn raw_line(&mut self) -> SqlResult<Option<Bytes>> {
        if self.ended {
            return Ok(None);
        }
        if self.after_cr
            && let Some(line) = self.decide_cr()?
        {
            return Ok(Some(line));
        }
        let mut at = 0;
        if self.escaped && !self.chunk.is_empty() {
            (self.escaped, at) = (false, 1);
        }
        while let Some(skip) = self.chunk[at..].iter().position(|byte| matches!(byte, b'\n' | b'\r' | b'\\')) {
            at += skip;
            match self.chunk[at] {
                b'\\' if at + 1 == self.chunk.len() => {
                    self.escaped = true;
                    at += 1;
                }
                b'\\' => at += 2,
                b'\n' => {
                    self.expect(LineEnd::Lf)?;
                    return self.take(at, 1).map(Some);
                }
                _ => match self.carriage_return(at)? {
                    Some(len) => return self.take(at, len).map(Some),
                    None => {
                        self.after_cr = true;
                        self.keep(at)?;
                        return if self.finished { self.decide_cr() } else { Ok(None) };
                    }
                },
            }
        }
        self.keep(self.chunk.len())?;
        if self.finished && !self.begun.is_empty() {
            return Ok(Some(std::mem::take(&mut self.begun).freeze()));
        }
        Ok(None)
    }

    /// How long the end of a line is that begins with the `\r` at `at`; `None` when the next byte decides it.
    fn carriage_return(&mut self, at: usize) -> SqlResult<Option<usize>> {
        match (self.end, self.chunk.get(at + 1)) {
            (Some(LineEnd::Cr), _) => Ok(Some(1)),
            (Some(LineEnd::Lf), _) => Err(literal_cr()),
            (_, None) => Ok(None),
            (_, Some(b'\n')) => self.expect(LineEnd::CrLf).map(|()| Some(2)),
            (_, Some(_)) => self.expect(LineEnd::Cr).map(|()| Some(1)),
        }
    }

    /// The line whose `\r` was the last byte before this chunk, once the next byte is known.
    fn decide_cr(&mut self) -> SqlResult<Option<Bytes>> {
        let len = match self.chunk.first() {
            None if !self.finished => return Ok(None),
            Some(b'\n') => {
                self.expect(LineEnd::CrLf)?;
                1
            }
            _ => {
                self.expect(LineEnd::Cr)?;
                0
            }
        };
        self.after_cr = false;
        let _ = self.chunk.split_to(len);
        Ok(Some(std::mem::take(&mut self.begun).freeze()))
    }

    fn expect(&mut self, end: LineEnd) -> SqlResult<()> {
        match (*self.end.get_or_insert(end), end) {
            (known, end) if known == end => Ok(()),
            (_, LineEnd::Lf) => {
                Err(bad_format("literal newline found in data").with_hint("Use \"\\n\" to represent newline."))
            }
            _ => Err(literal_cr()),
        }
    }

    /// The line up to `at`, whose end is `len` bytes long.
    fn take(&mut self, at: usize, len: usize) -> SqlResult<Bytes> {
        let tail = self.chunk.split_to(at);
        let _ = self.chunk.split_to(len);
        check_length(self.begun.len() + tail.len())?;
        if self.begun.is_empty() {
            return Ok(tail);
        }
        let mut line = std::mem::take(&mut self.begun);
        line.extend_from_slice(&tail);
        Ok(line.freeze())
    }

    /// Keeps the chunk up to `at` for later and drops it.
    fn keep(&mut self, at: usize) -> SqlResult<()> {
        check_length(self.begun.len() + at)?;
        self.begun.extend_from_slice(&self.chunk[..at]);
        self.chunk = Bytes::new();
        Ok(())
    }
}

fn check_length(len: usize) -> SqlResult<()> {
    if len > MAX_LINE_BYTES {
        return Err(SqlError::new(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("a line of COPY data has more than {MAX_LINE_BYTES} bytes"),
        ));
    }
    Ok(())
}

fn literal_cr() -> SqlError {
    bad_format("literal carriage return found in data").with_hint("Use \"\\r\" to represent carriage return.")
}

fn has_end_marker(line: &[u8]) -> bool {
    let mut bytes = line.iter();
    while let Some(byte) = bytes.next() {
        if *byte == b'\\' && bytes.next() == Some(&b'.') {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(chunks: &[&[u8]]) -> Result<Vec<String>, String> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        let mut take = |lines: &mut Lines| {
            while let Some(line) = lines.next_line().map_err(|e| e.message.clone())? {
                found.push(String::from_utf8_lossy(&line).into_owned());
            }
            Ok::<_, String>(())
        };
        for chunk in chunks {
            lines.feed(Bytes::copy_from_slice(chunk));
            take(&mut lines)?;
        }
        lines.finish();
        take(&mut lines)?;
        Ok(found)
    }

    #[test]
    fn the_first_line_says_how_lines_end() {
        assert_eq!(lines(&[b"a\nb\n"]).unwrap(), ["a", "b"]);
        assert_eq!(lines(&[b"a\r\nb"]).unwrap(), ["a", "b"]);
        assert_eq!(lines(&[b"a\rb\r"]).unwrap(), ["a", "b"]);
        assert_eq!(lines(&[b"a\r", b"\n\r", b"\nb"]).unwrap(), ["a", "", "b"]);
        assert_eq!(lines(&[b"a\\\nb\n"]).unwrap(), ["a\\\nb"]);
        assert_eq!(lines(&[b"a\nb\rc\n"]).unwrap_err(), "literal carriage return found in data");
        assert_eq!(lines(&[b"a\r\nb\n"]).unwrap_err(), "literal newline found in data");
        assert_eq!(lines(&[b"a\r\nb\rc\r\n"]).unwrap_err(), "literal carriage return found in data");
        assert!(lines(&[]).unwrap().is_empty());
    }

    #[test]
    fn the_end_marker_stands_alone() {
        assert_eq!(lines(&[b"a\n\\.\nb\n", b"c\n"]).unwrap(), ["a"]);
        assert_eq!(lines(&[b"a\r\n\\", b".\r", b"\nb"]).unwrap(), ["a"]);
        assert_eq!(lines(&[b"\\\\.\n"]).unwrap(), ["\\\\."]);
        assert_eq!(lines(&[b"a\\.\n"]).unwrap_err(), "end-of-copy marker corrupt");
    }

    #[test]
    fn a_line_is_bounded() {
        let mut lines = Lines::default();
        let chunk = Bytes::from(vec![b'x'; 1 << 20]);
        let refused = (0..64).find_map(|_| {
            lines.feed(chunk.clone());
            lines.next_line().err()
        });
        assert_eq!(refused.unwrap().sqlstate, SqlState::PROGRAM_LIMIT_EXCEEDED);
    }

    proptest! {
        #[test]
        fn where_chunks_end_does_not_matter(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'\\'), Just(b'.'), Just(b'a')], 0..30),
            cuts in proptest::collection::vec(0usize..30, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= bytes.len()).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(lines(&chunks), lines(&[&bytes]));
        }
    }
}
