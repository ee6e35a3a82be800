//! A made snapshot on its way to one store.

use std::{sync::Arc, time::Duration};

use proto::{StoreId, wire};

use super::{Receiving, driver::Made};
use crate::engine::{EngineError, part_name};

/// Bytes in one block: a disk read, a message and a pause of the pace at a time.
const BLOCK_BYTES: usize = 256 << 10;
/// What one transfer may take of the network and of the receiver's disk: a region of 64 MiB in a second, and half of a
/// gigabit link for the traffic that people wait for.
const BYTES_PER_SECOND: u64 = 64 << 20;

/// How a transfer ended; the reason when the files are not there.
pub type Outcome = Result<(), String>;

/// A snapshot to carry to a store: its message, then its blocks. Dropping it without [`Outgoing::finish`] means that
/// the transfer failed.
pub struct Outgoing {
    to: StoreId,
    message: wire::RaftMessage,
    made: Arc<Made>,
    part: usize,
    offset: u64,
    sent: u64,
    told: Option<Box<dyn FnOnce(Outcome) + Send>>,
}

impl Outgoing {
    pub(super) fn new(
        to: StoreId,
        message: wire::RaftMessage,
        made: Arc<Made>,
        told: impl FnOnce(Outcome) + Send + 'static,
    ) -> Self {
        Outgoing { to, message, made, part: 0, offset: 0, sent: 0, told: Some(Box::new(told)) }
    }

    /// Where it goes.
    pub fn to(&self) -> StoreId {
        self.to
    }

    /// What the receiving replica gets when everything has arrived.
    pub fn message(&self) -> &wire::RaftMessage {
        &self.message
    }

    /// The next block; `None` when all were given. Reads from the disk.
    pub fn next_block(&mut self) -> Result<Option<wire::SnapshotBlock>, EngineError> {
        let Some(part) = self.made.content.parts.get(self.part) else { return Ok(None) };
        let data = self.made.read(&part_name(self.part), self.offset, BLOCK_BYTES)?;
        if data.is_empty() {
            return Err(EngineError::Io(format!("part {} ends at {}", self.part, self.offset)));
        }
        let block = wire::SnapshotBlock { part: self.part as u32, offset: self.offset, data };
        self.offset += block.data.len() as u64;
        self.sent += block.data.len() as u64;
        if self.offset >= part.bytes {
            (self.part, self.offset) = (self.part + 1, 0);
        }
        Ok(Some(block))
    }

    /// Since the beginning of the transfer at least this much time must have passed before the next block leaves.
    pub fn pace(&self) -> Duration {
        time_for(self.sent)
    }

    /// How long the whole transfer takes at its pace.
    pub fn pace_of_all(&self) -> Duration {
        time_for(self.made.content.bytes())
    }

    /// Carries all of it at once to a store of this process.
    pub fn carry(mut self, begin: impl FnOnce(wire::RaftMessage) -> Result<Receiving, String>) {
        let carry = |snapshot: &mut Outgoing| {
            let mut receiving = begin(snapshot.message.clone())?;
            while let Some(block) = snapshot.next_block().map_err(|e| e.to_string())? {
                receiving.block(&block)?;
            }
            receiving.finish()
        };
        let outcome = carry(&mut self);
        self.finish(outcome);
    }

    /// It ended. Whoever waits for it is told.
    pub fn finish(mut self, outcome: Outcome) {
        self.tell(outcome);
    }

    fn tell(&mut self, outcome: Outcome) {
        if let Some(told) = self.told.take() {
            told(outcome);
        }
    }
}

fn time_for(bytes: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / BYTES_PER_SECOND)
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.tell(Err("the transfer was given up".into()));
    }
}
