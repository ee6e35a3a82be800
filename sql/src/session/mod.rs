//! A client's session: statements in, [`Step`]s out.
//!
//! ```text
//!   parse ─▶ Prepared ─ bind ─▶ Portal ─ execute ─▶ next, next, … ─▶ Done
//!   simple ─▶ each statement of the text the same way, with its own portal
//! ```
//!
//! The session knows PostgreSQL's rules of transactions, statements and portals; it does not know the wire. It is fed one message after
//! another (`&mut self`), and rows leave it a batch at a time, so that a slow client holds back the scan and not memory.
//!
//! | file | |
//! | --- | --- |
//! | `transaction` | BEGIN to COMMIT, schema changes included |
//! | `plan` | which way a statement goes |
//! | `run` | statements on rows, with their retries |
//! | `command` | everything else: SET, DDL, PREPARE … |
//! | `constraints` | what is checked at COMMIT |
//! | `copy` | COPY |
//! | `past` | AS OF SYSTEM TIME |
//! | `extended` | the messages of the extended protocol |

pub mod backend;
pub mod cancel;
mod command;
mod constraints;
mod copy;
mod cursor;
mod extended;
mod past;
pub mod plan;
mod portal;
mod regions;
mod run;
mod savepoint;
pub mod settings;
mod simple;
pub mod step;
mod transaction;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use kv::Instant;
use proto::wire::SessionState;

pub use backend::Backend;
pub use cancel::CancelToken;
pub use step::{CopyFormat, Field, RowBatch, RowShape, Step};

use self::{
    copy::CopyIn,
    portal::{Portal, Prepared},
    settings::Settings,
    simple::Queue,
    transaction::{State, Transaction},
};
use crate::{
    catalog::LeasedCatalog,
    error::{SqlError, SqlResult},
    gateway::Gateway,
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
    /// ADDRESS:PORT of the client, for others to see; empty when unknown.
    pub client_address: String,
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

/// What [`Session::next`] goes on with.
enum Active {
    Nothing,
    /// A portal of the extended protocol, and how many rows it may still give.
    Portal(String, Option<u64>),
    /// The statements of a Query message.
    Simple(Box<Queue>),
}

/// One connection's session. Not shared: the protocol feeds it one message after another.
pub struct Session {
    gateway: Arc<Gateway>,
    catalog: Arc<LeasedCatalog>,
    backend: Arc<Backend>,
    settings: Settings,
    transaction: Transaction,
    statements: HashMap<String, Arc<Prepared>>,
    portals: HashMap<String, Portal>,
    active: Active,
    copy_in: Option<Box<CopyIn>>,
    notices: Vec<SqlError>,
    changes: Vec<(String, String)>,
    deadline: Option<Instant>,
}

impl Session {
    pub(crate) fn new(gateway: Arc<Gateway>, catalog: Arc<LeasedCatalog>, startup: Startup) -> SqlResult<Self> {
        let settings = Settings::new(&startup.user, &startup.parameters).map_err(SqlError::fatal)?;
        let transaction = Transaction { state: State::Idle, fence: catalog.fence() };
        let backend = gateway.enter(&startup, &catalog);
        backend.set_application_name(settings.show("application_name")?.1);
        Ok(Session {
            gateway,
            catalog,
            changes: settings.reported(),
            settings,
            backend,
            transaction,
            statements: HashMap::new(),
            portals: HashMap::new(),
            active: Active::Nothing,
            copy_in: None,
            notices: Vec::new(),
            deadline: None,
        })
    }

    /// The next step of what `execute` or `simple` started; `None` at its end.
    pub async fn next(&mut self) -> SqlResult<Option<Step>> {
        match std::mem::replace(&mut self.active, Active::Nothing) {
            Active::Nothing => Ok(None),
            Active::Portal(name, left) => self.next_of_portal(name, left).await.inspect_err(|_| self.copy_in = None),
            Active::Simple(queue) => self.next_of_queue(queue).await.inspect_err(|_| {
                self.copy_in = None;
                self.end_implicit();
            }),
        }
    }

    /// Whether a transaction is open.
    pub fn status(&self) -> TransactionStatus {
        self.transaction.status()
    }
    /// `idle_in_transaction_session_timeout`: completes when the client, from now on, has left a transaction open for so long.
    pub fn idle_limit(&self) -> Option<BoxFuture<'static, ()>> {
        let limit = self.settings.milliseconds("idle_in_transaction_session_timeout");
        let counts = limit > 0 && self.status() != TransactionStatus::Idle;
        counts.then(|| self.gateway.config().clock.sleep(Duration::from_millis(limit)))
    }
    /// For ReadyForQuery: the session waits for the client now.
    pub fn rest(&mut self) -> TransactionStatus {
        let status = self.status();
        let state = match status {
            TransactionStatus::Idle => SessionState::Idle,
            TransactionStatus::InTransaction => SessionState::IdleInTransaction,
            TransactionStatus::Failed => SessionState::IdleInFailedTransaction,
        };
        self.backend.rests(state, self.gateway.now_us());
        status
    }
    /// The session as others see it.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
    /// Cancels the running statement from another task, or ends the session.
    pub fn cancel_token(&self) -> CancelToken {
        self.backend.cancel.clone()
    }
    /// Notices since the last call, to be sent before the next step's message.
    pub fn take_notices(&mut self) -> Vec<SqlError> {
        let mut notices = std::mem::take(&mut self.notices);
        notices.extend(self.backend.take_notices());
        notices
    }
    /// ParameterStatus messages since the last call (after connect: all that are reported).
    pub fn take_parameter_changes(&mut self) -> Vec<(String, String)> {
        let changes = std::mem::take(&mut self.changes);
        if let Some((_, name)) = changes.iter().rfind(|(setting, _)| setting == "application_name") {
            self.backend.set_application_name(name);
        }
        changes
    }
    /// Ends the session: rolls back what is open. Dropping it does the same.
    pub async fn close(&mut self) {
        self.portals.clear();
        self.rollback();
        tracing::debug!(user = %self.backend.user, gateway = self.gateway.id(), "session closed");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.rollback();
        self.backend.advisory.end();
        self.gateway.leave(&self.backend);
    }
}
