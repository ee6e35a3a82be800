//! Catalog leases and the wait of a DDL.

use proto::wire::{
    CatalogLeaseRequest, CatalogLeaseResponse, CatalogPublishRequest, CatalogPublishResponse, GatewayAliveResponse,
    LiveGatewaysResponse, PdResponse, pd_response,
};

use super::{Answer, Failure, Service};
use crate::{Now, catalog_lease::MAX_GATEWAYS, keys};

impl Service {
    pub(super) async fn catalog_lease(&self, now: Now, request: &CatalogLeaseRequest) -> Result<Answer, Failure> {
        if request.gateway_id == 0 {
            return Err(Failure::Refused("gateway id 0 stands for the leases of an older PD".into()));
        }
        let at = self.allocate(now, 1).await?;
        let granted = {
            let mut state = self.state.lock();
            state.gateways.hear(request.gateway_id, now.monotonic_ms);
            state.catalog.renew(request.gateway_id, request.acknowledged_version, at)
        };
        let grant = granted.ok_or_else(|| {
            Failure::Refused(format!("{MAX_GATEWAYS} gateways hold a catalog lease already; try again in a minute"))
        })?;
        // Renewals that wait are looked at anew after a change: were each of them one, they would wake one another for ever.
        if grant.news {
            self.changed();
        }
        let body = CatalogLeaseResponse { published_version: grant.published, expires_at: grant.expires_at.0 };
        let response = PdResponse { body: Some(pd_response::Body::CatalogLease(body)), ..PdResponse::default() };
        let news = grant.published > request.acknowledged_version;
        Ok(if news { Answer::Done(response) } else { Answer::Wait { otherwise: response, recheck_ms: None } })
    }

    pub(super) fn gateway_alive(&self, now: Now, gateway: u64) -> GatewayAliveResponse {
        GatewayAliveResponse { alive: self.state.lock().gateways.is_alive(gateway, now.monotonic_ms) }
    }

    /// By leases that end at timestamps, and by a clock: what a gateway may still commit, and what it may still show.
    pub(super) async fn live_gateways(&self, now: Now) -> Result<LiveGatewaysResponse, Failure> {
        let at = self.allocate(now, 1).await?;
        let state = self.state.lock();
        let mut gateway_ids = state.catalog.waiting_for(u64::MAX, at);
        let others = state.gateways.alive(now.monotonic_ms).into_iter();
        gateway_ids.extend(others.filter(|gateway| *gateway != 0 || state.catalog.is_inherited()));
        gateway_ids.sort_unstable();
        gateway_ids.dedup();
        Ok(LiveGatewaysResponse { gateway_ids })
    }

    pub(super) async fn catalog_publish(&self, now: Now, request: &CatalogPublishRequest) -> Result<Answer, Failure> {
        let version = request.version;
        if version == 0 {
            return Err(Failure::Refused("catalog version 0 can't be published".into()));
        }
        self.make_published(version).await?;
        let at = self.allocate(now, 1).await?;
        let (waiting_for, next_end) = {
            let state = self.state.lock();
            (state.catalog.waiting_for(version, at), state.catalog.next_end(version, at))
        };
        let done = waiting_for.is_empty();
        let body = pd_response::Body::CatalogPublish(CatalogPublishResponse { done, waiting_for });
        let response = PdResponse { body: Some(body), ..PdResponse::default() };
        if done {
            return Ok(Answer::Done(response));
        }
        let recheck_ms = next_end.map(|end| end.physical_ms().saturating_sub(at.physical_ms()).max(1));
        Ok(Answer::Wait { otherwise: response, recheck_ms })
    }

    async fn make_published(&self, version: u64) -> Result<(), Failure> {
        let _writer = self.writer.lock().await;
        if self.state.lock().catalog.published() >= version {
            return Ok(());
        }
        self.write(vec![(keys::catalog_version(), Some(keys::encode_u64(version)))]).await?;
        self.state.lock().catalog.publish(version);
        self.changed();
        Ok(())
    }
}
