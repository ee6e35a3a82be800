//! Deadlocks over any number of stores. PURE.
//!
//! Stores on which somebody waits say so again and again ([`REPORT_EVERY`]), each with all its waits, of those who still
//! ask there; what a store said last replaces what it said before. Where PD is, the reports make one graph:
//!
//! ```text
//!   store 1: T1 waits for T2      store 2: T2 waits for T3, T3 for T1        T1 → T2 → T3 → T1: the youngest gives way
//! ```
//!
//! Reports of several stores are of different times, and a cycle made of them may never have been. But a deadlock stays:
//! it is one when every wait in it was reported again after the last of them was first heard of. Within one report that is
//! so at once.
//!
//! A client may have two transactions, twins: what one of them holds stays while the other waits. Stores report this as a wait of the
//! twin, without a row. It is part of a cycle, but nothing that could be ended: the victim is then who really waits.
//!
//! The graph is in memory only; a new PD hears it anew within one interval.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{Timestamp, wire};
use raftstore::Instant;

use crate::row_locks::Wait;

/// How often a store reports while somebody waits there: a deadlock of two stores is found within two or three of them.
pub const REPORT_EVERY: Duration = Duration::from_millis(40);
/// A store that has not reported for so long has gone, and with it who waited there.
const FORGET: Duration = Duration::from_millis(1_000);
/// Waits of one report that are looked at: what is beyond is found when some of these have gone.
pub const MAX_WAITS: usize = 10_000;

/// A cycle of waits, and who has to give way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    /// The youngest: it has the least to lose.
    pub victim: Timestamp,
    /// Each waits for the next one's waiter; the victim's first.
    pub cycle: Vec<Wait>,
}

/// The graph of all reports.
#[derive(Debug, Default)]
pub struct Detector {
    reports: BTreeMap<u64, Report>,
    /// Counts reports.
    count: u64,
}

#[derive(Debug)]
struct Report {
    heard: Instant,
    waits: BTreeMap<Wait, Seen>,
}

/// By the count of reports.
#[derive(Clone, Copy, Debug)]
struct Seen {
    first: u64,
    last: u64,
}

type Edge<'a> = (&'a Wait, Seen);

impl Detector {
    /// A store's waits, all of them; the deadlocks whose victim waits there.
    pub fn report(&mut self, store: u64, waits: Vec<Wait>, now: Instant) -> Vec<Deadlock> {
        self.count += 1;
        let count = self.count;
        let before = self.reports.remove(&store).map(|report| report.waits).unwrap_or_default();
        self.reports.retain(|_, report| now.since(report.heard) < FORGET);
        if waits.is_empty() {
            return Vec::new();
        }
        let seen = |wait: &Wait| Seen { first: before.get(wait).map_or(count, |seen| seen.first), last: count };
        let waits = waits.into_iter().take(MAX_WAITS).map(|wait| (wait.clone(), seen(&wait))).collect();
        self.reports.insert(store, Report { heard: now, waits });
        self.deadlocks(store)
    }

    fn deadlocks(&self, store: u64) -> Vec<Deadlock> {
        let mut graph: BTreeMap<Timestamp, Vec<Edge<'_>>> = BTreeMap::new();
        for (wait, seen) in self.reports.values().flat_map(|report| &report.waits) {
            graph.entry(wait.waiter).or_default().push((wait, *seen));
        }
        let here: BTreeSet<Timestamp> = self.reports[&store].waits.keys().map(|wait| wait.waiter).collect();
        // From the youngest on: of a cycle only its youngest is looked for, by paths over older ones.
        here.into_iter().rev().filter_map(|victim| cycle_of(&graph, victim)).collect()
    }
}

/// A deadlock in which `victim` is the youngest.
fn cycle_of(graph: &BTreeMap<Timestamp, Vec<Edge<'_>>>, victim: Timestamp) -> Option<Deadlock> {
    let mut path: Vec<Edge<'_>> = Vec::new();
    let mut visited: BTreeSet<Timestamp> = BTreeSet::from([victim]);
    // For each step of the path, the edges that are left to try.
    let mut left: Vec<Vec<Edge<'_>>> = vec![graph.get(&victim)?.clone()];
    while let Some(edges) = left.last_mut() {
        let Some(edge) = edges.pop() else {
            left.pop();
            path.pop();
            continue;
        };
        let next = edge.0.holder;
        if next == victim {
            path.push(edge);
            if is_real(&path)
                && let Some(deadlock) = between_clients(path.iter().map(|(wait, _)| (*wait).clone()).collect())
            {
                return Some(deadlock);
            }
            path.pop();
        } else if next < victim
            && visited.insert(next)
            && let Some(edges) = graph.get(&next)
        {
            path.push(edge);
            left.push(edges.clone());
        }
    }
    None
}

/// A cycle without the waits of twins. `None`: there were no others.
fn between_clients(mut cycle: Vec<Wait>) -> Option<Deadlock> {
    let first = cycle.iter().position(|wait| !wait.key.is_empty())?;
    cycle.rotate_left(first);
    let mut waits: Vec<Wait> = Vec::with_capacity(cycle.len());
    for wait in cycle {
        match waits.last_mut() {
            Some(last) if wait.key.is_empty() => last.holder = wait.holder,
            _ => waits.push(wait),
        }
    }
    Some(Deadlock { victim: waits[0].waiter, cycle: waits })
}

/// All of its waits stood at one time.
fn is_real(cycle: &[Edge<'_>]) -> bool {
    let closed = cycle.iter().map(|(_, seen)| seen.first).max();
    let confirmed = cycle.iter().map(|(_, seen)| seen.last).min();
    closed <= confirmed
}

impl From<Wait> for wire::RowWait {
    fn from(wait: Wait) -> Self {
        wire::RowWait { waiter: wait.waiter.0, holder: wait.holder.0, key: wait.key, label: wait.label }
    }
}

impl From<wire::RowWait> for Wait {
    fn from(wait: wire::RowWait) -> Self {
        Wait { waiter: Timestamp(wait.waiter), holder: Timestamp(wait.holder), key: wait.key, label: wait.label }
    }
}

impl From<Deadlock> for wire::Deadlock {
    fn from(deadlock: Deadlock) -> Self {
        wire::Deadlock { cycle: deadlock.cycle.into_iter().map(Into::into).collect() }
    }
}

impl From<wire::Deadlock> for Deadlock {
    fn from(deadlock: wire::Deadlock) -> Self {
        let cycle: Vec<Wait> = deadlock.cycle.into_iter().map(Into::into).collect();
        Deadlock { victim: cycle.first().map_or(Timestamp::ZERO, |wait| wait.waiter), cycle }
    }
}
