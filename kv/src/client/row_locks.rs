//! Locking rows for a transaction, with what they hold now.
//!
//! Regions are asked one after the other in the order of keys: transactions that lock the same rows do it in the same order
//! and wait for each other instead of standing in each other's way. Who waits asks again and again and keeps its place.

use std::{collections::BTreeMap, time::Duration};

use crate::{Error, error::Refusal, row_locks::Place};
use bytes::Bytes;
use futures::{
    FutureExt,
    future::{Either, join_all, select},
};
use proto::{
    RegionId, StoreId, Term, Timestamp,
    wire::{
        self, KvRequest, LockRowsRequest, RequestHeader, RowLockMode, RowLockPolicy, RowLockStatus, RowLocksAction,
        RowLocksRequest, kv_request::Body, kv_response,
    },
};

use super::{
    Client,
    backoff::Backoff,
    buffer::Own,
    held::Proof,
    read::{unexpected, wrong_answer},
    resolver::LockWait,
    route::Deadline,
    txn::Txn,
};

/// Rows of one request at most.
const MAX_KEYS: usize = 1024;
/// Bytes of the statement that others are shown.
const MAX_LABEL_BYTES: usize = 200;

/// How long a store is asked to look out for a deadlock, and the pause when it does not answer.
const AWAIT: Duration = Duration::from_secs(1);
const AWAIT_PAUSE: Duration = Duration::from_millis(100);

/// What happens at a row that another transaction has locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLocked {
    /// Wait, as long as it takes.
    #[default]
    Wait,
    /// Wait so long, then [`Error::LockTimeout`].
    WaitFor(Duration),
    /// [`Error::RowLocked`].
    Refuse,
    /// Leave the row out.
    Skip,
}

/// How rows are locked.
#[derive(Clone, Debug)]
pub struct RowLock {
    /// Which locks of others it excludes.
    pub mode: RowLockMode,
    /// What happens at rows locked by others.
    pub on_locked: OnLocked,
    /// Keys without a value are locked as well.
    pub absent: bool,
    /// What those see who look at who waits for whom; cut at 200 bytes.
    pub label: Bytes,
}

/// A row as it is once it is locked, the transaction's own writes included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockedRow {
    /// Its value.
    pub value: Option<Bytes>,
    /// When another transaction changed it last; zero: never.
    pub commit_ts: Timestamp,
    /// It was left out, and the rest says nothing.
    pub skipped: bool,
}

impl Txn {
    /// Gives up the locks of `keys`. When it returns, others can have them, unless a store could not be told.
    pub async fn give_up_rows(&self, keys: &[Bytes]) {
        let Ok(released) = self.state().map(|mut state| state.locks.take_some(keys, 0)) else { return };
        self.client().rows_released(self.start_ts(), released).await;
    }

    /// The transaction, which holds the lock of `key`, waits for others to end; this tells those who look for deadlocks so, as long as it
    /// is polled, and completes with [`Error::Deadlock`] when it is part of one and has to give way.
    pub async fn wait_behind(&self, key: &Bytes, others: &[Timestamp], label: &Bytes) -> Error {
        let client = self.client().clone();
        loop {
            let store = match self.state() {
                Ok(state) => state.locks.store_of(key),
                Err(error) => return error,
            };
            let Some(store) = store else { return Error::Aborted };
            let header = RequestHeader { deadline_ms: AWAIT.as_millis() as u64, ..RequestHeader::default() };
            let request = RowLocksRequest {
                start_ts: self.start_ts().0,
                action: RowLocksAction::Await as i32,
                keys: vec![key.clone()],
                transactions: others.iter().map(|other| other.0).collect(),
                label: label.slice(..label.len().min(MAX_LABEL_BYTES)),
                twin: self.twin().0,
                ..RowLocksRequest::default()
            };
            let request = KvRequest { header: Some(header), body: Some(Body::RowLocks(request)) };
            let answer = client.inner.rpc.call(store, request).await.map(|reply| reply.response.body);
            match answer {
                Ok(Some(kv_response::Body::RowLocks(answer))) => {
                    if let Some(refusal) = answer.error.map(Refusal::from) {
                        return unexpected(refusal);
                    }
                }
                // Deadlocks are not looked for while the store is away.
                _ => client.inner.clock.sleep(AWAIT_PAUSE).await,
            }
        }
    }

    /// Locks rows until the transaction ends, and reads them: in the order asked, each as it is now, whatever the
    /// snapshot. Rows that do not exist are locked only when `lock` says so.
    pub async fn lock_rows(&self, keys: &[Bytes], lock: &RowLock) -> Result<Vec<LockedRow>, Error> {
        let mut ask: Vec<Bytes> = {
            let state = self.state()?;
            let known = |key: &&Bytes| state.locks.seen(key, lock.mode).is_some();
            keys.iter().filter(|key| !known(key) || state.own(key) == Own::Unknown).cloned().collect()
        };
        ask.sort_unstable();
        ask.dedup();
        let found = if ask.is_empty() { Vec::new() } else { self.lock_stored(&ask, lock).await? };
        let state = self.state()?;
        let row = |key: &Bytes| {
            let stored = ask.binary_search(key).ok().map(|at| found[at].clone());
            let mut row = stored.unwrap_or_else(|| LockedRow {
                commit_ts: state.locks.version(key).unwrap_or_default(),
                ..LockedRow::default()
            });
            match state.own(key) {
                Own::Value(value) => row.value = Some(value),
                Own::Gone => row.value = None,
                Own::Unknown => {}
            }
            row
        };
        Ok(keys.iter().map(row).collect())
    }

    async fn lock_stored(&self, keys: &[Bytes], lock: &RowLock) -> Result<Vec<LockedRow>, Error> {
        let client = self.client().clone();
        let until = match lock.on_locked {
            OnLocked::WaitFor(limit) => Some(client.inner.clock.now() + limit),
            _ => None,
        };
        self.keep_alive();
        let mut waits = Waits { deadline: client.deadline(), backoff: Backoff::ROUTING, locks: LockWait::on_keys() };
        let mut rows = Vec::with_capacity(keys.len());
        while rows.len() < keys.len() {
            let rest = &keys[rows.len()..];
            let attempt = self.lock_head(rest, lock, &mut waits);
            let locked = match until {
                None => attempt.await?,
                Some(until) => {
                    let left = until.since(client.inner.clock.now());
                    match select(std::pin::pin!(attempt), client.inner.clock.sleep(left)).await {
                        Either::Left((locked, _)) => locked?,
                        Either::Right(_) => return Err(Error::LockTimeout),
                    }
                }
            };
            rows.extend(locked);
            self.make_room_for_locks().await?;
        }
        Ok(rows)
    }

    /// Asks the region of the first of `keys` for those that lie in it: their rows, or none when it has to be asked again.
    async fn lock_head(&self, keys: &[Bytes], lock: &RowLock, waits: &mut Waits) -> Result<Vec<LockedRow>, Error> {
        let client = self.client();
        let route = client.locate(&keys[0], waits.deadline).await?;
        let inside = keys.partition_point(|key| route.region.range.contains(key)).clamp(1, MAX_KEYS);
        let keys = &keys[..inside];
        self.state()?.locks.ask(keys, lock.mode, route.store);
        let body = Body::LockRows(self.request(keys, lock));
        let attempt = client.attempt(&route, body, waits.backoff.patience(), waits.deadline).await;
        let Some(reply) = client.settle(attempt, &mut waits.backoff, waits.deadline).await? else {
            return Ok(Vec::new());
        };
        let Some(kv_response::Body::LockRows(response)) = reply.response.body else {
            return Err(wrong_answer("row lock"));
        };
        // It lives, and the wait may take as long as it takes.
        waits.deadline = client.deadline();
        match response.error.map(Refusal::from) {
            None if response.waiting => Ok(Vec::new()),
            None if response.rows.len() == keys.len() => {
                let place = Place { region: RegionId(response.region_id), term: Term(response.term) };
                self.granted((keys, place), lock, response.rows)
            }
            None => Err(wrong_answer("row lock")),
            Some(Refusal::Locked(lock)) => {
                client.clear_lock(&lock, &mut waits.locks, waits.deadline).await?;
                Ok(Vec::new())
            }
            Some(refusal) => Err(unexpected(refusal)),
        }
    }

    fn request(&self, keys: &[Bytes], lock: &RowLock) -> LockRowsRequest {
        let policy = match lock.on_locked {
            OnLocked::Wait | OnLocked::WaitFor(_) => RowLockPolicy::Wait,
            OnLocked::Refuse => RowLockPolicy::Refuse,
            OnLocked::Skip => RowLockPolicy::Skip,
        };
        LockRowsRequest {
            keys: keys.to_vec(),
            start_ts: self.start_ts().0,
            mode: lock.mode as i32,
            policy: policy as i32,
            absent: lock.absent,
            ttl_ms: self.client().inner.config.lock_ttl.as_millis() as u64,
            label: lock.label.slice(..lock.label.len().min(MAX_LABEL_BYTES)),
            spilled: self.has_spilled(),
            twin: self.twin().0,
        }
    }

    fn granted(
        &self,
        (keys, place): (&[Bytes], Place),
        lock: &RowLock,
        rows: Vec<wire::LockedRow>,
    ) -> Result<Vec<LockedRow>, Error> {
        let mut state = self.state()?;
        let mut locked = Vec::with_capacity(rows.len());
        for (key, row) in keys.iter().zip(rows) {
            let commit_ts = Timestamp(row.commit_ts);
            if row.own {
                // Its written lock stands there, and says more than one in memory would.
                state.locks.forget(key);
            } else if row.skipped || !(row.exists || lock.absent) {
                state.locks.forget(key);
                if let (false, Some(reads)) = (row.skipped, &mut state.reads) {
                    // That it is not there, nothing else keeps true.
                    reads.add_key(key);
                }
            } else if !state.locks.granted(key, lock.mode, commit_ts, place) {
                // The first lock went with a leader, and somebody wrote before this one.
                return Err(Error::Conflict { key: key.clone() });
            }
            locked.push(LockedRow { value: row.exists.then_some(row.value), commit_ts, skipped: row.skipped });
        }
        Ok(locked)
    }
}

/// What stores are told about rows that are given up.
fn releases(
    start_ts: Timestamp,
    rows: impl IntoIterator<Item = (StoreId, Vec<Bytes>)>,
) -> impl Iterator<Item = (StoreId, RowLocksRequest)> {
    let request = move |keys: &[Bytes]| RowLocksRequest {
        start_ts: start_ts.0,
        action: RowLocksAction::Release as i32,
        keys: keys.to_vec(),
        ..RowLocksRequest::default()
    };
    let of_store = move |(store, keys): (StoreId, Vec<Bytes>)| {
        keys.chunks(MAX_KEYS).map(|keys| (store, request(keys))).collect::<Vec<_>>()
    };
    rows.into_iter().flat_map(of_store)
}

/// What the requests of one call to lock rows share.
struct Waits {
    deadline: Deadline,
    backoff: Backoff,
    locks: LockWait,
}

impl Client {
    /// Gives row locks up, in the background.
    pub(crate) fn release_rows(&self, start_ts: Timestamp, rows: impl IntoIterator<Item = (StoreId, Vec<Bytes>)>) {
        releases(start_ts, rows).for_each(|(store, request)| self.tell(store, request));
    }

    /// The same, waited for.
    pub(crate) async fn rows_released(&self, start_ts: Timestamp, rows: BTreeMap<StoreId, Vec<Bytes>>) {
        let requests: Vec<_> = releases(start_ts, rows).collect();
        join_all(requests.into_iter().map(|(store, request)| self.told(store, request))).await;
    }

    /// Tells a store something about row locks, in the background. If it does not get there, they go when their time is over.
    pub(crate) fn tell(&self, store: StoreId, request: RowLocksRequest) {
        let client = self.clone();
        self.inner.spawn.spawn(async move { client.told(store, request).await }.boxed());
    }

    async fn told(&self, store: StoreId, request: RowLocksRequest) {
        let header = RequestHeader { deadline_ms: 1_000, ..RequestHeader::default() };
        let request = KvRequest { header: Some(header), body: Some(Body::RowLocks(request)) };
        if let Err(error) = self.inner.rpc.call(store, request).await {
            tracing::debug!(%store, %error, "a store was not told about row locks");
        }
    }

    /// The row locks of all stores that answer, with the store that keeps them.
    pub async fn row_locks(&self) -> Result<Vec<(StoreId, RowLockStatus)>, Error> {
        let list = RowLocksRequest { action: RowLocksAction::List as i32, ..RowLocksRequest::default() };
        let mut found = Vec::new();
        for (store, answer) in self.ask_all(Body::RowLocks(list)).await? {
            let kv_response::Body::RowLocks(answer) = answer else { return Err(wrong_answer("row lock list")) };
            found.extend(answer.locks.into_iter().map(|lock| (store, lock)));
        }
        Ok(found)
    }

    /// Whether all of these rows (sorted) have been locked by the transaction without a gap. A leader that granted one, was none
    /// for a while and is one again may have granted it anew since, out of its queue; the term tells.
    pub(crate) async fn check_rows(
        &self,
        start_ts: Timestamp,
        proofs: Vec<Proof>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let mut rest = &proofs[..];
        let mut backoff = Backoff::ROUTING;
        while let Some(first) = rest.first() {
            let route = self.locate(&first.key, deadline).await?;
            let inside = rest.partition_point(|proof| route.region.range.contains(&proof.key)).clamp(1, MAX_KEYS);
            let (asked, others) = rest.split_at(inside);
            let elsewhere = |proof: &&Proof| proof.place.is_none_or(|place| place.region != route.region.id);
            if let Some(proof) = asked.iter().find(elsewhere) {
                return Err(Error::Conflict { key: proof.key.clone() });
            }
            let body = Body::RowLocks(RowLocksRequest {
                start_ts: start_ts.0,
                action: RowLocksAction::Check as i32,
                keys: asked.iter().map(|proof| proof.key.clone()).collect(),
                terms: asked.iter().map(|proof| proof.place.map_or(0, |place| place.term.0)).collect(),
                ..RowLocksRequest::default()
            });
            let attempt = self.attempt(&route, body, backoff.patience(), deadline).await;
            let Some(reply) = self.settle(attempt, &mut backoff, deadline).await? else { continue };
            match reply.response.body {
                Some(kv_response::Body::RowLocks(answer)) if answer.held => rest = others,
                Some(kv_response::Body::RowLocks(_)) => return Err(Error::Conflict { key: first.key.clone() }),
                _ => return Err(wrong_answer("row lock check")),
            }
        }
        Ok(())
    }
}
