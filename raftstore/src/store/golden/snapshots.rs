//! Snapshots in scripts: made, carried and taken when a script settles.

use std::{
    collections::VecDeque,
    error::Error,
    fmt::Write,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
};

use proto::{StoreId, wire::RaftMessage};

use super::Script;
use crate::{
    Event, SnapshotDriver, StoreHandle, Transport, effect::SnapshotTask, engine::Engine, log::LogEngine,
    snapshot::Outgoing,
};

/// Puts snapshots on their way.
struct Couriers(Sender<Outgoing>);

impl Transport for Couriers {
    fn send(&self, _: StoreId, _: Vec<RaftMessage>) {}
    fn send_snapshot(&self, snapshot: Outgoing) {
        self.0.send(snapshot).expect("the script receives as long as the store lives");
    }
}

/// What one life of a store has to do about snapshots.
pub(super) struct Snapshots {
    driver: SnapshotDriver,
    on_their_way: Receiver<Outgoing>,
    pub(super) tasks: VecDeque<SnapshotTask>,
}

impl Snapshots {
    pub(super) fn new(engine: Arc<dyn Engine>, log: Arc<dyn LogEngine>, handle: StoreHandle) -> Self {
        let (couriers, on_their_way) = mpsc::channel();
        let driver = SnapshotDriver::new(engine, log, Arc::new(Couriers(couriers)), handle);
        Snapshots { driver, on_their_way, tasks: VecDeque::new() }
    }
}

impl Script {
    /// Does one thing about snapshots on a store; whether there was any.
    pub(super) fn complete_snapshots(&mut self, id: u64) -> Result<bool, Box<dyn Error>> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(false) };
        let Some(life) = &mut node.life else { return Ok(false) };
        if let Some(task) = life.snapshots.tasks.pop_front() {
            if let Some(mut taking) = life.snapshots.driver.start(task) {
                let mut steps = 0;
                while steps != node.steps_at_most && !taking.step()? {
                    steps += 1;
                }
                if steps == node.steps_at_most {
                    writeln!(self.output, "s{id} stops in the middle of taking a snapshot")?;
                } else {
                    life.snapshots.driver.taken(&taking);
                }
            }
            self.hear(id)?;
            return Ok(true);
        }
        let Ok(snapshot) = life.snapshots.on_their_way.try_recv() else { return Ok(false) };
        let to = snapshot.to().0;
        let reachable = |id| self.nodes.get(id).is_some_and(|n| !n.cut_off);
        let receiver = self.nodes.get(&to).and_then(|n| n.life.as_ref());
        match receiver.filter(|_| reachable(&id) && reachable(&to)) {
            Some(receiver) => snapshot.carry(|message| receiver.handle.receive_snapshot(message)),
            None => snapshot.finish(Err("nobody answers".into())),
        }
        self.hear(to)?;
        self.hear(id)?;
        Ok(true)
    }

    /// A store hears what was done.
    fn hear(&mut self, id: u64) -> Result<(), Box<dyn Error>> {
        let Some(life) = self.nodes.get(&id).and_then(|n| n.life.as_ref()) else { return Ok(()) };
        let events = life.handle.take_events();
        for event in &events {
            match event {
                Event::SnapshotMade(of, Ok(content)) => {
                    let (region, at) = (of.region.0, content.position.index.0);
                    writeln!(self.output, "s{id} made a snapshot of r{region} at {at}")?;
                }
                Event::SnapshotMade(of, Err(reason)) => {
                    writeln!(self.output, "s{id} made no snapshot of r{}: {reason}", of.region.0)?;
                }
                Event::SnapshotSent { id: of, peer, outcome } => {
                    let how = outcome
                        .as_ref()
                        .map_or_else(|reason| format!("did not arrive: {reason}"), |()| "arrived".into());
                    writeln!(self.output, "s{id} hears that its snapshot of r{} for p{} {how}", of.region.0, peer.0)?;
                }
                Event::SnapshotArrived(arrived) => {
                    writeln!(self.output, "s{id} has the files of a snapshot of r{}", arrived.message.region_id)?;
                }
                Event::SnapshotTaken(region) => writeln!(self.output, "s{id} took a snapshot of r{}", region.0)?,
                _ => {}
            }
        }
        if events.is_empty() { Ok(()) } else { self.turn(id, events) }
    }
}
