//! What stores report.

use proto::{
    PD_REGION, PeerId, RegionId, StoreId,
    wire::{HeartbeatRequest, HeartbeatResponse, StaleReplica, Store},
};

use super::{Service, State, stores::record_write};
use crate::{Cluster, MetaError, Now, cluster::Observed, operator::OperatorId};

impl Service {
    /// Takes a store's report and answers with what the store shall do. `Err`: this node is not PD (any more).
    pub async fn heartbeat(&self, now: Now, request: HeartbeatRequest) -> Result<HeartbeatResponse, MetaError> {
        let store = StoreId(said_by(&request).map_or(0, |s| s.id));
        let removed = self.was_removed(&request);
        let (refusal, stale, safe_point) = match self.heartbeat_refusal(&request) {
            Some(reason) => (reason, vec![], None),
            None => {
                self.follow_record(&request).await?;
                let stale = request.stale.clone();
                let safe_point = self.safe_point_reported(now, store, request.safe_point.as_ref());
                self.observe(now, request);
                (String::new(), stale, Some(safe_point))
            }
        };
        self.meta.confirm().await?;
        let steps = if refusal.is_empty() { self.steps_for(now, store) } else { vec![] };
        let state = self.state.lock();
        let gone = stale.iter().filter_map(|replica| without(&state.cluster, replica)).collect();
        Ok(HeartbeatResponse {
            pd_term: self.settings.term.0,
            refusal,
            leader: Some(self.settings.me.into()),
            pd_region: state.cluster.region(PD_REGION).map(|v| (&v.region).into()),
            steps,
            gone,
            store_count: state.cluster.store_count() as u64,
            removed,
            safe_point,
        })
    }

    /// Answers a store that listens, if there is something for it to do now.
    pub async fn listen(&self, now: Now, request: &HeartbeatRequest) -> Result<Option<HeartbeatResponse>, MetaError> {
        let store = StoreId(said_by(request).map_or(0, |s| s.id));
        let due = {
            let state = self.state.lock();
            state.operators.has_steps_for(now, store, &state.cluster)
        };
        let refusal = self.heartbeat_refusal(request).unwrap_or_default();
        if !due && refusal.is_empty() {
            return Ok(None);
        }
        self.meta.confirm().await?;
        let steps = if refusal.is_empty() { self.steps_for(now, store) } else { vec![] };
        Ok(Some(HeartbeatResponse {
            pd_term: self.settings.term.0,
            refusal,
            leader: Some(self.settings.me.into()),
            steps,
            ..HeartbeatResponse::default()
        }))
    }

    /// The answer to a store that listened in vain.
    pub fn nothing_to_do(&self) -> HeartbeatResponse {
        HeartbeatResponse {
            pd_term: self.settings.term.0,
            leader: Some(self.settings.me.into()),
            ..HeartbeatResponse::default()
        }
    }

    fn heartbeat_refusal(&self, request: &HeartbeatRequest) -> Option<String> {
        if request.cluster_id != self.settings.cluster.0 {
            return Some(format!(
                "heartbeat of cluster {:x}, this is cluster {:x}",
                request.cluster_id, self.settings.cluster.0
            ));
        }
        let Some(said) = said_by(request) else { return Some("a heartbeat without its store".into()) };
        match self.state.lock().cluster.store(StoreId(said.id)) {
            None => Some(format!("store {} is not registered in this cluster", said.id)),
            Some(known) if known.uuid != said.uuid => Some(format!(
                "store {} has another data directory: its UUID does not match the registered one",
                said.id
            )),
            Some(known) if known.state() == proto::wire::StoreState::Removed => {
                Some(format!("store {} was removed from the cluster", said.id))
            }
            Some(_) => None,
        }
    }

    /// The directory that reports is a store that people have removed.
    fn was_removed(&self, request: &HeartbeatRequest) -> bool {
        let Some(said) = said_by(request).filter(|_| request.cluster_id == self.settings.cluster.0) else {
            return false;
        };
        let state = self.state.lock();
        let known = state.cluster.store(StoreId(said.id)).filter(|known| known.uuid == said.uuid);
        known.is_some_and(|known| known.state() == proto::wire::StoreState::Removed)
    }

    /// A store that moved (or changed its doors or labels) says so in its heartbeat.
    async fn follow_record(&self, request: &HeartbeatRequest) -> Result<(), MetaError> {
        let Some(said) = said_by(request) else { return Ok(()) };
        let moved = |known: &Store| {
            let new = Store {
                address: said.address.clone(),
                sql_address: said.sql_address.clone(),
                http_address: said.http_address.clone(),
                labels: said.labels.clone(),
                boot_id: said.boot_id,
                ..known.clone()
            };
            (said.boot_id >= known.boot_id && new != *known).then_some(new)
        };
        let look = || self.state.lock().cluster.store(StoreId(said.id)).and_then(moved);
        if look().is_none() {
            return Ok(());
        }
        let _writer = self.writer.lock().await;
        let Some(new) = look() else { return Ok(()) };
        self.write(vec![record_write(&new)]).await?;
        tracing::info!(store = new.id, address = new.address, "a store's record changed");
        self.state.lock().cluster.put_store(new);
        Ok(())
    }

    fn observe(&self, now: Now, request: HeartbeatRequest) {
        let mut state = self.state.lock();
        let Some(status) = &request.store else { return };
        let store = StoreId(status.store.as_ref().map_or(0, |s| s.id));
        state.cluster.observe_store(now, status, request.wall_ms);
        if request.full {
            let id = |r: &proto::wire::RegionStatus| RegionId(r.region.as_ref().map_or(0, |r| r.id));
            let led = request.regions.iter().map(id).collect();
            state.cluster.retain_led(store, &led);
        }
        for region in request.regions {
            if state.cluster.observe_region(now, region) == Observed::Malformed {
                tracing::warn!(store = store.0, "a heartbeat reported a region that can't be read");
            }
        }
        let State { cluster, operators, .. } = &mut *state;
        for failure in request.failures {
            let (id, index) = (OperatorId(failure.operator_id), failure.index as usize);
            operators.step_failed(now, id, index, failure.reason, failure.again);
        }
        let ended = operators.advance(now, cluster);
        drop(state);
        if ended > 0 {
            self.changed();
        }
    }
}

/// The replica's region as it goes on without it, if its leader told this PD so.
fn without(cluster: &Cluster, replica: &StaleReplica) -> Option<proto::wire::Region> {
    let conf_ver = replica.epoch.map_or(0, |e| e.conf_ver);
    let view = cluster.region(RegionId(replica.region_id))?;
    let newer = view.term.0 > 0 && view.epoch().conf_ver > conf_ver;
    (newer && view.region.peer(PeerId(replica.peer_id)).is_none()).then(|| (&view.region).into())
}

/// The store's own record inside its heartbeat.
fn said_by(request: &HeartbeatRequest) -> Option<&Store> {
    request.store.as_ref()?.store.as_ref()
}
