//! What a store core wants done about snapshots, done: off the store loop, completions as events.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::RegionId;
use tracing::{info, warn};

use super::{Content, Outcome, Outgoing, TakeError, Taking, taking};
use crate::{
    StoreHandle, Transport,
    config::Planted,
    effect::{Event, SendTask, SnapshotId, SnapshotTask},
    engine::{Engine, EngineError},
    log::LogEngine,
};

/// A snapshot that was made here; its files go with the last who uses them.
pub(super) struct Made {
    engine: Arc<dyn Engine>,
    folder: String,
    pub(super) content: Content,
}

impl Made {
    pub(super) fn read(&self, file: &str, offset: u64, most: usize) -> Result<Bytes, EngineError> {
        self.engine.files().read(&self.folder, file, offset, most)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        remove(&*self.engine, &self.folder);
    }
}

fn remove(engine: &dyn Engine, folder: &str) {
    if let Err(error) = engine.files().remove(folder) {
        warn!(folder, %error, "files of a snapshot are left until the next start");
    }
}

/// Makes, sends, takes and removes snapshots for one store.
pub struct SnapshotDriver {
    engine: Arc<dyn Engine>,
    log: Arc<dyn LogEngine>,
    transport: Arc<dyn Transport>,
    handle: StoreHandle,
    made: Mutex<BTreeMap<SnapshotId, Arc<Made>>>,
}

impl SnapshotDriver {
    /// For the store behind `handle`.
    pub fn new(
        engine: Arc<dyn Engine>,
        log: Arc<dyn LogEngine>,
        transport: Arc<dyn Transport>,
        handle: StoreHandle,
    ) -> Self {
        SnapshotDriver { engine, log, transport, handle, made: Mutex::default() }
    }

    /// Does a task from beginning to end. An error means that the store must stop.
    pub fn run(&self, task: SnapshotTask) -> Result<(), TakeError> {
        let Some(mut taking) = self.start(task) else { return Ok(()) };
        while !taking.step()? {}
        self.taken(&taking);
        Ok(())
    }

    /// Does a task; one that takes a snapshot is only begun: its steps and [`SnapshotDriver::taken`] are up to the caller.
    pub fn start(&self, task: SnapshotTask) -> Option<Taking> {
        match task {
            SnapshotTask::Make(id) => {
                let made = self.make(id);
                self.handle.complete(Event::SnapshotMade(id, made));
            }
            SnapshotTask::Send(task) => {
                let SendTask { id, to, peer, message } = *task;
                let made = self.made.lock().get(&id).cloned();
                let (handle, bytes) = (self.handle.clone(), made.as_ref().map_or(0, |made| made.content.bytes()));
                handle.counters().sent.begin();
                let told = move |outcome: Outcome| {
                    handle.counters().sent.end(outcome.is_ok().then_some(bytes));
                    handle.complete(Event::SnapshotSent { id, peer, outcome });
                };
                match made {
                    Some(made) => self.transport.send_snapshot(Outgoing::new(to, message, made, told)),
                    None => told(Err("it was removed".into())),
                }
            }
            SnapshotTask::Discard(id) => drop(self.made.lock().remove(&id)),
            SnapshotTask::Refuse(folder) => remove(&*self.engine, &folder),
            SnapshotTask::Take(task) => {
                let unmarked = self.handle.config().has(Planted::UnmarkedSnapshot);
                return Some(Taking::new(self.engine.clone(), self.log.clone(), *task, unmarked));
            }
        }
        None
    }

    /// The last step of a snapshot is done.
    pub fn taken(&self, taking: &Taking) {
        self.handle.complete(Event::SnapshotTaken(taking.region()));
    }

    fn make(&self, id: SnapshotId) -> Result<Content, String> {
        let made = self.export(id.region, &format!("made-{}-{}", id.region.0, id.number));
        let made = made.inspect_err(|reason| warn!(region = id.region.0, reason, "a snapshot could not be made"))?;
        let content = made.content.clone();
        let (index, bytes) = (content.position.index.0, content.bytes());
        info!(region = id.region.0, index, bytes, parts = content.parts.len(), "a snapshot is made");
        self.made.lock().insert(id, Arc::new(made));
        Ok(content)
    }

    fn export(&self, region: RegionId, folder: &str) -> Result<Made, String> {
        let snapshot = self.engine.snapshot();
        let (region, position, merges) = taking::state_of(&*snapshot, region)?;
        let parts = Vec::new();
        // From here on the folder goes again, whatever happens.
        let content = Content { position, region, merges, parts };
        let mut made = Made { engine: self.engine.clone(), folder: folder.into(), content };
        let parts = self.engine.export(&*snapshot, &made.content.region.range, folder);
        made.content.parts = parts.map_err(|e| e.to_string())?;
        Ok(made)
    }
}
