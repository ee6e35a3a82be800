//! A session's life after its greeting: messages in, the session's steps out as messages.
//!
//! ```text
//!            ┌────────────── Query ── steps ── error? ───────────────▶ ReadyForQuery ┐
//!  message ──┤                                                                       ├─▶ message
//!            ├─ Parse Bind Describe Execute Close Flush ── error? ─▶ skip to Sync    │
//!            └────────────── Sync ──────────────────────────────────▶ ReadyForQuery ┘
//! ```

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use futures::FutureExt;
use sql::{Session, SqlError, SqlState, Step, TransactionStatus, types::Format};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

use super::{
    door::{Counters, Phase},
    frontend::{self, Bind, Frontend, Malformed, Target},
    greeting::fatal,
    wire::{Wire, WireError},
};

/// A client and its session.
pub struct Connection<'a, S> {
    wire: &'a mut Wire<S>,
    session: Session,
    phase: watch::Receiver<Phase>,
    /// An extended message failed: nothing is done until Sync.
    skipping: bool,
    /// ReadyForQuery was the last that was said.
    at_rest: bool,
    counters: &'a Counters,
}

/// What a message can end with instead of success.
enum Fault {
    /// This message failed; the session goes on (unless it says FATAL).
    Statement(SqlError),
    /// The connection is over.
    Wire(WireError),
    /// The client left, or said goodbye.
    Left,
}

impl From<SqlError> for Fault {
    fn from(error: SqlError) -> Self {
        Fault::Statement(error)
    }
}
impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Fault::Wire(error)
    }
}
impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Fault::Wire(error.into())
    }
}
impl From<Malformed> for Fault {
    fn from(error: Malformed) -> Self {
        let state = match error {
            Malformed::Body(_) => SqlState::PROTOCOL_VIOLATION,
            Malformed::NotUtf8(_) => SqlState::CHARACTER_NOT_IN_REPERTOIRE,
        };
        Fault::Statement(SqlError::new(state, error.to_string()))
    }
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Connection<'a, S> {
    /// Takes over where the greeting ended.
    pub fn new(wire: &'a mut Wire<S>, session: Session, phase: watch::Receiver<Phase>, counters: &'a Counters) -> Self {
        Connection { wire, session, phase, skipping: false, at_rest: false, counters }
    }

    /// Until the client leaves, the connection breaks, or the process ends. What is to be said at the end is written, not sent.
    pub async fn run(mut self) {
        self.ready();
        let end = loop {
            if let Err(end) = self.turn().await {
                break end;
            }
        };
        match end {
            Fault::Left => {}
            Fault::Statement(error) => self.wire.say().report(&error),
            Fault::Wire(error) => {
                if let Some(report) = fatal(&error) {
                    self.wire.say().report(&report);
                }
            }
        }
        self.session.close().await;
    }

    /// One message. An error is the end of the connection.
    async fn turn(&mut self) -> Result<(), Fault> {
        // A client that sends ahead never makes this task wait.
        tokio::task::consume_budget().await;
        let (kind, body) = self.next_message().await?;
        if self.skipping && !matches!(kind, b'S' | b'X') {
            return Ok(());
        }
        let done = match frontend::decode(kind, body) {
            Ok(message) => self.dispatch(message).await,
            Err(malformed) => Err(malformed.into()),
        };
        match done {
            Err(Fault::Statement(error)) => self.statement_failed(kind, error)?,
            Err(end) => return Err(end),
            Ok(()) => {}
        }
        if matches!(kind, b'Q' | b'S' | b'F') {
            self.ready();
        }
        Ok(self.wire.relieve().await?)
    }

    async fn next_message(&mut self) -> Result<(u8, Bytes), Fault> {
        let outside_transaction = self.session.status() == TransactionStatus::Idle;
        let cancel = self.session.cancel_token();
        let over = |phase: &Phase| *phase == Phase::Closing || (*phase == Phase::Draining && outside_transaction);
        let backend = Arc::clone(self.session.backend());
        let limit = self.session.idle_limit().filter(|_| std::mem::take(&mut self.at_rest));
        let mut idle = limit.unwrap_or_else(|| std::future::pending().boxed());
        loop {
            tokio::select! {
                biased;
                message = self.wire.message() => return message?.ok_or(Fault::Left),
                _ = self.phase.wait_for(over) => return Err(Fault::Statement(SqlError::terminated())),
                error = cancel.terminated() => return Err(Fault::Statement(error)),
                () = backend.told(), if outside_transaction && !self.skipping => {}
                () = &mut idle => return Err(Fault::Statement(SqlError::idle_in_transaction())),
            }
            self.notifications();
            self.wire.flush().await?;
        }
    }

    /// What other sessions have to say to those who listen. Never inside of a transaction.
    fn notifications(&mut self) {
        for notification in self.session.backend().take_notifications() {
            self.wire.say().notification(notification.pid, &notification.channel, &notification.payload);
        }
    }

    fn statement_failed(&mut self, kind: u8, error: SqlError) -> Result<(), Fault> {
        if error.severity == sql::Severity::Fatal {
            return Err(Fault::Statement(error));
        }
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        self.notices();
        self.wire.say().report(&error);
        self.wire.flush_before_read();
        self.skipping = frontend::is_extended(kind);
        Ok(())
    }

    async fn dispatch(&mut self, message: Frontend) -> Result<(), Fault> {
        match message {
            Frontend::Query(sql) => {
                self.counters.statements.fetch_add(1, Ordering::Relaxed);
                self.session.simple(&sql).await?;
                self.steps(&[]).await
            }
            Frontend::Parse { name, sql, param_oids } => {
                self.session.parse(&name, &sql, &param_oids).await?;
                self.answer(b'1')
            }
            Frontend::Bind(bind) => self.bind(bind).await,
            Frontend::Describe(Target::Statement(name)) => self.describe_statement(&name).await,
            Frontend::Describe(Target::Portal(name)) => {
                let fields = self.session.describe_portal(&name).await?;
                self.fields(fields.as_deref())
            }
            Frontend::Execute { portal, max_rows } => self.execute(&portal, max_rows).await,
            Frontend::Close(target) => {
                match target {
                    Target::Statement(name) => self.session.close_statement(&name),
                    Target::Portal(name) => self.session.close_portal(&name),
                }
                self.answer(b'3')
            }
            Frontend::Flush => {
                self.wire.flush_before_read();
                Ok(())
            }
            Frontend::Sync => {
                self.skipping = false;
                Ok(self.session.sync().await?)
            }
            // The rest of a COPY that has already failed: the client learns it when it reads.
            Frontend::CopyData(_) | Frontend::CopyDone | Frontend::CopyFail(_) => Ok(()),
            Frontend::FunctionCall => Err(SqlError::unsupported("a function call by oid (message F)").into()),
            Frontend::Password => Err(WireError::from(frontend::BadFrame::UnknownType(b'p')).into()),
            Frontend::Terminate => Err(Fault::Left),
        }
    }

    async fn bind(&mut self, bind: Bind) -> Result<(), Fault> {
        let param_formats = formats(&bind.param_formats)?;
        let result_formats = formats(&bind.result_formats)?;
        let Bind { portal, statement, params, .. } = bind;
        self.session.bind(&portal, &statement, &param_formats, params, &result_formats).await?;
        self.answer(b'2')
    }

    async fn describe_statement(&mut self, name: &str) -> Result<(), Fault> {
        let description = self.session.describe_statement(name).await?;
        self.wire.say().parameter_description(&description.param_oids);
        self.fields(description.fields.as_deref())
    }

    fn fields(&mut self, fields: Option<&[sql::Field]>) -> Result<(), Fault> {
        match fields {
            Some(fields) => self.wire.say().row_description(fields),
            None => self.wire.say().bare(b'n'),
        }
        Ok(())
    }

    async fn execute(&mut self, portal: &str, max_rows: u32) -> Result<(), Fault> {
        // Nothing more to come but Sync: the statement may commit by itself.
        let last = self.wire.peek().await?.ok_or(Fault::Left)? == b'S';
        self.counters.statements.fetch_add(1, Ordering::Relaxed);
        self.session.execute(portal, max_rows, last).await?;
        let formats = self.session.portal_formats(portal);
        self.steps(&formats).await
    }

    /// Sends what the session makes of a query or portal.
    async fn steps(&mut self, formats: &[Format]) -> Result<(), Fault> {
        while let Some(step) = self.session.next().await? {
            self.notices();
            let mut say = self.wire.say();
            match step {
                Step::Fields(fields) => say.row_description(&fields),
                Step::Rows(batch) => {
                    for row in 0..batch.len() {
                        self.wire.say().data_row(|out| batch.encode_row(row, formats, out))?;
                        self.wire.relieve().await?;
                    }
                }
                Step::Suspended => say.bare(b's'),
                Step::Done(tag) => say.command_complete(&tag),
                Step::Empty => say.bare(b'I'),
                Step::CopyIn(format) => {
                    say.copy_response(true, format);
                    self.copy_in().await?;
                }
                Step::CopyOut(format) => say.copy_response(false, format),
                Step::CopyData(lines) => {
                    // A message a row, as PostgreSQL sends them: drivers count on it.
                    lines.split_inclusive(|byte| *byte == b'\n').for_each(|line| say.copy_data(line));
                    self.wire.relieve().await?;
                }
                Step::CopyEnd => say.bare(b'c'),
            }
        }
        Ok(())
    }

    /// Feeds the session until the client ends its data.
    async fn copy_in(&mut self) -> Result<(), Fault> {
        self.wire.flush().await?;
        loop {
            let (kind, body) = self.next_message().await?;
            match frontend::decode(kind, body)? {
                Frontend::CopyData(data) => self.session.copy_data(data).await?,
                Frontend::CopyDone => return Ok(self.session.copy_done().await?),
                Frontend::CopyFail(why) => return Ok(self.session.copy_fail(&why).await?),
                // Sent by clients that do not know yet that they are in a COPY.
                Frontend::Flush | Frontend::Sync => {}
                Frontend::Terminate => return Err(Fault::Left),
                _ => {
                    let message = format!("unexpected message type 0x{kind:02X} during COPY from stdin");
                    return Err(SqlError::new(SqlState::PROTOCOL_VIOLATION, message).fatal().into());
                }
            }
        }
    }

    fn answer(&mut self, kind: u8) -> Result<(), Fault> {
        self.wire.say().bare(kind);
        Ok(())
    }

    fn notices(&mut self) {
        for notice in self.session.take_notices() {
            self.wire.say().report(&notice);
        }
    }

    /// Your turn, client.
    fn ready(&mut self) {
        self.notices();
        let status = self.session.rest();
        if status == TransactionStatus::Idle {
            self.notifications();
        }
        let mut say = self.wire.say();
        self.session.take_parameter_changes().iter().for_each(|(name, value)| say.parameter_status(name, value));
        say.ready(status);
        self.wire.flush_before_read();
        self.at_rest = true;
    }
}

fn formats(codes: &[i16]) -> Result<Vec<Format>, SqlError> {
    codes.iter().map(|code| Format::from_code(*code)).collect()
}
