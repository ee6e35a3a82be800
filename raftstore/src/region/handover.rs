//! Leadership on its way to a chosen peer.
//!
//! ```text
//!   asked ──► the peer catches up, everything goes on ──► Raft's transfer: no proposals, TimeoutNow, no lease
//!                │ too slow: refused                           │ another leader is seen: done
//!                                                              │ an election timeout passed: refused, still leading
//! ```
//!
//! Raft's part begins only when the peer is nearly as far as the leader, so that the time without proposals is a round
//! trip or two. The lease ends with TimeoutNow and not before.

use proto::{PeerId, StoreId};

use crate::effect::Ticket;

/// Entries the peer may lack when Raft's part begins: one message's worth, a round trip.
pub(super) const LAG_ENTRIES: u64 = 128;

/// A hand-over that somebody waits for.
#[derive(Debug)]
pub(super) struct Handover {
    pub(super) ticket: Ticket,
    pub(super) to: PeerId,
    pub(super) store: StoreId,
    /// Until it is given up.
    pub(super) ticks_left: u32,
    pub(super) stage: Stage,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The peer is waited for.
    CatchingUp,
    /// Raft has the rest.
    HandedToRaft,
    /// This replica leads no more and waits to see who does.
    Resigned,
}
