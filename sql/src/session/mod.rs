//! A client's session: statements in, [`Step`]s out.

pub mod cancel;
pub mod step;

use std::sync::Arc;

use bytes::Bytes;

pub use cancel::CancelToken;
pub use step::{CopyFormat, Field, RowBatch, RowShape, Step};

use crate::{
    error::{SqlError, SqlResult},
    gateway::Gateway,
    types::Format,
};

/// What the startup packet says.
#[derive(Clone, Debug, Default)]
pub struct Startup {
    /// User; already authenticated.
    pub user: String,
    /// Database.
    pub database: String,
    /// Settings the client wants.
    pub parameters: Vec<(String, String)>,
}

/// For ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// `I`
    Idle,
    /// `T`
    InTransaction,
    /// `E`: only ROLLBACK gets out.
    Failed,
}

/// What Describe says about a prepared statement.
#[derive(Clone, Debug)]
pub struct StatementDescription {
    /// Types of the parameters.
    pub param_oids: Vec<u32>,
    /// Columns of the result; `None` for NoData.
    pub fields: Option<Arc<[Field]>>,
}

/// One connection's session. Not shared: the protocol feeds it one message after another.
pub struct Session {
    gateway: Arc<Gateway>,
    startup: Startup,
    cancel: CancelToken,
}

impl Session {
    pub(crate) fn new(gateway: Arc<Gateway>, startup: Startup) -> SqlResult<Self> {
        Ok(Session { gateway, startup, cancel: CancelToken::default() })
    }
    /// Parse: prepares a statement; `""` is the unnamed one. `param_oids` may be shorter than the parameters; 0 is "find out".
    pub async fn parse(&mut self, _name: &str, _sql: &str, _param_oids: &[u32]) -> SqlResult<()> {
        Err(SqlError::unsupported("a prepared statement"))
    }
    /// Describe of a prepared statement.
    pub async fn describe_statement(&mut self, _name: &str) -> SqlResult<StatementDescription> {
        Err(SqlError::unsupported("a prepared statement"))
    }
    /// Bind: gives a statement its parameters. Formats are none (all text), one (for all) or one for each.
    pub async fn bind(
        &mut self,
        _portal: &str,
        _statement: &str,
        _param_formats: &[Format],
        _params: Vec<Option<Bytes>>,
        _result_formats: &[Format],
    ) -> SqlResult<()> {
        Err(SqlError::unsupported("a portal"))
    }
    /// Describe of a portal: its columns with their formats; `None` for NoData.
    pub async fn describe_portal(&mut self, _name: &str) -> SqlResult<Option<Arc<[Field]>>> {
        Err(SqlError::unsupported("a portal"))
    }
    /// Execute: then call [`Session::next`] until `None`. `max_rows` 0 is all. `last` says that Sync is the next message:
    /// then a statement outside a transaction commits (and is retried) within Execute; otherwise it joins the
    /// implicit transaction that [`Session::sync`] commits. A protocol that has read Execute and nothing behind it should wait for
    /// the next message before it calls this.
    pub async fn execute(&mut self, _portal: &str, _max_rows: u32, _last: bool) -> SqlResult<()> {
        Err(SqlError::unsupported("a portal"))
    }
    /// Query: then call [`Session::next`] until `None`. After an error the rest of the text is dropped.
    pub async fn simple(&mut self, _sql: &str) -> SqlResult<()> {
        Err(SqlError::unsupported("a query"))
    }
    /// The next step of what `execute` or `simple` started; `None` at its end.
    pub async fn next(&mut self) -> SqlResult<Option<Step>> {
        Ok(None)
    }
    /// CopyData from the client, after [`Step::CopyIn`].
    pub async fn copy_data(&mut self, _data: Bytes) -> SqlResult<()> {
        Err(SqlError::unsupported("COPY"))
    }
    /// CopyDone from the client.
    pub async fn copy_done(&mut self) -> SqlResult<()> {
        Err(SqlError::unsupported("COPY"))
    }
    /// CopyFail from the client: the next step is the error.
    pub async fn copy_fail(&mut self, _message: &str) -> SqlResult<()> {
        Err(SqlError::unsupported("COPY"))
    }
    /// Close of a prepared statement; one that does not exist is no error.
    pub fn close_statement(&mut self, _name: &str) {}
    /// Close of a portal; one that does not exist is no error.
    pub fn close_portal(&mut self, _name: &str) {}
    /// Sync: ends an implicit transaction (commits it, or rolls it back after an error). An error is reported before ReadyForQuery.
    pub async fn sync(&mut self) -> SqlResult<()> {
        Ok(())
    }
    /// For ReadyForQuery.
    pub fn status(&self) -> TransactionStatus {
        TransactionStatus::Idle
    }
    /// Cancels the running statement from another task.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }
    /// Notices since the last call, to be sent before the next step's message.
    pub fn take_notices(&mut self) -> Vec<SqlError> {
        Vec::new()
    }
    /// ParameterStatus messages since the last call (after connect: all that are reported).
    pub fn take_parameter_changes(&mut self) -> Vec<(String, String)> {
        Vec::new()
    }
    /// Ends the session: rolls back what is open. Dropping it does the same without waiting.
    pub async fn close(&mut self) {
        tracing::debug!(user = %self.startup.user, gateway = self.gateway.id(), "session closed");
    }
}
