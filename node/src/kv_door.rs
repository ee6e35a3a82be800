//! The kv service's door: this node's clients to any store, and other nodes' clients to this one.

use std::sync::Arc;

use async_trait::async_trait;
use kv::{Clock, Reply, Rpc, RpcError, Service, StoreScan};
use proto::{
    ClusterId, PROTOCOL_VERSION, StoreId,
    wire::{KvRequest, KvResponse, RegionError, kv_response::Body},
};

use crate::{
    AddressBook, CallError, NodeRpc,
    load::{Counted, LoadMeter},
};

/// `kv::Rpc` over the node's doors; this node's own store is called without serialising.
pub struct KvDoor {
    /// The cluster, for the header.
    pub cluster: ClusterId,
    /// This node's store.
    pub store: StoreId,
    /// Its kv service.
    pub service: Service,
    /// To other nodes.
    pub rpc: Arc<dyn NodeRpc>,
    /// Where they are.
    pub book: Arc<AddressBook>,
    /// Reads and writes the chunks of pushed-down scans.
    pub scan: Option<Arc<dyn StoreScan>>,
    /// Counts what this store's regions are asked.
    pub load: Arc<LoadMeter>,
    /// Time, for the count.
    pub clock: Arc<dyn Clock>,
}

impl KvDoor {
    /// Answers another node's request.
    pub async fn answer(&self, request: KvRequest) -> KvResponse {
        let header = request.header.clone().unwrap_or_default();
        if header.cluster_id != self.cluster.0 {
            return refused(RegionError::cluster_mismatch(self.cluster, ClusterId(header.cluster_id)));
        }
        if header.protocol_version != PROTOCOL_VERSION {
            let spoken = header.protocol_version;
            let message = format!("protocol version {spoken} is not spoken here, {PROTOCOL_VERSION} is");
            return refused(RegionError { kind: None, message });
        }
        let counted = Counted::of(&request);
        let Reply { mut response, chunk } = self.service.call(request).await;
        if let (Some(chunk), Some(Body::Scan(page))) = (chunk, &mut response.body) {
            let encoded = self.scan.as_ref().ok_or("no scans here".to_string()).and_then(|s| s.encode(&chunk));
            match encoded {
                Ok(bytes) => page.chunk = bytes,
                Err(e) => {
                    return refused(RegionError {
                        kind: None,
                        message: format!("a scan's chunk does not encode: {e}"),
                    });
                }
            }
        }
        self.count(counted, &response);
        response
    }

    fn count(&self, counted: Option<Counted>, response: &KvResponse) {
        let chunk = match &response.body {
            Some(Body::Scan(page)) => page.chunk.len(),
            _ => 0,
        };
        if let Some(counted) = counted {
            self.load.count(self.clock.now(), counted, response, chunk);
        }
    }

    async fn remote(&self, store: StoreId, request: KvRequest) -> Result<Reply, RpcError> {
        let unreachable = |why: String| RpcError::Unreachable(store, why);
        let address = self.book.address(store).ok_or_else(|| unreachable("its address is not known".into()))?;
        let mut response = self.rpc.kv(&address, request).await.map_err(|e| match e {
            CallError::Unreachable(why) => unreachable(why),
            CallError::Lost(why) => RpcError::Lost(store, why),
        })?;
        let Some(Body::Scan(page)) = &mut response.body else { return Ok(Reply { response, chunk: None }) };
        let bytes = std::mem::take(&mut page.chunk);
        let chunk = match &self.scan {
            Some(scan) if !bytes.is_empty() => Some(
                scan.decode(bytes)
                    .map_err(|e| RpcError::Lost(store, format!("a scan's chunk does not decode: {e}")))?,
            ),
            _ => None,
        };
        Ok(Reply { response, chunk })
    }
}

fn refused(error: RegionError) -> KvResponse {
    KvResponse { region_error: Some(error), ..KvResponse::default() }
}

#[async_trait]
impl Rpc for KvDoor {
    async fn call(&self, store: StoreId, mut request: KvRequest) -> Result<Reply, RpcError> {
        let header = request.header.get_or_insert_default();
        header.cluster_id = self.cluster.0;
        header.protocol_version = PROTOCOL_VERSION;
        if store == self.store {
            let counted = Counted::of(&request);
            let reply = self.service.call(request).await;
            self.count(counted, &reply.response);
            return Ok(reply);
        }
        self.remote(store, request).await
    }
    fn local_store(&self) -> Option<StoreId> {
        Some(self.store)
    }
}
