//! The calling side of `node`'s driver trait.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use node::{CallError, NodeRpc};
use proto::wire::{
    AcceptRequest, AcceptResponse, HeartbeatRequest, HeartbeatResponse, KvRequest, KvResponse, PdRequest, PdResponse,
    ProbeRequest, ProbeResponse, RequestHeader, VerifyRequest, VerifyResponse,
};
use tonic::{Response, Status, transport::Channel};

use super::{
    MESSAGE_BYTES_MAX,
    channels::{Channels, was_never_sent},
    stubs::{founding_client::FoundingClient, kv_client::KvClient, pd_client::PdClient, raft_client::RaftClient},
};

/// A call whose header names no deadline ends after this: longer than an election, so that what waits for one gets its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The answer to a call that ran out of time on the other side is worth waiting a little for: it says why.
const ANSWER_GRACE: Duration = Duration::from_millis(200);

/// Calls over [`Channels`].
pub struct GrpcRpc(pub Arc<Channels>);

impl GrpcRpc {
    fn channel(&self, address: &str) -> Result<Channel, CallError> {
        self.0.to(&address.into()).map_err(|e| CallError::Unreachable(format!("{address}: {e}")))
    }
}

async fn ended<T>(
    address: &str,
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if was_never_sent(&status) => {
            Err(CallError::Unreachable(format!("{address}: {}", status.message())))
        }
        Ok(Err(status)) => Err(CallError::Lost(format!("{address}: {}", status.message()))),
        Err(_) => Err(CallError::Lost(format!("{address}: nothing within {limit:?}"))),
    }
}

fn limit(header: &Option<RequestHeader>) -> Duration {
    match header.as_ref().map_or(0, |h| h.deadline_ms) {
        0 => CALL_TIMEOUT,
        ms => Duration::from_millis(ms) + ANSWER_GRACE,
    }
}

#[async_trait]
impl NodeRpc for GrpcRpc {
    async fn probe(&self, address: &str, request: ProbeRequest) -> Result<ProbeResponse, CallError> {
        let mut client = FoundingClient::new(self.channel(address)?);
        ended(address, CALL_TIMEOUT, client.probe(request)).await
    }
    async fn accept(&self, address: &str, request: AcceptRequest) -> Result<AcceptResponse, CallError> {
        let mut client = FoundingClient::new(self.channel(address)?);
        ended(address, CALL_TIMEOUT, client.accept(request)).await
    }
    async fn pd(&self, address: &str, request: PdRequest) -> Result<PdResponse, CallError> {
        let mut client = PdClient::new(self.channel(address)?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        ended(address, limit(&request.header), client.call(request)).await
    }
    async fn heartbeat(&self, address: &str, request: HeartbeatRequest) -> Result<HeartbeatResponse, CallError> {
        let mut client = PdClient::new(self.channel(address)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let limit = CALL_TIMEOUT + Duration::from_millis(request.listen_ms);
        let exchange = async {
            let mut answers = client.heartbeat(futures::stream::iter([request])).await?.into_inner();
            let answer = answers.message().await?;
            answer.map(Response::new).ok_or_else(|| Status::unavailable("the stream ended without an answer"))
        };
        ended(address, limit, exchange).await
    }
    async fn kv(&self, address: &str, request: KvRequest) -> Result<KvResponse, CallError> {
        let mut client = KvClient::new(self.channel(address)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        ended(address, limit(&request.header), client.call(request)).await
    }
    async fn verify(&self, address: &str, request: VerifyRequest) -> Result<VerifyResponse, CallError> {
        let mut client = RaftClient::new(self.channel(address)?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        ended(address, CALL_TIMEOUT, client.verify(request)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_node_does_not_hold_a_call() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let header = Some(RequestHeader { deadline_ms: 10, ..Default::default() });
        let rpc = GrpcRpc(Arc::default());
        let answer = rpc.pd(&address, PdRequest { header, body: None }).await;
        assert!(matches!(answer, Err(CallError::Lost(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn an_address_that_is_none_is_unreachable() {
        let answer = GrpcRpc(Arc::default()).probe("no address", ProbeRequest::default()).await;
        assert!(matches!(answer, Err(CallError::Unreachable(_))), "{answer:?}");
    }
}
