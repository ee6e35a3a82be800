//! The answering side: each service hands its calls to the node.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use kv::{Pd as _, PdError};
use node::Node;
use proto::{
    KeyRange, RegionId, StoreId,
    wire::{
        self, AcceptRequest, AcceptResponse, ClusterStatusRequest, ClusterStatusResponse, GetStoresRequest,
        GetStoresResponse, HeartbeatRequest, HeartbeatResponse, KvRequest, KvResponse, PdRequest, PdResponse,
        ProbeRequest, ProbeResponse, RaftFrame, RaftStreamClosed, ScanRegionsRequest, ScanRegionsResponse,
        ShowRegionRequest, ShowRegionResponse, SnapshotChunk, SnapshotReceived, TransferLeaderRequest,
        TransferLeaderResponse,
    },
};
use tonic::{Request, Response, Status, Streaming, async_trait, transport::Channel};

use super::{
    channels::Channels,
    snapshots,
    stubs::{
        admin_client::AdminClient, admin_server::Admin, founding_server::Founding, kv_server::Kv, pd_server::Pd,
        raft_server::Raft,
    },
};

/// Regions of one answer at most; who wants more asks again from where it ended.
const REGIONS_PAGE: u32 = 1000;

/// All services of a node.
#[derive(Clone)]
pub struct Services {
    /// Answers.
    pub node: Arc<Node>,
    /// To the node that an administrator really means.
    pub channels: Arc<Channels>,
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
        let region = self.region(request.into_inner().region_id).await?;
        Ok(Response::new(ShowRegionResponse { region: Some(region) }))
    }
    async fn transfer_leader(&self, request: Request<TransferLeaderRequest>) -> Answer<TransferLeaderResponse> {
        let request = request.into_inner();
        let status = self.region(request.region_id).await?;
        let (id, to) = (request.region_id, request.to_store);
        if !status.region.unwrap_or_default().peers.iter().any(|peer| peer.store_id == to) {
            return Err(Status::invalid_argument(format!("region {id} has no peer on store {to}")));
        }
        let leader = status.leader.unwrap_or_default().store_id;
        if self.node.store() == Some(StoreId(leader)) {
            self.node.store_handle().transfer(RegionId(id), StoreId(to));
            return Ok(Response::new(TransferLeaderResponse {}));
        }
        if leader == 0 || request.forwarded {
            return Err(Status::unavailable(format!("region {id} has no leader right now: try again")));
        }
        let mut client = AdminClient::new(self.channel_to(leader).await?);
        client.transfer_leader(TransferLeaderRequest { forwarded: true, ..request }).await
    }
}

impl Services {
    async fn channel_to(&self, store: u64) -> Result<Channel, Status> {
        let stores = self.pd()?.stores().await.map_err(status)?;
        let known = stores.into_iter().filter_map(|s| s.store).find(|s| s.id == store);
        let address = known.ok_or_else(|| Status::unavailable(format!("PD does not know store {store}")))?.address;
        self.channels.to(&address.into()).map_err(|e| Status::unavailable(e.to_string()))
    }

    /// One region as PD knows it.
    async fn region(&self, id: u64) -> Result<wire::RegionStatus, Status> {
        let mut range = KeyRange::default();
        loop {
            let page = self.regions(&range, REGIONS_PAGE).await?;
            let end = page.last().and_then(|r| r.region.as_ref()?.range.as_ref()).map(|r| r.end_key.clone());
            if let Some(found) = page.into_iter().find(|r| r.region.as_ref().is_some_and(|r| r.id == id)) {
                return Ok(found);
            }
            match end {
                Some(end) if !end.is_empty() => range.start = end,
                _ => return Err(Status::not_found(format!("no region {id}"))),
            }
        }
    }
}
