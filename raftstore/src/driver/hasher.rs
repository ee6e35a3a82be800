//! The thread that hashes marked regions, one after another. It fails nobody: a tree that can't be made says why.

use std::{
    sync::mpsc::{self, SyncSender, TrySendError},
    thread::JoinHandle,
};

use crate::{
    StoreHandle,
    verify::{Marked, WAITING_AT_MOST},
};

/// The thread; ends when dropped, after what it is doing.
pub(super) struct Hasher {
    thread: Option<JoinHandle<()>>,
    queue: Option<Queue>,
}

/// What waits.
#[derive(Clone)]
pub(super) struct Queue {
    sender: SyncSender<Marked>,
    handle: StoreHandle,
}

impl Queue {
    pub(super) fn push(&self, marked: Marked) {
        match self.sender.try_send(marked) {
            Ok(()) => {}
            Err(TrySendError::Full(marked)) => {
                self.handle.keep_verified(marked.refuse("the store hashes other regions: ask again later"));
            }
            Err(TrySendError::Disconnected(marked)) => self.handle.keep_verified(marked.refuse("the store stops")),
        }
    }
}

impl Hasher {
    pub(super) fn start(handle: StoreHandle) -> std::io::Result<Hasher> {
        let (sender, marks) = mpsc::sync_channel::<Marked>(WAITING_AT_MOST);
        let kept = handle.clone();
        let run = move || marks.iter().for_each(|marked| kept.keep_verified(marked.hash()));
        let thread = std::thread::Builder::new().name("store-verify".into()).spawn(run)?;
        Ok(Hasher { thread: Some(thread), queue: Some(Queue { sender, handle }) })
    }

    pub(super) fn queue(&self) -> Queue {
        self.queue.clone().expect("present until dropped")
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic was printed by the thread itself.
            let _ = thread.join();
        }
    }
}
