//! Golden scripts: stores in memory, a network and a clock that do what the script says.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p raftstore` rewrites the scripts; read the diff before you commit it.

mod marks;
mod past;
mod snapshots;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    error::Error,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Command, Context, Runner};
use proto::{Batch, Cf, Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId, wire::RaftMessage};
use raft::eraftpb::Message;
use test_each_file::test_each_path;

use self::snapshots::Snapshots;
use super::{StoreCore, bootstrap};
use crate::{
    Applier, Event, Instant, LogBounds, MonotonicClock, NewRegion, PeerChange, Planted, ReplicaStatus, StoreConfig,
    StoreHandle, Target,
    effect::{AdminChange, AdminRequest, Answer, ApplyTask, ApplyWork, Effects, LogWrite, ProposeRequest, Ticket},
    engine::{Engine, memory::MemoryEngine},
    log::{LogEngine, MemoryLog},
    region::message,
};

test_each_path! { in "raftstore/testscripts/store" as store => |path: &std::path::Path| {
    goldenscript::run(&mut Script::default(), path).expect("the script runs");
} }

// One script for each planted bug of the core: what it does to a cluster.
#[cfg(feature = "planted-bugs")]
test_each_path! { in "raftstore/testscripts/planted" as planted => |path: &std::path::Path| {
    goldenscript::run(&mut Script::default(), path).expect("the script runs");
} }

const TICK: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Clock(AtomicU64);

impl MonotonicClock for Clock {
    fn now(&self) -> Instant {
        Instant(Duration::from_millis(self.0.load(Ordering::Relaxed)))
    }
}

/// What lives between a start and a crash.
struct Life {
    core: StoreCore,
    handle: StoreHandle,
    applier: Applier,
    writes: VecDeque<LogWrite>,
    tasks: VecDeque<Vec<ApplyTask>>,
    upkeep: bool,
    snapshots: Snapshots,
}

#[derive(Default)]
struct Node {
    engine: MemoryEngine,
    log: Arc<MemoryLog>,
    life: Option<Life>,
    /// Log writes don't complete.
    disk_held: bool,
    /// Nothing reaches it or comes from it.
    cut_off: bool,
    /// How often it was started.
    boots: u64,
    /// So many steps of a snapshot, then no more.
    steps_at_most: usize,
}

#[derive(Default)]
struct Script {
    clock: Arc<Clock>,
    nodes: BTreeMap<u64, Node>,
    founded: Vec<Region>,
    network: VecDeque<(StoreId, StoreId, RaftMessage)>,
    /// Kinds of messages that get lost.
    lost: BTreeSet<String>,
    /// Kinds of messages that are kept until `deliver`, and those that are.
    delayed: (BTreeSet<String>, VecDeque<(StoreId, StoreId, RaftMessage)>),
    tickets: u64,
    planted: Planted,
    log_bounds: LogBounds,
    hibernates: bool,
    trace: bool,
    output: String,
}

type Outcome = Result<(), Box<dyn Error>>;

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        match command.name.as_str() {
            "cluster" => self.cluster(&mut args)?,
            "start" => self.each(&mut args, Script::start)?,
            "crash" => self.crash(&mut args)?,
            "cut" => self.each(&mut args, |script, id| script.set(id, |node| node.cut_off = true))?,
            "join" => self.each(&mut args, |script, id| script.set(id, |node| node.cut_off = false))?,
            "hold-disk" => self.each(&mut args, |script, id| script.set(id, |node| node.disk_held = true))?,
            "free-disk" => self.each(&mut args, |script, id| script.set(id, |node| node.disk_held = false))?,
            "lose" => {
                while let Some(kind) = args.next_pos() {
                    self.lost.insert(kind.to_string());
                }
            }
            "lose-nothing" => self.lost.clear(),
            "delay" => {
                while let Some(kind) = args.next_pos() {
                    self.delayed.0.insert(kind.to_string());
                }
            }
            "deliver" => {
                self.delayed.0.clear();
                self.network.append(&mut self.delayed.1);
            }
            "wait" => drop(self.clock.0.fetch_add(args.next_pos().ok_or("milliseconds")?.parse()?, Ordering::Relaxed)),
            "tick" => self.tick(&mut args)?,
            "settle" => self.settle()?,
            "campaign" => {
                let (id, region) = replica(&mut args)?;
                self.turn(id, vec![Event::Campaign(region)])?;
            }
            "transfer" => {
                let (id, region) = replica(&mut args)?;
                let to = store(args.next_pos().ok_or("to which store")?)?;
                self.admin(id, region, None, AdminChange::Transfer(StoreId(to)))?;
            }
            "split" => self.split(&mut args)?,
            "peers" => self.peers(&mut args)?,
            "merge" => self.merge(&mut args)?,
            "resolve" => self.resolve(&mut args)?,
            "past" => self.past(&mut args)?,
            "mark" => self.mark(&mut args)?,
            "marks" => self.marks(&mut args)?,
            "spoil" => self.spoil(&mut args)?,
            "regions" => self.show_regions()?,
            "propose" => self.propose(&mut args)?,
            "fill" => self.fill(&mut args)?,
            "read" => self.read(&mut args)?,
            "lease" => self.lease(&mut args)?,
            "get" => self.get(&mut args)?,
            "status" => self.status()?,
            "pace" => self.pace()?,
            "disk-full" => {
                let id = store(args.next_pos().ok_or("a store")?)?;
                let full = args.next_pos().ok_or("yes or no")? == "yes";
                self.turn(id, vec![Event::DiskFull(full)])?;
            }
            "upkeep" => self.each(&mut args, Script::upkeep)?,
            "sync-state" => self.each(&mut args, |script, id| script.set(id, |n| n.engine.sync().expect("memory")))?,
            "trace" => self.trace = args.next_pos() == Some("on"),
            "take-steps" => {
                let steps = args.take_key("steps").unwrap_or("1000").parse()?;
                self.each(&mut args, |script, id| script.set(id, |node| node.steps_at_most = steps))?;
            }
            other => return Err(format!("no command {other}").into()),
        }
        args.reject_next()?;
        Ok(std::mem::take(&mut self.output))
    }
}

fn store(name: &str) -> Result<u64, Box<dyn Error>> {
    Ok(name.strip_prefix('s').ok_or("a store is s1, s2, …")?.parse()?)
}

fn replica(args: &mut ArgumentConsumer<'_>) -> Result<(u64, RegionId), Box<dyn Error>> {
    let id = store(args.next_pos().ok_or("a store")?)?;
    let region = args.next_pos().and_then(|r| r.strip_prefix('r')).ok_or("a region is r1, r2, …")?;
    Ok((id, RegionId(region.parse()?)))
}

impl Script {
    fn each(&mut self, args: &mut ArgumentConsumer<'_>, f: impl Fn(&mut Self, u64) -> Outcome) -> Outcome {
        while let Some(name) = args.next_pos() {
            f(self, store(name)?)?;
        }
        Ok(())
    }

    fn set(&mut self, id: u64, f: impl Fn(&mut Node)) -> Outcome {
        f(self.nodes.get_mut(&id).ok_or("no such store")?);
        Ok(())
    }

    fn cluster(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        self.hibernates = args.take_key("hibernates") == Some("yes");
        if let Some(entries) = args.take_key("log") {
            self.log_bounds = LogBounds { entries: entries.parse()?, cut_entries: 10, ..LogBounds::default() };
        }
        let stores: u64 = args.take_key("stores").unwrap_or("3").parse()?;
        let voters = args.take_key("voters").map_or(Ok(stores), str::parse)?;
        let regions: u64 = args.take_key("regions").unwrap_or("1").parse()?;
        self.planted = match args.take_key("planted") {
            None => Planted::Nothing,
            Some("ack-before-sync") => Planted::AckBeforeSync,
            Some("serve-expired-lease") => Planted::ServeExpiredLease,
            Some("forget-vote") => Planted::ForgetVote,
            Some("sleep-through-restart") => Planted::SleepThroughRestart,
            Some("split-unsynced") => Planted::SplitUnsynced,
            Some("transfer-keeps-lease") => Planted::TransferKeepsLease,
            Some("remove-below-quorum") => Planted::RemoveBelowQuorum,
            Some("merge-source-still-read") => Planted::MergeSourceStillRead,
            Some("merge-purges-unsynced") => Planted::MergePurgesUnsynced,
            Some("read-unapplied") => Planted::ReadUnapplied,
            Some("read-restoring") => Planted::ReadRestoring,
            Some("resolve-merging") => Planted::ResolveMerging,
            Some(other) => return Err(format!("no bug {other}").into()),
        };
        let border = |at: u64, last: u64| if at == 0 || at == last { String::new() } else { format!("{at:04}") };
        for id in 1..=regions {
            let peer = |store| Peer { id: PeerId(store), store: StoreId(store), role: PeerRole::Voter };
            self.founded.push(Region {
                id: RegionId(id),
                range: KeyRange::new(border(id - 1, regions), border(id, regions)),
                epoch: Epoch { conf_ver: 1, version: 1 },
                peers: (1..=voters).map(peer).collect(),
            });
        }
        for id in 1..=stores {
            let node = Node {
                engine: MemoryEngine::crashable(),
                log: Arc::new(MemoryLog::crashable()),
                steps_at_most: 1000,
                ..Node::default()
            };
            bootstrap(&node.engine, &*node.log, StoreId(id), &self.founded)?;
            self.nodes.insert(id, node);
            self.start(id)?;
        }
        Ok(())
    }

    fn start(&mut self, id: u64) -> Outcome {
        let node_boots = {
            let node = self.nodes.get_mut(&id).ok_or("no such store")?;
            node.boots += 1;
            node.boots
        };
        let config = StoreConfig {
            planted: self.planted,
            tick: TICK,
            log: self.log_bounds,
            hibernates: self.hibernates,
            boot_id: node_boots,
            ..StoreConfig::new(StoreId(id), 42)
        };
        let node = self.nodes.get_mut(&id).ok_or("no such store")?;
        let engine = Arc::new(node.engine.clone());
        let applier = Applier::new(engine.clone(), &config);
        let (core, handle) = StoreCore::open(config, engine.clone(), node.log.clone(), self.clock.clone())?;
        let snapshots = Snapshots::new(engine, node.log.clone(), handle.clone());
        let (writes, tasks) = (VecDeque::new(), VecDeque::new());
        node.life = Some(Life { core, handle, applier, writes, tasks, upkeep: false, snapshots });
        self.turn(id, Vec::new())
    }

    fn crash(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let kept = args.take_key("kept").unwrap_or("0").parse()?;
        let id = store(args.next_pos().ok_or("a store")?)?;
        let node = self.nodes.get_mut(&id).ok_or("no such store")?;
        writeln!(
            self.output,
            "s{id} loses {} of {} unsynced log batches, {} of {} unsynced state batches",
            node.log.unsynced().saturating_sub(kept),
            node.log.unsynced(),
            node.engine.unsynced().saturating_sub(kept),
            node.engine.unsynced(),
        )?;
        node.life = None;
        node.log = Arc::new(node.log.after_crash(kept));
        node.engine = node.engine.after_crash(kept);
        node.disk_held = false;
        self.network.retain(|(from, to, _)| from.0 != id && to.0 != id);
        Ok(())
    }

    /// Moves the clock by ticks; the named stores (all, if none is) get a turn at each.
    fn tick(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let times: u64 = args.take_key("n").unwrap_or("1").parse()?;
        let settle = args.take_key("settle").is_none_or(|s| s == "yes");
        let mut ids = Vec::new();
        while let Some(name) = args.next_pos() {
            ids.push(store(name)?);
        }
        if ids.is_empty() {
            ids = self.nodes.keys().copied().collect();
        }
        for _ in 0..times {
            self.clock.0.fetch_add(TICK.as_millis() as u64, Ordering::Relaxed);
            for &id in &ids {
                self.turn(id, Vec::new())?;
            }
            if settle {
                self.settle()?;
            }
        }
        Ok(())
    }

    fn turn(&mut self, id: u64, events: Vec<Event>) -> Outcome {
        let now = self.clock.now();
        let Some(life) = self.nodes.get_mut(&id).and_then(|n| n.life.as_mut()) else { return Ok(()) };
        let before = life.handle.statuses();
        let mut effects = life.core.turn(now, events);
        let replies = std::mem::take(&mut effects.replies);
        life.handle.answer(&mut effects);
        effects.replies = replies;
        let after = life.handle.statuses();
        for ReplicaStatus { view: new, .. } in &after {
            let region = new.region.id;
            match before.iter().find(|b| b.view.region.id == region) {
                Some(ReplicaStatus { view: old, .. }) if (old.role, old.term) == (new.role, new.term) => {}
                Some(_) => writeln!(self.output, "s{id} r{} {} in term {}", region.0, new.role, new.term.0)?,
                None => writeln!(self.output, "s{id} has {}", describe_region(&new.region))?,
            }
            let slept = before.iter().any(|b| b.view.region.id == region && b.view.asleep);
            if slept != new.asleep {
                writeln!(self.output, "s{id} r{} {}", region.0, if new.asleep { "falls asleep" } else { "wakes" })?;
            }
        }
        for ReplicaStatus { view, .. } in &before {
            if !after.iter().any(|a| a.view.region.id == view.region.id) {
                writeln!(self.output, "s{id} r{} is gone", view.region.id.0)?;
            }
        }
        self.carry_out(id, effects)
    }

    fn carry_out(&mut self, id: u64, effects: Effects) -> Outcome {
        // Runs of equal answers are one line.
        for run in effects.replies.chunk_by(|a, b| a.1 == b.1) {
            let (first, last) = (run[0].0.0, run[run.len() - 1].0.0);
            let tickets = if first == last { format!("#{first}") } else { format!("#{first}..#{last}") };
            writeln!(self.output, "s{id} answers {tickets}: {}", describe(&run[0].1))?;
        }
        for (to, messages) in effects.sends {
            for message in messages {
                if self.trace && message.beat.is_none() {
                    writeln!(self.output, "s{id} → s{} {}", to.0, describe_message(&message))?;
                }
                self.network.push_back((StoreId(id), to, message));
            }
        }
        let trace = self.trace;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(life) = &mut node.life else { return Ok(()) };
        if let Some(write) = effects.log {
            if trace && !write.batch.is_empty() {
                writeln!(self.output, "s{id} writes {}", describe_write(&write))?;
            }
            node.log.write(write.batch.clone(), false)?;
            life.writes.push_back(write);
        }
        if !effects.apply.is_empty() {
            life.tasks.push_back(effects.apply);
        }
        life.upkeep |= effects.upkeep;
        life.snapshots.tasks.extend(effects.snapshots);
        Ok(())
    }

    /// Delivers messages and completes log writes and applying until nothing moves.
    fn settle(&mut self) -> Outcome {
        loop {
            let mut moved = false;
            while let Some((from, to, message)) = self.network.pop_front() {
                moved = true;
                if self.delayed.0.contains(&kind(&message)) {
                    self.delayed.1.push_back((from, to, message));
                    continue;
                }
                let lost = self.lost.contains(&kind(&message));
                let cut = [from.0, to.0].iter().any(|id| self.nodes.get(id).is_none_or(|n| n.cut_off));
                if !lost && !cut {
                    self.turn(to.0, vec![Event::Received(vec![message])])?;
                }
            }
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                moved |= self.complete(id)?;
                moved |= self.complete_snapshots(id)?;
            }
            if !moved {
                return Ok(());
            }
        }
    }

    fn complete(&mut self, id: u64) -> Result<bool, Box<dyn Error>> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(false) };
        let Some(life) = &mut node.life else { return Ok(false) };
        let mut events = Vec::new();
        if !node.disk_held
            && let Some(last) = life.writes.back()
        {
            node.log.sync()?;
            events.push(Event::LogWritten(last.sequence));
            life.writes.clear();
        }
        if let Some(tasks) = life.tasks.pop_front() {
            if self.trace {
                for ApplyTask { region, work } in &tasks {
                    match work {
                        ApplyWork::Entries(entries) => {
                            writeln!(self.output, "s{id} r{} applies {} entries", region.id.0, entries.len())?;
                        }
                        ApplyWork::Destroy(_) => writeln!(self.output, "s{id} r{} is destroyed", region.id.0)?,
                    }
                }
            }
            events.push(Event::Applied(life.applier.run(tasks)?));
            self.hash_marked(id);
        }
        if events.is_empty() {
            return Ok(false);
        }
        self.turn(id, events)?;
        Ok(true)
    }

    fn upkeep(&mut self, id: u64) -> Outcome {
        let node = self.nodes.get_mut(&id).ok_or("no such store")?;
        let life = node.life.as_mut().ok_or("it is down")?;
        let wanted = std::mem::take(&mut life.upkeep);
        if wanted {
            node.engine.sync()?;
            self.turn(id, vec![Event::UpkeepDone])?;
        }
        writeln!(self.output, "s{id} {}", if wanted { "synced its state" } else { "has nothing to sync" })?;
        Ok(())
    }

    /// The regions as the store that knows most has them.
    fn regions(&self) -> Vec<Region> {
        let mut newest = BTreeMap::<RegionId, Region>::new();
        let seen = self.nodes.values().filter_map(|n| n.life.as_ref()).flat_map(|life| life.handle.statuses());
        for region in self.founded.iter().cloned().chain(seen.map(|s| Region::clone(&s.view.region))) {
            let known = newest.entry(region.id).or_insert_with(|| region.clone());
            if known.epoch < region.epoch {
                *known = region;
            }
        }
        newest.into_values().collect()
    }

    fn target(&self, region: RegionId) -> Result<Target, Box<dyn Error>> {
        let region = self.regions().into_iter().find(|r| r.id == region).ok_or("no such region")?;
        Ok(Target { region: region.id, epoch: region.epoch, term: None })
    }

    fn admin(&mut self, id: u64, region: RegionId, version: Option<u64>, change: AdminChange) -> Outcome {
        let mut target = self.target(region)?;
        target.epoch.version = version.unwrap_or(target.epoch.version);
        let ticket = self.ticket();
        self.turn(id, vec![Event::Admin(AdminRequest { ticket, target, change })])
    }

    /// `split s1 r1 r7=0500 r8=0700`: new regions and their first keys. Peer ids are ten times the region's and on.
    fn split(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let (id, region) = replica(args)?;
        let version = args.take_key("version").map(str::parse).transpose()?;
        let peers = self.regions().into_iter().find(|r| r.id == region).ok_or("no such region")?.peers.len() as u64;
        let mut at = Vec::new();
        while let Some((new, start)) = args.next_key() {
            let new: u64 = new.strip_prefix('r').ok_or("a region is r1, r2, …")?.parse()?;
            let start = Bytes::copy_from_slice(start.as_bytes());
            at.push(NewRegion { start, id: RegionId(new), peers: (1..=peers).map(|p| PeerId(new * 10 + p)).collect() });
        }
        self.admin(id, region, version, AdminChange::Split(at))
    }

    /// `merge s1 r2 into=r1`; `version`: of the target.
    fn merge(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let (id, region) = replica(args)?;
        let version = args.take_key("version").map(str::parse).transpose()?;
        let into = args.take_key("into").and_then(|r| r.strip_prefix('r')).ok_or("into=r1")?.parse()?;
        let mut into = self.regions().into_iter().find(|r| r.id == RegionId(into)).ok_or("no such region")?;
        into.epoch.version = version.unwrap_or(into.epoch.version);
        self.admin(id, region, None, AdminChange::Merge(Box::new(into)))
    }

    /// `peers s1 r1 add=p4@s4 promote=p4 demote=p3 remove=p2`.
    fn peers(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let (id, region) = replica(args)?;
        let peer =
            |text: &str| Ok::<_, Box<dyn Error>>(PeerId(text.strip_prefix('p').ok_or("a peer is p1, …")?.parse()?));
        let mut changes = Vec::new();
        while let Some((what, who)) = args.next_key() {
            changes.push(match what {
                "add" => {
                    let (id, at) = who.split_once('@').ok_or("add=p4@s4")?;
                    PeerChange::AddLearner(Peer { id: peer(id)?, store: StoreId(store(at)?), role: PeerRole::Learner })
                }
                "promote" => PeerChange::Promote(peer(who)?),
                "demote" => PeerChange::Demote(peer(who)?),
                "remove" => PeerChange::Remove(peer(who)?),
                other => return Err(format!("no change {other}").into()),
            });
        }
        self.admin(id, region, None, AdminChange::Peers(changes))
    }

    fn show_regions(&mut self) -> Outcome {
        for (id, node) in &self.nodes {
            let Some(life) = &node.life else {
                writeln!(self.output, "s{id} is down")?;
                continue;
            };
            for status in life.handle.statuses() {
                writeln!(self.output, "s{id} {}", describe_region(&status.view.region))?;
            }
        }
        Ok(())
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// `fill s1 r1 entries=1000`: so many entries, one after another, quietly.
    fn fill(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let (id, region) = replica(args)?;
        let target = self.target(region)?;
        for i in 0..args.take_key("entries").ok_or("how many")?.parse::<u64>()? {
            let mut batch = Batch::default();
            batch.put(Cf::Data, format!("{:04}", target.region.0 - 1).into(), i.to_string().into());
            let ticket = self.ticket();
            self.turn(id, vec![Event::Propose(ProposeRequest { ticket, target, ops: batch.ops, bytes: 10 })])?;
            self.settle()?;
        }
        self.output.clear();
        Ok(())
    }

    /// `propose s1 r1 a=1 b=2`: proposals that arrive together; with `r0` each goes to the region of its key.
    fn propose(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let (id, region) = replica(args)?;
        let version = args.take_key("version").map(str::parse).transpose()?;
        let term = args.take_key("term").map(str::parse).transpose()?.map(proto::Term);
        let mut events = Vec::new();
        while let Some((key, value)) = args.next_key() {
            let (key, value) = (key.to_string(), value.to_string());
            let of_key = || self.regions().into_iter().find(|r| r.range.contains(key.as_bytes())).map(|r| r.id);
            let region = if region.0 == 0 { of_key().ok_or("no region has this key")? } else { region };
            let mut target = Target { term, ..self.target(region)? };
            target.epoch.version = version.unwrap_or(target.epoch.version);
            let mut batch = Batch::default();
            match value.strip_prefix("move:") {
                Some(from) => {
                    let from = (Cf::Data, from.to_string().into());
                    batch.move_value(from, 1, (Cf::Data, key.into()), "+".into());
                }
                None => batch.put(Cf::Data, key.into(), value.into()),
            }
            let bytes = batch.ops.iter().map(prost::Message::encoded_len).sum();
            let ticket = self.ticket();
            if self.trace {
                writeln!(self.output, "#{} is proposed", ticket.0)?;
            }
            events.push(Event::Propose(ProposeRequest { ticket, target, ops: batch.ops, bytes }));
        }
        self.turn(id, events)
    }

    fn read(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let (id, region) = replica(args)?;
        let (ticket, target) = (self.ticket(), self.target(region)?);
        self.turn(id, vec![Event::Read(ticket, target)])
    }

    fn lease(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let (id, region) = replica(args)?;
        let target = self.target(region)?;
        let life = self.nodes.get(&id).and_then(|n| n.life.as_ref()).ok_or("it is down")?;
        let verdict = match life.handle.try_snapshot(&target) {
            None => "no lease: a quorum must be asked".to_string(),
            Some(Ok(snapshot)) => format!("the lease of term {} holds", snapshot.term.0),
            Some(Err(e)) => e.to_string(),
        };
        writeln!(self.output, "{verdict}")?;
        Ok(())
    }

    fn get(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let key = args.next_pos().ok_or("a key")?.to_string();
        for (id, node) in &self.nodes {
            let value = node.engine.snapshot().get(Cf::Data, key.as_bytes())?;
            let value = value.map_or("nothing".into(), |v| String::from_utf8_lossy(&v).into_owned());
            writeln!(self.output, "s{id}: {key} is {value}")?;
        }
        Ok(())
    }

    /// `pace`: how slow each store finds its disk.
    fn pace(&mut self) -> Outcome {
        for (id, node) in &self.nodes {
            let Some(life) = &node.life else { continue };
            writeln!(self.output, "s{id}: {}", life.handle.slow_score())?;
        }
        Ok(())
    }

    fn status(&mut self) -> Outcome {
        for (id, node) in &self.nodes {
            let Some(life) = &node.life else {
                writeln!(self.output, "s{id} is down")?;
                continue;
            };
            for ReplicaStatus { view, applied, committed, .. } in life.handle.statuses() {
                let log = node.log.load(view.region.id)?.unwrap_or_default();
                writeln!(
                    self.output,
                    "s{id} r{} {} term {} leader {} applied {} committed {} log {}..{}",
                    view.region.id.0,
                    view.role,
                    view.term.0,
                    view.leader.map_or("none".into(), |l| l.store.to_string()),
                    applied.0,
                    committed.0,
                    log.truncated.index.0 + 1,
                    log.last.index.0,
                )?;
            }
        }
        Ok(())
    }
}

fn describe(answer: &Answer) -> String {
    match answer {
        Answer::Proposed(Ok(())) => "applied".into(),
        Answer::Proposed(Err(e)) => format!("{e}"),
        Answer::Seen => "seen".into(),
        Answer::Readable(Ok(())) => "may read".into(),
        Answer::Readable(Err(e)) => format!("may not read: {e}"),
        Answer::Admin(Ok(regions)) => {
            let regions: Vec<_> = regions.iter().map(describe_region).collect();
            format!("done {}", regions.join(", ")).trim_end().into()
        }
        Answer::Admin(Err(e)) => format!("not done: {e}"),
    }
}

fn describe_region(region: &Region) -> String {
    let role = |role| match role {
        PeerRole::Voter => "",
        PeerRole::Learner => " learner",
        PeerRole::IncomingVoter => " incoming",
        PeerRole::DemotingVoter => " demoting",
    };
    let peers: Vec<_> = region.peers.iter().map(|p| format!("{}@{}{}", p.id, p.store, role(p.role))).collect();
    let key = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
    let (start, end) = (key(&region.range.start), key(&region.range.end));
    format!("r{}@{} [{start}..{end}) {}", region.id.0, region.epoch, peers.join(" "))
}

fn parsed(message: &RaftMessage) -> Message {
    message::decode(message).expect("messages of a store decode")
}

fn kind(message: &RaftMessage) -> String {
    if message.beat.is_some() {
        return "beat".into();
    }
    if message.asks {
        return "asks".into();
    }
    if message.resolved.is_some() {
        return "resolved".into();
    }
    if message.gone.is_some() {
        return "gone".into();
    }
    if let Some(ask) = message.merge_ask {
        return if ask.abandon { "MergeAsk to abandon".into() } else { "MergeAsk".into() };
    }
    if let Some(verdict) = message.merge_verdict {
        return if verdict.absorbed { "MergeVerdict absorbed".into() } else { "MergeVerdict never".into() };
    }
    format!("{:?}", parsed(message).get_msg_type())
}

fn describe_message(envelope: &RaftMessage) -> String {
    if let Some(resolved) = &envelope.resolved {
        let region = |r: &proto::wire::ResolvedRegion| format!("r{} from index {}", r.region_id, r.index);
        let regions: Vec<_> = resolved.regions.iter().map(region).collect();
        return format!("resolved at {}: {}", resolved.ts, regions.join(", "));
    }
    if envelope.asks || envelope.gone.is_some() || envelope.merge_ask.is_some() || envelope.merge_verdict.is_some() {
        return format!("r{} {}", envelope.region_id, kind(envelope));
    }
    let m = parsed(envelope);
    let mut text = format!("r{} {:?} term {}", envelope.region_id, m.get_msg_type(), m.term);
    if m.index > 0 {
        let _ = write!(text, " index {}", m.index);
    }
    if !m.entries.is_empty() {
        let _ = write!(text, " entries {}", m.entries.len());
    }
    if m.commit > 0 {
        let _ = write!(text, " commit {}", m.commit);
    }
    if m.reject {
        text.push_str(" rejected");
    }
    text
}

fn describe_write(write: &LogWrite) -> String {
    let mut text = String::new();
    for (region, change) in &write.batch.regions {
        let _ = write!(text, "r{}:", region.0);
        match change.truncated {
            Some(at) if change.removed => drop(write!(text, " begins behind {}", at.index.0)),
            None if change.removed => text.push_str(" goes"),
            _ => {}
        }
        if let (Some(first), Some(last)) = (change.entries.first(), change.entries.last()) {
            let _ = write!(text, " entries {}..{} of term {}", first.index, last.index, last.term);
        }
        if let Some(hs) = &change.hard_state {
            let _ = write!(text, " term {} vote {} commit {}", hs.term, hs.vote, hs.commit);
        }
        if let Some(at) = change.truncated.filter(|_| !change.removed) {
            let _ = write!(text, " cut at {}", at.index.0);
        }
        text.push_str("; ");
    }
    text + if write.sync { "to be synced" } else { "no sync" }
}
