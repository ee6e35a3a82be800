//! A history as it is written down: one line of JSON for the header, one for each transaction.
//!
//! ```text
//! {"format":1,"workload":"append","level":"serializable"}
//! {"session":2,"invoked_ns":1000,"returned_ns":4000,"outcome":"ok","operations":[{"append":[5,17]},{"list":[5,[3,17]]}]}
//! ```

use serde::{Deserialize, Serialize};

use crate::Level;

/// The version of the lines. A reader takes no other.
pub const FORMAT: u32 = 1;

/// What kind of history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Transfers between accounts.
    Bank,
    /// Single values, written and read in statements of their own.
    Register,
    /// Lists, several a transaction.
    Append,
    /// Pairs of which one must be on call.
    WriteSkew,
    /// Values that only one may have.
    Unique,
    /// Values drawn from a sequence.
    Sequence,
}

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: u32,
    /// Which checker is to be asked.
    pub workload: Workload,
    /// The level the transactions ran at.
    pub level: Level,
    /// Of a bank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accounts: Option<Accounts>,
}

/// What a bank starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts {
    /// How many accounts, numbered from 0.
    pub count: u64,
    /// What is in each.
    pub initial: i64,
}

/// How a transaction ended, as far as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Committed.
    Ok,
    /// Certainly not committed, now or later.
    Fail,
    /// Nobody knows: the answer was lost.
    Unknown,
}

/// One transfer between accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Unique in the history.
    pub id: u64,
    /// From this account.
    pub from: u64,
    /// To this one.
    pub to: u64,
    /// How much.
    pub amount: i64,
}

/// Something a transaction wrote or saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Appended to the list of this key a value that is appended to it once in the history.
    Append(u64, u64),
    /// Saw the list of this key.
    List(u64, Vec<u64>),
    /// Wrote the register of this key.
    Write(u64, u64),
    /// Saw the register of this key; `None`: never written.
    Read(u64, Option<u64>),
    /// Moved money.
    Transfer(Transfer),
    /// Saw all balances, in the order of the accounts.
    Balances(Vec<i64>),
    /// Saw the records of all transfers.
    Ledger(Vec<Transfer>),
    /// Saw who of a pair is on call.
    Pair(u64, [bool; 2]),
    /// Put one of a pair on or off call.
    OnCall(u64, u8, bool),
    /// Took a value that must be unique.
    Insert(u64),
    /// Saw all values that were taken.
    Rows(Vec<u64>),
    /// Drew from the sequence.
    Drawn(i64),
}

/// One transaction as its session saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Who. A session does one thing after the other; after an unknown outcome it goes on under a new number.
    pub session: u64,
    /// When it began, in nanoseconds of one monotonic clock for the whole history.
    pub invoked_ns: u64,
    /// When its end was known, on the same clock.
    pub returned_ns: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// In the order they were done. Reads without an answer are left out.
    pub operations: Vec<Operation>,
}

impl Transaction {
    /// When its effects were there for all to see; `None`: nobody knows.
    pub fn done_ns(&self) -> Option<u64> {
        (self.outcome == Outcome::Ok).then_some(self.returned_ns)
    }
}

/// A whole history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// What it is.
    pub header: Header,
    /// In any order.
    pub transactions: Vec<Transaction>,
}

/// Why lines are no history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not such a line.
    #[error("line {line}: {reason}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing.
    #[error("the history is empty: its first line says what it is")]
    Empty,
    /// Written by another version.
    #[error("format {0} of histories is not known here, only format {FORMAT}")]
    Format(u32),
    /// Time went back.
    #[error("transaction {0} returned before it was called")]
    Backwards(usize),
    /// The checkers tell writes apart by their values.
    #[error("value {value} was written to key {key} by transactions {first} and {second}")]
    WrittenTwice {
        /// Where.
        key: u64,
        /// What.
        value: u64,
        /// By this one, counted from 0.
        first: usize,
        /// And by this one.
        second: usize,
    },
    /// A bank's header must say what it started with.
    #[error("a bank's history needs \"accounts\" in its first line")]
    NoAccounts,
}

impl History {
    /// Reads lines. A last line that was cut off (its writer was killed) is an error too: it is better known.
    pub fn parse(text: &str) -> Result<History, Malformed> {
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let (at, first) = lines.next().ok_or(Malformed::Empty)?;
        let header: Header = parse_line(at, first)?;
        if header.format != FORMAT {
            return Err(Malformed::Format(header.format));
        }
        let transactions = lines.map(|(at, line)| parse_line(at, line)).collect::<Result<_, _>>()?;
        Ok(History { header, transactions })
    }
}

fn parse_line<T: for<'a> Deserialize<'a>>(at: usize, line: &str) -> Result<T, Malformed> {
    serde_json::from_str(line).map_err(|error| Malformed::Line { line: at + 1, reason: error.to_string() })
}

impl Header {
    /// As a line, without its end.
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("a header is JSON")
    }
}

impl Transaction {
    /// As a line, without its end.
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("a transaction is JSON")
    }
}

/// Time goes forward.
pub(crate) fn validate(transactions: &[Transaction]) -> Result<(), Malformed> {
    match transactions.iter().position(|t| t.returned_ns < t.invoked_ns) {
        Some(at) => Err(Malformed::Backwards(at)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let accounts = Some(Accounts { count: 2, initial: 100 });
        let header = Header { format: FORMAT, workload: Workload::Bank, level: Level::RepeatableRead, accounts };
        let transfer = Transfer { id: 1, from: 0, to: 1, amount: 5 };
        let operations = vec![
            Operation::Append(1, 2),
            Operation::List(1, vec![2]),
            Operation::Read(1, None),
            Operation::Transfer(transfer),
            Operation::Ledger(vec![transfer]),
            Operation::Balances(vec![-5, 205]),
            Operation::Pair(1, [true, false]),
            Operation::OnCall(1, 0, false),
            Operation::Drawn(-1),
        ];
        let one = Transaction { session: 3, invoked_ns: 1, returned_ns: 2, outcome: Outcome::Unknown, operations };
        let text = format!("{}\n{}\n", header.line(), one.line());
        assert_eq!(History::parse(&text), Ok(History { header, transactions: vec![one] }));
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        assert_eq!(History::parse("\n"), Err(Malformed::Empty));
        let header = r#"{"format":1,"workload":"append","level":"strict"}"#;
        let cut = format!("{header}\n{{\"session\":1,\"invo");
        assert!(matches!(History::parse(&cut), Err(Malformed::Line { line: 2, .. })));
        assert_eq!(History::parse(&header.replace('1', "2")), Err(Malformed::Format(2)));
        let deep = format!("{header}\n{}", "[".repeat(100_000));
        assert!(matches!(History::parse(&deep), Err(Malformed::Line { line: 2, .. })));
    }
}
