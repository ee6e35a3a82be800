//! Proposals from arrival to answer: those that wait together become one entry, and every one is answered.
//!
//! ```text
//! wait ──propose──► in flight ──applied──► Ok, or the refusal of apply (certainly not applied)
//!   │                   │
//!   │                   └─ leadership lost ──► in doubt ──another entry applied at its index──► StaleCommand
//!   │                                              ├─ its own entry applied ──► as above
//!   └─ not leader: NotLeader                       └─ one election timeout passed ──► Unknown
//! ```

use std::collections::VecDeque;

use prost::Message;
use proto::{
    Term,
    wire::{self, RegionError},
};

use crate::{
    api::ProposeError,
    config::{ENTRY_BYTES_ABOUT, ENTRY_PROPOSALS_AT_MOST, Limits},
    effect::{Answer, EntryOutcome, Ticket},
    keys::COMMAND_FORMAT,
    log::Position,
};

/// One that was accepted and not proposed yet.
struct Waiting {
    ticket: Ticket,
    proposal: wire::Proposal,
    bytes: usize,
}

/// The proposals of one entry of the log.
struct InFlight {
    position: Position,
    tickets: Vec<Ticket>,
    bytes: usize,
    /// Leadership was lost; the outcome is unknown when this many more ticks bring no entry at its index.
    doubt_ticks: Option<u32>,
}

/// All proposals of one replica that have no answer yet.
#[derive(Default)]
pub(super) struct Proposals {
    waiting: VecDeque<Waiting>,
    in_flight: VecDeque<InFlight>,
    bytes: usize,
    count: usize,
}

/// Entries' worth of proposals taken out of the queue.
pub(super) struct NextEntry {
    pub(super) data: Vec<u8>,
    tickets: Vec<Ticket>,
    bytes: usize,
}

/// Where answers go.
pub(crate) type Replies = Vec<(Ticket, Answer)>;

pub(crate) fn answer(replies: &mut Replies, ticket: Ticket, result: Result<(), ProposeError>) {
    replies.push((ticket, Answer::Proposed(result)));
}

impl Proposals {
    /// Whether one more of `bytes` is within the bounds.
    pub(super) fn has_room(&self, bytes: usize, limits: &Limits) -> bool {
        self.count < limits.region_proposals && (self.count == 0 || self.bytes + bytes <= limits.region_bytes)
    }

    /// Queues one.
    pub(super) fn push(&mut self, ticket: Ticket, proposal: wire::Proposal, bytes: usize) {
        self.count += 1;
        self.bytes += bytes;
        self.waiting.push_back(Waiting { ticket, proposal, bytes });
    }

    /// Whether somebody has no answer yet.
    pub(super) fn any(&self) -> bool {
        self.count > 0
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next entry's worth of what waits; `None` when nothing does. All of it was checked for `term`.
    pub(super) fn next_entry(&mut self, term: Term) -> Option<NextEntry> {
        let mut command = wire::Command { format: COMMAND_FORMAT, proposals: Vec::new() };
        let mut entry = NextEntry { data: Vec::new(), tickets: Vec::new(), bytes: 0 };
        while let Some(next) = self.waiting.front() {
            let full = entry.bytes + next.bytes > ENTRY_BYTES_ABOUT || entry.tickets.len() >= ENTRY_PROPOSALS_AT_MOST;
            if full && !entry.tickets.is_empty() {
                break;
            }
            let next = self.waiting.pop_front().expect("it has a front");
            entry.bytes += next.bytes;
            entry.tickets.push(next.ticket);
            command.proposals.push(wire::Proposal { term: term.0, ..next.proposal });
        }
        if entry.tickets.is_empty() {
            return None;
        }
        entry.data = command.encode_to_vec();
        Some(entry)
    }

    /// The entry was appended to the leader's log.
    pub(super) fn proposed(&mut self, entry: NextEntry, position: Position) {
        debug_assert!(self.in_flight.back().is_none_or(|last| last.position.index < position.index));
        self.in_flight.push_back(InFlight { position, tickets: entry.tickets, bytes: entry.bytes, doubt_ticks: None });
    }

    /// Raft refused the entry: certainly not applied.
    pub(super) fn dropped(&mut self, entry: NextEntry, error: &RegionError, replies: &mut Replies) {
        self.bytes -= entry.bytes;
        self.count -= entry.tickets.len();
        entry.tickets.into_iter().for_each(|t| answer(replies, t, Err(error.clone().into())));
    }

    /// This replica leads no more: what was never proposed is certainly not applied, the rest is in doubt.
    pub(super) fn leadership_lost(&mut self, error: &RegionError, doubt_ticks: u32, replies: &mut Replies) {
        for waiting in self.waiting.drain(..) {
            self.bytes -= waiting.bytes;
            self.count -= 1;
            answer(replies, waiting.ticket, Err(error.clone().into()));
        }
        for entry in &mut self.in_flight {
            entry.doubt_ticks.get_or_insert(doubt_ticks);
        }
    }

    /// Time passes for what is in doubt.
    pub(super) fn tick(&mut self, replies: &mut Replies) {
        if self.in_flight.front().is_none_or(|e| e.doubt_ticks.is_none()) {
            return;
        }
        for entry in &mut self.in_flight {
            entry.doubt_ticks = entry.doubt_ticks.map(|left| left.saturating_sub(1));
        }
        while self.in_flight.front().is_some_and(|e| e.doubt_ticks == Some(0)) {
            let entry = self.pop_in_flight();
            let why = format!(
                "leadership was lost in term {} before entry {} committed",
                entry.position.term.0, entry.position.index.0
            );
            for ticket in entry.tickets {
                answer(replies, ticket, Err(ProposeError::Unknown(why.clone())));
            }
        }
    }

    fn pop_in_flight(&mut self) -> InFlight {
        let entry = self.in_flight.pop_front().expect("it has a front");
        self.bytes -= entry.bytes;
        self.count -= entry.tickets.len();
        entry
    }

    /// An entry was applied: whoever waits at its index gets an answer.
    pub(super) fn applied(&mut self, outcome: EntryOutcome, replies: &mut Replies) {
        while self.in_flight.front().is_some_and(|e| e.position.index < outcome.position.index) {
            // Can't happen (every index is applied); but nobody shall wait for ever.
            let entry = self.pop_in_flight();
            for ticket in entry.tickets {
                answer(replies, ticket, Err(ProposeError::Unknown("its entry was passed over".into())));
            }
        }
        if self.in_flight.front().is_none_or(|e| e.position.index != outcome.position.index) {
            return;
        }
        let entry = self.pop_in_flight();
        if entry.position.term != outcome.position.term {
            // Another leader's entry is committed at this index: ours never will be.
            entry.tickets.into_iter().for_each(|t| answer(replies, t, Err(RegionError::stale_command().into())));
            return;
        }
        assert_eq!(entry.tickets.len(), outcome.proposals.len(), "an entry is applied as it was proposed");
        for (ticket, result) in entry.tickets.into_iter().zip(outcome.proposals) {
            answer(replies, ticket, result.map_err(ProposeError::from));
        }
    }
}
