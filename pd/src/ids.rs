//! Ids that are never given twice.
//!
//! A request's ids are made durable before they are handed out, exactly as many as were asked for: ids are
//! asked for rarely (a table, a store), and a caller who spreads things by id gets them without gaps. An id
//! whose write's outcome is unknown is lost.

use proto::keyspace::FIRST_USER_TABLE;

/// Ids of one request.
pub const MAX_COUNT: u32 = 1 << 20;

/// Who draws from which row of numbers. The values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// Callers' own: tables and the like.
    Callers = 0,
    /// Stores, regions and peers.
    Cluster = 1,
}

/// Where a sequence starts when nothing is durable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextIds {
    callers: u64,
    cluster: u64,
}

impl NextIds {
    /// What is durable. `founded` is the largest id of a store, region or peer in the founding record.
    pub fn restore(callers: Option<u64>, cluster: Option<u64>, founded: u64) -> Self {
        NextIds {
            callers: callers.unwrap_or(u64::from(FIRST_USER_TABLE)),
            cluster: cluster.unwrap_or(0).max(founded + 1),
        }
    }
    /// Takes `count` ids: the first of them, and what must be durable before anybody learns it.
    /// `None` when the sequence has no such many left.
    pub fn take(&mut self, sequence: Sequence, count: u32) -> Option<(u64, u64)> {
        let next = match sequence {
            Sequence::Callers => &mut self.callers,
            Sequence::Cluster => &mut self.cluster,
        };
        let first = *next;
        *next = first.checked_add(u64::from(count))?;
        Some((first, *next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_dense_separate_and_start_above_what_exists() {
        let mut ids = NextIds::restore(None, None, 17);
        assert_eq!(ids.take(Sequence::Callers, 2), Some((100, 102)));
        assert_eq!(ids.take(Sequence::Cluster, 1), Some((18, 19)));
        assert_eq!(ids.take(Sequence::Callers, 1), Some((102, 103)));
        let mut again = NextIds::restore(Some(103), Some(19), 17);
        assert_eq!(again.take(Sequence::Callers, 1), Some((103, 104)));
        assert_eq!(NextIds::restore(Some(u64::MAX), None, 0).take(Sequence::Callers, 1), None);
    }
}
