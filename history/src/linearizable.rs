//! Is there an order of the operations on one register that explains every answer?
//!
//! Wing and Gong's search with Lowe's memory of visited (done operations, value): operations are points
//! somewhere between call and return; an operation whose answer was lost may take effect any time after its
//! call, or never.
//!
//! Two things keep the search short while a disk stands still and writes pile up. A lost write that nobody has seen need not
//! have happened. And a read that may come next and fits comes next: it changes nothing, so later is never better.
//!
//! ```text
//! write 1  ├────┤
//! read → 1        ├──┤          fine: 1, then the read
//! read → 0             ├──┤     not linearizable: 1 was there before this read began
//! ```

use std::{collections::HashSet, time::Duration};

/// What an operation did to its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wrote this value.
    Write(u64),
    /// Saw this value (0: none was ever written).
    Read(u64),
}

impl Action {
    fn seen(self) -> Option<u64> {
        match self {
            Action::Read(value) => Some(value),
            Action::Write(_) => None,
        }
    }
}

/// One operation as its client saw it. A read without an answer says nothing and has no place in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// When it was called.
    pub called: Duration,
    /// When it returned; `None`: the outcome is unknown.
    pub returned: Option<Duration>,
    /// What.
    pub action: Action,
}

/// The search is exponential in operations at one time, not in all of them. After so many steps it gives up: some 1 GiB of
/// memory, minutes; a hundred operations of unknown outcome at one time, all of them seen.
const VISITED_MAX: usize = 5_000_000;

/// Is there an order?
///
/// # Errors
/// The operation that cannot be explained in the longest order that was found, or that the search was given up.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let seen: HashSet<u64> = history.iter().filter_map(|op| op.action.seen()).collect();
    let matters = |op: &&Operation| match op.action {
        Action::Write(value) => op.returned.is_some() || seen.contains(&value),
        Action::Read(_) => true,
    };
    let mut operations: Vec<Operation> = history.iter().filter(matters).copied().collect();
    operations.sort_by_key(|op| (op.called, op.returned.unwrap_or(Duration::MAX)));
    let must: usize = operations.iter().filter(|op| op.returned.is_some()).count();
    let mut search =
        Search { operations, done: Done::default(), value: 0, visited: HashSet::new(), best: 0, stuck: None };
    search.done.0 = vec![0; search.operations.len().div_ceil(64)];
    if search.explain(must) {
        return Ok(());
    }
    if search.visited.len() >= VISITED_MAX {
        return Err(format!("undecided: gave up after {VISITED_MAX} steps, too many operations at one time"));
    }
    let at = search.stuck.map(|i| format!("{:?}", search.operations[i])).unwrap_or_default();
    Err(format!("not linearizable: {} of {must} answered operations have an order; stuck at {at}", search.best))
}

/// A set of operations.
#[derive(Default)]
struct Done(Vec<u64>);

impl Done {
    fn has(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }
    /// So many operations from the first on are all in, in steps of 64.
    fn full_prefix(&self) -> usize {
        64 * self.0.iter().take_while(|&&word| word == u64::MAX).count()
    }
    fn flip(&mut self, i: usize) {
        self.0[i / 64] ^= 1 << (i % 64);
    }
    /// The same set in as few words as it takes: of a long history only a window is neither all in nor all out.
    fn window(&self) -> (usize, Vec<u64>) {
        let from = self.full_prefix() / 64;
        let upto = self.0.iter().rposition(|&word| word != 0).map_or(from, |last| last + 1);
        (from, self.0[from..upto.max(from)].to_vec())
    }
}

struct Search {
    operations: Vec<Operation>,
    done: Done,
    value: u64,
    visited: HashSet<(usize, Vec<u64>, u64)>,
    best: usize,
    stuck: Option<usize>,
}

impl Search {
    /// Depth first, with a stack of its own: (operation taken, value before, candidates left).
    fn explain(&mut self, must: usize) -> bool {
        let mut answered = 0;
        let mut stack: Vec<(usize, u64)> = Vec::new();
        let mut from = 0;
        loop {
            if answered == must {
                return true;
            }
            if self.visited.len() >= VISITED_MAX {
                return false;
            }
            if let Some(i) = self.candidate(from) {
                stack.push((i, self.value));
                self.done.flip(i);
                if let Action::Write(value) = self.operations[i].action {
                    self.value = value;
                }
                let (from_word, words) = self.done.window();
                if self.visited.insert((from_word, words, self.value)) {
                    answered += usize::from(self.operations[i].returned.is_some());
                    self.best = self.best.max(answered);
                    from = 0;
                    continue;
                }
                // Been here before, in vain.
                answered += usize::from(self.operations[i].returned.is_some());
            } else if answered == self.best {
                self.stuck = self.first_open();
            }
            // Before a read nothing else was worth a try.
            loop {
                let Some((i, value)) = stack.pop() else { return false };
                answered -= usize::from(self.operations[i].returned.is_some());
                self.done.flip(i);
                self.value = value;
                from = i + 1;
                if matches!(self.operations[i].action, Action::Write(_)) {
                    break;
                }
            }
        }
    }

    /// An operation that may come next: called before every open one returned, and its answer fits. A read, if there is
    /// one and nothing was tried yet (`from` is 0); otherwise the first write from `from` on.
    fn candidate(&self, from: usize) -> Option<usize> {
        let mut write = None;
        let mut horizon = Duration::MAX;
        for (i, op) in self.operations.iter().enumerate().skip(self.done.full_prefix()) {
            // Somebody open returned before this one, and all after it, were called.
            if op.called > horizon {
                return write;
            }
            if self.done.has(i) {
                continue;
            }
            match op.action {
                Action::Read(seen) if from == 0 && seen == self.value => return Some(i),
                Action::Write(_) if i >= from => write = write.or(Some(i)),
                _ => {}
            }
            horizon = horizon.min(op.returned.unwrap_or(Duration::MAX));
        }
        write
    }

    fn first_open(&self) -> Option<usize> {
        (0..self.operations.len()).find(|&i| !self.done.has(i) && self.operations[i].returned.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(action: Action, called: u64, returned: u64) -> Operation {
        let returned = (returned != 0).then(|| Duration::from_millis(returned));
        Operation { called: Duration::from_millis(called), returned, action }
    }
    use Action::{Read, Write};

    #[test]
    fn good_histories_pass() {
        check(&[]).unwrap();
        check(&[op(Write(1), 1, 3), op(Read(1), 4, 5), op(Write(2), 6, 7), op(Read(2), 8, 9)]).unwrap();
        // A read beside a write may see either side.
        check(&[op(Write(1), 1, 10), op(Read(0), 2, 3), op(Read(1), 4, 5)]).unwrap();
        // The unknown write may have happened late…
        check(&[op(Write(1), 1, 0), op(Write(2), 2, 3), op(Read(2), 4, 5), op(Read(1), 6, 7)]).unwrap();
        // … or never.
        check(&[op(Write(1), 1, 0), op(Write(2), 2, 3), op(Read(2), 4, 5), op(Read(2), 6, 7)]).unwrap();
    }

    #[test]
    fn a_stale_read_is_found() {
        assert!(check(&[op(Write(1), 1, 3), op(Read(0), 4, 5)]).is_err());
        assert!(check(&[op(Write(1), 1, 2), op(Write(2), 3, 4), op(Read(2), 5, 6), op(Read(1), 7, 8)]).is_err());
    }

    #[test]
    fn a_lost_write_is_found() {
        assert!(check(&[op(Write(1), 1, 2), op(Write(2), 3, 4), op(Read(1), 5, 6)]).is_err());
    }

    #[test]
    fn a_value_from_nowhere_is_found() {
        assert!(check(&[op(Write(1), 1, 2), op(Read(7), 3, 4)]).is_err());
    }

    #[test]
    fn a_value_that_comes_and_goes_is_found() {
        // An unknown write takes effect once, not twice.
        let history = [op(Write(1), 1, 0), op(Read(1), 2, 3), op(Write(2), 4, 5), op(Read(2), 6, 7), op(Read(1), 8, 9)];
        assert!(check(&history).is_err());
        // Two readers beside one write must agree on the order.
        let history =
            [op(Write(1), 1, 20), op(Write(2), 1, 20), op(Read(1), 2, 3), op(Read(2), 4, 5), op(Read(1), 6, 7)];
        assert!(check(&history).is_err());
    }

    #[test]
    fn long_histories_of_many_clients_are_fast() {
        let mut history = Vec::new();
        for round in 0..100u64 {
            let at = round * 100 + 1;
            history.extend((0..8).map(|c| op(Write(round * 8 + c + 1), at, at + 50)));
            history.push(op(Read(round * 8 + 8), at + 60, at + 70));
        }
        check(&history).unwrap();
        history.push(op(Read(3), 30_000, 30_001));
        assert!(check(&history).is_err());
    }
}
