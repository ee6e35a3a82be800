//! Values drawn from a sequence: none twice, whatever became of the transaction that drew it, and in each session one after
//! the other. (Between sessions a sequence promises no order.)

use std::collections::BTreeMap;

use crate::{Anomaly, Kind, Operation, Transaction, show};

/// All that is wrong.
pub fn check(transactions: &[Transaction]) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    let mut drawn: BTreeMap<i64, usize> = BTreeMap::new();
    let mut last: BTreeMap<u64, (i64, usize)> = BTreeMap::new();
    let mut in_time: Vec<usize> = (0..transactions.len()).collect();
    in_time.sort_by_key(|&at| transactions[at].invoked_ns);
    let show = |at: usize| show::transaction(at, &transactions[at]);
    for at in in_time {
        let transaction = &transactions[at];
        for operation in &transaction.operations {
            let Operation::Drawn(value) = *operation else { continue };
            if let Some(first) = drawn.insert(value, at) {
                let story = format!("{value} was drawn twice\n{}\n{}", show(first), show(at));
                anomalies.push(Anomaly::new(Kind::Duplicate, story));
            }
            if let Some((before, earlier)) = last.insert(transaction.session, (value, at))
                && before > value
            {
                let session = transaction.session;
                let story = format!("session {session} drew {value} after {before}\n{}\n{}", show(earlier), show(at));
                anomalies.push(Anomaly::new(Kind::Backwards, story));
            }
        }
    }
    anomalies
}
