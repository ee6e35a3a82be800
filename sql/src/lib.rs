//! SQL over a `kv` transaction.

pub mod catalog;
pub mod codec;
pub mod copy;
pub mod ddl;
pub mod dml;
pub mod error;
pub mod eval;
pub mod gateway;
pub mod keyplan;
pub mod name;
pub mod query;
pub mod reader;
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
