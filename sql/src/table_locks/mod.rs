//! Table locks: LOCK TABLE, and what every statement and every change of the schema locks (PostgreSQL 13.3.1).
//!
//! ```text
//!   weak modes     ACCESS SHARE, ROW SHARE, ROW EXCLUSIVE: what statements on rows take. Each gateway has them of every table, with its catalog
//!                  lease; a session notes in its fence what it uses. No message.
//!   strong modes   the others:   1  a place in the queue of the table, a row lock                            in a leader's memory
//!                                2  enter the table's record, in which nobody who lives stands against it    replicated
//!                                3  call the table back: every gateway puts up a barrier, behind which new uses that the lock excludes
//!                                   wait, and acknowledges when those before it have ended                   in gateways' memory
//!                  at the end:   leave the record ─► lower the barriers ─► give the row lock up
//! ```
//!
//! The record is what counts, as with advisory locks ([`crate::advisory`]): a lost queue lets the next one come as far as the record. A gateway
//! that starts, or whose lease ran out, reads all records before it serves. So the lock is had when every gateway that may live has
//! acknowledged, and PD says which may: one is dead when PD's time has passed its lease, below which its commits stay, and so
//! has a clock by which it shows nothing any more. A gateway that was silent so long dooms its transactions when it comes back.
//!
//! A statement that meets a barrier stands in the table's queue, too, so that it comes after whom it waits for, is seen, and is part of
//! the waits that are searched for deadlocks. It goes on as soon as the barrier is lowered, or the record says that it stands for nobody. Who
//! has a use already that the lock waits for does not wait for the lock. And who has its turn and waits for transactions of gateways tells
//! the queue's store for which.
//!
//! Differences from PostgreSQL: who has a weak lock, and asks for a strong one while another session waits for that first one's end, is
//! not let before it: one of the two is told 40P01. A LOCK TABLE that a lost lease may have undone is 40001.
//!
//! | file | |
//! | --- | --- |
//! | `mode` | modes and what they exclude (PURE) |
//! | `record` | the record, keys (PURE) |
//! | `barriers` | what a gateway knows of strong locks |
//! | `strong` | the three steps, and the way back |
//! | `weak` | waiting at a barrier |

pub mod barriers;
pub mod mode;
pub mod record;
mod strong;
mod weak;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{BoxFuture, Shared};
use kv::{Client, CommitOptions, Floor, Instant, OnLocked, RowLock, RowLockMode, ScanOptions, Txn};
use parking_lot::Mutex;

use self::record::Holder;
pub(crate) use self::weak::Wanted;
pub use self::{
    barriers::Barriers,
    mode::{Mode, Modes},
    record::SessionId,
};
use crate::{
    catalog::{Fence, LeasedCatalog},
    error::{SqlError, SqlResult, SqlState},
    gateway::GatewayConfig,
};

/// Strong locks of one transaction at most, each with a row in some leader's memory and a record.
const MAX_LOCKS: usize = 10_000;
/// Pauses of one that waits for what nobody will call it for.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(200);
/// How long a gateway is asked to wait for the end of uses; after the first look, which is short, so that a deadlock is seen soon.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOK: Duration = Duration::from_millis(400);

/// The strong locks of a session.
pub(crate) struct TableLocks {
    config: GatewayConfig,
    catalog: Arc<LeasedCatalog>,
    me: SessionId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In the order in which they were taken.
    held: Vec<(u32, Mode)>,
    /// Of the last change of a record.
    turn: u64,
    /// Records that are being left; what comes next comes behind them.
    leaving: Option<Shared<BoxFuture<'static, ()>>>,
}

/// How a lock is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// Or 55P03 at once.
    pub wait: bool,
    /// lock_timeout; `None`: as long as it takes.
    pub timeout: Option<Duration>,
    /// For those who look at who waits for whom: the statement.
    pub label: Bytes,
}

impl Ask {
    fn until(&self, clock: &dyn kv::Clock) -> Option<Instant> {
        self.timeout.map(|limit| clock.now() + limit)
    }

    fn row_lock(&self, mode: RowLockMode) -> RowLock {
        let on_locked = match (self.wait, self.timeout) {
            (false, _) => OnLocked::Refuse,
            (true, Some(limit)) => OnLocked::WaitFor(limit),
            (true, None) => OnLocked::Wait,
        };
        RowLock { mode, on_locked, absent: true, label: self.label.clone() }
    }
}

impl TableLocks {
    /// Of a new session.
    pub(crate) fn new(config: GatewayConfig, catalog: Arc<LeasedCatalog>, me: SessionId) -> Arc<Self> {
        Arc::new(TableLocks { config, catalog, me, state: Mutex::default() })
    }

    /// How many the transaction has taken: a place for [`TableLocks::end_since`].
    pub(crate) fn place(&self) -> usize {
        self.state.lock().held.len()
    }

    fn modes(&self, table: u32) -> Modes {
        self.state.lock().modes(table)
    }
}

impl State {
    fn modes(&self, table: u32) -> Modes {
        Modes::of(self.held.iter().filter(|(known, _)| *known == table).map(|(_, mode)| *mode))
    }

    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }
}

impl fmt::Debug for TableLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TableLocks")
    }
}

/// 55P03.
pub(crate) fn not_available(table: &str) -> SqlError {
    SqlError::new(SqlState::LOCK_NOT_AVAILABLE, format!("could not obtain lock on relation \"{table}\""))
}

fn damaged() -> SqlError {
    SqlError::new(SqlState::DATA_CORRUPTED, "the record of a table's lock is damaged")
}

/// Who locks a table, as `txn` sees it.
async fn read(txn: &Txn, table: u32) -> SqlResult<Vec<Holder>> {
    let Some(record) = txn.get(&record::holders_key(table)).await? else { return Ok(Vec::new()) };
    record::decode(record).ok_or_else(damaged)
}

/// Who locks which table.
pub(crate) async fn read_all(client: &Client) -> SqlResult<BTreeMap<u32, Vec<Holder>>> {
    let txn = client.begin().await?;
    let mut records = BTreeMap::new();
    let mut scan = txn.scan(ScanOptions { range: record::all_holders(), ..Default::default() });
    while let Some(page) = scan.next_page().await? {
        for (key, value) in page.rows {
            let table = record::table_of_holders(&key).ok_or_else(damaged)?;
            records.insert(table, record::decode(value).ok_or_else(damaged)?);
        }
    }
    Ok(records)
}

/// `false`: another session was there first, or the answer is lost; look again.
async fn write(txn: Txn, table: u32, holders: &[Holder]) -> SqlResult<bool> {
    let key = record::holders_key(table);
    match holders.is_empty() {
        true => txn.delete(key)?,
        false => txn.put(key, record::encode(holders))?,
    }
    match txn.commit(CommitOptions { floor: Floor::StartTs, max_commit_ts: None }).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_retryable() || matches!(error, kv::Error::CommitUnknown(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
