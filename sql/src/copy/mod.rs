//! COPY's text format. PURE, but for the stream of rows on the way out.
//!
//! A row is a line, columns are separated by the delimiter (a tab), `\N` is NULL, and `\b \f \n \r \t \v \\`, octal and
//! hexadecimal escapes stand for bytes. A line `\.` ends the data.

pub mod lines;
pub mod out;

pub use lines::{Line, LineReader};
pub use out::CopyOut;
