//! The answering side: each service hands its calls to the node.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use kv::{Pd as _, PdError};
use node::Node;
use proto::{
    KeyRange,
    wire::{
        self, AcceptRequest, AcceptResponse, ClusterStatusRequest, ClusterStatusResponse, GetStoresRequest,
        GetStoresResponse, HeartbeatRequest, HeartbeatResponse, KvRequest, KvResponse, PdRequest, PdResponse,
        ProbeRequest, ProbeResponse, RaftFrame, RaftStreamClosed, ScanRegionsRequest, ScanRegionsResponse,
        ShowRegionRequest, ShowRegionResponse,
    },
};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::stubs::{admin_server::Admin, founding_server::Founding, kv_server::Kv, pd_server::Pd, raft_server::Raft};

/// Regions of one answer at most; who wants more asks again from where it ended.
const REGIONS_PAGE: u32 = 1000;

/// All services of a node.
#[derive(Clone)]
pub struct Services(pub Arc<Node>);

type Answer<T> = Result<Response<T>, Status>;

#[async_trait]
impl Kv for Services {
    async fn call(&self, request: Request<KvRequest>) -> Answer<KvResponse> {
        Ok(Response::new(self.0.kv(request.into_inner()).await))
    }
}

#[async_trait]
impl Pd for Services {
    async fn call(&self, request: Request<PdRequest>) -> Answer<PdResponse> {
        Ok(Response::new(self.0.pd(request.into_inner()).await))
    }

    type HeartbeatStream = Pin<Box<dyn Stream<Item = Result<HeartbeatResponse, Status>> + Send>>;

    async fn heartbeat(&self, reports: Request<Streaming<HeartbeatRequest>>) -> Answer<Self::HeartbeatStream> {
        let node = self.0.clone();
        let answers = reports.into_inner().then(move |report| {
            let node = node.clone();
            async move { Ok(node.heartbeat(report?).await) }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[async_trait]
impl Raft for Services {
    async fn stream(&self, frames: Request<Streaming<RaftFrame>>) -> Answer<RaftStreamClosed> {
        let mut frames = frames.into_inner();
        while let Some(frame) = frames.message().await? {
            if let Err(reason) = self.0.raft(frame) {
                return Ok(Response::new(RaftStreamClosed { reason }));
            }
        }
        Ok(Response::new(RaftStreamClosed { reason: "the sender ended it".into() }))
    }
}

#[async_trait]
impl Founding for Services {
    async fn probe(&self, request: Request<ProbeRequest>) -> Answer<ProbeResponse> {
        Ok(Response::new(self.0.probe(&request.into_inner())))
    }
    async fn accept(&self, request: Request<AcceptRequest>) -> Answer<AcceptResponse> {
        Ok(Response::new(self.0.accept(request.into_inner())))
    }
}

impl Services {
    fn pd(&self) -> Result<node::PdClient, Status> {
        match self.0.store() {
            Some(_) => Ok(self.0.pd_client()),
            None => Err(Status::unavailable("this node has not found its cluster yet; its log says what it waits for")),
        }
    }
    async fn regions(&self, range: &KeyRange, limit: u32) -> Result<Vec<wire::RegionStatus>, Status> {
        self.pd()?.regions(range, limit).await.map_err(status)
    }
}

fn status(error: PdError) -> Status {
    match error {
        PdError::Unavailable(_) => Status::unavailable(error.to_string()),
        PdError::Refused(_) => Status::failed_precondition(error.to_string()),
    }
}

#[async_trait]
impl Admin for Services {
    async fn cluster_status(&self, _: Request<ClusterStatusRequest>) -> Answer<ClusterStatusResponse> {
        Ok(Response::new(self.pd()?.cluster_status().await.map_err(status)?))
    }
    async fn list_stores(&self, _: Request<GetStoresRequest>) -> Answer<GetStoresResponse> {
        Ok(Response::new(GetStoresResponse { stores: self.pd()?.stores().await.map_err(status)? }))
    }
    async fn list_regions(&self, request: Request<ScanRegionsRequest>) -> Answer<ScanRegionsResponse> {
        let ScanRegionsRequest { range, limit } = request.into_inner();
        let range = range.map(KeyRange::from).unwrap_or_default();
        let limit = if limit == 0 { REGIONS_PAGE } else { limit.min(REGIONS_PAGE) };
        Ok(Response::new(ScanRegionsResponse { regions: self.regions(&range, limit).await? }))
    }
    async fn show_region(&self, request: Request<ShowRegionRequest>) -> Answer<ShowRegionResponse> {
        let id = request.into_inner().region_id;
        let mut range = KeyRange::default();
        loop {
            let page = self.regions(&range, REGIONS_PAGE).await?;
            let end = page.last().and_then(|r| r.region.as_ref()?.range.as_ref()).map(|r| r.end_key.clone());
            if let Some(found) = page.into_iter().find(|r| r.region.as_ref().is_some_and(|r| r.id == id)) {
                return Ok(Response::new(ShowRegionResponse { region: Some(found) }));
            }
            match end {
                Some(end) if !end.is_empty() => range.start = end,
                _ => return Err(Status::not_found(format!("no region {id}"))),
            }
        }
    }
}
