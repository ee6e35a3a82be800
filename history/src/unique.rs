//! Values that only one may have: what two took, what is there twice, what was acknowledged and is gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Anomaly, Kind, Operation, Outcome, Transaction, show};

/// All that is wrong.
pub fn check(transactions: &[Transaction]) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    // Whoever took a value, or may have.
    let mut takers: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (at, transaction) in transactions.iter().enumerate() {
        for operation in &transaction.operations {
            if let Operation::Insert(value) = operation {
                takers.entry(*value).or_default().push(at);
            }
        }
    }
    let show = |at: usize| show::transaction(at, &transactions[at]);
    let is = |at: usize, outcome| transactions[at].outcome == outcome;
    for (value, all) in &takers {
        let took: Vec<usize> = all.iter().copied().filter(|&at| is(at, Outcome::Ok)).collect();
        if took.len() > 1 {
            let stories: Vec<_> = took.iter().map(|&at| show(at)).collect();
            let story = format!("{} transactions took {value}\n{}", took.len(), stories.join("\n"));
            anomalies.push(Anomaly::new(Kind::Duplicate, story));
        }
    }
    for (at, transaction) in transactions.iter().enumerate().filter(|(_, t)| t.outcome == Outcome::Ok) {
        for operation in &transaction.operations {
            let Operation::Rows(values) = operation else { continue };
            let mut say = |kind, what: String| anomalies.push(Anomaly::new(kind, format!("{what}\n{}", show(at))));
            let mut there = BTreeSet::new();
            for value in values {
                if !there.insert(value) {
                    say(Kind::Duplicate, format!("{value} is there twice"));
                }
                match takers.get(value) {
                    None => say(Kind::FromNowhere, format!("{value} is there and nobody took it")),
                    Some(all) if all.iter().all(|&at| is(at, Outcome::Fail)) => {
                        say(Kind::G1a, format!("{value} is there and everybody who took it failed"));
                    }
                    Some(_) => {}
                }
            }
            for (value, all) in takers.iter().filter(|(value, _)| !there.contains(value)) {
                let lost = |&&t: &&usize| is(t, Outcome::Ok) && transactions[t].returned_ns < transaction.invoked_ns;
                if let Some(&taker) = all.iter().find(lost) {
                    say(Kind::Lost, format!("{value} was taken and is not there\n{}", show(taker)));
                }
            }
        }
    }
    anomalies
}
