//! What a checker says in the end.

use std::{collections::BTreeMap, fmt};

use crate::{Kind, Order, Outcome, Promise, Transaction};

/// More of one kind are counted, not told.
const TOLD_MAX: usize = 4;

/// Something that is wrong with a history, at some level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// What.
    pub kind: Kind,
    /// What closes the circle.
    pub order: Order,
    /// The transactions concerned and why they can't all be right; one or more lines, without the last one's end.
    pub story: String,
}

impl Anomaly {
    pub(crate) fn new(kind: Kind, story: String) -> Anomaly {
        Anomaly { kind, order: Order::Data, story }
    }

    /// Its name in verdicts.
    pub fn name(&self) -> String {
        let suffix = if self.kind == Kind::StaleRead { "" } else { self.order.suffix() };
        format!("{}{suffix}", self.kind.name())
    }
}

/// A history held against a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    promise: Promise,
    /// Transactions that committed, that did not, and of which nobody knows.
    outcomes: [usize; 3],
    anomalies: Vec<Anomaly>,
}

impl Verdict {
    /// Holds what was found against a promise.
    pub fn new(transactions: &[Transaction], promise: Promise, mut anomalies: Vec<Anomaly>) -> Verdict {
        let count = |outcome| transactions.iter().filter(|t| t.outcome == outcome).count();
        anomalies.sort_by_key(|a| (!promise.forbids(a.kind, a.order), a.kind, a.order));
        let outcomes = [count(Outcome::Ok), count(Outcome::Fail), count(Outcome::Unknown)];
        Verdict { promise, outcomes, anomalies }
    }

    /// Whether the promise was kept.
    pub fn is_valid(&self) -> bool {
        self.broken().next().is_none()
    }

    /// What breaks the promise.
    pub fn broken(&self) -> impl Iterator<Item = &Anomaly> {
        self.anomalies.iter().filter(|a| self.promise.forbids(a.kind, a.order))
    }

    /// All that was found, what the promise allows as well.
    pub fn anomalies(&self) -> &[Anomaly] {
        &self.anomalies
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = BTreeMap::<(Kind, Order), usize>::new();
        for anomaly in &self.anomalies {
            let told = names.entry((anomaly.kind, anomaly.order)).or_default();
            *told += 1;
            if *told <= TOLD_MAX && self.promise.forbids(anomaly.kind, anomaly.order) {
                writeln!(f, "{}:", anomaly.name())?;
                anomaly.story.lines().try_for_each(|line| writeln!(f, "  {line}"))?;
            }
        }
        let [ok, fail, unknown] = self.outcomes;
        let word = if self.is_valid() { "valid" } else { "INVALID" };
        write!(f, "{word} at {}: {ok} transactions committed, {fail} failed, {unknown} unknown", self.promise)?;
        for forbidden in [true, false] {
            let some = names.iter().filter(|((kind, order), _)| self.promise.forbids(*kind, *order) == forbidden);
            let named = some.map(|(&(kind, order), count)| {
                let name = Anomaly { kind, order, story: String::new() }.name();
                format!("{count} × {name}")
            });
            let list = named.collect::<Vec<_>>().join(", ");
            if !list.is_empty() {
                write!(f, "; {}: {list}", if forbidden { "found" } else { "allowed" })?;
            }
        }
        writeln!(f)
    }
}
