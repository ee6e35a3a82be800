//! Parts of transactions too large for their gateways: left here as locks, taken back, ended by range.

use bytes::Bytes;
use proto::{
    KeyRange, Timestamp,
    wire::{
        DropGenerationsRequest, DropGenerationsResponse, Mutation, PrewriteRequest, PrewriteResponse, RegionError,
        kv_response::Body,
    },
};

use crate::{
    Reply,
    mvcc::{Fault, Reader},
    txn,
};

use super::{
    Call,
    locking::place_of,
    read::reply,
    write::{Stage, row_lock_of},
};

/// Locks that are changed together: one entry of the log should not hold up those behind it.
const MAX_LOCKS: usize = 1024;
/// Records looked at for them: it bounds the look at a range where others have many locks.
const MAX_VISITED: usize = 16_384;

impl Call<'_> {
    /// The latches are held.
    pub(super) async fn spill(&self, request: PrewriteRequest, stage: Stage) -> Result<PrewriteResponse, RegionError> {
        let (owner, place) = (Timestamp(request.start_ts), place_of(&stage.snapshot));
        let blocker = |m: &Mutation| self.inner.rows.blocker(&m.key, owner, row_lock_of(m.kind()), place);
        let evaluated = txn::spill(&self.reader(&stage.snapshot), &request, &blocker);
        match evaluated {
            Ok((batch, response)) => self.finish(stage, batch, (None, None)).await.map(|()| response),
            Err(fault) => Ok(txn::prewrite_failed(fault.into())),
        }
    }

    pub(super) async fn drop_generations(&self, request: DropGenerationsRequest) -> Result<Reply, RegionError> {
        let answer = |response| Ok(reply(Body::DropGenerations(response)));
        let refuse = |error| DropGenerationsResponse { error: Some(error), ..Default::default() };
        let range = request.range.clone().unwrap_or_default().into();
        let (keys, resume_key) = match self.own_locks(Timestamp(request.start_ts), range).await? {
            Ok(found) => found,
            Err(fault) => return answer(refuse(fault.into())),
        };
        let evaluate = |reader: &Reader<'_>| {
            let batch = txn::drop_generations(reader, &request, &keys)?;
            Ok((batch, DropGenerationsResponse { error: None, resume_key: resume_key.clone() }))
        };
        answer(self.write(&keys, None, evaluate, refuse).await?)
    }

    /// Some of the locks of a transaction in a range, and where to go on (empty: nowhere). Whether they still stand is seen again
    /// under latches.
    pub(super) async fn own_locks(
        &self,
        start_ts: Timestamp,
        range: KeyRange,
    ) -> Result<Result<(Vec<Bytes>, Bytes), Fault>, RegionError> {
        let snapshot = self.snapshot().await?;
        if !snapshot.region.range.covers(&range) {
            return Err(RegionError::key_not_in_region(&range.start, &snapshot.region));
        }
        let found = self.reader(&snapshot).own_locks(start_ts, &range, MAX_LOCKS, MAX_VISITED);
        Ok(found.map(|(keys, resume)| (keys, resume.unwrap_or_default())))
    }
}
