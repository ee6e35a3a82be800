//! In which order values came into each list, and what is wrong with single reads.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::{Anomaly, Kind, Malformed, Operation, Outcome, Transaction, show};

/// Key and value.
pub(super) type Element = (u64, u64);

/// What is known of all lists.
pub(super) struct Versions<'a> {
    pub(super) transactions: &'a [Transaction],
    /// Whose values are whose, of failed transactions as well.
    appenders: HashMap<Element, usize>,
    /// Which transactions happened.
    happened: Vec<bool>,
    /// The longest read of each key, and its reader.
    longest: BTreeMap<u64, (usize, &'a [u64])>,
    /// Values of transactions that happened which are in no longest read: somewhere behind it.
    behind: BTreeMap<u64, Vec<u64>>,
}

impl<'a> Versions<'a> {
    /// # Errors
    /// One value was appended twice to one key.
    pub(super) fn infer(transactions: &'a [Transaction]) -> Result<Versions<'a>, Malformed> {
        let mut appenders = HashMap::new();
        for (at, transaction) in transactions.iter().enumerate() {
            for (key, value) in appends(transaction) {
                if let Some(first) = appenders.insert((key, value), at) {
                    return Err(Malformed::WrittenTwice { key, value, first, second: at });
                }
            }
        }
        let happened = happened(transactions, &appenders);
        let mut longest: BTreeMap<u64, (usize, &[u64])> = BTreeMap::new();
        for (at, key, values) in reads(transactions, &happened) {
            let known = longest.entry(key).or_insert((at, values));
            if values.len() > known.1.len() {
                *known = (at, values);
            }
        }
        let seen: HashSet<Element> =
            longest.iter().flat_map(|(&key, (_, values))| values.iter().map(move |&value| (key, value))).collect();
        let mut behind: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (_, transaction) in transactions.iter().enumerate().filter(|(at, _)| happened[*at]) {
            for (key, value) in appends(transaction).filter(|element| !seen.contains(element)) {
                behind.entry(key).or_default().push(value);
            }
        }
        Ok(Versions { transactions, appenders, happened, longest, behind })
    }

    pub(super) fn happened(&self, at: usize) -> bool {
        self.happened[at]
    }

    /// Who appended this, if it happened.
    pub(super) fn writer(&self, element: Element) -> Option<usize> {
        self.appenders.get(&element).copied().filter(|&at| self.happened[at])
    }

    /// Every key's longest read.
    pub(super) fn lists(&self) -> impl Iterator<Item = (u64, &'a [u64])> {
        self.longest.iter().map(|(&key, &(_, values))| (key, values))
    }

    /// What is behind the longest read of a key.
    pub(super) fn behind(&self, key: u64) -> &[u64] {
        self.behind.get(&key).map_or(&[], Vec::as_slice)
    }

    /// The longest read of a key, if this read is a beginning of it.
    pub(super) fn compatible(&self, key: u64, read: &[u64]) -> Option<&'a [u64]> {
        let (_, longest) = self.longest.get(&key)?;
        longest.starts_with(read).then_some(longest)
    }

    /// Reads of those who happened: (who, key, what).
    pub(super) fn reads(&self) -> impl Iterator<Item = (usize, u64, &'a [u64])> {
        reads(self.transactions, &self.happened)
    }

    /// A read without the reader's own values at its end: what it found.
    pub(super) fn found(&self, reader: usize, key: u64, read: &'a [u64]) -> &'a [u64] {
        let own = read.iter().rev().take_while(|&&value| self.appenders.get(&(key, value)) == Some(&reader)).count();
        &read[..read.len() - own]
    }

    /// What is wrong with reads by themselves.
    pub(super) fn anomalies(&self) -> Vec<Anomaly> {
        let mut found = Vec::new();
        for (&key, &(reader, longest)) in &self.longest {
            self.judge_elements(reader, key, longest, &mut found);
        }
        for (reader, key, read) in self.reads() {
            if self.compatible(key, read).is_none() {
                let (other, longest) = self.longest[&key];
                let story = format!(
                    "key {key} was {} and {}\n{}\n{}",
                    show::list(read),
                    show::list(longest),
                    self.show(reader),
                    self.show(other)
                );
                found.push(Anomaly::new(Kind::IncompatibleOrders, story));
                self.judge_elements(reader, key, read, &mut found);
            }
            found.extend(self.intermediate(reader, key, read));
        }
        for (at, transaction) in self.transactions.iter().enumerate().filter(|(at, _)| self.happened[*at]) {
            if let Some(reason) = own_writes_missing(transaction) {
                found.push(Anomaly::new(Kind::Internal, format!("{reason}\n{}", self.show(at))));
            }
        }
        found.extend(self.lost_updates());
        found
    }

    fn judge_elements(&self, reader: usize, key: u64, read: &[u64], found: &mut Vec<Anomaly>) {
        let mut seen = BTreeSet::new();
        for &value in read {
            if !seen.insert(value) {
                let story = format!("{value} is in key {key} twice\n{}", self.show(reader));
                found.push(Anomaly::new(Kind::Duplicate, story));
            }
            match self.appenders.get(&(key, value)) {
                None => {
                    let story = format!("nobody appended {value} to key {key}\n{}", self.show(reader));
                    found.push(Anomaly::new(Kind::FromNowhere, story));
                }
                Some(&writer) if self.transactions[writer].outcome == Outcome::Fail => {
                    let story = format!(
                        "{value} of key {key} was seen and its transaction failed\n{}\n{}",
                        self.show(writer),
                        self.show(reader)
                    );
                    found.push(Anomaly::new(Kind::G1a, story));
                }
                Some(_) => {}
            }
        }
    }

    /// A read that ends in the middle of another transaction.
    fn intermediate(&self, reader: usize, key: u64, read: &[u64]) -> Option<Anomaly> {
        let &last = read.last()?;
        let writer = *self.appenders.get(&(key, last))?;
        let of_key = |&(k, _): &Element| k == key;
        let (_, final_value) = appends(&self.transactions[writer]).filter(of_key).last()?;
        if writer == reader || final_value == last {
            return None;
        }
        let story = format!(
            "key {key} was seen with {last}, before its transaction appended {final_value}\n{}\n{}",
            self.show(writer),
            self.show(reader)
        );
        Some(Anomaly::new(Kind::G1b, story))
    }

    /// Several that found the same list and appended to it.
    fn lost_updates(&self) -> Vec<Anomaly> {
        let mut by_version: BTreeMap<(u64, usize), BTreeSet<usize>> = BTreeMap::new();
        for (reader, key, read) in self.reads() {
            let writes = appends(&self.transactions[reader]).any(|(k, _)| k == key);
            if writes && self.compatible(key, read).is_some() {
                by_version.entry((key, self.found(reader, key, read).len())).or_default().insert(reader);
            }
        }
        let several = by_version.into_iter().filter(|(_, readers)| readers.len() > 1);
        let anomaly = |((key, length), readers): ((u64, usize), BTreeSet<usize>)| {
            let version = &self.longest[&key].1[..length];
            let mut story = format!("all of these found key {key} as {} and appended to it", show::list(version));
            readers.iter().for_each(|&at| story.push_str(&format!("\n{}", self.show(at))));
            Anomaly::new(Kind::LostUpdate, story)
        };
        several.map(anomaly).collect()
    }

    pub(super) fn show(&self, at: usize) -> String {
        show::transaction(at, &self.transactions[at])
    }
}

fn appends(transaction: &Transaction) -> impl Iterator<Item = Element> {
    transaction.operations.iter().filter_map(|operation| match operation {
        Operation::Append(key, value) => Some((*key, *value)),
        _ => None,
    })
}

fn lists(transaction: &Transaction) -> impl Iterator<Item = (u64, &[u64])> {
    transaction.operations.iter().filter_map(|operation| match operation {
        Operation::List(key, values) => Some((*key, values.as_slice())),
        _ => None,
    })
}

fn reads<'a>(transactions: &'a [Transaction], happened: &[bool]) -> impl Iterator<Item = (usize, u64, &'a [u64])> {
    let those = transactions.iter().enumerate().filter(|(at, _)| happened[*at]);
    those.flat_map(|(at, transaction)| lists(transaction).map(move |(key, values)| (at, key, values)))
}

/// Who committed, and of the unknown who was seen by somebody who happened.
fn happened(transactions: &[Transaction], appenders: &HashMap<Element, usize>) -> Vec<bool> {
    let mut happened: Vec<bool> = transactions.iter().map(|t| t.outcome == Outcome::Ok).collect();
    let mut to_ask: Vec<usize> = (0..transactions.len()).filter(|&at| happened[at]).collect();
    while let Some(reader) = to_ask.pop() {
        for (key, values) in lists(&transactions[reader]) {
            for &value in values {
                let Some(&writer) = appenders.get(&(key, value)) else { continue };
                if !happened[writer] && transactions[writer].outcome == Outcome::Unknown {
                    happened[writer] = true;
                    to_ask.push(writer);
                }
            }
        }
    }
    happened
}

/// Every read must end in what the transaction itself had appended until then.
fn own_writes_missing(transaction: &Transaction) -> Option<String> {
    let mut own: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for operation in &transaction.operations {
        match operation {
            Operation::Append(key, value) => own.entry(*key).or_default().push(*value),
            Operation::List(key, values) => {
                let expected = own.get(key).map_or(&[][..], Vec::as_slice);
                if !values.ends_with(expected) {
                    return Some(format!(
                        "key {key} was {}, it should end in the transaction's own {}",
                        show::list(values),
                        show::list(expected)
                    ));
                }
            }
            _ => {}
        }
    }
    None
}
