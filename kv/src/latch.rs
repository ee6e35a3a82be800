//! Latches: commands that write the same key take turns, first come first served. PURE.
//!
//! A command takes the latches of all its keys at once, in one step, before it reads what it decides on, and keeps
//! them until what it decided is applied. Keys are hashed onto slots; two keys that share a slot only wait longer.
//!
//! ```text
//!   slot 3   [cmd 1] cmd 4          cmd 1 holds 3 and 7 and runs
//!   slot 7   [cmd 1] cmd 2 cmd 4    cmd 2 is at the front of 5 but not of 7: it waits
//!   slot 5   [cmd 2]                cmd 4 waits for both
//! ```
//!
//! A command joins all its queues in one step, so queues agree on the order of any two commands: no cycle, no deadlock.

use std::collections::{BTreeMap, VecDeque};

/// Names a command.
pub type CommandId = u64;

/// The queues.
#[derive(Debug)]
pub struct Latches {
    slots: Vec<VecDeque<CommandId>>,
    /// How many more slots a waiting command has to come to the front of, and the slots it is in.
    commands: BTreeMap<CommandId, Held>,
}

#[derive(Debug)]
struct Held {
    missing: usize,
    slots: Vec<usize>,
}

impl Latches {
    /// With this many slots, a power of two. More slots: fewer keys that wait without need.
    pub fn new(slots: usize) -> Self {
        assert!(slots.is_power_of_two(), "slots are chosen by the low bits of a hash");
        Latches { slots: (0..slots).map(|_| VecDeque::new()).collect(), commands: BTreeMap::new() }
    }

    /// Queues a command for its keys. `true`: it holds all of them and may run; otherwise a later `release` names it.
    pub fn acquire<'a>(&mut self, id: CommandId, keys: impl IntoIterator<Item = &'a [u8]>) -> bool {
        let mask = self.slots.len() - 1;
        let mut slots: Vec<usize> = keys.into_iter().map(|key| hash(key) as usize & mask).collect();
        slots.sort_unstable();
        slots.dedup();
        self.join(id, slots)
    }

    /// The same for every key there is: a command that changes a whole range at once. Rare.
    pub fn acquire_all(&mut self, id: CommandId) -> bool {
        self.join(id, (0..self.slots.len()).collect())
    }

    fn join(&mut self, id: CommandId, slots: Vec<usize>) -> bool {
        let mut missing = 0;
        for &slot in &slots {
            missing += usize::from(!self.slots[slot].is_empty());
            self.slots[slot].push_back(id);
        }
        let before = self.commands.insert(id, Held { missing, slots });
        assert!(before.is_none(), "command {id} takes latches twice");
        missing == 0
    }

    /// Leaves all queues, whether the command ran or gave up waiting. Names the commands that may run now, in order.
    pub fn release(&mut self, id: CommandId) -> Vec<CommandId> {
        let Some(held) = self.commands.remove(&id) else { return Vec::new() };
        let mut ready = Vec::new();
        for slot in held.slots {
            let queue = &mut self.slots[slot];
            if queue.front() != Some(&id) {
                queue.retain(|&waiting| waiting != id);
                continue;
            }
            queue.pop_front();
            let Some(next) = queue.front() else { continue };
            let waiting = self.commands.get_mut(next).expect("whoever waits is known");
            waiting.missing -= 1;
            if waiting.missing == 0 {
                ready.push(*next);
            }
        }
        ready
    }

    /// Commands that hold latches or wait for some.
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Nobody holds or waits.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

/// FNV-1a: the same in every run, unlike the standard hasher's random keys.
fn hash(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |h, &byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
