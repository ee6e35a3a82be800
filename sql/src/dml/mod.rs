//! Writing rows: the sinks of INSERT, UPDATE, DELETE and COPY.
//!
//! A sink takes rows of datums in the descriptor's column order, checks what PostgreSQL checks (NOT NULL, the primary key), and
//! puts them into the transaction's buffer. Where the rows come from (a key plan, a query, COPY's lines) is not its affair.

pub mod bulk;
pub mod conflict;
pub mod entries;
pub mod foreign;
pub mod general;
pub mod identity;
pub mod locking;
pub mod returning;
pub mod select_for;
mod streamed;
pub mod target;
pub mod unique;

pub use bulk::BulkWriter;
pub use foreign::{Integrity, Links, Pair};
pub use locking::{Certainty, Isolation, RowLocking};
pub use returning::Projection;
pub use target::Target;
