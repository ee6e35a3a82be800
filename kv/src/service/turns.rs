//! Waiting for latches: the driver of `latch.rs`.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::channel::oneshot;
use parking_lot::Mutex;

use crate::latch::{CommandId, Latches};

/// Queues of latches: many more than writes under way, so that keys seldom share one by chance.
const SLOTS: usize = 1 << 14;

/// The latches of a store, and who waits for them.
pub(super) struct Turns {
    state: Mutex<State>,
}

struct State {
    latches: Latches,
    waiting: BTreeMap<CommandId, oneshot::Sender<()>>,
    next: CommandId,
}

/// Held latches, or a place in their queues; dropping it leaves them.
pub(super) struct Turn {
    turns: Arc<Turns>,
    id: CommandId,
}

impl Turns {
    pub(super) fn new() -> Arc<Self> {
        let state = State { latches: Latches::new(SLOTS), waiting: BTreeMap::new(), next: 1 };
        Arc::new(Turns { state: Mutex::new(state) })
    }

    /// Takes the latches of `keys`, after all who asked for one of them before.
    pub(super) async fn take(self: &Arc<Self>, keys: &[Bytes]) -> Turn {
        self.queue(|latches, id| latches.acquire(id, keys.iter().map(|key| key.as_ref()))).await
    }

    /// Takes the latches of all keys.
    pub(super) async fn take_all(self: &Arc<Self>) -> Turn {
        self.queue(Latches::acquire_all).await
    }

    async fn queue(self: &Arc<Self>, acquire: impl FnOnce(&mut Latches, CommandId) -> bool) -> Turn {
        let (turn, come) = {
            let mut state = self.state.lock();
            let id = state.next;
            state.next += 1;
            let turn = Turn { turns: self.clone(), id };
            if acquire(&mut state.latches, id) {
                return turn;
            }
            let (call, come) = oneshot::channel();
            state.waiting.insert(id, call);
            (turn, come)
        };
        // Cancelled only together with the latches themselves.
        let _ = come.await;
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        state.waiting.remove(&self.id);
        for ready in state.latches.release(self.id) {
            if let Some(call) = state.waiting.remove(&ready) {
                // Whoever stopped waiting meanwhile leaves its queues by its own drop.
                let _ = call.send(());
            }
        }
    }
}
