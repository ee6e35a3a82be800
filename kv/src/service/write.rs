//! Writes: latches, snapshot, evaluate, propose.

use bytes::Bytes;
use proto::{
    Batch, Cf, KeyRange, Timestamp,
    wire::{
        CheckSecondariesRequest, CheckSecondariesResponse, CheckTxnRequest, CheckTxnResponse, CommitRequest,
        CommitResponse, HeartbeatTxnRequest, HeartbeatTxnResponse, KeyError, Mutation, MutationKind, PrewriteRequest,
        RegionError, ResolveRequest, ResolveResponse, RollbackRequest, RollbackResponse, RowLockMode,
        UnsafeDeleteRangeRequest, UnsafeDeleteRangeResponse, kv_response::Body,
    },
};
use raftstore::{ProposeError, RegionSnapshot, Target};

use crate::{
    Reply,
    concurrency::{Published, Reign},
    mvcc::{Fault, Reader},
    planted::Planted,
    txn::{self, PrewriteMode},
};

use super::{
    Call, check_keys, locking::place_of, proposal::Proposal, read::reply, rows::Freed, safe_point::Begun, turns::Turn,
};

/// Locks resolved together, whatever the caller asks for: one entry of the log should not hold up those behind it.
const MAX_NEIGHBOURS: u32 = 4096;

/// Latches taken, and the view they protect.
pub(super) struct Stage {
    pub(super) turn: Turn,
    pub(super) snapshot: RegionSnapshot,
    /// Of a prewrite.
    begun: Option<Begun>,
}

impl Call<'_> {
    pub(super) async fn prewrite(&self, request: PrewriteRequest) -> Result<Reply, RegionError> {
        let answer = |response| reply(Body::Prewrite(response));
        let newest = Timestamp(request.start_ts.max(request.min_commit_ts).max(request.validated_ts));
        if let Err(refused) = self.check_timestamp(newest).await? {
            return Ok(answer(txn::prewrite_failed(refused)));
        }
        let keys: Vec<Bytes> = request.mutations.iter().map(|m| m.key.clone()).collect();
        if !keys.is_sorted_by(|a, b| a < b) {
            let refused =
                Fault::corrupt(&request.primary, "the keys of a prewrite are not sorted, or not distinct").into();
            return Ok(answer(txn::prewrite_failed(refused)));
        }
        let begun = self.inner.safe_point.begin_write(Timestamp(request.start_ts));
        let stage = Stage { begun: Some(begun), ..self.stage(&keys).await? };
        if let Err(refused) = self.check_age(Timestamp(request.start_ts)).await? {
            let refused = txn::prewrite_too_old(&self.reader(&stage.snapshot), &request, refused);
            let response = refused.unwrap_or_else(|fault| txn::prewrite_failed(fault.into()));
            return Ok(answer(response));
        }
        if request.spill > 0 {
            return self.spill(request, stage).await.map(answer);
        }
        if !request.reads.is_empty() && request.try_one_pc {
            return self.prewrite_read(request, keys, stage).await.map(answer);
        }
        let decides = request.try_one_pc || request.async_commit;
        let (mode, published) = match decides {
            false => (PrewriteMode::Locks, None),
            true => match self.announce_write(&stage.snapshot, keys.clone(), &request).await? {
                (Some(commit_ts), published) if request.try_one_pc => (PrewriteMode::OnePc(commit_ts), Some(published)),
                (Some(min_commit_ts), published) => (PrewriteMode::Async(min_commit_ts), Some(published)),
                (None, _) => (PrewriteMode::Locks, None),
            },
        };
        let (owner, place) = (Timestamp(request.start_ts), place_of(&stage.snapshot));
        let blocker = |m: &Mutation| self.inner.rows.blocker(&m.key, owner, row_lock_of(m.kind()), place);
        let evaluated = txn::prewrite(&self.reader(&stage.snapshot), &request, mode, &blocker);
        match evaluated {
            Ok((batch, response)) => {
                let committed = response.one_pc_commit_ts != 0;
                let freed = committed.then(|| self.inner.rows.freed(owner, &keys)).flatten();
                self.finish(stage, batch, (published, freed)).await.map(|()| answer(response))
            }
            Err(fault) => Ok(answer(txn::prewrite_failed(fault.into()))),
        }
    }

    /// Publishes a 1PC or the locks of an async commit in memory and chooses the timestamp, above every read served here
    /// or by earlier leaders: none, if it has to be a certain one, and that is too low.
    async fn announce_write(
        &self,
        snapshot: &RegionSnapshot,
        keys: Vec<Bytes>,
        request: &PrewriteRequest,
    ) -> Result<(Option<Timestamp>, Published), RegionError> {
        self.know_reads(snapshot).await?;
        let floor = Timestamp(request.start_ts.max(request.min_commit_ts));
        let published = self.inner.concurrency.publish(keys, Timestamp(request.start_ts));
        if request.validated_ts != 0 {
            let exact = Timestamp(request.validated_ts);
            let taken = exact > floor && published.take_commit_ts(exact);
            return Ok((taken.then_some(exact), published));
        }
        let commit_ts = published.choose_commit_ts(floor);
        let commit_ts = if self.inner.plant.has(Planted::SkipMaxTs) { floor.next() } else { commit_ts };
        Ok((Some(commit_ts), published))
    }

    /// Makes `max_ts` cover the reads that earlier leaders have served of the region.
    pub(super) async fn know_reads(&self, snapshot: &RegionSnapshot) -> Result<(), RegionError> {
        let concurrency = &self.inner.concurrency;
        let (region, version) = (snapshot.region.id, snapshot.region.epoch.version);
        let reign = Reign { term: snapshot.term, version };
        if !concurrency.is_synced(region, reign) {
            let fresh = self.within("asking PD for a timestamp", self.inner.pd_time.fresh()).await?;
            let fresh = fresh.map_err(|pd| {
                RegionError::server_busy(&format!("{pd}; for a commit timestamp"), super::BUSY_BACKOFF_MS)
            })?;
            concurrency.sync(region, reign, fresh);
        }
        Ok(())
    }

    pub(super) async fn commit(&self, request: CommitRequest) -> Result<Reply, RegionError> {
        let refuse = |error| CommitResponse { error: Some(error), commit_ts: 0 };
        if let Err(refused) = self.check_timestamp(Timestamp(request.commit_ts)).await? {
            return Ok(reply(Body::Commit(refuse(refused))));
        }
        let ends = Some(Timestamp(request.start_ts));
        let response = self.write(&request.keys, ends, |reader| txn::commit(reader, &request), refuse).await?;
        Ok(reply(Body::Commit(response)))
    }

    pub(super) async fn rollback(&self, request: RollbackRequest) -> Result<Reply, RegionError> {
        let refuse = |error| RollbackResponse { error: Some(error), committed_ts: 0 };
        let ends = Some(Timestamp(request.start_ts));
        let response = self.write(&request.keys, ends, |reader| txn::rollback(reader, &request), refuse).await?;
        Ok(reply(Body::Rollback(response)))
    }

    pub(super) async fn check_txn(&self, request: CheckTxnRequest) -> Result<Reply, RegionError> {
        let refuse = |error| CheckTxnResponse { outcome: None, passed: false, error: Some(error) };
        let keys = std::slice::from_ref(&request.primary);
        let evaluate = |reader: &Reader<'_>| {
            let (batch, response) = txn::check_txn(reader, &request)?;
            let unsaid = response.passed && self.inner.plant.has(Planted::PassUnsaid);
            Ok((if unsaid { Batch::default() } else { batch }, response))
        };
        let response = self.write(keys, None, evaluate, refuse).await?;
        Ok(reply(Body::CheckTxn(response)))
    }

    pub(super) async fn check_secondaries(&self, request: CheckSecondariesRequest) -> Result<Reply, RegionError> {
        let refuse = |error| CheckSecondariesResponse { outcome: None, error: Some(error) };
        let evaluate = |reader: &Reader<'_>| {
            let (batch, response) = txn::check_secondaries(reader, &request)?;
            let batch = if self.inner.plant.has(Planted::LateSecondary) { Batch::default() } else { batch };
            Ok((batch, response))
        };
        let response = self.write(&request.keys, None, evaluate, refuse).await?;
        Ok(reply(Body::CheckSecondaries(response)))
    }

    pub(super) async fn resolve(&self, mut request: ResolveRequest) -> Result<Reply, RegionError> {
        let refuse = |error| ResolveResponse { error: Some(error), ..Default::default() };
        let mut resume_key = Bytes::new();
        if let Some(range) = request.range.take() {
            match self.own_locks(Timestamp(request.start_ts), range.into()).await? {
                Ok((keys, resume)) => (request.keys, resume_key) = (keys, resume),
                Err(fault) => return Ok(reply(Body::Resolve(refuse(fault.into())))),
            }
        }
        if request.neighbours > 0
            && let Err(fault) = self.add_neighbours(&mut request).await?
        {
            return Ok(reply(Body::Resolve(refuse(fault.into()))));
        }
        let ends = Some(Timestamp(request.start_ts));
        let response = self.write(&request.keys, ends, |reader| txn::resolve(reader, &request), refuse).await?;
        Ok(reply(Body::Resolve(ResolveResponse { resume_key, ..response })))
    }

    /// Looks for more locks of the same transaction. Whether they still stand is seen again under latches.
    async fn add_neighbours(&self, request: &mut ResolveRequest) -> Result<Result<(), Fault>, RegionError> {
        let Some(last) = request.keys.last() else { return Ok(Ok(())) };
        let snapshot = self.snapshot().await?;
        let limit = request.neighbours.min(MAX_NEIGHBOURS) as usize;
        let range = KeyRange::new(last.clone(), snapshot.region.range.end.clone());
        Ok(self.reader(&snapshot).locks_of(Timestamp(request.start_ts), &range, limit).map(|found| {
            let known = request.keys.len();
            request.keys.extend(found);
            request.keys[known - 1..].sort_unstable();
            request.keys.dedup();
        }))
    }

    pub(super) async fn heartbeat(&self, request: HeartbeatTxnRequest) -> Result<Reply, RegionError> {
        let refuse = |error| HeartbeatTxnResponse { error: Some(error), ttl_ms: 0 };
        let keys = std::slice::from_ref(&request.primary);
        let response = self.write(keys, None, |reader| txn::heartbeat(reader, &request), refuse).await?;
        Ok(reply(Body::HeartbeatTxn(response)))
    }

    pub(super) async fn unsafe_delete_range(&self, request: UnsafeDeleteRangeRequest) -> Result<Reply, RegionError> {
        let range: KeyRange = request.range.unwrap_or_default().into();
        if range.is_empty() {
            return Ok(reply(Body::UnsafeDeleteRange(UnsafeDeleteRangeResponse {})));
        }
        // A commit that was evaluated before would move values that are gone when it is applied.
        let turn = self.within("waiting for latches", self.inner.turns.take_all()).await?;
        let snapshot = self.snapshot().await?;
        if !snapshot.region.range.covers(&range) {
            return Err(RegionError::key_not_in_region(&range.start, &snapshot.region));
        }
        let mut batch = Batch::default();
        batch.delete_range(Cf::Data, range.start.clone(), range.end.clone());
        batch.delete_range(Cf::Lock, range.start, range.end);
        self.propose(&snapshot, batch, move |_| drop(turn)).await?;
        Ok(reply(Body::UnsafeDeleteRange(UnsafeDeleteRangeResponse {})))
    }

    /// A write command from latches to acknowledgement; with it a transaction that `ends` gives up its row locks there. `refuse`
    /// makes the response of a stored state that can't be read.
    pub(super) async fn write<R>(
        &self,
        keys: &[Bytes],
        ends: Option<Timestamp>,
        evaluate: impl FnOnce(&Reader<'_>) -> Result<(Batch, R), Fault>,
        refuse: impl FnOnce(KeyError) -> R,
    ) -> Result<R, RegionError> {
        if let Err(fault) = check_order(keys) {
            return Ok(refuse(fault.into()));
        }
        let stage = self.stage(keys).await?;
        let evaluated = evaluate(&self.reader(&stage.snapshot));
        match evaluated {
            Ok((batch, response)) => {
                let freed = ends.and_then(|owner| self.inner.rows.freed(owner, keys));
                self.finish(stage, batch, (None, freed)).await.map(|()| response)
            }
            Err(fault) => {
                tracing::error!(region = %self.target.region, %fault, "stored transactions can't be read");
                Ok(refuse(fault.into()))
            }
        }
    }

    async fn stage(&self, keys: &[Bytes]) -> Result<Stage, RegionError> {
        let turn = self.within("waiting for latches", self.inner.turns.take(keys)).await?;
        let snapshot = self.snapshot().await?;
        check_keys(&snapshot.region, keys.iter().map(|k| k.as_ref()))?;
        Ok(Stage { turn, snapshot, begun: None })
    }

    pub(super) fn reader<'s>(&self, snapshot: &'s RegionSnapshot) -> Reader<'s> {
        Reader::new(snapshot.engine.as_ref())
    }

    pub(super) async fn finish(
        &self,
        stage: Stage,
        batch: Batch,
        (published, freed): (Option<Published>, Option<Freed>),
    ) -> Result<(), RegionError> {
        if batch.is_empty() {
            return Ok(());
        }
        let Stage { turn, snapshot, begun } = stage;
        let planted = self.inner.plant.has(Planted::FreeUnapplied);
        let then = move |applied| {
            // In this order: the next holder of the latches must not meet this write in flight, and whoever gets the row
            // locks finds the latches free.
            drop(published);
            drop(turn);
            // Refused, by a split for instance, it comes again: its rows must not be somebody else's by then.
            if let Some(freed) = freed.filter(|_| applied || planted) {
                freed.release();
            }
            drop(begun);
        };
        self.propose(&snapshot, batch, then).await
    }

    /// Replicates and applies; `then` holds what must be held until the fate of the batch is known, and is called with it.
    async fn propose(
        &self,
        snapshot: &RegionSnapshot,
        batch: Batch,
        then: impl FnOnce(bool) + Send + 'static,
    ) -> Result<(), RegionError> {
        let inner = self.inner;
        let target = Target { term: Some(snapshot.term), ..self.target };
        let proposal = Proposal::start(inner.store.clone(), inner.spawn.clone(), target, batch, then);
        match self.within("replicating", proposal).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ProposeError::Region(error))) => Err(error),
            Ok(Err(ProposeError::Unknown(why))) => Err(RegionError::outcome_unknown(why)),
            Err(late) => Err(RegionError::outcome_unknown(late.message)),
        }
    }
}

/// The row lock that a write stands for when its transaction has not taken one.
pub(super) fn row_lock_of(kind: MutationKind) -> RowLockMode {
    match kind {
        MutationKind::Put => RowLockMode::NoKeyUpdate,
        MutationKind::Insert | MutationKind::Delete | MutationKind::Lock => RowLockMode::Update,
    }
}

/// A key that comes twice would be decided on twice by the same view: its lock would be moved twice, for example.
fn check_order(keys: &[Bytes]) -> Result<(), Fault> {
    match keys.windows(2).find(|pair| pair[0] >= pair[1]) {
        Some(pair) => Err(Fault::corrupt(&pair[1], "the keys of a request are not sorted, or not distinct")),
        None => Ok(()),
    }
}
