//! The GC safe point: reports in, grants out, and its steps.

use proto::{StoreId, wire};

use super::Service;
use crate::{
    MetaError, Now, keys,
    safe_point::{Grant, Report},
};

impl Service {
    /// A node reports, and is told. To be called before [`crate::MetaStore::confirm`]: a grant counts only when this PD was
    /// in office after it.
    pub(super) fn safe_point_reported(
        &self,
        now: Now,
        store: StoreId,
        report: Option<&wire::SafePointReport>,
    ) -> wire::SafePointGrant {
        let mut state = self.state.lock();
        let at = state.tso.last();
        if let Some(report) = report {
            let report = Report {
                oldest: proto::Timestamp(report.oldest_snapshot),
                known: proto::Timestamp(report.known),
                garbage: report.garbage,
            };
            state.safe_point.report(store, now.monotonic_ms, at, report);
        }
        let grant = state.safe_point.grant(store, now.monotonic_ms);
        to_wire(grant, state.rules.gc.lease_ms)
    }

    /// As it is; nobody may rely on it for longer than a look.
    pub(super) fn safe_point(&self) -> wire::SafePointGrant {
        to_wire(self.state.lock().safe_point.now(), 0)
    }

    /// Chooses the next safe point when its time has come. `Some`: locks of transactions that began below are to be ended
    /// now, and then [`Service::locks_cleared`] to be called. To be called about once a second.
    pub async fn next_safe_point(&self, now: Now) -> Result<Option<proto::Timestamp>, MetaError> {
        let _writer = self.writer.lock().await;
        let next = {
            let state = self.state.lock();
            let stores = state.cluster.member_ids();
            state.safe_point.next(now.monotonic_ms, state.tso.last(), &stores)
        };
        if let Some(next) = next {
            self.write(vec![(keys::safe_point(), Some(keys::encode_u64(next.0)))]).await?;
            tracing::debug!(safe_point = %next, "older snapshots are refused from now on");
            self.state.lock().safe_point.chosen(next, now.monotonic_ms);
        }
        Ok(self.state.lock().safe_point.refused(now.monotonic_ms))
    }

    /// No lock of a transaction that began below `safe_point` is left anywhere: what nobody sees any more may go.
    pub fn locks_cleared(&self, safe_point: proto::Timestamp) {
        tracing::debug!(%safe_point, "versions that nobody at or above sees go");
        self.state.lock().safe_point.cleared(safe_point);
    }
}

fn to_wire(grant: Grant, lease_ms: u64) -> wire::SafePointGrant {
    wire::SafePointGrant { refuse_below: grant.refuse_below.0, collect_below: grant.collect_below.0, lease_ms }
}
