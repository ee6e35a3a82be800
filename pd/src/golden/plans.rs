//! Planning, with a cluster that does as it is told.
//!
//! ```text
//! store ID [zone=Z] [state=draining|removed] [free=PERCENT] [slow=yes] [stopping=yes]   registers and reports
//! silent ID                                                                  reports no more
//! region ID START..END on=1,2,3 [leader=1] [learners=4] [joint=3:4] [bytes=N] [load=N] [as=PEER] [lags=4] [dead=3] [epoch=C/V]
//! at MS                                   that much later; all but silent stores report again
//! plan                                    what would be planned now
//! round                                   plans, admits, and says what
//! do                                      every step that is due is carried out; prints them
//! settle                                  rounds and steps until nothing is planned any more; prints the plans' rules
//! spread                                  replicas and leaders of each store
//! operators | finished | cancel ID | steps STORE
//! by-hand move|transfer|merge|split …      see the service: here only admission
//! ```

use std::{collections::BTreeSet, error::Error, fmt::Write};

use goldenscript::{Command, Context, Runner};
use proto::{
    Epoch, LogIndex, Peer, PeerId, PeerRole, Region, RegionId, StoreId, Term,
    wire::{self, OperatorState, StoreState, StoreStatus},
};

use super::{Output, key_range, number};
use crate::{
    Cluster, Now, Operators, Rules, Survey,
    cluster::{Load, Progress, RegionView},
    operator::{Kind, OperatorId, Plan, Step},
    placement, planner,
};

/// What a leader has committed; who lags has a tenth.
const COMMITTED: u64 = 10_000;

pub(super) struct PlanScript {
    cluster: Cluster,
    operators: Operators,
    rules: Rules,
    now: Now,
    silent: BTreeSet<u64>,
    disks: Vec<(u64, u64, bool, bool)>,
    next_id: u64,
}

impl Default for PlanScript {
    fn default() -> Self {
        PlanScript {
            cluster: Cluster::default(),
            operators: Operators::new(Term(1)),
            rules: Rules::default(),
            now: Now::default(),
            silent: BTreeSet::new(),
            disks: Vec::new(),
            next_id: 1_000,
        }
    }
}

fn numbers(text: Option<&str>) -> Result<Vec<u64>, Box<dyn Error>> {
    let parse = |text: &str| text.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>();
    Ok(text.map(parse).transpose()?.unwrap_or_default())
}

fn say(plan: &Plan) -> String {
    let steps: Vec<_> = plan.steps.iter().map(ToString::to_string).collect();
    format!("{} {}: {} ({})\n", plan.rule, plan.region, steps.join("; "), plan.reason)
}

impl PlanScript {
    fn report(&mut self) {
        for &(id, free, slow, stopping) in &self.disks {
            let status = StoreStatus {
                store: Some(wire::Store { id, ..wire::Store::default() }),
                capacity_bytes: 1_000,
                available_bytes: free * 10,
                slow_score: if slow { 100 } else { 0 },
                stopping,
                ..StoreStatus::default()
            };
            if !self.silent.contains(&id) {
                self.cluster.observe_store(self.now, &status, 0);
            }
        }
    }

    fn plans(&self) -> Vec<Plan> {
        let mut plans = planner::plan(&Survey::new(&self.cluster, &self.operators, &self.rules, self.now));
        plans.retain(|plan| self.operators.objection(self.now, plan, &self.cluster).is_ok());
        plans
    }

    fn admit(&mut self, mut plan: Plan) -> Result<OperatorId, String> {
        let peers = self.cluster.region(plan.region).map_or(0, |v| v.region.peers.len());
        plan.give_ids(self.next_id, peers);
        self.next_id += u64::from(plan.wants_ids(peers));
        self.operators.admit(self.now, plan, &self.cluster).map_err(|e| e.to_string())
    }

    /// Carries out the next step of every operator whose store is there, and tells PD.
    fn carry_out(&mut self) -> String {
        let mut out = String::new();
        let sent: BTreeSet<_> =
            self.disks.iter().map(|d| StoreId(d.0)).filter(|s| !self.silent.contains(&s.0)).collect();
        let mut due = Vec::new();
        for store in sent {
            let steps = self.operators.steps_for(self.now, store, &self.cluster);
            due.extend(steps.iter().map(|s| OperatorId(s.operator_id)));
        }
        for id in due {
            let Some(op) = self.operators.get(id) else { continue };
            let (step, region) = (op.plan.steps[op.at].clone(), op.plan.region);
            let _ = writeln!(out, "{region}: {step}");
            let Some(view) = self.cluster.region(region).cloned() else { continue };
            for changed in after(&step, view, &self.cluster) {
                self.cluster.observe_region(self.now, (&changed).into());
            }
        }
        self.operators.advance(self.now, &self.cluster);
        out
    }

    fn settle(&mut self) -> String {
        let mut rules = std::collections::BTreeMap::<&str, usize>::new();
        for _ in 0..200 {
            let plans = self.plans();
            if plans.is_empty() && self.operators.running().len() == 0 {
                break;
            }
            for plan in plans {
                *rules.entry(plan.rule).or_default() += 1;
                let _ = self.admit(plan);
            }
            self.carry_out();
            self.now.monotonic_ms += 1_000;
            self.report();
        }
        let left = self.operators.running().len();
        let list: Vec<_> = rules.iter().map(|(rule, count)| format!("{count} {rule}")).collect();
        format!("{}{}", list.join(", "), if left > 0 { format!(", {left} still run") } else { String::new() })
    }

    fn spread(&self) -> String {
        let survey = Survey::new(&self.cluster, &self.operators, &self.rules, self.now);
        let line = |s: &crate::survey::Site| {
            format!("{}: {} replicas, {} leaders, load {}\n", s.store, s.replicas, s.leaders, s.load)
        };
        survey.sites().map(line).collect()
    }

    fn listing(&self, finished: bool) -> String {
        let running = self.operators.running().map(|op| op.status(self.now));
        let ended = self.operators.finished().map(|f| f.status(self.now));
        let all: Vec<_> = if finished { ended.collect() } else { running.collect() };
        let state = |s: i32| {
            OperatorState::try_from(s)
                .map_or("?", |s| s.as_str_name())
                .trim_start_matches("OPERATOR_STATE_")
                .to_lowercase()
        };
        let line = |s: wire::OperatorStatus| {
            let steps: Vec<_> = s
                .steps
                .iter()
                .enumerate()
                .map(|(i, step)| if (i as u32) < s.done { format!("[{step}]") } else { step.clone() })
                .collect();
            let outcome = if s.outcome.is_empty() { String::new() } else { format!(" ({})", s.outcome) };
            format!(
                "{} r{} {} {}{outcome}: {}\n",
                s.id & 0xff_ffff,
                s.region_id,
                s.rule,
                state(s.state),
                steps.join("; ")
            )
        };
        all.into_iter().map(line).collect()
    }

    fn region(&mut self, args: &mut goldenscript::ArgumentConsumer<'_>) -> Output {
        let id = args.next_pos().ok_or("a region")?.parse()?;
        let range = key_range(args.next_pos().ok_or("a range")?)?;
        let joint = args
            .take_key("joint")
            .map(|j| j.split_once(':').map(|(out, into)| (out.parse::<u64>().ok(), into.parse::<u64>().ok())));
        let (mut peers, learners) = (numbers(args.take_key("on"))?, numbers(args.take_key("learners"))?);
        peers.extend(&learners);
        let role = |store: u64| match joint.flatten() {
            Some((Some(out), _)) if out == store => PeerRole::DemotingVoter,
            Some((_, Some(into))) if into == store => PeerRole::IncomingVoter,
            _ if learners.contains(&store) => PeerRole::Learner,
            _ => PeerRole::Voter,
        };
        let own_id = number(args, "as")?;
        let id_of = |store: u64| own_id.filter(|_| learners.contains(&store)).unwrap_or(id * 100 + store);
        let peer = |store: u64| Peer { id: PeerId(id_of(store)), store: StoreId(store), role: role(store) };
        let epoch = args.take_key("epoch").unwrap_or("1/1");
        let (conf_ver, version) = epoch.split_once('/').ok_or("epoch=conf_ver/version")?;
        let epoch = Epoch { conf_ver: conf_ver.parse()?, version: version.parse()? };
        let peers: Vec<_> = peers.into_iter().map(peer).collect();
        let leader = match args.take_key("leader") {
            Some("none") => None,
            Some(store) => Some(peer(store.parse()?)),
            None => peers.first().copied(),
        };
        let (lags, dead) = (numbers(args.take_key("lags"))?, numbers(args.take_key("dead"))?);
        let progress = peers.iter().filter(|p| leader.is_none_or(|l| l.id != p.id)).map(|p| Progress {
            peer: p.id,
            matched: LogIndex(if lags.contains(&p.store.0) { COMMITTED / 10 } else { COMMITTED }),
            active: !dead.contains(&p.store.0),
            needs_snapshot: false,
        });
        let view = RegionView {
            leader,
            term: Term(5),
            applied_index: COMMITTED,
            committed_index: COMMITTED,
            approximate_bytes: number(args, "bytes")?.unwrap_or(0),
            progress: progress.collect(),
            load: Load { reads: number(args, "load")?.unwrap_or(0), ..Load::default() },
            ..RegionView::founded(Region { id: RegionId(id), range, epoch, peers })
        };
        let observed = self.cluster.observe_region(self.now, (&view).into());
        self.operators.advance(self.now, &self.cluster);
        Ok(match observed {
            crate::cluster::Observed::Taken => String::new(),
            other => format!("{other:?}").to_lowercase(),
        })
    }

    fn store(&mut self, args: &mut goldenscript::ArgumentConsumer<'_>) -> Output {
        let id: u64 = args.next_pos().ok_or("a store")?.parse()?;
        let labels = args.take_key("zone").map(|zone| ("zone".to_string(), zone.to_string())).into_iter().collect();
        let state = match args.take_key("state") {
            Some("draining") => StoreState::Draining,
            Some("removed") => StoreState::Removed,
            _ => StoreState::Up,
        };
        let free = number(args, "free")?.unwrap_or(90);
        let (slow, stopping) = (args.take_key("slow").is_some(), args.take_key("stopping").is_some());
        self.cluster.put_store(wire::Store { id, labels, state: state as i32, ..wire::Store::default() });
        self.disks.retain(|d| d.0 != id);
        self.disks.push((id, free, slow, stopping));
        self.report();
        Ok(String::new())
    }

    fn by_hand(&mut self, args: &mut goldenscript::ArgumentConsumer<'_>) -> Output {
        let what = args.next_pos().ok_or("what")?.to_string();
        let region = RegionId(args.next_pos().ok_or("a region")?.parse()?);
        let other: u64 = args.next_pos().ok_or("a store or region")?.parse()?;
        let from = number(args, "from")?.unwrap_or(0);
        let survey = Survey::new(&self.cluster, &self.operators, &self.rules, self.now);
        let view = survey.region(region).ok_or("no such region")?;
        let steps = match what.as_str() {
            "move" => {
                placement::replace(&survey, view, &[StoreId(other)], &[StoreId(from)]).ok_or("nobody can lead")?
            }
            "transfer" => vec![Step::TransferLeader { to: StoreId(other) }],
            "remove" => vec![
                Step::Joint { promote: vec![], demote: vec![StoreId(other)] },
                Step::Remove { store: StoreId(other) },
            ],
            "merge" => {
                let into = survey.region(RegionId(other)).ok_or("no such region")?;
                crate::checker::merge_regions::steps(&survey, view, into).ok_or("nobody can lead")?
            }
            unknown => return Err(format!("unknown wish {unknown}").into()),
        };
        let plan = placement::plan(view, Kind::Admin, "admin", steps, "by hand".into());
        Ok(self.admit(plan).map_or_else(|e| format!("refused: {e}"), |id| format!("operator {}", id.0 & 0xff_ffff)))
    }
}

/// The regions that change when a step is carried out.
fn after(step: &Step, mut view: RegionView, cluster: &Cluster) -> Vec<RegionView> {
    let caught_up = |peer: PeerId| Progress { peer, matched: LogIndex(COMMITTED), active: true, needs_snapshot: false };
    let set = |view: &mut RegionView, stores: &[StoreId], role| {
        view.region.peers.iter_mut().filter(|p| stores.contains(&p.store)).for_each(|p| p.role = role);
    };
    view.region.epoch.conf_ver += 1;
    match step {
        Step::AddLearner { store, peer } => {
            view.region.peers.push(Peer { id: *peer, store: *store, role: PeerRole::Learner });
            view.progress.push(caught_up(*peer));
        }
        Step::Joint { promote, demote } => {
            set(&mut view, promote, PeerRole::Voter);
            set(&mut view, demote, PeerRole::Learner);
            view.region
                .peers
                .iter_mut()
                .filter(|p| p.role == PeerRole::IncomingVoter)
                .for_each(|p| p.role = PeerRole::Voter);
            view.region
                .peers
                .iter_mut()
                .filter(|p| p.role == PeerRole::DemotingVoter)
                .for_each(|p| p.role = PeerRole::Learner);
        }
        Step::Remove { store } => view.region.peers.retain(|p| p.store != *store),
        Step::TransferLeader { to } => {
            let old = view.leader;
            view.term.0 += 1;
            view.leader = view.region.peer_on(*to);
            view.progress.extend(old.map(|p| caught_up(p.id)));
        }
        Step::Split { ids, .. } => {
            view.region.epoch.version += 1;
            let end =
                std::mem::replace(&mut view.region.range.end, [&view.region.range.start[..], b"5"].concat().into());
            view.approximate_bytes /= 2;
            let mut child = view.clone();
            child.region.id = ids[0].region;
            child.region.range = proto::KeyRange::new(view.region.range.end.clone(), end);
            for (peer, id) in child.region.peers.iter_mut().zip(&ids[0].peers) {
                peer.id = *id;
            }
            child.leader = child.region.peer_on(view.leader.expect("is led").store);
            child.progress = child.region.peers.iter().map(|p| caught_up(p.id)).collect();
            return vec![view, child];
        }
        Step::Merge { into } => {
            let mut target = cluster.region(*into).expect("is there").clone();
            target.region.epoch.version = target.region.epoch.version.max(view.region.epoch.version) + 1;
            target.region.range.start = target.region.range.start.min(view.region.range.start.clone());
            if target.region.range.end == view.region.range.start {
                target.region.range.end = view.region.range.end;
            }
            return vec![target];
        }
    }
    vec![view]
}

impl Runner for PlanScript {
    type Command = Command;
    fn run(&mut self, command: &Command, _: &Context) -> Output {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            "at" => {
                self.now.monotonic_ms = args.next_pos().ok_or("milliseconds")?.parse()?;
                self.report();
                self.operators.advance(self.now, &self.cluster);
                String::new()
            }
            "rules" => {
                self.rules.down_after_ms = number(&mut args, "down-after")?.unwrap_or(self.rules.down_after_ms);
                self.cluster = std::mem::take(&mut self.cluster).with_patience(self.rules.down_after_ms);
                if let Some(name) = args.take_key("disable") {
                    self.rules.disabled.insert(name.into());
                }
                String::new()
            }
            "store" => self.store(&mut args)?,
            "silent" => {
                self.silent.insert(args.next_pos().ok_or("a store")?.parse()?);
                String::new()
            }
            "region" => self.region(&mut args)?,
            "plan" => self.plans().iter().map(say).collect(),
            "round" => {
                let plans = self.plans();
                let said = plans.iter().map(say).collect();
                for plan in plans {
                    self.admit(plan)?;
                }
                said
            }
            "do" => self.carry_out(),
            "settle" => self.settle(),
            "spread" => self.spread(),
            "operators" => self.listing(false),
            "finished" => self.listing(true),
            "steps" => {
                let store = StoreId(args.next_pos().ok_or("a store")?.parse()?);
                let steps = self.operators.steps_for(self.now, store, &self.cluster);
                steps
                    .iter()
                    .map(|s| format!("r{} operator {} step {}\n", s.region_id, s.operator_id & 0xff_ffff, s.index))
                    .collect()
            }
            "fail" => {
                let id = OperatorId((1 << 24) + args.next_pos().ok_or("an operator")?.parse::<u64>()?);
                let again = args.take_key("again").is_some();
                let index = number(&mut args, "step")?.unwrap_or(0);
                self.operators.step_failed(self.now, id, index, "the disk says no".into(), again);
                String::new()
            }
            "cancel" => {
                let id = OperatorId((1 << 24) + args.next_pos().ok_or("an operator")?.parse::<u64>()?);
                if self.operators.cancel(self.now, id, "a person cancelled it") { "cancelled" } else { "does not run" }
                    .into()
            }
            "by-hand" => self.by_hand(&mut args)?,
            other => return Err(format!("unknown command {other}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}
