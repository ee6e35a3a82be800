//! Plans become operators here: ids are made durable, then the plan is admitted.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use proto::{
    StoreId,
    wire::{
        CancelOperatorRequest, CancelOperatorResponse, OperatorsRequest, OperatorsResponse, PdSettings, RegionStep,
        SchedulerStatus, SchedulersRequest, SchedulersResponse,
    },
};

use super::{Failure, Service, State};
use crate::{
    MetaError, Now,
    ids::Sequence,
    keys,
    operator::{OperatorId, Plan},
    planner::{self, Sight},
    scheduler::SCHEDULERS,
    survey::Survey,
};

/// Between two rounds of planning: what a store reports changes once a second.
const PLAN_EVERY_MS: u64 = 1_000;
/// A cluster at rest is looked at again after so long: borders come of age.
const LOOK_AGAIN_MS: u64 = 10_000;
/// Format of the settings this version writes and reads.
const SETTINGS_FORMAT: u32 = 1;

/// Schedulers that people have switched off.
pub(super) fn disabled_schedulers(durable: &BTreeMap<Bytes, Bytes>) -> Result<Vec<String>, MetaError> {
    let key = keys::settings();
    let Some(value) = durable.get(&key) else { return Ok(vec![]) };
    let corrupt = |reason: String| MetaError::Corrupt { key: key.clone(), reason };
    let settings = PdSettings::decode(value.clone()).map_err(|e| corrupt(e.to_string()))?;
    if settings.format != SETTINGS_FORMAT {
        return Err(corrupt(format!("format {}, this program knows {SETTINGS_FORMAT}", settings.format)));
    }
    Ok(settings.disabled_schedulers)
}

impl Service {
    /// Looks after the operators and, once a second, plans new ones. To be called a few times a second.
    pub async fn plan(&self, now: Now) -> Result<(), MetaError> {
        let plans = {
            let mut state = self.state.lock();
            let State { cluster, operators, rules, planned_ms, at_rest, .. } = &mut *state;
            operators.advance(now, cluster);
            if planned_ms.is_some_and(|at| now.monotonic_ms.saturating_sub(at) < PLAN_EVERY_MS) {
                return Ok(());
            }
            *planned_ms = Some(now.monotonic_ms);
            let (sight, idle) = (Sight::of(cluster, rules, now), operators.running().len() == 0);
            let lately = |at: u64| now.monotonic_ms.saturating_sub(at) < LOOK_AGAIN_MS;
            if idle && at_rest.as_ref().is_some_and(|(at, seen)| lately(*at) && *seen == sight) {
                return Ok(());
            }
            let mut plans = planner::plan(&Survey::new(cluster, operators, rules, now));
            #[cfg(feature = "planted-bugs")]
            if self.settings.planted == Some(crate::Planted::RemovalBelowQuorum) {
                operators.reckless = true;
                plans.splice(0..0, crate::operator::safety::removals_below_quorum(now, cluster));
            }
            *at_rest = (idle && plans.is_empty()).then_some((now.monotonic_ms, sight));
            plans.retain(|plan| operators.objection(now, plan, cluster).is_ok());
            plans
        };
        for plan in plans {
            match self.admit(now, plan).await {
                Ok(_) => {}
                Err(Failure::Meta(error)) => return Err(error),
                // It was overtaken while its ids were written.
                Err(Failure::Refused(reason) | Failure::Busy(reason)) => tracing::debug!(reason, "a plan was dropped"),
            }
        }
        Ok(())
    }

    /// Gives a plan its ids, durably, and admits it.
    pub(super) async fn admit(&self, now: Now, mut plan: Plan) -> Result<OperatorId, Failure> {
        let refused = |e: crate::operator::Refused| Failure::Refused(e.to_string());
        let peers = {
            let state = self.state.lock();
            state.operators.objection(now, &plan, &state.cluster).map_err(refused)?;
            state.cluster.region(plan.region).map_or(0, |v| v.region.peers.len())
        };
        let count = plan.wants_ids(peers);
        if count > 0 {
            let _writer = self.writer.lock().await;
            let first = self.take_ids(Sequence::Cluster, count, Vec::new()).await?;
            plan.give_ids(first, peers);
        }
        let id = {
            let mut state = self.state.lock();
            let State { cluster, operators, .. } = &mut *state;
            operators.admit(now, plan.clone(), cluster).map_err(refused)?
        };
        tracing::info!(
            operator = id.0,
            region = plan.region.0,
            rule = plan.rule,
            reason = plan.reason,
            "PD plans a change of a region"
        );
        self.changed();
        Ok(id)
    }

    /// Steps that the store is to carry out now. Confirmed by the caller.
    pub(super) fn steps_for(&self, now: Now, store: StoreId) -> Vec<RegionStep> {
        let mut state = self.state.lock();
        let State { cluster, operators, .. } = &mut *state;
        operators.steps_for(now, store, cluster)
    }

    pub(super) fn list_operators(&self, now: Now, request: &OperatorsRequest) -> OperatorsResponse {
        let state = self.state.lock();
        let wanted = |op: &crate::operator::Operator| {
            (request.id == 0 || op.id.0 == request.id)
                && (request.region_id == 0 || op.plan.region.0 == request.region_id)
        };
        let running = state.operators.running().filter(|op| wanted(op)).map(|op| op.status(now));
        let finished =
            state.operators.finished().rev().filter(|f| (request.finished || request.id != 0) && wanted(&f.operator));
        OperatorsResponse { operators: running.chain(finished.map(|f| f.status(now))).collect() }
    }

    pub(super) fn cancel_operator(
        &self,
        now: Now,
        request: &CancelOperatorRequest,
    ) -> Result<CancelOperatorResponse, Failure> {
        let id = OperatorId(request.id);
        let mut state = self.state.lock();
        // Again: what has ended has ended.
        state.operators.cancel(now, id, "a person cancelled it");
        let ended = state.operators.ended(id).map(|f| f.status(now));
        let operator = ended.ok_or_else(|| Failure::Refused(format!("no operator {}", request.id)))?;
        Ok(CancelOperatorResponse { operator: Some(operator) })
    }

    pub(super) async fn schedulers(&self, request: &SchedulersRequest) -> Result<SchedulersResponse, Failure> {
        if !request.name.is_empty() {
            self.switch_scheduler(request).await?;
        }
        let state = self.state.lock();
        let status = |s: &crate::scheduler::Scheduler| SchedulerStatus {
            name: s.name.into(),
            enabled: state.rules.has(s),
            does: s.does.into(),
        };
        Ok(SchedulersResponse { schedulers: SCHEDULERS.iter().map(status).collect() })
    }

    async fn switch_scheduler(&self, request: &SchedulersRequest) -> Result<(), Failure> {
        if !SCHEDULERS.iter().any(|s| s.name == request.name) {
            let names: Vec<_> = SCHEDULERS.iter().map(|s| s.name).collect();
            return Err(Failure::Refused(format!("no scheduler {:?}; there are {}", request.name, names.join(", "))));
        }
        let _writer = self.writer.lock().await;
        let mut disabled = self.state.lock().rules.disabled.clone();
        let news = if request.enabled { disabled.remove(&request.name) } else { disabled.insert(request.name.clone()) };
        if news {
            let settings =
                PdSettings { format: SETTINGS_FORMAT, disabled_schedulers: disabled.iter().cloned().collect() };
            self.write(vec![(keys::settings(), Some(settings.encode_to_vec().into()))]).await?;
            self.state.lock().rules.disabled = disabled;
        }
        Ok(())
    }
}
