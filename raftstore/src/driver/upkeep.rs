//! The thread for what takes long and nobody waits for: syncing the state, purging the log, watching the disk.

use std::{
    panic::AssertUnwindSafe,
    sync::mpsc::{self, RecvTimeoutError, SyncSender},
    thread::JoinHandle,
    time::Duration,
};

use tracing::{debug, error};

use super::{Drivers, disk};
use crate::{Event, StoreHandle};

/// How often free space is looked at: a disk does not fill its reserve faster.
const DISK_EVERY: Duration = Duration::from_secs(2);

/// The thread; ends when dropped.
pub(super) struct Upkeep {
    starter: Option<Starter>,
    thread: Option<JoinHandle<()>>,
}

/// Starts a round of upkeep.
#[derive(Clone)]
pub(super) struct Starter(SyncSender<Order>);

enum Order {
    Round,
    End,
}

impl Starter {
    /// The core asks for one round at a time, so there is room.
    pub(super) fn start(&self) {
        if self.0.try_send(Order::Round).is_err() {
            debug!("the upkeep thread has ended");
        }
    }
}

impl Upkeep {
    pub(super) fn start(drivers: &Drivers, handle: StoreHandle) -> std::io::Result<Upkeep> {
        // One round and the end.
        let (sender, orders) = mpsc::sync_channel(2);
        let (engine, log, failed) = (drivers.engine.clone(), drivers.log.clone(), drivers.failed.clone());
        let reserve = drivers.disk_reserve.clone();
        let run = move || -> Result<(), String> {
            loop {
                match orders.recv_timeout(DISK_EVERY) {
                    Ok(Order::Round) => {
                        engine.sync().map_err(|e| format!("syncing the state failed: {e}"))?;
                        log.purge().map_err(|e| format!("purging the Raft log failed: {e}"))?;
                        handle.complete(Event::UpkeepDone);
                    }
                    Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => {
                        // A clean end leaves little to replay.
                        return engine.sync().map_err(|e| format!("syncing the state failed: {e}"));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if let Some((path, bytes)) = &reserve {
                    disk::free_bytes(path).inspect(|&free| handle.disk_full(free < *bytes));
                }
            }
        };
        let thread = std::thread::Builder::new().name("store-upkeep".into()).spawn(move || {
            let end = std::panic::catch_unwind(AssertUnwindSafe(run));
            let reason = match end {
                Ok(Ok(())) => return,
                Ok(Err(reason)) => reason,
                Err(panic) => super::panic_message(&*panic),
            };
            error!(reason, "the store stops");
            failed(reason);
        })?;
        Ok(Upkeep { starter: Some(Starter(sender)), thread: Some(thread) })
    }

    pub(super) fn starter(&self) -> Starter {
        self.starter.clone().expect("present until dropped")
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        if let Some(Starter(sender)) = self.starter.take() {
            // It may have ended by itself.
            let _ = sender.send(Order::End);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
