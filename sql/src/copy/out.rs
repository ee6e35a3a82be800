//! Rows out as lines.

use bytes::{BufMut, BytesMut};

use crate::{
    error::SqlResult,
    query::Rows,
    session::step::{CopyFormat, Step},
    statement::CopyStatement,
    types::{ColumnType, Datum, FormatSettings, arrow::datum_at, text},
};

/// Writes rows as lines that [`super::Input`] reads back. PURE.
#[derive(Debug)]
pub struct LineWriter {
    types: Vec<ColumnType>,
    settings: FormatSettings,
    delimiter: u8,
    null: String,
    scratch: String,
}

impl LineWriter {
    /// For rows of these types.
    pub fn new(types: Vec<ColumnType>, copy: &CopyStatement, settings: &FormatSettings) -> Self {
        LineWriter {
            types,
            settings: settings.clone(),
            delimiter: copy.delimiter,
            null: copy.null.clone(),
            scratch: String::new(),
        }
    }
    /// How many columns a line has.
    pub fn width(&self) -> usize {
        self.types.len()
    }
    /// Appends the line of HEADER.
    pub fn header<'a>(&self, names: impl IntoIterator<Item = &'a str>, out: &mut BytesMut) {
        for (at, name) in names.into_iter().enumerate() {
            if at > 0 {
                out.put_u8(self.delimiter);
            }
            escape(name.as_bytes(), self.delimiter, out);
        }
        out.put_u8(b'\n');
    }
    /// Appends a row's line. `row` has a datum for each column.
    pub fn row<'a>(&mut self, row: impl IntoIterator<Item = &'a Datum>, out: &mut BytesMut) {
        for (at, datum) in row.into_iter().enumerate() {
            if at > 0 {
                out.put_u8(self.delimiter);
            }
            if datum.is_null() {
                out.put_slice(self.null.as_bytes());
                continue;
            }
            self.scratch.clear();
            text::format(datum, self.types[at], &self.settings, &mut self.scratch);
            escape(self.scratch.as_bytes(), self.delimiter, out);
        }
        out.put_u8(b'\n');
    }
}

/// Appends `text` so that it reads back as it is.
fn escape(text: &[u8], delimiter: u8, out: &mut BytesMut) {
    let special = |byte: &u8| matches!(byte, 8..=13 | b'\\') || *byte == delimiter;
    let mut rest = text;
    while let Some(at) = rest.iter().position(special) {
        out.put_slice(&rest[..at]);
        out.put_u8(b'\\');
        out.put_u8(match rest[at] {
            8 => b'b',
            b'\t' => b't',
            b'\n' => b'n',
            11 => b'v',
            12 => b'f',
            b'\r' => b'r',
            itself => itself,
        });
        rest = &rest[at + 1..];
    }
    out.put_slice(rest);
}

/// COPY … TO STDOUT under way.
pub struct CopyOut {
    rows: Rows,
    writer: LineWriter,
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
    pub fn new(rows: Rows, copy: &CopyStatement, settings: &FormatSettings) -> Self {
        let columns = rows.plan().columns();
        let header = copy.header.then(|| columns.iter().map(|column| column.name.clone()).collect());
        let types = columns.iter().map(|column| column.column_type).collect();
        CopyOut { writer: LineWriter::new(types, copy, settings), rows, header, stage: Stage::Announce, count: 0 }
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
                Ok(Some(Step::CopyOut(CopyFormat { columns: self.writer.width() as i16 })))
            }
            Stage::Rows => self.lines().await.map(Some),
            Stage::End => Ok(None),
        }
    }
    async fn lines(&mut self) -> SqlResult<Step> {
        let mut out = BytesMut::new();
        if let Some(names) = self.header.take() {
            self.writer.header(names.iter().map(String::as_str), &mut out);
            return Ok(Step::CopyData(out.freeze()));
        }
        let batch = loop {
            match self.rows.next_batch().await? {
                Some(empty) if empty.num_rows() == 0 => {}
                Some(batch) => break batch,
                None => {
                    self.stage = Stage::End;
                    return Ok(Step::CopyEnd);
                }
            }
        };
        self.count += batch.num_rows() as u64;
        let mut datums = Vec::with_capacity(batch.num_columns());
        for row in 0..batch.num_rows() {
            datums.clear();
            for column in batch.columns() {
                datums.push(datum_at(column, row)?);
            }
            self.writer.row(&datums, &mut out);
        }
        Ok(Step::CopyData(out.freeze()))
    }
}
