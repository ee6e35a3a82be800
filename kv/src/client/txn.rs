//! A transaction as its user sees it: a snapshot to read from, a buffer to write to, and a commit.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::{KeyRange, Timestamp};
use raftstore::Instant;

use crate::Error;

use super::{
    Client,
    buffer::{Buffer, Own, Savepoint},
    commit::{self, CommitJob},
    scan::{Scan, ScanOptions},
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

/// A snapshot-isolation transaction. Shared by the parts of a query: cheap to clone, and all methods take `&self`.
///
/// Reads see the snapshot at [`Txn::start_ts`] and the transaction's own writes. Writes are kept here until
/// [`Txn::commit`]; nobody else sees anything of a transaction that is dropped or rolled back.
#[derive(Clone)]
pub struct Txn {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    start_ts: Timestamp,
    begun: Instant,
    read_only: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    buffer: Buffer,
    ended: bool,
}

impl Txn {
    pub(crate) fn new(client: Client, start_ts: Timestamp, read_only: bool) -> Self {
        let begun = client.inner.clock.now();
        Txn { inner: Arc::new(Inner { client, start_ts, begun, read_only, state: Mutex::default() }) }
    }

    /// The snapshot.
    pub fn start_ts(&self) -> Timestamp {
        self.inner.start_ts
    }

    /// The client it belongs to.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The value of a key.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let own = self.inner.state.lock().buffer.own(key);
        match own {
            Own::Value(value) => Ok(Some(value)),
            Own::Gone => Ok(None),
            Own::Unknown => self.inner.client.read_at(Bytes::copy_from_slice(key), self.inner.start_ts).await,
        }
    }

    /// The values of several keys, in the order asked; regions are asked in parallel.
    pub async fn get_many(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, Error> {
        let own: Vec<Own> = {
            let state = self.inner.state.lock();
            keys.iter().map(|key| state.buffer.own(key)).collect()
        };
        let mut ask: Vec<Bytes> =
            keys.iter().zip(&own).filter(|(_, own)| **own == Own::Unknown).map(|(key, _)| key.clone()).collect();
        ask.sort_unstable();
        ask.dedup();
        let found =
            if ask.is_empty() { Vec::new() } else { self.inner.client.read_many(ask, self.inner.start_ts).await? };
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
        let own = {
            let state = self.inner.state.lock();
            state.buffer.range(&options.range).map(|(key, write)| (key.clone(), write.own())).collect()
        };
        Scan::new(self.inner.client.clone(), self.inner.start_ts, options, own)
    }

    /// Whether this transaction has written a key in `range`: then a pushed-down scan would not see it, and the
    /// caller scans plainly.
    pub fn has_writes_in(&self, range: &KeyRange) -> bool {
        let state = self.inner.state.lock();
        state.buffer.range(range).next().is_some()
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

    /// A place to which [`Txn::roll_back_to`] goes back.
    pub fn savepoint(&self) -> Savepoint {
        self.inner.state.lock().buffer.savepoint()
    }

    /// Takes back the writes since `savepoint`, which stays; later ones are gone. Reads keep their snapshot.
    pub fn roll_back_to(&self, savepoint: Savepoint) {
        self.inner.state.lock().buffer.roll_back_to(savepoint);
    }

    /// Keys written so far.
    pub fn write_count(&self) -> usize {
        self.inner.state.lock().buffer.len()
    }

    /// Bytes of keys and values written so far.
    pub fn write_bytes(&self) -> usize {
        self.inner.state.lock().buffer.bytes()
    }

    /// Makes the writes visible to everybody, all at once, and durable. Returns the commit timestamp (of a
    /// transaction without writes: its snapshot). Whatever the result, the transaction has ended.
    pub async fn commit(&self, options: CommitOptions) -> Result<Timestamp, Error> {
        let mutations = {
            let mut state = self.inner.state.lock();
            if std::mem::replace(&mut state.ended, true) {
                return Err(Error::Aborted);
            }
            state.buffer.take()
        };
        let start_ts = self.inner.start_ts;
        if mutations.is_empty() {
            return Ok(start_ts);
        }
        let client = self.inner.client.clone();
        let floor = match options.floor {
            Floor::Pd => client.timestamp().await?,
            Floor::StartTs => start_ts,
        };
        let age = client.inner.clock.now().since(self.inner.begun);
        let ttl = client.inner.config.lock_ttl + age;
        commit::run(CommitJob { client, start_ts, floor, max_commit_ts: options.max_commit_ts, ttl, mutations }).await
    }

    /// Forgets the writes. Nothing of them was ever sent anywhere.
    pub fn rollback(&self) {
        let mut state = self.inner.state.lock();
        state.ended = true;
        state.buffer.take();
    }
}
