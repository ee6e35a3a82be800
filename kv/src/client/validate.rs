//! Asking the leaders whether what a serializable transaction has read is still as it was.

use futures::{StreamExt, TryStreamExt, stream};
use proto::{
    KeyRange, RegionId, Timestamp,
    wire::{ValidateRequest, kv_request::Body, kv_response},
};

use crate::{Error, error::Refusal};

use super::{
    Client,
    backoff::Backoff,
    read::{unexpected, wrong_answer},
    resolver::LockWait,
    route::Deadline,
};

/// Regions asked at once.
const MAX_PARALLEL: usize = 16;
/// How often a lock of a younger transaction is waited for by one that holds locks itself: some 800 ms.
const ROUNDS: u32 = 25;
/// How often one of an older transaction is: some 30 ms. Two that wait for each other are one that gives way and one that goes on.
const ROUNDS_FOR_OLDER: u32 = 5;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validation {
    /// The transaction, and the snapshot that it has read.
    pub(crate) start_ts: Timestamp,
    /// Where it would commit.
    pub(crate) at: Timestamp,
    /// Its own locks stand: others wait for it, so it must not wait for them without end.
    pub(crate) holds_locks: bool,
}

impl Client {
    /// [`Error::ReadConflict`] when another transaction has changed some of `spans` (sorted, apart) after `start_ts`, up to `at`.
    pub(crate) async fn validate_reads(
        &self,
        spans: &[KeyRange],
        validation: Validation,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let parts = self.by_region(spans, deadline).await?;
        let one = |part| self.validate_part(part, validation, deadline);
        stream::iter(parts).map(one).buffer_unordered(MAX_PARALLEL).try_collect::<()>().await
    }

    /// Cuts spans at the borders of regions, as they are known.
    async fn by_region(&self, spans: &[KeyRange], deadline: Deadline) -> Result<Vec<Vec<KeyRange>>, Error> {
        let mut parts: Vec<(RegionId, Vec<KeyRange>)> = Vec::new();
        for span in spans {
            let mut rest = Some(span.clone());
            while let Some(span) = rest.take() {
                let route = self.locate(&span.start, deadline).await?;
                let Some(piece) = route.region.range.intersect(&span) else { break };
                rest = behind(&span, &piece);
                match parts.last_mut() {
                    Some((region, part)) if *region == route.region.id => part.push(piece),
                    _ => parts.push((route.region.id, vec![piece])),
                }
            }
        }
        Ok(parts.into_iter().map(|(_, part)| part).collect())
    }

    /// Spans that were in one region a moment ago. Should borders have moved, they are cut up again.
    async fn validate_part(
        &self,
        mut spans: Vec<KeyRange>,
        validation: Validation,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let Validation { start_ts, at, .. } = validation;
        let mut backoff = Backoff::ROUTING;
        let (mut wait, mut rounds) = (LockWait::on_keys(), 0);
        while let Some(first) = spans.first() {
            let route = self.locate(&first.start, deadline).await?;
            let pieces: Vec<KeyRange> = spans.iter().map_while(|span| route.region.range.intersect(span)).collect();
            let asked = pieces.iter().map(Into::into).collect();
            let request = ValidateRequest { spans: asked, start_ts: start_ts.0, at_ts: at.0 };
            let attempt = self.attempt(&route, Body::Validate(request), backoff.patience(), deadline).await;
            let Some(reply) = self.settle(attempt, &mut backoff, deadline).await? else { continue };
            let Some(kv_response::Body::Validate(response)) = reply.response.body else {
                return Err(wrong_answer("validation"));
            };
            match response.error.map(Refusal::from) {
                None if response.resume_key.is_empty() => {
                    let done = pieces.len();
                    let cut = pieces.last().and_then(|last| behind(&spans[done - 1], last));
                    spans.drain(..done);
                    spans.splice(..0, cut);
                }
                None => {
                    let from = KeyRange::new(response.resume_key, "");
                    spans = spans.iter().filter_map(|span| span.intersect(&from)).collect();
                }
                Some(Refusal::Locked(lock)) => {
                    rounds += 1;
                    let patience = if lock.start_ts < start_ts.0 { ROUNDS_FOR_OLDER } else { ROUNDS };
                    if validation.holds_locks && rounds > patience {
                        return Err(Error::ReadConflict { key: lock.key });
                    }
                    self.clear_lock(&lock, &mut wait, deadline).await?;
                }
                Some(refusal) => return Err(unexpected(refusal)),
            }
        }
        Ok(())
    }
}

/// What is left of a span behind its first piece.
fn behind(span: &KeyRange, piece: &KeyRange) -> Option<KeyRange> {
    let rest = KeyRange::new(piece.end.clone(), span.end.clone());
    (!piece.end.is_empty() && !rest.is_empty()).then_some(rest)
}
