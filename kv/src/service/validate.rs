//! What a serializable transaction has read: still as it was?

use bytes::Bytes;
use proto::{
    KeyRange, Timestamp,
    wire::{
        Mutation, PrewriteRequest, PrewriteResponse, RegionError, ValidateRequest, ValidateResponse, kv_response::Body,
    },
};

use crate::{
    Reply,
    concurrency::{Concurrency, InFlight},
    mvcc::Fault,
    planted::Planted,
    txn::{self, PrewriteMode, Validity},
};

use super::{
    Call,
    locking::place_of,
    read::reply,
    write::{Stage, row_lock_of},
};

/// Spans of one request whatever the caller says.
const MAX_SPANS: usize = 4096;

impl Call<'_> {
    /// At a timestamp from PD, as a read at it.
    pub(super) async fn validate(&self, request: ValidateRequest) -> Result<Reply, RegionError> {
        let answer = |response| reply(Body::Validate(response));
        let refuse = |error| answer(ValidateResponse { error: Some(error), ..Default::default() });
        let spans = match spans_of(&request.spans) {
            Ok(spans) => spans,
            Err(fault) => return Ok(refuse(fault.into())),
        };
        if !self.inner.plant.has(Planted::ValidateUnannounced) {
            let own = Timestamp(request.start_ts);
            let in_flight = |c: &Concurrency, at| first_in_flight(c, own, &spans, at);
            if let Err(refused) = self.announce_read(Timestamp(request.at_ts), in_flight).await? {
                return Ok(refuse(refused));
            }
        }
        let snapshot = self.snapshot().await?;
        for span in &spans {
            if !snapshot.region.range.covers(span) {
                return Err(RegionError::key_not_in_region(&span.start, &snapshot.region));
            }
        }
        // A deletion that happened since the transaction began may have been collected.
        if let Err(refused) = self.check_age(Timestamp(request.start_ts)).await? {
            return Ok(refuse(refused));
        }
        Ok(match txn::validate(&self.reader(&snapshot), &request) {
            Ok(response) => answer(response),
            Err(fault) => refuse(fault.into()),
        })
    }

    /// A 1PC that commits only if what its transaction has read, all of it in this region, stands as it was. Its latches are
    /// held, its writes published: from here on a look at what others write is at the timestamp it will commit at.
    pub(super) async fn prewrite_read(
        &self,
        request: PrewriteRequest,
        keys: Vec<Bytes>,
        stage: Stage,
    ) -> Result<PrewriteResponse, RegionError> {
        let refuse = |fault: Fault| Ok(PrewriteResponse { errors: vec![fault.into()], ..Default::default() });
        let spans = match spans_of(&request.reads) {
            Ok(spans) => spans,
            Err(fault) => return refuse(fault),
        };
        self.know_reads(&stage.snapshot).await?;
        let owner = Timestamp(request.start_ts);
        let floor = owner.max(Timestamp(request.min_commit_ts));
        let concurrency = &self.inner.concurrency;
        let (commit_ts, published) = concurrency.publish_as_read(keys.clone(), owner, floor);
        while let Some(write) = first_in_flight(concurrency, owner, &spans, commit_ts) {
            self.within("waiting for a write in flight", write.done()).await?;
        }
        // The writes that were waited for are in this one. Should it be of another term, the proposal is refused.
        let snapshot = self.snapshot().await?;
        if let Err(refused) = self.check_age(owner).await? {
            return Ok(match txn::prewrite_too_old(&self.reader(&snapshot), &request, refused) {
                Ok(response) => response,
                Err(fault) => txn::prewrite_failed(fault.into()),
            });
        }
        for span in &spans {
            if !snapshot.region.range.covers(span) {
                return Err(RegionError::key_not_in_region(&span.start, &snapshot.region));
            }
        }
        let place = place_of(&stage.snapshot);
        let blocker = |m: &Mutation| self.inner.rows.blocker(&m.key, owner, row_lock_of(m.kind()), place);
        let reader = self.reader(&snapshot);
        let evaluate = || {
            let (batch, response) = txn::prewrite(&reader, &request, PrewriteMode::OnePc(commit_ts), &blocker)?;
            if batch.is_empty() {
                return Ok((batch, response));
            }
            match txn::reads_hold(&reader, &spans, owner, commit_ts)? {
                Validity::Holds => Ok((batch, response)),
                Validity::HoldsUpTo(_) => txn::prewrite(&reader, &request, PrewriteMode::Locks, &blocker),
                Validity::Refused(error) => {
                    Ok((Default::default(), PrewriteResponse { errors: vec![error], ..Default::default() }))
                }
            }
        };
        match evaluate() {
            Ok((batch, response)) => {
                let committed = response.one_pc_commit_ts != 0;
                let freed = committed.then(|| self.inner.rows.freed(owner, &keys)).flatten();
                self.finish(stage, batch, (Some(published), freed)).await.map(|()| response)
            }
            Err(fault) => refuse(fault),
        }
    }
}

/// Spans as they came: sorted, apart, none of them empty, not too many.
fn spans_of(spans: &[proto::wire::KeyRange]) -> Result<Vec<KeyRange>, Fault> {
    let spans: Vec<KeyRange> = spans.iter().cloned().map(KeyRange::from).collect();
    let apart = |pair: &[KeyRange]| !pair[0].end.is_empty() && pair[0].end <= pair[1].start;
    if spans.len() > MAX_SPANS || spans.iter().any(KeyRange::is_empty) || !spans.windows(2).all(apart) {
        return Err(Fault::corrupt(b"", "the spans of a validation are too many, empty, not sorted, or not apart"));
    }
    Ok(spans)
}

fn first_in_flight(concurrency: &Concurrency, own: Timestamp, spans: &[KeyRange], at: Timestamp) -> Option<InFlight> {
    spans.iter().find_map(|span| concurrency.in_flight_beside(own, span, at))
}
