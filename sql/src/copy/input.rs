//! Lines to rows of a table. PURE.

use bytes::Bytes;

use super::{bad_format, columns_of, fields::Fields, lines::Lines};
use crate::{
    ddl::default,
    dml::Target,
    error::{SqlError, SqlResult, SqlState},
    eval::{Env, cast},
    statement::copy::{CopySource, CopyStatement},
    types::{ColumnType, Datum, FormatSettings, text},
};

/// Most characters of a line or value that an error shows, as in PostgreSQL.
const SHOWN: usize = 100;

/// What COPY FROM STDIN reads: chunks in, rows out.
///
/// ```text
///   feed(chunk), next_row() until None, feed(chunk) …, finish(), next_row() until None
/// ```
#[derive(Debug)]
pub struct Input {
    target: Target,
    settings: FormatSettings,
    delimiter: u8,
    null: String,
    /// The columns a line has.
    columns: Vec<(usize, ColumnType)>,
    /// A row of defaults; NULL where a line's values go.
    template: Vec<Datum>,
    /// Columns that a sequence fills.
    drawn: Vec<usize>,
    lines: Lines,
    /// Number of the line read last, from 1.
    line: u64,
    skip_header: bool,
}

impl Input {
    /// For rows of `target`. `now_us` is when the transaction began, for defaults. 42703 and 42701 for the columns COPY names, and
    /// what goes wrong in a default.
    pub fn new(target: Target, copy: &CopyStatement, settings: &FormatSettings, now_us: i64) -> SqlResult<Self> {
        let CopySource::Table { columns: names, .. } = &copy.source else {
            return Err(SqlError::internal("COPY FROM into a query"));
        };
        let positions = columns_of(&target.table, names)?;
        // Defaults depend on nothing that changes from row to row.
        let env = Env { row: &[], params: &[], now_us, settings };
        let mut template = vec![Datum::Null; target.table.columns.len()];
        let mut drawn = Vec::new();
        for (at, column) in target.table.columns.iter().enumerate() {
            if column.hidden {
                template[at] = Datum::Int8(0);
            } else if column.sequence.is_some() && !positions.contains(&at) {
                template[at] = cast::cast(Datum::Int8(0), column.column_type, false, settings)?;
                drawn.push(at);
            } else if let Some(default) = column.default.as_ref().filter(|_| !positions.contains(&at)) {
                template[at] = default::compile(default, column)?.eval(&env)?;
            }
        }
        let column_type = |at: usize| (at, target.table.columns[at].column_type);
        Ok(Input {
            columns: positions.into_iter().map(column_type).collect(),
            template,
            drawn,
            target,
            settings: settings.clone(),
            delimiter: copy.delimiter,
            null: copy.null.clone(),
            lines: Lines::default(),
            line: 0,
            skip_header: copy.header,
        })
    }

    /// How many columns a line has.
    pub fn width(&self) -> usize {
        self.columns.len()
    }
    /// Positions of the columns that a sequence fills: rows come with 0 there, and who writes them puts the values in.
    pub fn drawn(&self) -> &[usize] {
        &self.drawn
    }
    /// Adds a chunk. All rows of the one before must have been taken.
    pub fn feed(&mut self, chunk: Bytes) {
        self.lines.feed(chunk);
    }
    /// No chunk follows.
    pub fn finish(&mut self) {
        self.lines.finish();
    }

    /// The next row in the descriptor's column order, checked for NULLs; `None` when another chunk is needed, or all is over. A hidden
    /// row id is 0: who writes the row gives it one. 22P04 for lines with too few or too many columns, 22021 for bytes that are not
    /// UTF-8, 23502, and what the types' input functions refuse; each with its line in the error's place.
    pub fn next_row(&mut self) -> SqlResult<Option<Vec<Datum>>> {
        loop {
            let line = match self.lines.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.line += 1;
                    return Err(error.with_place(self.place()));
                }
            };
            self.line += 1;
            if !std::mem::take(&mut self.skip_header) {
                return self.row(&line).map(Some);
            }
        }
    }

    /// `error` about the row taken last, with its line; for what happens to it after it was read.
    pub fn placed(&self, error: SqlError) -> SqlError {
        error.with_place(self.place())
    }

    fn place(&self) -> String {
        format!("COPY {}, line {}", self.target.table.name, self.line)
    }

    fn row(&self, line: &Bytes) -> SqlResult<Vec<Datum>> {
        let in_line = |error: SqlError| error.with_place(format!("{}: \"{}\"", self.place(), shown(line)));
        let mut row = self.template.clone();
        let mut fields = Fields::new(line, self.delimiter, self.null.as_bytes());
        if self.columns.is_empty() && line.is_empty() {
            return Ok(row);
        }
        for (at, column_type) in &self.columns {
            match fields.next() {
                Some(Some(field)) => row[*at] = self.datum(&field, *at, *column_type)?,
                Some(None) => row[*at] = Datum::Null,
                None => {
                    let name = &self.target.table.columns[*at].name;
                    return Err(in_line(bad_format(format!("missing data for column \"{name}\""))));
                }
            }
        }
        if fields.next().is_some() {
            return Err(in_line(bad_format("extra data after last expected column")));
        }
        self.target.check_row(&row).map_err(in_line)?;
        Ok(row)
    }

    fn datum(&self, field: &Bytes, at: usize, column_type: ColumnType) -> SqlResult<Datum> {
        text::parse(field, column_type, &self.settings).map_err(|error| {
            // Bytes that are no text belong to no column yet.
            if error.sqlstate == SqlState::CHARACTER_NOT_IN_REPERTOIRE {
                return self.placed(error);
            }
            let name = &self.target.table.columns[at].name;
            error.with_place(format!("{}, column {name}: \"{}\"", self.place(), shown(field)))
        })
    }
}

fn shown(bytes: &[u8]) -> String {
    // Four bytes a character at most; what is cut off is not looked at.
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN * 4 + 4)]);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests;
