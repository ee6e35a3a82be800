//! Cancelling a running statement from another task.

use std::{
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use crate::error::{SqlError, SqlResult};

/// Cancels a session's running statement. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    requested: AtomicBool,
    terminated: OnceLock<SqlError>,
    wake: Notify,
}

impl CancelToken {
    /// Asks the running statement to end with 57014. Without one it does nothing.
    pub fn cancel(&self) {
        self.0.requested.store(true, Ordering::Release);
        self.0.wake.notify_waiters();
    }
    /// Asks the session to end with this error, its running statement first.
    pub(crate) fn terminate(&self, why: SqlError) {
        // The first reason stays.
        let _ = self.0.terminated.set(why);
        self.cancel();
    }
    /// A new statement starts: an earlier request does not concern it.
    pub(crate) fn reset(&self) {
        self.0.requested.store(self.0.terminated.get().is_some(), Ordering::Release);
    }
    /// 57014 or 57P01 when a cancel was requested.
    pub(crate) fn check(&self) -> SqlResult<()> {
        if self.0.requested.load(Ordering::Acquire) { Err(self.error()) } else { Ok(()) }
    }
    /// Completes with the error when a cancel is requested.
    pub(crate) async fn cancelled(&self) -> SqlError {
        self.wait_for(|| self.0.requested.load(Ordering::Acquire)).await;
        self.error()
    }
    /// Completes with the error when the session has to end.
    pub async fn terminated(&self) -> SqlError {
        self.wait_for(|| self.0.terminated.get().is_some()).await;
        self.error()
    }
    fn error(&self) -> SqlError {
        self.0.terminated.get().cloned().unwrap_or_else(SqlError::canceled)
    }
    async fn wait_for(&self, happened: impl Fn() -> bool) {
        loop {
            let mut wake = pin!(self.0.wake.notified());
            // Registered before the look, so that a request in between is not missed.
            wake.as_mut().enable();
            if happened() {
                return;
            }
            wake.await;
        }
    }
}
