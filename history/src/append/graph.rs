//! Who must have come before whom, and why.
//!
//! Real time would have an edge from each transaction to nearly every later one. Instead there is a chain of the moments at
//! which transactions returned: each leads to the moment it returned, the last moment before another began leads to that one.
//!
//! ```text
//!   T1 ──► ● ──► ● ──► ● ──► T4      T4 began after the third had returned
//!          T2 ──►┘     │
//!          T3 ────────►┘
//! ```

use std::collections::BTreeMap;

use super::versions::Versions;
use crate::show;

/// Why one comes before the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// It wrote the value before the other's.
    WriteWrite,
    /// The other saw its value.
    WriteRead,
    /// It did not see the other's value.
    ReadWrite,
    /// The same session did it first.
    Process,
    /// It had returned before the other began.
    Realtime,
}

/// An edge of the graph.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) to: u32,
    pub(super) why: Why,
    /// The list and the value in it that say so; 0 for orders of time.
    key: u64,
    value: u64,
}

/// Transactions that happened, and behind them the moments of real time.
pub(super) struct Graph<'a> {
    versions: &'a Versions<'a>,
    /// Which transaction a vertex is; moments are behind all of these.
    transactions: Vec<usize>,
    edges: Vec<Vec<Edge>>,
}

impl<'a> Graph<'a> {
    pub(super) fn build(versions: &'a Versions<'a>) -> Graph<'a> {
        let all = 0..versions.transactions.len();
        let transactions: Vec<usize> = all.filter(|&at| versions.happened(at)).collect();
        let mut vertex = vec![u32::MAX; versions.transactions.len()];
        transactions.iter().enumerate().for_each(|(v, &at)| vertex[at] = v as u32);
        let edges = vec![Vec::new(); transactions.len()];
        let mut graph = Graph { versions, transactions, edges };
        graph.add_writes(&vertex);
        graph.add_reads(&vertex);
        graph.add_sessions();
        graph.add_real_time();
        graph
    }

    fn add(&mut self, from: u32, to: u32, why: Why, (key, value): (u64, u64)) {
        if from != to {
            self.edges[from as usize].push(Edge { to, why, key, value });
        }
    }

    fn add_writes(&mut self, vertex: &[u32]) {
        let versions = self.versions;
        for (key, list) in versions.lists() {
            let writer = |value: u64| versions.writer((key, value)).map(|at| vertex[at]);
            let mut before = None;
            for &value in list {
                let this = writer(value);
                if let (Some(before), Some(this)) = (before, this) {
                    self.add(before, this, Why::WriteWrite, (key, value));
                }
                before = this;
            }
            for &value in versions.behind(key) {
                if let (Some(before), Some(this)) = (before, writer(value)) {
                    self.add(before, this, Why::WriteWrite, (key, value));
                }
            }
        }
    }

    fn add_reads(&mut self, vertex: &[u32]) {
        let versions = self.versions;
        for (at, key, read) in versions.reads() {
            let reader = vertex[at];
            let found = versions.found(at, key, read);
            let writer = |value: u64| versions.writer((key, value)).map(|at| vertex[at]);
            if let Some((&last, writer)) = found.last().and_then(|last| Some((last, writer(*last)?))) {
                self.add(writer, reader, Why::WriteRead, (key, last));
            }
            let Some(longest) = versions.compatible(key, read) else { continue };
            let next = match longest.get(found.len()) {
                Some(next) => std::slice::from_ref(next),
                None => versions.behind(key),
            };
            for &missed in next {
                if let Some(writer) = writer(missed) {
                    self.add(reader, writer, Why::ReadWrite, (key, missed));
                }
            }
        }
    }

    fn add_sessions(&mut self) {
        let mut sessions: BTreeMap<u64, Vec<(u64, u32)>> = BTreeMap::new();
        for (v, &at) in self.transactions.iter().enumerate() {
            let transaction = &self.versions.transactions[at];
            sessions.entry(transaction.session).or_default().push((transaction.invoked_ns, v as u32));
        }
        for mut one in sessions.into_values() {
            one.sort_unstable();
            for pair in one.windows(2) {
                let (from, to) = (pair[0].1, pair[1].1);
                // Of unknown outcome: it may have happened after the next.
                if self.done(from).is_some_and(|done| done <= pair[1].0) {
                    self.add(from, to, Why::Process, (0, 0));
                }
            }
        }
    }

    fn add_real_time(&mut self) {
        let count = self.transactions.len() as u32;
        let mut returns: Vec<(u64, u32)> = (0..count).filter_map(|v| Some((self.done(v)?, v))).collect();
        returns.sort_unstable();
        self.edges.resize(self.transactions.len() + returns.len(), Vec::new());
        for (moment, &(_, v)) in (count..).zip(&returns) {
            self.add(v, moment, Why::Realtime, (0, 0));
            if moment > count {
                self.add(moment - 1, moment, Why::Realtime, (0, 0));
            }
        }
        for v in 0..count {
            let invoked = self.transaction(v).invoked_ns;
            let before = returns.partition_point(|&(returned, _)| returned < invoked) as u32;
            if before > 0 {
                self.add(count + before - 1, v, Why::Realtime, (0, 0));
            }
        }
    }

    fn transaction(&self, v: u32) -> &crate::Transaction {
        &self.versions.transactions[self.transactions[v as usize]]
    }

    fn done(&self, v: u32) -> Option<u64> {
        self.transaction(v).done_ns()
    }

    /// Transactions and moments.
    pub(super) fn len(&self) -> usize {
        self.edges.len()
    }

    pub(super) fn is_moment(&self, v: u32) -> bool {
        v as usize >= self.transactions.len()
    }

    pub(super) fn edges(&self, v: u32) -> &[Edge] {
        &self.edges[v as usize]
    }

    /// The transactions of a circle, then its steps with their reasons.
    pub(super) fn tell(&self, circle: &[(u32, Edge)]) -> String {
        let mut lines = Vec::new();
        for &(v, _) in circle {
            let line = self.versions.show(self.transactions[v as usize]);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        for (n, (from, edge)) in circle.iter().enumerate() {
            let to = circle[(n + 1) % circle.len()].0;
            lines.push(self.reason(*from, to, *edge));
        }
        lines.join("\n")
    }

    fn reason(&self, from: u32, to: u32, edge: Edge) -> String {
        let name = |v: u32| format!("T{}", self.transactions[v as usize]);
        let (a, b, key, value) = (name(from), name(to), edge.key, edge.value);
        let why = match edge.why {
            Why::WriteWrite => {
                let list = self.versions.lists().find(|(k, _)| *k == key).map_or(&[][..], |(_, list)| list);
                let upto = list.iter().position(|&v| v == value).unwrap_or(list.len());
                format!("ww: {b} appended {value} to key {key} behind {a}'s in {}", show::list(&list[..upto]))
            }
            Why::WriteRead => format!("wr: {b} saw {value}, which {a} appended to key {key}"),
            Why::ReadWrite => format!("rw: {a} saw key {key} without {value}, which {b} appended"),
            Why::Process => format!("process: session {} did {a} before {b}", self.transaction(from).session),
            Why::Realtime => format!(
                "realtime: {a} returned at {}, before {b} began at {}",
                self.transaction(from).returned_ns,
                self.transaction(to).invoked_ns
            ),
        };
        format!("{a} → {b} {why}")
    }
}
