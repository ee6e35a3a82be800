//! What the server says: messages to bytes. PURE: appends to a buffer, never fails.

use bytes::{BufMut, Bytes, BytesMut};

/// PostgreSQL's codes in ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// `I`: no transaction block.
    Idle,
    /// `T`: in a transaction block.
    InTransaction,
    /// `E`: in a failed one, only its end is accepted.
    Failed,
}

/// How bad an error or notice is. FATAL and PANIC end the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The session ends.
    Fatal,
    /// Something to tell.
    Notice,
    /// Something to worry about.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Notice => "NOTICE",
            Severity::Warning => "WARNING",
        }
    }
}

/// The fields of an ErrorResponse or NoticeResponse; empty ones are not sent.
#[derive(Clone, Debug, Default)]
pub struct Report<'a> {
    /// Five characters.
    pub code: &'a str,
    /// One line.
    pub message: &'a str,
    /// More about it.
    pub detail: Option<&'a str>,
    /// What to do.
    pub hint: Option<&'a str>,
    /// Where in the statement, in characters, from 1.
    pub position: Option<u32>,
    /// `s`, `t`, `c`, `n`: the schema, table, column, constraint it is about.
    pub object: [Option<&'a str>; 4],
}

/// One column of a RowDescription.
#[derive(Clone, Debug)]
pub struct Column<'a> {
    /// As the client shows it.
    pub name: &'a str,
    /// Of the table it comes from; 0: none.
    pub table_oid: u32,
    /// Its number there; 0: none.
    pub column_id: i16,
    /// Of the type.
    pub type_oid: u32,
    /// Bytes; -1: varies.
    pub type_len: i16,
    /// -1: none.
    pub type_mod: i32,
    /// 0 text, 1 binary.
    pub format: i16,
}

/// Writes messages one after another into a buffer.
pub struct Backend<'a>(pub &'a mut BytesMut);

impl Backend<'_> {
    fn message(&mut self, kind: u8, body: impl FnOnce(&mut BytesMut)) {
        self.0.put_u8(kind);
        let at = self.0.len();
        self.0.put_i32(0);
        body(self.0);
        let length = u32::try_from(self.0.len() - at).expect("a message is shorter than 4 GiB");
        self.0[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// `R` 0: you are who you say.
    pub fn authentication_ok(&mut self) {
        self.message(b'R', |b| b.put_i32(0));
    }
    /// `S`: a run-time setting that drivers watch.
    pub fn parameter_status(&mut self, name: &str, value: &str) {
        self.message(b'S', |b| {
            string(b, name);
            string(b, value);
        });
    }
    /// `K`: what a CancelRequest for this session has to carry.
    pub fn key_data(&mut self, pid: u32, secret: &[u8]) {
        self.message(b'K', |b| {
            b.put_u32(pid);
            b.put_slice(secret);
        });
    }
    /// `v`: the newest minor version spoken, and the extensions not known.
    pub fn negotiate_version<'a>(&mut self, minor: u16, unknown: impl ExactSizeIterator<Item = &'a str>) {
        self.message(b'v', |b| {
            b.put_u32(3 << 16 | u32::from(minor));
            b.put_u32(unknown.len() as u32);
            unknown.for_each(|name| string(b, name));
        });
    }
    /// `Z`: your turn.
    pub fn ready(&mut self, status: Ready) {
        let code = match status {
            Ready::Idle => b'I',
            Ready::InTransaction => b'T',
            Ready::Failed => b'E',
        };
        self.message(b'Z', |b| b.put_u8(code));
    }
    /// `E`, or `N` for notices and warnings.
    pub fn report(&mut self, severity: Severity, report: &Report<'_>) {
        let kind = if matches!(severity, Severity::Error | Severity::Fatal) { b'E' } else { b'N' };
        let Report { code, message, detail, hint, position, object } = report;
        let position = position.map(|p| p.to_string());
        let fields = [
            (b'S', Some(severity.as_str())),
            (b'V', Some(severity.as_str())),
            (b'C', Some(*code)),
            (b'M', Some(*message)),
            (b'D', *detail),
            (b'H', *hint),
            (b'P', position.as_deref()),
            (b's', object[0]),
            (b't', object[1]),
            (b'c', object[2]),
            (b'n', object[3]),
        ];
        self.message(kind, |b| {
            for (field, value) in fields {
                if let Some(value) = value.filter(|v| !v.is_empty()) {
                    b.put_u8(field);
                    string(b, value);
                }
            }
            b.put_u8(0);
        });
    }
    /// `T`: the columns of the rows that follow.
    pub fn row_description<'a>(&mut self, columns: impl ExactSizeIterator<Item = Column<'a>>) {
        self.message(b'T', |b| {
            b.put_u16(columns.len() as u16);
            for column in columns {
                string(b, column.name);
                b.put_u32(column.table_oid);
                b.put_i16(column.column_id);
                b.put_u32(column.type_oid);
                b.put_i16(column.type_len);
                b.put_i32(column.type_mod);
                b.put_i16(column.format);
            }
        });
    }
    /// `t`: the types of a statement's parameters.
    pub fn parameter_description(&mut self, oids: &[u32]) {
        self.message(b't', |b| {
            b.put_u16(oids.len() as u16);
            oids.iter().for_each(|oid| b.put_u32(*oid));
        });
    }
    /// `D`: one row; `body` writes the column count and the columns.
    pub fn data_row(&mut self, body: impl FnOnce(&mut BytesMut)) {
        self.message(b'D', body);
    }
    /// `C`: what was done.
    pub fn command_complete(&mut self, tag: &str) {
        self.message(b'C', |b| string(b, tag));
    }
    /// `G` or `H`: a COPY of `columns` columns begins, into the server or out of it.
    pub fn copy_response(&mut self, into_server: bool, binary: bool, columns: u16) {
        self.message(if into_server { b'G' } else { b'H' }, |b| {
            b.put_u8(binary.into());
            b.put_u16(columns);
            (0..columns).for_each(|_| b.put_u16(binary.into()));
        });
    }
    /// `d`: a piece of a COPY TO STDOUT.
    pub fn copy_data(&mut self, data: &Bytes) {
        self.message(b'd', |b| b.put_slice(data));
    }
    /// A message that is its type byte: ParseComplete `1`, BindComplete `2`, CloseComplete `3`, NoData `n`,
    /// PortalSuspended `s`, EmptyQueryResponse `I`, CopyDone `c`.
    pub fn bare(&mut self, kind: u8) {
        self.message(kind, |_| ());
    }
}

/// Zero-terminated; a zero inside would cut the message short, so it is shown as a space.
fn string(out: &mut BytesMut, text: &str) {
    match text.as_bytes().contains(&0) {
        true => out.put_slice(text.replace('\0', " ").as_bytes()),
        false => out.put_slice(text.as_bytes()),
    }
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Backend<'_>)) -> BytesMut {
        let mut out = BytesMut::new();
        write(&mut Backend(&mut out));
        out
    }

    #[test]
    fn lengths_count_themselves_and_the_body() {
        assert_eq!(&written(|b| b.ready(Ready::Failed))[..], b"Z\0\0\0\x05E");
        assert_eq!(&written(|b| b.bare(b'1'))[..], b"1\0\0\0\x04");
        assert_eq!(&written(|b| b.command_complete("INSERT 0 1"))[..], b"C\0\0\0\x0fINSERT 0 1\0");
    }

    #[test]
    fn empty_fields_of_a_report_are_left_out() {
        let report = Report { code: "22P02", message: "bad\0input", position: Some(8), ..Default::default() };
        let expected = b"E\0\0\0\x30SERROR\0VERROR\0C22P02\0Mbad input\0P8\0\0";
        let out = written(|b| b.report(Severity::Error, &report));
        assert_eq!(&out[5..], &expected[5..]);
        assert_eq!(u32::from_be_bytes(out[1..5].try_into().unwrap()) as usize, out.len() - 1);
    }

    #[test]
    fn versions_are_negotiated() {
        let out = written(|b| b.negotiate_version(2, ["_pq_.x"].into_iter()));
        assert_eq!(&out[5..], b"\0\x03\0\x02\0\0\0\x01_pq_.x\0");
    }
}
