//! What a suite of seeds has met. A fault that never happened proves nothing.

use std::{collections::BTreeMap, fmt};

/// Counters by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    /// Adds to a counter.
    pub fn add(&mut self, what: &'static str, by: u64) {
        *self.0.entry(what).or_default() += by;
    }
    /// Adds all of another run's.
    pub fn merge(&mut self, other: &Coverage) {
        other.0.iter().for_each(|(what, by)| self.add(what, *by));
    }
    /// A counter.
    pub fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }
    /// Which of `wanted` never happened.
    pub fn missing(&self, wanted: &[&'static str]) -> Vec<&'static str> {
        wanted.iter().copied().filter(|what| self.get(what) == 0).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (what, count)) in self.0.iter().enumerate() {
            write!(f, "{}{what} {count}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
