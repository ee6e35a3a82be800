//! Is money made or lost?
//!
//! Every transfer leaves a record in its own transaction: (id, from, to, amount). Three things must hold:
//! at every snapshot the balances add up to what was there at the start; at the end the balances are what the
//! records say; and the records are those of every acknowledged transfer, of no refused one, and of any of
//! those whose outcome was unknown.

use std::collections::{BTreeMap, BTreeSet};

/// Moves `amount` from one account to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// From.
    pub from: u64,
    /// To.
    pub to: u64,
    /// How much.
    pub amount: u64,
}

/// What the clients of the bank saw.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Commit was acknowledged.
    pub acknowledged: BTreeSet<u64>,
    /// Certainly not committed.
    pub refused: BTreeSet<u64>,
    /// Commit's answer was lost.
    pub unknown: BTreeSet<u64>,
}

/// One snapshot of all accounts.
pub fn check_snapshot(balances: &BTreeMap<u64, u64>, accounts: u64, initial: u64) -> Result<(), String> {
    let total: u64 = balances.values().sum();
    if balances.len() as u64 != accounts || total != accounts * initial {
        return Err(format!(
            "{} accounts hold {total}, should be {accounts} with {}: {balances:?}",
            balances.len(),
            accounts * initial
        ));
    }
    Ok(())
}

/// The end: `records` and `balances` of one snapshot after the last transfer.
pub fn check_end(
    ledger: &Ledger,
    records: &BTreeMap<u64, Transfer>,
    balances: &BTreeMap<u64, u64>,
    initial: u64,
) -> Result<(), String> {
    if let Some(id) = ledger.acknowledged.iter().find(|id| !records.contains_key(id)) {
        return Err(format!("transfer {id} was acknowledged and is lost"));
    }
    if let Some(id) = ledger.refused.iter().find(|id| records.contains_key(id)) {
        return Err(format!("transfer {id} was refused and is there"));
    }
    let known = |id: &&u64| !ledger.acknowledged.contains(id) && !ledger.unknown.contains(id);
    if let Some(id) = records.keys().find(known) {
        return Err(format!("transfer {id} is there and nobody committed it"));
    }
    let mut expected: BTreeMap<u64, i128> = balances.keys().map(|&a| (a, i128::from(initial))).collect();
    for transfer in records.values() {
        *expected.entry(transfer.from).or_default() -= i128::from(transfer.amount);
        *expected.entry(transfer.to).or_default() += i128::from(transfer.amount);
    }
    for (account, balance) in balances {
        if expected[account] != i128::from(*balance) {
            return Err(format!("account {account} holds {balance}, its transfers say {}", expected[account]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balances(of: &[u64]) -> BTreeMap<u64, u64> {
        of.iter().copied().enumerate().map(|(i, b)| (i as u64, b)).collect()
    }
    fn records(of: &[(u64, u64, u64, u64)]) -> BTreeMap<u64, Transfer> {
        of.iter().map(|&(id, from, to, amount)| (id, Transfer { from, to, amount })).collect()
    }
    fn ledger(acknowledged: &[u64], refused: &[u64], unknown: &[u64]) -> Ledger {
        let set = |ids: &[u64]| ids.iter().copied().collect();
        Ledger { acknowledged: set(acknowledged), refused: set(refused), unknown: set(unknown) }
    }

    #[test]
    fn a_good_bank_passes() {
        check_snapshot(&balances(&[90, 110]), 2, 100).unwrap();
        let end = records(&[(1, 0, 1, 10)]);
        check_end(&ledger(&[1], &[2], &[3]), &end, &balances(&[90, 110]), 100).unwrap();
        check_end(&ledger(&[], &[2], &[1]), &end, &balances(&[90, 110]), 100).unwrap();
    }

    #[test]
    fn half_a_transfer_is_found() {
        assert!(check_snapshot(&balances(&[90, 100]), 2, 100).is_err());
        assert!(check_snapshot(&balances(&[200]), 2, 100).is_err());
        assert!(check_end(&ledger(&[1], &[], &[]), &records(&[(1, 0, 1, 10)]), &balances(&[90, 100]), 100).is_err());
    }

    #[test]
    fn lost_refused_and_foreign_transfers_are_found() {
        let none = records(&[]);
        assert!(check_end(&ledger(&[1], &[], &[]), &none, &balances(&[100, 100]), 100).is_err());
        let one = records(&[(1, 0, 1, 10)]);
        assert!(check_end(&ledger(&[], &[1], &[]), &one, &balances(&[90, 110]), 100).is_err());
        assert!(check_end(&ledger(&[], &[], &[]), &one, &balances(&[90, 110]), 100).is_err());
    }

    #[test]
    fn a_lost_update_is_found() {
        // Both took 10 from account 0; one overwrote the other, and account 1 and 2 got theirs: the sum is off.
        assert!(check_snapshot(&balances(&[90, 110, 110]), 3, 100).is_err());
        // A dropped record hides nothing: the balances know.
        let one = records(&[(1, 0, 1, 10)]);
        assert!(check_end(&ledger(&[1], &[], &[2]), &one, &balances(&[80, 110, 110]), 100).is_err());
    }
}
