//! Who waits for whom, as the deadlock detector is told, and who has what, as people are. PURE.

use std::collections::BTreeSet;

use bytes::Bytes;
use proto::{Timestamp, wire::RowLockStatus};

use super::{RowLocks, conflicts};

/// One transaction that waits for another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait {
    /// Waits.
    pub waiter: Timestamp,
    /// Is waited for: it holds the row, or wants it too and came first.
    pub holder: Timestamp,
    /// The row; empty in what [`RowLocks::reported`] adds.
    pub key: Bytes,
    /// The waiter's statement.
    pub label: Bytes,
}

impl RowLocks {
    /// The first `limit` of all that is held or waited for.
    pub fn list(&self, limit: usize) -> Vec<RowLockStatus> {
        let waits = self.waits();
        let parts = self.rows.iter().flat_map(|(key, row)| {
            let held = row.holders.iter().map(|part| (part, true));
            held.chain(row.queue.iter().map(|part| (part, false))).map(move |(part, granted)| (key, part, granted))
        });
        let behind = |key: &Bytes, part: &super::Part| {
            let behind = self.owners.get(&part.owner).and_then(|owner| owner.behind.as_ref());
            behind.is_some_and(|(at, _)| at == key)
        };
        let parts = parts.map(|(key, part, granted)| (key, part, granted && !behind(key, part)));
        let status = |(key, part, granted): (&Bytes, &super::Part, bool)| RowLockStatus {
            key: key.clone(),
            owner: part.owner.0,
            mode: part.mode as i32,
            granted,
            waits_for: waits
                .iter()
                .filter(|wait| !granted && wait.waiter == part.owner && wait.key == *key)
                .map(|wait| wait.holder.0)
                .collect(),
            label: self.owners.get(&part.owner).map(|owner| owner.label.clone()).unwrap_or_default(),
        };
        parts.take(limit).map(status).collect()
    }

    /// Everybody who waits, with as few edges as tell all: behind a claim that is at least as strong as one's own stand
    /// all those that one waits for.
    pub fn waits(&self) -> Vec<Wait> {
        let mut waits = self.waits_behind();
        for (key, row) in self.rows.iter().filter(|(_, row)| !row.queue.is_empty()) {
            let mut order: Vec<_> = row.queue.iter().collect();
            order.sort_by_key(|part| !row.is_upgrade(part));
            for (at, claim) in order.iter().enumerate() {
                let label = self.owners.get(&claim.owner).map(|entry| entry.label.clone()).unwrap_or_default();
                let mut edge = |holder| {
                    waits.push(Wait { waiter: claim.owner, holder, key: key.clone(), label: label.clone() });
                };
                let ahead = order[..at].iter().rev().filter(|other| conflicts(other.mode, claim.mode));
                let mut behind = false;
                for other in ahead {
                    edge(other.owner);
                    behind = other.mode >= claim.mode && !row.is_upgrade(other);
                    if behind {
                        break;
                    }
                }
                if !behind {
                    let holders = row.holders.iter().filter(|other| other.owner != claim.owner);
                    holders.filter(|other| conflicts(other.mode, claim.mode)).for_each(|other| edge(other.owner));
                }
            }
        }
        waits
    }

    /// What those hear who look for deadlocks: the waits of those who still ask for the row, and that the twin of one that waits
    /// waits for it. A place in a queue stays while its owner lives, also where a leader has gone and its owner waits at the next
    /// one: a circle over such a place is none, and has nobody who could give way.
    pub fn reported(&self, asks: impl Fn(Timestamp, &Bytes) -> bool) -> Vec<Wait> {
        let mut waits = self.waits();
        waits.retain(|wait| asks(wait.waiter, &wait.key));
        let waiters: BTreeSet<Timestamp> = waits.iter().map(|wait| wait.waiter).collect();
        for waiter in waiters {
            let twin = self.owners.get(&waiter).map(|entry| entry.twin).filter(|twin| *twin != Timestamp::ZERO);
            if let Some(twin) = twin {
                waits.push(Wait { waiter: twin, holder: waiter, key: Bytes::new(), label: Bytes::new() });
            }
        }
        waits
    }

    fn waits_behind(&self) -> Vec<Wait> {
        let mut waits = Vec::new();
        for (waiter, owner) in &self.owners {
            let Some((key, others)) = &owner.behind else { continue };
            let wait = |holder: &Timestamp| Wait {
                waiter: *waiter,
                holder: *holder,
                key: key.clone(),
                label: owner.label.clone(),
            };
            waits.extend(others.iter().map(wait));
        }
        waits
    }
}
