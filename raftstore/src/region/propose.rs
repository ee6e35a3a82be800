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
}

/// All proposals of one replica that have no answer yet.
#[derive(Default)]
pub(super) struct Proposals {
    waiting: VecDeque<Waiting>,
    /// Of this leadership, by index.
    in_flight: VecDeque<InFlight>,
    /// Of earlier leaderships, with the ticks until their outcome counts as unknown. Their entries may be gone from this
    /// log and still be committed by somebody who kept them; only another entry applied at their index settles it.
    in_doubt: Vec<(u32, InFlight)>,
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
        let mut command = wire::Command { format: COMMAND_FORMAT, proposals: Vec::new(), change: None };
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
        self.in_flight.push_back(InFlight { position, tickets: entry.tickets, bytes: entry.bytes });
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
        self.in_doubt.extend(self.in_flight.drain(..).map(|entry| (doubt_ticks, entry)));
    }

    /// The replica goes: what was never proposed is certainly not applied, of the rest nobody here will know.
    pub(super) fn end(&mut self, error: &RegionError, doubt: &str, replies: &mut Replies) {
        self.leadership_lost(error, 0, replies);
        for (_, entry) in std::mem::take(&mut self.in_doubt) {
            self.settle(entry, |_| Err(ProposeError::Unknown(doubt.into())), replies);
        }
    }

    /// None of what has no answer yet was applied, or ever will be.
    pub(super) fn refuse(&mut self, error: &RegionError, replies: &mut Replies) {
        self.leadership_lost(error, 0, replies);
        for (_, entry) in std::mem::take(&mut self.in_doubt) {
            self.settle(entry, |_| Err(error.clone().into()), replies);
        }
    }

    /// Time passes for what is in doubt.
    pub(super) fn tick(&mut self, replies: &mut Replies) {
        self.in_doubt.iter_mut().for_each(|(ticks, _)| *ticks = ticks.saturating_sub(1));
        for (_, entry) in self.in_doubt.extract_if(.., |(ticks, _)| *ticks == 0).collect::<Vec<_>>() {
            let Position { index, term } = entry.position;
            let why = format!("leadership was lost in term {} before entry {} committed", term.0, index.0);
            self.settle(entry, |_| Err(ProposeError::Unknown(why.clone())), replies);
        }
    }

    /// An entry was applied: whoever waits at its index gets an answer.
    pub(super) fn applied(&mut self, outcome: EntryOutcome, replies: &mut Replies) {
        let at = outcome.position.index;
        let mut settled: Vec<InFlight> =
            self.in_doubt.extract_if(.., |(_, entry)| entry.position.index == at).map(|(_, entry)| entry).collect();
        if self.in_flight.front().is_some_and(|entry| entry.position.index == at) {
            settled.extend(self.in_flight.pop_front());
        }
        debug_assert!(self.in_flight.front().is_none_or(|entry| entry.position.index > at));
        for entry in settled {
            if entry.position.term == outcome.position.term {
                assert_eq!(entry.tickets.len(), outcome.proposals.len(), "an entry is applied as it was proposed");
                self.settle(entry, |i| outcome.proposals[i].clone().map_err(ProposeError::from), replies);
            } else {
                // Another leader's entry is committed at this index: ours never will be.
                self.settle(entry, |_| Err(RegionError::stale_command().into()), replies);
            }
        }
    }

    fn settle(&mut self, entry: InFlight, result: impl Fn(usize) -> Result<(), ProposeError>, replies: &mut Replies) {
        self.bytes -= entry.bytes;
        self.count -= entry.tickets.len();
        for (i, ticket) in entry.tickets.into_iter().enumerate() {
            answer(replies, ticket, result(i));
        }
    }
}
