//! All replicas of a process: one turn takes what has come in for any of them and gives back one log write, one
//! batch of messages a store, the committed entries of all. PURE: no thread, clock or disk of its own.
//!
//! ```text
//!  handles, transport, completions ──► Inbox ──► turn(now, events) ──► Effects
//!                                                  │ step the replicas           replies
//!                                                  │ tick them when it is time   sends (one batch a store)
//!                                                  │ collect the dirty ones      log write (one sync for all)
//!                                                  │ show how they look          apply tasks · upkeep
//! ```
//!
//! Replicas that nobody uses sleep and get no ticks; `beats` stands in for them.
//! `merges` is for what two replicas beside each other have to do with one another.
//! Replicas come and go: `lifecycle` says when, and in which order what they leave on disk.
//!
//! What a log write promises is kept here until [`Event::LogWritten`] says that it is durable.

mod beats;
pub(crate) mod boot;
#[cfg(test)]
mod golden;
mod lifecycle;
mod merges;
mod pace;
pub mod recovery;
mod resolved;
mod snapshots;
mod upkeep;
mod writes;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proto::{RegionId, StoreId, wire::RegionError};
use tracing::warn;

pub use boot::{BootError, bootstrap};

use crate::{
    api::AdminError,
    clock::{Instant, MonotonicClock},
    config::StoreConfig,
    effect::{AdminChange, AdminRequest, Answer, Applied, Effects, Event, LogWrite, Ticket},
    engine::Engine,
    handle::{Closer, StoreHandle},
    log::LogEngine,
    region::{Replica, outbox::Outbox, propose},
    snapshot::taking,
};
use beats::Beats;
use lifecycle::Absent;
use pace::Pace;
use snapshots::Snapshots;
use upkeep::Upkeep;
use writes::Writes;

/// All replicas of a store.
pub struct StoreCore {
    config: Arc<StoreConfig>,
    _closer: Closer,
    log: Arc<dyn LogEngine>,
    replicas: BTreeMap<RegionId, Replica>,
    /// Have something to collect.
    dirty: BTreeSet<RegionId>,
    /// Do not sleep, or did not when they were looked at last: a tick passes by all others, which may be thousands.
    awake: BTreeSet<RegionId>,
    absent: Absent,
    writes: Writes,
    last_tick: Instant,
    upkeep: Upkeep,
    snapshots: Snapshots,
    beats: Beats,
    disk_full: bool,
    /// Replicas that wait at an entry that takes over another region.
    gated: BTreeSet<RegionId>,
}

impl StoreCore {
    /// Opens what [`bootstrap`] and earlier lives have left in the engines.
    pub fn open(
        config: StoreConfig,
        engine: Arc<dyn Engine>,
        log: Arc<dyn LogEngine>,
        clock: Arc<dyn MonotonicClock>,
    ) -> Result<(StoreCore, StoreHandle), BootError> {
        let config = Arc::new(config);
        let now = clock.now();
        taking::recover(&engine, &log)?;
        let (replicas, tombstones) = boot::replicas(&config, &*engine, &log)?;
        let seen = replicas.iter().map(|replica| replica.seen(now)).collect();
        let (handle, closer) = StoreHandle::new(config.clone(), engine, clock, seen);
        let replicas: BTreeMap<_, _> = replicas.into_iter().map(|r| (r.id(), r)).collect();
        let core = StoreCore {
            upkeep: Upkeep::new(config.sync_every, now),
            dirty: replicas.keys().copied().collect(),
            awake: BTreeSet::new(),
            _closer: closer,
            log,
            replicas,
            absent: Absent::new(tombstones),
            writes: Writes::new(Pace::new(now, config.election_timeout())),
            last_tick: now,
            snapshots: Snapshots::default(),
            beats: Beats::new(now),
            disk_full: false,
            gated: BTreeSet::new(),
            config,
        };
        Ok((core, handle))
    }

    /// What it was opened with.
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// When the next turn is due even if nothing happens.
    pub fn next_turn(&self) -> Instant {
        self.last_tick + self.config.tick
    }

    /// One round: takes events, gives effects. `now` must have been read before, and never go back.
    pub fn turn(&mut self, now: Instant, events: Vec<Event>) -> Effects {
        let (mut out, mut slow_score) = (Outbox::new(self.snapshots.orders()), None);
        for event in events {
            self.step(now, event, &mut out);
            self.bury(&mut out);
        }
        if now.since(self.last_tick) >= self.config.tick {
            // One, however many were missed: a store that stood still must not make up for it.
            self.last_tick = now;
            if self.config.hibernates {
                self.beat(now, &mut out);
            }
            self.tick(now, &mut out);
            slow_score = Some(self.writes.pace.look(now));
        }
        self.open_gates(&mut out);
        while !self.dirty.is_empty() {
            for region in std::mem::take(&mut self.dirty) {
                self.collect(now, region, &mut out);
            }
            self.gated.extend(out.gated.drain(..));
            self.open_gates(&mut out);
            self.talk_to_itself(now, &mut out);
            self.bury(&mut out);
        }
        Effects { slow_score, ..self.effects(now, out) }
    }

    fn tick(&mut self, now: Instant, out: &mut Outbox) {
        // What has just been woken has something to collect.
        self.awake.extend(&self.dirty);
        for region in std::mem::take(&mut self.awake) {
            let Some(replica) = self.replicas.get_mut(&region).filter(|r| !r.is_asleep()) else { continue };
            self.awake.insert(region);
            if replica.tick(now, out) {
                self.dirty.insert(region);
            }
        }
        self.absent.tick();
    }

    fn collect(&mut self, now: Instant, region: RegionId, out: &mut Outbox) {
        let target = self.merge_target(region);
        let Some(replica) = self.replicas.get_mut(&region) else { return };
        replica.drive_merge(now, target.as_deref(), out);
        replica.collect(now, out);
        if !replica.is_asleep() {
            self.awake.insert(region);
        }
        if replica.is_initialised() {
            out.seen.push(replica.seen(now));
        }
    }

    fn step(&mut self, now: Instant, event: Event, out: &mut Outbox) {
        match event {
            Event::Received(envelopes) => {
                for envelope in envelopes {
                    self.received(now, envelope, out);
                    self.bury(out);
                }
            }
            Event::Propose(request) => {
                let (ticket, region) = (request.ticket, request.target.region);
                let refuse = |error: RegionError, out: &mut Outbox| {
                    propose::answer(&mut out.replies, ticket, Err(error.into()));
                };
                if self.disk_full {
                    return refuse(RegionError::disk_full(self.disk_full_message()), out);
                }
                match self.replica(region) {
                    Some(replica) => replica.propose(request, out),
                    None => refuse(RegionError::region_not_found(region), out),
                }
            }
            Event::Read(ticket, target) => match self.replica(target.region) {
                Some(replica) => replica.read(ticket, &target, out),
                None => out.replies.push(no_region_to_read(ticket, target.region)),
            },
            // What earlier events changed is shown before answers are given.
            Event::Look(ticket) => out.replies.push((ticket, Answer::Seen)),
            Event::Admin(request) => self.admin(now, request, out),
            Event::Campaign(region) => {
                if let Some(replica) = self.replica(region) {
                    replica.campaign(now, out);
                }
            }
            Event::Unreachable(store) => self.unreachable(store),
            Event::LogWritten(sequence) => self.written(now, sequence, out),
            Event::Applied(applied) => {
                for applied in applied {
                    self.applied(now, applied, out);
                    self.bury(out);
                }
            }
            Event::UpkeepDone => {
                self.purge_absorbed(out);
                for (region, applied) in self.upkeep.done() {
                    if let Some(replica) = self.replica(region) {
                        replica.engine_synced(applied);
                    }
                }
            }
            Event::SnapshotMade(id, made) => {
                if let Some(replica) = self.replica(id.region) {
                    replica.snapshot_made(id, made, out);
                }
            }
            Event::SnapshotSent { id, peer, outcome } => {
                if let Some(replica) = self.replica(id.region) {
                    replica.snapshot_sent(id, peer, outcome);
                }
            }
            Event::SnapshotArrived(arrived) => self.snapshot_arrived(now, *arrived, out),
            Event::SnapshotTaken(region) => self.snapshot_taken(region, out),
            Event::DiskFull(full) => {
                if full != self.disk_full {
                    warn!(store = self.config.store.0, full, "the disk's reserve: writes are refused while it is full");
                }
                self.disk_full = full;
            }
            Event::Resolve(ts, regions) => self.resolve(now, ts, &regions, out),
        }
    }

    fn applied(&mut self, now: Instant, applied: Applied, out: &mut Outbox) {
        match applied {
            Applied::Entries { region, position, outcomes } => {
                self.upkeep.applied(outcomes.len());
                self.follow_changes(now, region, &outcomes, out);
                if let Some(replica) = self.replica(region) {
                    replica.applied(position, outcomes, out);
                }
            }
            Applied::Destroyed(region) => self.destroyed(region, out),
        }
    }

    fn admin(&mut self, now: Instant, request: AdminRequest, out: &mut Outbox) {
        let (ticket, region) = (request.ticket, request.target.region);
        let taken = match &request.change {
            AdminChange::Split(at) => at.iter().find(|new| self.replicas.contains_key(&new.id)),
            _ => None,
        };
        if let Some(new) = taken {
            let why = format!("{} is the id of a region that exists", new.id);
            return out.replies.push((ticket, Answer::Admin(Err(AdminError::Refused(why)))));
        }
        let neighbour = match &request.change {
            AdminChange::Merge(into) => self.replicas.get(&into.id).map(|target| target.region().clone()),
            _ => None,
        };
        match self.replica(region) {
            Some(replica) => replica.admin(now, request, neighbour.as_deref(), out),
            None => {
                let error = RegionError::region_not_found(region);
                out.replies.push((ticket, Answer::Admin(Err(error.into()))));
            }
        }
    }

    /// The replica, which will have something to collect.
    fn replica(&mut self, region: RegionId) -> Option<&mut Replica> {
        let replica = self.replicas.get_mut(&region)?;
        self.dirty.insert(region);
        Some(replica)
    }

    fn disk_full_message(&self) -> String {
        format!("the disk of store {} is below its reserve; free space and writes go on", self.config.store.0)
    }

    fn unreachable(&mut self, store: StoreId) {
        for (region, replica) in &mut self.replicas {
            if replica.unreachable(store) {
                self.dirty.insert(*region);
            }
        }
    }

    fn written(&mut self, now: Instant, sequence: u64, out: &mut Outbox) {
        while let Some(written) = self.writes.end(now, sequence) {
            if written.synced {
                self.beats.synced(now);
            }
            for held in written.held {
                if let Some(replica) = self.replica(held.region) {
                    replica.persisted(held.number);
                }
                out.messages.extend(held.messages);
            }
        }
    }

    fn effects(&mut self, now: Instant, mut out: Outbox) -> Effects {
        let batch = out.take_batch();
        let Outbox { seen, gone, merged, resolved, replies, apply, .. } = out;
        let mut effects = Effects { seen, gone, merged, resolved, replies, apply, ..Effects::default() };
        for (store, message) in out.messages {
            effects.sends.entry(store).or_default().push(message);
        }
        let probes = self.config.hibernates
            && self.writes.is_idle()
            && self.beats.probe_is_due(now, self.config.election_timeout());
        if !batch.is_empty() || probes {
            let sync = out.sync || probes;
            let sequence = self.writes.begin(now, out.held, sync);
            effects.log = Some(LogWrite { sequence, batch, sync });
        } else if !out.held.is_empty() {
            // They wait for a write that is on its way already.
            self.writes.hold(out.held);
        }
        let (last, first_open) = (self.writes.last(), self.writes.first_open());
        effects.snapshots = self.snapshots.tasks(out.snapshots, last, first_open);
        let replicas = &self.replicas;
        // Not those that have applied nothing: each would be collected when it is done.
        let unsynced = || replicas.iter().filter(|(_, r)| r.wants_engine_sync());
        effects.upkeep = self.upkeep.start(now, || unsynced().map(|(id, r)| (*id, r.applied_index())).collect());
        if effects.upkeep {
            self.absent.syncing.append(&mut self.absent.absorbed);
        }
        effects
    }
}

fn no_region_to_read(ticket: Ticket, region: RegionId) -> (Ticket, Answer) {
    (ticket, Answer::Readable(Err(RegionError::region_not_found(region))))
}
