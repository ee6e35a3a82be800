//! A node's disk: how long a sync takes now, and what a crash takes away.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::runtime::World;

/// A sync of a healthy disk takes between these.
const SYNC_MIN: Duration = Duration::from_micros(80);
const SYNC_MAX: Duration = Duration::from_millis(2);
/// A slow disk is so many times slower.
const SLOWNESS: u32 = 25;

struct State {
    rng: ChaCha8Rng,
    slow_until: Duration,
    stalled_until: Duration,
}

/// The timing of one node's disk; it outlives the node's lives.
#[derive(Clone)]
pub struct Disk {
    world: World,
    state: Arc<Mutex<State>>,
}

impl Disk {
    /// A healthy disk. `name` gives it randomness of its own.
    pub fn new(world: World, name: &str) -> Disk {
        let state = State { rng: world.rng(name), slow_until: Duration::ZERO, stalled_until: Duration::ZERO };
        Disk { world, state: Arc::new(Mutex::new(state)) }
    }

    /// How long the sync that starts now will take.
    pub fn sync_time(&self) -> Duration {
        let now = self.world.now();
        let mut state = self.state.lock();
        let mut time = state.rng.random_range(SYNC_MIN..SYNC_MAX);
        if state.slow_until > now {
            time *= SLOWNESS;
            self.world.count("slow syncs", 1);
        }
        if state.stalled_until > now {
            time += state.stalled_until - now;
            self.world.count("stalled syncs", 1);
        }
        time
    }

    /// Many times slower for a while.
    pub fn slow_down(&self, duration: Duration) {
        self.state.lock().slow_until = self.world.now() + duration;
    }

    /// No sync ends for a while.
    pub fn stall(&self, duration: Duration) {
        self.state.lock().stalled_until = self.world.now() + duration;
    }

    /// Healthy again.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.slow_until = Duration::ZERO;
        state.stalled_until = Duration::ZERO;
    }

    /// How many of `unsynced` batches reached the platter before the power went: a prefix, any. A batch that was
    /// torn in the middle fails its checksum and counts as not written.
    pub fn survivors(&self, unsynced: usize) -> usize {
        if unsynced == 0 {
            return 0;
        }
        let kept = self.state.lock().rng.random_range(0..=unsynced);
        self.world.count("unsynced batches lost", (unsynced - kept) as u64);
        kept
    }
}
