//! Pairs of which one must be on call. Whoever leaves looks first whether the other stays: if both leave at once, each
//! having seen the other, nobody is left. Only SERIALIZABLE forbids that.

use crate::{Anomaly, Kind, Operation, Outcome, Transaction, show};

/// All looks at a pair of which nobody was on call.
pub fn check(transactions: &[Transaction]) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    for (at, transaction) in transactions.iter().enumerate().filter(|(_, t)| t.outcome == Outcome::Ok) {
        for operation in &transaction.operations {
            let Operation::Pair(pair, [false, false]) = operation else { continue };
            let mut story = format!("nobody of pair {pair} is on call\n{}", show::transaction(at, transaction));
            for who in [0, 1] {
                let left = |t: &Transaction| {
                    t.outcome != Outcome::Fail
                        && t.invoked_ns < transaction.returned_ns
                        && t.operations.contains(&Operation::OnCall(*pair, who, false))
                };
                let last = transactions.iter().enumerate().filter(|(_, t)| left(t)).max_by_key(|(_, t)| t.invoked_ns);
                if let Some((at, last)) = last {
                    story.push_str(&format!("\n{}", show::transaction(at, last)));
                }
            }
            anomalies.push(Anomaly::new(Kind::WriteSkew, story));
        }
    }
    anomalies
}
