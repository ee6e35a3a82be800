//! Rows out as lines.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    error::SqlResult,
    query::Rows,
    session::step::{CopyFormat, Step},
    statement::CopyStatement,
    types::{ColumnType, FormatSettings, arrow::datum_at, text},
};

/// COPY … TO STDOUT under way.
pub struct CopyOut {
    rows: Rows,
    types: Vec<ColumnType>,
    settings: FormatSettings,
    delimiter: u8,
    null: Bytes,
    /// The column names, while they have to be sent.
    header: Option<Vec<String>>,
    stage: Stage,
    count: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Announce,
    Rows,
    End,
}

impl CopyOut {
    /// Copies a query's rows.
    pub fn new(rows: Rows, copy: &CopyStatement, settings: FormatSettings) -> Self {
        let columns = rows.plan().columns();
        let header = copy.header.then(|| columns.iter().map(|column| column.name.clone()).collect());
        CopyOut {
            types: columns.iter().map(|column| column.column_type).collect(),
            rows,
            settings,
            delimiter: copy.delimiter,
            null: Bytes::copy_from_slice(copy.null.as_bytes()),
            header,
            stage: Stage::Announce,
            count: 0,
        }
    }
    /// Rows so far.
    pub fn count(&self) -> u64 {
        self.count
    }
    /// The next step; `None` when all is said.
    pub async fn next(&mut self) -> SqlResult<Option<Step>> {
        match self.stage {
            Stage::Announce => {
                self.stage = Stage::Rows;
                Ok(Some(Step::CopyOut(CopyFormat { columns: self.types.len() as i16 })))
            }
            Stage::Rows => {
                if let Some(names) = self.header.take() {
                    let mut line = BytesMut::new();
                    for (at, name) in names.iter().enumerate() {
                        self.separate(at, &mut line);
                        self.escape(name.as_bytes(), &mut line);
                    }
                    line.put_u8(b'\n');
                    return Ok(Some(Step::CopyData(line.freeze())));
                }
                match self.rows.next_batch().await? {
                    Some(batch) => {
                        self.count += batch.num_rows() as u64;
                        let mut out = BytesMut::new();
                        for row in 0..batch.num_rows() {
                            self.line(&batch, row, &mut out)?;
                        }
                        Ok(Some(Step::CopyData(out.freeze())))
                    }
                    None => {
                        self.stage = Stage::End;
                        Ok(Some(Step::CopyEnd))
                    }
                }
            }
            Stage::End => Ok(None),
        }
    }
    fn separate(&self, at: usize, out: &mut BytesMut) {
        if at > 0 {
            out.put_u8(self.delimiter);
        }
    }
    fn line(&self, batch: &arrow::record_batch::RecordBatch, row: usize, out: &mut BytesMut) -> SqlResult<()> {
        let mut scratch = String::new();
        for (at, column_type) in self.types.iter().enumerate() {
            self.separate(at, out);
            let datum = datum_at(batch.column(at), row)?;
            if datum.is_null() {
                out.put_slice(&self.null);
            } else {
                scratch.clear();
                text::format(&datum, *column_type, &self.settings, &mut scratch);
                self.escape(scratch.as_bytes(), out);
            }
        }
        out.put_u8(b'\n');
        Ok(())
    }
    fn escape(&self, text: &[u8], out: &mut BytesMut) {
        for byte in text {
            let escaped = match byte {
                8 => b'b',
                12 => b'f',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                11 => b'v',
                b'\\' => b'\\',
                other if *other == self.delimiter => *other,
                other => {
                    out.put_u8(*other);
                    continue;
                }
            };
            out.put_u8(b'\\');
            out.put_u8(escaped);
        }
    }
}
