//! Transfers between accounts: money is neither made nor lost.
//!
//! Every transfer leaves a record in its own transaction. Every look at all balances must add up to what was there at the
//! start; a look at the records beside the balances must explain each balance; and a look that began after a transfer was
//! acknowledged, refused or lost must show it, not show it, or may do either.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Accounts, Anomaly, Kind, Operation, Outcome, Transaction, Transfer, show};

/// All that is wrong.
pub fn check(transactions: &[Transaction], accounts: Accounts) -> Vec<Anomaly> {
    let asked = Asked::new(transactions);
    let mut anomalies = Vec::new();
    for (at, transaction) in transactions.iter().enumerate().filter(|(_, t)| t.outcome == Outcome::Ok) {
        let mut say = |kind, what: String| {
            anomalies.push(Anomaly::new(kind, format!("{what}\n{}", show::transaction(at, transaction))));
        };
        let mut ledger: Option<&[Transfer]> = None;
        for operation in &transaction.operations {
            match operation {
                Operation::Ledger(transfers) => {
                    asked.judge(transaction.invoked_ns, transfers, &mut say);
                    ledger = Some(transfers);
                }
                Operation::Balances(balances) => judge_balances(accounts, balances, ledger, &mut say),
                _ => {}
            }
        }
    }
    anomalies
}

fn judge_balances(
    accounts: Accounts,
    balances: &[i64],
    ledger: Option<&[Transfer]>,
    say: &mut impl FnMut(Kind, String),
) {
    let sum: i128 = balances.iter().map(|&balance| i128::from(balance)).sum();
    let expected = i128::from(accounts.count) * i128::from(accounts.initial);
    if balances.len() as u64 != accounts.count || sum != expected {
        let (count, should) = (balances.len(), accounts.count);
        say(Kind::WrongSum, format!("{count} accounts hold {sum}, should be {should} with {expected}"));
    }
    let Some(ledger) = ledger else { return };
    let mut moved: BTreeMap<u64, i128> = BTreeMap::new();
    for transfer in ledger {
        *moved.entry(transfer.from).or_default() -= i128::from(transfer.amount);
        *moved.entry(transfer.to).or_default() += i128::from(transfer.amount);
    }
    for (account, &balance) in (0..).zip(balances) {
        let says = i128::from(accounts.initial) + moved.get(&account).copied().unwrap_or(0);
        if says != i128::from(balance) {
            say(Kind::WrongSum, format!("account {account} holds {balance}, its transfers say {says}"));
        }
    }
}

/// What clients asked for.
struct Asked {
    /// By id: how it ended, and when.
    transfers: BTreeMap<u64, (Outcome, u64, Transfer)>,
}

impl Asked {
    fn new(transactions: &[Transaction]) -> Asked {
        let mut transfers = BTreeMap::new();
        for transaction in transactions {
            for operation in &transaction.operations {
                if let Operation::Transfer(transfer) = operation {
                    transfers.insert(transfer.id, (transaction.outcome, transaction.returned_ns, *transfer));
                }
            }
        }
        Asked { transfers }
    }

    fn judge(&self, since_ns: u64, ledger: &[Transfer], say: &mut impl FnMut(Kind, String)) {
        let mut there = BTreeSet::new();
        for transfer in ledger {
            let id = transfer.id;
            if !there.insert(id) {
                say(Kind::Duplicate, format!("transfer {id} is there twice"));
            }
            match self.transfers.get(&id) {
                Some((Outcome::Fail, ..)) => say(Kind::G1a, format!("transfer {id} failed and is there")),
                Some((_, _, asked)) if asked == transfer => {}
                _ => say(Kind::FromNowhere, format!("transfer {id} is there as nobody asked for it: {transfer:?}")),
            }
        }
        for (id, (outcome, returned_ns, _)) in &self.transfers {
            if *outcome == Outcome::Ok && *returned_ns < since_ns && !there.contains(id) {
                say(Kind::Lost, format!("transfer {id} was acknowledged at {returned_ns} and is not there"));
            }
        }
    }
}
