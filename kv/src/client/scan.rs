//! A scan over regions, page by page, with the transaction's own writes merged in.

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, channel::oneshot};
use proto::{
    KeyRange, Timestamp,
    wire::{ScanRequest, ScanResponse, kv_request::Body, kv_response},
};

use crate::{Error, ScanChunk, error::Refusal};

use super::{
    Client,
    buffer::Own,
    near::Source,
    read::{unexpected, wrong_answer},
    resolver::LockWait,
    snapshot::Snapshot,
    spill::Spills,
    txn,
};

/// What to scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// Keys.
    pub range: KeyRange,
    /// Rows at most, counted before a push-down; 0: all.
    pub limit: u64,
    /// From the end of the range to its start.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Rows go through the store-side half of the scan, which reads this; pages then bring a chunk, not rows.
    pub pushdown: Option<Bytes>,
    /// Bytes of a page, roughly; 0: the store's own measure.
    pub page_bytes: u64,
}

/// A bounded piece of a scan's result; it may be empty though more follows.
#[derive(Clone, Default)]
pub struct Page {
    /// Key and value, in the scan's order.
    pub rows: Vec<(Bytes, Bytes)>,
    /// With a push-down: what the store-side half made of the rows.
    pub chunk: Option<ScanChunk>,
    /// Rows the page stands for.
    pub row_count: u64,
}

/// A scan under way. While one page is consumed the next is fetched.
pub struct Scan {
    client: Client,
    snapshot: Snapshot,
    from: Source,
    options: ScanOptions,
    own: Vec<(Bytes, Own)>,
    /// The serializable transaction that has to remember what it has read.
    reader: Option<Arc<txn::Inner>>,
    spills: Spills,
    rest: Option<KeyRange>,
    left: Option<u64>,
    fetching: Option<oneshot::Receiver<Result<Fetched, Error>>>,
}

/// A page as the store gave it.
struct Fetched {
    /// Every key of this range was seen.
    covered: KeyRange,
    /// What is left of the scan's range.
    rest: Option<KeyRange>,
    response: ScanResponse,
    chunk: Option<ScanChunk>,
}

impl Scan {
    pub(crate) fn new(
        client: Client,
        (snapshot, from): (Snapshot, Source),
        options: ScanOptions,
        own: Vec<(Bytes, Own)>,
        reader: Option<Arc<txn::Inner>>,
        spills: Spills,
    ) -> Self {
        let rest = (!options.range.is_empty()).then(|| options.range.clone());
        let left = (options.limit > 0).then_some(options.limit);
        Scan { client, snapshot, from, options, own, reader, spills, rest, left, fetching: None }
    }

    /// The next page; `None` at the end.
    pub async fn next_page(&mut self) -> Result<Option<Page>, Error> {
        if self.options.pushdown.is_some() && !self.own.is_empty() {
            return Err(Error::Corrupt("a scan over the transaction's own writes can't be pushed down".into()));
        }
        if self.left == Some(0) {
            return Ok(None);
        }
        let fetched = match self.fetching.take() {
            Some(fetching) => match fetching.await {
                Ok(fetched) => fetched?,
                Err(oneshot::Canceled) => return Err(Error::Unavailable("this node is stopping".into())),
            },
            None => {
                let Some(rest) = self.rest.take() else { return Ok(None) };
                let read_ts = self.snapshot.get(&self.client).await?;
                fetch(&self.client, self.request(rest, read_ts), self.from).await?
            }
        };
        if let Some(reader) = &self.reader {
            reader.has_read(&fetched.covered);
        }
        let page = self.page(fetched.covered, fetched.response, fetched.chunk);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(page.row_count);
        }
        self.rest = fetched.rest;
        self.prefetch();
        Ok(Some(page))
    }

    fn request(&self, range: KeyRange, read_ts: Timestamp) -> ScanRequest {
        // A deletion of our own may hide any row that the store counts.
        let limit = self.left.map_or(0, |left| left + self.own.len() as u64);
        ScanRequest {
            range: Some((&range).into()),
            read_ts: read_ts.0,
            limit,
            max_bytes: self.options.page_bytes,
            reverse: self.options.reverse,
            keys_only: self.options.keys_only,
            pushdown: self.options.pushdown.clone().unwrap_or_default(),
            own: self.spills.own(),
            passed: Vec::new(),
        }
    }

    fn prefetch(&mut self) {
        if self.left == Some(0) {
            return;
        }
        let (Some(rest), Some(read_ts)) = (self.rest.take(), self.snapshot.taken()) else { return };
        let request = self.request(rest, read_ts);
        let (client, from) = (self.client.clone(), self.from);
        let (send, receive) = oneshot::channel();
        self.fetching = Some(receive);
        let task = async move {
            // Nobody receives when the scan was dropped.
            let _ = send.send(fetch(&client, request, from).await);
        };
        self.client.inner.spawn.spawn(task.boxed());
    }

    /// The store's rows, with our own writes of the covered keys in their place.
    fn page(&self, covered: KeyRange, response: ScanResponse, chunk: Option<ScanChunk>) -> Page {
        if self.options.pushdown.is_some() {
            return Page { rows: Vec::new(), chunk, row_count: response.rows };
        }
        let mut stored: Vec<(Bytes, Bytes)> = response.pairs.into_iter().map(|p| (p.key, p.value)).collect();
        if !self.own.is_empty() {
            stored = self.merge(&covered, stored);
        }
        if let Some(left) = self.left {
            stored.truncate(left as usize);
        }
        Page { row_count: stored.len() as u64, rows: stored, chunk: None }
    }

    fn merge(&self, covered: &KeyRange, stored: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
        let reverse = self.options.reverse;
        let from = self.own.partition_point(|(key, _)| *key < covered.start);
        let to = self.own.partition_point(|(key, _)| covered.end.is_empty() || *key < covered.end);
        let mut own: Vec<&(Bytes, Own)> = self.own[from..to.max(from)].iter().collect();
        if reverse {
            own.reverse();
        }
        let before = |a: &Bytes, b: &Bytes| if reverse { a > b } else { a < b };
        let mut merged = Vec::with_capacity(stored.len() + own.len());
        let mut own = own.into_iter().peekable();
        let push_own = |merged: &mut Vec<(Bytes, Bytes)>, (key, own): &(Bytes, Own)| {
            if let Own::Value(value) = own {
                let value = if self.options.keys_only { Bytes::new() } else { value.clone() };
                merged.push((key.clone(), value));
            }
        };
        for row in stored {
            while let Some(write) = own.next_if(|(key, _)| before(key, &row.0)) {
                push_own(&mut merged, write);
            }
            match own.next_if(|(key, _)| *key == row.0) {
                Some((_, Own::Unknown)) | None => merged.push(row),
                Some(write) => push_own(&mut merged, write),
            }
        }
        own.for_each(|write| push_own(&mut merged, write));
        merged
    }
}

/// One page from the region at the start (the end, in reverse) of the request's range.
async fn fetch(client: &Client, request: ScanRequest, mut from: Source) -> Result<Fetched, Error> {
    let deadline = client.deadline();
    let range: KeyRange = request.range.clone().unwrap_or_default().into();
    let mut wait = LockWait::reading_range(Timestamp(request.read_ts));
    loop {
        let body = |part: KeyRange| {
            let (range, passed) = (Some((&part).into()), wait.passed());
            Body::Scan(ScanRequest { range, passed, ..request.clone() })
        };
        let (part, reply) = client.call_clipped(&range, request.reverse, from, deadline, body).await?;
        let chunk = reply.chunk;
        let Some(kv_response::Body::Scan(mut response)) = reply.response.body else {
            return Err(wrong_answer("scan"));
        };
        match response.error.take().map(Refusal::from) {
            None => {}
            Some(Refusal::Locked(lock)) => {
                client.clear_lock(&lock, &mut wait, deadline).await?;
                from = Source::Leader;
                continue;
            }
            Some(refusal) => return Err(unexpected(refusal)),
        }
        let (covered, rest) = progress(&range, part, &response, request.reverse);
        return Ok(Fetched { covered, rest, response, chunk });
    }
}

/// What a page has covered of `range`, and what is left.
fn progress(range: &KeyRange, part: KeyRange, response: &ScanResponse, reverse: bool) -> (KeyRange, Option<KeyRange>) {
    let resume = &response.resume_key;
    let covered = match (response.more, reverse) {
        (false, _) => part,
        (true, false) => KeyRange::new(part.start, resume.clone()),
        (true, true) => KeyRange::new(resume.clone(), part.end),
    };
    let rest = if reverse {
        (covered.start > range.start).then(|| KeyRange::new(range.start.clone(), covered.start.clone()))
    } else {
        let done = covered.end.is_empty() || covered.end == range.end;
        (!done).then(|| KeyRange::new(covered.end.clone(), range.end.clone()))
    };
    (covered, rest)
}
