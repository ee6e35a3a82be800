//! Which gateways may still believe that they hold a lease: what their sessions hold beyond transactions (advisory locks) is
//! somebody else's only when they do not. PURE.
//!
//! A gateway measures its lease by its own monotonic clock, and so does PD here. PD's timestamps are no measure: they
//! may step forward when another node, whose wall clock is ahead, becomes PD. An older PD may have granted a
//! lease until the moment when this one took office.

use std::collections::BTreeMap;

use crate::catalog_lease::{LEASE_MS, MAX_GATEWAYS};

/// A lease, the second for which its grant may be on the way to a gateway that waits for news, and clocks that drift.
const BELIEF_MS: u64 = LEASE_MS + 2_000;

/// When each was heard of last.
#[derive(Clone, Debug, Default)]
pub struct Gateways {
    since_ms: u64,
    heard: BTreeMap<u64, u64>,
}

impl Gateways {
    /// PD takes office.
    pub fn new(now_ms: u64) -> Self {
        Gateways { since_ms: now_ms, heard: BTreeMap::new() }
    }

    /// A gateway asks for its lease.
    pub fn hear(&mut self, gateway: u64, now_ms: u64) {
        if self.heard.len() >= MAX_GATEWAYS {
            self.heard.retain(|_, heard| now_ms.saturating_sub(*heard) < BELIEF_MS);
        }
        self.heard.insert(gateway, now_ms);
    }

    /// Whether it may believe that it holds one. "No" is for good: it has noticed.
    pub fn is_alive(&self, gateway: u64, now_ms: u64) -> bool {
        let heard = self.heard.get(&gateway).copied().unwrap_or(0).max(self.since_ms);
        now_ms.saturating_sub(heard) < BELIEF_MS
    }

    /// Those that may; 0 stands for those that an older PD may have heard of.
    pub fn alive(&self, now_ms: u64) -> Vec<u64> {
        let older = (now_ms.saturating_sub(self.since_ms) < BELIEF_MS).then_some(0);
        let heard = self.heard.iter().filter(|(_, heard)| now_ms.saturating_sub(**heard) < BELIEF_MS);
        older.into_iter().chain(heard.map(|(gateway, _)| *gateway)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_alive_as_long_as_any_lease_of_it_may_run() {
        let mut gateways = Gateways::new(1_000);
        assert!(gateways.is_alive(7, 1_000 + BELIEF_MS - 1), "an older PD may have granted one");
        assert!(!gateways.is_alive(7, 1_000 + BELIEF_MS));
        gateways.hear(7, 5_000);
        assert!(gateways.is_alive(7, 5_000 + BELIEF_MS - 1) && !gateways.is_alive(8, 5_000 + BELIEF_MS - 1));
        assert!(!gateways.is_alive(7, 5_000 + BELIEF_MS));
        assert_eq!(gateways.alive(5_000), [0, 7], "an older PD may have granted one to somebody else");
        assert_eq!(gateways.alive(1_000 + BELIEF_MS), [7]);
        assert_eq!(gateways.alive(5_000 + BELIEF_MS), Vec::<u64>::new());
    }
}
