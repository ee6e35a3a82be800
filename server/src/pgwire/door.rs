//! The SQL port: accepts, bounds, and at the end drains.

use std::{
    io,
    panic::AssertUnwindSafe,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use kv::Clock;
use sql::{Gateway, SqlError, SqlState};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use super::{
    connection::Connection,
    greeting::{self, NoSession},
    wire::{MessageBudget, Wire},
};
use crate::clock::{SystemClock, Tasks, panic_message};

/// Long messages of all sessions together: an eighth of what a small machine has.
const LONG_MESSAGES_BYTES: usize = 512 << 20;

/// Connections beyond the limit that are still answered: they may be CancelRequests, and the others deserve a reason.
const EXTRA_CONNECTIONS: usize = 64;

/// Between attempts to accept when the process is out of file descriptors.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What the door is told.
#[derive(Clone, Debug)]
pub struct DoorConfig {
    /// Sessions at most; the next gets 53300.
    pub max_connections: usize,
    /// A client that has not said who it is by then is sent away. PostgreSQL's authentication_timeout is a minute, made
    /// for people who type passwords.
    pub startup_deadline: Duration,
}

/// How the process is doing, for its sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Everything is served.
    Serving,
    /// Sessions end as soon as they are outside a transaction.
    Draining,
    /// Sessions end.
    Closing,
}

/// What all connections share.
pub struct SqlDoor {
    /// Set once the node has found its cluster.
    pub gateway: Arc<OnceLock<Arc<Gateway>>>,
    config: DoorConfig,
    budget: MessageBudget,
    sessions: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    phase: watch::Sender<Phase>,
    tasks: Tasks,
    counters: Counters,
}

/// Since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Query and Execute messages.
    pub statements: AtomicU64,
    /// Messages that failed.
    pub errors: AtomicU64,
}

impl SqlDoor {
    /// Nobody is let in before [`SqlDoor::serve`], and no session made before `gateway` is set.
    pub fn new(config: DoorConfig) -> Arc<Self> {
        Arc::new(SqlDoor {
            gateway: Arc::default(),
            budget: MessageBudget::new(LONG_MESSAGES_BYTES),
            sessions: Arc::new(Semaphore::new(config.max_connections)),
            connections: Arc::new(Semaphore::new(config.max_connections + EXTRA_CONNECTIONS)),
            phase: watch::Sender::new(Phase::Serving),
            tasks: Tasks::default(),
            counters: Counters::default(),
            config,
        })
    }

    /// Accepts until draining starts.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut phase = self.phase.subscribe();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = phase.wait_for(|p| *p != Phase::Serving) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.admit(stream),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    SystemClock.sleep(ACCEPT_AGAIN_AFTER).await;
                }
            }
        }
    }

    /// Lets sessions end by themselves for `grace`, then ends them. Returns when all are gone.
    pub async fn drain(&self, grace: Duration) {
        self.phase.send_replace(Phase::Draining);
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            self.phase.send_replace(Phase::Closing);
            if let Some(gateway) = self.gateway.get() {
                gateway.cancel_all();
            }
            self.tasks.wait().await;
        }
    }

    /// What has happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
    /// Sessions that are open.
    pub fn open_sessions(&self) -> usize {
        self.gateway.get().map_or(0, |gateway| gateway.sessions())
    }

    fn admit(self: &Arc<Self>, stream: TcpStream) {
        // Past all bounds a connection is closed without a word: a word would need memory for each of them.
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        let Ok(permit) = self.connections.clone().try_acquire_owned() else { return };
        let door = self.clone();
        self.tasks.run("sql connection", async move {
            if let Err(error) = door.talk(stream).await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }

    async fn talk(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
        let client_address = stream.peer_addr().map(|address| address.to_string()).unwrap_or_default();
        let mut wire = Wire::new(stream, self.budget.clone());
        let talk = AssertUnwindSafe(self.session(&mut wire, client_address)).catch_unwind();
        match talk.await {
            Ok(Ok(()) | Err(NoSession::Silent)) => {}
            Ok(Err(NoSession::Refused(error))) => {
                tracing::info!(%error, "connection refused");
                wire.say().report(&error.fatal());
            }
            Err(panic) => {
                tracing::error!(panic = panic_message(&*panic), "a session panicked and was ended");
                let error = SqlError::internal("internal error: the session was ended, see the server's log");
                wire.drop_output();
                wire.say().report(&error.fatal());
            }
        }
        wire.close().await;
        Ok(())
    }

    async fn session(&self, wire: &mut Wire<TcpStream>, client_address: String) -> Result<(), NoSession> {
        let hello = tokio::time::timeout(self.config.startup_deadline, greeting::hello(self, wire)).await;
        let hello = hello.map_err(|_| NoSession::Refused(startup_timeout()))??;
        let _slot =
            self.sessions.try_acquire().map_err(|_| NoSession::Refused(too_many(self.config.max_connections)))?;
        let session = greeting::welcome(self, hello, wire, client_address).map_err(NoSession::Refused)?;
        Connection::new(wire, session, self.phase.subscribe(), &self.counters).run().await;
        Ok(())
    }
}

fn startup_timeout() -> SqlError {
    SqlError::new(SqlState::PROTOCOL_VIOLATION, "canceling connection due to startup timeout")
}
fn too_many(limit: usize) -> SqlError {
    SqlError::new(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
        .with_detail(format!("This node accepts {limit} sessions."))
        .with_hint("Close some, connect to another node, or raise --max-connections.")
}
