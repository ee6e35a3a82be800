//! From an accepted socket to a session's first ReadyForQuery.

use bytes::Bytes;
use sql::{Session, SqlError, SqlState, Startup};
use tokio::io::{AsyncRead, AsyncWrite};
use uuid::Uuid;

use super::{
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
                if let Some(gateway) = door.gateway.get() {
                    gateway.cancel(pid, secret).await;
                }
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
    client_address: String,
) -> Result<Session, SqlError> {
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
        client_address,
    };
    let mut session = gateway.connect(startup)?;
    let secret = secret(hello.minor);
    session.backend().set_secret(secret.clone());

    let mut say = wire.say();
    let unknown: Vec<&str> = hello.extensions().collect();
    if hello.minor > MINOR_MAX || !unknown.is_empty() {
        say.negotiate_version(hello.minor.min(MINOR_MAX), unknown.into_iter());
    }
    say.authentication_ok();
    session.take_parameter_changes().iter().for_each(|(name, value)| say.parameter_status(name, value));
    say.key_data(session.backend().pid, &secret);
    Ok(session)
}

/// What who wants to cancel a session of protocol 3.`minor` has to know. Version 3.0 has a message of fixed length.
fn secret(minor: u16) -> Bytes {
    const BYTES_3_0: usize = 4;
    // A version 4 UUID holds 122 bits of the system's randomness; its first four bytes are all random.
    let random = Bytes::copy_from_slice(Uuid::new_v4().as_bytes());
    if minor < 2 { random.slice(..BYTES_3_0) } else { random }
}

fn is_setting(key: &str) -> bool {
    !matches!(key, "user" | "database" | "replication") && !key.starts_with("_pq_.")
}

#[cfg(test)]
mod tests {
    #[test]
    fn secrets_fit_their_protocol() {
        assert_eq!((super::secret(0).len(), super::secret(2).len()), (4, 16));
        assert_ne!(super::secret(2), super::secret(2));
    }
}
