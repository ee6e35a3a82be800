//! The only place that reads clocks and starts tasks.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, SystemTime},
};

use futures::{FutureExt, future::BoxFuture};
use raftstore::{Instant, MonotonicClock};
use rustix::time::{ClockId, clock_gettime};
use tokio_util::task::TaskTracker;

/// CLOCK_BOOTTIME for leases, the wall clock for PD's physical part, tokio's timer for sleeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl MonotonicClock for SystemClock {
    fn now(&self) -> Instant {
        let t = clock_gettime(ClockId::Boottime);
        // The kernel's seconds since boot and nanoseconds below 10^9 are never negative.
        Instant(Duration::new(t.tv_sec as u64, t.tv_nsec as u32))
    }
}

impl kv::Clock for SystemClock {
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        #[allow(clippy::disallowed_methods)] // This is what the rule points to.
        tokio::time::sleep(duration).boxed()
    }
    fn wall_ms(&self) -> u64 {
        #[allow(clippy::disallowed_methods)] // This is what the rule points to.
        let now = SystemTime::now();
        now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}

/// Background tasks of this node on the tokio runtime; dropped with it.
#[derive(Clone, Debug, Default)]
pub struct Tasks(TaskTracker);

impl Tasks {
    /// Completes when [`Tasks::close`] was called and every task has ended.
    pub async fn wait(&self) {
        self.0.wait().await;
    }
    /// Lets [`Tasks::wait`] complete once the last task is done.
    pub fn close(&self) {
        self.0.close();
    }
    /// How many run.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Runs `task` to its end; a panic ends the task alone and is logged with `what`.
    pub fn run(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                tracing::error!(task = what, panic = panic_message(&*panic), "a task panicked and was ended");
            }
        });
    }
}

impl kv::Spawn for Tasks {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.run("background", task);
    }
}

/// What a panic said, as far as it was text.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "without a message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv::{Clock, Spawn};

    #[test]
    fn time_moves_on() {
        let (before, wall) = (SystemClock.now(), SystemClock.wall_ms());
        assert!(SystemClock.now() >= before);
        assert!(wall > 1_600_000_000_000, "the wall clock counts milliseconds since 1970");
    }

    #[tokio::test]
    async fn a_panic_ends_its_task_alone() {
        let tasks = Tasks::default();
        tasks.spawn(Box::pin(async { panic!("on purpose") }));
        tasks.spawn(Box::pin(async {}));
        tasks.close();
        tasks.wait().await;
        assert!(tasks.is_empty());
    }
}
