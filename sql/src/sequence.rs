//! Sequences as statements draw from them.
//!
//! ```text
//!   nextval ──► Sequences (a session: currval, lastval) ──► Pools (a node) ── a transaction of its own ──► the sequence's value
//! ```
//!
//! One reservation of a node is under way for each sequence; it takes what all that wait have asked for, or CACHE values if those are
//! more. So sessions at the same time share a commit, and without CACHE a node keeps nothing back: values come in the order
//! in which they are asked for, on all nodes, and setval holds at once. What CACHE keeps back is lost when the node stops.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lru::LruCache;
use parking_lot::Mutex;

use crate::{
    catalog::{sequence::Sequence, store},
    error::{SqlError, SqlResult, SqlState},
};

/// Sequences a node has values of; of one that is used least the values are lost.
const MAX_POOLS: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
/// Values of one reservation at most: they are held in memory.
const MAX_RESERVED: u64 = 100_000;

/// Values of one sequence that this node has reserved.
#[derive(Default)]
struct Pool {
    values: Mutex<VecDeque<i64>>,
    waiting: AtomicU64,
    reserving: tokio::sync::Mutex<()>,
}

/// Takes what it asked for off the pool's count when it has got it, or is dropped.
struct Waiting<'a>(&'a Pool, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Pool {
    fn take(&self, into: &mut Vec<i64>, count: usize) -> bool {
        let mut values = self.values.lock();
        let taken = values.len().min(count - into.len());
        into.extend(values.drain(..taken));
        into.len() == count
    }
}

/// What a node has reserved.
pub struct Pools {
    client: kv::Client,
    /// By value id and version: after a change of the sequence what is left is not used any more.
    pools: Mutex<LruCache<(u32, u64), Arc<Pool>>>,
}

impl Pools {
    /// Nothing yet.
    pub fn new(client: kv::Client) -> Self {
        Pools { client, pools: Mutex::new(LruCache::new(MAX_POOLS)) }
    }

    fn pool(&self, sequence: &Sequence) -> Arc<Pool> {
        let mut pools = self.pools.lock();
        Arc::clone(pools.get_or_insert((sequence.value_id, sequence.version), Arc::default))
    }

    async fn take(&self, sequence: &Sequence, count: usize) -> SqlResult<Vec<i64>> {
        let pool = self.pool(sequence);
        let mut values = Vec::with_capacity(count);
        pool.waiting.fetch_add(count as u64, Ordering::Relaxed);
        let _waiting = Waiting(&pool, count as u64);
        while !pool.take(&mut values, count) {
            let _reserving = pool.reserving.lock().await;
            if pool.take(&mut values, count) {
                break;
            }
            let wanted = pool.waiting.load(Ordering::Relaxed).max(count as u64) - values.len() as u64;
            let wanted = wanted.max(sequence.options.cache as u64).min(MAX_RESERVED);
            let block = store::reserve(&self.client, sequence, wanted).await?;
            pool.values.lock().extend(block.values());
        }
        Ok(values)
    }

    async fn set(&self, sequence: &Sequence, value: i64, called: bool) -> SqlResult<()> {
        let pool = self.pool(sequence);
        let _reserving = pool.reserving.lock().await;
        store::set_value(&self.client, sequence, value, called).await?;
        pool.values.lock().clear();
        Ok(())
    }
}

/// What a session knows of sequences.
pub struct Sequences {
    pools: Arc<Pools>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// By the sequence's id.
    values: HashMap<u32, i64>,
    last: Option<i64>,
}

impl fmt::Debug for Sequences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sequences")
    }
}

impl Sequences {
    /// Of a new session.
    pub fn new(pools: Arc<Pools>) -> Self {
        Sequences { pools, seen: Mutex::default() }
    }

    /// nextval, `count` times. 2200H at the limit, 42P01 when the sequence is gone.
    pub async fn next(&self, sequence: &Sequence, count: usize) -> SqlResult<Vec<i64>> {
        let values = self.pools.take(sequence, count).await?;
        if let Some(last) = values.last() {
            let mut seen = self.seen.lock();
            seen.values.insert(sequence.id, *last);
            seen.last = Some(*last);
        }
        Ok(values)
    }

    /// currval; 55000 before the session's first nextval.
    pub fn current(&self, sequence: &Sequence) -> SqlResult<i64> {
        self.seen.lock().values.get(&sequence.id).copied().ok_or_else(|| {
            not_yet(format!("currval of sequence \"{}\" is not yet defined in this session", sequence.name))
        })
    }

    /// lastval; 55000 before the session's first nextval of any sequence.
    pub fn last(&self) -> SqlResult<i64> {
        self.seen.lock().last.ok_or_else(|| not_yet("lastval is not yet defined in this session".to_owned()))
    }

    /// setval; 22003 for a value beyond the sequence's limits.
    pub async fn set(&self, sequence: &Sequence, value: i64, called: bool) -> SqlResult<i64> {
        sequence.check(value)?;
        self.pools.set(sequence, value, called).await?;
        if called {
            self.seen.lock().values.insert(sequence.id, value);
        }
        Ok(value)
    }

    /// DISCARD SEQUENCES.
    pub fn forget(&self) {
        *self.seen.lock() = Seen::default();
    }
}

fn not_yet(message: String) -> SqlError {
    SqlError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
}
