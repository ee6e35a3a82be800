//! Spill: a transaction too large for its gateway leaves a part of its writes as locks, and goes on; and takes back what it wrote
//! behind a place. All keys of a request, or none. PURE.
//!
//! ```text
//!   key not locked        the checks of a prewrite, then a lock with the write
//!   own lock, spill 3     request of spill 3 or earlier: it is done, or was overtaken
//!                         request of spill 4: the write replaces the one that stands, which is kept if it may be gone back to
//! ```
//!
//! What decides is the primary's commit, as in two phases: from there on these are locks like others.

use bytes::Bytes;
use proto::{
    Batch, Cf, Timestamp,
    wire::{
        Aborted, AlreadyExists, DropGenerationsRequest, Mutation, MutationKind, PrewriteRequest, PrewriteResponse,
        TooMuchKept, key_error::Kind,
    },
};

use crate::mvcc::{
    Fault, Lock, Reader, WriteKind,
    spilled::{Earlier, MAX_EARLIER_BYTES, Spilled},
};

use super::{
    key_error,
    prewrite::{Obstacle, RowBlocker, obstacle},
    prewrite_failed,
};

/// Evaluates a spill.
pub fn spill(
    reader: &Reader<'_>,
    request: &PrewriteRequest,
    row_blocker: RowBlocker<'_>,
) -> Result<(Batch, PrewriteResponse), Fault> {
    let start_ts = Timestamp(request.start_ts);
    let refuse = |kind| Ok((Batch::default(), prewrite_failed(key_error(kind))));
    let mut batch = Batch::default();
    for mutation in &request.mutations {
        let key = &mutation.key;
        let lock = match reader.lock(key)?.filter(|lock| lock.start_ts == start_ts) {
            Some(own) => match over(reader, own, request, mutation)? {
                Over::Stands => continue,
                Over::Replaced(lock) => lock,
                Over::Refused(kind) => return refuse(kind),
            },
            None => match obstacle(reader, request, &oldest(mutation), row_blocker)? {
                None => first(request, mutation),
                // Whoever resolves it has ended it: it was given up before this came.
                Some(_) if reader.commit_of(key, start_ts)?.is_some() => {
                    return refuse(Kind::Aborted(Aborted { start_ts: start_ts.0 }));
                }
                Some(Obstacle::Error(kind)) => return refuse(kind),
                Some(Obstacle::OwnLock(_)) => return Err(Fault::corrupt(key, "a lock that was not there is there")),
            },
        };
        let mut lock = lock;
        if lock.spilled.as_mut().map_or(0, |spilled| spilled.prune(&request.marks)) > MAX_EARLIER_BYTES {
            return refuse(Kind::TooMuchKept(TooMuchKept { key: key.clone(), limit: MAX_EARLIER_BYTES as u64 }));
        }
        batch.put(Cf::Lock, key.clone(), lock.encode());
    }
    Ok((batch, PrewriteResponse::default()))
}

/// Evaluates the taking back of what was written behind a place, under `keys`.
pub fn drop_generations(reader: &Reader<'_>, request: &DropGenerationsRequest, keys: &[Bytes]) -> Result<Batch, Fault> {
    let mut batch = Batch::default();
    for key in keys {
        let Some(lock) = reader.lock(key)?.filter(|lock| lock.start_ts.0 == request.start_ts) else { continue };
        if let Some(back) = lock.back_to(request.keep, request.spill) {
            batch.put(Cf::Lock, key.clone(), back.encode());
        }
    }
    Ok(batch)
}

/// What becomes of an own lock.
enum Over {
    Stands,
    Replaced(Lock),
    Refused(Kind),
}

fn first(request: &PrewriteRequest, mutation: &Mutation) -> Lock {
    let (kind, value) = write_of(mutation);
    let start_ts = Timestamp(request.start_ts);
    let earlier = mutation.earlier.iter().map(earlier_of).collect();
    Lock {
        kind,
        start_ts,
        ttl_ms: request.ttl_ms,
        min_commit_ts: Timestamp(request.min_commit_ts).max(start_ts.next()),
        primary: request.primary.clone(),
        value,
        secondaries: None,
        spilled: Some(Spilled { spill: request.spill, generation: mutation.generation, earlier }),
    }
}

fn over(reader: &Reader<'_>, own: Lock, request: &PrewriteRequest, mutation: &Mutation) -> Result<Over, Fault> {
    let key = &mutation.key;
    let Some(mut spilled) = own.spilled.clone() else {
        return Err(Fault::corrupt(key, "one transaction has locks of two kinds"));
    };
    // A lock says nothing that the write which stands does not say.
    if spilled.spill >= request.spill || mutation.kind() == MutationKind::Lock {
        return Ok(Over::Stands);
    }
    if oldest(mutation).kind() == MutationKind::Insert {
        let exists = match own.kind {
            WriteKind::Put => true,
            WriteKind::Delete => false,
            WriteKind::Lock => reader.exists(key)?,
        };
        if exists {
            return Ok(Over::Refused(Kind::AlreadyExists(AlreadyExists { key: key.clone() })));
        }
    }
    spilled.earlier.push(Earlier { generation: spilled.generation, kind: own.kind, value: own.value.clone() });
    spilled.earlier.extend(mutation.earlier.iter().map(earlier_of));
    let (kind, value) = write_of(mutation);
    let spilled = Spilled { spill: request.spill, generation: mutation.generation, earlier: spilled.earlier };
    Ok(Over::Replaced(Lock { kind, value, spilled: Some(spilled), ..own }))
}

/// What the transaction did to the key first: what was there before matters to that alone.
fn oldest(mutation: &Mutation) -> Mutation {
    let kind = mutation.earlier.first().map_or(mutation.kind, |earlier| earlier.kind);
    Mutation { kind, key: mutation.key.clone(), seen_ts: mutation.seen_ts, ..Mutation::default() }
}

fn write_of(mutation: &Mutation) -> (WriteKind, Bytes) {
    match mutation.kind() {
        MutationKind::Put | MutationKind::Insert => (WriteKind::Put, mutation.value.clone()),
        MutationKind::Delete => (WriteKind::Delete, Bytes::new()),
        MutationKind::Lock => (WriteKind::Lock, Bytes::new()),
    }
}

fn earlier_of(earlier: &proto::wire::EarlierWrite) -> Earlier {
    let kind = match earlier.kind() {
        MutationKind::Put | MutationKind::Insert => WriteKind::Put,
        MutationKind::Delete => WriteKind::Delete,
        MutationKind::Lock => WriteKind::Lock,
    };
    Earlier { generation: earlier.generation, kind, value: earlier.value.clone() }
}
