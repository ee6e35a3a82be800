//! Transactions in the words of a verdict.

use std::fmt::Write;

use crate::{Operation, Outcome, Transaction, Transfer};

/// Of a long list only the end is shown.
const SHOWN_MAX: usize = 12;

/// `T3 (session 1, 20..30 ns, ok): append 5 to 1, list 1 [4 5]`
pub(crate) fn transaction(at: usize, t: &Transaction) -> String {
    let outcome = match t.outcome {
        Outcome::Ok => "ok",
        Outcome::Fail => "failed",
        Outcome::Unknown => "unknown",
    };
    let mut line = format!("T{at} (session {}, {}..{} ns, {outcome}): ", t.session, t.invoked_ns, t.returned_ns);
    let all: Vec<String> = t.operations.iter().map(operation).collect();
    line.push_str(&all.join(", "));
    line
}

fn operation(operation: &Operation) -> String {
    match operation {
        Operation::Append(key, value) => format!("append {value} to {key}"),
        Operation::List(key, values) => format!("list {key} {}", list(values)),
        Operation::Write(key, value) => format!("write {key} = {value}"),
        Operation::Read(key, Some(value)) => format!("read {key} = {value}"),
        Operation::Read(key, None) => format!("read {key}: nothing"),
        Operation::Transfer(Transfer { id, from, to, amount }) => {
            format!("transfer {id}: {amount} from {from} to {to}")
        }
        Operation::Balances(balances) => format!("balances {}", list(balances)),
        Operation::Ledger(transfers) => format!("ledger of {} transfers", transfers.len()),
        Operation::Pair(pair, on) => format!("pair {pair} {}", list(&on.map(u8::from))),
        Operation::OnCall(pair, who, on) => format!("{who} of pair {pair} {} call", if *on { "on" } else { "off" }),
        Operation::Insert(value) => format!("insert {value}"),
        Operation::Rows(values) => format!("rows {}", list(values)),
        Operation::Drawn(value) => format!("drew {value}"),
    }
}

/// `[1 2 3]`, or the last of them.
pub(crate) fn list<T: std::fmt::Display>(values: &[T]) -> String {
    let from = values.len().saturating_sub(SHOWN_MAX);
    let mut text = String::from("[");
    if from > 0 {
        let _ = write!(text, "({from} more) ");
    }
    let shown: Vec<_> = values[from..].iter().map(ToString::to_string).collect();
    text.push_str(&shown.join(" "));
    text.push(']');
    text
}
