//! Stores: the founders, and those that came later.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use proto::{
    PD_REGION, StoreId,
    wire::{self, RegisterStoreRequest, RegisterStoreResponse},
};

use super::{Failure, Service};
use crate::{MetaError, MetaStore, MetaWrite, Now, cluster::DISCONNECTED_AFTER_MS, ids::Sequence, keys};

/// Stores of a cluster. Far above what one region can keep heartbeats of; it bounds a client gone wild.
const MAX_STORES: usize = 1_000;
/// Length of a data directory's UUID.
const UUID_LEN: usize = 16;

/// All stores' records among what is durable. In a new cluster there are none yet: writes the founders'.
pub(super) async fn load_or_found(
    meta: &dyn MetaStore,
    durable: &BTreeMap<Bytes, Bytes>,
    founders: &[wire::Store],
) -> Result<Vec<wire::Store>, MetaError> {
    let stores: Vec<_> = durable.iter().filter(|(key, _)| keys::is_store(key)).collect();
    if stores.is_empty() {
        meta.write(founders.iter().map(record_write).collect()).await?;
        return Ok(founders.to_vec());
    }
    let decode = |(key, value): (&Bytes, &Bytes)| {
        let corrupt = |e: prost::DecodeError| MetaError::Corrupt { key: key.clone(), reason: e.to_string() };
        wire::Store::decode(value.clone()).map_err(corrupt)
    };
    stores.into_iter().map(decode).collect()
}

pub(super) fn record_write(store: &wire::Store) -> MetaWrite {
    // The state is judged from heartbeats; only what people decide (draining, removed) is durable.
    (keys::store(StoreId(store.id)), Some(store.encode_to_vec().into()))
}

impl Service {
    /// Gives a data directory its store id: the one it has, or a new one.
    pub(super) async fn register_store(
        &self,
        now: Now,
        request: &RegisterStoreRequest,
    ) -> Result<RegisterStoreResponse, Failure> {
        let asked = request.store.clone().unwrap_or_default();
        if asked.uuid.len() != UUID_LEN || asked.address.is_empty() {
            return Err(Failure::Refused(format!("a store registers with a UUID of {UUID_LEN} bytes and its address")));
        }
        let _writer = self.writer.lock().await;
        let known = self.state.lock().cluster.store_with_uuid(&asked.uuid).map(|s| s.id);
        let id = match known {
            Some(id) => id,
            None => self.add_store(now, asked).await?,
        };
        let state = self.state.lock();
        let pd_region = state.cluster.region(PD_REGION).map(|v| (&v.region).into());
        Ok(RegisterStoreResponse { store_id: id, pd_region, cluster_id: self.settings.cluster.0 })
    }

    async fn add_store(&self, now: Now, asked: wire::Store) -> Result<u64, Failure> {
        let evicted = self.evicted_by(now, &asked.address)?;
        let taken = self.state.lock().ids.take(Sequence::Cluster, 1);
        let (id, next) = taken.ok_or(Failure::Refused("the ids are used up".into()))?;
        let record = wire::Store { id, state: wire::StoreState::Up as i32, ..asked };
        tracing::info!(store = id, address = record.address, "a new store joins");
        let records: Vec<_> = evicted.into_iter().chain([record]).collect();
        let mut writes: Vec<_> = records.iter().map(record_write).collect();
        writes.push((keys::next_id(Sequence::Cluster), Some(keys::encode_u64(next))));
        self.write(writes).await?;
        let mut state = self.state.lock();
        records.into_iter().for_each(|store| state.cluster.put_store(store));
        Ok(id)
    }

    /// Stores that were at this address and are not any more: a wiped data directory, or a machine that moved. One that
    /// was heard of just now is there: two nodes with one address would take it from each other in turn.
    fn evicted_by(&self, now: Now, address: &str) -> Result<Vec<wire::Store>, Failure> {
        let state = self.state.lock();
        if state.cluster.store_count() >= MAX_STORES {
            return Err(Failure::Refused(format!("the cluster has {MAX_STORES} stores already")));
        }
        let mut evicted = Vec::new();
        for (store, silent_ms) in state.cluster.stores_at(now, address) {
            if silent_ms <= DISCONNECTED_AFTER_MS {
                return Err(Failure::Busy(format!(
                    "the address {address}: store {} was heard of there {silent_ms} ms ago, a new store may have it \
                     after {DISCONNECTED_AFTER_MS} ms",
                    store.id
                )));
            }
            tracing::warn!(store = store.id, address, "a store loses its address to another data directory");
            evicted.push(wire::Store { address: String::new(), ..store.clone() });
        }
        Ok(evicted)
    }
}
