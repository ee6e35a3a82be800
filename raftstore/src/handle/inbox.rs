//! Where events wait for the store loop: bounded, many senders, one receiver that takes all at once.

use std::{
    cell::RefCell,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;

use crate::{config::Limits, effect::Event};

type Waker = Arc<dyn Fn() + Send + Sync>;

thread_local! {
    /// Whom to wake when [`together`] ends; `None` outside.
    static LATER: RefCell<Option<Vec<Waker>>> = const { RefCell::new(None) };
}

/// What `send` queues for stores on this thread they find together: they are woken when it returns. Requests to several regions
/// then share a turn of the store, one sync of its log and one message to each peer; woken by the first of them, the store would be
/// under way without the others.
pub fn together<T>(send: impl FnOnce() -> T) -> T {
    /// Wakes even when `send` panics.
    struct Wake;
    impl Drop for Wake {
        fn drop(&mut self) {
            let wakers = LATER.with_borrow_mut(Option::take);
            wakers.into_iter().flatten().for_each(|wake| wake());
        }
    }
    let outermost = LATER.with_borrow_mut(|later| {
        let outermost = later.is_none();
        later.get_or_insert_default();
        outermost
    });
    let _wake = outermost.then_some(Wake);
    send()
}

/// The event was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// Too much waits.
    Full,
    /// The store has stopped.
    Closed,
}

#[derive(Default)]
struct Queue {
    events: Vec<Event>,
    requests: usize,
    messages: usize,
    closed: bool,
}

/// The queue in front of a store core.
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    limits: Limits,
    waker: OnceLock<Waker>,
}

impl Inbox {
    pub(crate) fn new(limits: Limits) -> Self {
        Inbox { queue: Mutex::default(), limits, waker: OnceLock::new() }
    }

    /// Sets what is called when the queue stops being empty. Only the first call counts.
    pub(crate) fn set_waker(&self, waker: Waker) {
        if self.waker.set(waker).is_ok() && !self.queue.lock().events.is_empty() {
            self.wake();
        }
    }

    fn wake(&self) {
        let Some(waker) = self.waker.get() else { return };
        let put_off = LATER.with_borrow_mut(|later| later.as_mut().map(|later| later.push(waker.clone())).is_some());
        if !put_off {
            waker();
        }
    }

    /// Queues an event; completions of the store's own work are always taken.
    pub(crate) fn push(&self, event: Event) -> Result<(), NotTaken> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(NotTaken::Closed);
        }
        match &event {
            Event::Propose(_) | Event::Read(..) | Event::Admin(_) => {
                if queue.requests >= self.limits.inbox_requests {
                    return Err(NotTaken::Full);
                }
                queue.requests += 1;
            }
            Event::Received(messages) => {
                if queue.messages + messages.len() > self.limits.inbox_messages {
                    return Err(NotTaken::Full);
                }
                queue.messages += messages.len();
            }
            _ => {}
        }
        let was_empty = queue.events.is_empty();
        queue.events.push(event);
        drop(queue);
        if was_empty {
            self.wake();
        }
        Ok(())
    }

    /// Takes everything.
    pub(crate) fn drain(&self) -> Vec<Event> {
        let mut queue = self.queue.lock();
        (queue.requests, queue.messages) = (0, 0);
        std::mem::take(&mut queue.events)
    }

    /// Requests and messages that wait.
    pub(crate) fn lengths(&self) -> (usize, usize) {
        let queue = self.queue.lock();
        (queue.requests, queue.messages)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().events.is_empty()
    }

    /// Takes nothing any more and forgets what waits.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        *queue = Queue { closed: true, ..Queue::default() };
    }
}
