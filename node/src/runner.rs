//! Who runs the store core: threads in production, events in the simulator.

use std::sync::Arc;

use parking_lot::Mutex;
use raftstore::{
    StoreCore, StoreHandle, Transport,
    driver::{Drivers, RunningStore},
    engine::Engine,
    log::LogEngine,
};

/// Takes the core once its records are on disk, and turns it until the node ends.
pub trait StoreRunner: Send + Sync + 'static {
    /// Starts to run the core. The reason, when it can't.
    fn run(&self, core: StoreCore, handle: StoreHandle, transport: Arc<dyn Transport>) -> Result<(), String>;
}

/// Runs a store on `raftstore`'s threads.
pub struct StoreThreads {
    /// The state.
    pub engine: Arc<dyn Engine>,
    /// The Raft log.
    pub log: Arc<dyn LogEngine>,
    /// Time.
    pub clock: Arc<dyn kv::Clock>,
    /// Whose free space is watched, and how much of it must stay free.
    pub disk_reserve: Option<(std::path::PathBuf, u64)>,
    /// Called when the store can't go on; the process must end.
    pub failed: Arc<dyn Fn(String) + Send + Sync>,
    running: Mutex<Option<RunningStore>>,
}

impl StoreThreads {
    /// Threads that are not started yet.
    pub fn new(
        engine: Arc<dyn Engine>,
        log: Arc<dyn LogEngine>,
        clock: Arc<dyn kv::Clock>,
        disk_reserve: Option<(std::path::PathBuf, u64)>,
        failed: Arc<dyn Fn(String) + Send + Sync>,
    ) -> Self {
        StoreThreads { engine, log, clock, disk_reserve, failed, running: Mutex::new(None) }
    }

    /// Stops the threads; whoever waits for the store learns that outcomes are unknown.
    pub fn stop(&self) {
        // Taken out first: joining threads under the lock would hold up a second caller.
        let running = self.running.lock().take();
        drop(running);
    }
}

impl StoreRunner for StoreThreads {
    fn run(&self, core: StoreCore, handle: StoreHandle, transport: Arc<dyn Transport>) -> Result<(), String> {
        let drivers = Drivers {
            engine: self.engine.clone(),
            log: self.log.clone(),
            transport,
            clock: self.clock.clone(),
            disk_reserve: self.disk_reserve.clone(),
            failed: self.failed.clone(),
        };
        let store = RunningStore::start(core, handle, drivers).map_err(|e| format!("no thread for the store: {e}"))?;
        *self.running.lock() = Some(store);
        Ok(())
    }
}
