//! The time in which a leader may serve reads without asking.
//!
//! ```text
//! leader    ──heartbeat(sent_ns)──►  followers            lease = [sent, sent + (election ticks − 1) × tick − drift)
//!           ◄─response(sent_ns)────                       from the quorum's oldest `sent`
//! ```
//!
//! A voter that took a heartbeat votes for nobody else before (election ticks − 1) ticks (raft-rs's check-quorum),
//! so nobody can be elected, and nothing be committed elsewhere, before the lease has ended. It counts from the
//! *sending*: the response says which heartbeat it answers. raft-rs's own contexts (ReadIndex) follow the stamp.
//!
//! No lease before an entry of the own term is applied, nor, after TimeoutNow was sent, for the rest of the term: a
//! transfer's campaign passes the voters' check. And no renewal between a split's commit and its apply: the right part's
//! replicas on other stores, which may be there already, know of no lease.

use std::{collections::BTreeMap, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use proto::{PeerId, PeerRole, Region, Term};

use crate::clock::Instant;

/// Bytes in front of a heartbeat's context.
const STAMP_LEN: usize = 8;

/// Puts the time of sending in front of a heartbeat's context.
pub(super) fn stamp(sent: Instant, context: &[u8]) -> Bytes {
    let mut stamped = BytesMut::with_capacity(STAMP_LEN + context.len());
    // 2^64 ns are 584 years of uptime.
    stamped.put_u64(u64::try_from(sent.0.as_nanos()).unwrap_or(u64::MAX));
    stamped.put_slice(context);
    stamped.freeze()
}

/// Takes the time of sending off a response's context; `None` when it carries none.
pub(super) fn unstamp(mut context: Bytes) -> Option<(Instant, Bytes)> {
    if context.len() < STAMP_LEN {
        return None;
    }
    let sent = Instant(Duration::from_nanos(context.get_u64()));
    Some((sent, context))
}

/// What a leader knows of its lease. Reset with the term.
#[derive(Debug)]
pub(super) struct Lease {
    duration: Duration,
    term: Term,
    since: Instant,
    /// The latest sending that each peer has acknowledged.
    acknowledged: BTreeMap<PeerId, Instant>,
    timeout_now_sent: bool,
}

impl Lease {
    pub(super) fn new(duration: Duration) -> Self {
        Lease {
            duration,
            term: Term(0),
            since: Instant::default(),
            acknowledged: BTreeMap::new(),
            timeout_now_sent: false,
        }
    }

    /// Leadership of a term began.
    pub(super) fn start(&mut self, term: Term, now: Instant) {
        *self = Lease { term, since: now, ..Lease::new(self.duration) };
    }

    /// A peer answered the heartbeat sent at `sent`. A stamp from before this leadership or from the future is not ours.
    pub(super) fn acknowledge(&mut self, peer: PeerId, sent: Instant, now: Instant) {
        if self.since <= sent && sent <= now {
            let latest = self.acknowledged.entry(peer).or_default();
            *latest = (*latest).max(sent);
        }
    }

    /// Whether a peer answered a heartbeat that was sent within this long.
    pub(super) fn heard_within(&self, peer: PeerId, now: Instant, within: Duration) -> bool {
        self.acknowledged.get(&peer).is_some_and(|&sent| now.since(sent) <= within)
    }

    /// From here on another peer may win an election at any time, in this term.
    pub(super) fn end_for_this_term(&mut self) {
        self.timeout_now_sent = true;
    }

    /// When the lease ends; `None` when there is none.
    pub(super) fn until(&self, region: &Region, own: PeerId, term: Term, now: Instant) -> Option<Instant> {
        if self.timeout_now_sent || self.term != term {
            return None;
        }
        let incoming = |role| matches!(role, PeerRole::Voter | PeerRole::IncomingVoter);
        let outgoing = |role| matches!(role, PeerRole::Voter | PeerRole::DemotingVoter);
        let start = self.quorum_start(region, own, now, incoming)?.min(self.quorum_start(region, own, now, outgoing)?);
        Some(start + self.duration)
    }

    /// The latest instant such that heartbeats sent then or later were acknowledged by a majority.
    fn quorum_start(
        &self,
        region: &Region,
        own: PeerId,
        now: Instant,
        counts: impl Fn(PeerRole) -> bool,
    ) -> Option<Instant> {
        let mut sent: Vec<Option<Instant>> = region
            .peers
            .iter()
            .filter(|peer| counts(peer.role))
            .map(|peer| if peer.id == own { Some(now) } else { self.acknowledged.get(&peer.id).copied() })
            .collect();
        sent.sort_unstable_by(|a, b| b.cmp(a));
        sent.get(sent.len() / 2).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use proto::{Epoch, KeyRange, Peer, RegionId, StoreId};

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(Duration::from_millis(ms))
    }

    fn region(roles: &[PeerRole]) -> Region {
        let peer = |(i, &role): (usize, &PeerRole)| {
            let id = i as u64 + 1;
            Peer { id: PeerId(id), store: StoreId(id), role }
        };
        let peers = roles.iter().enumerate().map(peer).collect();
        Region { id: RegionId(1), range: KeyRange::default(), epoch: Epoch::default(), peers }
    }

    #[test]
    fn it_counts_from_the_sending_that_a_majority_acknowledged() {
        let region = region(&[PeerRole::Voter; 3]);
        let mut lease = Lease::new(Duration::from_millis(900));
        lease.start(Term(7), at(100));
        let until = |lease: &Lease, now| lease.until(&region, PeerId(1), Term(7), at(now));
        assert_eq!(until(&lease, 200), None);
        lease.acknowledge(PeerId(2), at(50), at(210));
        assert_eq!(until(&lease, 210), None, "a stamp from before this leadership");
        lease.acknowledge(PeerId(2), at(150), at(240));
        assert_eq!(until(&lease, 250), Some(at(1050)));
        lease.acknowledge(PeerId(3), at(200), at(260));
        lease.acknowledge(PeerId(3), at(120), at(270));
        assert_eq!(until(&lease, 280), Some(at(1100)), "an older acknowledgement changes nothing");
        lease.acknowledge(PeerId(2), at(5000), at(300));
        assert_eq!(until(&lease, 300), Some(at(1100)), "a stamp from the future is not ours");
        assert_eq!(lease.until(&region, PeerId(1), Term(8), at(300)), None);
        lease.end_for_this_term();
        assert_eq!(until(&lease, 300), None);
    }

    #[test]
    fn in_a_joint_state_both_majorities_count() {
        let region = region(&[PeerRole::Voter, PeerRole::IncomingVoter, PeerRole::DemotingVoter, PeerRole::Learner]);
        let mut lease = Lease::new(Duration::from_millis(900));
        lease.start(Term(7), at(0));
        lease.acknowledge(PeerId(2), at(10), at(20));
        lease.acknowledge(PeerId(4), at(10), at(20));
        assert_eq!(lease.until(&region, PeerId(1), Term(7), at(20)), None);
        lease.acknowledge(PeerId(3), at(15), at(20));
        assert_eq!(lease.until(&region, PeerId(1), Term(7), at(20)), Some(at(910)));
    }

    #[test]
    fn stamps_travel_in_front_of_the_context() {
        let stamped = stamp(at(1234), b"read");
        assert_eq!(unstamp(stamped), Some((at(1234), Bytes::from_static(b"read"))));
        assert_eq!(unstamp(Bytes::from_static(b"short")), None);
    }
}
