//! Which regions that sleep have no locks below a safe point: asked of the store, so that none of them wakes.
//!
//! A sleeping leader has no lease, so its word alone is no proof: it may have been replaced in its sleep. Whoever asks adds up
//! the terms that the voters' stores name: while most of them are still in the sleeper's term, nobody else has led since. The
//! order of looks is: older prewrites have ended here ─► replicas as they are ─► the engine.

use proto::{
    KeyRange, PeerRole, Timestamp,
    wire::{ClearRegion, RegionError, ReplicaTerm, SleepersRequest, SleepersResponse, kv_response::Body},
};
use raftstore::{ReplicaStatus, Role};

use crate::{Reply, mvcc::Reader};

use super::{Call, read::reply};

/// Records of the lock column family looked at; regions behind them are not said to be clear.
const MAX_LOCKS_VISITED: usize = 100_000;

impl Call<'_> {
    pub(super) async fn sleepers(&self, request: SleepersRequest) -> Result<Reply, RegionError> {
        let safe_point = Timestamp(request.started_before);
        let answer = |response| reply(Body::Sleepers(response));
        if let Err(refused) = self.check_timestamp(safe_point).await? {
            return Ok(answer(SleepersResponse { error: Some(refused), ..Default::default() }));
        }
        self.inner.safe_point.raise(safe_point);
        self.within("waiting for older writes", self.inner.safe_point.writes_ended(safe_point)).await?;
        let (replicas, engine) = self.within("looking at the replicas", self.inner.store.look()).await?;
        let older = Reader::new(&*engine)
            .locks_where(&KeyRange::default(), MAX_LOCKS_VISITED, |lock| lock.start_ts < safe_point);
        let (locks, resume) = match older {
            Ok(found) => found,
            Err(fault) => return Ok(answer(SleepersResponse { error: Some(fault.into()), ..Default::default() })),
        };
        let seen =
            |range: &KeyRange| resume.as_ref().is_none_or(|resume| !range.end.is_empty() && range.end <= *resume);
        // In key order, as they were found.
        let holds_one = |range: &KeyRange| {
            let first = locks.partition_point(|lock| lock.key < range.start);
            locks.get(first).is_some_and(|lock| range.contains(&lock.key))
        };
        let sleeps = |r: &&ReplicaStatus| r.view.asleep && r.view.role == Role::Leader && r.view.serves;
        let is_clear = |r: &&ReplicaStatus| seen(&r.view.region.range) && !holds_one(&r.view.region.range);
        let clear = replicas.iter().filter(sleeps).filter(is_clear).map(clear_region).collect();
        let term = |r: &ReplicaStatus| ReplicaTerm { region_id: r.view.region.id.0, term: r.view.term.0 };
        Ok(answer(SleepersResponse { clear, terms: replicas.iter().map(term).collect(), error: None }))
    }
}

fn clear_region(replica: &ReplicaStatus) -> ClearRegion {
    let region = &replica.view.region;
    let voters = region.peers.iter().filter(|peer| peer.role == PeerRole::Voter);
    ClearRegion {
        region_id: region.id.0,
        term: replica.view.term.0,
        range: Some((&region.range).into()),
        voters: voters.map(|peer| peer.store.0).collect(),
    }
}
