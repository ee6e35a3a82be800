//! From a client's text to statements. PURE.

pub mod as_of;
pub mod borders;
pub mod constraints;
pub mod copy;
pub mod deferrable;
pub mod locate;
pub mod parse;
pub mod row_lock;
pub mod sequence;
pub mod split;

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;

pub use as_of::{Moment, NEARBY};
pub use borders::SplitStatement;
pub use constraints::ConstraintsStatement;
pub use copy::CopyStatement;
pub use parse::parse_one;
pub use sequence::SequenceStatement;
pub use split::split;

/// A parsed statement.
#[derive(Clone, Debug)]
pub enum Command {
    /// Nothing but blanks and comments.
    Empty,
    /// What sqlparser understands.
    Sql(Arc<ast::Statement>),
    /// The same at a time of the past: a query, BEGIN or SET TRANSACTION.
    AsOf(Arc<Moment>, Arc<ast::Statement>),
    /// COPY, which we parse ourselves: sqlparser wants its data behind it.
    Copy(Arc<CopyStatement>),
    /// A statement that cuts regions, which is ours.
    Split(Arc<SplitStatement>),
    /// CREATE or ALTER SEQUENCE, which we parse ourselves.
    Sequence(Arc<SequenceStatement>),
    /// SET CONSTRAINTS, which we parse ourselves.
    Constraints(ConstraintsStatement),
    /// VACUUM, ANALYZE, CHECKPOINT …: there is nothing to do; the tag says that it is done.
    Maintenance(&'static str),
}
