//! Drives one store core by events: what `raftstore::driver` does with threads.
//!
//! ```text
//!   inbox wakes ──► turn ──► answers, messages          (at once)
//!                    │ log write ──► append ┄ sync time ┄► LogWritten      one at a time, in order
//!                    │ apply     ┄ apply time ┄► Applied                   one at a time, in order
//!                    │ upkeep    ┄ sync time ┄► engine synced, log purged ► UpkeepDone
//!                    └ snapshots ┄ made ┄► SnapshotMade; taken step by step ┄► SnapshotTaken   one at a time
//! ```
//!
//! Between any two of these steps the node may crash: what was appended or applied and not synced is lost from
//! some point on.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use prost::Message;
use proto::{LogIndex, PD_REGION, Peer, PeerRole, RegionId, Term, wire};
use raftstore::{
    Applier, Effects, Event, MonotonicClock, Role, SnapshotDriver, StoreCore, StoreHandle, Transport,
    effect::{Applied, ApplyTask, ApplyWork, LogWrite, MergeStep, RegionChange, SnapshotTask},
    engine::Engine,
    log::LogEngine,
    snapshot::Taking,
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::{check::referee::Referee, machines::Machine, runtime::World, trace::Trace};

/// A store loop wakes up within this.
const WAKE_UP_MAX: Duration = Duration::from_micros(40);
/// A leader hears of a death within two election timeouts; one more for clocks and links.
const SILENT_ELECTIONS: u32 = 3;
/// Applying a round takes up to this.
const APPLY_MAX: Duration = Duration::from_micros(300);
/// Making a snapshot takes up to this.
const MAKE_MAX: Duration = Duration::from_millis(30);

/// What a store runs on.
pub struct StoreDrivers {
    /// The run.
    pub world: World,
    /// Clock, disk and engines.
    pub machine: Machine,
    /// The way to other stores.
    pub transport: Arc<dyn Transport>,
    /// Who sees all stores.
    pub referee: Arc<Referee>,
    /// Randomness of its own.
    pub rng: ChaCha8Rng,
}

struct Busy {
    core: StoreCore,
    turn_is_due: bool,
    writes: Vec<LogWrite>,
    writing: bool,
    applies: Vec<ApplyTask>,
    applying: bool,
    /// Making and sending; taking. In order each.
    snapshots: [Work; 2],
    /// The last term led of each region.
    led: BTreeMap<RegionId, Term>,
    asleep: BTreeSet<RegionId>,
    rng: ChaCha8Rng,
}

/// What a thread of the snapshot driver would do.
#[derive(Default)]
struct Work {
    tasks: VecDeque<SnapshotTask>,
    busy: bool,
}

/// A store that runs in the simulator.
pub struct StoreHost {
    drivers: StoreDrivers,
    handle: StoreHandle,
    applier: Applier,
    snapshots: SnapshotDriver,
    /// A store that did nothing for so long is dead, and every leader knows it.
    silence: Duration,
    busy: Mutex<Busy>,
}

impl StoreHost {
    /// Runs `core` until its owner's life ends.
    pub fn start(core: StoreCore, handle: StoreHandle, drivers: StoreDrivers) -> Arc<StoreHost> {
        let applier = Applier::new(Arc::new(drivers.machine.engine.clone()), core.config());
        let silence = core.config().election_timeout() * SILENT_ELECTIONS;
        let rng = drivers.rng.clone();
        let busy = Busy {
            core,
            turn_is_due: false,
            writes: Vec::new(),
            writing: false,
            applies: Vec::new(),
            applying: false,
            snapshots: Default::default(),
            led: BTreeMap::new(),
            asleep: BTreeSet::new(),
            rng,
        };
        let (engine, log) = (Arc::new(drivers.machine.engine.clone()), drivers.machine.log.clone());
        let snapshots = SnapshotDriver::new(engine, log, drivers.transport.clone(), handle.clone());
        let host = Arc::new(StoreHost { handle, applier, snapshots, silence, busy: Mutex::new(busy), drivers });
        let waker = Arc::downgrade(&host);
        host.handle.set_waker(move || {
            if let Some(host) = waker.upgrade() {
                host.wake();
            }
        });
        host.drivers.world.spawn(host.drivers.machine.owner, host.clone().tick());
        host
    }

    /// Turns come at least once a tick.
    async fn tick(self: Arc<Self>) {
        loop {
            let due = self.busy.lock().core.next_turn().since(self.drivers.machine.clock.now());
            // Not zero: a clock that runs slow would be asked again at the same instant.
            kv::Clock::sleep(&self.drivers.machine.clock, due.max(Duration::from_micros(100))).await;
            // As a thread that was asleep: others may run first.
            self.wake();
        }
    }

    /// Shows the referee who leads, and counts what befell leaders.
    fn observe(&self) {
        let (world, referee, store) = (&self.drivers.world, &self.drivers.referee, self.handle.store());
        let now = self.drivers.machine.clock.now();
        referee.stirs(store, world.now());
        let mut rulings = Vec::new();
        for status in self.handle.statuses() {
            let view = &status.view;
            let leads = view.role == Role::Leader;
            let lease = view.lease_until.filter(|_| leads).map(|until| self.drivers.machine.clock.true_time(until));
            rulings.push(referee.lease(&view.region, store, world.now(), lease));
            let fell = {
                let asleep = &mut self.busy.lock().asleep;
                let was = if view.asleep { !asleep.insert(view.region.id) } else { asleep.remove(&view.region.id) };
                view.asleep && !was
            };
            world.count("regions that fell asleep", u64::from(fell));
            if !leads {
                continue;
            }
            rulings.push(referee.leads(view.region.id, view.term, store));
            if self.busy.lock().led.insert(view.region.id, view.term) != Some(view.term) {
                world.count("elections", 1);
            }
            if !view.asleep && view.lease_until.is_some_and(|until| until <= now) {
                world.count("lease expiries", 1);
            }
        }
        rulings.into_iter().filter_map(Result::err).for_each(|reason| world.fail(reason));
    }

    fn later(
        self: &Arc<Self>,
        after: Duration,
        label: &'static str,
        detail: u64,
        then: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) {
        let host = self.clone();
        self.drivers.world.schedule(self.drivers.machine.owner, after, label, detail, move || then(&host));
    }

    /// Events wait: a turn soon.
    fn wake(self: &Arc<Self>) {
        let after = {
            let mut busy = self.busy.lock();
            if std::mem::replace(&mut busy.turn_is_due, true) {
                return;
            }
            busy.rng.random_range(Duration::ZERO..WAKE_UP_MAX)
        };
        self.later(after, "turn", 0, |host| host.turn());
    }

    fn turn(self: &Arc<Self>) {
        let events = self.handle.take_events();
        let now = self.drivers.machine.clock.now();
        let mut effects: Effects = {
            let mut busy = self.busy.lock();
            busy.turn_is_due = false;
            busy.core.turn(now, events)
        };
        self.handle.answer(&mut effects);
        self.observe();
        effects.log.iter().for_each(|write| self.show_writes(write));
        for (store, messages) in std::mem::take(&mut effects.sends) {
            self.drivers.transport.send(store, messages);
        }
        {
            let mut busy = self.busy.lock();
            busy.writes.extend(effects.log);
            busy.applies.extend(effects.apply);
            for task in std::mem::take(&mut effects.snapshots) {
                let taking = matches!(task, SnapshotTask::Take(_) | SnapshotTask::Refuse(_));
                busy.snapshots[usize::from(taking)].tasks.push_back(task);
            }
        }
        self.write();
        self.apply();
        self.next_snapshot(0);
        self.next_snapshot(1);
        if effects.upkeep {
            let time = self.drivers.machine.disk.sync_time();
            self.later(time, "upkeep", 0, |host| {
                host.drivers.machine.engine.sync().expect("memory does not fail");
                host.drivers.machine.log.purge().expect("memory does not fail");
                host.handle.complete(Event::UpkeepDone);
            });
        }
    }

    /// Starts all writes that wait, when none is on its way.
    fn write(self: &Arc<Self>) {
        let writes = {
            let mut busy = self.busy.lock();
            if busy.writing || busy.writes.is_empty() {
                return;
            }
            busy.writing = true;
            std::mem::take(&mut busy.writes)
        };
        let last = writes.last().expect("some wait").sequence;
        let sync = writes.iter().any(|write| write.sync);
        for write in writes {
            self.drivers.machine.log.write(write.batch, false).expect("memory does not fail");
        }
        let time = if sync { self.drivers.machine.disk.sync_time() } else { Duration::from_micros(5) };
        self.later(time, "log written", last, move |host| {
            if sync {
                host.drivers.machine.log.sync().expect("memory does not fail");
            }
            host.busy.lock().writing = false;
            host.handle.complete(Event::LogWritten(last));
            host.write();
        });
    }

    /// Applies all that waits, when nothing is being applied.
    fn apply(self: &Arc<Self>) {
        let after = {
            let mut busy = self.busy.lock();
            if busy.applying || busy.applies.is_empty() {
                return;
            }
            busy.applying = true;
            busy.rng.random_range(Duration::ZERO..APPLY_MAX)
        };
        self.later(after, "apply", 0, |host| {
            let tasks = std::mem::take(&mut host.busy.lock().applies);
            for task in &tasks {
                host.show_entries(task);
            }
            let applied = host.applier.run(tasks).expect("what is committed applies");
            if applied.iter().any(merges) {
                host.drivers.referee.merged(host.handle.store());
            }
            for marked in host.applier.take_marked() {
                host.handle.keep_verified(marked.hash());
            }
            host.busy.lock().applying = false;
            host.handle.complete(Event::Applied(applied));
            host.apply();
        });
    }

    /// Begins the next task of one of the snapshot driver's threads.
    fn next_snapshot(self: &Arc<Self>, thread: usize) {
        let (task, after) = {
            let mut busy = self.busy.lock();
            let work = &mut busy.snapshots[thread];
            if work.busy {
                return;
            }
            let Some(task) = work.tasks.pop_front() else { return };
            work.busy = true;
            (task, busy.rng.random_range(Duration::ZERO..MAKE_MAX))
        };
        self.later(after, "snapshot task", thread as u64, move |host| match host.snapshots.start(task) {
            Some(taking) => {
                host.drivers.referee.takes_snapshot(host.handle.store());
                host.take_snapshot(thread, taking);
            }
            None => host.snapshot_task_done(thread),
        });
    }

    /// Every step takes a sync, and between any two the node may crash.
    fn take_snapshot(self: &Arc<Self>, thread: usize, mut taking: Taking) {
        let time = self.drivers.machine.disk.sync_time();
        self.later(time, "snapshot step", taking.region().0, move |host| {
            match taking.step().expect("memory does not fail") {
                false => host.take_snapshot(thread, taking),
                true => {
                    host.drivers.world.count("snapshots", 1);
                    host.snapshots.taken(&taking);
                    host.snapshot_task_done(thread);
                }
            }
        });
    }

    fn snapshot_task_done(self: &Arc<Self>, thread: usize) {
        self.busy.lock().snapshots[thread].busy = false;
        self.next_snapshot(thread);
    }

    /// Looks at what is to be written: logs that begin, and whom leaders want as voters (their
    /// entries say it in their context).
    fn show_writes(&self, write: &LogWrite) {
        let silence = self.silence;
        let (world, referee) = (&self.drivers.world, &self.drivers.referee);
        for (region, change) in &write.batch.regions {
            let begins = change.removed && change.truncated.is_some();
            if begins && self.drivers.machine.log.load(*region).expect("memory does not fail").is_some() {
                // Votes and entries that were promised would be forgotten.
                world.fail(format!("{region}: {} begins a log anew that exists", self.handle.store()));
            }
            for entry in change.entries.iter().filter(|entry| !entry.context.is_empty()) {
                // A merge's context is none of a membership.
                let Ok(wanted) = wire::Membership::decode(&*entry.context) else { continue };
                let peers: Vec<_> = wanted.peers.into_iter().filter_map(|p| Peer::try_from(p).ok()).collect();
                if peers.iter().any(|p| matches!(p.role, PeerRole::IncomingVoter | PeerRole::DemotingVoter)) {
                    let at = (*region, LogIndex(entry.index), Term(entry.term));
                    let ruling = referee.proposes_voters(at, &peers, world.now(), silence);
                    ruling.unwrap_or_else(|reason| world.fail(reason));
                }
            }
        }
    }

    fn show_entries(&self, task: &ApplyTask) {
        let ApplyWork::Entries(entries) = &task.work else { return };
        for entry in entries {
            let (index, term) = (LogIndex(entry.index), Term(entry.term));
            let ruling =
                self.drivers.referee.applies(task.region.id, index, term, Trace::of(&entry.data), self.handle.store());
            ruling.unwrap_or_else(|reason| self.drivers.world.fail(reason));
        }
    }

    /// The store's handle.
    pub fn handle(&self) -> &StoreHandle {
        &self.handle
    }
}

/// Whether a region has taken over another one.
fn merges(applied: &Applied) -> bool {
    let Applied::Entries { outcomes, .. } = applied else { return false };
    let absorbs =
        |change: &RegionChange| matches!(change, RegionChange::Merge { step: MergeStep::Absorbed { .. }, .. });
    outcomes.iter().any(|outcome| matches!(&outcome.change, Some(Ok(change)) if absorbs(change)))
}

/// Whether a store leads any region.
pub fn leads(handle: &StoreHandle) -> bool {
    handle.statuses().iter().any(|status| status.view.role == Role::Leader)
}

/// Whether a store leads PD's region.
pub fn leads_pd(handle: &StoreHandle) -> bool {
    let mut regions = handle.statuses().into_iter().map(|status| status.view);
    regions.any(|view| view.region.id == PD_REGION && view.role == Role::Leader)
}
