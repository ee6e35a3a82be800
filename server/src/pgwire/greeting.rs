//! From an accepted socket to a session's first ReadyForQuery.

use sql::{Session, SqlError, SqlState, Startup};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    cancel::CancelKey,
    door::SqlDoor,
    startup::{Hello, MINOR_MAX, Opening},
    wire::{Wire, WireError},
};

/// SSLRequest and GSSENCRequest may each come once before the startup message; who asks more often plays games.
const OPENINGS_MAX: usize = 4;

/// Why a connection does not become a session.
pub enum NoSession {
    /// It was a CancelRequest, or the client left: nothing is answered.
    Silent,
    /// FATAL.
    Refused(SqlError),
}

impl From<WireError> for NoSession {
    fn from(error: WireError) -> Self {
        fatal(&error).map_or(NoSession::Silent, NoSession::Refused)
    }
}
impl From<std::io::Error> for NoSession {
    fn from(_: std::io::Error) -> Self {
        NoSession::Silent
    }
}

/// What to tell a client that can't be talked to any more; `None` when nobody listens.
pub fn fatal(error: &WireError) -> Option<SqlError> {
    let state = match error {
        WireError::Io(_) => return None,
        WireError::Frame(super::frontend::BadFrame::TooLong(_)) => SqlState::PROGRAM_LIMIT_EXCEEDED,
        WireError::Frame(_) | WireError::Startup(_) => SqlState::PROTOCOL_VIOLATION,
        WireError::Crowded(_) => SqlState::OUT_OF_MEMORY,
    };
    Some(SqlError::new(state, error.to_string()).fatal())
}

/// Waits for the startup message, answering what comes before it.
pub async fn hello<S: AsyncRead + AsyncWrite + Unpin>(door: &SqlDoor, wire: &mut Wire<S>) -> Result<Hello, NoSession> {
    for _ in 0..OPENINGS_MAX {
        match wire.opening().await? {
            None => return Err(NoSession::Silent),
            Some(Opening::Ssl | Opening::Gss) => wire.send_byte(b'N').await?,
            Some(Opening::Cancel { pid, secret }) => {
                door.keys.cancel(pid, &secret);
                return Err(NoSession::Silent);
            }
            Some(Opening::Startup(hello)) => return Ok(hello),
        }
    }
    let error = SqlError::new(SqlState::PROTOCOL_VIOLATION, "too many encryption requests before the startup packet");
    Err(NoSession::Refused(error.fatal()))
}

/// Makes the session and writes everything up to, and without, the first ReadyForQuery.
pub fn welcome<S: AsyncRead + AsyncWrite + Unpin>(
    door: &SqlDoor,
    hello: Hello,
    wire: &mut Wire<S>,
) -> Result<(Session, CancelKey), SqlError> {
    let gateway = door.gateway.get().ok_or_else(|| {
        SqlError::new(SqlState::CANNOT_CONNECT_NOW, "the database system is starting up")
            .with_hint("This node has not found its cluster yet; ask /healthz or flaredb ctl cluster status.")
    })?;
    let user = hello.parameter("user").filter(|user| !user.is_empty()).ok_or_else(|| {
        SqlError::new(
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            "no PostgreSQL user name specified in startup packet",
        )
    })?;
    if hello.parameter("replication").is_some_and(|r| !matches!(r, "false" | "off" | "no" | "0")) {
        return Err(SqlError::unsupported("a replication connection"));
    }
    let database = hello.parameter("database").filter(|database| !database.is_empty()).unwrap_or(user);
    let startup = Startup {
        user: user.to_owned(),
        database: database.to_owned(),
        parameters: hello.parameters.iter().filter(|(key, _)| is_setting(key)).cloned().collect(),
    };
    let mut session = gateway.connect(startup)?;
    let key = door.keys.register(hello.minor, session.cancel_token());

    let mut say = wire.say();
    let unknown: Vec<&str> = hello.extensions().collect();
    if hello.minor > MINOR_MAX || !unknown.is_empty() {
        say.negotiate_version(hello.minor.min(MINOR_MAX), unknown.into_iter());
    }
    say.authentication_ok();
    session.take_parameter_changes().iter().for_each(|(name, value)| say.parameter_status(name, value));
    say.key_data(key.pid, &key.secret);
    Ok((session, key))
}

fn is_setting(key: &str) -> bool {
    !matches!(key, "user" | "database" | "replication") && !key.starts_with("_pq_.")
}
