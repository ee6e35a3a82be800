//! Single values, each written and read by statements of their own: every one of them must be linearizable.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    Anomaly, Kind, Malformed, Operation, Outcome, Transaction,
    linearizable::{self, Action},
    show,
};

/// All registers that no order explains.
///
/// # Errors
/// One value was written twice to one register, or is 0, which stands for a register never written.
pub fn check(transactions: &[Transaction]) -> Result<Vec<Anomaly>, Malformed> {
    let mut registers: BTreeMap<u64, Vec<linearizable::Operation>> = BTreeMap::new();
    let mut writers: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    let mut anomalies = Vec::new();
    for (at, transaction) in transactions.iter().enumerate() {
        for operation in &transaction.operations {
            if let Operation::Write(key, value) = *operation {
                let first = writers.insert((key, value), at).or((value == 0).then_some(at));
                if let Some(first) = first {
                    return Err(Malformed::WrittenTwice { key, value, first, second: at });
                }
            }
            registers.entry(key_of(operation)).or_default().extend(placed(transaction, operation));
        }
    }
    for (at, transaction) in transactions.iter().enumerate().filter(|(_, t)| t.outcome == Outcome::Ok) {
        anomalies.extend(transaction.operations.iter().filter_map(|operation| {
            let Operation::Read(key, Some(value)) = *operation else { return None };
            let Some(&writer) = writers.get(&(key, value)) else {
                let story = format!("nobody wrote {value} to register {key}\n{}", show::transaction(at, transaction));
                return Some(Anomaly::new(Kind::FromNowhere, story));
            };
            let failed = transactions[writer].outcome == Outcome::Fail;
            failed.then(|| {
                let (write, read) =
                    (show::transaction(writer, &transactions[writer]), show::transaction(at, transaction));
                Anomaly::new(
                    Kind::G1a,
                    format!("{value} of register {key} was seen and its write failed\n{write}\n{read}"),
                )
            })
        }));
    }
    for (key, operations) in registers {
        if let Err(reason) = linearizable::check(&operations) {
            anomalies.push(Anomaly::new(Kind::NotLinearizable, format!("register {key}: {reason}")));
        }
    }
    Ok(anomalies)
}

fn key_of(operation: &Operation) -> u64 {
    match operation {
        Operation::Write(key, _) | Operation::Read(key, _) => *key,
        _ => 0,
    }
}

/// An operation's place in its register's history; a failed write and a read without a commit have none.
fn placed(transaction: &Transaction, operation: &Operation) -> Option<linearizable::Operation> {
    let action = match (operation, transaction.outcome) {
        (_, Outcome::Fail) | (Operation::Read(..), Outcome::Unknown) => return None,
        (Operation::Write(_, value), _) => Action::Write(*value),
        (Operation::Read(_, value), Outcome::Ok) => Action::Read(value.unwrap_or(0)),
        _ => return None,
    };
    Some(linearizable::Operation {
        called: Duration::from_nanos(transaction.invoked_ns),
        returned: transaction.done_ns().map(Duration::from_nanos),
        action,
    })
}
