//! Reads without a lease: ReadIndex. Readers that wait together share one round of heartbeats.
//!
//! raft-rs forgets a round silently when leadership is lost or before an entry of the own term is committed; so
//! every reader has a limit in ticks, after which it is told to look for the leader again.

use std::collections::VecDeque;

use proto::{LogIndex, wire::RegionError};

use super::propose::Replies;
use crate::effect::{Answer, Ticket};

/// Readers that share a round.
struct Round {
    id: u64,
    tickets: Vec<Ticket>,
    /// Known once a quorum has answered: applied up to here, the readers may read.
    index: Option<LogIndex>,
    ticks_left: u32,
}

/// All readers of one replica that have no answer yet.
#[derive(Default)]
pub(super) struct Reads {
    waiting: Vec<Ticket>,
    waiting_ticks: u32,
    rounds: VecDeque<Round>,
    last_id: u64,
}

fn answer(replies: &mut Replies, tickets: Vec<Ticket>, result: &Result<(), RegionError>) {
    replies.extend(tickets.into_iter().map(|t| (t, Answer::Readable(result.clone()))));
}

impl Reads {
    /// Queues a reader.
    pub(super) fn push(&mut self, ticket: Ticket, limit_ticks: u32) {
        if self.waiting.is_empty() {
            self.waiting_ticks = limit_ticks;
        }
        self.waiting.push(ticket);
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many readers have no answer yet.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.rounds.iter().map(|r| r.tickets.len()).sum::<usize>()
    }

    /// Starts a round for all that wait; its id is the context for raft-rs. Ids don't repeat within a life of the
    /// replica, and older lives' rounds are of an older term.
    pub(super) fn start_round(&mut self, limit_ticks: u32) -> Vec<u8> {
        self.last_id += 1;
        let tickets = std::mem::take(&mut self.waiting);
        self.rounds.push_back(Round { id: self.last_id, tickets, index: None, ticks_left: limit_ticks });
        self.last_id.to_be_bytes().to_vec()
    }

    /// A quorum answered the round with this context.
    pub(super) fn confirmed(&mut self, context: &[u8], index: LogIndex) {
        let Ok(id) = context.try_into().map(u64::from_be_bytes) else { return };
        if let Some(round) = self.rounds.iter_mut().find(|r| r.id == id) {
            round.index = Some(index);
        }
    }

    /// Lets those read whose index is applied.
    pub(super) fn applied(&mut self, applied: LogIndex, replies: &mut Replies) {
        self.rounds.retain_mut(|round| {
            let ready = round.index.is_some_and(|index| index <= applied);
            if ready {
                answer(replies, std::mem::take(&mut round.tickets), &Ok(()));
            }
            !ready
        });
    }

    /// This replica leads no more.
    pub(super) fn fail(&mut self, error: &RegionError, replies: &mut Replies) {
        let error = Err(error.clone());
        answer(replies, std::mem::take(&mut self.waiting), &error);
        self.rounds.drain(..).for_each(|round| answer(replies, round.tickets, &error));
    }

    /// Time passes.
    pub(super) fn tick(&mut self, error: &RegionError, replies: &mut Replies) {
        if !self.waiting.is_empty() {
            self.waiting_ticks = self.waiting_ticks.saturating_sub(1);
            if self.waiting_ticks == 0 {
                answer(replies, std::mem::take(&mut self.waiting), &Err(error.clone()));
            }
        }
        self.rounds.iter_mut().for_each(|round| round.ticks_left = round.ticks_left.saturating_sub(1));
        while self.rounds.front().is_some_and(|round| round.ticks_left == 0) {
            let round = self.rounds.pop_front().expect("it has a front");
            answer(replies, round.tickets, &Err(error.clone()));
        }
    }
}
