//! A transaction as its user sees it: a snapshot to read from, a buffer to write to, and a commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use proto::{KeyRange, StoreId, Timestamp, wire::Mutation};
use raftstore::Instant;

use crate::{Error, planted::Planted};

use super::{
    Client,
    buffer::{self, Buffer, Own},
    commit::{self, CommitJob, Reads},
    held::{HeldRows, Proof},
    in_use::Use,
    near::Source,
    read::At,
    reads::ReadSpans,
    scan::{Scan, ScanOptions},
    snapshot::Snapshot,
    spill::{Spilled, Spills, View},
};

/// What bounds a commit timestamp from below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Floor {
    /// A timestamp taken at COMMIT: the commit follows, in timestamp order, everything acknowledged before it
    /// was asked for. For explicit transactions.
    #[default]
    Pd,
    /// The transaction's own start: it was taken within the one statement that is committed.
    StartTs,
}

/// How to commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// What bounds the commit timestamp from below.
    pub floor: Floor,
    /// The commit timestamp must be below this, or the commit is refused with [`Error::Fenced`].
    pub max_commit_ts: Option<Timestamp>,
}

/// A place in a transaction to which it can go back ([`Txn::roll_back_to`]). While it is held, what is overwritten is kept.
#[derive(Clone, Debug)]
pub struct Savepoint {
    pub(crate) writes: buffer::Place,
    pub(crate) locks: usize,
}

/// The name of a transaction that comes and goes; its clones are one.
#[derive(Clone, Debug, Default)]
pub struct Twin(Arc<AtomicU64>);

impl Twin {
    /// It is this one now; zero: none.
    pub fn set(&self, start_ts: Timestamp) {
        self.0.store(start_ts.0, Ordering::Relaxed);
    }
    fn get(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// A place in a transaction's row locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockPlace(usize);

/// A transaction. Shared by the parts of a query: cheap to clone, and all methods take `&self`.
///
/// Reads see a snapshot and the transaction's own writes. The snapshot is the one at [`Txn::start_ts`]; a handle from
/// [`Txn::at_fresh_snapshot`] has a later one. Writes are kept here until [`Txn::commit`]; nobody else sees anything of a
/// transaction that is dropped or rolled back.
///
/// A row that it writes must not have changed since it was seen: since `start_ts`, or, if [`Txn::lock_rows`] has locked it,
/// since then. A serializable one ([`Client::begin_serializable`]) also keeps what it has read, to see at its commit that nothing of
/// that has changed. So a transaction with one snapshot has snapshot isolation (lost updates are refused, write
/// skew is allowed), and one with a fresh one for every statement that locks what it writes is PostgreSQL's READ COMMITTED.
#[derive(Clone)]
pub struct Txn {
    pub(crate) inner: Arc<Inner>,
    pub(crate) snapshot: Snapshot,
    /// Of a handle that does not see all of the transaction's writes.
    pub(crate) view: Option<View>,
}

pub(crate) struct Inner {
    pub(crate) client: Client,
    pub(crate) start_ts: Timestamp,
    begun: Instant,
    read_only: bool,
    from: Source,
    /// Something may have been read at a later snapshot than the first.
    renewed: AtomicBool,
    pub(crate) state: Mutex<State>,
    /// One part is spilled at a time.
    pub(crate) spilling: tokio::sync::Mutex<()>,
    /// Another transaction of the same caller.
    twin: OnceLock<Twin>,
    /// What it may still read stays.
    _in_use: Use,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) buffer: Buffer,
    pub(crate) locks: HeldRows,
    /// Rows whose locks must have stood until the writes stand, whether they are written or not.
    pub(crate) guarded: BTreeSet<Bytes>,
    /// Rows are guarded when they are spilled.
    pub(crate) guard_spills: bool,
    /// What the stores have of its writes.
    pub(crate) spilled: Option<Spilled>,
    /// Of a serializable transaction that has not ended.
    pub(crate) reads: Option<ReadSpans>,
    pub(crate) ended: bool,
}

impl State {
    /// What it has written of a key, as far as the stores do not have it alone.
    pub(crate) fn own(&self, key: &[u8]) -> Own {
        match (self.buffer.own(key), &self.spilled) {
            (Own::Unknown, Some(spilled)) => spilled.own(key),
            (own, _) => own,
        }
    }

    /// The same for a range, in the order of keys.
    fn own_in(&self, range: &KeyRange) -> Vec<(Bytes, Own)> {
        let here = self.buffer.range(range).map(|(key, write)| (key.clone(), write.own()));
        match self.spilled.as_ref().and_then(Spilled::leaving) {
            None => here.collect(),
            Some(leaving) => {
                let mut all: BTreeMap<Bytes, Own> =
                    leaving.range(range).map(|(key, write)| (key.clone(), write.own())).collect();
                all.extend(here.filter(|(_, own)| *own != Own::Unknown));
                all.into_iter().collect()
            }
        }
    }

    /// Rows were read under locks that are given up.
    fn have_read(&mut self, released: &BTreeMap<StoreId, Vec<Bytes>>) {
        if let Some(reads) = &mut self.reads {
            released.values().flatten().for_each(|key| reads.add_key(key));
        }
    }
}

impl Inner {
    /// Stores that keep row locks for it.
    pub(crate) fn lock_stores(&self) -> BTreeSet<StoreId> {
        self.state.lock().locks.stores()
    }

    /// A range was scanned.
    pub(crate) fn has_read(&self, range: &KeyRange) {
        if let Some(reads) = &mut self.state.lock().reads {
            reads.add(range);
        }
    }
}

impl Txn {
    pub(crate) fn new(client: Client, start_ts: Timestamp, read_only: bool) -> Self {
        Self::begun(client, start_ts, read_only, Source::Leader)
    }

    /// Of the past, and read-only.
    pub(crate) fn reading(client: Client, start_ts: Timestamp, from: Source) -> Self {
        Self::begun(client, start_ts, true, from)
    }

    fn begun(client: Client, start_ts: Timestamp, read_only: bool, from: Source) -> Self {
        let begun = client.inner.clock.now();
        let (renewed, state) = (AtomicBool::new(false), Mutex::default());
        let in_use = client.inner.in_use.begin(start_ts);
        let (spilling, twin) = (tokio::sync::Mutex::default(), OnceLock::new());
        let inner = Arc::new(Inner {
            client,
            start_ts,
            begun,
            read_only,
            from,
            renewed,
            state,
            spilling,
            twin,
            _in_use: in_use,
        });
        Txn { inner, snapshot: Snapshot::at(start_ts), view: None }
    }

    /// That commits only if what it has read is then as it was.
    pub(crate) fn serializable(client: Client, start_ts: Timestamp) -> Self {
        let txn = Self::new(client, start_ts, false);
        txn.inner.state.lock().reads = Some(ReadSpans::default());
        txn
    }

    /// What names the transaction; its first snapshot.
    pub fn start_ts(&self) -> Timestamp {
        self.inner.start_ts
    }

    /// While it waits for locks, the transaction that is named there then, one of the same caller, does not go on: so deadlocks over
    /// locks of both are found. Said once.
    pub fn pair_with(&self, twin: &Twin) {
        let _ = self.inner.twin.set(twin.clone());
    }

    /// Zero: there is none.
    pub(crate) fn twin(&self) -> Timestamp {
        self.inner.twin.get().map(Twin::get).unwrap_or_default()
    }

    /// The client it belongs to.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The same transaction with another snapshot: what is committed when something is first read through the handle and its
    /// clones; only then PD is asked. A serializable transaction has one snapshot, and stays at it.
    pub fn at_fresh_snapshot(&self) -> Txn {
        if self.inner.state.lock().reads.is_some() {
            return self.clone();
        }
        self.inner.renewed.store(true, Ordering::Relaxed);
        Txn { inner: self.inner.clone(), snapshot: Snapshot::fresh(), view: None }
    }

    /// The timestamp of this handle's snapshot.
    pub async fn read_ts(&self) -> Result<Timestamp, Error> {
        self.snapshot.get(&self.inner.client).await
    }

    /// The timestamp of this handle's snapshot, if it has been taken.
    pub fn read_ts_taken(&self) -> Option<Timestamp> {
        self.snapshot.taken()
    }

    /// What it has written and locked. [`Error::Aborted`] when it has ended.
    pub(crate) fn state(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.inner.state.lock();
        if state.ended { Err(Error::Aborted) } else { Ok(state) }
    }

    /// Its row locks stay while it is open.
    pub(crate) fn keep_alive(&self) {
        if self.inner.state.lock().locks.is_empty() {
            self.inner.client.keep_rows(self.inner.start_ts, Arc::downgrade(&self.inner));
        }
    }

    /// What this transaction itself has made of a key: `Some(None)` when it has removed it, `None` when it has not written it, or
    /// has spilled the write: then a read has it.
    pub fn own(&self, key: &[u8]) -> Option<Option<Bytes>> {
        match self.inner.state.lock().own(key) {
            Own::Value(value) => Some(Some(value)),
            Own::Gone => Some(None),
            Own::Unknown => None,
        }
    }

    /// The value of a key.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let own = {
            let mut state = self.inner.state.lock();
            let own = self.seen_of(&state, key);
            if let (Own::Unknown, Some(reads)) = (&own, &mut state.reads) {
                reads.add_key(key);
            }
            own
        };
        match own {
            Own::Value(value) => Ok(Some(value)),
            Own::Gone => Ok(None),
            Own::Unknown => {
                let read_ts = self.read_ts().await?;
                self.inner.client.read_at(Bytes::copy_from_slice(key), self.at(read_ts)).await
            }
        }
    }

    /// The value of a key when nothing else is read from this handle's snapshot: as it is now, if the snapshot has not been taken.
    /// PD is not asked then.
    pub async fn get_alone(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        match self.own(key) {
            Some(value) => Ok(value),
            None if self.read_ts_taken().is_none() && !self.has_spilled() => self.inner.client.read_latest(key).await,
            None => self.get(key).await,
        }
    }

    fn at(&self, ts: Timestamp) -> At {
        At { ts, from: self.inner.from, own: self.own_writes() }
    }

    /// The values of several keys, in the order asked; regions are asked in parallel.
    pub async fn get_many(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, Error> {
        let own: Vec<Own> = {
            let state = self.inner.state.lock();
            keys.iter().map(|key| self.seen_of(&state, key)).collect()
        };
        let mut ask: Vec<Bytes> =
            keys.iter().zip(&own).filter(|(_, own)| **own == Own::Unknown).map(|(key, _)| key.clone()).collect();
        ask.sort_unstable();
        ask.dedup();
        if let Some(reads) = &mut self.inner.state.lock().reads {
            ask.iter().for_each(|key| reads.add_key(key));
        }
        let found = match ask.is_empty() {
            true => Vec::new(),
            false => self.inner.client.read_many(ask, self.at(self.read_ts().await?)).await?,
        };
        let stored =
            |key: &Bytes| found.binary_search_by(|pair| pair.key.cmp(key)).ok().map(|at| found[at].value.clone());
        let value = |(key, own)| match own {
            Own::Value(value) => Some(value),
            Own::Gone => None,
            Own::Unknown => stored(key),
        };
        Ok(keys.iter().zip(own).map(value).collect())
    }

    /// A scan of the snapshot and of the writes made here before the scan began.
    pub fn scan(&self, options: ScanOptions) -> Scan {
        let (own, recorded, mark) = {
            let state = self.inner.state.lock();
            let own = if self.is_blind() { Vec::new() } else { state.own_in(&options.range) };
            let mark = self.view.as_ref().map_or_else(|| state.buffer.mark(), |view| view.mark.clone());
            (own, state.reads.is_some(), mark)
        };
        let reader = recorded.then(|| self.inner.clone());
        let spills = Spills::new(self.inner.clone(), mark);
        let snapshot = (self.snapshot.clone(), self.inner.from);
        Scan::new(self.inner.client.clone(), snapshot, options, own, reader, spills)
    }

    /// Whether writes of this transaction to `range` are held here: then a pushed-down scan would not see them, and the
    /// caller scans plainly. Those that were spilled the stores see.
    pub fn has_writes_in(&self, range: &KeyRange) -> bool {
        let state = self.inner.state.lock();
        !self.is_blind() && !state.own_in(range).is_empty()
    }

    /// Whether this transaction has written to `range`, here or to the stores; also when it has since taken that back from them.
    pub fn may_have_written(&self, range: &KeyRange) -> bool {
        let state = self.inner.state.lock();
        !state.own_in(range).is_empty() || state.spilled.as_ref().is_some_and(|spilled| spilled.touches(range))
    }

    /// Sets a key.
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<(), Error> {
        self.write(|buffer| buffer.put(key.into(), value.into()))
    }

    /// Sets a key that must not have a value; [`Error::AlreadyExists`] comes at commit, or at once when this
    /// transaction itself has set it.
    pub fn insert(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<(), Error> {
        self.write(|buffer| buffer.insert(key.into(), value.into()))
    }

    /// Removes a key; a missing one is fine.
    pub fn delete(&self, key: impl Into<Bytes>) -> Result<(), Error> {
        self.write(|buffer| buffer.delete(key.into()))
    }

    /// Makes this transaction conflict with writers of the key, without changing it.
    pub fn lock(&self, key: impl Into<Bytes>) -> Result<(), Error> {
        self.write(|buffer| buffer.lock(key.into()))
    }

    fn write(&self, change: impl FnOnce(&mut Buffer) -> Result<(), Error>) -> Result<(), Error> {
        let mut state = self.inner.state.lock();
        if self.inner.read_only {
            return Err(Error::BadTimestamp("a transaction at a timestamp of the past is read-only".into()));
        }
        if state.ended {
            return Err(Error::Aborted);
        }
        change(&mut state.buffer)
    }

    /// From the moment when these rows were locked until the transaction's writes stand nobody else may have locked them, in
    /// whatever mode: otherwise it fails with [`Error::Conflict`]. A write of the row alone says only that nobody has
    /// written it; who locked it, read it and wrote elsewhere leaves no trace there. Rows that are not locked fail too.
    pub fn guard_rows(&self, keys: impl IntoIterator<Item = Bytes>) {
        let mut state = self.inner.state.lock();
        let state = &mut *state;
        // What was spilled was looked at then ([`Txn::guard_spills`]).
        let held = |key: &Bytes| state.spilled.is_none() || state.locks.version(key).is_some();
        state.guarded.extend(keys.into_iter().filter(held));
    }

    /// Gives up the locks of `keys` that were taken since `place`: of rows that turned out not to be wanted.
    pub fn unlock_rows(&self, keys: &[Bytes], place: LockPlace) {
        let released = {
            let mut state = self.inner.state.lock();
            let released = state.locks.take_some(keys, place.0);
            state.have_read(&released);
            released
        };
        self.inner.client.release_rows(self.inner.start_ts, released);
    }

    /// Takes the locks of `keys`, which nothing that is written relies on, out of the transaction: its commit does not ask for them, and
    /// they stand until what is returned is dropped (or nobody keeps them alive).
    pub fn detach_rows(&self, keys: &[Bytes]) -> DetachedRows {
        let rows = self.inner.state.lock().locks.take_some(keys, 0);
        DetachedRows { client: self.inner.client.clone(), start_ts: self.inner.start_ts, rows }
    }

    /// A place for [`Txn::unlock_rows`], which does not go back in the writes.
    pub fn lock_place(&self) -> LockPlace {
        LockPlace(self.inner.state.lock().locks.count())
    }

    /// A place to which [`Txn::roll_back_to`] goes back.
    pub fn savepoint(&self) -> Savepoint {
        let mut state = self.inner.state.lock();
        Savepoint { writes: state.buffer.savepoint(), locks: state.locks.count() }
    }

    /// Takes back the writes and row locks since `savepoint`, which stays. Reads keep their snapshot. Rows that were spilled since
    /// then stay locked. After an error the transaction has ended.
    pub async fn roll_back_to(&self, savepoint: &Savepoint) -> Result<(), Error> {
        let spilled = {
            let mut state = self.inner.state.lock();
            state.buffer.roll_back_to(&savepoint.writes);
            let released = state.locks.take_since(savepoint.locks);
            state.have_read(&released);
            self.inner.client.release_rows(self.inner.start_ts, released);
            state.spilled.is_some()
        };
        if spilled { self.drop_spilled(savepoint.writes.mark.generation()).await } else { Ok(()) }
    }

    /// Keys written so far.
    pub fn write_count(&self) -> usize {
        let state = self.inner.state.lock();
        state.buffer.len() + state.spilled.as_ref().map_or(0, Spilled::writes)
    }

    /// Bytes of keys and values written so far, and not spilled.
    pub fn write_bytes(&self) -> usize {
        self.inner.state.lock().buffer.bytes()
    }

    /// Makes the writes visible to everybody, all at once, and durable. Returns the commit timestamp (of a
    /// transaction without writes: its start). Whatever the result, the transaction has ended.
    pub async fn commit(&self, options: CommitOptions) -> Result<Timestamp, Error> {
        if self.has_spilled() {
            self.spill().await?;
        }
        let (mutations, locks, guarded, mut spans, spilled) = {
            let mut state = self.inner.state.lock();
            if std::mem::replace(&mut state.ended, true) {
                return Err(Error::Aborted);
            }
            let reads = state.reads.take().unwrap_or_default();
            let (locks, guarded) = (std::mem::take(&mut state.locks), std::mem::take(&mut state.guarded));
            (state.buffer.take(), locks, guarded, reads, state.spilled.take())
        };
        if self.inner.client.has(Planted::SkipValidation) {
            spans.take();
        }
        if let Some(spilled) = spilled {
            let ending = Ending { txn: self, locks };
            let (_, proven) = ending.sort(mutations, &guarded);
            return self.commit_spilled(&spilled, proven, spans, options).await;
        }
        if locks.is_empty() && guarded.is_empty() {
            return match mutations.is_empty() {
                true => Ok(self.inner.start_ts),
                false => self.commit_writes(mutations, Vec::new(), (spans, Timestamp::ZERO), options).await,
            };
        }
        // Dropped before its end, or failed: what is locked is given up all the same.
        let mut ending = Ending { txn: self, locks };
        let (mutations, proven) = ending.sort(mutations, &guarded);
        let reads = (spans, ending.locks.newest());
        let client = &self.inner.client;
        if mutations.is_empty() {
            return match proven.is_empty() {
                true => Ok(self.inner.start_ts),
                false => client
                    .check_rows(self.inner.start_ts, proven, client.deadline())
                    .await
                    .map(|()| self.inner.start_ts),
            };
        }
        let committed = self.commit_writes(mutations, proven.clone(), reads, options).await;
        if committed.is_ok() {
            // Where something was written the store has given the lock up by itself, or is about to.
            ending.locks.retain(&proven);
        }
        committed
    }

    async fn commit_writes(
        &self,
        mutations: Vec<Mutation>,
        proven: Vec<Proof>,
        (mut reads, newest): (ReadSpans, Timestamp),
        options: CommitOptions,
    ) -> Result<Timestamp, Error> {
        let (client, start_ts) = (self.inner.client.clone(), self.inner.start_ts);
        // As the snapshot has it, and not only as it was when it was locked.
        let unchanged = |mutation: &&Mutation| mutation.seen_ts <= start_ts.0;
        mutations.iter().filter(unchanged).for_each(|mutation| reads.forget(&mutation.key));
        let renewed = self.inner.renewed.load(Ordering::Relaxed);
        // A timestamp that a leader chooses is at most one above those that PD has issued, so that whoever begins afterwards
        // reads what was committed. Above a version that is younger than this transaction that takes a new one from PD.
        let followed = newest > start_ts;
        let floor = match options.floor {
            Floor::StartTs if !renewed && !followed => start_ts,
            // The commit comes behind every snapshot it has read from, too.
            Floor::Pd | Floor::StartTs => client.timestamp().await?,
        };
        let fresh = (floor > start_ts && floor > newest).then_some(floor);
        let reads = Reads { spans: reads.take(), fresh, newest };
        let floor = floor.max(newest);
        let ttl = self.ttl();
        let max_commit_ts = options.max_commit_ts;
        let spilled = false;
        commit::run(CommitJob { client, start_ts, floor, max_commit_ts, ttl, mutations, proven, reads, spilled }).await
    }

    /// Of locks that are written now, from `start_ts`.
    pub(crate) fn ttl(&self) -> Duration {
        let client = &self.inner.client;
        client.inner.config.lock_ttl + client.inner.clock.now().since(self.inner.begun)
    }

    /// Forgets the writes and gives the row locks up; what was spilled is taken back in the background.
    pub fn rollback(&self) {
        let locks = {
            let mut state = self.inner.state.lock();
            state.ended = true;
            state.reads = None;
            state.spilled = None;
            state.buffer.take();
            std::mem::take(&mut state.locks)
        };
        if !locks.is_empty() {
            drop(Ending { txn: self, locks });
        }
    }
}

/// Row locks that outlast their transaction; given up when this is dropped.
pub struct DetachedRows {
    client: Client,
    start_ts: Timestamp,
    rows: BTreeMap<StoreId, Vec<Bytes>>,
}

impl Drop for DetachedRows {
    fn drop(&mut self) {
        self.client.release_rows(self.start_ts, std::mem::take(&mut self.rows));
    }
}

/// The row locks of a transaction that ends: given up when this is dropped.
struct Ending<'a> {
    txn: &'a Txn,
    locks: HeldRows,
}

impl Ending<'_> {
    /// Says in each write what its transaction saw of the row; and names the rows that are locked and not written, or guarded.
    fn sort(&self, mut mutations: Vec<Mutation>, guarded: &BTreeSet<Bytes>) -> (Vec<Mutation>, Vec<Proof>) {
        let trusting = self.txn.inner.client.inner.config.plant.has(Planted::TrustRowLocks);
        for mutation in &mut mutations {
            if let Some(seen) = self.locks.version(&mutation.key) {
                // Zero would say "since the transaction began"; no version is as old as one.
                mutation.seen_ts = if trusting { u64::MAX } else { seen.0.max(1) };
            }
        }
        let written = |key: &Bytes| mutations.binary_search_by(|mutation| mutation.key.cmp(key)).is_ok();
        let guarded = guarded.iter().filter(|key| written(key)).cloned();
        let unwritten = self.locks.locked().filter(|key| !written(key)).cloned();
        let proven: BTreeSet<Bytes> = unwritten.chain(guarded).collect();
        let proofs = proven.iter().map(|key| self.locks.proof(key)).collect();
        (mutations, proofs)
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let Inner { client, start_ts, .. } = &*self.txn.inner;
        client.stop_keeping(*start_ts);
        client.release_rows(*start_ts, self.locks.take_since(0));
    }
}
