//! A node's clock and its task set.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use raftstore::{Instant, MonotonicClock};

use super::world::{Owner, World};

/// 2026-01-01 in milliseconds since 1970: where every wall clock starts.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// A monotonic clock that runs a little fast or slow, and a wall clock that may jump.
#[derive(Clone)]
pub struct NodeClock {
    world: World,
    owner: Owner,
    /// Parts per million this clock is fast; negative: slow. The same over a node's lives.
    drift_ppm: i64,
    /// What the wall clock is off by, in milliseconds.
    wall_offset_ms: Arc<AtomicI64>,
}

impl NodeClock {
    /// A clock for one life of a node.
    pub fn new(world: World, owner: Owner, drift_ppm: i64, wall_offset_ms: Arc<AtomicI64>) -> NodeClock {
        NodeClock { world, owner, drift_ppm, wall_offset_ms }
    }
}

fn scale(time: Duration, ppm: i64) -> Duration {
    let nanos = time.as_nanos() as i128;
    Duration::from_nanos((nanos + nanos * i128::from(ppm) / 1_000_000) as u64)
}

/// An hour of uptime before the run: nothing may rely on a clock that starts at zero.
const UPTIME: Duration = Duration::from_secs(3600);

impl NodeClock {
    /// The true time at which this clock shows `instant`.
    pub fn true_time(&self, instant: Instant) -> Duration {
        scale(instant.0.saturating_sub(UPTIME), -self.drift_ppm)
    }
}

impl MonotonicClock for NodeClock {
    fn now(&self) -> Instant {
        Instant(UPTIME + scale(self.world.now(), self.drift_ppm))
    }
}

impl kv::Clock for NodeClock {
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.world.sleep(self.owner, scale(duration, -self.drift_ppm)))
    }
    fn wall_ms(&self) -> u64 {
        let now = EPOCH_MS + self.world.now().as_millis() as u64;
        now.saturating_add_signed(self.wall_offset_ms.load(Ordering::Relaxed))
    }
}

/// Starts tasks that end with one life of a node (or run as long as the harness).
#[derive(Clone)]
pub struct NodeSpawn {
    /// Where they run.
    pub world: World,
    /// Whose they are.
    pub owner: Owner,
}

impl kv::Spawn for NodeSpawn {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.world.spawn(self.owner, task);
    }
}
