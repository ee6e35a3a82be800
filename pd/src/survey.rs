//! The cluster as planners see it: the picture, with what is under way counted as if it were done.
//!
//! A scheduler that looked at the bare picture would move too much: a move takes seconds, and until it is seen the full
//! store still looks full.

use std::collections::BTreeMap;

use proto::{Region, RegionId, StoreId, wire::StoreState};

use crate::{
    Cluster, Now,
    cluster::RegionView,
    operator::{Operators, Plan},
    rules::Rules,
};

/// What an empty region weighs: its log, its snapshots, its share of attention.
pub const EMPTY_REGION_BYTES: u64 = 8 << 20;
/// A store with less of its disk free, in percent and in bytes, gets no more replicas: far above the reserve below which
/// it refuses writes, and a large disk is not full because little of it is left.
const FREE_PERCENT_MIN: u64 = 5;
const FREE_BYTES_MIN: u64 = 4 << 30;

/// A store in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Which.
    pub store: StoreId,
    /// As judged.
    pub state: StoreState,
    /// Heard of lately.
    pub live: bool,
    /// Its disk is nearly full.
    pub full: bool,
    /// Its disk is too slow to lead.
    pub slow: bool,
    /// Its process is about to end.
    pub stopping: bool,
    /// Values of the labels that replicas are spread over; `None` where it has none.
    pub labels: Vec<Option<String>>,
    /// Replicas on it.
    pub replicas: u64,
    /// Their bytes, empty regions counted with what they cost.
    pub weight: u64,
    /// Regions it leads.
    pub leaders: u64,
    /// What it has to do for those.
    pub load: u64,
    /// Replicas on their way to it.
    pub arriving: usize,
    /// Replicas on their way away from it.
    pub leaving: usize,
    /// Leaderships on their way to or from it.
    pub leaders_moving: usize,
}

impl Site {
    /// Whether replicas may come here.
    pub fn takes_replicas(&self) -> bool {
        self.state == StoreState::Up && self.live && !self.full
    }
    /// Whether leaderships may come here.
    pub fn takes_leaders(&self) -> bool {
        self.state == StoreState::Up && self.live && !self.slow && !self.stopping
    }
}

/// The picture for one round of planning.
#[derive(Clone, Debug)]
pub struct Survey<'a> {
    /// What was reported.
    pub cluster: &'a Cluster,
    /// What is under way.
    pub operators: &'a Operators,
    /// What to strive for.
    pub rules: &'a Rules,
    /// When.
    pub now: Now,
    sites: BTreeMap<StoreId, Site>,
    /// Border changes under way.
    pub borders: usize,
}

/// Whether a disk of that capacity with so much available (bytes) takes no more replicas.
pub fn is_full((capacity, available): (u64, u64)) -> bool {
    available < FREE_BYTES_MIN && available < capacity.saturating_mul(FREE_PERCENT_MIN) / 100
}

/// What a replica of the region weighs.
pub fn weight(view: &RegionView) -> u64 {
    view.approximate_bytes + EMPTY_REGION_BYTES
}

impl<'a> Survey<'a> {
    /// Looks at everything once.
    pub fn new(cluster: &'a Cluster, operators: &'a Operators, rules: &'a Rules, now: Now) -> Self {
        let mut sites: BTreeMap<_, _> = cluster
            .store_looks(now)
            .map(|look| {
                let site = Site {
                    store: StoreId(look.record.id),
                    state: look.state,
                    live: look.live,
                    full: is_full(look.disk),
                    slow: look.slow,
                    stopping: look.stopping,
                    labels: rules.spread_over.iter().map(|l| look.record.labels.get(l).cloned()).collect(),
                    replicas: 0,
                    weight: 0,
                    leaders: 0,
                    load: 0,
                    arriving: 0,
                    leaving: 0,
                    leaders_moving: 0,
                };
                (site.store, site)
            })
            .collect();
        for view in cluster.views() {
            for peer in &view.region.peers {
                if let Some(site) = sites.get_mut(&peer.store) {
                    site.replicas += 1;
                    site.weight += weight(view);
                }
            }
            if let Some(site) = view.leader.and_then(|l| sites.get_mut(&l.store)) {
                site.leaders += 1;
                site.load += view.load_at(now).score();
            }
        }
        let mut survey = Survey { cluster, operators, rules, now, sites, borders: 0 };
        operators.running().for_each(|op| survey.count(&op.plan));
        survey
    }

    /// From now on the plan counts as if it were carried out.
    pub fn count(&mut self, plan: &Plan) {
        self.borders += usize::from(plan.changes_borders());
        let Some(view) = self.cluster.region(plan.region) else { return };
        let weight = weight(view);
        for store in plan.arrivals() {
            let Some(site) = self.sites.get_mut(&store) else { continue };
            site.arriving += 1;
            if !view.is_on(store) {
                site.replicas += 1;
                site.weight += weight;
            }
        }
        for store in plan.departures() {
            let Some(site) = self.sites.get_mut(&store) else { continue };
            site.leaving += 1;
            if view.is_on(store) {
                site.replicas = site.replicas.saturating_sub(1);
                site.weight = site.weight.saturating_sub(weight);
            }
        }
        let (Some(to), Some(from)) = (plan.new_leader(), view.leader.map(|l| l.store)) else { return };
        let load = view.load_at(self.now).score();
        if to != from
            && let Some(site) = self.sites.get_mut(&to)
        {
            (site.leaders, site.load) = (site.leaders + 1, site.load + load);
            site.leaders_moving += 1;
        }
        if to != from
            && let Some(site) = self.sites.get_mut(&from)
        {
            (site.leaders, site.load) = (site.leaders.saturating_sub(1), site.load.saturating_sub(load));
            site.leaders_moving += 1;
        }
    }

    /// All stores, by id.
    pub fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.values()
    }
    /// One of them.
    pub fn site(&self, store: StoreId) -> Option<&Site> {
        self.sites.get(&store)
    }
    /// Whether the store was heard of lately.
    pub fn is_live(&self, store: StoreId) -> bool {
        self.sites.get(&store).is_some_and(|s| s.live)
    }
    /// Whether nobody has the region, and it was reported.
    pub fn is_free(&self, view: &RegionView) -> bool {
        view.leader.is_some() && view.term.0 > 0 && !self.operators.holds(view.id())
    }
    /// Whether an improvement may touch the region: nobody has it, and nothing about it is to be mended.
    pub fn is_movable(&self, view: &RegionView) -> bool {
        self.is_free(view)
            && view.is_settled()
            && view.id() != proto::PD_REGION
            && view.region.peers.iter().all(|p| self.is_live(p.store))
    }
    /// Whether one more plan fits the limits.
    pub fn has_room(&self, plan: &Plan) -> bool {
        let limits = &self.rules.limits;
        let site = |store: StoreId| self.sites.get(&store);
        let leaders =
            |store: Option<StoreId>| store.and_then(site).is_none_or(|s| s.leaders_moving < limits.leaders_per_store);
        let from = self.cluster.region(plan.region).and_then(|v| v.leader).map(|l| l.store);
        plan.arrivals().all(|s| site(s).is_some_and(|s| s.arriving < limits.arriving_per_store))
            && plan.departures().all(|s| site(s).is_none_or(|s| s.leaving < limits.leaving_per_store))
            && (plan.new_leader().is_none() || (leaders(plan.new_leader()) && leaders(from)))
            && (!plan.changes_borders() || self.borders < limits.borders)
    }
    /// A region by its id.
    pub fn region(&self, id: RegionId) -> Option<&'a RegionView> {
        self.cluster.region(id)
    }
    /// The stores of a region's peers.
    pub fn stores_of(region: &Region) -> Vec<StoreId> {
        region.peers.iter().map(|p| p.store).collect()
    }
}
