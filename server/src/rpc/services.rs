//! The answering side: each service hands its calls to the node.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
};

use futures::{Stream, StreamExt};
use kv::{Pd as _, PdError};
use node::Node;
use proto::{
    KeyRange,
    wire::{
        AcceptRequest, AcceptResponse, CancelOperatorRequest, CancelOperatorResponse, ClusterStatusRequest,
        ClusterStatusResponse, FindRegionRequest, FindRegionResponse, FindTableRequest, FindTableResponse,
        GetStoresRequest, GetStoresResponse, HeartbeatRequest, HeartbeatResponse, KvRequest, KvResponse,
        OperatorsRequest, OperatorsResponse, PdRequest, PdResponse, PlanRequest, PlanResponse, ProbeRequest,
        ProbeResponse, RaftFrame, RaftStreamClosed, ScanRegionsRequest, ScanRegionsResponse, SchedulersRequest,
        SchedulersResponse, SnapshotChunk, SnapshotReceived, StoreChangeRequest, StoreChangeResponse,
        VerifyRegionRequest, VerifyRegionResponse, VerifyRequest, VerifyResponse,
    },
};
use sql::Gateway;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    snapshots,
    stubs::{admin_server::Admin, founding_server::Founding, kv_server::Kv, pd_server::Pd, raft_server::Raft},
};

/// Regions of one answer at most; who wants more asks again from where it ended.
const REGIONS_PAGE: u32 = 1000;

/// All services of a node.
#[derive(Clone)]
pub struct Services {
    /// Answers.
    pub node: Arc<Node>,
    /// Knows tables, once it is set.
    pub gateway: Arc<OnceLock<Arc<Gateway>>>,
}

type Answer<T> = Result<Response<T>, Status>;

#[async_trait]
impl Kv for Services {
    async fn call(&self, request: Request<KvRequest>) -> Answer<KvResponse> {
        Ok(Response::new(self.node.kv(request.into_inner()).await))
    }
}

#[async_trait]
impl Pd for Services {
    async fn call(&self, request: Request<PdRequest>) -> Answer<PdResponse> {
        Ok(Response::new(self.node.pd(request.into_inner()).await))
    }

    type HeartbeatStream = Pin<Box<dyn Stream<Item = Result<HeartbeatResponse, Status>> + Send>>;

    async fn heartbeat(&self, reports: Request<Streaming<HeartbeatRequest>>) -> Answer<Self::HeartbeatStream> {
        let node = self.node.clone();
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
            if let Err(reason) = self.node.raft(frame) {
                return Ok(Response::new(RaftStreamClosed { reason }));
            }
        }
        Ok(Response::new(RaftStreamClosed { reason: "the sender ended it".into() }))
    }

    async fn verify(&self, request: Request<VerifyRequest>) -> Answer<VerifyResponse> {
        Ok(Response::new(self.node.verify(request.into_inner()).await))
    }

    async fn snapshot(&self, chunks: Request<Streaming<SnapshotChunk>>) -> Answer<SnapshotReceived> {
        let taken = snapshots::receive(chunks.into_inner(), |head| self.node.receive_snapshot(head)).await;
        Ok(Response::new(SnapshotReceived { refusal: taken.err().unwrap_or_default() }))
    }
}

#[async_trait]
impl Founding for Services {
    async fn probe(&self, request: Request<ProbeRequest>) -> Answer<ProbeResponse> {
        Ok(Response::new(self.node.probe(&request.into_inner())))
    }
    async fn accept(&self, request: Request<AcceptRequest>) -> Answer<AcceptResponse> {
        Ok(Response::new(self.node.accept(request.into_inner())))
    }
}

impl Services {
    fn pd(&self) -> Result<node::PdClient, Status> {
        match self.node.store() {
            Some(_) => Ok(self.node.pd_client()),
            None => Err(Status::unavailable("this node has not found its cluster yet; its log says what it waits for")),
        }
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
        let said = self.pd()?.cluster_status().await.map_err(status)?;
        Ok(Response::new(ClusterStatusResponse { serves_sql: self.gateway.get().is_some(), ..said }))
    }
    async fn list_stores(&self, _: Request<GetStoresRequest>) -> Answer<GetStoresResponse> {
        Ok(Response::new(GetStoresResponse { stores: self.pd()?.stores().await.map_err(status)? }))
    }
    async fn list_regions(&self, request: Request<ScanRegionsRequest>) -> Answer<ScanRegionsResponse> {
        let ScanRegionsRequest { range, limit } = request.into_inner();
        let range = range.map(KeyRange::from).unwrap_or_default();
        let limit = if limit == 0 { REGIONS_PAGE } else { limit.min(REGIONS_PAGE) };
        let regions = self.pd()?.regions(&range, limit).await.map_err(status)?;
        Ok(Response::new(ScanRegionsResponse { regions }))
    }
    async fn find_region(&self, request: Request<FindRegionRequest>) -> Answer<FindRegionResponse> {
        Ok(Response::new(self.pd()?.find_region(request.into_inner()).await.map_err(status)?))
    }
    async fn plan(&self, request: Request<PlanRequest>) -> Answer<PlanResponse> {
        Ok(Response::new(self.pd()?.plan(request.into_inner()).await.map_err(status)?))
    }
    async fn list_operators(&self, request: Request<OperatorsRequest>) -> Answer<OperatorsResponse> {
        Ok(Response::new(self.pd()?.operators(request.into_inner()).await.map_err(status)?))
    }
    async fn cancel_operator(&self, request: Request<CancelOperatorRequest>) -> Answer<CancelOperatorResponse> {
        Ok(Response::new(self.pd()?.cancel_operator(request.into_inner().id).await.map_err(status)?))
    }
    async fn change_store(&self, request: Request<StoreChangeRequest>) -> Answer<StoreChangeResponse> {
        Ok(Response::new(self.pd()?.change_store(request.into_inner()).await.map_err(status)?))
    }
    async fn find_table(&self, request: Request<FindTableRequest>) -> Answer<FindTableResponse> {
        let not_yet = || Status::unavailable("this node does not serve SQL yet");
        let gateway = self.gateway.get().ok_or_else(not_yet)?;
        let found = gateway.table_range(&request.into_inner().name);
        let range = found.map_err(|error| Status::not_found(error.message.clone()))?;
        Ok(Response::new(FindTableResponse { range: Some((&range).into()) }))
    }
    async fn verify_region(&self, request: Request<VerifyRegionRequest>) -> Answer<VerifyRegionResponse> {
        self.pd()?;
        Ok(Response::new(self.node.verifier().verify(&request.into_inner()).await.map_err(status)?))
    }
    async fn schedulers(&self, request: Request<SchedulersRequest>) -> Answer<SchedulersResponse> {
        Ok(Response::new(self.pd()?.schedulers(request.into_inner()).await.map_err(status)?))
    }
}
