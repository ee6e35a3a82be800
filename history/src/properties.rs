//! What an executor does one after the other passes every checker; what is changed in it afterwards is found. And it is quick.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::{Level, Operation, Outcome, Promise, Transaction, Verdict, append, linearizable};

/// What one transaction wants: for each step a key, and whether it appends; how it ends; how long before and after its moment
/// it was called and returned.
type Wish = (Vec<(u64, bool)>, u8, u64, u64);

fn wishes(count: usize) -> impl Strategy<Value = Vec<Wish>> {
    let wish = (prop::collection::vec((0..4u64, any::<bool>()), 1..5), 0..20u8, 0..100u64, 0..100u64);
    prop::collection::vec(wish, 1..count)
}

/// Each happens at a moment of its own, somewhere between its call and its return.
fn serial(wishes: &[Wish]) -> Vec<Transaction> {
    let mut lists: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut history = Vec::new();
    for (n, (steps, end, before, after)) in (0..).zip(wishes) {
        let moment = 1_000 + n * 20;
        let (outcome, happens) = match end {
            0 => (Outcome::Fail, false),
            1 => (Outcome::Unknown, true),
            2 => (Outcome::Unknown, false),
            _ => (Outcome::Ok, true),
        };
        let mut own = lists.clone();
        let operations = (0..).zip(steps).map(|(step, &(key, append))| {
            let list = own.entry(key).or_default();
            match append {
                true => {
                    list.push(n * 10 + step);
                    Operation::Append(key, n * 10 + step)
                }
                false => Operation::List(key, list.clone()),
            }
        });
        let operations = operations.collect();
        if happens {
            lists = own;
        }
        let (invoked_ns, returned_ns) = (moment - before, moment + after);
        history.push(Transaction { session: n, invoked_ns, returned_ns, outcome, operations });
    }
    // A last look at everything.
    let at = 1_000_000_000;
    let operations = lists.into_iter().map(|(key, list)| Operation::List(key, list)).collect();
    let look = Transaction { session: 0, invoked_ns: at, returned_ns: at, outcome: Outcome::Ok, operations };
    history.push(look);
    history
}

fn verdict(history: &[Transaction]) -> Verdict {
    let anomalies = append::check(history).expect("a history");
    Verdict::new(history, Promise::plain(Level::Strict), anomalies)
}

proptest! {
    #[test]
    fn serial_histories_pass(wishes in wishes(60)) {
        let history = serial(&wishes);
        let verdict = verdict(&history);
        prop_assert!(verdict.anomalies().is_empty(), "{verdict}");
    }

    /// An acknowledged append is taken out of every list.
    #[test]
    fn lost_appends_are_found(wishes in wishes(40), which in any::<prop::sample::Index>()) {
        let mut history = serial(&wishes);
        let done = history.iter().filter(|t| t.outcome == Outcome::Ok).flat_map(|t| t.operations.clone());
        let appends: Vec<_> =
            done.filter_map(|o| if let Operation::Append(key, value) = o { Some((key, value)) } else { None }).collect();
        prop_assume!(!appends.is_empty());
        let (key, value) = appends[which.index(appends.len())];
        for operation in history.iter_mut().flat_map(|t| &mut t.operations) {
            if let Operation::List(k, values) = operation {
                values.retain(|v| (*k, *v) != (key, value));
            }
        }
        prop_assert!(!verdict(&history).is_valid());
    }

    /// A snapshot from before what somebody else had committed.
    #[test]
    fn stale_reads_are_found(wishes in wishes(40), which in any::<prop::sample::Index>()) {
        let mut history = serial(&wishes);
        let look = history.last_mut().expect("there is the last look");
        prop_assume!(!look.operations.is_empty());
        let at = which.index(look.operations.len());
        let Operation::List(key, values) = &mut look.operations[at] else { unreachable!("a look only reads") };
        prop_assume!(values.len() > 1);
        let (key, gone) = (*key, values.pop().expect("there is one"));
        let other = Operation::Append(key, gone);
        // Of an answer that was lost, nobody can say that it was there before the look.
        prop_assume!(history.iter().any(|t| t.operations.contains(&other) && t.outcome == Outcome::Ok));
        prop_assert!(!verdict(&history).is_valid());
    }

    /// Two values change places in the last look.
    #[test]
    fn swapped_values_are_found(wishes in wishes(40), which in any::<prop::sample::Index>()) {
        let mut history = serial(&wishes);
        let look = history.last_mut().expect("there is the last look");
        prop_assume!(!look.operations.is_empty());
        let at = which.index(look.operations.len());
        let Operation::List(key, values) = &mut look.operations[at] else { unreachable!("a look only reads") };
        prop_assume!(values.len() > 1);
        let last = values.len() - 1;
        values.swap(0, last);
        let (key, first, last) = (*key, values[0], values[last]);
        // Their order is known if one was acknowledged before the other began.
        let of = |value| history.iter().find(|t| t.operations.contains(&Operation::Append(key, value)));
        let (Some(first), Some(last)) = (of(first), of(last)) else { return Ok(()) };
        prop_assume!(last.outcome == Outcome::Ok && last.returned_ns < first.invoked_ns);
        prop_assert!(!verdict(&history).is_valid());
    }
}

/// 100,000 transactions of 16 sessions, in lists of up to 32 values.
#[test]
fn long_histories_are_quick() {
    let mut history = Vec::new();
    let mut lists: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for n in 0..100_000u64 {
        let keys = [n / 64 * 2, n / 64 * 2 + n % 2];
        let operations = keys.iter().enumerate().map(|(step, &key)| match (n + step as u64) % 2 {
            0 => {
                lists.entry(key).or_default().push(n * 2 + step as u64);
                Operation::Append(key, n * 2 + step as u64)
            }
            _ => Operation::List(key, lists.entry(key).or_default().clone()),
        });
        let operations = operations.collect();
        let (invoked_ns, returned_ns) = (n * 10, n * 10 + 155);
        history.push(Transaction { session: n % 16, invoked_ns, returned_ns, outcome: Outcome::Ok, operations });
    }
    assert!(verdict(&history).anomalies().is_empty());
    // One wrong read in the middle is found among all of them.
    let at = history.iter().position(|t| t.invoked_ns > 500_000 && matches!(t.operations[0], Operation::List(..)));
    let Operation::List(_, values) = &mut history[at.expect("one reads")].operations[0] else { unreachable!() };
    values.clear();
    assert!(!verdict(&history).is_valid());
}

/// Of one register, with answers that were lost and seen.
#[test]
fn long_histories_of_one_register_are_quick() {
    use linearizable::Action::{Read, Write};
    let ns = std::time::Duration::from_nanos;
    let mut history = Vec::new();
    for n in 1..10_000u64 {
        let returned = (n % 50 != 0).then(|| ns(n * 10 + 35));
        history.push(linearizable::Operation { called: ns(n * 10), returned, action: Write(n) });
        history.push(linearizable::Operation {
            called: ns(n * 10 + 5),
            returned: Some(ns(n * 10 + 9)),
            action: Read(n),
        });
    }
    assert_eq!(linearizable::check(&history), Ok(()));
}
