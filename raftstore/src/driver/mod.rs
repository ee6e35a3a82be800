//! Threads around a store core, in production.
//!
//! ```text
//!  store loop   inbox ─► turn ─► answers, sends ─► apply ─► turn ─► answers ─► log write + fdatasync ─► turn …
//!  upkeep       sync of the state engine, purge of the log, free space
//!  verify       hashing marked regions
//!  snapshots    making them for others · taking those that have arrived
//! ```
//!
//! One thread does turns, log writes and applying: a commit then costs two wake-ups (the loop's, and that of whoever
//! waits) and one fdatasync on each of the quorum's stores. What arrives while the disk works waits in the inbox and
//! becomes one batch: the busier the store, the bigger the batches. A stalled disk stalls the loop, so that heartbeats
//! stop and others elect: a dead disk is a dead store. The core does not depend on it: completions are events.

mod disk;
mod hasher;
mod slice;
mod snapshots;
mod upkeep;

use std::{
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use proto::wire::RaftMessage;
use tracing::error;

use crate::{
    Applier, Event, Instant, MonotonicClock, StoreCore, StoreHandle, Transport,
    effect::{Applied, Effects, LogWrite},
    engine::Engine,
    log::{LogBatch, LogEngine},
};

pub use slice::shorten_slices;

/// Messages that go to the transport in one call, bytes; a message alone may be bigger.
const FRAME_BYTES_ABOUT: usize = 4 << 20;

/// What a store runs on.
pub struct Drivers {
    /// The state.
    pub engine: Arc<dyn Engine>,
    /// The Raft log.
    pub log: Arc<dyn LogEngine>,
    /// The way to other stores.
    pub transport: Arc<dyn Transport>,
    /// Time.
    pub clock: Arc<dyn MonotonicClock>,
    /// Whose free space is watched, and how many bytes must stay free; below it proposals are refused.
    pub disk_reserve: Option<(PathBuf, u64)>,
    /// Called, from any thread, when the store can't go on: a log write or sync failed, a record is corrupt. What
    /// was promised may not be on disk: the process must end without running anything that depends on it.
    pub failed: Arc<dyn Fn(String) + Send + Sync>,
}

/// A store that runs; stops when dropped.
pub struct RunningStore {
    stopping: Arc<AtomicBool>,
    store_loop: Option<JoinHandle<()>>,
    upkeep: Option<upkeep::Upkeep>,
    snapshots: Option<snapshots::Snapshots>,
    hasher: Option<hasher::Hasher>,
}

impl RunningStore {
    /// Starts the threads of a store.
    pub fn start(core: StoreCore, handle: StoreHandle, drivers: Drivers) -> std::io::Result<RunningStore> {
        let stopping = Arc::new(AtomicBool::new(false));
        let upkeep = upkeep::Upkeep::start(&drivers, handle.clone())?;
        let snapshots = snapshots::Snapshots::start(&drivers, handle.clone())?;
        let hasher = hasher::Hasher::start(handle.clone())?;
        let failed = drivers.failed.clone();
        let store = handle.store().0;
        let mut store_loop = StoreLoop {
            applier: Applier::new(drivers.engine.clone(), core.config()),
            core,
            handle: handle.clone(),
            log: drivers.log,
            transport: drivers.transport,
            clock: drivers.clock,
            upkeep: upkeep.starter(),
            snapshots: snapshots.queues(),
            hasher: hasher.queue(),
            stopping: stopping.clone(),
            writes: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("store-loop".into()).spawn(move || {
            shorten_slices();
            let end = std::panic::catch_unwind(AssertUnwindSafe(|| store_loop.run()));
            let reason = match end {
                Ok(Ok(())) => return,
                Ok(Err(reason)) => reason,
                Err(panic) => panic_message(&*panic),
            };
            error!(store, reason, "the store stops");
            failed(reason);
        })?;
        let waker = thread.thread().clone();
        handle.set_waker(move || waker.unpark());
        Ok(RunningStore {
            stopping,
            store_loop: Some(thread),
            upkeep: Some(upkeep),
            snapshots: Some(snapshots),
            hasher: Some(hasher),
        })
    }

    /// Stops the threads; what waits for an answer learns that the outcome is unknown.
    pub fn stop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.store_loop.take() {
            thread.thread().unpark();
            // A panic was reported by the loop itself.
            let _ = thread.join();
        }
        drop(self.snapshots.take());
        drop(self.hasher.take());
        drop(self.upkeep.take());
    }
}

impl Drop for RunningStore {
    fn drop(&mut self) {
        self.stop();
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_else(|| "a panic".into())
}

/// The thread that owns the core.
struct StoreLoop {
    core: StoreCore,
    handle: StoreHandle,
    applier: Applier,
    log: Arc<dyn LogEngine>,
    transport: Arc<dyn Transport>,
    clock: Arc<dyn MonotonicClock>,
    upkeep: upkeep::Starter,
    snapshots: snapshots::Queues,
    hasher: hasher::Queue,
    stopping: Arc<AtomicBool>,
    /// Not begun yet, in order.
    writes: Vec<LogWrite>,
}

impl StoreLoop {
    fn run(&mut self) -> Result<(), String> {
        // What was committed before the start is applied, and a lone voter leads, without waiting for a tick.
        self.round(Vec::new())?;
        while !self.stopping.load(Ordering::Acquire) {
            let events = self.handle.take_events();
            let now = self.clock.now();
            if events.is_empty() && now < self.core.next_turn() {
                // An event that arrives from here on leaves its mark, and the call returns at once.
                std::thread::park_timeout(self.core.next_turn().since(now));
                continue;
            }
            self.round(events)?;
        }
        Ok(())
    }

    /// From events to rest: until neither applying nor writing is left to do.
    fn round(&mut self, events: Vec<Event>) -> Result<(), String> {
        let mut completed = self.turn(events)?;
        while (!completed.is_empty() || !self.writes.is_empty()) && !self.stopping.load(Ordering::Acquire) {
            // Applied entries are answered before the disk is waited for.
            if !completed.is_empty() {
                completed = self.turn(completed)?;
            }
            if let Some(written) = self.write()? {
                completed.push(written);
                completed.extend(self.handle.take_events());
            }
        }
        Ok(())
    }

    /// One turn and what can be done about it at once; gives back what was completed.
    fn turn(&mut self, events: Vec<Event>) -> Result<Vec<Event>, String> {
        let mut effects: Effects = self.core.turn(self.clock.now(), events);
        self.handle.answer(&mut effects);
        for (store, messages) in effects.sends {
            in_frames(messages, |frame| self.transport.send(store, frame));
        }
        self.writes.extend(effects.log);
        if effects.upkeep {
            self.upkeep.start();
        }
        effects.snapshots.into_iter().for_each(|task| self.snapshots.push(task));
        if effects.apply.is_empty() {
            return Ok(Vec::new());
        }
        let begun = self.clock.now();
        let applied = self.applier.run(effects.apply).map_err(|e| format!("applying failed: {e}"))?;
        self.count_applied(begun, &applied);
        self.applier.take_marked().into_iter().for_each(|marked| self.hasher.push(marked));
        Ok(vec![Event::Applied(applied)])
    }

    /// Does all log writes that wait, with one sync.
    fn write(&mut self) -> Result<Option<Event>, String> {
        let Some(last) = self.writes.last().map(|w| w.sequence) else { return Ok(None) };
        let sync = self.writes.iter().any(|w| w.sync);
        let begun = self.clock.now();
        self.count_log_write();
        let mut writes = self.writes.drain(..).map(|w| w.batch).peekable();
        while let Some(batch) = writes.next() {
            let sync = sync && writes.peek().is_none();
            write(&*self.log, batch, sync)?;
        }
        self.handle.counters().log_seconds.observe(self.clock.now().since(begun).as_secs_f64());
        Ok(Some(Event::LogWritten(last)))
    }
}

/// What the loop does is counted; nobody waits for it.
impl StoreLoop {
    fn count_applied(&self, begun: Instant, applied: &[Applied]) {
        let counters = self.handle.counters();
        counters.apply_seconds.observe(self.clock.now().since(begun).as_secs_f64());
        for done in applied {
            if let Applied::Entries { region, outcomes, .. } = done {
                counters.applied(*region, outcomes.len());
            }
        }
    }

    fn count_log_write(&self) {
        let regions = || self.writes.iter().flat_map(|w| &w.batch.regions);
        let bytes: usize = regions().flat_map(|(_, log)| &log.entries).map(|entry| entry.data.len()).sum();
        self.handle.counters().log_regions.observe(regions().count() as f64);
        self.handle.counters().log_bytes.observe(bytes as f64);
    }
}

/// Cuts what one store gets into frames: a peer that catches up is sent more at once than a frame should carry.
fn in_frames(messages: Vec<RaftMessage>, mut send: impl FnMut(Vec<RaftMessage>)) {
    let mut frame = Vec::with_capacity(messages.len());
    let mut bytes = 0;
    for message in messages {
        if bytes > 0 && bytes + message.message.len() > FRAME_BYTES_ABOUT {
            send(std::mem::take(&mut frame));
            bytes = 0;
        }
        bytes += message.message.len();
        frame.push(message);
    }
    send(frame);
}

fn write(log: &dyn LogEngine, batch: LogBatch, sync: bool) -> Result<(), String> {
    log.write(batch, sync).map_err(|e| format!("a write to the Raft log failed: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn big_batches_are_cut_and_nothing_is_lost() {
        let message = |bytes: usize| RaftMessage { message: vec![7; bytes].into(), ..RaftMessage::default() };
        let mut frames = Vec::new();
        let sizes = [10, FRAME_BYTES_ABOUT + 1, 20, FRAME_BYTES_ABOUT - 20, 1];
        in_frames(sizes.map(message).to_vec(), |frame| frames.push(frame.len()));
        assert_eq!(frames, [1, 1, 2, 1]);
    }
}
