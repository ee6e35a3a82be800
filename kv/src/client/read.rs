//! Point reads: one key or several, at a timestamp or the newest.

use bytes::Bytes;
use futures::future::try_join_all;
use proto::{
    Timestamp,
    wire::{GetRequest, KeyValue, OwnWrites, kv_request::Body, kv_response},
};

use crate::{Error, Reply, error::Refusal};

use super::{Client, backoff::Backoff, near::Source, resolver::LockWait, route::Deadline};

/// Keys of one request at most: it bounds what a store holds at once for a caller.
const MAX_KEYS: usize = 1024;

/// How keys are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    /// The snapshot.
    pub(crate) ts: Timestamp,
    /// Which replicas may answer.
    pub(crate) from: Source,
    /// Of a transaction that has spilled: what it reads of its own.
    pub(crate) own: Option<OwnWrites>,
}

impl Client {
    /// The newest committed value; when a lock is in the way, the value at a fresh timestamp.
    pub(crate) async fn read_latest(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let deadline = self.deadline();
        let key = Bytes::copy_from_slice(key);
        let request = || Body::Get(GetRequest { keys: vec![key.clone()], ..Default::default() });
        let (_, reply) = self.call(&key, deadline, request).await?;
        match answer(reply)? {
            Ok(pairs) => Ok(pairs.into_iter().next().map(|p| p.value)),
            Err(Refusal::Locked(_)) => {
                let ts = self.timestamp().await?;
                self.read_at(key, At { ts, from: Source::Leader, own: None }).await
            }
            Err(refusal) => Err(unexpected(refusal)),
        }
    }

    /// The value visible to a read.
    pub(crate) async fn read_at(&self, key: Bytes, at: At) -> Result<Option<Bytes>, Error> {
        let pairs = self.read_region(vec![key], at, self.deadline()).await?;
        Ok(pairs.into_iter().next().map(|p| p.value))
    }

    /// The values of sorted, distinct keys that are visible to a read; those that exist, in order.
    pub(crate) async fn read_many(&self, keys: Vec<Bytes>, at: At) -> Result<Vec<KeyValue>, Error> {
        let deadline = self.deadline();
        if keys.len() == 1 {
            return self.read_region(keys, at, deadline).await;
        }
        let groups = self.group(keys, |k| k, deadline).await?;
        let parts = groups.iter().flat_map(|(_, keys)| keys.chunks(MAX_KEYS));
        let parts = try_join_all(parts.map(|keys| self.read_region(keys.to_vec(), at, deadline))).await?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// Keys that were in one region a moment ago. Should borders have moved, they are cut up again.
    async fn read_region(
        &self,
        keys: Vec<Bytes>,
        At { ts, from, own }: At,
        deadline: Deadline,
    ) -> Result<Vec<KeyValue>, Error> {
        let mut found: Vec<KeyValue> = Vec::new();
        let mut rest = keys;
        let mut backoff = Backoff::ROUTING;
        let mut wait = LockWait::reading_keys(ts);
        let mut ask_near = from == Source::Nearest;
        while !rest.is_empty() {
            let route = self.locate(&rest[0], deadline).await?;
            let inside = rest.partition_point(|k| route.region.range.contains(k)).max(1);
            let request = GetRequest { keys: rest[..inside].to_vec(), read_ts: ts.0, own, passed: wait.passed() };
            let near = match std::mem::take(&mut ask_near) {
                true => self.ask_own(&route, Body::Get(request.clone()), deadline).await,
                false => None,
            };
            let reply = match near {
                Some(reply) => reply,
                None => {
                    let (request, patience) = (Body::Get(request), backoff.patience());
                    let attempt = self.attempt_from(&route, from, request, patience, deadline).await;
                    let Some(reply) = self.settle(attempt, &mut backoff, deadline).await? else { continue };
                    reply
                }
            };
            match answer(reply)? {
                Ok(mut pairs) => {
                    if inside == rest.len() && found.is_empty() {
                        return Ok(pairs);
                    }
                    found.append(&mut pairs);
                    rest.drain(..inside);
                    ask_near = from == Source::Nearest;
                }
                Err(Refusal::Locked(lock)) => self.clear_lock(&lock, &mut wait, deadline).await?,
                Err(refusal) => return Err(unexpected(refusal)),
            }
        }
        Ok(found)
    }
}

fn answer(reply: Reply) -> Result<Result<Vec<KeyValue>, Refusal>, Error> {
    match reply.response.body {
        Some(kv_response::Body::Get(get)) => Ok(match get.error {
            Some(error) => Err(Refusal::from(error)),
            None => Ok(get.pairs),
        }),
        _ => Err(wrong_answer("get")),
    }
}

/// The callee answered another question.
pub(crate) fn wrong_answer(what: &str) -> Error {
    Error::Corrupt(format!("the answer to a {what} request is of another kind"))
}

/// A refusal that this request does not have.
pub(crate) fn unexpected(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Error(error) => error,
        Refusal::Locked(lock) => Error::Corrupt(format!("unexpected lock on key {}", crate::error::hex(&lock.key))),
        Refusal::CommitTsTooLow(ts) => Error::Corrupt(format!("unexpected demand for a commit timestamp of {ts}")),
        Refusal::TxnNotFound => Error::Corrupt("unexpected answer: transaction not found".into()),
    }
}
