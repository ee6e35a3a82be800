//! COPY's text format, in and out. PURE, but for the stream of rows on the way out.
//!
//! ```text
//!   CopyData chunks ──lines.rs──▶ lines ──fields.rs──▶ fields, escapes undone ──input.rs──▶ rows of datums
//!   rows of datums ──out.rs──▶ lines
//! ```
//!
//! Chunks may end anywhere, in the middle of an escape or of a character. What is kept between them is at most one line, and that
//! is bounded. Rows come out one at a time, so that a client decides neither how much memory its COPY takes nor when it is written.
//! All refusals are PostgreSQL's, with the line and the column they are about.
//!
//! Not here: the statement's syntax (`statement::copy`), where rows go (`dml`), CSV and binary (0A000 at the syntax).

pub mod fields;
pub mod input;
pub mod lines;
pub mod out;

use datafusion::sql::sqlparser::ast::Ident;

pub use input::Input;
pub use out::{CopyOut, LineWriter};

use crate::{
    catalog::TableDescriptor,
    error::{SqlError, SqlResult, SqlState},
    name::folded,
};

/// Positions in `table` of the columns COPY names, in that order; all visible ones when it names none. 42703, 42701.
pub fn columns_of(table: &TableDescriptor, names: &[Ident]) -> SqlResult<Vec<usize>> {
    if names.is_empty() {
        return Ok(table.visible().map(|(at, _)| at).collect());
    }
    let mut positions = Vec::with_capacity(names.len());
    for name in names.iter().map(folded) {
        let found = table.visible().find(|(_, column)| column.name == name);
        let (at, _) = found.ok_or_else(|| SqlError::undefined_column(&name, &table.name))?;
        if positions.contains(&at) {
            let message = format!("column \"{name}\" specified more than once");
            return Err(SqlError::new(SqlState::DUPLICATE_COLUMN, message));
        }
        positions.push(at);
    }
    Ok(positions)
}

/// 22P04.
fn bad_format(message: impl Into<String>) -> SqlError {
    SqlError::new(SqlState::BAD_COPY_FILE_FORMAT, message)
}
