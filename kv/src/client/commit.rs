//! Does what the committer decides: sends, waits, sleeps.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, poll_fn, try_join},
    stream::{self, FuturesUnordered},
};
use proto::{
    KeyRange, Timestamp,
    wire::{
        CommitRequest, HeartbeatTxnRequest, Mutation, PrewriteRequest, RollbackRequest, kv_request::Body, kv_response,
    },
};

use crate::{Error, Reply, error::Refusal, planted::Planted};

use super::{
    COMMIT_MEMORY, Client, Route,
    backoff::{Backoff, patience},
    committer::{Committer, Effect, Event, Protocol, Repeat, Run, SendId},
    held::Proof,
    read::{unexpected, wrong_answer},
    resolver::LockWait,
    route::{Attempt, Deadline},
    validate::Validation,
};

/// Bytes of mutations in one request at most: an entry of the Raft log should not hold up the entries behind it.
pub(crate) const MAX_REQUEST_BYTES: usize = 512 << 10;
/// Keys in one request at most, for the same reason.
pub(crate) const MAX_REQUEST_KEYS: usize = 4096;
/// A transaction that writes no more keys than this meets another one's locks one by one.
const FEW_KEYS: usize = 16;
/// Requests of one commit under way at once.
const MAX_PARALLEL: usize = 16;

/// What the requests of one commit share.
pub(crate) struct CommitJob {
    pub(crate) client: Client,
    pub(crate) start_ts: Timestamp,
    /// commit_ts is at least this.
    pub(crate) floor: Timestamp,
    /// commit_ts is below this.
    pub(crate) max_commit_ts: Option<Timestamp>,
    /// Of the locks, from start_ts.
    pub(crate) ttl: Duration,
    pub(crate) mutations: Vec<Mutation>,
    /// Rows that are locked and not written, sorted: the locks must have stood until all writes are prewritten.
    pub(crate) proven: Vec<Proof>,
    /// Of a serializable transaction.
    pub(crate) reads: Reads,
    /// It has spilled: all of it is locked, and the mutations are its primary alone.
    pub(crate) spilled: bool,
}

/// What a serializable transaction has read; of others nothing.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Sorted, apart.
    pub(crate) spans: Vec<KeyRange>,
    /// A timestamp that PD gave it when it was about to commit, and nobody else.
    pub(crate) fresh: Option<Timestamp>,
    /// Of the versions it saw when it locked rows, the newest.
    pub(crate) newest: Timestamp,
}

type Doing = BoxFuture<'static, Option<Event>>;

/// Commits, or says why not.
pub(crate) async fn run(mut job: CommitJob) -> Result<Timestamp, Error> {
    let mutations = std::mem::take(&mut job.mutations);
    let (one_pc, reads) = (job.proven.is_empty(), !job.reads.spans.is_empty());
    let mut committer = match job.spilled {
        true => Committer::spilled(mutations, job.max_commit_ts),
        false => Committer::new(mutations, job.max_commit_ts, one_pc, reads),
    };
    let job = Arc::new(Job { keys: committer.mutations().to_vec(), job });
    let client = job.job.client.clone();
    let latest = client.inner.clock.now() + COMMIT_MEMORY;
    let mut deadline = Deadline(client.deadline().0.min(latest));
    let mut asked = false;
    let mut waiting: VecDeque<Effect> = committer.step(Event::Start).into();
    let mut doing: FuturesUnordered<Doing> = FuturesUnordered::new();
    let mut heartbeat_armed = false;
    loop {
        while (doing.len() < MAX_PARALLEL || !committer.is_prewriting())
            && let Some(effect) = waiting.pop_front()
        {
            match effect {
                Effect::Finish(Ok(at)) if client.has(Planted::ValidateAfterDecision) => {
                    return job.validate(at, true, deadline).await.map(|()| at);
                }
                Effect::Finish(outcome) => return outcome,
                Effect::CommitRest { runs, commit_ts } => job.commit_rest(runs, commit_ts),
                Effect::Rollback { runs } => job.roll_back(runs),
                Effect::AskPrimary { .. } if !asked => {
                    asked = true;
                    // After that the primary may have forgotten: what it says then means nothing.
                    deadline = Deadline(
                        (deadline.0.max(client.inner.clock.now()) + client.inner.config.outcome_grace).min(latest),
                    );
                    doing.push(job.clone().perform(effect, deadline).map(Some).boxed());
                }
                _ if client.is_late(deadline) => {
                    let why = format!("the commit of transaction {} ran out of time", job.job.start_ts);
                    step(&mut committer, &mut waiting, Event::Deadline(why));
                }
                effect => {
                    // The usual case: one request, nothing else to wait for.
                    if doing.is_empty() && waiting.is_empty() && !committer.holds_locks() {
                        let event = job.clone().perform(effect, deadline).await;
                        step(&mut committer, &mut waiting, event);
                    } else {
                        doing.push(job.clone().perform(effect, deadline).map(Some).boxed());
                    }
                }
            }
        }
        if committer.holds_locks() && !heartbeat_armed {
            heartbeat_armed = true;
            doing.push(job.clone().heartbeat(deadline).boxed());
        }
        match next(&mut doing).await {
            Some(Some(event)) => step(&mut committer, &mut waiting, event),
            Some(None) => heartbeat_armed = false,
            None if waiting.is_empty() => {
                return Err(Error::CommitUnknown("the committer stopped without an outcome".into()));
            }
            None => {}
        }
    }
}

/// The next of several requests that is answered. Those to the store of this process reach it together.
async fn next<S: Stream + Unpin>(requests: &mut S) -> Option<S::Item> {
    poll_fn(|cx| raftstore::together(|| requests.poll_next_unpin(cx))).await
}

/// Queues what follows from an event; what was queued before and is not wanted any more goes.
fn step(committer: &mut Committer, waiting: &mut VecDeque<Effect>, event: Event) {
    let effects = committer.step(event);
    if !committer.is_prewriting() {
        waiting.clear();
    }
    waiting.extend(effects);
}

struct Job {
    job: CommitJob,
    keys: Vec<Mutation>,
}

impl Job {
    fn primary(&self) -> &Bytes {
        &self.keys[0].key
    }

    async fn perform(self: Arc<Self>, effect: Effect, deadline: Deadline) -> Event {
        match effect {
            Effect::Prewrite { id, run, protocol, validated, repeat } => {
                self.pause(repeat).await;
                self.prewrite(id, run, (protocol, validated), patience(repeat.count), deadline)
                    .await
                    .unwrap_or_else(|e| Event::Refused(id, e))
            }
            Effect::Validate => Event::Validated(self.validate_first(deadline).await),
            Effect::CommitPrimary { id, run, commit_ts, repeat } => {
                self.pause(repeat).await;
                let patience = patience(repeat.count);
                self.commit_primary(id, run, commit_ts, patience, deadline)
                    .await
                    .unwrap_or_else(|e| Event::Refused(id, e))
            }
            Effect::ClearLock { id, lock } => {
                let few = self.keys.len() <= FEW_KEYS;
                let mut wait = if few { LockWait::writing_keys() } else { LockWait::writing_range() };
                match self.job.client.clear_lock(&lock, &mut wait, deadline).await {
                    Ok(()) => Event::Cleared(id),
                    Err(error) => Event::Refused(id, error),
                }
            }
            Effect::TakeTimestamp => {
                let client = &self.job.client;
                let proven = client.check_rows(self.job.start_ts, self.job.proven.clone(), deadline);
                let validated = async {
                    let ts = client.timestamp().await?;
                    self.validate(ts, true, deadline).await.map(|()| ts)
                };
                // From here on whoever reads what is written waits for the outcome: the locks may go.
                Event::Timestamp(try_join(validated, proven).await.map(|(ts, ())| ts))
            }
            Effect::AskPrimary { repeat } => {
                self.pause(repeat).await;
                self.ask_primary(deadline).await
            }
            Effect::CommitRest { .. } | Effect::Rollback { .. } | Effect::Finish(_) => {
                unreachable!("done by the loop itself")
            }
        }
    }

    /// Whether what was read is at `at` as it was. `holds_locks`: some of its own may stand.
    async fn validate(&self, at: Timestamp, holds_locks: bool, deadline: Deadline) -> Result<(), Error> {
        let CommitJob { client, start_ts, reads, .. } = &self.job;
        if reads.spans.is_empty() {
            return Ok(());
        }
        client.validate_reads(&reads.spans, Validation { start_ts: *start_ts, at, holds_locks }, deadline).await
    }

    /// The same before anything is written, at a timestamp that is the transaction's alone.
    async fn validate_first(&self, deadline: Deadline) -> Result<Timestamp, Error> {
        let client = &self.job.client;
        let at = match self.job.reads.fresh {
            Some(ts) => ts,
            None => client.timestamp().await?,
        };
        if !client.has(Planted::ValidateAfterDecision) {
            self.validate(at, false, deadline).await?;
        }
        Ok(at)
    }

    async fn pause(&self, repeat: Repeat) {
        if repeat.count > 0 {
            let inner = &self.job.client.inner;
            let pause = Backoff::ROUTING.nth(repeat.count, &inner.jitter).max(repeat.least);
            inner.clock.sleep(pause).await;
        }
    }

    /// The longest run from the start of `run` that fits into one request to one region, and that region.
    async fn head(&self, run: &Run, deadline: Deadline) -> Result<(Route, Run), Error> {
        let route = self.job.client.locate(&self.keys[run.start].key, deadline).await?;
        let (mut end, mut bytes) = (run.start, 0);
        for mutation in &self.keys[run.clone()] {
            bytes += mutation.key.len() + mutation.value.len();
            let fits = bytes <= MAX_REQUEST_BYTES && end - run.start < MAX_REQUEST_KEYS;
            if end > run.start && !(fits && route.region.range.contains(&mutation.key)) {
                break;
            }
            end += 1;
        }
        Ok((route, run.start..end))
    }

    /// Cuts a run for one request each.
    async fn cut(&self, mut run: Run, deadline: Deadline) -> Result<Vec<Run>, Error> {
        let mut runs = Vec::new();
        while !run.is_empty() {
            let (_, head) = self.head(&run, deadline).await?;
            run.start = head.end;
            runs.push(head);
        }
        Ok(runs)
    }

    async fn prewrite(
        &self,
        id: SendId,
        run: Run,
        (protocol, validated): (Protocol, Option<Timestamp>),
        patience: Duration,
        deadline: Deadline,
    ) -> Result<Event, Error> {
        let (route, head) = self.head(&run, deadline).await?;
        if head != run {
            return Ok(Event::Split(id, self.cut(run, deadline).await?));
        }
        let reads = match protocol == Protocol::OnePc && validated.is_none() {
            true => self.job.reads.spans.as_slice(),
            false => &[],
        };
        if !reads.iter().all(|span| route.region.range.covers(span)) {
            return Ok(Event::ReadsElsewhere(id));
        }
        let asynchronous = protocol == Protocol::Async;
        let lists_others = asynchronous && run.start == 0;
        let secondaries =
            if lists_others { self.keys[1..].iter().map(|m| m.key.clone()).collect() } else { Vec::new() };
        let request = PrewriteRequest {
            mutations: self.keys[run].to_vec(),
            primary: self.primary().clone(),
            start_ts: self.job.start_ts.0,
            ttl_ms: self.job.ttl.as_millis() as u64,
            min_commit_ts: validated.map_or(self.job.floor, |_| self.job.reads.newest).0,
            max_commit_ts: self.job.max_commit_ts.map_or(0, |ts| ts.0),
            try_one_pc: protocol == Protocol::OnePc,
            txn_size: self.keys.len() as u64,
            async_commit: asynchronous,
            secondaries,
            reads: reads.iter().map(Into::into).collect(),
            validated_ts: validated.map_or(0, |ts| ts.0),
            ..PrewriteRequest::default()
        };
        let attempt = self.job.client.attempt(&route, Body::Prewrite(request), patience, deadline).await;
        let reply = match self.unanswered(id, attempt)? {
            Ok(reply) => reply,
            Err(event) => return Ok(event),
        };
        let Some(kv_response::Body::Prewrite(response)) = reply.response.body else {
            return Err(wrong_answer("prewrite"));
        };
        if response.one_pc_commit_ts != 0 {
            return Ok(Event::IsCommitted(id, Timestamp(response.one_pc_commit_ts)));
        }
        match response.errors.into_iter().next().map(Refusal::from) {
            None if asynchronous && response.undecided && !self.job.client.has(Planted::TakeUndecided) => {
                Ok(Event::Undecided(id))
            }
            None => Ok(Event::Prewritten(id, Timestamp(response.min_commit_ts))),
            Some(Refusal::Locked(lock)) => Ok(Event::Locked(id, lock)),
            // Its own row locks would have kept that one off: it has none there, or has lost them.
            Some(Refusal::Error(Error::RowLocked { key })) => Err(Error::Conflict { key }),
            Some(refusal) => Err(unexpected(refusal)),
        }
    }

    async fn commit_primary(
        &self,
        id: SendId,
        run: Run,
        commit_ts: Timestamp,
        patience: Duration,
        deadline: Deadline,
    ) -> Result<Event, Error> {
        let (route, head) = self.head(&run, deadline).await?;
        if head != run {
            return Ok(Event::Split(id, self.cut(run, deadline).await?));
        }
        let body = self.commit_body(&run, commit_ts, self.job.max_commit_ts);
        let attempt = self.job.client.attempt(&route, body, patience, deadline).await;
        let reply = match self.unanswered(id, attempt)? {
            Ok(reply) => reply,
            Err(event) => return Ok(event),
        };
        match commit_refusal(reply)? {
            None => Ok(Event::Committed(id)),
            Some(Refusal::CommitTsTooLow(_)) => Ok(Event::CommitTsTooLow(id)),
            Some(Refusal::TxnNotFound) => Err(Error::Aborted),
            Some(refusal) => Err(unexpected(refusal)),
        }
    }

    fn commit_body(&self, run: &Run, commit_ts: Timestamp, max_commit_ts: Option<Timestamp>) -> Body {
        Body::Commit(CommitRequest {
            keys: self.keys[run.clone()].iter().map(|m| m.key.clone()).collect(),
            start_ts: self.job.start_ts.0,
            commit_ts: commit_ts.0,
            max_commit_ts: max_commit_ts.map_or(0, |ts| ts.0),
            primary: self.primary().clone(),
        })
    }

    /// Sorts out attempts that brought no answer.
    fn unanswered(&self, id: SendId, attempt: Attempt) -> Result<Result<Reply, Event>, Error> {
        match attempt {
            Attempt::Answer(reply) => Ok(Ok(reply)),
            Attempt::Again { pause, why } => {
                tracing::debug!(start_ts = %self.job.start_ts, why, "request of a commit is routed again");
                Ok(Err(Event::Again(id, pause.unwrap_or_default())))
            }
            Attempt::Lost(why) if self.job.client.inner.config.plant.has(Planted::LostIsRefused) => {
                Err(Error::Unavailable(why))
            }
            Attempt::Lost(why) => {
                tracing::debug!(start_ts = %self.job.start_ts, why, "request of a commit is repeated");
                Ok(Err(Event::Lost(id)))
            }
            Attempt::Failed(error) => Err(error),
        }
    }

    async fn ask_primary(&self, deadline: Deadline) -> Event {
        match self.roll_back_run(&(0..1), deadline).await {
            Ok(committed) => Event::Outcome(committed),
            Err(error) => {
                tracing::debug!(start_ts = %self.job.start_ts, %error, "the primary does not tell the outcome");
                Event::NoOutcome(Duration::ZERO)
            }
        }
    }

    /// Rolls back keys of one region. `Some`: they are committed, at that timestamp.
    async fn roll_back_run(&self, run: &Run, deadline: Deadline) -> Result<Option<Timestamp>, Error> {
        let keys: Vec<Bytes> = self.keys[run.clone()].iter().map(|m| m.key.clone()).collect();
        let request = || Body::Rollback(RollbackRequest { keys: keys.clone(), start_ts: self.job.start_ts.0 });
        let (_, reply) = self.job.client.call(&keys[0], deadline, request).await?;
        let Some(kv_response::Body::Rollback(response)) = reply.response.body else {
            return Err(wrong_answer("rollback"));
        };
        if response.committed_ts != 0 {
            return Ok(Some(Timestamp(response.committed_ts)));
        }
        response.error.map_or(Ok(None), |error| Err(unexpected(Refusal::from(error))))
    }

    fn roll_back(self: &Arc<Self>, runs: Vec<Run>) {
        let job = self.clone();
        let task = async move {
            let deadline = job.job.client.deadline();
            for run in runs {
                if let Err(error) = job.roll_back_all(run, deadline).await {
                    // Whoever meets the locks asks the primary after their TTL.
                    tracing::info!(start_ts = %job.job.start_ts, %error, "locks are left for their TTL");
                    return;
                }
            }
        };
        self.job.client.inner.spawn.spawn(task.boxed());
    }

    async fn roll_back_all(&self, run: Run, deadline: Deadline) -> Result<(), Error> {
        for part in self.cut(run, deadline).await? {
            self.roll_back_run(&part, deadline).await?;
        }
        Ok(())
    }

    fn commit_rest(self: &Arc<Self>, runs: Vec<Run>, commit_ts: Timestamp) {
        if self.job.client.inner.config.plant.has(Planted::DropSecondaryCommit) {
            return self.roll_back(runs);
        }
        let job = self.clone();
        let task = async move {
            if let Err(error) = job.commit_runs(runs, commit_ts).await {
                // Whoever meets the locks learns the outcome from the primary.
                tracing::info!(start_ts = %job.job.start_ts, %error, "locks are left to be resolved");
            }
        };
        self.job.client.inner.spawn.spawn(task.boxed());
    }

    async fn commit_runs(&self, runs: Vec<Run>, commit_ts: Timestamp) -> Result<(), Error> {
        let deadline = self.job.client.deadline();
        let mut parts = Vec::with_capacity(runs.len());
        for run in runs {
            parts.extend(self.cut(run, deadline).await?);
        }
        let commits = parts.into_iter().map(|part| self.commit_all(part, commit_ts, deadline));
        let mut commits = stream::iter(commits).buffer_unordered(MAX_PARALLEL);
        while let Some(done) = next(&mut commits).await {
            done?;
        }
        Ok(())
    }

    /// Commits a run of secondaries. Their fence was the primary's.
    async fn commit_all(&self, mut run: Run, commit_ts: Timestamp, deadline: Deadline) -> Result<(), Error> {
        let mut backoff = Backoff::ROUTING;
        while !run.is_empty() {
            let (route, head) = self.head(&run, deadline).await?;
            let body = self.commit_body(&head, commit_ts, None);
            let attempt = self.job.client.attempt(&route, body, backoff.patience(), deadline).await;
            let Some(reply) = self.job.client.settle(attempt, &mut backoff, deadline).await? else { continue };
            if let Some(refusal) = commit_refusal(reply)? {
                return Err(unexpected(refusal));
            }
            run.start = head.end;
        }
        Ok(())
    }

    /// Sleeps a third of the TTL, then prolongs it.
    async fn heartbeat(self: Arc<Self>, deadline: Deadline) -> Option<Event> {
        let client = &self.job.client;
        let lock_ttl = client.inner.config.lock_ttl;
        client.inner.clock.sleep(lock_ttl / 3).await;
        if let Ok(now) = client.timestamp().await {
            let age_ms = now.physical_ms().saturating_sub(self.job.start_ts.physical_ms());
            let request = || {
                Body::HeartbeatTxn(HeartbeatTxnRequest {
                    primary: self.primary().clone(),
                    start_ts: self.job.start_ts.0,
                    ttl_ms: age_ms + lock_ttl.as_millis() as u64,
                })
            };
            if let Err(error) = client.call(self.primary(), deadline, request).await {
                tracing::debug!(start_ts = %self.job.start_ts, %error, "heartbeat of a transaction failed");
            }
        }
        None
    }
}

fn commit_refusal(reply: Reply) -> Result<Option<Refusal>, Error> {
    match reply.response.body {
        Some(kv_response::Body::Commit(response)) => Ok(response.error.map(Refusal::from)),
        _ => Err(wrong_answer("commit")),
    }
}
