//! Advisory locks: names that mean something to the application, locked for a session or a transaction (PostgreSQL 13.3.5).
//!
//! ```text
//!   take   a row lock on the name's key: fair queue, deadlocks, lock_timeout, pg_locks             in a leader's memory
//!          enter the name's record, in which nobody who lives stands against it                    replicated
//!   free   leave the record ─► give the row lock up
//! ```
//!
//! The record is what counts: a queue that is lost with its leader lets the next one come as far as the record, and there it
//! waits for whom it finds. A holder counts as long as its session lives. That its node says; and when the node is silent, PD, for a session
//! that holds one ends before its gateway's catalog lease does: it is ended, and told so, when the lease could not be renewed.
//!
//! A session stands in the queues with a transaction of its own, its owner, as locks may outlive the session's transaction. For deadlocks over
//! advisory and other locks the two are twins: while one of them waits, the other does not go on (`kv::deadlock`).
//!
//! Difference from PostgreSQL: a lock that was taken exclusively stays exclusive until all of it is unlocked.
//!
//! | file | |
//! | --- | --- |
//! | `name` | keys (PURE) |
//! | `holders` | the record, and what a session counts (PURE) |

pub mod holders;
pub mod name;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use kv::{CommitOptions, Floor, OnLocked, RowLock, RowLockMode, Twin, Txn};
use parking_lot::Mutex;

use self::holders::{Held, Holder, MAX_HOLDERS, decode, encode};
pub use self::{holders::Scope, name::Name};
use crate::{
    catalog::LeasedCatalog,
    error::{SqlError, SqlResult, SqlState},
    gateway::GatewayConfig,
    planted::{Plant, Planted},
};

/// Locks of one session at most, each with a row in some leader's memory.
const MAX_LOCKS: usize = 10_000;
/// Pauses of one that waits for a holder whose queue was lost.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(200);
/// How often a record is tried to be left. One that is not left lies until its session's end is seen by whoever comes.
const LEAVE_ATTEMPTS: usize = 20;

/// A session's advisory locks.
pub struct Advisory {
    config: GatewayConfig,
    catalog: Arc<LeasedCatalog>,
    gateway: u64,
    pid: u32,
    plant: Plant,
    twins: Twins,
    state: Mutex<State>,
}

/// The two transactions of a session, when they are there.
#[derive(Default)]
struct Twins {
    owner: Twin,
    transaction: Twin,
}

#[derive(Default)]
struct State {
    held: Held,
    /// Leases of the gateway that had lapsed when the first of them was taken.
    lapses: u64,
    /// Holds the places in the queues.
    owner: Option<Txn>,
    /// Callers that ask through the owner.
    asking: usize,
    /// Locks that are being freed; what comes next comes behind them.
    freeing: Option<Shared<BoxFuture<'static, ()>>>,
    /// lock_timeout; `None`: as long as it takes.
    timeout: Option<Duration>,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Which lock.
    pub name: Name,
    /// Beside others who share it.
    pub shared: bool,
    /// Until when.
    pub scope: Scope,
    /// Or the answer is "no" at once.
    pub wait: bool,
    /// For those who look at who waits for whom: the statement.
    pub label: Bytes,
}

/// A lock that is being taken; given up again when that ends otherwise.
struct Taking<'a> {
    advisory: &'a Arc<Advisory>,
    name: Name,
}

impl Advisory {
    /// Of a new session.
    pub(crate) fn new(
        config: GatewayConfig,
        catalog: Arc<LeasedCatalog>,
        gateway: u64,
        pid: u32,
        plant: Plant,
    ) -> Arc<Self> {
        Arc::new(Advisory { config, catalog, gateway, pid, plant, twins: Twins::default(), state: Mutex::default() })
    }

    /// 57P01 when the session's locks may be others' by now.
    pub fn check(&self) -> SqlResult<()> {
        if self.are_lost() { Err(SqlError::locks_lost()) } else { Ok(()) }
    }

    /// How long whoever waits for a lock waits; `None`: as long as it takes.
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        self.state.lock().timeout = timeout;
    }

    /// The session's locks may be others' by now.
    pub fn are_lost(&self) -> bool {
        self.lost(&self.state.lock())
    }

    fn lost(&self, state: &State) -> bool {
        let kept = state.lapses == self.catalog.lapses() && self.catalog.holds();
        !state.held.is_empty() && !kept && !self.plant.has(Planted::KeepLostLocks)
    }

    /// The session has locks, which end with its gateway's lease.
    pub(crate) fn holds_any(&self) -> bool {
        !self.state.lock().held.is_empty()
    }

    /// The transaction that stands in the queues for the session.
    pub(crate) fn owner(&self) -> Option<proto::Timestamp> {
        self.state.lock().owner.as_ref().map(Txn::start_ts)
    }

    /// The session's transaction has begun: while one of both waits, the other does not go on.
    pub(crate) fn begins(&self, txn: &Txn) {
        txn.pair_with(&self.twins.owner);
        self.twins.transaction.set(txn.start_ts());
    }

    /// The session's transaction has ended.
    pub(crate) fn ends(&self) {
        self.twins.transaction.set(proto::Timestamp::ZERO);
    }

    /// Takes a lock; `false`: somebody else has it, and nobody waits. 40P01, 55P03 as for row locks.
    pub async fn take(self: &Arc<Self>, ask: Ask) -> SqlResult<bool> {
        let Ask { name, shared, scope, wait, .. } = ask;
        self.freed().await;
        let lapses = self.catalog.lapses();
        let (mode, on_locked) = {
            let mut state = self.state.lock();
            if state.held.covers(name, shared) {
                state.held.add(name, shared, scope);
                return Ok(true);
            }
            if state.held.len() >= MAX_LOCKS {
                return Err(SqlError::new(SqlState::OUT_OF_MEMORY, "out of shared memory")
                    .with_hint(format!("A session has at most {MAX_LOCKS} advisory locks; unlock some first.")));
            }
            let mode = if shared { RowLockMode::Share } else { RowLockMode::Update };
            let on_locked = match (wait, state.timeout) {
                (false, _) => OnLocked::Refuse,
                (true, Some(limit)) => OnLocked::WaitFor(limit),
                (true, None) => OnLocked::Wait,
            };
            (mode, on_locked)
        };
        let owner = self.ask().await?;
        let _taking = Taking { advisory: self, name };
        match owner
            .lock_rows(&[name.queue()], &RowLock { mode, on_locked, absent: true, label: ask.label.clone() })
            .await
        {
            Ok(_) => {}
            Err(kv::Error::RowLocked { .. }) if !wait => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        if !self.enter(&ask).await? {
            return Ok(false);
        }
        let mut state = self.state.lock();
        if state.held.is_empty() {
            state.lapses = lapses;
        }
        state.held.add(name, shared, scope);
        match state.lapses == self.catalog.lapses() {
            true => Ok(true),
            false => Err(SqlError::locks_lost()),
        }
    }

    /// Unlocks once what the session has locked for itself; `false`: it had not locked it so.
    pub async fn unlock(self: &Arc<Self>, name: Name, shared: bool) -> bool {
        let Some(gone) = self.state.lock().held.remove(name, shared) else { return false };
        if gone {
            self.free(vec![name]);
        }
        self.freed().await;
        true
    }

    /// Unlocks all that the session has locked for itself.
    pub async fn unlock_all(self: &Arc<Self>) {
        let gone = self.state.lock().held.end_session();
        self.free(gone);
        self.freed().await;
    }

    /// How many the transaction has taken: a place for [`Advisory::end_since`].
    pub(crate) fn place(&self) -> usize {
        self.state.lock().held.place()
    }

    /// The transaction ends, or goes back to a place: its locks are freed, in the background.
    pub(crate) fn end_since(self: &Arc<Self>, place: usize) {
        let gone = self.state.lock().held.end_since(place);
        self.free(gone);
    }

    /// The session ends.
    pub(crate) fn end(self: &Arc<Self>) {
        let gone = {
            let mut state = self.state.lock();
            [state.held.end_since(0), state.held.end_session()].concat()
        };
        self.free(gone);
    }

    /// Until what is being freed is free.
    pub(crate) async fn freed(&self) {
        let freeing = self.state.lock().freeing.clone();
        if let Some(freeing) = freeing {
            freeing.await;
        }
    }

    /// The owner, for one more question.
    async fn ask(&self) -> SqlResult<Txn> {
        let known = self.state.lock().owner.clone();
        let begun = match known {
            Some(owner) => owner,
            None => self.config.client.begin().await?,
        };
        let mut state = self.state.lock();
        state.asking += 1;
        let owner = state.owner.get_or_insert(begun);
        owner.pair_with(&self.twins.transaction);
        self.twins.owner.set(owner.start_ts());
        Ok(owner.clone())
    }

    fn me(&self, shared: bool) -> Holder {
        Holder { gateway: self.gateway, pid: self.pid, shared }
    }

    /// Enters a lock's record as soon as nobody who lives stands in it against this session.
    async fn enter(&self, ask: &Ask) -> SqlResult<bool> {
        let (me, key) = (self.me(ask.shared), ask.name.holders());
        let until = self.state.lock().timeout.map(|limit| self.config.clock.now() + limit);
        let mut pause = FIRST_PAUSE;
        loop {
            let txn = self.config.client.begin().await?;
            let mut holders = read(&txn, &key).await?;
            let trusting = self.plant.has(Planted::TrustQueue);
            let against = holders.iter().filter(|holder| holder.excludes(&me) && !trusting);
            let against: Vec<Holder> = against.copied().collect();
            let dead = self.dead(&against).await?;
            if dead.len() < against.len() {
                if !ask.wait {
                    return Ok(false);
                }
                if until.is_some_and(|until| self.config.clock.now() >= until) {
                    return Err(kv::Error::LockTimeout.into());
                }
                self.config.clock.sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
                continue;
            }
            holders.retain(|holder| !holder.is(&me) && !dead.iter().any(|dead| dead.is(holder)));
            if holders.len() >= MAX_HOLDERS {
                return Err(SqlError::new(SqlState::OUT_OF_MEMORY, "out of shared memory")
                    .with_hint(format!("An advisory lock is shared by at most {MAX_HOLDERS} sessions.")));
            }
            holders.push(me);
            if write(txn, &[(key.clone(), holders)]).await? {
                return Ok(true);
            }
        }
    }

    /// Those of `holders` whose session has ended.
    async fn dead(&self, holders: &[Holder]) -> SqlResult<Vec<Holder>> {
        let mut dead = Vec::new();
        if holders.is_empty() {
            return Ok(dead);
        }
        let gateways = self.config.client.gateways().await?;
        for holder in holders {
            let lives = match gateways.iter().find(|(_, gateway)| gateway.gateway_id == holder.gateway) {
                Some((_, gateway)) => gateway.sessions.iter().any(|session| session.pid == holder.pid),
                None => self.config.pd.gateway_alive(holder.gateway).await?,
            };
            if !lives {
                dead.push(*holder);
            }
        }
        Ok(dead)
    }

    /// Starts to free locks that the session does not count any more.
    fn free(self: &Arc<Self>, names: Vec<Name>) {
        if names.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        let (before, this) = (state.freeing.take(), Arc::clone(self));
        let freeing = async move {
            if let Some(before) = before {
                before.await;
            }
            this.leave(&names).await;
        };
        let freeing = freeing.boxed().shared();
        state.freeing = Some(freeing.clone());
        self.config.spawn.spawn(freeing.boxed());
    }

    async fn leave(&self, names: &[Name]) {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            match self.try_leave(names).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if attempt >= LEAVE_ATTEMPTS => {
                    tracing::warn!(?names, %error, "advisory locks were not freed; they are when their session's end is seen");
                    break;
                }
                Err(error) => tracing::debug!(?names, %error, "advisory locks are not freed yet"),
            }
            self.config.clock.sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        let owner = self.state.lock().owner.clone();
        if let Some(owner) = owner {
            let keys: Vec<Bytes> = names.iter().map(|name| name.queue()).collect();
            owner.give_up_rows(&keys).await;
        }
        let mut state = self.state.lock();
        if state.held.is_empty()
            && state.asking == 0
            && let Some(owner) = state.owner.take()
        {
            self.twins.owner.set(proto::Timestamp::ZERO);
            owner.rollback();
        }
    }

    async fn try_leave(&self, names: &[Name]) -> SqlResult<bool> {
        let (txn, me) = (self.config.client.begin().await?, self.me(true));
        let mut left = Vec::new();
        for name in names {
            let mut holders = read(&txn, &name.holders()).await?;
            let before = holders.len();
            holders.retain(|holder| !holder.is(&me));
            if holders.len() < before {
                left.push((name.holders(), holders));
            }
        }
        write(txn, &left).await
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        let unwanted = {
            let mut state = self.advisory.state.lock();
            state.asking -= 1;
            !state.held.holds(self.name)
        };
        if unwanted {
            self.advisory.free(vec![self.name]);
        }
    }
}

impl fmt::Debug for Advisory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Advisory")
    }
}

async fn read(txn: &Txn, key: &[u8]) -> SqlResult<Vec<Holder>> {
    let Some(record) = txn.get(key).await? else { return Ok(Vec::new()) };
    decode(record).ok_or_else(|| SqlError::new(SqlState::DATA_CORRUPTED, "the record of an advisory lock is damaged"))
}

/// `false`: another session was there first, or the answer is lost; look again.
async fn write(txn: Txn, records: &[(Bytes, Vec<Holder>)]) -> SqlResult<bool> {
    for (key, holders) in records {
        match holders.is_empty() {
            true => txn.delete(key.clone())?,
            false => txn.put(key.clone(), encode(holders))?,
        }
    }
    match txn.commit(CommitOptions { floor: Floor::StartTs, max_commit_ts: None }).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_retryable() || matches!(error, kv::Error::CommitUnknown(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
