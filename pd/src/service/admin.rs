//! What people ask for: plans for regions, states of stores. Refused with the reason, or admitted; asking again for what
//! is so already is no error.

use bytes::Bytes;
use proto::{
    Epoch, PD_REGION, RegionId, StoreId,
    wire::{
        self, FindRegionRequest, FindRegionResponse, MergeRegionRequest, MoveLeaderRequest, MovePeerRequest,
        PlanRequest, PlanResponse, SplitRegionRequest, StoreChange, StoreChangeRequest, StoreChangeResponse,
        StoreState, plan_request::Kind as Asked,
    },
};

use super::{Failure, Service, State, stores::record_write};
use crate::{
    Now,
    checker::merge_regions,
    cluster::RegionView,
    operator::{Kind, Plan, SplitBy, Step},
    placement,
    survey::Survey,
};

/// Keys of one split; each becomes a region and an election.
const SPLIT_KEYS_MAX: usize = 1_000;
const RULE: &str = "admin";

type Plans = Result<Vec<Plan>, String>;

fn by_hand(view: &RegionView, steps: Vec<Step>, reason: String) -> Plans {
    Ok(vec![placement::plan(view, Kind::Admin, RULE, steps, reason)])
}

impl Service {
    pub(super) async fn plan_for_people(&self, now: Now, request: &PlanRequest) -> Result<PlanResponse, Failure> {
        let plans = {
            let state = self.state.lock();
            if let Some(why) = not_yet(&state, now, request) {
                return Err(Failure::Busy(why));
            }
            let survey = Survey::new(&state.cluster, &state.operators, &state.rules, now);
            let plans = match &request.kind {
                Some(Asked::Split(r)) => split(&survey, r),
                Some(Asked::Merge(r)) => merge(&survey, r),
                Some(Asked::Move(r)) => move_peer(&survey, r),
                Some(Asked::TransferLeader(r)) => transfer(&survey, r),
                None => Err("the request says nothing that this version of PD knows".into()),
            };
            plans.map_err(Failure::Refused)?
        };
        let mut operator_ids = Vec::new();
        for mut plan in plans {
            if let Some(epoch) = request.epoch {
                plan.epoch = Epoch::from(epoch);
            }
            operator_ids.push(self.admit(now, plan).await?.0);
        }
        Ok(PlanResponse { operator_ids })
    }

    pub(super) fn find_region(&self, now: Now, request: &FindRegionRequest) -> Result<FindRegionResponse, Failure> {
        let state = self.state.lock();
        let view = match request.region_id {
            0 => state.cluster.region_of(&request.key),
            id => state.cluster.region(RegionId(id)),
        };
        if view.is_none() && is_new(&state, now) {
            return Err(Failure::Busy("PD is new, and has not heard of all regions yet".into()));
        }
        let operator = view.and_then(|v| state.operators.of_region(v.id())).map(|op| op.status(now));
        Ok(FindRegionResponse { region: view.map(Into::into), operator })
    }

    pub(super) async fn change_store(
        &self,
        now: Now,
        request: &StoreChangeRequest,
    ) -> Result<StoreChangeResponse, Failure> {
        let id = StoreId(request.store_id);
        let _writer = self.writer.lock().await;
        let new = {
            let state = self.state.lock();
            let change = StoreChange::try_from(request.change).unwrap_or(StoreChange::None);
            changed_store(&state, now, id, change).map_err(Failure::Refused)?
        };
        if let Some(record) = new {
            self.write(vec![record_write(&record)]).await?;
            tracing::info!(store = id.0, state = record.state().as_str_name(), "a store's state was set");
            self.state.lock().cluster.put_store(record);
        }
        let state = self.state.lock();
        let store =
            state.cluster.store_statuses(now).into_iter().find(|s| s.store.as_ref().is_some_and(|s| s.id == id.0));
        Ok(StoreChangeResponse { store, replicas: state.cluster.replicas_on(id) as u64 })
    }
}

/// Not all stores and regions have been reported to this PD.
fn is_new(state: &State, now: Now) -> bool {
    !state.cluster.has_settled(now) || !state.cluster.is_complete()
}

/// Why a plan can't be judged yet: a region that it names has no leader for the moment, or this PD has not heard of it. The
/// caller asks again until its own deadline.
fn not_yet(state: &State, now: Now, request: &PlanRequest) -> Option<String> {
    let (ids, keys) = match &request.kind {
        Some(Asked::Split(r)) => (vec![r.region_id], &r.keys[..]),
        Some(Asked::Merge(r)) => (vec![r.region_id, r.into_region_id], &[][..]),
        Some(Asked::Move(r)) => (vec![r.region_id], &[][..]),
        Some(Asked::TransferLeader(r)) => (vec![r.region_id], &[][..]),
        None => return None,
    };
    let named = ids.into_iter().filter(|id| *id != 0).map(|id| (state.cluster.region(RegionId(id)), id.to_string()));
    let of_keys = keys.iter().map(|key| (state.cluster.region_of(key), format!("of key {}", hex(key))));
    named.chain(of_keys).find_map(|(view, what)| match view {
        // Whether it exists at all is known only later.
        None if is_new(state, now) => Some(format!("PD is new, and has not heard of region {what} yet")),
        Some(view) if view.leader.is_none() || view.term.0 == 0 => {
            Some(format!("region {} has no leader right now", view.id().0))
        }
        _ => None,
    })
}

/// The store's record as it shall be; `None`: as it is.
fn changed_store(state: &State, now: Now, id: StoreId, change: StoreChange) -> Result<Option<wire::Store>, String> {
    let known = state.cluster.store(id).ok_or_else(|| format!("no store {}", id.0))?;
    let is = known.state();
    let to = match change {
        StoreChange::None => return Ok(None),
        StoreChange::Drain => StoreState::Draining,
        StoreChange::Up => StoreState::Up,
        StoreChange::Remove => StoreState::Removed,
    };
    if is == to {
        return Ok(None);
    }
    if is == StoreState::Removed {
        return Err(format!(
            "store {} was removed; its node comes back only as a new store, with an empty directory",
            id.0
        ));
    }
    match to {
        StoreState::Draining => room_without(state, now, id)?,
        StoreState::Removed => {
            if !state.cluster.has_settled(now) || !state.cluster.is_complete() {
                return Err("PD does not know all regions yet: try again in a moment".into());
            }
            match state.cluster.replicas_on(id) {
                0 => {}
                left => return Err(format!("{left} regions have replicas on store {}: drain it first", id.0)),
            }
        }
        _ => {}
    }
    Ok(Some(wire::Store { state: to as i32, ..known.clone() }))
}

/// Draining moves replicas: there must be stores for them.
fn room_without(state: &State, now: Now, id: StoreId) -> Result<(), String> {
    let survey = Survey::new(&state.cluster, &state.operators, &state.rules, now);
    let rest = survey.sites().filter(|s| s.store != id && s.takes_replicas()).count();
    let here = state.cluster.views().filter(|v| v.is_on(id));
    let most = here.map(|v| v.region.peers.len().min(state.rules.replicas)).max().unwrap_or(0);
    match rest < most {
        true => {
            Err(format!("{rest} stores would be left for regions of {most} replicas (those that are up and have room)"))
        }
        false => Ok(()),
    }
}

fn region<'a>(survey: &Survey<'a>, id: u64) -> Result<&'a RegionView, String> {
    survey.region(RegionId(id)).ok_or_else(|| format!("no region {id}"))
}

fn split(survey: &Survey<'_>, request: &SplitRegionRequest) -> Plans {
    if request.keys.len() > SPLIT_KEYS_MAX {
        return Err(format!("{} keys, at most {SPLIT_KEYS_MAX} at a time", request.keys.len()));
    }
    if request.keys.is_empty() {
        let view = region(survey, request.region_id)?;
        is_users(view)?;
        return by_hand(view, vec![Step::Split { by: SplitBy::Size(2), ids: vec![] }], "split in half by hand".into());
    }
    let mut keys: Vec<Bytes> = request.keys.clone();
    keys.sort_unstable();
    keys.dedup();
    let mut by_region: Vec<(&RegionView, Vec<Bytes>)> = Vec::new();
    for key in keys {
        let view = survey.cluster.region_of(&key).ok_or("no leader has reported the region of a key yet")?;
        if request.region_id != 0 && view.id().0 != request.region_id {
            region(survey, request.region_id)?;
            return Err(format!("key {} lies in region {}, not {}", hex(&key), view.id().0, request.region_id));
        }
        is_users(view)?;
        match by_region.last_mut() {
            // A border is there already.
            _ if view.region.range.start == key => {}
            Some((last, keys)) if last.id() == view.id() => keys.push(key),
            _ => by_region.push((view, vec![key])),
        }
    }
    let plan = |(view, keys): (&RegionView, Vec<Bytes>)| {
        let reason = format!("split at {} keys by hand", keys.len());
        let steps = vec![Step::Split { by: SplitBy::Keys(keys), ids: vec![] }];
        placement::plan(view, Kind::Admin, RULE, steps, reason)
    };
    Ok(by_region.into_iter().map(plan).collect())
}

fn is_users(view: &RegionView) -> Result<(), String> {
    match view.id() {
        PD_REGION => Err("region 1 is PD's: it neither splits nor merges".into()),
        _ => Ok(()),
    }
}

fn merge(survey: &Survey<'_>, request: &MergeRegionRequest) -> Plans {
    let (source, target) = (region(survey, request.region_id)?, region(survey, request.into_region_id)?);
    is_users(source)?;
    is_users(target)?;
    let follows = |a: &RegionView, b: &RegionView| survey.cluster.right_of(a).is_some_and(|r| r.id() == b.id());
    if !follows(source, target) && !follows(target, source) {
        return Err(format!("regions {} and {} are not neighbours", source.id().0, target.id().0));
    }
    if !merge_regions::may_merge(source, target) {
        return Err("the two belong to different keyspaces".into());
    }
    for view in [source, target] {
        if view.is_joint() || view.learners().next().is_some() {
            return Err(format!("region {} is in the middle of a membership change", view.id().0));
        }
    }
    let steps = merge_regions::steps(survey, source, target).ok_or("no replica of it can lead meanwhile")?;
    by_hand(source, steps, format!("merge into region {} by hand", target.id().0))
}

fn move_peer(survey: &Survey<'_>, request: &MovePeerRequest) -> Plans {
    let view = region(survey, request.region_id)?;
    let (from, to) = (StoreId(request.from_store), StoreId(request.to_store));
    if from == to {
        return Err(format!("from store {} to the same store", from.0));
    }
    let site = survey.site(to).ok_or_else(|| format!("no store {}", to.0))?;
    survey.site(from).ok_or_else(|| format!("no store {}", from.0))?;
    match (view.is_on(from), view.is_on(to)) {
        (true, false) => {}
        (false, true) => return Ok(vec![]),
        (true, true) => return Err(format!("region {} has a replica on store {} already", view.id().0, to.0)),
        (false, false) => return Err(format!("region {} has no replica on store {}", view.id().0, from.0)),
    }
    if !site.takes_replicas() {
        let state = site.state.as_str_name().trim_start_matches("STORE_STATE_").to_lowercase();
        let full = if site.full { ", and its disk is nearly full" } else { "" };
        return Err(format!("store {} is {state}{full}: it takes no replicas", to.0));
    }
    if view.is_joint() {
        return Err(format!("region {} is in the middle of a membership change", view.id().0));
    }
    let steps = placement::replace(survey, view, &[to], &[from]).ok_or("no replica of it can lead meanwhile")?;
    by_hand(view, steps, format!("move from {from} to {to} by hand"))
}

fn transfer(survey: &Survey<'_>, request: &MoveLeaderRequest) -> Plans {
    let view = region(survey, request.region_id)?;
    let to = StoreId(request.to_store);
    survey.site(to).ok_or_else(|| format!("no store {}", to.0))?;
    if view.is_led_by(to) {
        return Ok(vec![]);
    }
    if !view.is_on(to) {
        return Err(format!("region {} has no peer on store {}", view.id().0, to.0));
    }
    by_hand(view, vec![Step::TransferLeader { to }], format!("{to} shall lead, by hand"))
}

fn hex(key: &[u8]) -> String {
    key.iter().map(|b| format!("{b:02x}")).collect()
}
