//! Transactions too large for this memory: a part of their writes is left with the stores, as locks, while they go on.
//!
//! ```text
//!   buffer ── make_room ──► leaving ── prewrites, numbered ──► locks, with values and generations
//!      ▲                       │  read here until all stand         │ read there, by their owner alone
//!      └── writes go on        │                                    │ ROLLBACK TO: by range, back to a generation
//!                              ▼                                    ▼ COMMIT: the last part, then the primary decides;
//!                        row locks in memory go                       the rest by range, in the background
//! ```
//!
//! The first key of the first part is the primary: its lock stands before any other is asked for, and is kept alive from then on. What
//! is remembered of the rest is one range for each index that was written.
//!
//! A statement whose changes are many writes them while it still reads: it reads through a handle ([`Txn::as_statement`]) that
//! sees what was written before it, and once its own writes begin everything older is spilled ([`Txn::detach`]), so that the stores
//! can tell the generations apart.
//!
//! Who reads past such locks does not wait for them: the transaction is made to commit above the reader ([`super::resolver`]).
//!
//! However this process ends with the transaction, the primary is asked, or rolled back, before the rest is touched.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use parking_lot::Mutex;
use proto::{
    KeyRange, Timestamp, keyspace,
    wire::{
        DropGenerationsRequest, HeartbeatTxnRequest, KeyError, Mutation, OwnWrites, PrewriteRequest, ResolveRequest,
        RollbackRequest, kv_request::Body, kv_response,
    },
};

use crate::{Error, Reply, error::Refusal, planted::Planted};

use super::{
    Client, CommitOptions,
    backoff::Backoff,
    buffer::{Buffer, Own},
    commit::{self, CommitJob, MAX_REQUEST_BYTES, MAX_REQUEST_KEYS, Reads},
    held::Proof,
    marks::Mark,
    near::Source,
    read::{unexpected, wrong_answer},
    reads::ReadSpans,
    resolver::LockWait,
    txn::{Inner, State, Txn},
};

/// Requests of one part under way at once.
const MAX_PARALLEL: usize = 8;

/// What the stores have of a transaction.
pub(crate) struct Spilled {
    hold: Arc<Hold>,
    /// The number of the last part.
    parts: u64,
    /// The newest generation that was spilled.
    generation: u64,
    /// The newest version of rows whose locks were given up for written ones.
    newest: Timestamp,
    writes: usize,
    /// The part that is on its way.
    leaving: Option<Arc<Part>>,
}

/// A part of the writes: sent again as it is until all of its locks stand.
struct Part {
    number: u64,
    buffer: Buffer,
    mutations: Vec<Mutation>,
    /// Rows whose locks in memory must have stood until those of the part do.
    guarded: Vec<Proof>,
    marks: Vec<u64>,
}

/// A part, and the locks that it joins.
type Leaving = (Arc<Part>, Arc<Hold>);

/// The locks. When it goes without having been settled, they are ended as the primary says.
struct Hold {
    client: Client,
    start_ts: Timestamp,
    primary: Bytes,
    /// By index, the first and the last key that were written.
    extents: Mutex<BTreeMap<Bytes, (Bytes, Bytes)>>,
    /// The primary is locked.
    stands: AtomicBool,
    /// It was, and somebody has ended it.
    lost: AtomicBool,
    settled: AtomicBool,
}

/// Of a handle that reads for a statement.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) mark: Mark,
    /// What is held in memory is the statement's own, and not seen.
    blind: Arc<AtomicBool>,
}

/// What a scan reads of its transaction's spilled writes: those before the scan.
pub(crate) struct Spills {
    txn: Arc<Inner>,
    mark: Mark,
}

impl Spills {
    pub(crate) fn new(txn: Arc<Inner>, mark: Mark) -> Self {
        Spills { txn, mark }
    }

    pub(crate) fn own(&self) -> Option<OwnWrites> {
        self.txn.own_writes(self.mark.generation())
    }
}

impl Spilled {
    /// What the part on its way has of a key.
    pub(crate) fn own(&self, key: &[u8]) -> Own {
        self.leaving().map_or(Own::Unknown, |buffer| buffer.own(key))
    }

    /// The part on its way.
    pub(crate) fn leaving(&self) -> Option<&Buffer> {
        self.leaving.as_ref().map(|part| &part.buffer)
    }

    /// Keys of a range may have been spilled.
    pub(crate) fn touches(&self, range: &KeyRange) -> bool {
        let extents = self.hold.extents.lock();
        extents.values().any(|(first, last)| *last >= range.start && (range.end.is_empty() || *first < range.end))
    }

    /// How many keys were spilled; one may count several times.
    pub(crate) fn writes(&self) -> usize {
        self.writes
    }
}

impl Inner {
    fn own_writes(&self, generation: u64) -> Option<OwnWrites> {
        let start_ts = self.start_ts.0;
        self.state.lock().spilled.is_some().then_some(OwnWrites { start_ts, generation })
    }
}

impl Txn {
    /// Some of its writes may be with the stores.
    pub(crate) fn has_spilled(&self) -> bool {
        self.inner.state.lock().spilled.is_some()
    }

    pub(crate) fn own_writes(&self) -> Option<OwnWrites> {
        self.inner.own_writes(self.view.as_ref().map_or(u64::MAX, |view| view.mark.generation()))
    }

    pub(crate) fn is_blind(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.blind.load(Ordering::Acquire))
    }

    /// What this handle sees of the writes in memory.
    pub(crate) fn seen_of(&self, state: &State, key: &[u8]) -> Own {
        if self.is_blind() { Own::Unknown } else { state.own(key) }
    }

    /// A handle for what a statement reads: of the transaction's writes it sees those that were made before now. That is so only as
    /// long as none is made, or once [`Txn::detach`] was called.
    #[must_use]
    pub fn as_statement(&self) -> Txn {
        let mark = self.inner.state.lock().buffer.mark();
        Txn { view: Some(View { mark, blind: Arc::default() }), ..self.clone() }
    }

    /// From now on this handle, one for a statement, does not see what is written through others.
    pub async fn detach(&self) -> Result<(), Error> {
        if let Some(view) = self.view.as_ref().filter(|view| !view.blind.load(Ordering::Acquire)) {
            self.spill().await?;
            view.blind.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Leaves writes with the stores when they have become too many for this memory. To be called between writes that are many. After
    /// an error the transaction has ended.
    pub async fn make_room(&self) -> Result<(), Error> {
        let config = &self.inner.client.inner.config;
        let (full, lost) = {
            let state = self.state()?;
            let lost = state.spilled.as_ref().is_some_and(|spilled| spilled.hold.lost.load(Ordering::SeqCst));
            (state.buffer.weight() > config.spill_bytes || state.locks.len() > config.spill_rows, lost)
        };
        if lost {
            self.rollback();
            return Err(Error::Aborted);
        }
        if full { self.spill().await } else { Ok(()) }
    }

    /// Rows whose locks in memory were given up for written ones must have been locked without a gap until then; see
    /// [`Txn::guard_rows`].
    pub fn guard_spills(&self) {
        self.inner.state.lock().guard_spills = true;
    }

    /// Writes row locks down when they are too many. Shared ones can't be: [`Error::TooLarge`].
    pub(crate) async fn make_room_for_locks(&self) -> Result<(), Error> {
        let limit = self.inner.client.inner.config.spill_rows;
        let held = || self.state().map(|state| state.locks.len());
        if held()? <= limit {
            return Ok(());
        }
        self.spill().await?;
        match held()? > limit {
            true => Err(Error::TooLarge(format!("a transaction shares the locks of at most {limit} rows"))),
            false => Ok(()),
        }
    }

    /// Leaves all writes with the stores.
    pub(crate) async fn spill(&self) -> Result<(), Error> {
        let _one = self.inner.spilling.lock().await;
        // One that was broken off is sent first, and again.
        while let Some((part, hold)) = self.next_part()? {
            if let Err(error) = hold.leave(self, &part).await {
                self.rollback();
                return Err(error);
            }
            self.has_left(&part).await?;
        }
        Ok(())
    }

    /// The part that is on its way, or the next one; `None` when nothing is left.
    fn next_part(&self) -> Result<Option<Leaving>, Error> {
        let mut guard = self.state()?;
        let state = &mut *guard;
        if let Some(Spilled { hold, leaving: Some(part), .. }) = &state.spilled {
            return Ok(Some((part.clone(), hold.clone())));
        }
        if state.locks.len() > self.inner.client.inner.config.spill_rows {
            let rows: Vec<Bytes> = state.locks.exclusive().cloned().collect();
            rows.into_iter().try_for_each(|key| state.buffer.lock(key))?;
        }
        if state.buffer.len() == 0 {
            return Ok(None);
        }
        let buffer = state.buffer.split();
        let mut mutations = buffer.spilled();
        let trusting = self.inner.client.has(Planted::TrustRowLocks);
        for mutation in &mut mutations {
            if let Some(seen) = state.locks.version(&mutation.key) {
                mutation.seen_ts = if trusting { u64::MAX } else { seen.0.max(1) };
            }
        }
        let spilled = match &mut state.spilled {
            Some(spilled) => spilled,
            none => none.insert(Spilled::begin(self, &mutations[0].key)),
        };
        spilled.hold.reach(&mutations);
        if let Some(reads) = &mut state.reads {
            let unchanged = |mutation: &&Mutation| mutation.seen_ts <= self.inner.start_ts.0;
            mutations.iter().filter(unchanged).for_each(|mutation| reads.forget(&mutation.key));
        }
        let locked = mutations.iter().filter_map(|mutation| Some((&mutation.key, state.locks.version(&mutation.key)?)));
        let mut guarded = Vec::new();
        for (key, version) in locked {
            spilled.newest = spilled.newest.max(version);
            if state.guard_spills || state.guarded.remove(key) {
                guarded.push(state.locks.proof(key));
            }
        }
        spilled.parts += 1;
        spilled.generation = buffer.next_generation();
        spilled.writes += mutations.len();
        let marks = buffer.marks();
        let part = Arc::new(Part { number: spilled.parts, buffer, mutations, guarded, marks });
        spilled.leaving = Some(part.clone());
        Ok(Some((part, spilled.hold.clone())))
    }

    /// All locks of a part stand.
    async fn has_left(&self, part: &Part) -> Result<(), Error> {
        let released = {
            let mut state = self.state()?;
            if let Some(spilled) = &mut state.spilled {
                spilled.leaving = None;
            }
            state.locks.take_all(part.mutations.iter().map(|mutation| &mutation.key))
        };
        self.inner.client.rows_released(self.inner.start_ts, released).await;
        Ok(())
    }

    /// The locks become what they were at a generation.
    pub(crate) async fn drop_spilled(&self, keep: u64) -> Result<(), Error> {
        let _one = self.inner.spilling.lock().await;
        let dropped = match self.last_part()? {
            // Where it arrives is not known before it has.
            Some((part, hold)) => match hold.leave(self, &part).await {
                Ok(()) => self.has_left(&part).await.and_then(|()| self.drop_part(keep)),
                Err(error) => Err(error),
            },
            None => self.drop_part(keep),
        };
        let done = match dropped {
            Ok(Some((hold, spill))) => hold.drop_generations(keep, spill).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if done.is_err() {
            self.rollback();
        }
        done
    }

    fn last_part(&self) -> Result<Option<Leaving>, Error> {
        Ok(match &self.state()?.spilled {
            Some(Spilled { hold, leaving: Some(part), .. }) => Some((part.clone(), hold.clone())),
            _ => None,
        })
    }

    /// The number under which generations are dropped, if any were spilled.
    fn drop_part(&self, keep: u64) -> Result<Option<(Arc<Hold>, u64)>, Error> {
        let mut state = self.state()?;
        let Some(spilled) = state.spilled.as_mut().filter(|spilled| spilled.generation > keep) else { return Ok(None) };
        if self.inner.client.has(Planted::KeepDropped) {
            return Ok(None);
        }
        spilled.parts += 1;
        Ok(Some((spilled.hold.clone(), spilled.parts)))
    }

    /// All locks stand: the primary decides.
    pub(crate) async fn commit_spilled(
        &self,
        spilled: &Spilled,
        proven: Vec<Proof>,
        mut spans: ReadSpans,
        options: CommitOptions,
    ) -> Result<Timestamp, Error> {
        let (client, start_ts, hold) = (self.inner.client.clone(), self.inner.start_ts, &spilled.hold);
        let floor = client.timestamp().await?;
        let newest = spilled.newest;
        let reads = Reads { spans: spans.take(), fresh: None, newest };
        let floor = floor.max(newest);
        let max_commit_ts = options.max_commit_ts;
        let ttl = self.ttl();
        let mutations = vec![Mutation { key: hold.primary.clone(), ..Mutation::default() }];
        let job = CommitJob { client, start_ts, floor, max_commit_ts, ttl, mutations, proven, reads, spilled: true };
        let committed = commit::run(job).await?;
        hold.settled.store(true, Ordering::SeqCst);
        hold.clone().resolve_later(committed);
        Ok(committed)
    }
}

impl Spilled {
    fn begin(txn: &Txn, primary: &Bytes) -> Self {
        let (client, start_ts) = (txn.inner.client.clone(), txn.inner.start_ts);
        let hold = Arc::new(Hold {
            client: client.clone(),
            start_ts,
            primary: primary.clone(),
            extents: Mutex::default(),
            stands: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            settled: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&hold);
        let (clock, pause) = (client.inner.clock.clone(), client.inner.config.lock_ttl / 3);
        let keep = async move {
            loop {
                clock.sleep(pause).await;
                let Some(hold) = weak.upgrade() else { return };
                hold.heartbeat().await;
            }
        };
        client.inner.spawn.spawn(keep.boxed());
        Spilled { hold, parts: 0, generation: 0, newest: Timestamp::ZERO, writes: 0, leaving: None }
    }
}

impl Hold {
    /// Remembers where locks will stand.
    fn reach(&self, mutations: &[Mutation]) {
        let mut extents = self.extents.lock();
        for Mutation { key, .. } in mutations {
            let prefix = match keyspace::split_prefix(key) {
                Some((_, _, _, rest)) => key.slice(..key.len() - rest.len()),
                None => Bytes::new(),
            };
            let (first, last) = extents.entry(prefix).or_insert_with(|| (key.clone(), key.clone()));
            if key < first {
                *first = key.clone();
            } else if key > last {
                *last = key.clone();
            }
        }
    }

    fn ranges(&self) -> Vec<KeyRange> {
        let behind = |key: &Bytes| Bytes::from([key, &[0][..]].concat());
        self.extents.lock().values().map(|(first, last)| KeyRange::new(first.clone(), behind(last))).collect()
    }

    /// Brings a part to the stores: when it returns, all of its locks stand.
    async fn leave(&self, txn: &Txn, part: &Part) -> Result<(), Error> {
        if part.number == 1 {
            // The primary's lock before any other: who meets one asks there.
            let at = part.mutations.binary_search_by(|mutation| mutation.key.cmp(&self.primary)).unwrap_or(0);
            self.prewrite(txn, part, &part.mutations[at..=at]).await?;
        }
        let all: Vec<BoxFuture<'_, Result<(), Error>>> =
            cut(&part.mutations).into_iter().map(|group| self.prewrite(txn, part, group).boxed()).collect();
        stream::iter(all).buffer_unordered(MAX_PARALLEL).try_collect::<()>().await?;
        self.stands.store(true, Ordering::SeqCst);
        if part.guarded.is_empty() {
            return Ok(());
        }
        self.client.check_rows(self.start_ts, part.guarded.clone(), self.client.deadline()).await
    }

    /// Mutations in a row, in a request to each region that they lie in.
    async fn prewrite(&self, txn: &Txn, part: &Part, mut mutations: &[Mutation]) -> Result<(), Error> {
        let client = &self.client;
        let (mut backoff, mut wait) = (Backoff::ROUTING, LockWait::writing_range());
        let mut deadline = client.deadline();
        while let Some(first) = mutations.first() {
            let route = client.locate(&first.key, deadline).await?;
            let inside = mutations.partition_point(|mutation| route.region.range.contains(&mutation.key)).max(1);
            let request = PrewriteRequest {
                mutations: mutations[..inside].to_vec(),
                primary: self.primary.clone(),
                start_ts: self.start_ts.0,
                ttl_ms: txn.ttl().as_millis() as u64,
                spill: part.number,
                marks: part.marks.clone(),
                ..PrewriteRequest::default()
            };
            let attempt = client.attempt(&route, Body::Prewrite(request), backoff.patience(), deadline).await;
            let Some(reply) = client.settle(attempt, &mut backoff, deadline).await? else { continue };
            let Some(kv_response::Body::Prewrite(response)) = reply.response.body else {
                return Err(wrong_answer("prewrite"));
            };
            match response.errors.into_iter().next().map(Refusal::from) {
                None => {
                    mutations = &mutations[inside..];
                    (backoff, deadline) = (Backoff::ROUTING, client.deadline());
                }
                Some(Refusal::Locked(lock)) => client.clear_lock(&lock, &mut wait, deadline).await?,
                // Its own row locks would have kept that one off: it has none there, or has lost them.
                Some(Refusal::Error(Error::RowLocked { key })) => return Err(Error::Conflict { key }),
                Some(refusal) => return Err(unexpected(refusal)),
            }
        }
        Ok(())
    }

    async fn drop_generations(&self, keep: u64, spill: u64) -> Result<(), Error> {
        let request = |range| {
            let (start_ts, range) = (self.start_ts.0, Some(range));
            Body::DropGenerations(DropGenerationsRequest { start_ts, keep, spill, range })
        };
        self.by_range(request, |reply| match reply.response.body {
            Some(kv_response::Body::DropGenerations(answer)) => Ok((answer.error, answer.resume_key)),
            _ => Err(wrong_answer("dropping of generations")),
        })
        .await
    }

    /// Ends the locks: committed at, or rolled back (zero).
    async fn resolve(&self, commit_ts: Timestamp) -> Result<(), Error> {
        let request = |range| {
            let (start_ts, commit_ts, range) = (self.start_ts.0, commit_ts.0, Some(range));
            Body::Resolve(ResolveRequest { start_ts, commit_ts, range, ..ResolveRequest::default() })
        };
        self.by_range(request, |reply| match reply.response.body {
            Some(kv_response::Body::Resolve(answer)) => Ok((answer.error, answer.resume_key)),
            _ => Err(wrong_answer("resolve")),
        })
        .await
    }

    /// Asks page by page for all that was written.
    async fn by_range(
        &self,
        request: impl Fn(proto::wire::KeyRange) -> Body,
        answer: impl Fn(Reply) -> Result<(Option<KeyError>, Bytes), Error>,
    ) -> Result<(), Error> {
        for mut rest in self.ranges() {
            loop {
                let deadline = self.client.deadline();
                let body = |part: KeyRange| request((&part).into());
                let (part, reply) = self.client.call_clipped(&rest, false, Source::Leader, deadline, body).await?;
                let (error, resume) = answer(reply)?;
                if let Some(error) = error {
                    return Err(unexpected(Refusal::from(error)));
                }
                let next = if resume.is_empty() { part.end } else { resume };
                if next.is_empty() || next >= rest.end {
                    break;
                }
                rest.start = next;
            }
        }
        Ok(())
    }

    fn resolve_later(self: Arc<Self>, commit_ts: Timestamp) {
        let spawn = self.client.inner.spawn.clone();
        let task = async move {
            if let Err(error) = self.resolve(commit_ts).await {
                // Whoever meets the locks learns the outcome from the primary.
                tracing::info!(start_ts = %self.start_ts, %error, "locks are left to be resolved");
            }
        };
        spawn.spawn(task.boxed());
    }

    /// Prolongs the primary's TTL.
    async fn heartbeat(&self) {
        let (client, stood) = (&self.client, self.stands.load(Ordering::SeqCst));
        let Ok(now) = client.timestamp().await else { return };
        let age_ms = now.physical_ms().saturating_sub(self.start_ts.physical_ms());
        let request = || {
            Body::HeartbeatTxn(HeartbeatTxnRequest {
                primary: self.primary.clone(),
                start_ts: self.start_ts.0,
                ttl_ms: age_ms + client.inner.config.lock_ttl.as_millis() as u64,
            })
        };
        match client.call(&self.primary, client.deadline(), request).await {
            Ok((_, reply)) => match reply.response.body {
                // Before the first prewrite there is none.
                Some(kv_response::Body::HeartbeatTxn(answer)) if answer.error.is_some() => {
                    self.lost.fetch_or(stood, Ordering::SeqCst);
                }
                _ => {}
            },
            Err(error) => {
                tracing::debug!(start_ts = %self.start_ts, %error, "heartbeat of a transaction failed");
            }
        }
    }

    /// Rolls the primary back, or learns that it is committed.
    async fn end(&self) -> Result<Timestamp, Error> {
        let request =
            || Body::Rollback(RollbackRequest { keys: vec![self.primary.clone()], start_ts: self.start_ts.0 });
        let (_, reply) = self.client.call(&self.primary, self.client.deadline(), request).await?;
        let Some(kv_response::Body::Rollback(response)) = reply.response.body else {
            return Err(wrong_answer("rollback"));
        };
        match response.error {
            Some(error) => Err(unexpected(Refusal::from(error))),
            None => Ok(Timestamp(response.committed_ts)),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.settled.load(Ordering::SeqCst) {
            return;
        }
        let rest = Hold {
            client: self.client.clone(),
            start_ts: self.start_ts,
            primary: self.primary.clone(),
            extents: Mutex::new(std::mem::take(&mut self.extents.lock())),
            stands: AtomicBool::new(false),
            lost: AtomicBool::new(true),
            settled: AtomicBool::new(true),
        };
        let spawn = self.client.inner.spawn.clone();
        let task = async move {
            let ended = match rest.end().await {
                Ok(outcome) => rest.resolve(outcome).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                // Whoever meets the locks asks the primary, after its TTL.
                tracing::info!(start_ts = %rest.start_ts, %error, "locks are left for their TTL");
            }
        };
        spawn.spawn(task.boxed());
    }
}

/// Mutations for one request each, if they lie in one region.
fn cut(mutations: &[Mutation]) -> Vec<&[Mutation]> {
    let size = |mutation: &Mutation| {
        let earlier: usize = mutation.earlier.iter().map(|earlier| earlier.value.len()).sum();
        mutation.key.len() + mutation.value.len() + earlier
    };
    let (mut groups, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, mutation) in mutations.iter().enumerate() {
        bytes += size(mutation);
        if at > start && (bytes > MAX_REQUEST_BYTES || at - start >= MAX_REQUEST_KEYS) {
            groups.push(&mutations[start..at]);
            (start, bytes) = (at, size(mutation));
        }
    }
    if start < mutations.len() {
        groups.push(&mutations[start..]);
    }
    groups
}
