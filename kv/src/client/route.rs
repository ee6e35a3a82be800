//! One request to the region that holds a key: routing, the attempt, and what its failure teaches.

use std::time::Duration;

use bytes::Bytes;
use proto::{
    KeyRange, PROTOCOL_VERSION, Region, StoreId, Term,
    wire::{KvRequest, RegionStatus, RequestHeader, kv_request::Body},
};
use raftstore::Instant;

use crate::{Error, Reply, RpcError};

use super::{Client, Route, backoff::Backoff, near::Source, region_map::Verdict};

/// Until when an operation is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(pub(crate) Instant);

/// Within this long of the deadline nothing new is sent: the answer would come too late.
const LEAST_REMAINING: Duration = Duration::from_millis(1);

/// What became of one attempt.
// An answer is moved twice on the hot path; a box would cost an allocation instead.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Attempt {
    /// The region answered (the body may still be a key error).
    Answer(Reply),
    /// It was certainly not carried out; route again, after the pause when there is one.
    Again {
        /// Pause first, at least this long.
        pause: Option<Duration>,
        /// For the error, should time run out.
        why: String,
    },
    /// It may have been carried out.
    Lost(String),
    /// Repeating can't help.
    Failed(Error),
}

impl Client {
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline(self.inner.clock.now() + self.inner.config.operation_timeout)
    }

    pub(crate) fn remaining(&self, deadline: Deadline) -> Duration {
        deadline.0.since(self.inner.clock.now())
    }

    pub(crate) fn is_late(&self, deadline: Deadline) -> bool {
        self.remaining(deadline) < LEAST_REMAINING
    }

    /// Sleeps the next pause of `backoff`, at least `least`; an error, with its reason, when the deadline would pass.
    pub(crate) async fn pause(
        &self,
        backoff: &mut Backoff,
        least: Duration,
        deadline: Deadline,
        why: &str,
    ) -> Result<(), Error> {
        let pause = backoff.next(&self.inner.jitter).max(least);
        if self.remaining(deadline) <= pause {
            return Err(Error::Unavailable(format!("gave up after {:?}: {why}", self.inner.config.operation_timeout)));
        }
        self.inner.clock.sleep(pause).await;
        Ok(())
    }

    /// The region that holds `key`.
    pub(crate) async fn locate(&self, key: &[u8], deadline: Deadline) -> Result<Route, Error> {
        let mut backoff = Backoff::ROUTING;
        loop {
            if let Some(route) = self.inner.regions.read().locate(key) {
                return Ok(route);
            }
            let looked_up = self.inner.pd.region_of(key).await.map_err(|e| e.to_string());
            let why = match looked_up.and_then(|status| self.learn(status)) {
                Ok(()) => match self.inner.regions.read().locate(key) {
                    Some(route) => return Ok(route),
                    // A split was heard of here before its store has told PD.
                    None => "PD's picture of the region is older than this node's".to_string(),
                },
                Err(why) => why,
            };
            self.pause(&mut backoff, Duration::ZERO, deadline, &why).await?;
        }
    }

    /// The region that holds the keys just below `end` and not below `start`.
    pub(crate) async fn locate_before(&self, range: &KeyRange, deadline: Deadline) -> Result<Route, Error> {
        /// How many regions one look-up brings.
        const LOOKUP: u32 = 128;
        let mut backoff = Backoff::ROUTING;
        loop {
            if let Some(route) = self.inner.regions.read().locate_before(&range.end) {
                return Ok(route);
            }
            let mut rest = range.clone();
            loop {
                let found = match self.inner.pd.regions(&rest, LOOKUP).await {
                    Ok(found) => found,
                    Err(e) => {
                        self.pause(&mut backoff, Duration::ZERO, deadline, &e.to_string()).await?;
                        continue;
                    }
                };
                let last_end = found.last().and_then(|s| s.region.as_ref()?.range.as_ref().map(|r| r.end_key.clone()));
                for status in found {
                    self.learn(status).map_err(Error::Unavailable)?;
                }
                match last_end {
                    Some(end) if !end.is_empty() && (rest.end.is_empty() || end < rest.end) => rest.start = end,
                    _ => break,
                }
            }
            if self.inner.regions.read().locate_before(&range.end).is_none() {
                self.pause(&mut backoff, Duration::ZERO, deadline, "PD knows no region for the range").await?;
            }
        }
    }

    fn learn(&self, status: RegionStatus) -> Result<(), String> {
        let leader = status.leader.map(|p| StoreId(p.store_id)).filter(|s| s.0 != 0);
        let region = status.region.ok_or("PD named no region")?;
        let region = Region::try_from(region).map_err(|e| e.to_string())?;
        self.inner.regions.write().learn(region, leader, Term(status.term));
        Ok(())
    }

    /// Sends once, waits no longer than `patience`, and learns from what comes back.
    pub(crate) async fn attempt(&self, route: &Route, body: Body, patience: Duration, deadline: Deadline) -> Attempt {
        self.attempt_from(route, Source::Leader, body, patience, deadline).await
    }

    pub(super) fn request(&self, route: &Route, body: Body, patience: Duration, from: Source) -> KvRequest {
        let header = RequestHeader {
            deadline_ms: patience.as_millis() as u64,
            protocol_version: PROTOCOL_VERSION,
            region_id: route.region.id.0,
            epoch: Some(route.region.epoch.into()),
            any_replica: from == Source::Nearest,
            ..RequestHeader::default()
        };
        KvRequest { header: Some(header), body: Some(body) }
    }

    /// The same for a read; `from` the nearest: whoever is asked may answer.
    pub(crate) async fn attempt_from(
        &self,
        route: &Route,
        from: Source,
        body: Body,
        patience: Duration,
        deadline: Deadline,
    ) -> Attempt {
        let remaining = self.remaining(deadline).min(patience);
        if remaining < LEAST_REMAINING {
            return Attempt::Failed(Error::Unavailable(format!("no time left to ask region {}", route.region.id)));
        }
        let request = self.request(route, body, remaining, from);
        match self.inner.rpc.call(route.store, request).await {
            Ok(mut reply) => match reply.response.region_error.take() {
                None => {
                    if !route.known_leader && !reply.response.of_the_past {
                        self.inner.regions.write().on_answer(route);
                    }
                    Attempt::Answer(reply)
                }
                Some(error) => self.learn_from(route, error),
            },
            Err(RpcError::Unreachable(store, why)) => {
                self.inner.regions.write().on_silence(route);
                let why = format!("{}: store {store} is unreachable: {why}", route.region.id);
                Attempt::Again { pause: Some(Duration::ZERO), why }
            }
            Err(RpcError::Lost(store, why)) => {
                self.inner.regions.write().on_silence(route);
                Attempt::Lost(format!("{}: no answer from store {store}: {why}", route.region.id))
            }
        }
    }

    fn learn_from(&self, route: &Route, error: proto::wire::RegionError) -> Attempt {
        let verdict = self.inner.regions.write().on_error(route, &error);
        let why = format!("{} on {}: {error}", route.region.id, route.store);
        match verdict {
            Verdict::Retry => Attempt::Again { pause: None, why },
            Verdict::Pause(ms) => Attempt::Again { pause: Some(Duration::from_millis(ms)), why },
            Verdict::Unknown => Attempt::Lost(why),
            Verdict::DiskFull => Attempt::Failed(Error::DiskFull(why)),
            // It was our patience that ended; the operation's own deadline is looked at before the next attempt.
            Verdict::Deadline => Attempt::Again { pause: Some(Duration::ZERO), why },
            Verdict::Fatal => Attempt::Failed(Error::Unavailable(why)),
        }
    }

    /// Sends a request about `key` until it is answered or the deadline passes. `body` is made afresh for every
    /// attempt. For requests whose repetition and whose loss do no harm: reads, and idempotent clean-up.
    pub(crate) async fn call(
        &self,
        key: &[u8],
        deadline: Deadline,
        body: impl Fn() -> Body,
    ) -> Result<(Route, Reply), Error> {
        let mut backoff = Backoff::ROUTING;
        loop {
            let route = self.locate(key, deadline).await?;
            let attempt = self.attempt(&route, body(), backoff.patience(), deadline).await;
            match self.settle(attempt, &mut backoff, deadline).await? {
                Some(reply) => return Ok((route, reply)),
                None => continue,
            }
        }
    }

    /// Like `call`, about as much of `range` as the region at its start (its end, when `reverse`) holds. Returns that part.
    pub(crate) async fn call_clipped(
        &self,
        range: &KeyRange,
        reverse: bool,
        from: Source,
        deadline: Deadline,
        body: impl Fn(KeyRange) -> Body,
    ) -> Result<(KeyRange, Reply), Error> {
        let mut backoff = Backoff::ROUTING;
        let mut near = from == Source::Nearest;
        loop {
            let route = if reverse {
                self.locate_before(range, deadline).await?
            } else {
                self.locate(&range.start, deadline).await?
            };
            let Some(part) = route.region.range.intersect(range) else {
                return Ok((KeyRange::new(range.start.clone(), range.start.clone()), Reply::default()));
            };
            if std::mem::take(&mut near)
                && let Some(reply) = self.ask_own(&route, body(part.clone()), deadline).await
            {
                return Ok((part, reply));
            }
            let attempt = self.attempt_from(&route, from, body(part.clone()), backoff.patience(), deadline).await;
            if let Some(reply) = self.settle(attempt, &mut backoff, deadline).await? {
                return Ok((part, reply));
            }
        }
    }

    /// What follows from an attempt whose loss does no harm: the answer, `None` after the pause when it should be
    /// repeated, or the end.
    pub(crate) async fn settle(
        &self,
        attempt: Attempt,
        backoff: &mut Backoff,
        deadline: Deadline,
    ) -> Result<Option<Reply>, Error> {
        match attempt {
            Attempt::Answer(reply) => Ok(Some(reply)),
            Attempt::Again { pause: None, .. } => Ok(None),
            Attempt::Again { pause: Some(least), why } => {
                self.pause(backoff, least, deadline, &why).await?;
                Ok(None)
            }
            Attempt::Lost(why) => {
                backoff.lost();
                self.pause(backoff, Duration::ZERO, deadline, &why).await?;
                Ok(None)
            }
            Attempt::Failed(error) => Err(error),
        }
    }

    /// Cuts sorted items into runs that lie in one region each. `key` names an item's key.
    pub(crate) async fn group<T>(
        &self,
        items: impl IntoIterator<Item = T>,
        key: impl Fn(&T) -> &Bytes,
        deadline: Deadline,
    ) -> Result<Vec<(Route, Vec<T>)>, Error> {
        let mut groups: Vec<(Route, Vec<T>)> = Vec::new();
        for item in items {
            match groups.last_mut() {
                Some((route, group)) if route.region.range.contains(key(&item)) => group.push(item),
                _ => {
                    let route = self.locate(key(&item), deadline).await?;
                    groups.push((route, vec![item]));
                }
            }
        }
        Ok(groups)
    }
}
