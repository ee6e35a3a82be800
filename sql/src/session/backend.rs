//! The sessions of a gateway as others see them, and what they may do to one another: `pg_stat_activity`,
//! `pg_cancel_backend`, `pg_terminate_backend`, on whichever node a session is.
//!
//! ```text
//!   session ── what it does ──► Backend ◄── Backends of this gateway ◄── kv's gateway door ◄── gateways of all nodes
//! ```
//!
//! What takes the place of a process id is unique in the cluster: a node's store in the upper bits, a number in the lower ones. Of
//! stores 1024 apart it is not, and then a secret tells them apart or the signal goes to both.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::{
    Timestamp,
    wire::{SessionState, SessionStatus, SignalRequest},
};
use tokio::sync::Notify;

use super::{CancelToken, Startup};
use crate::{
    advisory::Advisory,
    dml::Isolation,
    error::{SqlError, SqlState},
    notify::{Notification, Pending},
    sequence::Sequences,
};

/// Bytes of a statement that others are shown: PostgreSQL's track_activity_query_size.
const MAX_QUERY_BYTES: usize = 1024;
/// Bytes of notifications that wait for a client.
const MAX_INBOX_BYTES: usize = 16 << 20;
/// Notices of functions that wait for the client to be told; what is beyond is dropped.
const MAX_NOTICES: usize = 1000;
/// Lower bits of a process id: a node's sessions at once stay far below.
const NUMBER_BITS: u32 = 21;
/// The upper ones; the sign stays clear.
const STORE_MASK: u64 = (1 << (31 - NUMBER_BITS)) - 1;

/// The sessions of one gateway.
#[derive(Debug, Default)]
pub(crate) struct Backends {
    next: AtomicU32,
    all: Mutex<BTreeMap<u32, Arc<Backend>>>,
}

/// A session, as others see it and as the functions of its statements reach it.
#[derive(Debug)]
pub struct Backend {
    /// What takes the place of a process id, never 0.
    pub pid: u32,
    /// The user.
    pub user: String,
    /// The database.
    pub database: String,
    /// What it draws from.
    pub(crate) sequences: Arc<Sequences>,
    /// Its advisory locks.
    pub(crate) advisory: Arc<Advisory>,
    /// Ends what it does.
    pub(crate) cancel: CancelToken,
    client_address: String,
    started_us: u64,
    /// What its transaction has said and not committed.
    pub(crate) pending: Mutex<Pending>,
    inbox: Mutex<Inbox>,
    told: Notify,
    secret: OnceLock<Bytes>,
    notices: Mutex<Vec<SqlError>>,
    activity: Mutex<Activity>,
}

/// Notifications that the client has not been told yet.
#[derive(Debug, Default)]
struct Inbox {
    waiting: Vec<Notification>,
    bytes: usize,
}

/// Times are microseconds since 1970 UTC.
#[derive(Debug, Default)]
struct Activity {
    state: SessionState,
    query: Vec<u8>,
    query_started_us: u64,
    state_changed_us: u64,
    application_name: String,
    transaction: Option<Open>,
}

#[derive(Debug)]
struct Open {
    started_us: u64,
    start_ts: Timestamp,
    isolation: Isolation,
}

impl Backends {
    /// A new session of the node with this store.
    pub(crate) fn enter(
        &self,
        store: u64,
        startup: &Startup,
        sequences: Arc<Sequences>,
        now_us: u64,
        advisory: impl FnOnce(u32) -> Arc<Advisory>,
    ) -> Arc<Backend> {
        let mut all = self.all.lock();
        let pid = loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed) & ((1 << NUMBER_BITS) - 1);
            let pid = ((store & STORE_MASK) as u32) << NUMBER_BITS | number;
            if pid != 0 && !all.contains_key(&pid) {
                break pid;
            }
        };
        let backend = Arc::new(Backend {
            pid,
            user: startup.user.clone(),
            database: startup.database.clone(),
            sequences,
            advisory: advisory(pid),
            cancel: CancelToken::default(),
            client_address: startup.client_address.clone(),
            started_us: now_us,
            pending: Mutex::default(),
            inbox: Mutex::default(),
            told: Notify::new(),
            secret: OnceLock::new(),
            notices: Mutex::default(),
            activity: Mutex::new(Activity { state_changed_us: now_us, ..Activity::default() }),
        });
        all.insert(pid, Arc::clone(&backend));
        backend
    }

    /// The session has ended.
    pub(crate) fn leave(&self, pid: u32) {
        self.all.lock().remove(&pid);
    }

    pub(crate) fn list(&self) -> Vec<SessionStatus> {
        self.all.lock().values().map(|backend| backend.status()).collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.lock().len()
    }

    /// Cancels what every session does.
    pub(crate) fn cancel_all(&self) {
        self.all.lock().values().for_each(|backend| backend.cancel.cancel());
    }

    /// The gateway's lease has lapsed: sessions whose locks end with it end as well.
    pub(crate) fn end_holders(&self) {
        let all = self.all.lock();
        let holders = all.values().filter(|backend| backend.advisory.holds_any());
        holders.for_each(|backend| backend.cancel.terminate(SqlError::locks_lost()));
    }

    /// `true`: the session is here, and it has been told. A wrong secret is not told apart from a wrong process id.
    pub(crate) fn signal(&self, signal: &SignalRequest) -> bool {
        let Some(backend) = self.all.lock().get(&signal.pid).cloned() else { return false };
        if !signal.secret.is_empty() && backend.secret.get() != Some(&signal.secret) {
            return false;
        }
        match signal.terminate {
            true => backend.cancel.terminate(SqlError::terminated()),
            false => backend.cancel.cancel(),
        }
        true
    }
}

impl Backend {
    /// Its advisory locks.
    pub fn advisory(&self) -> &Arc<Advisory> {
        &self.advisory
    }

    /// What a CancelRequest has to know. The first one stays.
    pub fn set_secret(&self, secret: Bytes) {
        let _ = self.secret.set(secret);
    }

    pub(crate) fn set_application_name(&self, name: &str) {
        name.clone_into(&mut self.activity.lock().application_name);
    }

    /// A notification for the client. One that takes none for too long is sent away.
    pub(crate) fn tell(&self, notification: Notification) {
        let mut inbox = self.inbox.lock();
        inbox.bytes += notification.channel.len() + notification.payload.len() + size_of::<Notification>();
        if inbox.bytes > MAX_INBOX_BYTES {
            *inbox = Inbox::default();
            let message = "terminating connection because it takes no notifications";
            self.cancel.terminate(SqlError::new(SqlState::OUT_OF_MEMORY, message).fatal());
            return;
        }
        inbox.waiting.push(notification);
        self.told.notify_one();
    }

    /// Completes when there are notifications.
    pub async fn told(&self) {
        while self.inbox.lock().waiting.is_empty() {
            self.told.notified().await;
        }
    }

    /// For the client, outside of a transaction.
    pub fn take_notifications(&self) -> Vec<Notification> {
        std::mem::take(&mut *self.inbox.lock()).waiting
    }

    /// For the client: what a function has to say besides its value.
    pub(crate) fn notice(&self, notice: SqlError) {
        let mut notices = self.notices.lock();
        if notices.len() < MAX_NOTICES {
            notices.push(notice);
        }
    }

    pub(crate) fn take_notices(&self) -> Vec<SqlError> {
        std::mem::take(&mut self.notices.lock())
    }

    /// A statement starts.
    pub(crate) fn runs(&self, query: &str, now_us: u64) {
        let mut activity = self.activity.lock();
        activity.query.clear();
        let shown = &query.as_bytes()[..query.floor_char_boundary(MAX_QUERY_BYTES)];
        activity.query.extend_from_slice(shown);
        activity.query_started_us = now_us;
        activity.go_to(SessionState::Active, now_us);
    }

    /// The running statement.
    pub(crate) fn label(&self) -> Bytes {
        Bytes::copy_from_slice(&self.activity.lock().query)
    }

    /// It waits for the client.
    pub(crate) fn rests(&self, state: SessionState, now_us: u64) {
        self.activity.lock().go_to(state, now_us);
    }

    /// It has a transaction now.
    pub(crate) fn begins(&self, start_ts: Timestamp, isolation: Isolation, started_us: u64) {
        self.activity.lock().transaction = Some(Open { started_us, start_ts, isolation });
    }

    /// It has none any more.
    pub(crate) fn ends(&self) {
        self.activity.lock().transaction = None;
    }

    fn status(&self) -> SessionStatus {
        let activity = self.activity.lock();
        let open = activity.transaction.as_ref();
        SessionStatus {
            pid: self.pid,
            user: self.user.clone(),
            application_name: activity.application_name.clone(),
            client_address: self.client_address.clone(),
            started_us: self.started_us,
            state: activity.state as i32,
            query: Bytes::copy_from_slice(&activity.query),
            query_started_us: activity.query_started_us,
            state_changed_us: activity.state_changed_us,
            transaction_started_us: open.map_or(0, |open| open.started_us),
            transaction: open.map_or(0, |open| open.start_ts.0),
            advisory_owner: self.advisory.owner().unwrap_or_default().0,
            isolation: open.map_or("", |open| open.isolation.name()).to_owned(),
        }
    }
}

impl Activity {
    fn go_to(&mut self, state: SessionState, now_us: u64) {
        self.state = state;
        self.state_changed_us = now_us;
    }
}
