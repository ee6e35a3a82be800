//! Stores: the founders, and those that came later.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use proto::{
    PD_REGION, StoreId,
    wire::{self, RegisterStoreRequest, RegisterStoreResponse},
};

use super::{Failure, Service};
use crate::{MetaError, MetaStore, MetaWrite, ids::Sequence, keys};

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
        request: &RegisterStoreRequest,
    ) -> Result<RegisterStoreResponse, Failure> {
        let asked = request.store.clone().unwrap_or_default();
        if asked.uuid.len() != UUID_LEN || asked.address.is_empty() {
            return Err(Failure::Refused(format!("a store registers with a UUID of {UUID_LEN} bytes and its address")));
        }
        let _writer = self.writer.lock().await;
        let known = self.state.lock().cluster.store_with_uuid(&asked.uuid).cloned();
        let id = match known {
            Some(store) => store.id,
            None => self.add_store(asked).await?,
        };
        let state = self.state.lock();
        let pd_region = state.cluster.region(PD_REGION).map(|v| (&v.region).into());
        Ok(RegisterStoreResponse { store_id: id, pd_region, cluster_id: self.settings.cluster.0 })
    }

    async fn add_store(&self, asked: wire::Store) -> Result<u64, Failure> {
        let (id, next, evicted) = {
            let mut state = self.state.lock();
            if state.cluster.store_count() >= MAX_STORES {
                return Err(Failure::Refused(format!("the cluster has {MAX_STORES} stores already")));
            }
            let (id, next) =
                state.ids.take(Sequence::Cluster, 1).ok_or(Failure::Refused("the ids are used up".into()))?;
            // Whoever was at this address before is not any more: a wiped data directory, or a moved machine.
            let evicted: Vec<_> = state
                .cluster
                .stores_at(&asked.address)
                .map(|s| wire::Store { address: String::new(), ..s.clone() })
                .collect();
            (id, next, evicted)
        };
        let record = wire::Store { id, state: wire::StoreState::Up as i32, ..asked };
        let records: Vec<_> = evicted.into_iter().chain([record]).collect();
        let mut writes: Vec<_> = records.iter().map(record_write).collect();
        writes.push((keys::next_id(Sequence::Cluster), Some(keys::encode_u64(next))));
        self.write(writes).await?;
        for store in records {
            if store.address.is_empty() {
                tracing::warn!(
                    store = store.id,
                    by = id,
                    "a store lost its address to a new one with another data directory"
                );
            } else {
                tracing::info!(store = store.id, address = store.address, "a new store joined");
            }
            self.state.lock().cluster.put_store(store);
        }
        Ok(id)
    }
}
