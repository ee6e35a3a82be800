//! Reading the past from the nearest replica: this node's own, when it has one that is far enough, otherwise the leader's.
//!
//! ```text
//!   own store ── all that is visible at the timestamp is there? ──► answer
//!       │ not yet, a lock, a merge, no replica …
//!       ▼
//!   leader ──► answer        does it not answer, then whoever is asked next answers if it can
//! ```
//!
//! The region map learns nothing from the own store's refusal: that says nothing about who leads.

use std::time::Duration;

use proto::{Timestamp, wire::kv_request::Body};

use super::{Client, Route, Txn, route::Deadline};
use crate::{Error, Reply};

/// Where a transaction reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Source {
    /// From leaders: all there is, up to now.
    #[default]
    Leader,
    /// From any replica that has all there can be at the timestamp.
    Nearest,
}

impl Client {
    /// A read-only transaction at a timestamp that PD has issued before, read from the nearest replicas that are that far.
    pub fn begin_near(&self, ts: Timestamp) -> Txn {
        Txn::reading(self.clone(), ts, Source::Nearest)
    }

    /// A timestamp of PD's that is not older than `age`, by this node's clock: usually without asking for one.
    pub async fn recent_timestamp(&self, age: Duration) -> Result<Timestamp, Error> {
        let (ts, asked) = *self.inner.recent.lock();
        if ts != Timestamp::ZERO && self.inner.clock.now().since(asked) < age {
            return Ok(ts);
        }
        self.timestamp().await
    }

    /// The answer of this node's own replica of a region that is led elsewhere, if it has one.
    pub(super) async fn ask_own(&self, route: &Route, body: Body, deadline: Deadline) -> Option<Reply> {
        let own = self.inner.rpc.local_store().filter(|own| *own != route.store)?;
        route.region.peer_on(own)?;
        let request = self.request(route, body, self.remaining(deadline), Source::Nearest);
        let reply = self.inner.rpc.call(own, request).await.ok()?;
        reply.response.region_error.is_none().then_some(reply)
    }
}
