//! SQL over a `kv` transaction: statements in, plans, rows out, with PostgreSQL's meaning.
//!
//! ```text
//!   Gateway (one a node) ── connect ──► Session (one a connection)
//!      │ plan cache, catalog lease         │ parse, bind, execute, simple
//!      ▼                                   ▼
//!   catalog ── descriptors ──►  statement ─┬─► keyplan   one key, a few keys, short ranges: no planner when it runs
//!   rows in system tables                  ├─► query     everything that reads, over DataFusion and the regions
//!                                          ├─► dml, copy sinks: rows → keys and values in the transaction
//!                                          └─► ddl       descriptors, in the same transaction
//!                                                │ codec: rows and index keys as bytes
//!                                                ▼
//!                                          kv::Txn
//! ```
//!
//! One planner serves all statements, and the plan of a statement's shape is kept: its literals are parameters. [`types`]
//! holds PostgreSQL's types with their oids and their text and binary forms; [`error`] its error codes.
//!
//! What it does not do: frame messages (`server::pgwire`), route keys to regions or commit (`kv`), keep rows anywhere
//! but in `kv`. What is missing answers SQLSTATE 0A000 and names itself.

pub mod advisory;
pub mod catalog;
pub mod codec;
pub mod copy;
pub mod ddl;
pub mod dml;
pub mod error;
pub mod eval;
mod garbage;
pub mod gateway;
pub mod keyplan;
pub mod name;
pub mod notify;
pub mod planted;
pub mod query;
pub mod reader;
pub mod sequence;
pub mod session;
pub mod statement;
pub mod types;
pub mod work;

pub use error::{Report, Severity, SqlError, SqlResult, SqlState};
pub use gateway::{Gateway, GatewayConfig};
pub use reader::Reader;
pub use session::{
    CancelToken, CopyFormat, Field, RowBatch, RowShape, Session, Startup, StatementDescription, Step, TransactionStatus,
};
pub use statement::parse::THREAD_STACK_BYTES;
