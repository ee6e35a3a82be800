//! Reads: get and scan.

use bytes::{Bytes, BytesMut};
use proto::{
    KeyRange, Timestamp,
    wire::{
        BadTimestamp, FindLocksRequest, FindLocksResponse, GetRequest, GetResponse, KeyError, KeyValue, KvResponse,
        OwnWrites, RegionError, ScanRequest, ScanResponse, key_error::Kind, kv_response::Body,
    },
};
use raftstore::RegionSnapshot;

use crate::{
    Reply, ScanChunk,
    concurrency::InFlight,
    mvcc::{
        Fault, Reader, Seen,
        scan::{PageEnd, ScanSpec, scan_page},
    },
    planted::Planted,
};

use super::{Call, check_keys};

/// Bytes of a page when the caller does not say.
const DEFAULT_PAGE_BYTES: u64 = 1 << 20;
/// Bytes of a page whatever the caller says: with its framing it stays below the size of a message.
const MAX_PAGE_BYTES: u64 = 4 << 20;
/// Keys of a get whatever the caller says.
const MAX_GET_KEYS: usize = 4096;
/// Records of the lock column family that one request looks at.
const MAX_LOCKS_VISITED: usize = 4096;
/// Rows of a page are cut from pieces of memory of this size: one allocation for many rows.
const ARENA_BYTES: usize = 64 << 10;

impl Call<'_> {
    pub(super) async fn get(&self, request: GetRequest) -> Result<Reply, RegionError> {
        let read_ts = Timestamp(request.read_ts);
        let newest = read_ts == Timestamp::ZERO;
        if request.keys.len() > MAX_GET_KEYS || (newest && request.keys.len() != 1) {
            return Ok(get_refused(bad_timestamp(
                read_ts,
                "the newest version is read of one key, a snapshot of 4096 at most",
            )));
        }
        if self.any_replica
            && !newest
            && let Some(reply) = self.get_past(&request).await?
        {
            return Ok(reply);
        }
        if !newest && let Err(refused) = self.announce_read(read_ts, |c, ts| c.in_flight_on(&request.keys, ts)).await? {
            return Ok(get_refused(refused));
        }
        let snapshot = self.snapshot().await?;
        check_keys(&snapshot.region, request.keys.iter().map(|k| k.as_ref()))?;
        if !newest && let Err(refused) = self.check_age(read_ts).await? {
            return Ok(get_refused(refused));
        }
        let read_ts = if newest { Timestamp::MAX } else { read_ts };
        let seen = seen(request.own, request.passed);
        Ok(match self.read_keys(&snapshot, request.keys, read_ts, &seen) {
            Ok(Ok(pairs)) => reply(Body::Get(GetResponse { pairs, error: None })),
            Ok(Err(error)) => get_refused(error),
            Err(fault) => get_refused(fault.into()),
        })
    }

    pub(super) fn read_keys(
        &self,
        snapshot: &RegionSnapshot,
        keys: Vec<Bytes>,
        read_ts: Timestamp,
        seen: &Seen,
    ) -> Result<Result<Vec<KeyValue>, KeyError>, Fault> {
        let reader = Reader::new(snapshot.engine.as_ref());
        let mut pairs = Vec::with_capacity(keys.len());
        for key in keys {
            let read = match self.inner.plant.has(Planted::IgnoreLocks) {
                true => Ok(reader.get(&key, read_ts)?),
                false => reader.read(&key, read_ts, seen)?,
            };
            match read {
                Ok(None) => {}
                Ok(Some(value)) => pairs.push(KeyValue { key, value }),
                Err(lock) => return Ok(Err(KeyError { kind: Some(Kind::Locked(lock)) })),
            }
        }
        Ok(Ok(pairs))
    }

    pub(super) async fn scan(&self, request: ScanRequest) -> Result<Reply, RegionError> {
        let read_ts = Timestamp(request.read_ts);
        let range: KeyRange = request.range.clone().unwrap_or_default().into();
        if range.is_empty() {
            return Ok(page_reply(PageEnd::Done, 0, Vec::new()));
        }
        if self.any_replica
            && let Some(reply) = self.scan_past(&range, &request).await?
        {
            return Ok(reply);
        }
        let announced = self.announce_read(read_ts, |c, ts| c.in_flight_in(&range, ts)).await?;
        if let Err(refused) = announced {
            return Ok(scan_refused(refused));
        }
        let snapshot = self.snapshot().await?;
        if !snapshot.region.range.covers(&range) {
            return Err(RegionError::key_not_in_region(&range.start, &snapshot.region));
        }
        if let Err(refused) = self.check_age(read_ts).await? {
            return Ok(scan_refused(refused));
        }
        Ok(self.page(&snapshot, &range, &request))
    }

    pub(super) fn page(&self, snapshot: &RegionSnapshot, range: &KeyRange, request: &ScanRequest) -> Reply {
        let seen = seen(request.own, request.passed.clone());
        let page = match request.pushdown.is_empty() {
            true => plain_page(snapshot, range, request, &seen),
            false => self.pushed_page(snapshot, range, request, &seen),
        };
        page.unwrap_or_else(|fault| scan_refused(fault.into()))
    }

    /// Locks as they stand now. Writes under way are waited for only when they are older than a safe point.
    pub(super) async fn find_locks(&self, request: FindLocksRequest) -> Result<Reply, RegionError> {
        let range: KeyRange = request.range.unwrap_or_default().into();
        let primaries: KeyRange = request.primaries.unwrap_or_default().into();
        let answer = |response| reply(Body::FindLocks(response));
        let safe_point = Timestamp(request.started_before);
        let by_age = safe_point != Timestamp::ZERO;
        if range.is_empty() || (!by_age && primaries.is_empty()) {
            return Ok(answer(FindLocksResponse::default()));
        }
        if by_age {
            if let Err(refused) = self.check_timestamp(safe_point).await? {
                return Ok(answer(FindLocksResponse { error: Some(refused), ..Default::default() }));
            }
            self.inner.safe_point.raise(safe_point);
            self.within("waiting for older writes", self.inner.safe_point.writes_ended(safe_point)).await?;
        }
        let snapshot = self.snapshot().await?;
        if !snapshot.region.range.covers(&range) {
            return Err(RegionError::key_not_in_region(&range.start, &snapshot.region));
        }
        let reader = Reader::new(snapshot.engine.as_ref());
        Ok(answer(
            match reader.locks_where(&range, MAX_LOCKS_VISITED, |lock| match by_age {
                true => lock.start_ts < safe_point,
                false => primaries.contains(&lock.primary),
            }) {
                Ok((locks, resume)) => FindLocksResponse { locks, resume_key: resume.unwrap_or_default(), error: None },
                Err(fault) => FindLocksResponse { error: Some(fault.into()), ..Default::default() },
            },
        ))
    }

    fn pushed_page(
        &self,
        snapshot: &RegionSnapshot,
        range: &KeyRange,
        request: &ScanRequest,
        seen: &Seen,
    ) -> Result<Reply, Fault> {
        let Some(scan) = &self.inner.scan else {
            return Err(Fault::Pushdown("this store has no such half".into()));
        };
        let mut sink = scan.start(&request.pushdown).map_err(Fault::Pushdown)?;
        let push = |key: &[u8], value: &[u8]| sink.push(key, value).map_err(Fault::Pushdown);
        let (end, rows) = scan_page(snapshot.engine.as_ref(), range, spec(request), seen, push)?;
        let chunk: ScanChunk = sink.finish().map_err(Fault::Pushdown)?;
        let mut page = page_reply(end, rows, Vec::new());
        page.chunk = Some(chunk);
        Ok(page)
    }

    /// Before a read at `read_ts`: makes later one-round commits land above it, and waits for those under way that may not.
    pub(super) async fn announce_read(
        &self,
        read_ts: Timestamp,
        in_flight: impl Fn(&crate::concurrency::Concurrency, Timestamp) -> Option<InFlight>,
    ) -> Result<Result<(), KeyError>, RegionError> {
        if read_ts == Timestamp::ZERO {
            return Ok(Err(bad_timestamp(read_ts, "a scan needs a snapshot")));
        }
        if let Err(refused) = self.check_timestamp(read_ts).await? {
            return Ok(Err(refused));
        }
        if self.inner.plant.has(Planted::SkipMaxTs) {
            return Ok(Ok(()));
        }
        let concurrency = &self.inner.concurrency;
        concurrency.raise(read_ts);
        while let Some(write) = in_flight(concurrency, read_ts) {
            self.within("waiting for a write in flight", write.done()).await?;
        }
        Ok(Ok(()))
    }

    /// Refuses a timestamp below the safe point. To be called after the snapshot was taken that is to answer.
    pub(super) async fn check_age(&self, ts: Timestamp) -> Result<Result<(), KeyError>, RegionError> {
        if self.inner.plant.has(Planted::GcUnderReader) {
            return Ok(Ok(()));
        }
        match self.within("asking PD for the safe point", self.inner.safe_point.check(ts)).await? {
            Ok(Ok(())) => Ok(Ok(())),
            Ok(Err(old)) => Ok(Err(KeyError { kind: Some(Kind::SnapshotTooOld(old)) })),
            Err(pd) => Err(RegionError::server_busy(&format!("{pd}; the queue for it"), super::BUSY_BACKOFF_MS)),
        }
    }

    /// Refuses a timestamp that PD cannot have issued.
    pub(super) async fn check_timestamp(&self, ts: Timestamp) -> Result<Result<(), KeyError>, RegionError> {
        let checked = self.within("asking PD whether it issued a timestamp", self.inner.pd_time.check(ts)).await?;
        match checked {
            Ok(Ok(())) => Ok(Ok(())),
            Ok(Err(bad)) => Ok(Err(KeyError { kind: Some(Kind::BadTimestamp(bad)) })),
            Err(pd) => Err(RegionError::server_busy(&format!("{pd}; the queue for it"), super::BUSY_BACKOFF_MS)),
        }
    }
}

pub(super) fn seen(own: Option<OwnWrites>, passed: Vec<u64>) -> Seen {
    Seen { own: own.map(|own| (Timestamp(own.start_ts), own.generation)), passed }
}

fn spec(request: &ScanRequest) -> ScanSpec {
    let max_bytes = match request.max_bytes {
        0 => DEFAULT_PAGE_BYTES,
        bytes => bytes.min(MAX_PAGE_BYTES),
    };
    let limit = if request.limit == 0 { u64::MAX } else { request.limit };
    ScanSpec { read_ts: Timestamp(request.read_ts), limit, max_bytes, reverse: request.reverse }
}

fn plain_page(snapshot: &RegionSnapshot, range: &KeyRange, request: &ScanRequest, seen: &Seen) -> Result<Reply, Fault> {
    let mut arena = BytesMut::new();
    let mut cut = |bytes: &[u8]| {
        if arena.capacity() < bytes.len() {
            arena = BytesMut::with_capacity(ARENA_BYTES.max(bytes.len()));
        }
        arena.extend_from_slice(bytes);
        arena.split().freeze()
    };
    let mut pairs = Vec::new();
    let push = |key: &[u8], value: &[u8]| {
        let value = if request.keys_only { Bytes::new() } else { cut(value) };
        pairs.push(KeyValue { key: cut(key), value });
        Ok(())
    };
    let (end, rows) = scan_page(snapshot.engine.as_ref(), range, spec(request), seen, push)?;
    Ok(page_reply(end, rows, pairs))
}

fn page_reply(end: PageEnd, rows: u64, pairs: Vec<KeyValue>) -> Reply {
    let (more, resume_key) = match end {
        PageEnd::Done => (false, Bytes::new()),
        PageEnd::More(key) => (true, key),
        PageEnd::Locked(lock) => return scan_refused(KeyError { kind: Some(Kind::Locked(lock)) }),
    };
    reply(Body::Scan(ScanResponse { pairs, rows, more, resume_key, ..Default::default() }))
}

fn bad_timestamp(ts: Timestamp, reason: &str) -> KeyError {
    KeyError { kind: Some(Kind::BadTimestamp(BadTimestamp { ts: ts.0, reason: reason.into() })) }
}

pub(super) fn get_refused(error: KeyError) -> Reply {
    reply(Body::Get(GetResponse { pairs: Vec::new(), error: Some(error) }))
}

pub(super) fn scan_refused(error: KeyError) -> Reply {
    reply(Body::Scan(ScanResponse { error: Some(error), ..Default::default() }))
}

pub(super) fn reply(body: Body) -> Reply {
    Reply { response: KvResponse { body: Some(body), ..KvResponse::default() }, chunk: None }
}
