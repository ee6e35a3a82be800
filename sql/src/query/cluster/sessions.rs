//! Sessions of all nodes as rows: `pg_stat_activity`, and their transactions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use proto::{
    StoreId, Timestamp,
    wire::{RowLockStatus, SessionState, SessionStatus},
};

use super::rows::number;
use crate::{
    gateway::DATABASE,
    query::catalog::{
        oids,
        table::{ColumnSpec, SystemTable, int4, text},
    },
    types::{
        Datum,
        PgType::{Int4, Int8, Name, Oid, Text, TimestampTz},
    },
};

/// Of `pg_stat_activity`; what FlareDB does not have is NULL. `client_addr` is text: there is no inet.
pub(super) const ACTIVITY: &[ColumnSpec] = &[
    ("datid", Oid),
    ("datname", Name),
    ("pid", Int4),
    ("leader_pid", Int4),
    ("usesysid", Oid),
    ("usename", Name),
    ("application_name", Text),
    ("client_addr", Text),
    ("client_hostname", Text),
    ("client_port", Int4),
    ("backend_start", TimestampTz),
    ("xact_start", TimestampTz),
    ("query_start", TimestampTz),
    ("state_change", TimestampTz),
    ("wait_event_type", Text),
    ("wait_event", Text),
    ("state", Text),
    ("backend_xid", Text),
    ("backend_xmin", Text),
    ("query_id", Int8),
    ("query", Text),
    ("backend_type", Text),
    ("store_id", Int8),
];

/// Of `flaredb.transactions`.
pub(super) const TRANSACTIONS: &[ColumnSpec] = &[
    ("transaction", Text),
    ("store_id", Int8),
    ("pid", Int4),
    ("user_name", Text),
    ("application_name", Text),
    ("isolation", Text),
    ("state", Text),
    ("started", TimestampTz),
    ("locks_held", Int8),
    ("locks_wanted", Int8),
    ("statement", Text),
];

/// Who has which transaction open, by its start timestamp.
pub(super) struct Owners(BTreeMap<u64, u32>);

impl Owners {
    pub(super) fn of(sessions: &[(StoreId, SessionStatus)]) -> Self {
        let names = |session: &SessionStatus| {
            let pid = session.pid;
            [session.transaction, session.advisory_owner].map(|owner| (owner, pid))
        };
        let owners = sessions.iter().flat_map(|(_, session)| names(session));
        Owners(owners.filter(|(owner, _)| *owner != 0).collect())
    }

    /// The process id; NULL for a transaction that no session has open: one of the server's own, or one that has just ended.
    pub(super) fn pid(&self, transaction: u64) -> Datum {
        self.0.get(&transaction).map_or(Datum::Null, |pid| int4(*pid as i32))
    }
}

fn time(us: u64) -> Datum {
    if us == 0 { Datum::Null } else { Datum::TimestampTz(us as i64) }
}

fn state(session: &SessionStatus) -> Datum {
    text(match session.state() {
        SessionState::Idle => "idle",
        SessionState::Active => "active",
        SessionState::IdleInTransaction => "idle in transaction",
        SessionState::IdleInFailedTransaction => "idle in transaction (aborted)",
    })
}

fn query(session: &SessionStatus) -> Datum {
    text(String::from_utf8_lossy(&session.query))
}

/// The rows of `pg_stat_activity`.
pub(super) fn activity(
    rows: &mut SystemTable,
    sessions: &[(StoreId, SessionStatus)],
    locks: &[(StoreId, RowLockStatus)],
) {
    let waiting: BTreeSet<u64> = locks.iter().filter(|(_, lock)| !lock.granted).map(|(_, lock)| lock.owner).collect();
    for (store, session) in sessions {
        let wait_event = match () {
            () if waiting.contains(&session.transaction) => Some("tuple"),
            () if waiting.contains(&session.advisory_owner) => Some("advisory"),
            () => None,
        };
        let client: Option<SocketAddr> = session.client_address.parse().ok();
        let transaction = match session.transaction {
            0 => Datum::Null,
            start_ts => text(Timestamp(start_ts).to_string()),
        };
        rows.push(&[
            ("datid", Datum::Oid(oids::DATABASE)),
            ("datname", text(DATABASE)),
            ("pid", int4(session.pid as i32)),
            ("usesysid", Datum::Oid(oids::OWNER)),
            ("usename", text(&session.user)),
            ("application_name", text(&session.application_name)),
            ("client_addr", client.map_or(Datum::Null, |client| text(client.ip().to_string()))),
            ("client_port", client.map_or(Datum::Null, |client| int4(client.port().into()))),
            ("backend_start", time(session.started_us)),
            ("xact_start", time(session.transaction_started_us)),
            ("query_start", time(session.query_started_us)),
            ("state_change", time(session.state_changed_us)),
            ("wait_event_type", wait_event.map_or(Datum::Null, |_| text("Lock"))),
            ("wait_event", wait_event.map_or(Datum::Null, text)),
            ("state", state(session)),
            ("backend_xid", transaction),
            ("query", query(session)),
            ("backend_type", text("client backend")),
            ("store_id", number(store.0)),
        ]);
    }
}

/// The rows of `flaredb.transactions`.
pub(super) fn transactions(
    rows: &mut SystemTable,
    sessions: &[(StoreId, SessionStatus)],
    locks: &[(StoreId, RowLockStatus)],
) {
    for (store, session) in sessions.iter().filter(|(_, session)| session.transaction != 0) {
        let count = |granted: bool| {
            let own =
                |lock: &&(StoreId, RowLockStatus)| lock.1.owner == session.transaction && lock.1.granted == granted;
            number(locks.iter().filter(own).count() as u64)
        };
        rows.push(&[
            ("transaction", text(Timestamp(session.transaction).to_string())),
            ("store_id", number(store.0)),
            ("pid", int4(session.pid as i32)),
            ("user_name", text(&session.user)),
            ("application_name", text(&session.application_name)),
            ("isolation", text(&session.isolation)),
            ("state", state(session)),
            ("started", time(session.transaction_started_us)),
            ("locks_held", count(true)),
            ("locks_wanted", count(false)),
            ("statement", query(session)),
        ]);
    }
}
