//! What the server says: messages to bytes. PURE: appends to a buffer, never fails.

use bytes::{BufMut, BytesMut};
use sql::{CopyFormat, Field, Report, Severity, TransactionStatus};

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
    pub fn ready(&mut self, status: TransactionStatus) {
        let code = match status {
            TransactionStatus::Idle => b'I',
            TransactionStatus::InTransaction => b'T',
            TransactionStatus::Failed => b'E',
        };
        self.message(b'Z', |b| b.put_u8(code));
    }
    /// `E`, or `N` for notices and warnings. Empty fields are not sent.
    pub fn report(&mut self, report: &Report) {
        let kind = if matches!(report.severity, Severity::Error | Severity::Fatal) { b'E' } else { b'N' };
        let position = report.position.map(|p| p.to_string());
        let object = &report.object;
        let fields = [
            (b'S', Some(report.severity.as_str())),
            (b'V', Some(report.severity.as_str())),
            (b'C', Some(report.sqlstate.0)),
            (b'M', Some(report.message.as_str())),
            (b'D', report.detail.as_deref()),
            (b'H', report.hint.as_deref()),
            (b'P', position.as_deref()),
            (b'W', report.place.as_deref()),
            (b's', object.schema.as_deref()),
            (b't', object.table.as_deref()),
            (b'c', object.column.as_deref()),
            (b'd', object.data_type.as_deref()),
            (b'n', object.constraint.as_deref()),
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
    pub fn row_description(&mut self, fields: &[Field]) {
        self.message(b'T', |b| {
            b.put_u16(fields.len() as u16);
            for field in fields {
                string(b, &field.name);
                b.put_u32(field.table_oid);
                b.put_i16(field.column_id);
                b.put_u32(field.type_oid());
                b.put_i16(field.type_len());
                b.put_i32(field.type_mod());
                b.put_i16(field.format.code());
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
    /// `D`: one row; `body` writes the column count and the columns. When it fails, nothing was written.
    pub fn data_row<E>(&mut self, body: impl FnOnce(&mut BytesMut) -> Result<(), E>) -> Result<(), E> {
        let at = self.0.len();
        let mut result = Ok(());
        self.message(b'D', |b| result = body(b));
        if result.is_err() {
            self.0.truncate(at);
        }
        result
    }
    /// `A`: a notification from the session of process `pid`.
    pub fn notification(&mut self, pid: u32, channel: &str, payload: &str) {
        self.message(b'A', |b| {
            b.put_u32(pid);
            string(b, channel);
            string(b, payload);
        });
    }
    /// `C`: what was done.
    pub fn command_complete(&mut self, tag: &str) {
        self.message(b'C', |b| string(b, tag));
    }
    /// `G` or `H`: a COPY begins, into the server or out of it.
    pub fn copy_response(&mut self, into_server: bool, format: CopyFormat) {
        self.message(if into_server { b'G' } else { b'H' }, |b| {
            b.put_u8(0); // Text as a whole, and each column.
            b.put_i16(format.columns);
            (0..format.columns).for_each(|_| b.put_i16(0));
        });
    }
    /// `d`: a piece of a COPY TO STDOUT.
    pub fn copy_data(&mut self, data: &[u8]) {
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
    use sql::SqlError;

    fn written(write: impl FnOnce(&mut Backend<'_>)) -> BytesMut {
        let mut out = BytesMut::new();
        write(&mut Backend(&mut out));
        out
    }

    #[test]
    fn lengths_count_themselves_and_the_body() {
        assert_eq!(&written(|b| b.ready(TransactionStatus::Failed))[..], b"Z\0\0\0\x05E");
        assert_eq!(&written(|b| b.bare(b'1'))[..], b"1\0\0\0\x04");
        assert_eq!(&written(|b| b.command_complete("INSERT 0 1"))[..], b"C\0\0\0\x0fINSERT 0 1\0");
    }

    #[test]
    fn empty_fields_of_a_report_are_left_out() {
        let error = SqlError::invalid_input("integer", "a\0b").with_position(8).with_table("public", "");
        let out = written(|b| b.report(&error));
        let fields = &b"SERROR\0VERROR\0C22P02\0Minvalid input syntax for type integer: \"a b\"\0P8\0spublic\0\0"[..];
        assert_eq!((out[0], &out[5..]), (b'E', fields));
        assert_eq!(u32::from_be_bytes(out[1..5].try_into().unwrap()) as usize, out.len() - 1);
    }

    #[test]
    fn a_row_that_cannot_be_written_leaves_nothing_behind() {
        let out = written(|b| {
            assert_eq!(
                b.data_row(|b| {
                    b.put_u8(1);
                    Err(())
                }),
                Err(())
            );
            assert_eq!(
                b.data_row(|b| {
                    b.put_i16(0);
                    Ok::<_, ()>(())
                }),
                Ok(())
            );
        });
        assert_eq!(&out[..], b"D\0\0\0\x06\0\0");
    }

    #[test]
    fn versions_are_negotiated() {
        let out = written(|b| b.negotiate_version(2, ["_pq_.x"].into_iter()));
        assert_eq!(&out[5..], b"\0\x03\0\x02\0\0\0\x01_pq_.x\0");
    }
}
