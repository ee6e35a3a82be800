//! The operators that run, and those that ended lately.

use std::collections::{BTreeMap, VecDeque};

use proto::{RegionId, StoreId, Term, wire::RegionStep};

use super::{
    Finished, Kind, Operator, OperatorId, Outcome, Plan, Step, describe,
    progress::{self, Standing},
    safety,
};
use crate::{
    Now,
    cluster::{Cluster, RegionView},
};

/// Ended operators that are kept for people: a working day of a busy cluster.
pub const HISTORY: usize = 1_000;
/// A step is sent again when nothing has come of it for this long: the store may have restarted.
pub const RESEND_MS: u64 = 1_000;
/// A rule whose operator did not succeed leaves the region alone for so long, a repair for a sixth of it.
const COOL_DOWN_MS: u64 = 60_000;
/// A leader refuses also what only comes too early (its picture of a learner is a moment older): it is asked a few times.
pub const REFUSALS_MAX: u32 = 3;
/// Operators of one term of PD.
const COUNT_BITS: u32 = 24;

/// A plan was not admitted; why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// The core.
#[derive(Clone, Debug, Default)]
pub struct Operators {
    next: u64,
    running: BTreeMap<OperatorId, Operator>,
    /// Which operator has a region, also as a merge's target.
    holders: BTreeMap<RegionId, OperatorId>,
    finished: VecDeque<Finished>,
    /// How many ended, by rule and outcome.
    ended: BTreeMap<(&'static str, &'static str), u64>,
    /// Nobody asks whether a step is safe: `Planted::RemovalBelowQuorum`.
    #[cfg(feature = "planted-bugs")]
    pub(crate) reckless: bool,
}

impl Operators {
    /// Of a PD that took office in that term of region 1. Its predecessor's are forgotten.
    pub fn new(term: Term) -> Self {
        Operators { next: term.0 << COUNT_BITS, ..Operators::default() }
    }

    /// Whether the plan would be admitted now; who has to give way to it then.
    pub fn objection(&self, now: Now, plan: &Plan, cluster: &Cluster) -> Result<Vec<OperatorId>, Refused> {
        let refuse = |why: String| Err(Refused(why));
        let Some(view) = cluster.region(plan.region) else { return refuse(format!("no region {}", plan.region.0)) };
        if view.leader.is_none() || view.term == Term(0) {
            return refuse(format!("region {} has no leader right now", plan.region.0));
        }
        if view.epoch() != plan.epoch {
            return refuse(format!("region {} is at epoch {} now, not {}", plan.region.0, view.epoch(), plan.epoch));
        }
        let mut replaced = Vec::new();
        for region in [Some(plan.region), plan.neighbour()].into_iter().flatten() {
            match self.holders.get(&region).and_then(|id| self.running.get(id)) {
                Some(op) if op.plan.kind >= plan.kind => {
                    return refuse(format!(
                        "operator {} ({}) runs on region {}: cancel it or wait",
                        op.id.0, op.plan.rule, region.0
                    ));
                }
                Some(op) => replaced.push(op.id),
                None => {}
            }
        }
        if plan.kind != Kind::Admin && self.is_cooling(now, plan) {
            return refuse(format!("{} did not succeed on region {} just now", plan.rule, plan.region.0));
        }
        let live = |store| cluster.is_live(now, store);
        match plan.steps.first().and_then(|step| self.unsafe_step(step, view, &live)) {
            Some(why) => refuse(why),
            None => Ok(replaced),
        }
    }

    fn is_cooling(&self, now: Now, plan: &Plan) -> bool {
        let pause = if plan.kind == Kind::Repair { COOL_DOWN_MS / 6 } else { COOL_DOWN_MS };
        self.finished.iter().rev().take_while(|f| now.monotonic_ms.saturating_sub(f.at_ms) < pause).any(|f| {
            let unlucky = matches!(f.outcome, Outcome::TimedOut(_) | Outcome::Failed(_));
            unlucky && f.operator.plan.region == plan.region && f.operator.plan.rule == plan.rule
        })
    }

    /// Takes a plan whose ids are given.
    pub fn admit(&mut self, now: Now, mut plan: Plan, cluster: &Cluster) -> Result<OperatorId, Refused> {
        let replaced = self.objection(now, &plan, cluster)?;
        let under_way = replaced.iter().filter_map(|old| self.running.get(old));
        let loose = take_over(&mut plan, under_way.filter(|old| old.sent.is_some()));
        self.next += 1;
        let id = OperatorId(self.next);
        for old in replaced {
            self.end(now, old, Outcome::Replaced(id));
        }
        let peers = cluster.region(plan.region).map(|v| v.region.peers.as_slice()).unwrap_or_default();
        let mut stores: Vec<_> = peers.iter().map(|p| p.store).collect();
        stores.sort_unstable();
        for region in [Some(plan.region), plan.neighbour()].into_iter().flatten() {
            self.holders.insert(region, id);
        }
        let operator = Operator {
            id,
            plan,
            stores,
            loose,
            at: 0,
            since_ms: now.monotonic_ms,
            step_since_ms: now.monotonic_ms,
            sent: None,
            refusals: 0,
            trouble: String::new(),
        };
        self.running.insert(id, operator);
        Ok(id)
    }

    /// Looks how far all operators are; those that are through, astray or too slow end. How many ended.
    pub fn advance(&mut self, now: Now, cluster: &Cluster) -> usize {
        let mut ended = Vec::new();
        for op in self.running.values_mut() {
            match progress::look(op, cluster) {
                Standing::Astray(why) => ended.push((op.id, Outcome::Cancelled(why))),
                Standing::At(at) if at == op.plan.steps.len() => {
                    op.at = at;
                    ended.push((op.id, Outcome::Done));
                }
                Standing::At(at) if at != op.at => {
                    op.at = at;
                    op.step_since_ms = now.monotonic_ms;
                    op.sent = None;
                    op.refusals = 0;
                    op.trouble.clear();
                    lead_elsewhere_first(op, now, cluster);
                }
                Standing::At(_) if lead_elsewhere_first(op, now, cluster) => {}
                Standing::At(at) => {
                    let step = &op.plan.steps[at];
                    if now.monotonic_ms.saturating_sub(op.step_since_ms) >= progress::limit_ms(step) {
                        let trouble = if op.trouble.is_empty() { String::new() } else { format!(": {}", op.trouble) };
                        ended.push((op.id, Outcome::TimedOut(format!("{step}{trouble}"))));
                    }
                }
            }
        }
        let count = ended.len();
        ended.into_iter().for_each(|(id, outcome)| self.end(now, id, outcome));
        count
    }

    #[cfg(not(feature = "planted-bugs"))]
    fn unsafe_step(&self, step: &Step, view: &RegionView, live: &dyn Fn(StoreId) -> bool) -> Option<String> {
        safety::objection(step, view, live)
    }
    #[cfg(feature = "planted-bugs")]
    fn unsafe_step(&self, step: &Step, view: &RegionView, live: &dyn Fn(StoreId) -> bool) -> Option<String> {
        safety::objection(step, view, live).filter(|_| !self.reckless)
    }

    /// What `store` shall do now: steps of regions it leads that were not sent lately.
    pub fn steps_for(&mut self, now: Now, store: StoreId, cluster: &Cluster) -> Vec<RegionStep> {
        let live = |store| cluster.is_live(now, store);
        let mut steps = Vec::new();
        for (id, view) in self.due(now, store, cluster) {
            let op = &self.running[&id];
            let (trouble, step) = match self.unsafe_step(&op.plan.steps[op.at], view, &live) {
                Some(why) => (Some(why), None),
                None => (None, describe::for_store(op, op.at, view, cluster)),
            };
            let Some(op) = self.running.get_mut(&id) else { continue };
            op.trouble = trouble.unwrap_or_else(|| std::mem::take(&mut op.trouble));
            if let Some(step) = step {
                op.sent = Some((now.monotonic_ms, view.term));
                steps.push(step);
            }
        }
        steps
    }

    /// Operators whose next step should leave now, with their regions.
    fn due<'a>(&self, now: Now, store: StoreId, cluster: &'a Cluster) -> Vec<(OperatorId, &'a RegionView)> {
        let led = |op: &Operator| cluster.region(op.plan.region).filter(|v| v.is_led_by(store));
        let due = |op: &Operator| led(op).filter(|view| is_due(op, now, view)).map(|view| (op.id, view));
        self.running.values().filter_map(due).collect()
    }

    /// Whether [`Operators::steps_for`] would bring any.
    pub fn has_steps_for(&self, now: Now, store: StoreId, cluster: &Cluster) -> bool {
        let live = |store| cluster.is_live(now, store);
        self.due(now, store, cluster).into_iter().any(|(id, view)| {
            let op = &self.running[&id];
            self.unsafe_step(&op.plan.steps[op.at], view, &live).is_none()
                && describe::for_store(op, op.at, view, cluster).is_some()
        })
    }

    /// A store could not carry a step out.
    pub fn step_failed(&mut self, now: Now, id: OperatorId, index: usize, reason: String, again: bool) {
        let Some(op) = self.running.get_mut(&id).filter(|op| op.at == index) else { return };
        op.trouble.clone_from(&reason);
        op.refusals += u32::from(!again);
        if op.refusals >= REFUSALS_MAX {
            let step = op.plan.steps[index].to_string();
            self.end(now, id, Outcome::Failed(format!("{step}: {reason}")));
        }
    }

    /// Ends an operator; what its steps have done stays done. False: it does not run.
    pub fn cancel(&mut self, now: Now, id: OperatorId, why: &str) -> bool {
        let runs = self.running.contains_key(&id);
        self.end(now, id, Outcome::Cancelled(why.into()));
        runs
    }

    fn end(&mut self, now: Now, id: OperatorId, outcome: Outcome) {
        let Some(operator) = self.running.remove(&id) else { return };
        self.holders.retain(|_, holder| *holder != id);
        *self.ended.entry((operator.plan.rule, outcome.name())).or_default() += 1;
        if self.finished.len() == HISTORY {
            self.finished.pop_front();
        }
        self.finished.push_back(Finished { operator, outcome, at_ms: now.monotonic_ms });
    }

    /// Those that run, the oldest first.
    pub fn running(&self) -> impl ExactSizeIterator<Item = &Operator> {
        self.running.values()
    }
    /// Those that ended, the latest last.
    pub fn finished(&self) -> impl DoubleEndedIterator<Item = &Finished> {
        self.finished.iter()
    }
    /// How many have ended since this PD took office, by rule and outcome.
    pub fn ended_by_rule(&self) -> &BTreeMap<(&'static str, &'static str), u64> {
        &self.ended
    }
    /// The one that has a region.
    pub fn of_region(&self, region: RegionId) -> Option<&Operator> {
        self.holders.get(&region).and_then(|id| self.running.get(id))
    }
    /// Whether somebody has the region.
    pub fn holds(&self, region: RegionId) -> bool {
        self.holders.contains_key(&region)
    }
    /// One that runs.
    pub fn get(&self, id: OperatorId) -> Option<&Operator> {
        self.running.get(&id)
    }
    /// One that ended.
    pub fn ended(&self, id: OperatorId) -> Option<&Finished> {
        self.finished.iter().rev().find(|f| f.operator.id == id)
    }
}

/// Steps of others that have left can't be called back: a learner they bring is taken for the plan's own where it wants
/// one; where it does not, what becomes of that store's peer is no concern of it. Those stores.
fn take_over<'a>(plan: &mut Plan, others: impl Iterator<Item = &'a Operator>) -> Vec<StoreId> {
    let mut loose = Vec::new();
    for other in others.filter(|other| other.plan.region == plan.region) {
        loose.extend(&other.loose);
        match &other.plan.steps[other.at] {
            Step::AddLearner { store, peer: theirs } => {
                loose.push(*store);
                for step in &mut plan.steps {
                    if let Step::AddLearner { store: to, peer } = step
                        && to == store
                    {
                        *peer = *theirs;
                    }
                }
            }
            Step::Remove { store } => loose.push(*store),
            _ => {}
        }
    }
    loose.retain(|store| !plan.is_about(*store));
    loose
}

/// Hand-overs that are put into one operator at most.
const DETOURS_MAX: usize = 3;

/// Leaderships move also by elections, and by steps of others that had left: who leads now is to be demoted next. Whether
/// a hand-over comes before that now.
fn lead_elsewhere_first(op: &mut Operator, now: Now, cluster: &Cluster) -> bool {
    let Some(Step::Joint { demote, .. }) = op.plan.steps.get(op.at) else { return false };
    let Some(view) = cluster.region(op.plan.region).filter(|v| !v.is_joint()) else { return false };
    let handed_over = op.plan.steps.iter().filter(|s| matches!(s, Step::TransferLeader { .. })).count();
    if !view.leader.is_some_and(|l| demote.contains(&l.store)) || handed_over >= DETOURS_MAX {
        return false;
    }
    let live = |store| cluster.is_live(now, store);
    let fits = |p: &&proto::Peer| !demote.contains(&p.store) && view.is_caught_up(p) && safety::is_live(view, p, &live);
    let Some(to) = view.voters().find(fits).map(|p| p.store) else { return false };
    op.plan.steps.insert(op.at, Step::TransferLeader { to });
    (op.step_since_ms, op.sent, op.refusals) = (now.monotonic_ms, None, 0);
    op.trouble.clear();
    true
}

fn is_due(op: &Operator, now: Now, view: &RegionView) -> bool {
    op.sent.is_none_or(|(at, term)| term != view.term || now.monotonic_ms.saturating_sub(at) >= RESEND_MS)
        && match &op.plan.steps[op.at] {
            // It is there and has to catch up.
            Step::AddLearner { store, .. } => !view.is_on(*store),
            // A joint state that was entered is left by the leader itself.
            Step::Joint { promote, demote } => !view.is_joint() || (promote.is_empty() && demote.is_empty()),
            _ => true,
        }
}
