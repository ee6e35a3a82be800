//! Prewrite: puts a lock with the new value on every key, if nobody has written them since the transaction's
//! snapshot. As 1PC it writes the versions at once; for an async commit its locks promise a timestamp that stays above
//! every read served here. All keys of a request, or none. PURE.

use bytes::Bytes;
use proto::{
    Batch, Cf, Timestamp,
    wire::{
        Aborted, AlreadyExists, CommitFenced, KeyError, Mutation, MutationKind, PrewriteRequest, PrewriteResponse,
        RowLocked, WriteConflict, key_error::Kind,
    },
};

use crate::{
    codec,
    mvcc::{Fault, Lock, Reader, WriteKind, version::record},
};

use super::key_error;

/// What a prewrite leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrewriteMode {
    /// Locks, to be committed later.
    Locks,
    /// Versions at this timestamp: the request holds all keys of the transaction.
    OnePc(Timestamp),
    /// Locks that, with those of the other regions, are the commit, at this timestamp or later.
    Async(Timestamp),
}

/// A lock that an earlier sending has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnLock {
    /// The transaction may commit from there on.
    min_commit_ts: Timestamp,
    /// It is one of those that are the commit when all stand.
    decides: bool,
}

/// What stands in the way of a key.
pub(super) enum Obstacle {
    /// The transaction has its lock here already.
    OwnLock(OwnLock),
    /// This.
    Error(Kind),
}

/// Who has a row lock that excludes a mutation.
pub type RowBlocker<'a> = &'a dyn Fn(&Mutation) -> Option<Timestamp>;

/// Evaluates a prewrite. Answers with the commit timestamp when the transaction turns out to be committed: the
/// request was carried out before and its answer was lost.
pub fn prewrite(
    reader: &Reader<'_>,
    request: &PrewriteRequest,
    mode: PrewriteMode,
    row_blocker: RowBlocker<'_>,
) -> Result<(Batch, PrewriteResponse), Fault> {
    let start_ts = Timestamp(request.start_ts);
    let mut own_locks = vec![None; request.mutations.len()];
    for (mutation, own_lock) in request.mutations.iter().zip(&mut own_locks) {
        match obstacle(reader, request, mutation, row_blocker)? {
            None => {}
            Some(Obstacle::OwnLock(lock)) => *own_lock = Some(lock),
            Some(Obstacle::Error(kind)) => {
                let response = match reader.commit_of(&mutation.key, start_ts)? {
                    Some(commit_ts) => committed(commit_ts),
                    None => refused(kind),
                };
                return Ok((Batch::default(), response));
            }
        }
    }
    // An earlier sending fell back to locks: it goes on with locks.
    let mode = match mode {
        PrewriteMode::OnePc(_) if own_locks.iter().any(Option::is_some) => PrewriteMode::Locks,
        mode => mode,
    };
    let at_least = match mode {
        PrewriteMode::Locks => Timestamp(request.min_commit_ts).max(start_ts.next()),
        PrewriteMode::OnePc(commit_ts) | PrewriteMode::Async(commit_ts) => commit_ts,
    };
    if request.max_commit_ts != 0 && at_least.0 >= request.max_commit_ts {
        let fenced = CommitFenced { max_commit_ts: request.max_commit_ts, needed_commit_ts: at_least.0 };
        return Ok((Batch::default(), refused(Kind::CommitFenced(fenced))));
    }
    let mut batch = Batch::default();
    // What others have read in the locks that stand is the promise, not what would be chosen now.
    let new = OwnLock { min_commit_ts: at_least, decides: matches!(mode, PrewriteMode::Async(_)) };
    let (mut min_commit_ts, mut decided) = (Timestamp::ZERO, true);
    for (mutation, own_lock) in request.mutations.iter().zip(own_locks) {
        let stands = own_lock.unwrap_or(new);
        min_commit_ts = min_commit_ts.max(stands.min_commit_ts);
        decided &= stands.decides;
        if own_lock.is_none() {
            write(&mut batch, request, mutation, mode, at_least);
        }
    }
    let response = match mode {
        PrewriteMode::OnePc(commit_ts) => committed(commit_ts),
        PrewriteMode::Locks | PrewriteMode::Async(_) => {
            PrewriteResponse { min_commit_ts: min_commit_ts.0, undecided: !decided, ..Default::default() }
        }
    };
    Ok((batch, response))
}

/// The answer to a prewrite that is too old to be looked at, for the reason `refused`: unless the request was carried out
/// before, and committed.
pub fn prewrite_too_old(
    reader: &Reader<'_>,
    request: &PrewriteRequest,
    refused: KeyError,
) -> Result<PrewriteResponse, Fault> {
    for mutation in &request.mutations {
        if let Some(commit_ts) = reader.commit_of(&mutation.key, Timestamp(request.start_ts))? {
            return Ok(committed(commit_ts));
        }
    }
    Ok(prewrite_failed(refused))
}

/// The answer to a prewrite that was refused.
pub fn prewrite_failed(error: KeyError) -> PrewriteResponse {
    PrewriteResponse { errors: vec![error], ..Default::default() }
}

/// What is in the way of a mutation, if anything is.
pub(super) fn obstacle(
    reader: &Reader<'_>,
    request: &PrewriteRequest,
    mutation: &Mutation,
    row_blocker: RowBlocker<'_>,
) -> Result<Option<Obstacle>, Fault> {
    let (key, start_ts) = (&mutation.key, Timestamp(request.start_ts));
    if let Some(lock) = reader.lock(key)? {
        return Ok(Some(match lock.start_ts == start_ts {
            // Only one that must commit at a given timestamp falls back to the other kind.
            true if lock.secondaries.is_some() != request.async_commit
                && !request.try_one_pc
                && (lock.secondaries.is_some() || request.validated_ts == 0) =>
            {
                return Err(Fault::corrupt(key, "one transaction has locks of two kinds"));
            }
            true => {
                let (min_commit_ts, decides) = (lock.min_commit_ts, lock.secondaries.is_some());
                Obstacle::OwnLock(OwnLock { min_commit_ts, decides })
            }
            false => Obstacle::Error(Kind::Locked(lock.to_wire(key))),
        }));
    }
    // Only the primary's record decides: a late lock elsewhere is found, and resolved, through its primary. In an async
    // commit every key's does.
    let decides = *key == request.primary || request.async_commit;
    if decides && reader.is_rolled_back(key, start_ts)? {
        return Ok(Some(Obstacle::Error(Kind::Aborted(Aborted { start_ts: start_ts.0 }))));
    }
    if let Some(owner) = row_blocker(mutation) {
        return Ok(Some(Obstacle::Error(Kind::RowLocked(RowLocked { key: key.clone(), owner: owner.0 }))));
    }
    let Some(newest) = reader.newest(key)? else { return Ok(None) };
    if mutation.kind() == MutationKind::Insert {
        let exists = match newest.kind {
            WriteKind::Put => true,
            WriteKind::Delete => false,
            WriteKind::Lock => reader.exists(key)?,
        };
        // Also when it appeared after the snapshot: running the transaction again would end the same way.
        if exists {
            return Ok(Some(Obstacle::Error(Kind::AlreadyExists(AlreadyExists { key: key.clone() }))));
        }
    }
    let seen_ts = if mutation.seen_ts == 0 { start_ts } else { Timestamp(mutation.seen_ts) };
    if newest.commit_ts > seen_ts {
        let conflict = WriteConflict {
            key: key.clone(),
            start_ts: start_ts.0,
            conflict_start_ts: newest.start_ts.0,
            conflict_commit_ts: newest.commit_ts.0,
        };
        return Ok(Some(Obstacle::Error(Kind::Conflict(conflict))));
    }
    Ok(None)
}

fn write(
    batch: &mut Batch,
    request: &PrewriteRequest,
    mutation: &Mutation,
    mode: PrewriteMode,
    min_commit_ts: Timestamp,
) {
    let (kind, value) = match mutation.kind() {
        MutationKind::Put | MutationKind::Insert => (WriteKind::Put, mutation.value.clone()),
        MutationKind::Delete => (WriteKind::Delete, Bytes::new()),
        MutationKind::Lock => (WriteKind::Lock, Bytes::new()),
    };
    let start_ts = Timestamp(request.start_ts);
    match mode {
        PrewriteMode::OnePc(commit_ts) => {
            batch.put(Cf::Data, codec::versioned(&mutation.key, commit_ts), record(kind, start_ts, &value));
        }
        PrewriteMode::Locks | PrewriteMode::Async(_) => {
            let (ttl_ms, primary) = (request.ttl_ms, request.primary.clone());
            let secondaries = matches!(mode, PrewriteMode::Async(_)).then(|| match mutation.key == primary {
                true => request.secondaries.clone(),
                false => Vec::new(),
            });
            let spilled = None;
            let lock = Lock { kind, start_ts, ttl_ms, min_commit_ts, primary, value, secondaries, spilled };
            batch.put(Cf::Lock, mutation.key.clone(), lock.encode());
        }
    }
}

fn committed(commit_ts: Timestamp) -> PrewriteResponse {
    PrewriteResponse { one_pc_commit_ts: commit_ts.0, ..Default::default() }
}

fn refused(kind: Kind) -> PrewriteResponse {
    prewrite_failed(key_error(kind))
}
