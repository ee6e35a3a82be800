//! Polls tasks of one thread in a seeded order.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;
use rand::Rng;

use super::world::Owner;

/// Polls between two events; more is a task that wakes itself for ever.
const POLLS_MAX: u64 = 5_000_000;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Ids of tasks that want to be polled. A set, because the order in which they were woken does not repeat:
/// `tokio::sync::watch` wakes its receivers in an order that depends on a random number of the thread.
#[derive(Default)]
struct Ready(Mutex<BTreeSet<u64>>);

/// Wakes one task.
struct TaskWaker {
    id: u64,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.0.lock().insert(self.id);
    }
}

struct Slot {
    owner: Owner,
    waker: Arc<TaskWaker>,
    /// Taken out while it is polled.
    task: Option<Task>,
}

#[derive(Default)]
struct Slots {
    next: u64,
    // A BTreeMap: dropping a node's tasks in id order repeats.
    slots: BTreeMap<u64, Slot>,
}

/// The tasks of all nodes.
#[derive(Default)]
pub(super) struct Executor {
    slots: Mutex<Slots>,
    ready: Arc<Ready>,
}

impl Executor {
    /// Adds a task; it is polled when the present event is done.
    pub(super) fn spawn(&self, owner: Owner, task: Task) {
        let mut slots = self.slots.lock();
        slots.next += 1;
        let id = slots.next;
        let waker = Arc::new(TaskWaker { id, ready: self.ready.clone() });
        slots.slots.insert(id, Slot { owner, waker, task: Some(task) });
        self.ready.0.lock().insert(id);
    }

    /// Drops every task that `dead` names. A task that is being polled right now goes when its poll returns.
    pub(super) fn drop_tasks(&self, dead: impl Fn(&Owner) -> bool) {
        let doomed: Vec<Slot> = {
            let mut slots = self.slots.lock();
            let ids: Vec<u64> = slots.slots.iter().filter(|(_, s)| dead(&s.owner)).map(|(&id, _)| id).collect();
            ids.iter().filter_map(|id| slots.slots.remove(id)).collect()
        };
        // Destructors may wake or spawn: not under the lock.
        drop(doomed);
    }

    /// Polls until no task is ready; a task's panic ends it early, and so does one that spins.
    pub(super) fn run_until_idle(&self, rng: &mut impl Rng) -> Result<(), String> {
        for _ in 0..POLLS_MAX {
            let id = {
                let mut ready = self.ready.0.lock();
                if ready.is_empty() {
                    return Ok(());
                }
                let at = rng.random_range(0..ready.len());
                let id = *ready.iter().nth(at).expect("fewer than there are");
                ready.remove(&id);
                id
            };
            let Some((mut task, waker)) = self.take(id) else { continue };
            let waker = Waker::from(waker);
            let polled = catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(&mut Context::from_waker(&waker))));
            match polled {
                Ok(Poll::Ready(())) => drop(self.slots.lock().slots.remove(&id)),
                Ok(Poll::Pending) => self.put_back(id, task),
                Err(panic) => return Err(format!("a task panicked: {}", panic_message(&*panic))),
            }
        }
        Err(format!("tasks are still ready after {POLLS_MAX} polls: one of them spins"))
    }

    fn take(&self, id: u64) -> Option<(Task, Arc<TaskWaker>)> {
        let mut slots = self.slots.lock();
        let slot = slots.slots.get_mut(&id)?;
        Some((slot.task.take()?, slot.waker.clone()))
    }

    fn put_back(&self, id: u64, task: Task) {
        let mut slots = self.slots.lock();
        match slots.slots.get_mut(&id) {
            Some(slot) => slot.task = Some(task),
            // Its node crashed during the poll.
            None => {
                drop(slots);
                drop(task);
            }
        }
    }
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| s.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}
