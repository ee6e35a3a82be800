//! Asking the SQL side of every node, and whatever else no region can be asked.

use std::time::Duration;

use futures::future::join_all;
use proto::{
    StoreId,
    wire::{
        CallBackRequest, GatewayRequest, GatewayResponse, HandBackRequest, KvRequest, ListSessionsRequest, PokeRequest,
        RequestHeader, SignalRequest, StoreStatus, gateway_request, kv_request, kv_response,
    },
};

use super::{Client, read::wrong_answer};
use crate::Error;

/// A store that has not answered by then is taken for one that is down.
const PATIENCE: Duration = Duration::from_secs(1);

impl Client {
    /// Asks every store the same, at once: the answers of those that answer. One that is down is left out.
    pub(crate) async fn ask_all(&self, body: kv_request::Body) -> Result<Vec<(StoreId, kv_response::Body)>, Error> {
        let stores = self.inner.pd.stores().await?;
        let stores = stores.into_iter().filter_map(|StoreStatus { store, .. }| Some(StoreId(store?.id)));
        let ask = |store| {
            let header = RequestHeader { deadline_ms: PATIENCE.as_millis() as u64, ..RequestHeader::default() };
            let request = KvRequest { header: Some(header), body: Some(body.clone()) };
            async move { (store, self.inner.rpc.call(store, request).await) }
        };
        let mut answers = Vec::new();
        for (store, reply) in join_all(stores.map(ask)).await {
            match reply.map(|reply| reply.response.body) {
                Ok(Some(answer)) => answers.push((store, answer)),
                Ok(None) => tracing::debug!(%store, "a store refused to answer"),
                Err(error) => tracing::debug!(%store, %error, "a store does not answer"),
            }
        }
        Ok(answers)
    }

    /// The SQL sessions of all nodes that answer, node by node, and what they use of tables.
    pub async fn gateways(&self) -> Result<Vec<(StoreId, GatewayResponse)>, Error> {
        let list = gateway_request::Body::ListSessions(ListSessionsRequest {});
        let answers = self.ask_all(kv_request::Body::Gateway(GatewayRequest { body: Some(list) })).await?;
        let gateway = |(store, answer)| match answer {
            kv_response::Body::Gateway(answer) => Ok((store, answer)),
            _ => Err(wrong_answer("session list")),
        };
        answers.into_iter().map(gateway).collect()
    }

    /// Cancels a session's statement, or ends the session, on whichever node it is. `false`: no node that answers has it.
    pub async fn signal(&self, signal: SignalRequest) -> Result<bool, Error> {
        let request = GatewayRequest { body: Some(gateway_request::Body::Signal(signal)) };
        let answers = self.ask_all(kv_request::Body::Gateway(request)).await?;
        Ok(answers.iter().any(|(_, answer)| matches!(answer, kv_response::Body::Gateway(answer) if answer.signalled)))
    }

    /// Has gateways call a table back for a session: the answers of those that answer.
    pub async fn call_back(&self, call_back: CallBackRequest) -> Result<Vec<GatewayResponse>, Error> {
        let request = GatewayRequest { body: Some(gateway_request::Body::CallBack(call_back)) };
        let answers = self.ask_all(kv_request::Body::Gateway(request)).await?;
        let answer = |(_, answer)| match answer {
            kv_response::Body::Gateway(answer) => Ok(answer),
            _ => Err(wrong_answer("call back")),
        };
        answers.into_iter().map(answer).collect()
    }

    /// Tells all gateways that a session locks a table in fewer modes, or not at all.
    pub async fn hand_back(&self, hand_back: HandBackRequest) -> Result<(), Error> {
        let request = GatewayRequest { body: Some(gateway_request::Body::HandBack(hand_back)) };
        self.ask_all(kv_request::Body::Gateway(request)).await.map(|_| ())
    }

    /// Tells all gateways that there are notifications.
    pub async fn poke_listeners(&self) -> Result<(), Error> {
        let poke = GatewayRequest { body: Some(gateway_request::Body::Poke(PokeRequest {})) };
        self.ask_all(kv_request::Body::Gateway(poke)).await.map(|_| ())
    }

    /// The store of this client's own node, if it has one.
    pub fn local_store(&self) -> Option<StoreId> {
        self.inner.rpc.local_store()
    }
}
