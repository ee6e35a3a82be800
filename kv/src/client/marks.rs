//! Places in a transaction's writes that are still wanted: to go back to, or because something reads at them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

/// The places that are held. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    held: Arc<Mutex<BTreeMap<u64, usize>>>,
    /// Of the next write, less one.
    generation: Arc<AtomicU64>,
}

/// One place; it is held until the last clone goes.
#[derive(Clone, Debug)]
pub(crate) struct Mark(Arc<Held>);

#[derive(Debug)]
struct Held {
    generation: u64,
    all: Vec<Marks>,
}

impl Marks {
    /// Of the next write. The first is 1.
    pub(crate) fn next(&self) -> u64 {
        self.generation.load(Ordering::Relaxed) + 1
    }

    /// Marks the place that the transaction is at: what it writes from now on is of a later generation.
    pub(crate) fn hold(&self) -> Mark {
        self.hold_in(Vec::new())
    }

    /// The same, in both sets; the generations are those of `main`.
    pub(crate) fn hold_with(&self, main: &Marks) -> Mark {
        main.hold_in(vec![self.clone()])
    }

    fn hold_in(&self, mut all: Vec<Marks>) -> Mark {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        all.push(self.clone());
        all.iter().for_each(|marks| *marks.held.lock().entry(generation).or_default() += 1);
        Mark(Arc::new(Held { generation, all }))
    }

    /// Generations that are held, sorted.
    pub(crate) fn held(&self) -> Vec<u64> {
        self.held.lock().keys().copied().collect()
    }

    /// None is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.lock().is_empty()
    }
}

impl Mark {
    /// Of the last write before it.
    pub(crate) fn generation(&self) -> u64 {
        self.0.generation
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for marks in &self.all {
            let mut held = marks.held.lock();
            if let Some(count) = held.get_mut(&self.generation) {
                *count -= 1;
                if *count == 0 {
                    held.remove(&self.generation);
                }
            }
        }
    }
}
