//! Cancelling a running statement from another task.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use crate::error::{SqlError, SqlResult};

/// Cancels a session's running statement. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    requested: AtomicBool,
    wake: Notify,
}

impl CancelToken {
    /// Asks the running statement to end with 57014. Without one it does nothing.
    pub fn cancel(&self) {
        self.0.requested.store(true, Ordering::Release);
        self.0.wake.notify_waiters();
    }
    /// A new statement starts: an earlier request does not concern it.
    pub(crate) fn reset(&self) {
        self.0.requested.store(false, Ordering::Release);
    }
    /// 57014 when a cancel was requested.
    pub(crate) fn check(&self) -> SqlResult<()> {
        if self.0.requested.load(Ordering::Acquire) { Err(SqlError::canceled()) } else { Ok(()) }
    }
    /// Completes when a cancel is requested.
    pub(crate) async fn cancelled(&self) {
        loop {
            let wake = self.0.wake.notified();
            if self.0.requested.load(Ordering::Acquire) {
                return;
            }
            wake.await;
        }
    }
}
