//! The threads that make and take snapshots: one for each, so that a replica that needs its state does not wait while
//! another one's is read.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread::JoinHandle,
};

use tracing::{debug, error};

use super::Drivers;
use crate::{SnapshotDriver, StoreHandle, effect::SnapshotTask};

/// The threads; end when dropped, after what they are doing.
pub(super) struct Snapshots {
    threads: Vec<JoinHandle<()>>,
    queues: Option<Queues>,
}

/// What waits. Not bounded here: the core orders a few tasks for each snapshot it may keep, and one for each that arrived.
#[derive(Clone)]
pub(super) struct Queues {
    giving: Sender<SnapshotTask>,
    taking: Sender<SnapshotTask>,
}

impl Queues {
    pub(super) fn push(&self, task: SnapshotTask) {
        let queue = match task {
            SnapshotTask::Take(_) | SnapshotTask::Refuse(_) => &self.taking,
            SnapshotTask::Make(_) | SnapshotTask::Send(_) | SnapshotTask::Discard(_) => &self.giving,
        };
        if queue.send(task).is_err() {
            debug!("the snapshot threads have ended");
        }
    }
}

impl Snapshots {
    pub(super) fn start(drivers: &Drivers, handle: StoreHandle) -> std::io::Result<Snapshots> {
        let Drivers { engine, log, transport, .. } = drivers;
        let driver = Arc::new(SnapshotDriver::new(engine.clone(), log.clone(), transport.clone(), handle));
        let mut snapshots = Snapshots { threads: Vec::new(), queues: None };
        let giving = snapshots.thread("store-snap-out", driver.clone(), drivers)?;
        let taking = snapshots.thread("store-snap-in", driver, drivers)?;
        snapshots.queues = Some(Queues { giving, taking });
        Ok(snapshots)
    }

    fn thread(
        &mut self,
        name: &str,
        driver: Arc<SnapshotDriver>,
        drivers: &Drivers,
    ) -> std::io::Result<Sender<SnapshotTask>> {
        let (sender, tasks) = mpsc::channel();
        let failed = drivers.failed.clone();
        let run = move || tasks.iter().try_for_each(|task| driver.run(task));
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let reason = match std::panic::catch_unwind(AssertUnwindSafe(run)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => format!("taking a snapshot failed: {error}"),
                Err(panic) => super::panic_message(&*panic),
            };
            error!(reason, "the store stops");
            failed(reason);
        })?;
        self.threads.push(thread);
        Ok(sender)
    }

    pub(super) fn queues(&self) -> Queues {
        self.queues.clone().expect("present until dropped")
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        self.queues = None;
        for thread in self.threads.drain(..) {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}
