//! Who waits for whom, as the deadlock detector is told. PURE.

use bytes::Bytes;
use proto::Timestamp;

use super::{RowLocks, conflicts};

/// One transaction that waits for another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait {
    /// Waits.
    pub waiter: Timestamp,
    /// Is waited for: it holds the row, or wants it too and came first.
    pub holder: Timestamp,
    /// The row.
    pub key: Bytes,
    /// The waiter's statement.
    pub label: Bytes,
}

impl RowLocks {
    /// Everybody who waits, with as few edges as tell all: behind a claim that is at least as strong as one's own stand
    /// all those that one waits for.
    pub fn waits(&self) -> Vec<Wait> {
        let mut waits = Vec::new();
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
}
