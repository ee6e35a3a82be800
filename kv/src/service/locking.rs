//! Row locks: taking them, with what the rows hold; asking whether they still stand; giving them up.
//!
//! ```text
//!   claim row after row, waiting in its queue ─► latches ─► snapshot ─► newest versions ─► reply, latches let go
//!                                                (writes that passed before the claim are applied then)
//! ```
//!
//! Where a written lock stands on a row that was just granted, its owner is put before the claimant: it is waited for in the row's
//! queue like any other. Mostly it has committed, has given its row locks up, and that commit will be here in a moment. Otherwise,
//! and at once if it has spilled, the claimant is told of the lock, and asks its primary.
//!
//! A request waits no longer than [`SLICE`] and is then told to come again: its place in the queue stays, and a leader
//! that is none any more is noticed.

use std::{collections::BTreeSet, pin::pin, time::Duration};

use bytes::Bytes;
use futures::future::{Either, select};
use proto::{
    Timestamp,
    wire::{
        KeyError, LockRowsRequest, LockRowsResponse, LockedRow, RegionError, RowLockPolicy, RowLocked, RowLocksAction,
        RowLocksRequest, RowLocksResponse, TooManyRowLocks, key_error::Kind, kv_response::Body,
    },
};
use raftstore::RegionSnapshot;

use crate::{
    Reply,
    mvcc::{Fault, Lock, Reader, spilled::OwnWrite},
    planted::Planted,
    row_locks::{Claim, MAX_ROWS, Place, Waiter},
};

use super::{
    Call, check_keys,
    read::reply,
    rows::{Taken, Woken},
};

/// Rows of one request whatever the caller says.
const MAX_LOCK_KEYS: usize = 4096;
/// Locks that a store lists at most: they go into one message.
const MAX_LISTED: usize = 10_000;
/// Transactions that one waits for behind a row it holds; a deadlock with those beyond is found when some of these have ended.
const MAX_AWAITED: usize = 1_000;
/// How long a written lock is waited for in a row's queue before the claimant is told of it.
const SOON: Duration = Duration::from_millis(50);
/// How long the owner of a spilled one goes before it, who is told and asks the primary meanwhile.
const SPILLED_STANDS_IN: Duration = Duration::from_secs(2);
/// How long a request waits at most before the caller is asked to come again.
const SLICE: Duration = Duration::from_millis(500);
/// How long a transaction may be silent and keep its locks, whatever the caller says.
const MAX_TTL: Duration = Duration::from_secs(60);

/// What became of one row.
enum Row {
    Held,
    Skipped,
    /// Come again.
    Waiting,
    Refused(Kind),
}

pub(super) fn place_of(snapshot: &RegionSnapshot) -> Place {
    Place { region: snapshot.region.id, term: snapshot.term }
}

impl Call<'_> {
    pub(super) async fn lock_rows(&self, request: LockRowsRequest) -> Result<Reply, RegionError> {
        if let Err(refused) = self.check_timestamp(Timestamp(request.start_ts)).await? {
            return Ok(locked(LockRowsResponse { error: Some(refused), ..Default::default() }));
        }
        let keys = &request.keys;
        if keys.len() > MAX_LOCK_KEYS || !keys.is_sorted_by(|a, b| a < b) {
            let reason = "the keys of a lock request are too many, not sorted, or not distinct";
            let refused = Fault::corrupt(b"", reason).into();
            return Ok(locked(LockRowsResponse { error: Some(refused), ..Default::default() }));
        }
        let (place, own) = {
            let snapshot = self.snapshot().await?;
            check_keys(&snapshot.region, keys.iter().map(|key| key.as_ref()))?;
            (place_of(&snapshot), self.spilled_rows(&snapshot, &request))
        };
        let own = match own {
            Ok(own) => own,
            Err(fault) => return Ok(locked(LockRowsResponse { error: Some(fault.into()), ..Default::default() })),
        };
        let mut skipped = vec![false; keys.len()];
        for (key, skipped) in keys.iter().zip(&mut skipped).filter(|(key, _)| !own.contains(*key)) {
            match self.take_row(key, place, &request, SLICE).await? {
                Row::Held => {}
                Row::Skipped => *skipped = true,
                Row::Waiting => return Ok(locked(LockRowsResponse { waiting: true, ..Default::default() })),
                Row::Refused(kind) => {
                    let error = Some(KeyError { kind: Some(kind) });
                    return Ok(locked(LockRowsResponse { error, ..Default::default() }));
                }
            }
        }
        let mut before = None;
        loop {
            let (key, lock) = match self.read_locked(&request, &skipped, &own).await? {
                Ok(response) => return Ok(locked(response)),
                Err(met) => met,
            };
            let met = Some((key.clone(), lock.start_ts));
            let waits = request.policy() == RowLockPolicy::Wait && lock.spilled.is_none() && before != met;
            let told = match waits {
                true => match self.take_row(&key, place, &request, SOON).await? {
                    Row::Held => None,
                    Row::Refused(kind) => Some(kind),
                    Row::Waiting | Row::Skipped => Some(Kind::Locked(lock.to_wire(&key))),
                },
                false => Some(Kind::Locked(lock.to_wire(&key))),
            };
            if let Some(kind) = told {
                let error = Some(KeyError { kind: Some(kind) });
                return Ok(locked(LockRowsResponse { error, ..Default::default() }));
            }
            before = met;
        }
    }

    /// Rows on which the transaction has a written lock already: it needs no other, and must not wait for those who wait for it.
    fn spilled_rows(&self, snapshot: &RegionSnapshot, request: &LockRowsRequest) -> Result<BTreeSet<Bytes>, Fault> {
        let mut own = BTreeSet::new();
        if request.spilled {
            let reader = self.reader(snapshot);
            for key in &request.keys {
                if reader.lock(key)?.is_some_and(|lock| lock.start_ts.0 == request.start_ts) {
                    own.insert(key.clone());
                }
            }
        }
        Ok(own)
    }

    async fn take_row(
        &self,
        key: &Bytes,
        place: Place,
        request: &LockRowsRequest,
        patience: Duration,
    ) -> Result<Row, RegionError> {
        let (rows, clock) = (&self.inner.rows, &self.inner.clock);
        let claim = Claim {
            owner: Timestamp(request.start_ts),
            mode: request.mode(),
            until: clock.now() + Duration::from_millis(request.ttl_ms).min(MAX_TTL) + SLICE,
            label: request.label.clone(),
            twin: Timestamp(request.twin),
        };
        let mut waiting = match rows.claim(key, place, claim) {
            Taken::Held => return Ok(Row::Held),
            Taken::Full => {
                return Ok(Row::Refused(Kind::TooManyRowLocks(TooManyRowLocks { limit: MAX_ROWS as u64 })));
            }
            Taken::Waits(waiting) => waiting,
        };
        match request.policy() {
            RowLockPolicy::Wait => {}
            RowLockPolicy::Skip => {
                waiting.give_up();
                return Ok(Row::Skipped);
            }
            RowLockPolicy::Refuse => {
                waiting.give_up();
                return Ok(Row::Refused(Kind::RowLocked(RowLocked { key: key.clone(), owner: 0 })));
            }
        }
        // Half of the time that is left: the answer has to be back before the caller takes this store for dead.
        let slice = (self.deadline.since(clock.now()) / 2).min(patience);
        let woken = pin!(waiting.woken());
        Ok(match select(woken, clock.sleep(slice)).await {
            Either::Left((Some(Woken::Granted), _)) => Row::Held,
            Either::Left((Some(Woken::Deadlock(deadlock)), _)) => Row::Refused(Kind::Deadlock(deadlock)),
            Either::Left((None, _)) | Either::Right(_) => Row::Waiting,
        })
    }

    /// The newest versions of the rows that are held now, or a written lock there, whose owner goes first now. Writes under way
    /// there are waited for: they began before.
    async fn read_locked(
        &self,
        request: &LockRowsRequest,
        skipped: &[bool],
        own: &BTreeSet<Bytes>,
    ) -> Result<Result<LockRowsResponse, (Bytes, Lock)>, RegionError> {
        let owner = Timestamp(request.start_ts);
        let held: Vec<Bytes> =
            request.keys.iter().zip(skipped).filter(|(_, skipped)| !**skipped).map(|(key, _)| key.clone()).collect();
        let turn = self.within("waiting for latches", self.inner.turns.take(&held)).await?;
        let snapshot = self.snapshot().await?;
        // In another term somebody else may have led in between, and these locks are worth nothing.
        let claimed: Vec<Bytes> = held.iter().filter(|key| !own.contains(*key)).cloned().collect();
        if !self.inner.rows.exclude(&claimed, owner, place_of(&snapshot)) {
            return Ok(Ok(LockRowsResponse { waiting: true, ..Default::default() }));
        }
        check_keys(&snapshot.region, held.iter().map(|key| key.as_ref()))?;
        let read = read_rows(&Reader::new(snapshot.engine.as_ref()), owner, &request.keys, skipped);
        let rows = match read {
            Ok(Ok(rows)) => rows,
            Ok(Err((key, lock))) => {
                // Under the latch still: its commit comes after this, and calls the claimant.
                match (&lock.spilled, request.policy()) {
                    (Some(_), _) => self.inner.rows.yield_to(lock.start_ts, &key, owner, SPILLED_STANDS_IN),
                    (None, RowLockPolicy::Wait) => self.inner.rows.yield_to(lock.start_ts, &key, owner, SOON),
                    // Who does not wait must not find it there once the lock is resolved.
                    (None, RowLockPolicy::Refuse | RowLockPolicy::Skip) => {}
                }
                return Ok(Err((key, lock)));
            }
            Err(fault) => return Ok(Ok(LockRowsResponse { error: Some(fault.into()), ..Default::default() })),
        };
        drop(turn);
        if !request.absent {
            let missing = request.keys.iter().zip(&rows).filter(|(_, row)| !row.exists && !row.skipped);
            let missing: Vec<Bytes> = missing.map(|(key, _)| key.clone()).collect();
            if !missing.is_empty() {
                self.inner.rows.release(owner, &missing);
            }
        }
        let Place { region, term } = place_of(&snapshot);
        Ok(Ok(LockRowsResponse { rows, region_id: region.0, term: term.0, ..Default::default() }))
    }

    pub(super) async fn row_locks(&self, request: RowLocksRequest) -> Result<Reply, RegionError> {
        let answer = |held| Ok(reply(Body::RowLocks(RowLocksResponse { held, ..Default::default() })));
        let owner = Timestamp(request.start_ts);
        match request.action() {
            RowLocksAction::Release => self.inner.rows.release(owner, &request.keys),
            RowLocksAction::List => {
                let locks = self.inner.rows.list(MAX_LISTED);
                return Ok(reply(Body::RowLocks(RowLocksResponse { locks, ..Default::default() })));
            }
            RowLocksAction::Await => return Ok(self.wait_behind(request).await),
            RowLocksAction::Keep => {
                let ttl = Duration::from_millis(request.ttl_ms).min(MAX_TTL);
                self.inner.rows.keep(&request.transactions, self.inner.clock.now() + ttl);
            }
            RowLocksAction::Check => {
                let snapshot = self.snapshot().await?;
                check_keys(&snapshot.region, request.keys.iter().map(|key| key.as_ref()))?;
                let place = place_of(&snapshot);
                // Granted in another term, it may have been somebody else's in between, though it is the owner's again.
                let of_now =
                    request.terms.len() == request.keys.len() && request.terms.iter().all(|t| *t == place.term.0);
                let held = of_now && self.inner.rows.holds(&request.keys, owner, place);
                return answer(held || self.inner.plant.has(Planted::TrustLostRowLocks));
            }
        }
        answer(true)
    }
}

impl Call<'_> {
    async fn wait_behind(&self, request: RowLocksRequest) -> Reply {
        let (rows, clock) = (&self.inner.rows, &self.inner.clock);
        let owner = Timestamp(request.start_ts);
        let others: Vec<Timestamp> = request.transactions.into_iter().take(MAX_AWAITED).map(Timestamp).collect();
        let who = Waiter { label: request.label, twin: Timestamp(request.twin) };
        let behind = request.keys.first().and_then(|key| rows.wait_behind(owner, key, (others, who)));
        let slice = (self.deadline.since(clock.now()) / 2).min(SLICE);
        let deadlock = match behind {
            // Its place went with a leader; whoever waits so will ask again.
            None => {
                clock.sleep(slice).await;
                None
            }
            Some(mut behind) => match select(pin!(behind.deadlock()), clock.sleep(slice)).await {
                Either::Left((Some(deadlock), _)) => Some(KeyError { kind: Some(Kind::Deadlock(deadlock)) }),
                Either::Left((None, _)) | Either::Right(_) => None,
            },
        };
        reply(Body::RowLocks(RowLocksResponse { held: true, locks: Vec::new(), error: deadlock }))
    }
}

fn read_rows(
    reader: &Reader<'_>,
    owner: Timestamp,
    keys: &[Bytes],
    skipped: &[bool],
) -> Result<Result<Vec<LockedRow>, (Bytes, Lock)>, Fault> {
    let mut rows = Vec::with_capacity(keys.len());
    for (key, skipped) in keys.iter().zip(skipped) {
        if *skipped {
            rows.push(LockedRow { skipped: true, ..Default::default() });
            continue;
        }
        let lock = reader.lock(key)?;
        if let Some(lock) = lock.as_ref().filter(|lock| lock.start_ts != owner) {
            return Ok(Err((key.clone(), lock.clone())));
        }
        let (newest, stored) = reader.newest_value(key)?;
        let own = lock.is_some();
        let value = match lock.map_or(OwnWrite::Unchanged, |lock| lock.own(u64::MAX)) {
            OwnWrite::Value(value) => Some(value),
            OwnWrite::Gone => None,
            OwnWrite::Unchanged => stored,
        };
        rows.push(LockedRow {
            exists: value.is_some(),
            value: value.unwrap_or_default(),
            commit_ts: newest.0,
            skipped: false,
            own,
        });
    }
    Ok(Ok(rows))
}

fn locked(response: LockRowsResponse) -> Reply {
    reply(Body::LockRows(response))
}
