//! Gateways' leases on catalog versions: when is a DDL done?
//!
//! A gateway may use the catalog version it acknowledged until its lease ends; its commits carry the lease's
//! end as a fence. A published version is *settled* when no transaction can commit under an older one:
//!
//! ```text
//!   publish(8) ──▶ gateway a  acknowledged 8                      ok
//!                  gateway b  acknowledged 7, lease until t       wait for b, or for PD's time to pass t
//!                  leases of an older PD, all end before i        wait for PD's time to pass i
//! ```
//!
//! A lease is extended only for a gateway that works with the published version, so the wait is bounded by
//! [`LEASE_MS`] however long a gateway hangs on to an old one. A new PD does not know its predecessor's
//! leases, but it knows that none of them can end after the predecessor's timestamp bound + [`LEASE_MS`].
//! All times here are PD timestamps: no clock of a gateway plays a part.

use std::collections::BTreeMap;

use proto::Timestamp;

/// How long a lease runs. Long enough for a renewal to survive a fail-over of PD (≤ 3 s), short enough
/// that a DDL does not wait long for a dead gateway.
pub const LEASE_MS: u64 = 8_000;
/// Gateways with a live lease. Past it a new one is refused: far above any cluster, it bounds a bad client.
pub const MAX_GATEWAYS: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lease {
    acknowledged: u64,
    /// Commits stay below it.
    expires_at: Timestamp,
}

/// What a gateway is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The version to work with.
    pub published: u64,
    /// The lease's end; `ZERO` when there is none (acknowledge the published version first).
    pub expires_at: Timestamp,
    /// PD did not know before that the gateway works with this version: who publishes may be done now.
    pub news: bool,
}

/// The core.
#[derive(Clone, Debug, Default)]
pub struct CatalogLeases {
    published: u64,
    /// Every lease of an older PD ends at or below it.
    inherited_until: Timestamp,
    /// By gateway id.
    leases: BTreeMap<u64, Lease>,
}

impl CatalogLeases {
    /// A new PD's leases. `durable_bound_ms`: the timestamp bound it found, 0 in a new cluster.
    pub fn restore(published: u64, durable_bound_ms: u64) -> Self {
        let inherited_until = match durable_bound_ms {
            0 => Timestamp::ZERO,
            bound => Timestamp::new(bound + LEASE_MS, 0),
        };
        CatalogLeases { published, inherited_until, leases: BTreeMap::new() }
    }

    /// The version that gateways should work with.
    pub fn published(&self) -> u64 {
        self.published
    }

    /// There was a PD before this one.
    pub fn is_inherited(&self) -> bool {
        self.inherited_until > Timestamp::ZERO
    }

    /// A gateway acknowledges a version at PD's time `at` and asks for its lease. `None`: too many gateways.
    pub fn renew(&mut self, gateway: u64, acknowledged: u64, at: Timestamp) -> Option<Grant> {
        let held = self.leases.get(&gateway).copied().filter(|l| l.expires_at > at);
        // Versions are acknowledged in order; a late message must not take one back.
        let acknowledged = held.map_or(acknowledged, |l| l.acknowledged.max(acknowledged));
        let current = acknowledged >= self.published && acknowledged > 0;
        let expires_at = match held {
            _ if current => Timestamp::new(at.physical_ms() + LEASE_MS, 0),
            Some(lease) => lease.expires_at,
            None => Timestamp::ZERO,
        };
        if expires_at == Timestamp::ZERO {
            return Some(Grant { published: self.published, expires_at, news: false });
        }
        if held.is_none() {
            self.leases.retain(|_, l| l.expires_at > at);
            if self.leases.len() >= MAX_GATEWAYS {
                return None;
            }
        }
        self.leases.insert(gateway, Lease { acknowledged, expires_at });
        let news = held.is_none_or(|lease| lease.acknowledged < acknowledged);
        Some(Grant { published: self.published, expires_at, news })
    }

    /// A version is durable. Versions only grow.
    pub fn publish(&mut self, version: u64) {
        self.published = self.published.max(version);
    }

    /// Who may still work with something older than `version` at PD's time `at`: gateways, and 0 for the
    /// leases of an older PD. Empty: settled. `at` must have been handed out, so that every later timestamp is above it.
    pub fn waiting_for(&self, version: u64, at: Timestamp) -> Vec<u64> {
        let inherited = (self.inherited_until > at).then_some(0);
        let behind = |(&gateway, lease): (&u64, &Lease)| {
            (lease.expires_at > at && lease.acknowledged < version).then_some(gateway)
        };
        inherited.into_iter().chain(self.leases.iter().filter_map(behind)).collect()
    }

    /// The first PD time at which something that `version` waits for ends by itself.
    pub fn next_end(&self, version: u64, at: Timestamp) -> Option<Timestamp> {
        let behind = self.leases.values().filter(|l| l.acknowledged < version).map(|l| l.expires_at);
        behind.chain([self.inherited_until]).filter(|&end| end > at).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What may happen, one after the other.
    #[derive(Clone, Debug)]
    enum Step {
        /// A gateway acknowledges this many versions less than the published one, and asks for its lease.
        Renew(u64, u64),
        /// A DDL publishes the next version.
        Publish,
        /// Time passes, ms.
        Pass(u64),
        /// PD is lost. Its successor knows what is durable, and that all timestamps so far lie below a bound.
        NewPd,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1..5u64, 0..3u64).prop_map(|(g, behind)| Step::Renew(g, behind)),
            2 => Just(Step::Publish),
            4 => (1..LEASE_MS).prop_map(Step::Pass),
            1 => Just(Step::NewPd),
        ]
    }

    proptest! {
        /// Once a version is settled, no gateway holds a lease (from whichever PD) with an older one.
        #[test]
        fn settled_means_that_nobody_commits_under_an_older_version(steps in prop::collection::vec(step(), 1..120)) {
            let (mut now, mut published) = (1_000_u64, 1_u64);
            let mut pd = CatalogLeases::restore(1, 0);
            // What each gateway was ever granted: (version it works with, end).
            let mut granted = Vec::new();
            for step in steps {
                let at = Timestamp::new(now, 1);
                match step {
                    Step::Renew(gateway, behind) => {
                        let version = published.saturating_sub(behind);
                        let grant = pd.renew(gateway, version, at).expect("few gateways");
                        prop_assert_eq!(grant.published, published);
                        if grant.expires_at > at {
                            // It may have acknowledged more before; this is what it may at most be behind.
                            granted.push((gateway, version, grant.expires_at));
                        }
                    }
                    Step::Publish => {
                        published += 1;
                        pd.publish(published);
                    }
                    Step::Pass(ms) => now += ms,
                    Step::NewPd => pd = CatalogLeases::restore(published, now + 1),
                }
                let at = Timestamp::new(now, 2);
                if !pd.waiting_for(published, at).is_empty() {
                    prop_assert!(pd.next_end(published, at).is_some(), "it waits for something that ends");
                    continue;
                }
                // A gateway works with the newest version it has acknowledged.
                let newest = |gateway| granted.iter().filter(|g| g.0 == gateway).map(|g| g.1).max().unwrap_or(0);
                for &(gateway, _, end) in &granted {
                    prop_assert!(end <= at || newest(gateway) >= published, "gateway {} is behind", gateway);
                }
            }
        }
    }
}
