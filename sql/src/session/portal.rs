//! Prepared statements and portals.

use std::{collections::VecDeque, sync::Arc};

use super::{
    plan::StatementPlan,
    step::{Field, RowBatch, RowShape},
};
use crate::{
    copy::CopyOut,
    error::{SqlError, SqlResult, SqlState},
    keyplan::{by_index::IndexRead, run::RangeScan},
    query::Rows,
    statement::Command,
    types::{Datum, Format, PgType},
};

/// Most prepared statements and most portals of a session.
pub(super) const MAX_NAMED: usize = 10_000;

/// A prepared statement.
#[derive(Debug)]
pub(super) struct Prepared {
    pub sql: String,
    pub command: Command,
    /// As the client declared them.
    pub declared: Vec<PgType>,
    pub plan: Arc<StatementPlan>,
    /// Found by its shape in the simple protocol: `command` says nothing.
    pub unparsed: bool,
    /// Of the simple protocol: the client is told of its columns when it runs, and they may be others by then.
    pub simple: bool,
}

/// A statement with its parameters.
pub(super) struct Portal {
    pub prepared: Arc<Prepared>,
    pub plan: Arc<StatementPlan>,
    pub params: Vec<Datum>,
    pub formats: Vec<Format>,
    pub progress: Progress,
}

pub(super) enum Progress {
    New,
    Running(Box<Running>),
    /// It has given all it had; the tag is given again.
    Done(String),
}

impl Portal {
    /// The result's columns with the formats the client asked for.
    pub(super) fn fields(&self) -> Option<Arc<[Field]>> {
        let fields = self.plan.fields.as_ref()?;
        if self.formats.iter().all(|format| *format == Format::Text) {
            return Some(Arc::clone(fields));
        }
        let field = |(at, field): (usize, &Field)| {
            let format = match self.formats.as_slice() {
                [one] => *one,
                each => each.get(at).copied().unwrap_or_default(),
            };
            Field { format, ..field.clone() }
        };
        Some(fields.iter().enumerate().map(field).collect())
    }
}

/// Where a running statement's rows come from.
pub(super) enum Source {
    Nothing,
    Range(Box<RangeScan>),
    Index(Box<IndexRead>),
    Query(Rows),
    CopyOut(Box<CopyOut>),
    /// The client sends rows.
    CopyIn,
    /// FETCH: the portal of that name, and how many of its rows are still wanted; `None` for all.
    Cursor {
        name: String,
        left: Option<u64>,
    },
}

/// What CommandComplete will say.
pub(super) enum Tag {
    /// SELECT and the rows that were sent.
    Select,
    /// The same for FETCH.
    Fetch,
    Fixed(String),
    /// EmptyQueryResponse.
    Empty,
}

/// A statement that has started.
pub(super) struct Running {
    pub shape: Arc<RowShape>,
    pub ready: VecDeque<RowBatch>,
    pub source: Source,
    pub tag: Tag,
    pub sent: u64,
    /// The transaction ends with the statement.
    pub single: bool,
}

impl Running {
    /// One that gives no rows.
    pub(super) fn done(tag: impl Into<String>) -> Self {
        Self::with_tag(Tag::Fixed(tag.into()))
    }
    pub(super) fn with_tag(tag: Tag) -> Self {
        let shape = RowShape { types: Vec::new(), settings: Default::default() };
        Running { shape: Arc::new(shape), ready: VecDeque::new(), source: Source::Nothing, tag, sent: 0, single: false }
    }
    /// What CommandComplete says.
    pub(super) fn tag(&self) -> Option<String> {
        match &self.tag {
            Tag::Select => Some(format!("SELECT {}", self.sent)),
            Tag::Fetch => Some(format!("FETCH {}", self.sent)),
            Tag::Fixed(tag) => Some(tag.clone()),
            Tag::Empty => None,
        }
    }
}

/// 26000.
pub(super) fn no_statement(name: &str) -> SqlError {
    let message = if name.is_empty() {
        "unnamed prepared statement does not exist".to_owned()
    } else {
        format!("prepared statement \"{name}\" does not exist")
    };
    SqlError::new(SqlState::INVALID_SQL_STATEMENT_NAME, message)
}

/// 34000.
pub(super) fn no_portal(name: &str) -> SqlError {
    SqlError::new(SqlState::INVALID_CURSOR_NAME, format!("portal \"{name}\" does not exist"))
}

/// 53400 when a session has too many of something.
pub(super) fn check_count(count: usize, what: &str) -> SqlResult<()> {
    if count < MAX_NAMED {
        return Ok(());
    }
    Err(SqlError::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, format!("a session has at most {MAX_NAMED} {what}"))
        .with_hint("Close those that are not used any more."))
}
